"""The models' BatchNorm, held against Flax's: values, gradients and the statistics that it moves."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kdjax.models import layers
from tests.benchmarks import layers as benchmark

# On two devices, each with a batch of its own.
IMAGES_DBHWC = np.random.default_rng(0).normal(2, 3, (2, 4, 6, 5, 3)).astype(np.float32)
COTANGENT = np.random.default_rng(1).normal(size=IMAGES_DBHWC.shape).astype(np.float32)
VARIABLES = {
  'params': {'scale': jnp.array([0.5, 1, 2]), 'bias': jnp.array([1.0, 0, -3])},
  'batch_stats': {'mean': jnp.array([2.0, 1, 3]), 'var': jnp.array([9.0, 4, 16])},
}


def of_flax(train, dtype):
  return benchmark.of_flax(train, dtype)()


def found(norm, dtype):
  """The output, and the gradient for both arguments, of each device; and the new variables."""

  def loss(params, x_BHWC, cotangent):
    variables = VARIABLES | {'params': params}
    y_BHWC, updated = norm.apply(variables, x_BHWC.astype(dtype), mutable=['batch_stats'])
    assert y_BHWC.dtype == dtype
    return jnp.sum(y_BHWC * cotangent), (y_BHWC, updated)

  gradient = jax.grad(loss, argnums=(0, 1), has_aux=True)
  mapped = jax.vmap(gradient, in_axes=(None, 0, 0), axis_name=layers.AXIS_NAME)
  return mapped(VARIABLES['params'], IMAGES_DBHWC, COTANGENT)


@pytest.mark.parametrize('train', [True, False], ids=['training', 'evaluation'])
@pytest.mark.parametrize('dtype', [jnp.float32, jnp.bfloat16], ids=['float32', 'bfloat16'])
def test_batch_norm_is_that_of_flax(train, dtype):
  tolerance = 1e-4 if dtype == jnp.float32 else 0.02
  ours, flax = (found(norm(train, dtype), dtype) for norm in (layers.BatchNorm, of_flax))
  assert jax.tree.structure(ours) == jax.tree.structure(flax)
  for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(flax), strict=True):
    assert a.dtype == b.dtype
    np.testing.assert_allclose(
      a.astype(jnp.float32), b.astype(jnp.float32), rtol=tolerance, atol=tolerance
    )


def test_batch_norm_starts_as_that_of_flax():
  images = IMAGES_DBHWC[0]
  ours, flax = (
    norm(True, jnp.float32).init(jax.random.key(0), images) for norm in (layers.BatchNorm, of_flax)
  )
  jax.tree.map(np.testing.assert_array_equal, ours, flax)


def test_the_variance_of_what_does_not_vary_is_not_negative():
  """Rounding leaves E[x²] − E[x]² below zero for some constants."""
  x_BHWC = jnp.full((7, 5, 3, 3), 1000.1)
  norm = layers.BatchNorm(True)
  apply = lambda x: norm.apply(VARIABLES, x, mutable=['batch_stats'])
  y_DBHWC, updated = jax.vmap(apply, axis_name=layers.AXIS_NAME)(x_BHWC[None])
  assert np.isfinite(y_DBHWC).all()
  assert (updated['batch_stats']['var'] >= 0.9 * VARIABLES['batch_stats']['var'][None]).all()
