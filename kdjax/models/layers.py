"""What several models are made of."""

from collections.abc import Callable
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero

AXIS_NAME = 'device'  # the pmapped axis, over which BatchNorm pools its statistics
BATCH_NORM_MOMENTUM = 0.9  # weight of the old running statistics in the new
BATCH_NORM_EPSILON = 1e-5  # added to the variance

# On a CPU the gradient of a kernel is a sum over at most so many parts of the batch. From 4 to 16 are
# equally fast. What is smaller, in examples x height x width, fits in the cache as it is.
GRADIENT_PARTS, SMALLEST_PART = 8, 1024

# What layers compute in. Weights, statistics of norms and all that a model returns are float32.
DTYPES = {'float32': jnp.float32, 'bfloat16': jnp.bfloat16}

Features = dict[str, jax.Array]
Norm = Callable[..., nn.Module]  # a norm's constructor, bound to training or not
he_normal = nn.initializers.variance_scaling(2.0, 'fan_out', 'normal')  # He et al. 2015


def convolve(
  x_BHWC: jax.Array, kernel: jax.Array, strides: Any, padding: Any, **options: Any
) -> jax.Array:
  """`lax.conv_general_dilated`, of which the gradient of the kernel is fast on a CPU too.

  XLA computes that gradient as one convolution with a window of height x width x batch. On a CPU it
  takes two to four times as long as the forward one, since it fetches both operands from memory anew
  for every few weights. Those of a part of the batch stay in the cache. A convolution is linear in its
  kernel, so the tangent may be computed in parts, and the gradient is the transpose of that.
  """
  plain = partial(jax.lax.conv_general_dilated, window_strides=strides, padding=padding, **options)
  if jax.default_backend() != 'cpu':
    return plain(x_BHWC, kernel)

  def jvp(primals, tangents):
    (x_BHWC, kernel), (x_dot_BHWC, kernel_dot) = primals, tangents
    terms = []
    if not isinstance(x_dot_BHWC, SymbolicZero):
      terms.append(plain(x_dot_BHWC, kernel))
    if not isinstance(kernel_dot, SymbolicZero):
      parts = jnp.array_split(x_BHWC, _num_parts(x_BHWC.shape))
      terms.append(jnp.concatenate([plain(part, kernel_dot) for part in parts]))
    return plain(x_BHWC, kernel), sum(terms[1:], terms[0])

  differentiable = jax.custom_jvp(plain)
  differentiable.defjvp(jvp, symbolic_zeros=True)
  return differentiable(x_BHWC, kernel)


def _num_parts(shape: tuple[int, ...]) -> int:
  batch, height, width, _ = shape
  return max(1, min(GRADIENT_PARTS, batch, batch * height * width // SMALLEST_PART))


Conv = partial(nn.Conv, conv_general_dilated=convolve)
Conv3x3 = partial(Conv, kernel_size=(3, 3), padding=1, use_bias=False, kernel_init=he_normal)
Conv1x1 = partial(Conv, kernel_size=(1, 1), use_bias=False, kernel_init=he_normal)


class BatchNorm(nn.Module):
  """Batch normalization over all axes but the last (Ioffe & Szegedy 2015), as one product and one sum.

  With μ and σ² of the batch, or in evaluation the running ones, y = a x + (β − a μ), a = γ / sqrt(σ² + ε).
  `flax.linen.BatchNorm`, whose names and defaults these are, subtracts μ first. XLA then passes over x and
  its gradient more often: on a CPU a training step takes 5 to 13 % longer (`tests.benchmarks.layers`).
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
  """Over height, width and channels of each example; scale and bias by channel."""
  del train
  return partial(nn.LayerNorm, reduction_axes=(-3, -2, -1), feature_axes=-1, dtype=dtype)


NORMS = {'batch': _batch_norm, 'layer': _layer_norm}


def classify(num_classes: int, x_BF: jax.Array, features: Features) -> tuple[jax.Array, Features]:
  """The last layer: (logits_BC, features), all in float32 whatever the layers before computed in."""
  as_float32 = {name: x.astype(jnp.float32) for name, x in features.items()}
  return nn.Dense(num_classes, dtype=jnp.float32)(x_BF), as_float32
