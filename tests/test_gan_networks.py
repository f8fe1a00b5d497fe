from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kdjax import models
from kdjax.gan import networks as gan_networks

SHAPE = (8, 8, 1)


def test_sides_are_halved_while_they_are_whole_and_at_least_four():
  halvings = {
    (32, 32): 3,
    (28, 28): 2,
    (8, 8): 1,
    (64, 64): 3,
    (16, 8): 1,
    (9, 9): 0,
    (12, 10): 1,
    (6, 6): 0,
  }
  assert {sides: gan_networks.num_halvings(*sides) for sides in halvings} == halvings


# (shape, generator's first map, parameters): those of 32x32x3 are the published 4,276,739 (less the
# generator's nine biases of 256 that BatchNorm takes away) and 1,053,825.
@pytest.mark.parametrize(
  'shape, start, num_generator, num_discriminator',
  [
    ((32, 32, 3), 4, 4_276_739 - 9 * 256, 1_053_825),
    ((28, 28, 1), 7, 129 * 7 * 7 * 256 + 2 * 1_246_208 + 512 + 2305, 1_053_825 - 2 * (9 + 1) * 128),
    ((8, 8, 1), 4, 129 * 4 * 4 * 256 + 1_246_208 + 512 + 2305, 1_053_825 - 20 * 128 - 129 * 128),
  ],
)
def test_parameters_and_shapes(shape, start, num_generator, num_discriminator):
  networks = gan_networks.Generator(shape, 256), gan_networks.Discriminator(128)
  init = lambda model, shape: jax.eval_shape(lambda: models.init(model, jax.random.key(0), shape))
  generator, discriminator = init(networks[0], (128,)), init(networks[1], shape)
  assert generator['params']['Dense_0']['kernel'].shape == (128, start * start * 256)
  count = lambda variables: sum(x.size for x in jax.tree.leaves(variables['params']))
  assert count(generator) == num_generator
  assert count(discriminator) == num_discriminator
  apply = lambda model: partial(model.apply, train=False)
  latents = jax.ShapeDtypeStruct((5, 128), jnp.float32)
  images = jax.eval_shape(apply(networks[0]), generator, latents)
  assert images.shape == (5, *shape)
  assert jax.eval_shape(apply(networks[1]), discriminator, images).shape == (5,)


def used_kernels(model, variables, images):
  """The kernels as the layers see them, after the division."""
  found = []

  def note(call, args, kwargs, context):
    if isinstance(context.module, (nn.Conv, nn.Dense)) and context.method_name == '__call__':
      kernel = np.asarray(context.module.variables['params']['kernel'])
      found.append(kernel.reshape(-1, kernel.shape[-1]))
    return call(*args, **kwargs)

  with nn.intercept_methods(note):
    model.apply(variables, images, train=False)
  return found


def test_every_kernel_of_the_discriminator_has_spectral_norm_one():
  model = gan_networks.Discriminator(8)
  variables = models.init(model, jax.random.key(0), SHAPE)
  images = jnp.zeros((1, *SHAPE))

  @jax.jit
  def iterate(variables):
    _, updated = model.apply(variables, images, train=True, mutable=['batch_stats'])
    return variables | updated

  norms = lambda: [np.linalg.svd(k)[1][0] for k in used_kernels(model, variables, images)]
  assert len(norms()) == 10  # eight of the blocks, a shortcut, and the last layer
  assert max(norms()) > 1.05
  for _ in range(200):
    variables = iterate(variables)
  np.testing.assert_allclose(norms(), 1, atol=0.01)
