"""The second stage: the teachers' predictions for every view, and how the student gets at them.

The student and the evaluation see a `Teacher`. `StoredTeacher` reads the prediction store and needs
no teacher; `OnlineTeacher` runs the members instead and needs no store. Both give the same numbers, up
to the dtype of the store. Axes: M member, N example, B batch, C class.
"""

from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import Protocol

import jax
import numpy as np
from scipy.special import log_softmax

from kdjax import config as config_lib
from kdjax import losses, metrics
from kdjax.errors import DamageError, MissingInputError
from kdjax.predictions.store import DTYPES, PredictionStore
from kdjax.runtime import files, hosts, progress
from kdjax.stages import teachers
from kdjax.stages.run import Run
from kdjax.train import devices, steps
from kdjax.train.inputs import is_same_view

COMBINED = 10_000  # examples at once
INPUTS = 'inputs.json'  # what the predictions are of
VIEWS = (0, 1)  # that it has; a view is the same however many there are

_ensemble_log_probs = jax.jit(losses.ensemble_log_probs)


class Teacher(Protocol):
  """The ensemble's predictions on the inputs that `Run.inputs` names."""

  def members(self, name: str, view: int = 0) -> np.ndarray:
    """log_probs_MNC of every member, for one view of every example."""

  def batch(self, name: str, batch: steps.Batch) -> jax.Array:
    """The ensemble's log_probs for a batch, split over the devices as the batch is."""


def ensemble(teacher: Teacher, name: str, view: int = 0) -> np.ndarray:
  """log_probs_NC of the ensemble, for one view of every example."""
  return combine(teacher.members(name, view))


def combine(log_probs_MNC: np.ndarray) -> np.ndarray:
  """log_probs_NC of the ensemble, in blocks of examples that fit on any device."""
  blocks = np.array_split(log_probs_MNC, -(-log_probs_MNC.shape[1] // COMBINED), axis=1)
  return np.concatenate([np.asarray(_ensemble_log_probs(block)) for block in blocks])


class StoredTeacher:
  """Reads a whole view of the ensemble at a time, and the next one while this one is trained on.

  At most three are in memory: two that a batch reaches into, and the next.
  """

  def __init__(self, store: PredictionStore, num_members: int, num_views: int):
    self._store = store
    self._num_members = num_members
    self._num_views = num_views  # after the last comes the first again
    self._views: dict[tuple[str, int], Future[np.ndarray]] = {}

  def members(self, name: str, view: int = 0) -> np.ndarray:
    return self._store.read(name, range(self._num_members), view)

  def batch(self, name: str, batch: steps.Batch) -> np.ndarray:
    indices, views = batch['indices'], batch['views']
    needed = np.unique(views).tolist()
    ensembles = {view: self._reading(name, view).result() for view in needed}
    following = (int(views.flat[-1]) + 1) % self._num_views
    self._views = {  # older ones are done with
      (name, view): self._reading(name, view) for view in dict.fromkeys([*needed, following])
    }
    log_probs = np.empty((*indices.shape, ensembles[needed[0]].shape[-1]), np.float32)
    for view in needed:
      log_probs[views == view] = ensembles[view][indices[views == view]]
    return log_probs

  def _reading(self, name: str, view: int) -> Future[np.ndarray]:
    """The ensemble's log_probs_NC when they are read. What goes wrong is raised by its `result`."""
    if (name, view) not in self._views:
      executor = ThreadPoolExecutor(1)
      reading = executor.submit(self._store.read_ensemble, name, self._num_members, view)
      executor.shutdown(wait=False)  # its thread ends with the reading
      self._views[name, view] = reading
    return self._views[name, view]


class OnlineTeacher:
  def __init__(self, run: Run):
    self._run = run
    self._steps = {}
    self._variables = [teachers.load(run, i) for i in range(run.config.teacher.num_members)]

  def members(self, name: str, view: int = 0) -> np.ndarray:
    run = self._run
    logits_MNC = [
      run.predict(run.teacher_model, variables, run.inputs[name], view)
      for variables in self._variables
    ]
    return log_softmax(np.stack(logits_MNC), axis=-1)

  def batch(self, name: str, batch: steps.Batch) -> jax.Array:
    inputs = self._run.inputs[name]
    if name not in self._steps:
      step = partial(steps.ensemble_step, model=self._run.teacher_model, view=inputs.view)
      self._steps[name] = devices.parallel(step, sharded_output=True)
    return self._steps[name](self._variables, batch, inputs.seed)


def open_teacher(run: Run) -> Teacher:
  """What `predictions.mode` asks for.

  Raises:
    MissingInputError: the stage before was not run.
  """
  if run.config.predictions.mode == 'online':
    return OnlineTeacher(run)
  require(run)
  store = PredictionStore(run.predictions_folder)
  run.check_data(store.meta['data_checksum'], store.folder, 'student')
  require_same_inputs(run)
  for name, inputs in run.inputs.items():
    store.check(name, len(inputs.split), run.description.num_classes)
  num_members, num_views = run.config.teacher.num_members, run.config.predictions.num_views
  return StoredTeacher(store, num_members, num_views)


def require(run: Run) -> None:
  """Raises MissingInputError if the predictions are not all stored, or online the teachers not there."""
  num_members, num_views = run.config.teacher.num_members, run.config.predictions.num_views
  if run.config.predictions.mode == 'online':
    teachers.require(run)
  elif not is_stored(run):
    raise MissingInputError(
      f'the predictions of {num_members} members for {num_views} views are not all in '
      f'{run.predictions_folder}. Run the same command with --stages=predictions first.'
    )


def is_stored(run: Run) -> bool:
  """Whether meta.json says that every prediction that this config wants is there."""
  wanted = run.config.teacher.num_members, run.config.predictions.num_views

  def is_there() -> bool:
    complete = PredictionStore(run.predictions_folder).meta.get('complete', [])
    return any(members >= wanted[0] and views >= wanted[1] for members, views in complete)

  return hosts.decide(is_there)


def run(run: Run) -> bool:
  """Stores the predictions that are not there yet. Returns whether there were any."""
  if run.config.predictions.mode == 'online' or is_stored(run):
    return False
  members = [teachers.load(run, i) for i in range(run.config.teacher.num_members)]
  with files.lock(run.predictions_folder):
    if is_stored(run):  # by another process, while this one waited
      return False
    run.begin(run.predictions_folder, 'student')  # what is there must be of the same data
    if hosts.decide(lambda: (run.predictions_folder / 'logits').exists()):
      require_same_inputs(run)
    elif hosts.is_main():
      files.write_json(run.predictions_folder / INPUTS, _inputs(run))
    _store(run, members)
  return True


def require_same_inputs(run: Run) -> None:
  """Compares a few views, as they are rendered now, with those that the predictions are of.

  A fingerprint names fields of a config; the code that draws and renders can change beneath it.

  Raises:
    DamageError: they are other ones, or there is no record of them.
  """
  folder = run.predictions_folder

  def check() -> bool:
    path = folder / INPUTS
    recorded, now = files.read_json(path) if path.exists() else {}, _inputs(run)
    differing = [
      f'view {view} of {name}'
      for name, views in now.items()
      for view in views
      if not is_same_view(views[view], recorded.get(name, {}).get(view))
    ]
    if differing:
      why = 'are of other inputs than are rendered now' if recorded else f'have lost their {INPUTS}'
      raise DamageError(
        f'the predictions in {folder} {why} ({", ".join(differing)}): a student would learn of one image '
        f'what the teacher said of another. Delete {folder} and run with --stages=predictions to make '
        'them anew, or go back to the version of kdjax that made them.'
      )
    return True

  hosts.decide(check)


def _inputs(run: Run) -> dict[str, dict[str, dict[str, str]]]:
  """Records of some views, by the name of the inputs and the view."""
  return {
    name: {
      str(view): of_name.record(view) for view in (VIEWS if name == 'distillation' else VIEWS[:1])
    }
    for name, of_name in run.inputs.items()
  }


def _store(run: Run, members: list[steps.Variables]) -> None:
  """All hosts predict every missing view together, which gives the bits that one host would get.

  They take turns to write: a chunk is written by one, while all go on to predict the next view.
  """
  config, store = run.config, PredictionStore(run.predictions_folder)
  num_views = views_of(run)
  for name, of_inputs in num_views.items():
    shape = (len(members), of_inputs, len(run.inputs[name].split), run.description.num_classes)
    if hosts.is_main():
      store.reserve(name, shape, config.predictions.dtype)
  hosts.barrier()
  num_values = sum(n * len(run.inputs[name].split) for name, n in num_views.items())
  num_bytes = num_values * len(members) * run.description.num_classes
  num_bytes *= DTYPES[config.predictions.dtype].itemsize
  progress.logger.info('predictions: up to %.0f MB, before compression', num_bytes / 1e6)
  wanted = [
    (name, member, view)
    for name in num_views
    for member in range(len(members))
    for view in range(num_views[name])
  ]
  missing = _missing(store, wanted)
  with (
    progress.bar('predictions', len(wanted), 'views') as show,
    ThreadPoolExecutor(1) as writer,
  ):
    writing = None
    for done, (name, member, view) in enumerate(missing, len(wanted) - len(missing) + 1):
      logits_NC = run.predict(run.teacher_model, members[member], run.inputs[name], view)
      if done % hosts.count() == hosts.index():
        if writing is not None:
          writing.result()  # raises what went wrong; and no more than two views are held
        writing = writer.submit(store.write, name, member, view, logits_NC)
      show(done)
    if writing is not None:
      writing.result()
  hosts.barrier()
  store.write_meta(_meta(run, store, members))


def _missing(
  store: PredictionStore, wanted: list[tuple[str, int, int]]
) -> list[tuple[str, int, int]]:
  """Those (name, member, view) that the store lacks. Each host reads its share of what is there."""
  mine = range(hosts.index(), len(wanted), hosts.count())
  found = np.array([i in mine and store.has(*wanted[i]) for i in range(len(wanted))])
  found = hosts.gather(found).any(axis=0) if hosts.count() > 1 else found
  return [key for key, is_there in zip(wanted, found, strict=True) if not is_there]


def views_of(run: Run) -> dict[str, int]:
  """Views to store, by the name of the inputs. Splits as they are have one."""
  num_views = run.config.predictions.num_views
  return {name: num_views if name == 'distillation' else 1 for name in run.inputs}


def _meta(run: Run, store: PredictionStore, members: list[steps.Variables]) -> dict:
  config = run.config
  complete = [[len(members), config.predictions.num_views], *store.meta.get('complete', [])]
  return {
    'space': 'log_probs',
    'dtype': config.predictions.dtype,
    'teacher_fingerprint': config_lib.teacher_fingerprint(config),
    'predictions_fingerprint': config_lib.predictions_fingerprint(config),
    'data_checksum': run.checksum('student'),
    'complete': complete,  # (members, views) up to which nothing is missing
    'digests': _digests(run, store) if hosts.is_main() else {},  # it alone writes them
    'dtype_error': _dtype_error(run, store, members),
  }


def _digests(run: Run, store: PredictionStore) -> dict[str, dict[str, str]]:
  """Of what is stored, by the name of the inputs and 'member/view'. What has one keeps it."""
  digests = store.meta.get('digests', {})
  for name, of_inputs in views_of(run).items():
    known = digests.setdefault(name, {})
    for member, view in np.ndindex(run.config.teacher.num_members, of_inputs):
      if (key := f'{member}/{view}') not in known:
        known[key] = store.digest(name, member, view)
  return digests


def _dtype_error(
  run: Run, store: PredictionStore, members: list[steps.Variables]
) -> dict[str, float]:
  """What storing costs, on the test set: the stored ensemble against the one just computed."""
  fresh = [run.predict(run.teacher_model, member, run.inputs['test']) for member in members]
  fresh_MNC = log_softmax(np.stack(fresh), axis=-1)
  stored_MNC = store.read('test', range(len(members)), 0)
  fidelity = metrics.fidelity(combine(stored_MNC), combine(fresh_MNC))
  return {
    'max_abs_log_prob': float(np.abs(stored_MNC - fresh_MNC).max()),
    'ensemble_top1_disagreement': 1 - fidelity['top1_agreement'],
    'ensemble_predictive_kl': fidelity['predictive_kl'],
  }
