"""Layers that several models share."""

from collections.abc import Callable
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from kdjax.models.convolution import convolve

AXIS_NAME = 'device'  # the pmapped axis, over which BatchNorm pools its statistics
BATCH_NORM_MOMENTUM = 0.9  # weight of the old running statistics in the new
BATCH_NORM_EPSILON = 1e-5  # added to the variance

# Dtypes that layers may compute in. Weights, statistics of norms and results of a model are float32.
DTYPES = {'float32': jnp.float32, 'bfloat16': jnp.bfloat16}

Features = dict[str, jax.Array]
Norm = Callable[..., nn.Module]  # a norm's constructor, with `train` and the dtype bound
he_normal = nn.initializers.variance_scaling(2.0, 'fan_out', 'normal')  # He et al. 2015


Conv = partial(nn.Conv, conv_general_dilated=convolve)
Conv3x3 = partial(Conv, kernel_size=(3, 3), padding=1, use_bias=False, kernel_init=he_normal)
Conv1x1 = partial(Conv, kernel_size=(1, 1), use_bias=False, kernel_init=he_normal)


class BatchNorm(nn.Module):
  """Batch normalization over all axes but the last (Ioffe & Szegedy 2015), as one product and one sum.

  With μ and σ² of the batch, or in evaluation the running ones, y = a x + (β − a μ), a = γ / sqrt(σ² + ε).
  `flax.linen.BatchNorm`, whose names and defaults these are, subtracts μ first. XLA then passes over x and
  its gradient more often: on a CPU a training step takes 5 to 40 % longer (`tests.benchmarks.layers`).
  """

  train: bool
  dtype: Any = jnp.float32  # of the result; all in between is float32
  scale_init: Callable[..., jax.Array] = nn.initializers.ones

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    shape = x.shape[-1:]
    scale_C = self.param('scale', self.scale_init, shape)
    bias_C = self.param('bias', nn.initializers.zeros, shape)
    running_mean = self.variable('batch_stats', 'mean', jnp.zeros, shape)
    running_var = self.variable('batch_stats', 'var', jnp.ones, shape)
    x = x.astype(jnp.float32)
    mean_C, var_C = running_mean.value, running_var.value
    if self.train:
      mean_C, var_C = self._moments(x)
      if not self.is_initializing():
        for running, of_batch_C in ((running_mean, mean_C), (running_var, var_C)):
          old_C = BATCH_NORM_MOMENTUM * running.value
          running.value = old_C + (1 - BATCH_NORM_MOMENTUM) * of_batch_C
    factor_C = scale_C * jax.lax.rsqrt(var_C + BATCH_NORM_EPSILON)
    shift_C = bias_C - mean_C * factor_C
    factor, shift = (a_C.reshape((1,) * (x.ndim - 1) + shape) for a_C in (factor_C, shift_C))
    return (x * factor + shift).astype(self.dtype)

  def _moments(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Mean and variance over the batches of all devices."""
    axes = tuple(range(x.ndim - 1))
    moments_2C = jnp.stack([x.mean(axes), jnp.square(x).mean(axes)])
    if not self.is_initializing():
      moments_2C = jax.lax.pmean(moments_2C, AXIS_NAME)
    mean_C, mean_square_C = moments_2C
    return mean_C, jnp.maximum(mean_square_C - jnp.square(mean_C), 0)


def _batch_norm(train: bool, dtype: Any = jnp.float32) -> Norm:
  return partial(BatchNorm, train, dtype)


def _layer_norm(train: bool, dtype: Any = jnp.float32) -> Norm:
  """Layer normalization over height, width and channels of each example; scale and bias by channel."""
  del train
  return partial(nn.LayerNorm, reduction_axes=(-3, -2, -1), feature_axes=-1, dtype=dtype)


NORMS = {'batch': _batch_norm, 'layer': _layer_norm}


def classify(num_classes: int, x_BF: jax.Array, features: Features) -> tuple[jax.Array, Features]:
  """The last layer: (logits_BC, features), all in float32 whatever the layers before computed in."""
  as_float32 = {name: x.astype(jnp.float32) for name, x in features.items()}
  return nn.Dense(num_classes, dtype=jnp.float32)(x_BF), as_float32
