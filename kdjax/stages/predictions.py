"""Stage 'predictions': fills the store with every member's predictions for every view.

Axes: M member, N example, C class.
"""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np
from etils import epath

from kdjax import config as config_lib
from kdjax.errors import DamageError
from kdjax.predictions.encodings import Dense, Encoding, TopK
from kdjax.predictions.store import PredictionStore
from kdjax.predictions.teachers import Source, StoredTeacher, Teacher
from kdjax.runtime import files, hosts, progress
from kdjax.stages import gan, teachers
from kdjax.stages.experiment import Experiment
from kdjax.stages.stage import Job, Stage
from kdjax.train.inputs import is_same_view

INPUTS = 'inputs.json'  # records of some of the views that are predicted
VIEWS = 0, 1  # the recorded views of the distillation data, the same for any number of views


def _jobs(experiment: Experiment) -> Sequence[Job]:
  config, folder = experiment.config, experiment.folders.predictions
  if config.predictions.mode == 'online':
    return []
  num_members, num_views = config.teacher.num_members, config.predictions.num_views
  return [
    Job(
      folder,
      is_complete=partial(_is_complete, folder, num_members, num_views),
      make=partial(_make, experiment),
      missing=f'the predictions of {num_members} members for {num_views} views are not all in {folder}.',
      provenance=experiment.data.everything,
      artefact='predictions',
    )
  ]


STAGE = Stage('predictions', _jobs, requires=lambda experiment: [teachers.STAGE, gan.STAGE])


def sources(experiment: Experiment) -> list[Stage]:
  """The stages whose results `open_teacher` needs."""
  return [teachers.STAGE if experiment.config.predictions.mode == 'online' else STAGE]


def open_teacher(experiment: Experiment) -> Teacher:
  """The teacher that `predictions.mode` asks for.

  Raises:
    MissingInputError: an earlier stage was not run.
    DamageError: the stored predictions are not those of these data.
  """
  config, data = experiment.config, experiment.data
  for stage in sources(experiment):
    stage.require(experiment)
  if config.predictions.mode == 'online':
    return teachers.open_source(experiment)
  store = PredictionStore(experiment.folders.predictions)
  data.everything.require(store.meta['data_checksum'], store.folder)
  require_same_inputs(experiment)
  for name, inputs in data.inputs.items():
    store.check(name, len(inputs.split), encoding(experiment, name))
  return StoredTeacher(store, config.teacher.num_members, config.predictions.num_views)


def _is_complete(folder: epath.Path, num_members: int, num_views: int) -> bool:
  """Whether meta.json has at least these numbers of members and views as complete."""

  def is_there() -> bool:
    complete = PredictionStore(folder).meta.get('complete', [])
    return any(members >= num_members and views >= num_views for members, views in complete)

  return hosts.decide(is_there)


def _make(experiment: Experiment) -> None:
  """Stores the predictions that are missing."""
  source, folder = teachers.open_source(experiment), experiment.folders.predictions
  if hosts.decide(lambda: (folder / 'logits').exists()):
    require_same_inputs(experiment)
  elif hosts.is_main():
    files.write_json(folder / INPUTS, _inputs(experiment))
  _store(experiment, source)


def require_same_inputs(experiment: Experiment) -> None:
  """Compares a few views, as they are rendered now, with the recorded views of the predictions.

  A fingerprint covers fields of the config; the code that draws and renders the views may still change.

  Raises:
    DamageError: the views differ, or there is no record of them.
  """
  folder = experiment.folders.predictions

  def check() -> bool:
    path = folder / INPUTS
    recorded, now = files.read_json(path) if path.exists() else {}, _inputs(experiment)
    differing = [
      f'view {view} of {name}'
      for name, views in now.items()
      for view in views
      if not is_same_view(views[view], recorded.get(name, {}).get(view))
    ]
    if differing:
      why = 'are of other inputs than are rendered now' if recorded else f'have lost their {INPUTS}'
      raise DamageError(
        f'the predictions in {folder} {why} ({", ".join(differing)}): a student would be trained on one '
        f'image with the predictions for another. Delete {folder} and run with --stages=predictions to make '
        'them again, or use the version of kdjax that made them.'
      )
    return True

  hosts.decide(check)


def _inputs(experiment: Experiment) -> dict[str, dict[str, dict[str, str]]]:
  """Records of some views, by the name of the inputs and the view."""
  return {
    name: {
      str(view): inputs.record(view) for view in (VIEWS if name == 'distillation' else VIEWS[:1])
    }
    for name, inputs in experiment.data.inputs.items()
  }


def _store(experiment: Experiment, source: Source) -> None:
  """Predicts every missing view, on all hosts together, which gives the same bits as one host.

  Hosts take turns to write: one writes a view while all predict the next one.
  """
  inputs, num_classes = experiment.data.inputs, experiment.data.description.num_classes
  store = PredictionStore(experiment.folders.predictions)
  num_views, num_members = views_of(experiment), experiment.config.teacher.num_members
  num_bytes = 0
  for name, count in num_views.items():
    stored_as, num_examples = encoding(experiment, name), len(inputs[name].split)
    num_bytes += num_members * count * num_examples * stored_as.num_bytes
    if hosts.is_main():
      store.reserve(name, (num_members, count, num_examples, num_classes), stored_as)
  hosts.barrier()
  title = f'{experiment.label}predictions'
  progress.logger.info('%s: up to %.0f MB, before compression', title, num_bytes / 1e6)
  compact, dense = encoding(experiment, 'distillation'), Dense('float16', num_classes)
  if isinstance(compact, TopK) and compact.num_bytes >= dense.num_bytes:
    progress.logger.warning(
      'predictions.top_k = %d: takes %d bytes an example; predictions.dtype=float16, which is exact, takes %d',
      compact.k,
      compact.num_bytes,
      dense.num_bytes,
    )
  wanted = [
    (name, member, view)
    for name in num_views
    for member in range(num_members)
    for view in range(num_views[name])
  ]
  missing = _missing(store, wanted)
  with progress.bar(title, len(wanted), 'views') as show, ThreadPoolExecutor(1) as writer:
    writing = None
    for done, (name, member, view) in enumerate(missing, len(wanted) - len(missing) + 1):
      logits_NC = source.logits(member, name, view)
      if done % hosts.count() == hosts.index():
        if writing is not None:
          writing.result()  # raises its error, and at most two views are in memory
        writing = writer.submit(store.write, name, member, view, logits_NC, source.gives_log_probs)
      show(done)
    if writing is not None:
      writing.result()
  hosts.barrier()
  store.write_meta(_meta(experiment, store))


def _missing(
  store: PredictionStore, wanted: list[tuple[str, int, int]]
) -> list[tuple[str, int, int]]:
  """The (name, member, view) that the store lacks. Each host reads its share of the store."""
  mine = range(hosts.index(), len(wanted), hosts.count())
  found = np.array([i in mine and store.has(*wanted[i]) for i in range(len(wanted))])
  found = hosts.gather(found).any(axis=0) if hosts.count() > 1 else found
  return [key for key, is_there in zip(wanted, found, strict=True) if not is_there]


def views_of(experiment: Experiment) -> dict[str, int]:
  """The number of views to store, by the name of the inputs. Splits have one."""
  num_views = experiment.config.predictions.num_views
  return {name: num_views if name == 'distillation' else 1 for name in experiment.data.inputs}


def encoding(experiment: Experiment, name: str) -> Encoding:
  """The encoding of predictions of some inputs. It is exact for splits, on which fidelity is measured."""
  section, num_classes = experiment.config.predictions, experiment.data.description.num_classes
  if not config_lib.is_top_k(experiment.config):
    return Dense(section.dtype, num_classes)
  if name != 'distillation':
    return Dense('float16', num_classes)
  seed = experiment.config.seed
  return TopK(section.top_k, section.top_k_estimator, num_classes, seed)


def _meta(experiment: Experiment, store: PredictionStore) -> dict:
  config = experiment.config
  complete = [
    [config.teacher.num_members, config.predictions.num_views],
    *store.meta.get('complete', []),
  ]
  return {
    'dtype': config.predictions.dtype,
    'data_checksum': experiment.data.everything.checksum,
    'complete': complete,  # (members, views) up to which nothing is missing
    'digests': _digests(experiment, store) if hosts.is_main() else {},  # only it writes them
  }


def _digests(experiment: Experiment, store: PredictionStore) -> dict[str, dict[str, str]]:
  """Digests of stored predictions, by the name of the inputs and 'member/view'. Known ones are kept."""
  digests = store.meta.get('digests', {})
  for name, num_views in views_of(experiment).items():
    known = digests.setdefault(name, {})
    for member, view in np.ndindex(experiment.config.teacher.num_members, num_views):
      if (key := f'{member}/{view}') not in known:
        known[key] = store.digest(name, member, view)
  return digests
