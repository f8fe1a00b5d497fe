"""What the values of a config may be: one table of rules, and the few that tie fields together.

Every problem is a line with the field, its value and what is allowed. All of them are raised at once,
before anything runs.
"""

import math
from collections.abc import Iterator, Sequence
from typing import Any

from ml_collections import ConfigDict

from kdjax import augmentations, data, gan_networks, losses, models, optimizers, store, views
from kdjax import config as config_lib
from kdjax.errors import ConfigError, UserError


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


def check_sweep(configs: Sequence[ConfigDict], num_devices: int, problems: Sequence[str]) -> None:
  """Raises ConfigError with the problems of all runs of a sweep, each with the first run that has it."""
  found = dict.fromkeys(problems)
  for index, config in enumerate(configs):
    try:
      check(config, num_devices, list(found))
    except ConfigError as error:
      for problem in error.problems:
        found.setdefault(problem, index)
  if found:
    raise ConfigError(
      [text if index is None else f'run {index}: {text}' for text, index in found.items()]
    )


LARGEST = 10**9  # of any count: beyond it is a typing error
NEEDS_COLOURS = ('contrast', 'saturation', 'hue', 'color_jitter')


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


def _is_part(x) -> bool:
  return x == () or (len(x) == 2 and all(type(i) is int for i in x) and 0 <= x[0] < x[1] <= LARGEST)


_PART = (_is_part, '(start, stop), whole numbers with 0 ≤ start < stop, or () for all')
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
    'optimizer': _is_one_of(optimizers.OPTIMIZERS),
    'warmup_epochs': _NOT_NEGATIVE,
    'nesterov': _ANY_BOOL,
    'learning_rate': _POSITIVE,
    'final_learning_rate': _NOT_NEGATIVE,
    'momentum': _within(0, 1, '[)'),
    'beta2': _within(0, 1, '[)'),
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
  'dataset.image_size': _is_whole(1, 10_000),
  'dataset.max_tokens': _is_whole(1, 10**6),
  'dataset.min_count': _is_whole(1),
  **_model_rules('model'),
  'teacher.num_members': _is_whole(1, 10_000),
  'teacher.examples': _PART,
  **_training_rules('teacher'),
  'teacher.augmentation': _are_some_of(augmentations.AUGMENTATIONS),
  'predictions.mode': _is_one_of(('stored', 'online')),
  'predictions.num_views': _is_whole(1, 10**6),
  'predictions.dtype': _is_one_of(store.DTYPES),
  'predictions.examples': _PART,
  'predictions.augmentation': _are_some_of(views.NAMES),
  'predictions.extra': _ANY_STRING,
  'predictions.num_extra': _is_whole(1),
  'predictions.replacement': _ANY_STRING,
  'predictions.replaced': _within(0, 1, '(]'),
  'student.seed': _SEED,
  **_training_rules('student'),
  'student.loss': _is_one_of(losses.LOSSES),
  'student.temperature': _within(0.01, 1000),
  'student.final_temperature': _within(0.01, 1000),
  'student.alpha': _within(0, 1, '[)'),
  'student.init_lambda': _within(0, 1),
  'student.init_from': _is_one_of(('final', 'initial')),
  **_model_rules('student.model'),
  'augmentation.crop_padding': _is_whole(0),
  'augmentation.rotation_degrees': _within(0, 180),
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
  'gan.learning_rate': _POSITIVE,
  'gan.final_learning_rate': _NOT_NEGATIVE,
  'gan.flip': _ANY_BOOL,
  'gan.num_samples': _is_whole(1),
  'training.num_logs': _is_whole(1),
  'training.num_evals': _is_whole(1),
  'training.num_checkpoints': _is_whole(1),
  'evaluation.batch_size': _is_whole(1, 2**20),
  'evaluation.num_views': _is_whole(1),
  'evaluation.independent_seed': _SEED,
  'evaluation.num_bootstrap': _is_whole(1, 10**6),
  'evaluation.num_cka_examples': (lambda x: x == 0 or 4 <= x <= 20_000, '0, or 4 to 20000'),
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
    if value is None and field in RULES and not config_lib.is_optional(config, field):
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
  yield from _student_problems(config)
  yield from _distillation_problems(config)
  if config.evaluation.independent_seed == config.seed:
    yield (
      f'evaluation.independent_seed = {config.seed}: the same as seed, which makes the same teacher; '
      'allowed: any other, or None'
    )


def _student_problems(config: ConfigDict) -> Iterator[str]:
  student = config.student
  if student.init_lambda > 0 and config_lib.student_model(config) != config.model:
    yield (
      f'student.init_lambda = {student.init_lambda}: mixes the weights of teacher and student; '
      'allowed with student.model only if it equals model, or 0'
    )
  if student.init_from == 'initial' and student.init_lambda == 0:
    yield (
      "student.init_from = 'initial': changes nothing at student.init_lambda = 0, which starts at "
      'random; allowed with init_lambda > 0 (1 starts at those weights)'
    )
  if student.alpha > 0 and 'mixup' in config.predictions.augmentation:
    yield (
      f'student.alpha = {student.alpha}: a mixture of two images has no one true label; allowed: 0 '
      "with 'mixup' in predictions.augmentation"
    )


def _distillation_problems(config: ConfigDict) -> Iterator[str]:
  predictions = config.predictions
  if predictions.extra and predictions.num_extra is None:
    yield f'predictions.num_extra = None: allowed with predictions.extra = {predictions.extra!r}: a number'
  if not predictions.extra and predictions.num_extra is not None:
    yield (
      f'predictions.num_extra = {predictions.num_extra}: of what? allowed: None, or with '
      'predictions.extra'
    )
  if predictions.extra == 'gan' and (predictions.num_extra or 0) > config.gan.num_samples:
    yield (
      f'predictions.num_extra = {predictions.num_extra}: allowed: at most the gan.num_samples = '
      f'{config.gan.num_samples} images of the GAN'
    )


def _passes(test, value: Any) -> bool:
  try:
    return bool(test(value))
  except TypeError:  # such as a string in a tuple of fractions
    return False


def _keeps_rules(config: ConfigDict, *fields: str) -> bool:
  """Whether fields that others are computed from are None or allowed."""
  leaves = config_lib.leaves(config)
  return all(leaves[field] is None or _passes(RULES[field][0], leaves[field]) for field in fields)


def _device_problems(config: ConfigDict, num_devices: int) -> Iterator[str]:
  sections = ['teacher', 'student', 'evaluation']
  for section in sections + ['gan'] * config_lib.needs_gan(config):
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
  num_train = data.split_sizes(dataset, description)['train']
  for section in ('teacher', 'predictions'):
    examples = config[section].examples
    if examples and _keeps_rules(config, f'{section}.examples') and examples[1] > num_train:
      yield f'{section}.examples = {examples}: allowed: up to the {num_train} training examples'
  if num_train > 0:
    yield from _warmup_problems(config, num_train)
  if description.vocabulary_size is None:
    yield from _image_problems(config, description)
  else:
    yield from _text_problems(config)


def _warmup_problems(config: ConfigDict, num_train: int) -> Iterator[str]:
  for name, part in (('teacher', 'teacher.examples'), ('student', 'predictions.examples')):
    fields = [f'{name}.{field}' for field in (*config_lib.DURATIONS, 'batch_size', 'warmup_epochs')]
    section = config[name]
    durations = sum(section[duration] is not None for duration in config_lib.DURATIONS)
    if durations != 1 or not _keeps_rules(config, part, 'predictions.num_extra', *fields):
      continue
    num_examples = data.part_size(num_train, config[part.partition('.')[0]].examples)
    if name == 'student':
      num_examples += config_lib.num_extra(config) or 0
    num_steps = config_lib.num_steps(section, num_examples)
    if round(section.warmup_epochs * num_examples / section.batch_size) >= num_steps:
      yield (
        f'{name}.warmup_epochs = {section.warmup_epochs}: allowed: less than the '
        f'{num_steps * section.batch_size / num_examples:g} epochs of the whole training'
      )


def _image_problems(config: ConfigDict, description: data.Description) -> Iterator[str]:
  padding, name = config.augmentation.crop_padding, config.dataset.name
  size = min(description.input_shape[:2])
  if padding >= size:
    yield (
      f'augmentation.crop_padding = {padding}: allowed: less than the {size} pixels of the images of '
      f'{name}, since a crop must show some of the image'
    )
  if config_lib.needs_gan(config) and not gan_networks.num_halvings(*description.input_shape[:2]):
    yield (
      f'predictions.extra, predictions.replacement: the GAN cannot grow images of {size} pixels, the '
      f"size of {name}: it doubles a start of at least {gan_networks.MIN_SIDE}; allowed: no 'gan'"
    )
  for field, model in _model_names(config).items():
    if model in models.TAKES_TOKENS:
      yield f'{field} = {model!r}: takes texts, and {name} has images. {_models_for(texts=False)}'
    elif size < models.SMALLEST_SIDE[model]:
      yield (
        f'{field} = {model!r}: needs images of at least {models.SMALLEST_SIDE[model]} pixels a side; '
        f'those of {name} have {size}. Allowed here: resnet, or a larger dataset.image_size'
      )
  yield from _colour_problems(config, description.input_shape[-1])
  for field in ('extra', 'replacement'):
    yield from _extra_problems(config, field)


def _colour_problems(config: ConfigDict, num_channels: int) -> Iterator[str]:
  if num_channels in (1, 3):
    return
  for field in ('teacher.augmentation', 'predictions.augmentation'):
    section, leaf = field.split('.')
    names = [name for name in NEEDS_COLOURS if name in config[section][leaf]]
    if names:
      yield (
        f'{field} = {config[section][leaf]}: {", ".join(names)} are of grey or RGB images, with 1 or 3 '
        f'channels; those of {config.dataset.name} have {num_channels}. Allowed here: the others'
      )


def _text_problems(config: ConfigDict) -> Iterator[str]:
  name = config.dataset.name
  for field, model in _model_names(config).items():
    if model not in models.TAKES_TOKENS:
      yield f'{field} = {model!r}: takes images, and {name} has texts. {_models_for(texts=True)}'
  for field in ('teacher.augmentation', 'predictions.augmentation'):
    section, leaf = field.split('.')
    if config[section][leaf]:
      yield f'{field} = {config[section][leaf]}: is for images, and {name} has texts; allowed: ()'
  for field in ('extra', 'replacement'):
    value = config.predictions[field]
    if value:
      yield f"predictions.{field} = {value!r}: is for images, and {name} has texts; allowed: ''"


def _model_names(config: ConfigDict) -> dict[str, str]:
  """By the field that says so. A student's that is None is the teacher's."""
  names = {'model.name': config.model.name, 'student.model.name': config.student.model.name}
  return {field: name for field, name in names.items() if name in models.MODELS}


def _models_for(texts: bool) -> str:
  names = [name for name in models.MODELS if (name in models.TAKES_TOKENS) == texts]
  return f'Allowed here: {", ".join(names)}'


def _extra_problems(config: ConfigDict, field: str) -> Iterator[str]:
  """Whether the source of unlabelled images is there, and large enough."""
  name, wanted = config.predictions[field], config.predictions.num_extra
  if name in ('', 'gan'):
    return
  try:
    available = data.extra_size(name, config.dataset, field=f'predictions.{field}')
  except UserError as error:
    yield str(error)
    return
  if field == 'extra' and wanted is not None and wanted > available:
    yield f'predictions.num_extra = {wanted}: allowed: at most the {available} images of {name}'
