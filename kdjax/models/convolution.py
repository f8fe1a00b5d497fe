"""The convolution of all models, in forms that XLA computes fast on a CPU too."""

import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.custom_derivatives import SymbolicZero

# The gradient of a kernel is summed over at most GRADIENT_PARTS parts of the batch; 4 to 16 are about equally
# fast. A part of SMALLEST_PART examples x height x width fits in the cache.
GRADIENT_PARTS, SMALLEST_PART = 8, 1024

Pads = Sequence[tuple[int, int]]  # rows or columns of zeros before and after, for each axis


def convolve(
  x_BHWC: jax.Array, kernel: jax.Array, strides: Sequence[int], padding: str | Pads, **options: Any
) -> jax.Array:
  """`lax.conv_general_dilated` of images and a kernel (height, width, C, filters), fast on a CPU too.

  On a CPU, a window of one pixel is a matrix product (`_product`). For other windows XLA's derivatives are
  slow:

  * The gradient of the kernel is a convolution with a window of height x width x batch. It takes two to
    four times as long as the forward one, since it fetches both operands from memory anew for every few
    weights. Gradients are summed over parts of the batch, so that operands stay in the cache. Barriers keep
    XLA from fusing norms, rectifiers and the cutting into parts with the transpositions of the operands: it
    would compute them again, in a slow order of the memory.
  * The gradient of the input, with strides, is a convolution of pixels spread apart, for which XLA has no fast
    code. `_by_blocks` computes a convolution without strides instead.

  A convolution is linear in both operands, so these forms give its tangents. Gradients are their transposes.
  """
  plain = partial(lax.conv_general_dilated, window_strides=strides, padding=padding, **options)
  if jax.default_backend() != 'cpu' or not _is_usual(kernel, **options):
    return plain(x_BHWC, kernel)
  if isinstance(padding, str):
    padding = lax.padtype_to_pads(x_BHWC.shape[1:3], kernel.shape[:2], strides, padding)
  if kernel.shape[:2] == (1, 1) and not any(map(any, padding)):
    return _product(x_BHWC[:, :: strides[0], :: strides[1]], kernel[0, 0])
  by_blocks = partial(_by_blocks, strides=strides, pads=padding, **options)
  barrier = lax.optimization_barrier

  def jvp(primals, tangents):
    (x_BHWC, kernel), (x_dot_BHWC, kernel_dot) = primals, tangents
    x_BHWC = barrier(x_BHWC)
    terms = []
    if not isinstance(x_dot_BHWC, SymbolicZero):
      terms.append((by_blocks if max(strides) > 1 else plain)(x_dot_BHWC, kernel))
    if not isinstance(kernel_dot, SymbolicZero):
      parts = barrier(jnp.array_split(x_BHWC, _num_parts(x_BHWC.shape)))
      terms.append(jnp.concatenate([barrier(plain(part, kernel_dot)) for part in parts]))
    return plain(x_BHWC, kernel), barrier(sum(terms[1:], terms[0]))

  differentiable = jax.custom_jvp(plain)
  differentiable.defjvp(jvp, symbolic_zeros=True)
  return differentiable(x_BHWC, kernel)


def _is_usual(
  kernel: jax.Array,
  feature_group_count: int = 1,
  lhs_dilation: Sequence[int] | None = None,
  rhs_dilation: Sequence[int] | None = None,
  **others: Any,
) -> bool:
  """Whether a convolution is of images, without groups of channels and without dilation."""
  del others
  dilations = (*(lhs_dilation or ()), *(rhs_dilation or ()))
  return kernel.ndim == 4 and feature_group_count == 1 and all(by == 1 for by in dilations)


def _num_parts(shape: tuple[int, ...]) -> int:
  batch, height, width, _ = shape
  return max(1, min(GRADIENT_PARTS, batch, batch * height * width // SMALLEST_PART))


def _product(x_BHWC: jax.Array, kernel_CF: jax.Array) -> jax.Array:
  """Every pixel times the kernel, (B, H, W, F).

  Each of several parts of the batch has a copy of the kernel, so that the kernel's gradient is a sum over
  parts. One product that sums over all pixels is two to five times as slow.
  """
  parts = math.gcd(len(x_BHWC), GRADIENT_PARTS)
  kernel_PCF = jnp.broadcast_to(kernel_CF, (parts, *kernel_CF.shape))
  x_PNC = x_BHWC.reshape(parts, -1, x_BHWC.shape[-1])
  return jnp.einsum('pnc,pcf->pnf', x_PNC, kernel_PCF).reshape(*x_BHWC.shape[:3], -1)


def _by_blocks(
  x_BHWC: jax.Array, kernel: jax.Array, strides: Sequence[int], pads: Pads, **options: Any
) -> jax.Array:
  """A convolution with strides as one without. The pixels of a block as large as the strides are channels."""
  whole_x, whole_kernel = [], []  # zeros added or pixels cut off, so that both are whole blocks
  for size, window, stride, (low, high) in zip(
    x_BHWC.shape[1:3], kernel.shape[:2], strides, pads, strict=True
  ):
    num_steps = (low + size + high - window) // stride
    blocks = math.ceil(window / stride)  # in a window
    whole_kernel.append((0, blocks * stride - window, 0))
    whole_x.append((low, (num_steps + blocks) * stride - low - size, 0))
  x_BHWC = lax.pad(x_BHWC, jnp.zeros((), x_BHWC.dtype), [(0, 0, 0), *whole_x, (0, 0, 0)])
  kernel = lax.pad(kernel, jnp.zeros((), kernel.dtype), [*whole_kernel, (0, 0, 0), (0, 0, 0)])
  rows, columns = strides
  batch, height, width, channels = x_BHWC.shape
  x_BHhWwC = x_BHWC.reshape(batch, height // rows, rows, width // columns, columns, channels)
  x_BHWhwC = x_BHhWwC.swapaxes(2, 3)
  height, width, _, filters = kernel.shape
  kernel = kernel.reshape(height // rows, rows, width // columns, columns, channels, filters)
  kernel = kernel.swapaxes(1, 2)
  return lax.conv_general_dilated(
    x_BHWhwC.reshape(*x_BHWhwC.shape[:3], -1),
    kernel.reshape(*kernel.shape[:2], -1, filters),
    window_strides=(1, 1),
    padding='VALID',
    **options,
  )
