"""Checks of a config against the description of its data set, which is known before inputs are read."""

from collections.abc import Iterator

from ml_collections import ConfigDict

from kdjax import data, metrics, models
from kdjax.config import fields
from kdjax.config.rules import LARGEST, are_allowed
from kdjax.data import augmentations, images
from kdjax.errors import UserError
from kdjax.gan import networks as gan_networks
from kdjax.runtime import plugins

NEEDS_COLOURS = ('contrast', 'saturation', 'hue', 'color_jitter')


def problems(config: ConfigDict, description: data.Description) -> Iterator[str]:
  """A line for each field that does not fit the data."""
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
  enough = sizes['test'] >= metrics.CKA_MIN_EXAMPLES
  if sizes['test'] > 0 and num_compared > sizes['test'] * enough:
    allowed = f'up to {sizes["test"]}' if enough else '0'
    yield (
      f'evaluation.num_cka_examples = {num_compared}: allowed: {allowed}, with {sizes["test"]} test '
      f'examples of {of_name}'
    )
  for section in ('teacher', 'predictions'):
    examples = config[section].examples
    if examples and are_allowed(config, f'{section}.examples') and examples[1] > num_train:
      yield (
        f'{section}.examples = {examples}: allowed: up to the {num_train} training examples that '
        f'dataset.num_train and dataset.num_val leave of {of_name}'
      )
  if num_train > 0:
    yield from _duration_problems(config, num_train)
  yield from _array_problems(config, description)
  if description.vocabulary_size is None and len(description.input_shape) == 3:
    yield from _image_problems(config, description)
  elif description.vocabulary_size is not None:
    yield from _text_problems(config)
  yield from _extra_problems(config)
  k, num_classes = config.predictions.top_k, description.num_classes
  has_k = fields.is_top_k(config) and are_allowed(config, 'predictions.top_k')
  if has_k and (k or 0) > num_classes:
    yield f'predictions.top_k = {k}: allowed: up to the {num_classes} classes of {of_name}'


def _duration_problems(config: ConfigDict, num_train: int) -> Iterator[str]:
  for name, part in (('teacher', 'teacher.examples'), ('student', 'predictions.examples')):
    section, needed = config[name], (*fields.DURATIONS, 'batch_size', 'warmup_epochs')
    needed = [part, 'predictions.num_extra', *(f'{name}.{field}' for field in needed)]
    durations = [d for d in fields.DURATIONS if section[d] is not None]
    if len(durations) != 1 or not are_allowed(config, *needed):
      continue
    num_examples = data.part_size(num_train, config[part.partition('.')[0]].examples)
    if name == 'student':
      num_examples += fields.num_extra(config) or 0
    num_steps = fields.num_steps(section, num_examples)
    if not num_examples:  # another check reports this
      continue
    warmup_steps = round(section.warmup_epochs * num_examples / section.batch_size)
    if not _are_countable(num_steps, section.batch_size, num_examples):
      yield (
        f'{name}.{durations[0]} = {section[durations[0]]}: gives {num_steps} steps of '
        f'{section.batch_size} of {num_examples} examples; allowed: up to {LARGEST} steps and epochs'
      )
    elif warmup_steps and warmup_steps >= num_steps:
      yield (
        f'{name}.warmup_epochs = {section.warmup_epochs}: allowed: less than the '
        f'{num_steps * section.batch_size / num_examples:g} epochs of the whole training'
      )


def _are_countable(num_steps: int, batch_size: int, num_examples: int) -> bool:
  """Whether the numbers of steps and epochs fit the int32 with which devices count."""
  return max(num_steps, num_steps * batch_size // num_examples) <= LARGEST


def _gan_problems(config: ConfigDict, description: data.Description) -> Iterator[str]:
  section, shape = config.gan, description.input_shape
  sizes = data.split_sizes(config.dataset, description)
  if config.dataset.streaming:
    yield (
      "dataset.streaming = True: predictions.extra = 'gan' needs all images in memory; allowed: False, or "
      'another predictions.extra'
    )
  if not gan_networks.num_halvings(*shape[:2]):
    yield (
      f"predictions.extra = 'gan': the GAN cannot make images of {min(shape[:2])} pixels, the size of "
      f'{config.dataset.name}: it doubles a start of at least {gan_networks.MIN_SIDE} pixels; allowed: '
      'another predictions.extra'
    )
  # A covariance needs two examples: of the test set, and of each half of the training set.
  for name, least in (('train', 4), ('test', 2)):
    if sizes[name] < least:
      yield (
        f"dataset.num_{name} = {sizes[name]}: allowed with predictions.extra = 'gan': at least {least}, "
        "to measure the quality of the GAN's images"
      )
  num_steps, num_train = section.num_steps * section.num_discriminator_steps, sizes['train']
  if num_train > 0 and not _are_countable(num_steps, section.batch_size, num_train):
    yield (
      f'gan.num_steps = {section.num_steps}: with gan.num_discriminator_steps = '
      f'{section.num_discriminator_steps} gives {num_steps} steps of {section.batch_size} of {num_train} '
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
  needed = 'gan.num_steps', 'gan.num_discriminator_steps', 'gan.batch_size'
  if fields.needs_gan(config) and are_allowed(config, *needed):
    yield from _gan_problems(config, description)
  for field, model in _model_names(config).items():
    if model in models.TAKES_TOKENS:
      yield f'{field} = {model!r}: takes texts, and {name} has images. {_models_for(texts=False)}'
    elif size < models.SMALLEST_SIDE.get(model, 1):
      yield (
        f'{field} = {model!r}: needs images of at least {models.SMALLEST_SIDE[model]} pixels a side; '
        f'those of {name} have {size}. Allowed: resnet, or a larger dataset.image_size'
      )
  yield from _channel_problems(config, description)


def _channel_problems(config: ConfigDict, description: data.Description) -> Iterator[str]:
  num_channels = description.input_shape[-1]
  if num_channels in (1, 3):
    return
  if num_channels not in images.MODES and description.dtype == 'uint8':
    found = {'dataset.image_size': (config.dataset.image_size, 'None')}
    if fields.needs_gan(config):
      found['predictions.extra'] = config.predictions.extra, "another, or ''"
    for field, (value, allowed) in found.items():
      if value is not None:
        yield (
          f'{field} = {value!r}: needs images with {", ".join(map(str, images.MODES))} channels; those of '
          f'{config.dataset.name} have {num_channels}; allowed: {allowed}'
        )
  for section in ('teacher', 'predictions'):
    chosen = config[section].augmentation
    names = [name for name in NEEDS_COLOURS if name in chosen]
    if names:
      yield (
        f'{section}.augmentation = {chosen}: {", ".join(names)} need images with 1 or 3 channels; those of '
        f'{config.dataset.name} have {num_channels}. Allowed: the other augmentations'
      )


def _text_problems(config: ConfigDict) -> Iterator[str]:
  name = config.dataset.name
  if config.dataset.streaming:
    yield f'dataset.streaming = True: is for images, and {name} has texts; allowed: False'
  for field, model in _model_names(config).items():
    if model not in models.TAKES_TOKENS:
      yield f'{field} = {model!r}: takes images, and {name} has texts. {_models_for(texts=True)}'
  for section in ('teacher', 'predictions'):
    if chosen := config[section].augmentation:
      yield f'{section}.augmentation = {chosen}: is for images, and {name} has texts; allowed: ()'
  if fields.needs_gan(config):
    yield f"predictions.extra = 'gan': makes images, and {name} has texts; allowed: other texts"


def _model_names(config: ConfigDict) -> dict[str, str]:
  """The built-in models, by field. A student's name of None stands for the teacher's."""
  names = {'model.name': config.model.name, 'student.model.name': config.student.model.name}
  return {field: name for field, name in names.items() if name in models.MODELS}


def _array_problems(config: ConfigDict, description: data.Description) -> Iterator[str]:
  """A line for each field that does not fit inputs other than uint8 images, or a source's own validation split."""
  name, dataset = config.dataset.name, config.dataset
  if description.num_val and dataset.num_val:
    yield (
      f'dataset.num_val = {dataset.num_val}: {name} has a validation split of its own, of '
      f'{description.num_val} examples; allowed: 0'
    )
  if (dataset.path is not None) != (name == 'arrays'):
    yield (
      f"dataset.path = {dataset.path!r}: is for dataset.name = 'arrays'; allowed with {name!r}: None"
    )
  is_image, is_bytes = len(description.input_shape) == 3, description.dtype == 'uint8'
  if description.vocabulary_size is not None or (is_image and is_bytes):
    return
  kind = 'in floating point' if is_image else f'of shape {description.input_shape}'
  if dataset.image_size is not None:
    yield f'dataset.image_size = {dataset.image_size}: the inputs of {name} are {kind}; allowed: None'
  if config.predictions.extra:
    yield f"predictions.extra = {config.predictions.extra!r}: the inputs of {name} are {kind}; allowed: ''"
  if is_image:
    return
  for field, model in _model_names(config).items():
    yield f'{field} = {model!r}: needs (H, W, C); the inputs of {name} are {kind}; allowed: {plugins.FORM}'
  for section in ('teacher', 'predictions'):
    names = config[section].augmentation
    if any(name in augmentations.FUNCTIONS for name in names):
      yield (
        f'{section}.augmentation = {names}: is for (H, W, C); the inputs of {name} are {kind}; allowed: '
        f'{plugins.FORM}, noise, mixup, or ()'
      )


def _models_for(texts: bool) -> str:
  names = [name for name in models.MODELS if (name in models.TAKES_TOKENS) == texts]
  return f'Allowed: {", ".join(names)}'


def _extra_problems(config: ConfigDict) -> Iterator[str]:
  """A line if the source of unlabelled images is missing or too small."""
  name, wanted = config.predictions.extra, config.predictions.num_extra
  if name in ('', 'gan') or not are_allowed(config, 'predictions.extra'):
    return
  try:
    available = data.extra_size(name, config.dataset)
  except UserError as error:
    yield str(error)
    return
  if wanted is not None and wanted > available:
    yield f'predictions.num_extra = {wanted}: allowed: at most the {available} images of {name}'
