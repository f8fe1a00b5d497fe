"""VGG-16 without BatchNorm, for small images (Simonyan & Zisserman 2015; paper, Appendix A)."""

from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from kdjax.models.layers import Conv, Features, classify

CONVS_PER_STAGE = (2, 2, 3, 3, 3)
DROPOUT = 0.5
# He et al. 2015, scaled by the fan-in. So activations keep their size from layer to layer without BatchNorm.
# Scaled by the fan-out they shrink where a layer widens: on enlarged digits (width 8, learning rate 0.05) the
# loss did not fall for 400 steps; by the fan-in it was halved in 250.
he_normal = nn.initializers.he_normal()


class VGG16(nn.Module):
  """Five stages of 3x3 convolutions with a 2x2 pool after each, and a classifier of three layers.

  Dropout comes before both hidden layers of the classifier, and in training draws from the rng
  'dropout'. Needs images of 32x32 or more: the pools halve five times.
  """

  num_classes: int
  width: (
    int  # filters of the first stage; 64 is VGG-16. Hidden layers have eight times as many units
  )
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: jax.Array, train: bool) -> tuple[jax.Array, Features]:
    convolve = partial(Conv, kernel_size=(3, 3), padding=1, kernel_init=he_normal, dtype=self.dtype)
    hidden = partial(nn.Dense, 8 * self.width, kernel_init=he_normal, dtype=self.dtype)
    features = {}
    for stage, num_convs in enumerate(CONVS_PER_STAGE):
      filters = self.width * min(2**stage, 8)
      for i in range(num_convs):
        name = f'stage{stage + 1}_conv{i + 1}'
        x = nn.relu(convolve(filters, name=name)(x))
      x = features[f'stage{stage + 1}'] = _max_pool(x)
    x = x.reshape(len(x), -1)
    for layer in ('dense1', 'dense2'):
      x = nn.Dropout(DROPOUT, deterministic=not train)(x)
      x = features[layer] = nn.relu(hidden(name=layer)(x))
    return classify(self.num_classes, x, features)


def _max_pool(x_BHWC: jax.Array) -> jax.Array:
  """The largest of each 2x2 square; an odd last row or column is left out.

  On CPUs the gradient takes a quarter of the time of that of `nn.max_pool`.
  """
  batch, height, width, channels = x_BHWC.shape
  x_BHWC = x_BHWC[:, : height // 2 * 2, : width // 2 * 2]
  return x_BHWC.reshape(batch, height // 2, 2, width // 2, 2, channels).max((2, 4))
