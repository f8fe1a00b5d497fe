"""The rule for each field of a config: field → (test of a value, allowed values in words)."""

import functools
import operator
from typing import Any

from ml_collections import ConfigDict

from kdjax import losses, models
from kdjax.config import fields
from kdjax.data import augmentations, views
from kdjax.predictions import encodings
from kdjax.runtime import files, plugins
from kdjax.train import optimizers

LARGEST = 10**9  # of any count; a larger one is a typing error


def _is_whole(minimum: int, maximum: int = LARGEST):
  return (
    lambda x: type(x) is int and minimum <= x <= maximum,
    f'an integer in [{minimum}, {maximum}]',
  )


def _is_one_of(names):
  return lambda x: x in names, f'one of {", ".join(names)}'


def _is_named(names):
  """A name of a registry, or 'module:attribute', which `validation` looks up."""
  return (
    lambda x: x in names or plugins.is_dotted(x),
    f'one of {", ".join(names)}, or {plugins.FORM}',
  )


def _are_named(names):
  return (
    lambda x: all(n in names or plugins.is_dotted(n) for n in x) and len(set(x)) == len(x),
    f'any of {", ".join(names)}, or {plugins.FORM}, each once, or ()',
  )


def is_plain(x) -> bool:
  """Whether a value can be written as JSON, with tuples for lists."""
  if isinstance(x, dict):
    return all(isinstance(key, str) and is_plain(value) for key, value in x.items())
  if isinstance(x, list | tuple):
    return all(map(is_plain, x))
  return x is None or isinstance(x, str | bool | int | float)


_OPTIONS = (
  lambda x: isinstance(x, dict) and is_plain(x),
  'a dict of numbers, strings, truth values, None, tuples and dicts of these, by name',
)


def _within(low: float, high: float):
  return lambda x: _is_number(x) and low <= x <= high, f'a number in [{low:g}, {high:g}]'


def _is_number(x) -> bool:
  return isinstance(x, int | float) and not isinstance(x, bool)


def _is_part(x) -> bool:
  return x == () or (len(x) == 2 and all(type(i) is int for i in x) and 0 <= x[0] < x[1] <= LARGEST)


_PART = (_is_part, '(start, stop), whole numbers with 0 ≤ start < stop, or () for all')
_PART_OR_NONE = (
  lambda x: x == (0, 0) or _is_part(x),
  f'{_PART[1]}, or (0, 0) for none, with predictions.extra',
)
_FRACTIONS = (
  lambda x: all(_is_number(f) and 0 <= f < 1 for f in x),
  'fractions of training in [0, 1), or ()',
)
_SEED = _is_whole(0, 2**31 - 1)
_ANY_BOOL = (lambda x: isinstance(x, bool), 'True or False')
_ANY_STRING = (lambda x: isinstance(x, str), 'a string')
_PLACE = (lambda x: isinstance(x, str) and files.is_reachable(x), f'a string; {files.NEEDS_CLOUD}')
_SOURCE = (
  lambda x: x in fields.SOURCES or plugins.is_dotted(x),
  f"'' (trained here), 'file', 'workdir', or {plugins.FORM}",
)
# These are wide enough for any training, and float32 holds the values, their ratios and complements.
_RATE = _within(1e-12, 1e6)
_RATE_OR_0 = _within(0, 1e6)
_MOMENTUM = _within(0, 0.999999)
_EVENTS = _is_whole(1, 10**6)


def _training_rules(section: str, shortest: int) -> dict[str, tuple]:
  rules = {
    'num_epochs': _is_whole(shortest),
    'num_steps': _is_whole(shortest),
    'num_examples': _is_whole(shortest),
    'batch_size': _is_whole(1, 2**20),
    'optimizer': _is_named(optimizers.OPTIMIZERS),
    'warmup_epochs': _within(0, LARGEST),
    'nesterov': _ANY_BOOL,
    'learning_rate': _RATE,
    'final_learning_rate': _RATE_OR_0,
    'momentum': _MOMENTUM,
    'beta2': _MOMENTUM,
    'weight_decay': _RATE_OR_0,
    'keep_checkpoints': _FRACTIONS,
  }
  return {f'{section}.{name}': rule for name, rule in rules.items()}


def _model_rules(section: str) -> dict[str, tuple]:
  depths = '6n+2 (8, 14, 20, ...: basic blocks) or 9n+2 from 56 on (56, 65, ...: bottleneck blocks)'
  return {
    f'{section}.name': _is_named(models.MODELS),
    f'{section}.options': _OPTIONS,
    f'{section}.depth': (
      lambda x: type(x) is int and x < 10_000 and models.resnet_block(x) is not None,
      depths,
    ),
    f'{section}.width': _is_whole(1, 10_000),
    f'{section}.norm': _is_one_of(models.NORMS),
    f'{section}.shortcut': _is_one_of(models.SHORTCUTS),
    f'{section}.dtype': _is_one_of(models.DTYPES),
  }


RULES = {
  'seed': _SEED,
  'dataset.name': _ANY_STRING,
  'dataset.data_dir': (files.is_reachable, f'a folder; {files.NEEDS_CLOUD}'),
  'dataset.path': _PLACE,
  'dataset.num_train': _is_whole(1),
  'dataset.subset_seed': _SEED,
  'dataset.num_val': _is_whole(0),
  'dataset.num_test': _is_whole(1),
  'dataset.image_size': _is_whole(1, augmentations.LARGEST_SIDE),
  'dataset.streaming': _ANY_BOOL,
  'dataset.num_workers': _is_whole(0, 1000),
  'dataset.max_tokens': _is_whole(1, 10**6),
  'dataset.min_count': _is_whole(1),
  **_model_rules('model'),
  'teacher.source': _SOURCE,
  'teacher.path': _PLACE,
  'teacher.independent_source': _SOURCE,
  'teacher.independent_path': _PLACE,
  'teacher.num_members': _is_whole(1, 10_000),
  'teacher.members_in_parallel': _ANY_BOOL,
  'teacher.examples': _PART,
  **_training_rules('teacher', shortest=0),
  'teacher.augmentation': _are_named(augmentations.FUNCTIONS),
  'predictions.mode': _is_one_of(('stored', 'online')),
  'predictions.num_views': _is_whole(1, 10**6),
  'predictions.dtype': _is_one_of((*encodings.DTYPES, encodings.TOP_K)),
  'predictions.top_k': _is_whole(1),
  'predictions.top_k_estimator': _is_one_of(encodings.ESTIMATORS),
  'predictions.examples': _PART_OR_NONE,
  'predictions.augmentation': _are_named(views.NAMES),
  'predictions.extra': _PLACE,
  'predictions.num_extra': _is_whole(1),
  'predictions.augment_extra': _ANY_BOOL,
  'student.seed': _SEED,
  **_training_rules('student', shortest=1),
  'student.loss': _is_named(losses.LOSSES),
  'student.loss_options': _OPTIONS,
  'student.temperature': _within(0.01, 1000),
  'student.final_temperature': _within(0.01, 1000),
  'student.alpha': _within(0, 1),
  'student.init_lambda': _within(0, 1),
  'student.init_from': _is_one_of(('final', 'initial')),
  **_model_rules('student.model'),
  'augmentation.crop_padding': _is_whole(0),
  'augmentation.rotation_degrees': _within(0, 180),
  'augmentation.rotation_interpolation': _is_one_of(augmentations.INTERPOLATIONS),
  'augmentation.brightness': _within(0, 1),
  'augmentation.contrast': _within(0, 1),
  'augmentation.saturation': _within(0, 1),
  'augmentation.hue': _within(0, 0.5),
  'augmentation.noise_probability': _within(0, 1),
  'gan.seed': _SEED,
  'gan.num_steps': _is_whole(1),
  'gan.batch_size': _is_whole(1, 2**20),
  'gan.num_discriminator_steps': _is_whole(1, 100),
  'gan.latent_size': _is_whole(1, 10_000),
  'gan.generator_width': _is_whole(1, 10_000),
  'gan.discriminator_width': _is_whole(1, 10_000),
  'gan.learning_rate': _RATE,
  'gan.final_learning_rate': _RATE_OR_0,
  'gan.flip': _ANY_BOOL,
  'gan.num_samples': _is_whole(2),  # a covariance needs two
  'training.num_logs': _EVENTS,
  'training.num_evals': _EVENTS,
  'training.num_checkpoints': _EVENTS,
  'training.steps_per_dispatch': _is_whole(1, 1000),
  'evaluation.batch_size': _is_whole(1, 2**20),
  'evaluation.num_views': _is_whole(1),
  'evaluation.independent_seed': _SEED,
  'evaluation.num_bootstrap': _is_whole(20, 10**6),  # of fewer, no 95 % interval
  'evaluation.num_cka_examples': (
    lambda x: type(x) is int and (x == 0 or 4 <= x <= 20_000),
    '0, or 4 to 20000',
  ),
}


def passes(test, value: Any) -> bool:
  """Whether a value passes a test; one of a wrong type does not."""
  try:
    return bool(test(value))
  except TypeError:  # such as a string in a tuple of fractions
    return False


def are_allowed(config: ConfigDict, *names: str) -> bool:
  """Whether each of these fields is None or passes its rule. Checks that compute with them ask first."""
  values = {name: functools.reduce(operator.getitem, name.split('.'), config) for name in names}
  return all(value is None or passes(RULES[name][0], value) for name, value in values.items())
