"""The layers of all models: the convolution is lax's, and BatchNorm is Flax's, in value and derivatives."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy_layers import QUICK

from kdjax.models import convolution, layers
from tests.benchmarks import layers as benchmark

# The convolution.

DIMENSIONS = ('NHWC', 'HWIO', 'NHWC')
PLAIN = partial(jax.lax.conv_general_dilated, dimension_numbers=DIMENSIONS)
OURS = partial(convolution.convolve, dimension_numbers=DIMENSIONS)
# Images, kernel, strides, padding, and the parts that their gradient is computed in.
CASES = [
  ((9, 16, 16, 4), (3, 3, 4, 4), (1, 1), ((1, 1), (1, 1)), 2),  # parts of unequal size
  ((9, 16, 16, 4), (3, 3, 4, 8), (2, 2), ((1, 1), (1, 1)), 2),
  ((3, 32, 32, 3), (5, 5, 3, 6), (1, 1), 'SAME', 3),
  ((3, 28, 28, 3), (5, 5, 3, 4), (1, 1), 'VALID', 2),
  ((2, 32, 32, 3), (7, 7, 3, 4), (2, 2), ((3, 3), (3, 3)), 2),
  ((4, 31, 16, 3), (3, 4, 3, 4), (3, 2), 'SAME', 1),  # blocks that neither side is a multiple of
  ((4, 15, 13, 3), (2, 2, 3, 4), (2, 3), 'VALID', 1),  # pixels that no window sees
  ((4, 9, 9, 3), (1, 1, 3, 4), (2, 2), ((1, 1), (0, 2)), 1),  # zeros around
]
MOST_PARTS = ((9, 32, 32, 3), (5, 5, 3, 6), (1, 1), 'SAME', 8)
# These are not computed as convolutions; the last number counts the parts of the batch.
PRODUCTS = [
  ((16, 4, 4, 4), (1, 1, 4, 8), (1, 1), 'SAME', 8),
  ((12, 7, 8, 4), (1, 1, 4, 8), (2, 2), 'SAME', 4),  # a shortcut
  ((3, 8, 9, 4), (1, 1, 4, 2), (2, 3), ((0, 0), (0, 0)), 1),
]
# The reference, by `lax` alone.
UNUSUAL = {
  'groups': ((9, 32, 32, 4), (3, 3, 2, 4), {'feature_group_count': 2}),
  'groups of one pixel': ((9, 32, 32, 4), (1, 1, 1, 4), {'feature_group_count': 4}),
  'holes in the window': ((9, 32, 32, 4), (3, 3, 4, 4), {'rhs_dilation': (2, 2)}),
  'holes in the images': ((9, 32, 32, 4), (1, 1, 4, 4), {'lhs_dilation': (1, 2)}),
}


def arrays(*shapes, seed=0):
  rng = np.random.default_rng(seed)
  return tuple(rng.normal(size=shape).astype(np.float32) for shape in shapes)


def output(convolve, strides, padding, images, kernel):
  return convolve(images, kernel, strides, padding)


def loss(*arguments):
  """The second derivatives, for each argument."""
  return jnp.mean(jnp.sin(output(*arguments)))


def num_convolutions(function, *arguments):
  return str(jax.make_jaxpr(function)(*arguments)).count(' conv_general_dilated[')


def assert_close(found, expected):
  for x, y in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
    np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-5 * np.abs(y).max())


@pytest.mark.parametrize(('images', 'kernel', 'strides', 'padding', 'num_parts'), CASES + PRODUCTS)
def test_values_and_derivatives_are_those_of_lax(images, kernel, strides, padding, num_parts):
  operands, tangents = arrays(images, kernel), arrays(images, kernel, seed=1)

  def results(convolve):
    function = partial(loss, convolve, strides, padding)
    gradient = jax.grad(function, (0, 1))
    value = output(convolve, strides, padding, *operands)
    # The gradient, its derivative along the tangents, and the derivative of the value along them.
    derivatives = jax.jvp(gradient, operands, tangents), jax.jvp(function, operands, tangents)
    return value, derivatives

  (value, derivatives), (expected_value, expected_derivatives) = (
    jax.jit(partial(results, convolve), compiler_options=QUICK)() for convolve in (OURS, PLAIN)
  )
  if (images, kernel, strides, padding, num_parts) in CASES:
    np.testing.assert_array_equal(value, expected_value)
  assert_close((value, derivatives), (expected_value, expected_derivatives))


def test_only_the_gradient_of_the_kernel_is_computed_in_parts(monkeypatch):
  """The gradient of the input of a convolution with strides spreads no pixels apart, unlike in lax."""
  for images, kernel, strides, padding, num_parts in [*CASES, MOST_PARTS]:
    operands, function = arrays(images, kernel), partial(loss, OURS, strides, padding)
    assert num_convolutions(function, *operands) == 1
    assert num_convolutions(jax.grad(function, 0), *operands) == 2
    assert num_convolutions(jax.grad(function, (0, 1)), *operands) == 2 + num_parts
  operands = arrays(*CASES[1][:2])
  for convolve, expected in ((PLAIN, True), (OURS, False)):
    program = str(jax.make_jaxpr(jax.grad(partial(loss, convolve, *CASES[1][2:4])))(*operands))
    assert ('lhs_dilation=(2, 2)' in program) == expected
  monkeypatch.setattr(jax, 'default_backend', lambda: 'gpu')
  gradient = jax.grad(partial(loss, OURS, *CASES[0][2:4]), (0, 1))
  assert num_convolutions(gradient, *arrays(*CASES[0][:2])) == 3  # on other platforms in one part


def test_a_window_of_one_pixel_is_a_product():
  for images, kernel, strides, padding, num_parts in PRODUCTS:
    operands, function = arrays(images, kernel), partial(loss, OURS, strides, padding)
    assert num_convolutions(jax.grad(function, (0, 1)), *operands) == 0
    of_each_part = ','.join(map(str, (num_parts, *kernel[2:])))
    assert f'f32[{of_each_part}]' in str(jax.make_jaxpr(function)(*operands))


def test_groups_and_holes_are_left_to_lax():
  for name, (images, kernel, options) in UNUSUAL.items():
    programs = [
      str(
        jax.make_jaxpr(
          jax.grad(partial(loss, partial(of, **options), (1, 1), ((1, 1), (1, 1))), (0, 1))
        )(*arrays(images, kernel))
      )
      for of in (OURS, PLAIN)
    ]
    assert programs[0] == programs[1], name


@pytest.mark.parametrize('case', [CASES[1], PRODUCTS[1]])
def test_members_can_be_mapped(case):
  images, kernel, strides, padding, _ = case
  images, kernels_M = arrays(images, (3, *kernel))
  gradient = jax.grad(partial(loss, OURS, strides, padding), 1)
  mapped = jax.jit(jax.vmap(gradient, (None, 0)), compiler_options=QUICK)
  alone = jax.jit(gradient, compiler_options=QUICK)
  expected_M = np.stack([alone(images, kernel) for kernel in kernels_M])
  assert_close(mapped(images, kernels_M), expected_M)


# The gradients of lax's own convolution are up to 0.018, 0.022 and 0.011 away from those of float32.
@pytest.mark.parametrize(
  ('case', 'most'), [(CASES[0], 0.02), (CASES[1], 0.025), (PRODUCTS[1], 0.015)]
)
def test_bfloat16_stays_bfloat16(case, most):
  images, kernel, strides, padding, _ = case
  operands = [x.astype(jnp.bfloat16) for x in arrays(images, kernel)]
  gradient = jax.grad(partial(loss, OURS, strides, padding), (0, 1))
  gradient = jax.jit(gradient, compiler_options=QUICK)
  expected, found = gradient(*arrays(images, kernel)), gradient(*operands)
  for x, y in zip(found, expected, strict=True):
    assert x.dtype == jnp.bfloat16
    assert np.linalg.norm(x.astype(np.float32) - y) < most * np.linalg.norm(y)


# BatchNorm.

# On two devices, each with a batch of its own.
IMAGES_DBHWC = np.random.default_rng(0).normal(2, 3, (2, 4, 6, 5, 3)).astype(np.float32)
COTANGENT = np.random.default_rng(1).normal(size=IMAGES_DBHWC.shape).astype(np.float32)
VARIABLES = {
  'params': {'scale': jnp.array([0.5, 1, 2]), 'bias': jnp.array([1.0, 0, -3])},
  'batch_stats': {'mean': jnp.array([2.0, 1, 3]), 'var': jnp.array([9.0, 4, 16])},
}


def of_flax(train, dtype):
  return benchmark.of_flax(train, dtype)()


def normalised(norm, dtype):
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
  ours, flax = (normalised(norm(train, dtype), dtype) for norm in (layers.BatchNorm, of_flax))
  assert jax.tree.structure(ours) == jax.tree.structure(flax)
  for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(flax), strict=True):
    assert a.dtype == b.dtype
    np.testing.assert_allclose(
      a.astype(jnp.float32), b.astype(jnp.float32), rtol=tolerance, atol=tolerance
    )
  _, (_, updated) = ours  # the same on both devices, and moved by a tenth in training
  axes = (0, 1, 2, 3)
  for name, of_batch in (('mean', IMAGES_DBHWC.mean(axes)), ('var', IMAGES_DBHWC.var(axes))):
    old = np.asarray(VARIABLES['batch_stats'][name])
    expected = 0.9 * old + 0.1 * of_batch if train else old
    np.testing.assert_allclose(updated['batch_stats'][name], [expected] * 2, rtol=tolerance)


def test_batch_norm_starts_as_that_of_flax():
  images = IMAGES_DBHWC[0]
  ours, flax = (
    norm(True, jnp.float32).init(jax.random.key(0), images) for norm in (layers.BatchNorm, of_flax)
  )
  jax.tree.map(np.testing.assert_array_equal, ours, flax)


def test_the_variance_of_a_constant_is_not_negative():
  """Rounding leaves E[x²] − E[x]² below zero for some constants."""
  x_BHWC = jnp.full((7, 5, 3, 3), 1000.1)
  norm = layers.BatchNorm(True)
  apply = lambda x: norm.apply(VARIABLES, x, mutable=['batch_stats'])
  y_DBHWC, updated = jax.vmap(apply, axis_name=layers.AXIS_NAME)(x_BHWC[None])
  assert np.isfinite(y_DBHWC).all()
  assert (updated['batch_stats']['var'] >= 0.9 * VARIABLES['batch_stats']['var'][None]).all()
