"""A small network for tests of what holds for any network; it is traced in a fraction of a ResNet's time."""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from analysis import permutations
from kdjax import models

LAYERS = ('Hidden_0', 'Hidden_1', 'Dense_0')  # in order of depth, which is not that of the alphabet


class Hidden(nn.Module):
  width: int
  dtype: Any

  @nn.compact
  def __call__(self, x, train):
    x = nn.Dense(self.width, dtype=self.dtype)(x)
    return nn.relu(models.NORMS['batch'](train, self.dtype)()(x))


class Small(nn.Module):
  """Two hidden layers with BatchNorm, whose outputs are the features 'first' and 'last'."""

  num_classes: int
  width: int = 12
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x, train):
    x = x.reshape(len(x), -1)
    first = Hidden(self.width, self.dtype)(x, train)
    last = Hidden(self.width, self.dtype)(first, train)
    return nn.Dense(self.num_classes, dtype=jnp.float32)(last), {'first': first, 'last': last}


def spec(_: Small, flat: Mapping) -> tuple[permutations.Axes, permutations.Outputs]:
  """The entry of `permutations.SPECS`."""
  axes, outputs, inputs = {}, {}, permutations.FIXED
  for name in LAYERS[:2]:
    axes |= permutations._affine(flat, (name, 'Dense_0'), inputs, (name,))
    axes |= permutations._norm((name, 'BatchNorm_0'), name, 'batch')
    outputs[name] = permutations.Output((name, 'BatchNorm_0'), relu=True)
    inputs = (name,)
  return axes | permutations._affine(flat, LAYERS[2:], inputs, permutations.FIXED), outputs
