"""LeNet-5."""

from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from kdjax.models.layers import Conv, Features, classify


class LeNet5(nn.Module):
  """LeNet-5 with ReLU and average pooling (LeCun et al. 1998). Needs images of 12x12 or more."""

  num_classes: int
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: jax.Array, train: bool) -> tuple[jax.Array, Features]:
    convolve, dense = (partial(layer, dtype=self.dtype) for layer in (Conv, nn.Dense))
    features = {}
    x = nn.relu(convolve(6, (5, 5), padding='SAME')(x))
    x = features['conv1'] = nn.avg_pool(x, (2, 2), strides=(2, 2))
    x = nn.relu(convolve(16, (5, 5), padding='VALID')(x))
    x = features['conv2'] = nn.avg_pool(x, (2, 2), strides=(2, 2))
    x = x.reshape(len(x), -1)
    x = features['dense1'] = nn.relu(dense(120)(x))
    x = features['dense2'] = nn.relu(dense(84)(x))
    return classify(self.num_classes, x, features)
