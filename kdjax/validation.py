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
  problems = [*problems, *_missing_values(config), *_field_problems(config)]
  if any(_missing_values(config)):
    raise ConfigError(problems)  # what ties fields together would stumble over None
  problems += [*_joint_problems(config), *_device_problems(config, num_devices)]
  try:
    description = data.describe(config.dataset, prepare=not problems)
  except UserError as error:
    problems.append(str(error))
  else:
    problems += _data_problems(config, description)
  if problems:
    raise ConfigError(problems)


def _is_whole(minimum: int):
  return lambda x: x >= minimum, f'an integer of at least {minimum}'


def _is_one_of(names):
  return lambda x: x in names, f'one of {", ".join(names)}'


def _are_some_of(names):
  return lambda x: all(n in names for n in x), f'any of {", ".join(names)}, or ()'


def _within(low: float, high: float, brackets: str = '[]'):
  def test(x):
    above = x >= low if brackets[0] == '[' else x > low
    below = x <= high if brackets[1] == ']' else x < high
    return above and below

  text = f'a number in {brackets[0]}{low:g}, {high:g}{brackets[1]}'
  return test, text.replace('inf', '∞')


_FRACTIONS = (lambda x: all(0 <= f < 1 for f in x), 'fractions of training in [0, 1), or ()')
_SEED = (lambda x: 0 <= x < 2**31, 'an integer in [0, 2147483647]')
_POSITIVE = _within(0, math.inf, '()')
_NOT_NEGATIVE = _within(0, math.inf, '[)')


def _training_rules(section: str) -> dict[str, tuple]:
  rules = {
    'num_epochs': _is_whole(1),
    'num_steps': _is_whole(1),
    'num_examples': _is_whole(1),
    'batch_size': _is_whole(1),
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
    f'{section}.depth': (lambda x: models.resnet_block(x) is not None, depths),
    f'{section}.width': _is_whole(1),
    f'{section}.norm': _is_one_of(models.NORMS),
  }


RULES = {
  'seed': _SEED,
  'dataset.num_train': _is_whole(1),
  'dataset.num_val': _is_whole(0),
  'dataset.num_test': _is_whole(1),
  **_model_rules('model'),
  'teacher.num_members': _is_whole(1),
  **_training_rules('teacher'),
  'teacher.augmentation': _are_some_of(views.AUGMENTATIONS),
  'predictions.mode': _is_one_of(('stored', 'online')),
  'predictions.num_views': _is_whole(1),
  'predictions.dtype': _is_one_of(store.DTYPES),
  'predictions.augmentation': _are_some_of(views.AUGMENTATIONS),
  'student.seed': _SEED,
  **_training_rules('student'),
  'student.temperature': _POSITIVE,
  'student.alpha': _within(0, 1, '[)'),
  'student.init_lambda': _within(0, 1),
  **_model_rules('student.model'),
  'augmentation.crop_padding': _is_whole(0),
  'training.num_logs': _is_whole(1),
  'training.num_evals': _is_whole(1),
  'training.num_checkpoints': _is_whole(1),
  'evaluation.batch_size': _is_whole(1),
  'evaluation.num_views': _is_whole(1),
}


def _missing_values(config: ConfigDict) -> Iterator[str]:
  for field, value in config_lib.leaves(config).items():
    if value is None and not config_lib.is_optional(config, field):
      allowed = RULES[field][1] if field in RULES else 'any value of its type'
      yield f'{field} = None: not optional; allowed: {allowed}'


def _field_problems(config: ConfigDict) -> Iterator[str]:
  leaves = config_lib.leaves(config)
  for field, (test, allowed) in RULES.items():
    if leaves[field] is not None and not _passes(test, leaves[field]):
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
  names = {'model.name': config.model.name, 'student.model.name': config.student.model.name}
  for field, name in names.items():
    if name == 'lenet' and size < LENET_SMALLEST:
      yield (
        f'{field} = {name!r}: needs images of at least {LENET_SMALLEST} pixels a side; those of '
        f'{dataset.name} have {size}. Allowed here: resnet'
      )
