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


def _batch_norm(train: bool, dtype: Any = jnp.float32) -> Norm:
  return partial(
    nn.BatchNorm,
    use_running_average=not train,
    momentum=BATCH_NORM_MOMENTUM,
    dtype=dtype,
    axis_name=AXIS_NAME if train else None,
  )


def _layer_norm(train: bool, dtype: Any = jnp.float32) -> Norm:
  """Over height, width and channels of each example; scale and bias by channel."""
  del train
  return partial(nn.LayerNorm, reduction_axes=(-3, -2, -1), feature_axes=-1, dtype=dtype)


NORMS = {'batch': _batch_norm, 'layer': _layer_norm}


def classify(num_classes: int, x_BF: jax.Array, features: Features) -> tuple[jax.Array, Features]:
  """The last layer: (logits_BC, features), all in float32 whatever the layers before computed in."""
  as_float32 = {name: x.astype(jnp.float32) for name, x in features.items()}
  return nn.Dense(num_classes, dtype=jnp.float32)(x_BF), as_float32
