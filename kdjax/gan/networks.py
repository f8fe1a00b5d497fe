"""SN-GAN's generator and discriminator, small ResNets (Miyato et al. 2018, Appendix B.4, Table 4).

Images of other sizes than in the table have other numbers of stages that halve the size.
Axes: B batch, Z latent, H W C image.
"""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp

from kdjax.models.layers import BatchNorm, Conv

MAX_HALVINGS = 3
MIN_SIDE = 4  # of the smallest feature map

# Glorot and Bengio 2010; before a ReLU with a gain of √2, as in the code of SN-GAN's authors.
glorot = nn.initializers.variance_scaling(1.0, 'fan_avg', 'uniform')
glorot_relu = nn.initializers.variance_scaling(2.0, 'fan_avg', 'uniform')
Conv3x3 = partial(Conv, kernel_size=(3, 3), padding=1)
Conv1x1 = partial(Conv, kernel_size=(1, 1), kernel_init=glorot)


def num_halvings(height: int, width: int) -> int:
  """How often both sides can be halved to whole numbers of 4 or more; at most 3."""
  count = 0
  while count < MAX_HALVINGS and all(
    side % 2 ** (count + 1) == 0 and side >= MIN_SIDE * 2 ** (count + 1) for side in (height, width)
  ):
    count += 1
  return count


class Generator(nn.Module):
  """latents_BZ, standard normal → images_BHWC in [−1, 1]."""

  image_shape_HWC: tuple[int, int, int]
  width: int  # filters of every stage

  @nn.compact
  def __call__(self, x: jax.Array, train: bool) -> jax.Array:
    norm = partial(BatchNorm, train)
    height, width, channels = self.image_shape_HWC
    halvings = num_halvings(height, width)
    start = (height // 2**halvings, width // 2**halvings, self.width)
    x = nn.Dense(start[0] * start[1] * start[2], kernel_init=glorot)(x).reshape(len(x), *start)
    for _ in range(halvings):
      x = GeneratorBlock(self.width)(x, train)
    x = Conv3x3(channels, kernel_init=glorot)(nn.relu(norm()(x)))
    return jnp.tanh(x)


class GeneratorBlock(nn.Module):
  """Doubles both sides; norm and ReLU before each convolution.

  There are no biases: a later BatchNorm cancels them, and Adam would turn the rounding errors of their
  gradients into steps.
  """

  filters: int

  @nn.compact
  def __call__(self, x: jax.Array, train: bool) -> jax.Array:
    norm = partial(BatchNorm, train)
    convolve = partial(Conv3x3, self.filters, use_bias=False, kernel_init=glorot_relu)
    # A 1x1 convolution of the small map is that of the enlarged one, at a quarter of the cost.
    shortcut = _enlarge(Conv1x1(self.filters, use_bias=False, name='shortcut')(x))
    y = convolve()(_enlarge(nn.relu(norm()(x))))
    y = convolve()(nn.relu(norm()(y)))
    return shortcut + y


class Discriminator(nn.Module):
  """images_BHWC in [−1, 1] → scores_B, larger for real ones.

  Every kernel, as a matrix (H·W·C, filters), is divided by its largest singular value. One power iteration
  estimates it from a vector in 'batch_stats', which `train` replaces by the new vector
  (`flax.linen.SpectralNorm`).
  """

  width: int  # filters of every stage

  @nn.compact
  def __call__(self, x: jax.Array, train: bool) -> jax.Array:
    halvings = min(2, num_halvings(x.shape[1], x.shape[2]))
    for i in range(4):
      x = DiscriminatorBlock(self.width, halve=i < halvings, first=i == 0)(x, train)
    x = nn.relu(x).sum(axis=(1, 2))
    return nn.SpectralNorm(nn.Dense(1, kernel_init=glorot))(x, update_stats=train)[:, 0]


class DiscriminatorBlock(nn.Module):
  """Two convolutions with ReLU before each, except before the first of the network, which sees the image."""

  filters: int
  halve: bool
  first: bool

  @nn.compact
  def __call__(self, x: jax.Array, train: bool) -> jax.Array:
    def convolve(conv, x):
      return nn.SpectralNorm(conv)(x, update_stats=train)

    y = x if self.first else nn.relu(x)
    y = convolve(Conv3x3(self.filters, kernel_init=glorot_relu), y)
    y = convolve(Conv3x3(self.filters, kernel_init=glorot_relu), nn.relu(y))
    if self.halve:
      x, y = (nn.avg_pool(z, (2, 2), strides=(2, 2)) for z in (x, y))
    if self.halve or self.first:
      x = convolve(Conv1x1(self.filters, name='shortcut'), x)
    return x + y


def _enlarge(x: jax.Array) -> jax.Array:
  """Each pixel becomes a block of two by two."""
  return x.repeat(2, axis=1).repeat(2, axis=2)
