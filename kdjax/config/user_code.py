"""The checks of what a config names as 'module:attribute', and of a loss's options, before any training.

Models, augmentations and optimizers are evaluated abstractly; a loss is computed for a few examples.
"""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from kdjax import data, losses, models
from kdjax.config import fields
from kdjax.data import augmentations, views
from kdjax.errors import UserError
from kdjax.models import user
from kdjax.runtime import plugins
from kdjax.train import optimizers

SECTIONS = ('teacher', 'student')


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
  if plugins.is_dotted(name) or options:
    reason = _loss_problem(losses.make(name, options), description.num_classes, section.temperature)
    if reason is not None:
      yield f'student.loss = {name!r} with student.loss_options = {options}: {reason}'


def _loss_problem(loss: Callable, num_classes: int, temperature: float) -> str | None:
  """The reason why a loss does not fit, None if it does. It is computed for four examples."""
  batch = 4
  rng = np.random.default_rng(0)
  student_BC, teacher_BC = rng.normal(size=(2, batch, num_classes)).astype(np.float32)
  available = {
    'labels_B': jnp.arange(batch) % num_classes,
    'batch_mean': partial(jnp.mean, axis=0),
  }

  @jax.jit
  def value_and_gradient(student_BC: jax.Array) -> tuple[Any, jax.Array]:
    def total(student_BC):
      value = losses.apply(loss, student_BC, teacher_log_probs_BC, temperature, **available)
      return jnp.sum(value), value

    (_, value), gradient_BC = jax.value_and_grad(total, has_aux=True)(student_BC)
    return value, gradient_BC

  teacher_log_probs_BC = jax.nn.log_softmax(teacher_BC)
  try:
    value_B, gradient_BC = value_and_gradient(student_BC)
  except Exception as error:
    return plugins.describe(error)
  if value_B.shape != (batch,):
    return f'returns the shape {value_B.shape} for {batch} examples; needed: {(batch,)}, a value for each'
  if not np.isfinite(value_B).all() or not np.isfinite(gradient_BC).all():
    return (
      f'gives {np.asarray(value_B)} for random logits of {batch} examples, and a gradient with '
      f'{int(np.sum(~np.isfinite(gradient_BC)))} values that are not finite; needed: finite ones'
    )
  return None


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
