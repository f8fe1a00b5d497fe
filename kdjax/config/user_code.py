"""The checks of what a config names as 'module:attribute', and of a loss's options, before any training.

Models, augmentations and optimizers are evaluated abstractly; a loss is computed for a few examples.
"""

from collections.abc import Iterator
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from kdjax import data, losses, models
from kdjax.config import fields
from kdjax.config.teacher_source import NEEDS_WEIGHTS
from kdjax.data import augmentations, views
from kdjax.errors import UserError
from kdjax.models import user
from kdjax.runtime import plugins
from kdjax.train import optimizers

SECTIONS = ('teacher', 'student')
SHOWN = 4  # random examples that a loss is computed for, or a batch if it has fewer


def names(config: ConfigDict) -> dict[tuple[str, str], str]:
  """All that a config names as 'module:attribute': (field, name) → the part that it serves."""
  found = {
    ('dataset.name', config.dataset.name): 'data',
    ('model.name', config.model.name): 'model',
    ('student.model.name', config.student.model.name): 'model',
    ('student.loss', config.student.loss): 'loss',
  }
  found |= {(f'{p}source', source): 'teacher' for p, (source, _) in fields.sources(config).items()}
  found |= {(f'{s}.optimizer', config[s].optimizer): 'optimizer' for s in SECTIONS}
  for section in ('teacher', 'predictions'):
    for name in config[section].augmentation:
      found[f'{section}.augmentation', name] = 'augmentation'
  return {key: part for key, part in found.items() if plugins.is_dotted(key[1])}


def missing(config: ConfigDict) -> Iterator[str]:
  """A line for each name that stands for nothing callable."""
  for (field, name), part in names(config).items():
    try:
      (plugins.attribute if part == 'teacher' else plugins.find)(name, field)
    except UserError as error:
      yield str(error)


def problems(config: ConfigDict, description: data.Description) -> list[str]:
  """A line for each part that does not fit the data or the other fields."""
  checks = [
    partial(_model_problems, config, description),
    partial(_loss_problems, config, description),
    partial(_augmentation_problems, config, description),
    partial(_optimizer_problems, config),
  ]
  found = []
  for check in checks:
    try:
      found += check()
    except UserError as error:
      found.append(str(error))
  return list(dict.fromkeys(found))


def _model_problems(config: ConfigDict, description: data.Description) -> Iterator[str]:
  dtype = jnp.float32 if description.vocabulary_size is None else jnp.int32
  sections = {'model': config.model, 'student.model': fields.student_model(config)}
  for field, section in sections.items():
    is_another = field == 'model' or section != config.model
    if plugins.is_dotted(section.name) and is_another:
      arguments = description.num_classes, description.vocabulary_size
      model = models.build(section, *arguments, field=field)
      reason = user.problem(model, description.num_classes, description.input_shape, dtype)
      if reason is not None:
        yield f'{field}.name = {section.name!r}: {reason}'


def _loss_problems(config: ConfigDict, description: data.Description) -> Iterator[str]:
  section = config.student
  name, options = section.loss, section.loss_options.to_dict()
  loss = losses.find(name)
  if unknown := sorted(options.keys() - loss.options.keys()):
    yield (
      f'student.loss_options = {options}: {name} has no {", ".join(unknown)}; allowed: '
      f'{", ".join(loss.options) or "{}"}'
    )
    return
  unlabelled = [n for n in config.predictions.augmentation if n in views.UNLABELLED]
  unlabelled += [config.predictions.extra] if config.predictions.extra else []
  if 'labels_B' in loss.needs and unlabelled:
    yield (
      f'student.loss = {name!r}: needs the label of every example, and {", ".join(unlabelled)} of the '
      'distillation data has none; allowed: another loss, or other distillation data'
    )
  if 'teacher_features' in loss.needs:
    yield from _source_problems(config)
  elif 'student_features' not in loss.needs and (plugins.is_dotted(name) or options):
    yield from loss_problems(config, description)


def _source_problems(config: ConfigDict) -> Iterator[str]:
  """A line for each teacher that has no features."""
  for prefix, (source, _) in fields.sources(config).items():
    if not fields.has_weights(source):
      yield (
        f'student.loss = {config.student.loss!r}: {NEEDS_WEIGHTS}, by which its features are computed; '
        f'allowed with {prefix}source = {source!r}, which gives predictions alone: a loss without '
        'teacher_features'
      )


def loss_problems(
  config: ConfigDict, description: data.Description, **features: dict[str, jax.ShapeDtypeStruct]
) -> Iterator[str]:
  """A line with the reason why a loss does not fit. It is computed for up to four random examples.

  Args:
    features: shapes of 'student_features' and 'teacher_features', if the loss needs them.
  """
  section = config.student
  loss = losses.make(section.loss, section.loss_options.to_dict())
  field = (
    f'student.loss = {section.loss!r} with student.loss_options = {section.loss_options.to_dict()}'
  )
  batch, rng = min(SHOWN, section.batch_size), np.random.default_rng(0)
  student_BC, teacher_BC = rng.normal(size=(2, batch, description.num_classes)).astype(np.float32)
  drawn = jax.tree.map(lambda x: rng.normal(size=(batch, *x.shape[1:])).astype(x.dtype), features)
  available = {
    'labels_B': jnp.arange(batch) % description.num_classes,
    'batch_mean': partial(jnp.mean, axis=0),
    'batch_gather': lambda x_BX: x_BX,
  }

  @jax.jit
  def value_and_gradient(student_BC: jax.Array, drawn: dict[str, Any]) -> tuple[Any, Any]:
    def total(inputs):
      value = losses.apply(
        loss, inputs[0], teacher_log_probs_BC, section.temperature, **available, **inputs[1]
      )
      return jnp.sum(value), value

    differentiate = jax.value_and_grad(total, has_aux=True, allow_int=True)
    (_, value), gradient = differentiate((student_BC, drawn))
    return value, [x for x in jax.tree.leaves(gradient) if jnp.issubdtype(x.dtype, jnp.inexact)]

  teacher_log_probs_BC = jax.nn.log_softmax(teacher_BC)
  try:
    value_B, gradient = value_and_gradient(student_BC, drawn)
  except Exception as error:
    yield f'{field}: {plugins.describe(error)}'
    return
  num_wrong = sum(int(np.sum(~np.isfinite(x))) for x in gradient)
  if value_B.shape != (batch,):
    yield (
      f'{field}: returns the shape {value_B.shape} for {batch} examples; needed: {(batch,)}, a value for '
      'each'
    )
  elif num_wrong or not np.isfinite(value_B).all():
    yield (
      f'{field}: gives {np.asarray(value_B)} for random logits of {batch} examples, and a gradient with '
      f'{num_wrong} values that are not finite; needed: finite ones'
    )


def _augmentation_problems(config: ConfigDict, description: data.Description) -> Iterator[str]:
  image = jax.ShapeDtypeStruct(description.input_shape, jnp.float32)
  for (field, name), part in names(config).items():
    if part != 'augmentation':
      continue
    function = partial(augmentations.find(name), config=config.augmentation)
    try:
      result = jax.eval_shape(lambda key, x, f=function: f(key, x), jax.random.key(0), image)
    except Exception as error:
      yield f'{field}: {name}: {plugins.describe(error)}'
      continue
    found = getattr(result, 'shape', None), getattr(result, 'dtype', type(result).__name__)
    if found != (image.shape, image.dtype):
      yield (
        f'{field}: {name}: returns {found[0]} in {found[1]} for an image of {image.shape} in float32; '
        'needed: the same'
      )


def _optimizer_problems(config: ConfigDict) -> Iterator[str]:
  params = {'Dense_0': {'kernel': jnp.zeros((3, 2)), 'bias': jnp.zeros(2)}}
  for section in SECTIONS:
    name = config[section].optimizer
    if not plugins.is_dotted(name):
      continue
    made = optimizers.make_optimizer(config[section], num_steps=10)

    def updated(params: Any, made: Any = made) -> Any:
      return made.update(params, made.init(params), params)[0]

    try:
      updates = jax.eval_shape(updated, params)
    except Exception as error:
      yield f'{section}.optimizer = {name!r}: {plugins.describe(error)}'
      continue
    if jax.tree.map(jnp.shape, updates) != jax.tree.map(jnp.shape, params):
      yield f'{section}.optimizer = {name!r}: its updates have other shapes than the parameters'
