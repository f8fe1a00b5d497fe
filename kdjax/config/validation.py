"""Whether a config makes sense: the rules of `config/rules.py`, and those that tie fields and data together.

Every problem is a line with the field, its value and what is allowed. All of them are raised at once,
before anything runs.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import jax
from ml_collections import ConfigDict

from kdjax import config as config_lib
from kdjax import data, losses, models, similarity
from kdjax.config.rules import LARGEST, RULES
from kdjax.data import augmentations
from kdjax.errors import ConfigError, UserError
from kdjax.gan import networks as gan_networks
from kdjax.runtime import files, hosts

NEEDS_COLOURS = ('contrast', 'saturation', 'hue', 'color_jitter')


def check(
  config: ConfigDict, num_devices: int, problems: Sequence[str] = (), prepare: bool = True
) -> None:
  """Raises ConfigError with every problem of the config, those of `config.load` first.

  Looks the data set up, but reads no image. With `prepare`, prepares it if it must, but only once all
  else is right.
  """
  incomplete = [*_wrong_fields(config), *_missing_values(config)]
  problems = [*problems, *incomplete, *_field_problems(config)]
  if incomplete or not files.is_reachable(config.dataset.data_dir or ''):
    raise ConfigError(problems)  # what comes next would stumble over them
  problems += [*_joint_problems(config), *_device_problems(config, num_devices)]
  try:
    description = data.describe(config.dataset, prepare=prepare and not problems)
  except UserError as error:
    problems.append(str(error))
  else:
    problems += _data_problems(config, description)
    problems += _feature_problems(config, description) if not problems else ()  # builds the models
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
  yield from _unread_problems(config)
  yield from _student_problems(config)
  yield from _distillation_problems(config)
  other = config.evaluation.independent_seed
  if other is not None and other in (config.seed, config_lib.student_seed(config)):
    yield (
      f'evaluation.independent_seed = {other}: the same as seed or student.seed, so not independent; '
      'allowed: any other, or None'
    )


def _unread_problems(config: ConfigDict) -> Iterator[str]:
  """Of a model that would be the same without the field: who sets it expects another one."""
  names = [config_lib.student_model(config).name, config.model.name]
  of_student, of_teacher = (models.SHAPED_BY.get(name) for name in names)
  if of_student is None or of_teacher is None:  # unknown, as is told elsewhere
    return
  for field in ('depth', 'width', 'norm', 'shortcut'):
    value = config.student.model[field]
    if value is not None and field not in of_student:
      yield f'student.model.{field} = {value!r}: {names[0]} has no {field}; allowed: None'
  for field, default in (('norm', 'batch'), ('shortcut', 'activated')):
    value = config.model[field]
    if value != default and field not in of_student | of_teacher:
      yield f'model.{field} = {value!r}: {names[1]} has no {field} to choose; allowed: {default!r}, the default'


def _student_problems(config: ConfigDict) -> Iterator[str]:
  student = config.student
  if student.init_lambda > 0 and not config_lib.shares_weight_space(config):
    yield (
      f'student.init_lambda = {student.init_lambda}: mixes the weights of teacher and student; '
      'allowed with student.model only if it equals model (but for the dtype), or 0'
    )
  if student.init_from == 'initial' and student.init_lambda == 0:
    yield (
      "student.init_from = 'initial': changes nothing at student.init_lambda = 0, which starts at "
      'random; allowed with init_lambda > 0 (1 starts at those weights)'
    )
  if student.final_temperature is not None and student.loss in losses.WITHOUT_TEMPERATURE:
    yield (
      f'student.final_temperature = {student.final_temperature}: the loss {student.loss} has no '
      'temperature; allowed: None'
    )
  noise = config.augmentation.noise_probability * ('noise' in config.predictions.augmentation)
  if student.alpha > 0 and (noise == 1 or config.predictions.examples == (0, 0)):
    yield f'student.alpha = {student.alpha}: no example has a label; allowed: 0'
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
  if predictions.examples == (0, 0) and not predictions.extra:
    yield (
      'predictions.examples = (0, 0): nothing is left to distil on; allowed: with predictions.extra, or '
      '() for all'
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
  sections = {'model': config.model, 'student.model': config_lib.student_model(config)}
  wrong = [field for field, section in sections.items() if models.is_miscomputed(section)]
  if wrong:
    yield (
      f"{wrong[0]}.dtype = 'bfloat16': on a CPU, XLA of JAX {jax.__version__} computes VGG-16 wrongly in "
      "it; allowed there: 'float32'"
    )
  if config.teacher.members_in_parallel and hosts.count() > 1:
    yield (
      f'teacher.members_in_parallel = True: allowed: False with {hosts.count()} hosts, which train each '
      'member together'
    )


def _data_problems(config: ConfigDict, description: data.Description) -> Iterator[str]:
  dataset = config.dataset
  of_name = f'dataset.name = {dataset.name!r}'
  room = description.num_train - dataset.num_val
  if room < (dataset.num_train or 1):
    yield (
      f'dataset.num_train = {dataset.num_train}, dataset.num_val = {dataset.num_val}: allowed: together '
      f'at most the {description.num_train} training examples of {of_name}, with one left to train on'
    )
  if dataset.num_test is not None and dataset.num_test > description.num_test:
    yield (
      f'dataset.num_test = {dataset.num_test}: allowed: at most the {description.num_test} test examples '
      f'of {of_name}'
    )
  sizes = data.split_sizes(dataset, description)
  num_train, num_compared = sizes['train'], config.evaluation.num_cka_examples
  enough = sizes['test'] >= similarity.MIN_EXAMPLES
  if sizes['test'] > 0 and num_compared > sizes['test'] * enough:
    allowed = f'up to {sizes["test"]}' if enough else '0'
    yield (
      f'evaluation.num_cka_examples = {num_compared}: allowed: {allowed}, with {sizes["test"]} test '
      f'examples of {of_name}'
    )
  for section in ('teacher', 'predictions'):
    examples = config[section].examples
    if examples and _keeps_rules(config, f'{section}.examples') and examples[1] > num_train:
      yield (
        f'{section}.examples = {examples}: allowed: up to the {num_train} training examples that '
        f'dataset.num_train and dataset.num_val leave of {of_name}'
      )
  if num_train > 0:
    yield from _duration_problems(config, num_train)
  if description.vocabulary_size is None:
    yield from _image_problems(config, description)
  else:
    yield from _text_problems(config)
  yield from _extra_problems(config)


def _feature_problems(config: ConfigDict, description: data.Description) -> Iterator[str]:
  """Whether teacher and student have features to compare."""
  sections = [config.model, config_lib.student_model(config)]
  names = [section.name for section in sections]
  if not config.evaluation.num_cka_examples or len(set(names)) == 1:
    return
  of_teacher, of_student = (
    models.feature_names(
      models.build(section, description.num_classes, description.vocabulary_size),
      description.input_shape,
    )
    for section in sections
  )
  if not of_teacher & of_student:
    yield (
      f'evaluation.num_cka_examples = {config.evaluation.num_cka_examples}: {names[0]} has the features '
      f'{", ".join(sorted(of_teacher))}, and {names[1]} {", ".join(sorted(of_student))}: none in common; '
      'allowed: 0'
    )


def _duration_problems(config: ConfigDict, num_train: int) -> Iterator[str]:
  for name, part in (('teacher', 'teacher.examples'), ('student', 'predictions.examples')):
    fields = [f'{name}.{field}' for field in (*config_lib.DURATIONS, 'batch_size', 'warmup_epochs')]
    section = config[name]
    durations = [d for d in config_lib.DURATIONS if section[d] is not None]
    if len(durations) != 1 or not _keeps_rules(config, part, 'predictions.num_extra', *fields):
      continue
    num_examples = data.part_size(num_train, config[part.partition('.')[0]].examples)
    if name == 'student':
      num_examples += config_lib.num_extra(config) or 0
    num_steps = config_lib.num_steps(section, num_examples)
    if not num_examples:  # as is told elsewhere
      continue
    warmup_steps = round(section.warmup_epochs * num_examples / section.batch_size)
    if not _are_countable(num_steps, section.batch_size, num_examples):
      yield (
        f'{name}.{durations[0]} = {section[durations[0]]}: are {num_steps} steps of '
        f'{section.batch_size} of {num_examples} examples; allowed: up to {LARGEST} steps and epochs'
      )
    elif warmup_steps and warmup_steps >= num_steps:
      yield (
        f'{name}.warmup_epochs = {section.warmup_epochs}: allowed: less than the '
        f'{num_steps * section.batch_size / num_examples:g} epochs of the whole training'
      )


def _are_countable(num_steps: int, batch_size: int, num_examples: int) -> bool:
  """Whether steps and epochs fit the int32 that devices count in, with room."""
  return max(num_steps, num_steps * batch_size // num_examples) <= LARGEST


def _gan_problems(config: ConfigDict, description: data.Description) -> Iterator[str]:
  section, shape = config.gan, description.input_shape
  sizes = data.split_sizes(config.dataset, description)
  if config.dataset.streaming:
    yield (
      'dataset.streaming = True: the GAN learns from images in memory, and its own are there too; '
      "allowed: False, or another predictions.extra than 'gan'"
    )
  if not gan_networks.num_halvings(*shape[:2]):
    yield (
      f"predictions.extra = 'gan': the GAN cannot grow images of {min(shape[:2])} pixels, the size of "
      f'{config.dataset.name}: it doubles a start of at least {gan_networks.MIN_SIDE}; allowed: another'
    )
  for name, least in (('train', 4), ('test', 2)):  # a covariance wants two, of halves too
    if sizes[name] < least:
      yield (
        f"dataset.num_{name} = {sizes[name]}: allowed with predictions.extra = 'gan': at least {least}, "
        'to judge its images by'
      )
  num_steps, num_train = section.num_steps * section.num_discriminator_steps, sizes['train']
  if num_train > 0 and not _are_countable(num_steps, section.batch_size, num_train):
    yield (
      f'gan.num_steps = {section.num_steps}: with gan.num_discriminator_steps = '
      f'{section.num_discriminator_steps} are {num_steps} steps of {section.batch_size} of {num_train} '
      f'examples; allowed: up to {LARGEST} steps and epochs'
    )


def _image_problems(config: ConfigDict, description: data.Description) -> Iterator[str]:
  padding, name = config.augmentation.crop_padding, config.dataset.name
  size = min(description.input_shape[:2])
  if padding >= size:
    yield (
      f'augmentation.crop_padding = {padding}: allowed: less than the {size} pixels of the images of '
      f'{name}, since a crop must show some of the image'
    )
  if max(description.input_shape[:2]) > augmentations.LARGEST_SIDE:
    yield (
      f'dataset.image_size = None: the images of {name} have {max(description.input_shape[:2])} pixels a '
      f'side; allowed: a size of up to {augmentations.LARGEST_SIDE}'
    )
  if config_lib.needs_gan(config) and _keeps_rules(
    config, 'gan.num_steps', 'gan.num_discriminator_steps', 'gan.batch_size'
  ):
    yield from _gan_problems(config, description)
  for field, model in _model_names(config).items():
    if model in models.TAKES_TOKENS:
      yield f'{field} = {model!r}: takes texts, and {name} has images. {_models_for(texts=False)}'
    elif size < models.SMALLEST_SIDE.get(model, 1):
      yield (
        f'{field} = {model!r}: needs images of at least {models.SMALLEST_SIDE[model]} pixels a side; '
        f'those of {name} have {size}. Allowed here: resnet, or a larger dataset.image_size'
      )
  yield from _colour_problems(config, description.input_shape[-1])


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
  if config.dataset.streaming:
    yield f'dataset.streaming = True: is for images, and {name} has texts; allowed: False'
  for field, model in _model_names(config).items():
    if model not in models.TAKES_TOKENS:
      yield f'{field} = {model!r}: takes images, and {name} has texts. {_models_for(texts=True)}'
  for field in ('teacher.augmentation', 'predictions.augmentation'):
    section, leaf = field.split('.')
    if config[section][leaf]:
      yield f'{field} = {config[section][leaf]}: is for images, and {name} has texts; allowed: ()'
  if config_lib.needs_gan(config):
    yield f"predictions.extra = 'gan': makes images, and {name} has texts; allowed: other texts"


def _model_names(config: ConfigDict) -> dict[str, str]:
  """By the field that says so. A student's that is None is the teacher's."""
  names = {'model.name': config.model.name, 'student.model.name': config.student.model.name}
  return {field: name for field, name in names.items() if name in models.MODELS}


def _models_for(texts: bool) -> str:
  names = [name for name in models.MODELS if (name in models.TAKES_TOKENS) == texts]
  return f'Allowed here: {", ".join(names)}'


def _extra_problems(config: ConfigDict) -> Iterator[str]:
  """Whether the source of unlabelled images is there, and large enough."""
  name, wanted = config.predictions.extra, config.predictions.num_extra
  if name in ('', 'gan') or not _keeps_rules(config, 'predictions.extra'):
    return
  try:
    available = data.extra_size(name, config.dataset)
  except UserError as error:
    yield str(error)
    return
  if wanted is not None and wanted > available:
    yield f'predictions.num_extra = {wanted}: allowed: at most the {available} images of {name}'
