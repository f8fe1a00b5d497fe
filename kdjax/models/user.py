"""Models that a config names as 'module:attribute'."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.core import FrozenDict
from ml_collections import ConfigDict

from kdjax.errors import UserError
from kdjax.models.layers import AXIS_NAME, DTYPES, Features
from kdjax.runtime import plugins


class WithFeatures(nn.Module):
  """A user's module as a classifier of kdjax, with its own parameters. Without features it gets none."""

  module: nn.Module

  def setup(self):
    nn.share_scope(self, self.module)

  def __call__(self, x: jax.Array, train: bool) -> tuple[jax.Array, Features]:
    outputs = self.module(x, train=train)
    return outputs if isinstance(outputs, tuple) else (outputs, {})


def build(
  make: Callable[..., nn.Module],
  config: ConfigDict,
  num_classes: int,
  vocabulary_size: int | None,
  field: str,
) -> nn.Module:
  """The module that `make` returns for `num_classes` and the options of a `model` section.

  `make` also gets `vocabulary_size` and `dtype` if it takes them.

  Raises:
    UserError: `make` takes other arguments, or does not return a linen module.
  """
  arguments = {'num_classes': num_classes, **_hashable(config.options.to_dict())}
  also = {'vocabulary_size': vocabulary_size, 'dtype': DTYPES[config.dtype]}
  parameters = plugins.parameters(make)
  arguments |= {name: value for name, value in also.items() if name in parameters}
  module = plugins.call(config.name, f'{field}.name', make, **arguments)
  if not isinstance(module, nn.Module):
    raise UserError(
      f'{field}.name = {config.name!r}: returns {module!r}; needed: a flax.linen.Module'
    )
  return WithFeatures(module)


def problem(
  model: nn.Module,
  num_classes: int,
  input_shape: tuple[int, ...],
  dtype: Any = jnp.float32,
  num_devices: int = 1,
) -> str | None:
  """The reason why a model does not fit, None if it does. Only shapes are computed."""
  batch = 2 if num_classes != 2 else 3  # so that no axis is taken for the other
  inputs = jax.ShapeDtypeStruct((batch, *input_shape), dtype)

  def run(key: jax.Array, x: jax.Array) -> tuple[Any, Any]:
    variables = model.init({'params': key, 'dropout': key}, x, train=True)
    return variables, model.apply(variables, x, train=False)

  def train(key: jax.Array, x: jax.Array, variables: Any) -> Any:
    mutable, rngs = ['batch_stats'], {'dropout': key}
    (logits, _), updated = model.apply(variables, x, train=True, mutable=mutable, rngs=rngs)
    return logits, updated.get('batch_stats', {})

  on_one = jax.vmap(train, (None, None, None), axis_name=AXIS_NAME, axis_size=1)
  # Raises ValueError unless the statistics are the same on both devices.
  on_two = jax.vmap(train, (None, 0, None), (0, None), axis_name=AXIS_NAME)

  try:
    key = jax.random.key(0)
    variables, (logits, features) = jax.eval_shape(run, key, inputs)
    in_training, _ = jax.eval_shape(on_one, key, inputs, variables)
  except Exception as error:
    return plugins.describe(error)
  if others := sorted(variables.keys() - {'params', 'batch_stats'}):
    return f"has the variables {others}; allowed: 'params' and 'batch_stats'"
  if not isinstance(logits, jax.ShapeDtypeStruct) or logits.shape != (batch, num_classes):
    return (
      f'maps {inputs.shape} to {_shown(logits)}; needed: logits of shape {(batch, num_classes)}'
    )
  for found in (logits, in_training):
    if found.dtype != jnp.float32:
      return f'returns logits of dtype {found.dtype}; needed: float32, in training too'
  if num_devices > 1:
    shares = jax.ShapeDtypeStruct((2, *inputs.shape), dtype)
    try:
      jax.eval_shape(on_two, key, shares, variables)
    except ValueError:
      return (
        f'has statistics that would differ on {num_devices} devices; needed: BatchNorm with '
        f'axis_name={AXIS_NAME!r} in training'
      )
  if not isinstance(features, dict) or not all(hasattr(x, 'shape') for x in features.values()):
    return f'returns as features {_shown(features)}; needed: a dict of arrays by name'
  return None


def _shown(outputs: Any) -> str:
  return str(jax.tree.map(lambda x: x.shape, outputs))


def _hashable(value: Any) -> Any:
  """The value with lists as tuples and dicts frozen, since a linen module must be hashable."""
  if isinstance(value, dict):
    return FrozenDict({name: _hashable(inner) for name, inner in value.items()})
  if isinstance(value, list | tuple):
    return tuple(map(_hashable, value))
  return value
