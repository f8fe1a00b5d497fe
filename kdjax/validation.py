"""What the values of a config may be: one table of rules, and the few that tie fields together.

Every problem is a line with the field, its value and what is allowed. All of them are raised at once,
before anything runs.
"""

import math
from collections.abc import Iterator, Sequence
from typing import Any

from ml_collections import ConfigDict

from kdjax import config as config_lib
from kdjax import data, models, store, views
from kdjax.errors import ConfigError, UserError

LENET_SMALLEST = 12  # pixels: two halvings and a 5x5 convolution without padding


def check(config: ConfigDict, num_devices: int, problems: Sequence[str] = ()) -> None:
  """Raises ConfigError with every problem of the config, those of `config.load` first.

  Looks the data set up, but reads no image. Prepares it, if it must, only once all else is right.
  """
  incomplete = [*_wrong_fields(config), *_missing_values(config)]
  problems = [*problems, *incomplete, *_field_problems(config)]
  if incomplete:
    raise ConfigError(problems)  # what ties fields together would stumble over them
  problems += [*_joint_problems(config), *_device_problems(config, num_devices)]
  try:
    description = data.describe(config.dataset, prepare=not problems)
  except UserError as error:
    problems.append(str(error))
  else:
    problems += _data_problems(config, description)
  if problems:
    raise ConfigError(problems)


LARGEST = 10**9  # of any count: beyond it is a typing error


def _is_whole(minimum: int, maximum: int = LARGEST):
  return lambda x: minimum <= x <= maximum, f'an integer in [{minimum}, {maximum}]'


def _is_one_of(names):
  return lambda x: x in names, f'one of {", ".join(names)}'


def _are_some_of(names):
  return (
    lambda x: all(n in names for n in x) and len(set(x)) == len(x),
    f'any of {", ".join(names)}, each once, or ()',
  )


def _within(low: float, high: float, brackets: str = '[]'):
  def test(x):
    above = x >= low if brackets[0] == '[' else x > low
    below = x <= high if brackets[1] == ']' else x < high
    return above and below

  text = f'a number in {brackets[0]}{low:g}, {high:g}{brackets[1]}'
  return test, text.replace('inf', '∞')


_FRACTIONS = (lambda x: all(0 <= f < 1 for f in x), 'fractions of training in [0, 1), or ()')
_SEED = (lambda x: 0 <= x < 2**31, 'an integer in [0, 2147483647]')
_ANY_BOOL = (lambda x: isinstance(x, bool), 'True or False')
_ANY_STRING = (lambda x: isinstance(x, str), 'a string')
_POSITIVE = _within(0, math.inf, '()')
_NOT_NEGATIVE = _within(0, math.inf, '[)')


def _training_rules(section: str) -> dict[str, tuple]:
  rules = {
    'num_epochs': _is_whole(1),
    'num_steps': _is_whole(1),
    'num_examples': _is_whole(1),
    'batch_size': _is_whole(1, 2**20),
    'nesterov': _ANY_BOOL,
    'learning_rate': _POSITIVE,
    'final_learning_rate': _NOT_NEGATIVE,
    'momentum': _within(0, 1, '[)'),
    'weight_decay': _NOT_NEGATIVE,
    'keep_checkpoints': _FRACTIONS,
  }
  return {f'{section}.{name}': rule for name, rule in rules.items()}


def _model_rules(section: str) -> dict[str, tuple]:
  depths = '6n+2 (8, 14, 20, ...: basic blocks) or 9n+2 from 56 on (56, 65, ...: bottleneck blocks)'
  return {
    f'{section}.name': _is_one_of(models.MODELS),
    f'{section}.depth': (lambda x: x < 10_000 and models.resnet_block(x) is not None, depths),
    f'{section}.width': _is_whole(1, 10_000),
    f'{section}.norm': _is_one_of(models.NORMS),
  }


RULES = {
  'seed': _SEED,
  'dataset.name': _ANY_STRING,
  'dataset.data_dir': _ANY_STRING,
  'dataset.num_train': _is_whole(1),
  'dataset.num_val': _is_whole(0),
  'dataset.num_test': _is_whole(1),
  **_model_rules('model'),
  'teacher.num_members': _is_whole(1, 10_000),
  **_training_rules('teacher'),
  'teacher.augmentation': _are_some_of(views.AUGMENTATIONS),
  'predictions.mode': _is_one_of(('stored', 'online')),
  'predictions.num_views': _is_whole(1, 10**6),
  'predictions.dtype': _is_one_of(store.DTYPES),
  'predictions.augmentation': _are_some_of(views.AUGMENTATIONS),
  'student.seed': _SEED,
  **_training_rules('student'),
  'student.temperature': _within(0.01, 1000),
  'student.alpha': _within(0, 1, '[)'),
  'student.init_lambda': _within(0, 1),
  **_model_rules('student.model'),
  'augmentation.crop_padding': _is_whole(0),
  'training.num_logs': _is_whole(1),
  'training.num_evals': _is_whole(1),
  'training.num_checkpoints': _is_whole(1),
  'evaluation.batch_size': _is_whole(1, 2**20),
  'evaluation.num_views': _is_whole(1),
}


def _wrong_fields(config: ConfigDict) -> Iterator[str]:
  """Of a config file that does not start from base.py, or adds to it."""
  fields = config_lib.leaves(config)
  for field in sorted(RULES.keys() - fields.keys()):
    yield f'{field}: missing; a config is made by configs/base.get_config and then changed'
  for field in sorted(fields.keys() - RULES.keys()):
    yield f'{field} = {fields[field]!r}: no such field; configs/base.py has them all'


def _missing_values(config: ConfigDict) -> Iterator[str]:
  for field, value in config_lib.leaves(config).items():
    if value is None and not config_lib.is_optional(config, field):
      yield f'{field} = None: not optional; allowed: {RULES[field][1]}'


def _field_problems(config: ConfigDict) -> Iterator[str]:
  leaves = config_lib.leaves(config)
  for field, (test, allowed) in RULES.items():
    if leaves.get(field) is not None and not _passes(test, leaves[field]):
      yield f'{field} = {leaves[field]!r}: allowed: {allowed}'


def _joint_problems(config: ConfigDict) -> Iterator[str]:
  for name in ('teacher', 'student'):
    given = {d: config[name][d] for d in config_lib.DURATIONS if config[name][d] is not None}
    if len(given) != 1:
      shown = ', '.join(f'{d} = {value}' for d, value in given.items()) or 'none of them'
      yield f'{name}.{"/".join(config_lib.DURATIONS)}: {shown}; allowed: exactly one, the others None'
  if config.student.init_lambda > 0 and config_lib.student_model(config) != config.model:
    yield (
      f'student.init_lambda = {config.student.init_lambda}: mixes the weights of teacher and student; '
      'allowed with student.model only if it equals model, or 0'
    )


def _passes(test, value: Any) -> bool:
  try:
    return bool(test(value))
  except TypeError:  # such as a string in a tuple of fractions
    return False


def _device_problems(config: ConfigDict, num_devices: int) -> Iterator[str]:
  for section in ('teacher', 'student', 'evaluation'):
    size = config[section].batch_size
    if size % num_devices:
      yield f'{section}.batch_size = {size}: allowed: a multiple of the {num_devices} devices'


def _data_problems(config: ConfigDict, description: data.Description) -> Iterator[str]:
  dataset = config.dataset
  room = description.num_train - dataset.num_val
  if room < (dataset.num_train or 1):
    yield (
      f'dataset.num_train = {dataset.num_train}, dataset.num_val = {dataset.num_val}: allowed: together '
      f'at most the {description.num_train} training examples, with one left to train on'
    )
  if dataset.num_test is not None and dataset.num_test > description.num_test:
    yield (
      f'dataset.num_test = {dataset.num_test}: allowed: at most the {description.num_test} test examples'
    )
  size = min(description.image_shape_HWC[:2])
  padding = config.augmentation.crop_padding
  if padding >= size:
    yield (
      f'augmentation.crop_padding = {padding}: allowed: less than the {size} pixels of the images of '
      f'{dataset.name}, since a crop must show some of the image'
    )
  names = {'model.name': config.model.name, 'student.model.name': config.student.model.name}
  for field, name in names.items():
    if name == 'lenet' and size < LENET_SMALLEST:
      yield (
        f'{field} = {name!r}: needs images of at least {LENET_SMALLEST} pixels a side; those of '
        f'{dataset.name} have {size}. Allowed here: resnet'
      )
