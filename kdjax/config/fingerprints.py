"""Fingerprints: the names of artefacts, from the fields, the code and the user's data that can change them.

A fingerprint covers the code of kdjax that `_roots` names, the code that a config names as
'module:attribute', and `ARTEFACT_VERSION`. It does not cover code that only reads artefacts, such as reports
and analyses. It covers the user's data, from an .npz file or a function, by their content, and other data
sets by their name. A record of code and data lies with each artefact, to explain why one is made again.
"""

import hashlib
import json
from collections.abc import Callable
from typing import Any

from etils import epath
from ml_collections import ConfigDict

from kdjax import data, losses, models
from kdjax.config import code, fields, teacher_source
from kdjax.data import augmentations, views
from kdjax.runtime import files, plugins, progress
from kdjax.train import optimizers

RECORD = 'code.json'  # the file of a record
# Raise it when old artefacts are wrong for a reason outside the code that `_roots` names.
ARTEFACT_VERSION = 4


def teacher_fingerprint(config: ConfigDict, with_code: bool = True) -> str:
  """The fingerprint of a teacher, which all members share.

  Args:
    with_code: whether code and content of data count. If not, equal fields have equal fingerprints.
  """
  common = {
    'code': _digest(config, 'teacher', with_code),
    'seed': config.seed,  # also decides the views that a teacher from elsewhere sees
    'dataset': _dataset(config),
    **_content(config, 'teacher', with_code),
  }
  if config.teacher.source != fields.TRAINED:
    return _hash(**common, teacher=teacher_source.identity(config))
  places = 'source', 'path', 'independent_source', 'independent_path'
  return _hash(
    **common,
    model=config.model,
    teacher=fields.without(config.teacher, 'num_members', *places),
    subset=_subset(config, 'teacher'),
    augmentation=views.fields(config.teacher.augmentation, config.augmentation),
  )


def gan_fingerprint(config: ConfigDict, with_code: bool = True) -> str:
  """The fingerprint of the GAN. It does not cover the number of samples, since samples can be added."""
  return _hash(
    code=_digest(config, 'gan', with_code),
    dataset=_dataset(config),
    **_content(config, 'gan', with_code),
    gan=fields.without(config.gan, 'num_samples'),
  )


def predictions_fingerprint(config: ConfigDict, with_code: bool = True) -> str:
  """The fingerprint of the store. It does not cover the numbers of members and views, which can be added."""
  predictions = config.predictions
  return _hash(
    code=_digest(config, 'predictions', with_code),
    teacher=teacher_fingerprint(config, with_code),
    num_test=config.dataset.num_test,
    **_content(config, 'predictions', with_code),
    dtype=_stored_as(config),
    distillation=_distillation_data(config, with_code),
    subset=_subset(config, 'predictions'),
    augmentation=views.fields(predictions.augmentation, config.augmentation),
  )


def student_fingerprint(config: ConfigDict, with_code: bool = True) -> str:
  """The fingerprint of the student."""
  return _hash(
    code=_digest(config, 'student', with_code),
    predictions=predictions_fingerprint(config, with_code),
    num_members=config.teacher.num_members,
    num_views=config.predictions.num_views,
    mode=config.predictions.mode,
    student=fields.without(config.student, 'model', 'seed'),
    seed=fields.student_seed(config),
    model=fields.student_model(config),
  )


FINGERPRINTS: dict[str, Callable[..., str]] = {
  'teacher': teacher_fingerprint,
  'gan': gan_fingerprint,
  'predictions': predictions_fingerprint,
  'student': student_fingerprint,
}


def record(folder: epath.Path, config: ConfigDict, artefact: str) -> None:
  """Writes the record of an artefact that is about to be made, unless the record exists.

  If the workdir has an artefact of the same fields but other code or data, a warning names the differences.

  Args:
    folder: the artefact's folder. The members of a teacher share a record in the folder above theirs.
    artefact: a key of FINGERPRINTS.
  """
  folder = folder.parent if artefact == 'teacher' else folder
  if (folder / RECORD).exists():
    return
  new = code_record(config, artefact)
  others = sorted(folder.parent.glob(f'*/{RECORD}')) if folder.parent.exists() else []
  found = [names for path in others if (names := changed(files.read_json(path), new))]
  if found:
    names = ', '.join(min(found, key=len))  # against the most similar artefact
    progress.logger.warning('%s: made again, since this has changed: %s', artefact, names)
  files.write_json(folder / RECORD, new)


def changes(folder: epath.Path, config: ConfigDict, artefact: str) -> list[str]:
  """The names of definitions and data that have changed since an artefact was made; [] without a record."""
  path = folder / RECORD
  return changed(files.read_json(path), code_record(config, artefact)) if path.exists() else []


def code_record(config: ConfigDict, artefact: str) -> dict[str, Any]:
  """A record: 'fields', the fingerprint without code and data, and 'code', the digest of each by name.

  Args:
    artefact: a key of FINGERPRINTS.
  """
  names = {'predictions': ['teacher'], 'student': ['teacher', 'predictions']}.get(artefact, [])
  names += ['gan'] * (fields.needs_gan(config) and artefact in ('predictions', 'student'))
  digests = {}
  for name in [*names, artefact]:
    digests |= code.digests(tuple(_roots(config, name)))
    for content in _content(config, name).values():
      digests |= {f'the data of {split}': digest for split, digest in content.items()}
  return {'fields': FINGERPRINTS[artefact](config, with_code=False), 'code': digests}


def changed(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
  """The names of definitions and data in which two records of the same fields differ; [] for other fields."""
  if old['fields'] != new['fields']:
    return []
  names = old['code'].keys() | new['code'].keys()
  return sorted(name for name in names if old['code'].get(name) != new['code'].get(name))


def _roots(config: ConfigDict, artefact: str) -> list[str]:
  """'module:attribute' of the functions that decide an artefact, without those of earlier artefacts."""
  roots = {
    'teacher': [
      'kdjax.train.steps:teacher_step',
      'kdjax.train.optimizers:learning_rate',
      'kdjax.models:init',
      'kdjax.train.inputs:training_batch',
      'kdjax.data.views:make_view',
      'kdjax.keys:derive_seed',
    ],
    'gan': ['kdjax.gan.steps:make_gan', 'kdjax.gan.steps:gan_step', 'kdjax.gan.steps:sample_step'],
    'predictions': ['kdjax.train.steps:predict_step', 'kdjax.data.views:make_view'],
    'student': ['kdjax.train.steps:student_step', 'kdjax.losses:temperature_at'],
  }[artefact]
  source = config.teacher.source
  if artefact == 'teacher' and source != fields.TRAINED:
    roots = [source]
  if artefact == 'predictions' and fields.is_top_k(config):
    roots.append('kdjax.predictions.encodings:TopK')
  if artefact == 'predictions' and not fields.has_weights(source):
    roots.remove('kdjax.train.steps:predict_step')
  if artefact in ('teacher', 'gan') and plugins.is_dotted(config.dataset.name):
    roots.append(config.dataset.name)
  is_trained = artefact == 'teacher' and source == fields.TRAINED
  if is_trained or artefact == 'predictions':
    table = {name: function for name, (function, _) in augmentations.FUNCTIONS.items()}
    table |= {'mixup': augmentations.mixup, 'noise': augmentations.noise}
    roots += [_root(table, name) for name in config[artefact].augmentation]
  if artefact == 'student' or (artefact == 'teacher' and fields.has_weights(source)):
    model = config.model if artefact == 'teacher' else fields.student_model(config)
    roots.append(_root(models.MODELS, model.name))
  if is_trained or artefact == 'student':
    roots.append(_root(optimizers.OPTIMIZERS, config[artefact].optimizer))
  if artefact == 'student' and config.predictions.mode == 'online':
    roots += ['kdjax.train.steps:ensemble_step', 'kdjax.train.steps:featured_student_step']
  if artefact == 'student' and 0 < config.student.init_lambda < 1:
    roots += ['kdjax.train.batch_norm:apply_in_batch', 'kdjax.train.batch_norm:pool']
  if artefact == 'student':
    table = {name: loss.function for name, loss in losses.LOSSES.items()}
    roots.append(_root(table, config.student.loss))
  return [root for root in roots if ':' in root]  # `rules` reports any other name


def _root(registry: dict[str, Callable], name: str) -> str:
  if name not in registry:
    return name
  return f'{registry[name].__module__}:{registry[name].__qualname__}'


def _digest(config: ConfigDict, artefact: str, with_code: bool) -> str | None:
  return code.digest(tuple(_roots(config, artefact))) if with_code else None


def _distillation_data(config: ConfigDict, with_code: bool) -> dict[str, Any]:
  """The fields that decide what a student is distilled on."""
  predictions = config.predictions
  unused = ['mode', 'num_views', 'dtype', 'top_k', 'top_k_estimator']
  unused += [] if predictions.extra else ['num_extra', 'augment_extra']
  gan = gan_fingerprint(config, with_code) if fields.needs_gan(config) else None
  return fields.without(predictions, *unused) | {'gan': gan}


def _content(
  config: ConfigDict, artefact: str, with_code: bool = True
) -> dict[str, dict[str, str]]:
  """{'content': digests by split} of the user's data that decide an artefact, without those of earlier artefacts.

  Teachers and GANs never see the test split; predictions and students depend on it. {} for other data sets
  and artefacts.
  """
  if not with_code or artefact == 'student':
    return {}
  of_test = artefact == 'predictions'
  found = {k: v for k, v in data.content(config.dataset).items() if (k == 'test') == of_test}
  return {'content': found} if found else {}


def _stored_as(config: ConfigDict) -> Any:
  """The fields that say how predictions are stored."""
  predictions = config.predictions
  if fields.is_top_k(config):
    return [predictions.dtype, predictions.top_k, predictions.top_k_estimator]
  return predictions.dtype if predictions.mode == 'stored' else None


def _subset(config: ConfigDict, section: str) -> int | None:
  """The subset seed if the section takes a part of the training set, else None."""
  return fields.subset_seed(config) if any(config[section].examples) else None


def _dataset(config: ConfigDict) -> dict[str, Any]:
  """The fields that decide the training data. Where and how the data are read does not count."""
  unused = 'data_dir', 'path', 'num_test', 'streaming', 'num_workers', 'subset_seed'
  return fields.without(config.dataset, *unused)


def _hash(**parts: Any) -> str:
  plain = {k: v.to_dict() if isinstance(v, ConfigDict) else v for k, v in parts.items()}
  text = json.dumps({'version': ARTEFACT_VERSION, **plain}, sort_keys=True)
  return hashlib.sha256(text.encode()).hexdigest()[:12]
