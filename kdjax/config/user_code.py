"""Checks, before any training, of the code that a config names as 'module:attribute'.

Models, augmentations and optimizers are evaluated abstractly. `loss_checks` checks losses.
"""

from collections.abc import Iterator
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax
from ml_collections import ConfigDict

from kdjax import data, models
from kdjax.config import fields, loss_checks
from kdjax.data import augmentations
from kdjax.errors import UserError
from kdjax.models import user
from kdjax.runtime import plugins
from kdjax.train import optimizers

SECTIONS = ('teacher', 'student')


def names(config: ConfigDict) -> dict[tuple[str, str], str]:
  """{(field, name): part} of all that a config names as 'module:attribute'; a part is 'model', 'loss', ..."""
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
  """A line for each name of code that cannot be imported or called."""
  for (field, name), part in names(config).items():
    try:
      (plugins.attribute if part == 'teacher' else plugins.find)(name, field)
    except UserError as error:
      yield str(error)


def problems(config: ConfigDict, description: data.Description) -> list[str]:
  """A line for each part and each option of the loss that does not fit the data or the other fields."""
  checks = _model_problems, loss_checks.option_problems, _augmentation_problems, _optimizer_problems
  found: list[str] = []
  for check in checks:
    if check is _optimizer_problems and found:  # it needs models that can be built
      break
    try:
      found += check(config, description)
    except UserError as error:
      found.append(str(error))
  return list(dict.fromkeys(found))


def _model_problems(config: ConfigDict, description: data.Description) -> Iterator[str]:
  sections = {'model': config.model, 'student.model': fields.student_model(config)}
  for field, section in sections.items():
    is_another = field == 'model' or section != config.model
    if plugins.is_dotted(section.name) and is_another:
      arguments = description.num_classes, description.vocabulary_size
      model = models.build(section, *arguments, field=field)
      reason = user.problem(
        model,
        description.num_classes,
        description.input_shape,
        description.input_dtype,
        jax.device_count(),
      )
      if reason is not None:
        yield f'{field}.name = {section.name!r}: {reason}'


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


def _optimizer_problems(config: ConfigDict, description: data.Description) -> Iterator[str]:
  models_of = {'teacher': config.model, 'student': fields.student_model(config)}
  for section, model in models_of.items():
    name = config[section].optimizer
    if not plugins.is_dotted(name):
      continue
    made = optimizers.make_optimizer(config[section], num_steps=10)
    module = models.build(model, description.num_classes, description.vocabulary_size)
    inputs = description.input_shape, description.input_dtype
    params = models.shapes(module, jax.random.key(0), *inputs)['params']

    def step(params: Any, made: Any = made) -> tuple[Any, Any, Any]:
      start = made.init(params)
      updates, state = made.update(params, start, params)
      return start, state, optax.apply_updates(params, updates)

    try:
      start, state, updated = jax.eval_shape(step, params)
    except Exception as error:
      yield f'{section}.optimizer = {name!r}: {plugins.describe(error)}'
      continue
    for what, before, after in (('parameters', params, updated), ('state', start, state)):
      if _types(before) != _types(after):
        yield (
          f'{section}.optimizer = {name!r}: an update changes the shapes or dtypes of its {what}; '
          'needed: the same before and after'
        )


def _types(tree: Any) -> tuple[Any, Any]:
  leaves, structure = jax.tree.flatten(tree)
  return structure, [(x.shape, x.dtype) for x in leaves]
