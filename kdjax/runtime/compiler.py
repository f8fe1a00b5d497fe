"""A probe of XLA's results.

Some releases of XLA compute wrong results on CPUs without an error: JAX 0.10.2 gets sums wrong
(jax-ml/jax#39103, tensorflow/tensorflow#126812). `probe` computes a few results with known answers, so no
list of versions is needed. `tests/test_compiler.py` compares every model with float64.
"""

from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from kdjax.errors import UserError


def require_right(insist: bool) -> None:
  """Raises UserError if XLA computes a result of `probe` wrongly.

  The probe runs on a device, so call `hosts.initialise` first.

  Args:
    insist: whether to skip the probe; the value of `--allow_wrong_xla`.
  """
  if insist or not (wrong := probe()):
    return
  version = jax.__version__
  raise UserError(
    f'XLA of JAX {version} is wrong on this {jax.default_backend()}: {"; ".join(wrong)}. Install another '
    f"version, for example by pip install 'jax!={version}', or skip this check by --allow_wrong_xla"
  )


def probe() -> list[str]:
  """A line for each wrong result on the default backend, with the flags of this process.

  kdjax uses these programs, and some release of XLA computed each of them wrongly: a product summed row by
  row, a sum of broadcast values, and the gradient of average pooling, the only dilated window of kdjax. All
  numbers are exact in bfloat16, too, so a lower precision of products does not count as an error.
  """
  found = []
  for what, values, right in _results():
    values, right = (x.ravel() for x in np.broadcast_arrays(values, np.float64(right)))
    for wrong in np.flatnonzero(values != right)[:1]:
      found.append(f'it computes {what} as {values[wrong]:.10g}, right is {right[wrong]:.10g}')
  return found


def _results() -> Iterator[tuple[str, np.ndarray, np.ndarray | float]]:
  """Yields (description, computed values, right values)."""
  rows_NC = np.zeros((32_769, 3), np.float32)
  rows_NC[-1, 0] = 2.0**15
  what = f'sum((eye(3) @ row)²) in the last of {len(rows_NC):,} rows'
  yield what, np.asarray(_row_sums(rows_NC))[-1:], 2.0**30

  ones_N1 = np.ones((512, 1), np.float32)
  right = 2.0 * len(ones_N1) ** 2
  # In a wrong release threads race, so only some of the calls return a wrong value.
  yield f'a sum of {right:,.0f} ones', np.array([_broadcast_sum(ones_N1) for _ in range(20)]), right

  weights_BHWC = np.random.default_rng(0).integers(-8, 9, (16, 8, 8, 8)).astype(np.float32)
  right_BHWC = weights_BHWC.repeat(2, axis=1).repeat(2, axis=2) / 4
  images_BHWC = np.zeros(right_BHWC.shape, np.float32)
  values_BHWC = np.asarray(_pool_gradient(images_BHWC, weights_BHWC))
  yield 'a number in a gradient of average pooling', values_BHWC, right_BHWC


@jax.jit
def _row_sums(rows_NC: jax.Array) -> jax.Array:
  return jax.vmap(lambda row_C: jnp.sum((jnp.eye(3) @ row_C) ** 2))(rows_NC)


@jax.jit
def _broadcast_sum(ones_N1: jax.Array) -> jax.Array:
  return jnp.sum(jnp.broadcast_to(ones_N1, (2, len(ones_N1), len(ones_N1))))


@jax.jit
@jax.grad
def _pool_gradient(images_BHWC: jax.Array, weights_BHWC: jax.Array) -> jax.Array:
  return jnp.sum(nn.avg_pool(images_BHWC, (2, 2), strides=(2, 2)) * weights_BHWC)
