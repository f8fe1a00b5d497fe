"""Views: view(seed, images, indices, views) → inputs, a pure function of each example alone.

An example's index and its view number decide its augmentation exactly, whatever else is in the
batch. The prediction store relies on it: a stored prediction belongs to one (view, index). Runs on
device, inside jit. Axes: B batch, H W C image.
"""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from kdjax import keys

View = Callable[[jax.Array, jax.Array, jax.Array, jax.Array], jax.Array]


def unit_cube(images: jax.Array) -> jax.Array:
  """uint8 in [0, 255] → float32 in [−1, 1], as the paper scales images."""
  # One multiplication of whole numbers: the same bits in and out of jit, and exactly ±1 at the ends.
  return (2 * images.astype(jnp.float32) - 255) * jnp.float32(1 / 255)


def flip(key: jax.Array, image_HWC: jax.Array) -> jax.Array:
  """Mirrors left and right with probability one half."""
  return jnp.where(jax.random.bernoulli(key, jnp.float32(0.5)), image_HWC[:, ::-1], image_HWC)


def crop(key: jax.Array, image_HWC: jax.Array, padding: int) -> jax.Array:
  """A random crop of the image's own size, after `padding` black pixels (−1) on each side."""
  widths = ((padding, padding), (padding, padding), (0, 0))
  padded_HWC = jnp.pad(image_HWC, widths, constant_values=-1.0)
  top, left = jax.random.randint(key, (2,), 0, 2 * padding + 1, jnp.int32)
  return jax.lax.dynamic_slice(padded_HWC, (top, left, 0), image_HWC.shape)


# Name → (key, image_HWC, the config section `augmentation`) → image_HWC.
AUGMENTATIONS = {
  'flip': lambda key, image_HWC, config: flip(key, image_HWC),
  'crop': lambda key, image_HWC, config: crop(key, image_HWC, config.crop_padding),
}


def make_view(names: Sequence[str], config: ConfigDict) -> View:
  """The view that applies the named augmentations in order; no names give the clean image.

  Args:
    names: of AUGMENTATIONS. Each draws from its own stream, so adding one leaves the others' draws.
    config: the config section `augmentation`.

  Returns: view(seed, images_BHWC uint8, indices_B, views_B) → float32 images_BHWC in [−1, 1].
  """

  def one(seed, image_HWC, index, view):
    for name in names:
      key = keys.stream(seed, f'view/{name}', view, index)
      image_HWC = AUGMENTATIONS[name](key, image_HWC, config)
    return image_HWC

  def view(seed, images_BHWC, indices_B, views_B):
    return jax.vmap(one, in_axes=(None, 0, 0, 0))(seed, unit_cube(images_BHWC), indices_B, views_B)

  return view
