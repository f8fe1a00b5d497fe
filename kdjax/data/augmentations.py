"""Augmentations of one image: (key, image_HWC float32 in [−1, 1], parameters) → image_HWC.

Rotation and colour changes round to 8 bits, as Pillow's do, and compute in integers with fixed-point
factors. So an image gets the same bits in and out of jit, in any batch and on any device, however the
compiler fuses, orders or contracts the arithmetic. Augmentations of MOVING only move pixels, and also take
images in bytes. A function with a key draws parameters, and calls a function without a key.
Axes: H W C image.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from kdjax.runtime import plugins

# (key, image_HWC, the config section `augmentation`) → image_HWC.
Augmentation = Callable[[jax.Array, jax.Array, ConfigDict], jax.Array]

_BITS = 16  # after the binary point, of factors, cosines and shifts of the hue
_ONE = 1 << _BITS
_WEIGHT_BITS = 10  # of each axis of the bilinear weights: an 8-bit value times two fits an int32
LARGEST_SIDE = (
  2048  # of an image: sums over all of its pixels and fixed-point positions fit an int32
)
INTERPOLATIONS = ('bilinear', 'nearest')
_NUM_ANGLES = 4097  # that a rotation chooses from; odd, so that 0 is one of them
_LUMA = np.round(np.array([0.299, 0.587, 0.114]) * _ONE).astype(np.int32)  # ITU-R BT.601


def unit_cube(images: jax.Array) -> jax.Array:
  """Whole numbers in [0, 255] → float32 in [−1, 1], as the paper scales images."""
  # One multiplication of whole numbers: the same bits in and out of jit, and exactly ±1 at the ends.
  return (2 * images.astype(jnp.float32) - 255) * jnp.float32(1 / 255)


def flip(key: jax.Array, image_HWC: jax.Array) -> jax.Array:
  """Mirrors left and right with probability one half."""
  return jnp.where(jax.random.bernoulli(key, jnp.float32(0.5)), image_HWC[:, ::-1], image_HWC)


def vertical_flip(key: jax.Array, image_HWC: jax.Array) -> jax.Array:
  """Mirrors top and bottom with probability one half."""
  return jnp.where(jax.random.bernoulli(key, jnp.float32(0.5)), image_HWC[::-1], image_HWC)


def crop(key: jax.Array, image_HWC: jax.Array, padding: int) -> jax.Array:
  """A random crop of the image's own size, after `padding` black pixels (−1; bytes: 0) on each side."""
  widths = ((padding, padding), (padding, padding), (0, 0))
  black = 0 if image_HWC.dtype == jnp.uint8 else -1
  padded_HWC = jnp.pad(image_HWC, widths, constant_values=black)
  top, left = jax.random.randint(key, (2,), 0, 2 * padding + 1, jnp.int32)
  return jax.lax.dynamic_slice(padded_HWC, (top, left, 0), image_HWC.shape)


def rotation(
  key: jax.Array, image_HWC: jax.Array, degrees: float, interpolation: str = 'bilinear'
) -> jax.Array:
  """Rotates by a uniform angle in [−degrees, degrees], one of 4097 equally spaced ones."""
  # A table, since devices differ in the last bits of jnp.cos.
  angles_A = np.deg2rad(np.linspace(-degrees, degrees, _NUM_ANGLES))
  table_A2 = jnp.asarray(np.stack([np.cos(angles_A), np.sin(angles_A)], axis=-1), jnp.float32)
  cos, sin = table_A2[jax.random.randint(key, (), 0, _NUM_ANGLES, jnp.int32)]
  return rotate(image_HWC, cos, sin, interpolation)


def rotate(
  image_HWC: jax.Array, cos: jax.Array, sin: jax.Array, interpolation: str = 'bilinear'
) -> jax.Array:
  """Rotates counter-clockwise about the image's centre.

  A pixel is a sample at its centre, so the image's centre is at row (H − 1) / 2 and column
  (W − 1) / 2. The plane around the image is black (−1); bilinear, an edge fades into it over one pixel.

  Args:
    image_HWC: H + W at most 16,000.
    cos, sin: (), of the angle; rounded to 16 bits.
    interpolation: 'bilinear' or 'nearest', of INTERPOLATIONS.
  """
  cos, sin = _fixed_point(cos), _fixed_point(sin)
  height, width, num_channels = image_HWC.shape
  # Twice the distance from the centre is a whole number.
  y_HW = 2 * jnp.arange(height, dtype=jnp.int32)[:, None] - (height - 1)
  x_HW = 2 * jnp.arange(width, dtype=jnp.int32)[None, :] - (width - 1)
  row_HW, down_HW = _source(x_HW * sin + y_HW * cos, height)
  column_HW, right_HW = _source(x_HW * cos - y_HW * sin, width)

  padded_HWC = jnp.pad(_to_bytes(image_HWC), ((1, 2), (1, 2), (0, 0)))
  pixels_PC = padded_HWC.reshape(-1, num_channels)

  def shifted(rows: int | jax.Array, columns: int | jax.Array) -> jax.Array:
    index_HW = (row_HW + rows) * (width + 3) + column_HW + columns
    return jnp.take(pixels_PC, index_HW, axis=0, mode='clip')

  one = 1 << _WEIGHT_BITS
  if interpolation == 'nearest':
    return unit_cube(shifted(2 * down_HW >= one, 2 * right_HW >= one))
  right_HWC, down_HWC = right_HW[..., None], down_HW[..., None]
  upper_HWC = (one - right_HWC) * shifted(0, 0) + right_HWC * shifted(0, 1)
  lower_HWC = (one - right_HWC) * shifted(1, 0) + right_HWC * shifted(1, 1)
  sum_HWC = (one - down_HWC) * upper_HWC + down_HWC * lower_HWC
  return unit_cube(_rounded(sum_HWC, 2 * _WEIGHT_BITS))


def _source(from_centre: jax.Array, size: int) -> tuple[jax.Array, jax.Array]:
  """The position to sample on an axis with 1 black pixel before its `size` pixels and 2 after them.

  Args:
    from_centre: twice the distance from the centre in pixels, in fixed point.

  Returns: the index of the pixel before the point, and the weight of the one after it.
  """
  position = _rounded(from_centre + (size - 1) * _ONE, _BITS + 1 - _WEIGHT_BITS)
  position = jnp.clip(position, -1 << _WEIGHT_BITS, size << _WEIGHT_BITS)
  return (position >> _WEIGHT_BITS) + 1, position & ((1 << _WEIGHT_BITS) - 1)


def brightness(key: jax.Array, image_HWC: jax.Array, strength: float) -> jax.Array:
  """`adjust_brightness` with a uniform factor in [1 − strength, 1 + strength]; strength ≤ 1."""
  return adjust_brightness(image_HWC, 1 + draw_symmetric(key, strength))


def contrast(key: jax.Array, image_HWC: jax.Array, strength: float) -> jax.Array:
  """`adjust_contrast` with a uniform factor in [1 − strength, 1 + strength]; strength ≤ 1."""
  return adjust_contrast(image_HWC, 1 + draw_symmetric(key, strength))


def saturation(key: jax.Array, image_HWC: jax.Array, strength: float) -> jax.Array:
  """`adjust_saturation` with a uniform factor in [1 − strength, 1 + strength]; strength ≤ 1."""
  return adjust_saturation(image_HWC, 1 + draw_symmetric(key, strength))


def hue(key: jax.Array, image_HWC: jax.Array, strength: float) -> jax.Array:
  """`adjust_hue` with a uniform shift in [−strength, strength] of a turn; strength ≤ 1/2."""
  return adjust_hue(image_HWC, draw_symmetric(key, strength))


def color_jitter(
  key: jax.Array,
  image_HWC: jax.Array,
  brightness_strength: float,
  contrast_strength: float,
  saturation_strength: float,
  hue_strength: float,
) -> jax.Array:
  """Brightness, contrast, saturation and hue, always in this order, each with its own draw.

  torchvision's ColorJitter also draws the order.
  """
  image_HWC = brightness(jax.random.fold_in(key, 0), image_HWC, brightness_strength)
  image_HWC = contrast(jax.random.fold_in(key, 1), image_HWC, contrast_strength)
  image_HWC = saturation(jax.random.fold_in(key, 2), image_HWC, saturation_strength)
  return hue(jax.random.fold_in(key, 3), image_HWC, hue_strength)


def draw_symmetric(key: jax.Array, half_width: float) -> jax.Array:
  """float32 (), uniform in [−half_width, half_width], a multiple of 2⁻¹⁶: sums with 1 are exact."""
  uniform = jax.random.uniform(key, (), jnp.float32, -1, 1)
  return jnp.round(uniform * jnp.float32(half_width * _ONE)) * jnp.float32(1 / _ONE)


def adjust_brightness(image_HWC: jax.Array, factor: jax.Array) -> jax.Array:
  """Multiplies the distance from black by the factor (() ≥ 0), and clips."""
  return unit_cube(_blend(_to_bytes(image_HWC), jnp.int32(0), factor))


def adjust_contrast(image_HWC: jax.Array, factor: jax.Array) -> jax.Array:
  """Multiplies the distance from the mean of the grey image by the factor (() ≥ 0), and clips."""
  bytes_HWC = _to_bytes(image_HWC)
  gray_HW1 = _gray(bytes_HWC)
  mean = (gray_HW1.sum(dtype=jnp.int32) + gray_HW1.size // 2) // gray_HW1.size
  return unit_cube(_blend(bytes_HWC, mean, factor))


def adjust_saturation(image_HWC: jax.Array, factor: jax.Array) -> jax.Array:
  """Multiplies the distance from the grey image by the factor (() ≥ 0), and clips.

  A grey image (C = 1) stays as it is.
  """
  bytes_HWC = _to_bytes(image_HWC)
  return unit_cube(_blend(bytes_HWC, _gray(bytes_HWC), factor))


def adjust_hue(image_HWC: jax.Array, shift: jax.Array) -> jax.Array:
  """Adds the shift (() in [−1, 1], of a turn) to the hue of HSV; red, green, blue are a third apart.

  A grey image (C = 1) stays as it is.
  """
  if image_HWC.shape[-1] == 1:
    return image_HWC
  bytes_HWC = _to_bytes(image_HWC)
  red, green, blue = jnp.moveaxis(bytes_HWC, -1, 0)
  value, chroma = bytes_HWC.max(-1), bytes_HWC.max(-1) - bytes_HWC.min(-1)
  # Hues are in units where a turn is 6 times the chroma, which avoids the divisions of HSV.
  from_green_or_blue = jnp.where(value == green, blue - red + 2 * chroma, red - green + 4 * chroma)
  hue_HW = jnp.where(value == red, green - blue, from_green_or_blue)
  turn_HW = jnp.maximum(6 * chroma * _ONE, 1)
  hue_HW = (hue_HW * _ONE + 6 * chroma * _fixed_point(shift)) % turn_HW

  def channel(sixths: int) -> jax.Array:
    """The value minus up to the chroma, which grows with the distance of the hue from the channel's."""
    position_HW = hue_HW + sixths * chroma * _ONE
    position_HW = jnp.where(position_HW < turn_HW, position_HW, position_HW - turn_HW)
    nearest_HW = jnp.minimum(position_HW, 4 * chroma * _ONE - position_HW)
    return value - _rounded(jnp.clip(nearest_HW, 0, chroma * _ONE), _BITS)

  return unit_cube(jnp.stack([channel(5), channel(3), channel(1)], axis=-1))


def noise(key: jax.Array, image_HWC: jax.Array, probability: float) -> tuple[jax.Array, jax.Array]:
  """Replaces the image by uniform noise in [−1, 1) with a probability (paper, Appendix A.1).

  Returns: image_HWC, and whether it was replaced (() bool).
  """
  replaced = jax.random.bernoulli(jax.random.fold_in(key, 0), jnp.float32(probability))
  shape = image_HWC.shape
  noise_HWC = jax.random.uniform(jax.random.fold_in(key, 1), shape, jnp.float32, -1, 1)
  return jnp.where(replaced, noise_HWC, image_HWC), replaced


def mixup(key: jax.Array, image_HWC: jax.Array, partner_HWC: jax.Array) -> jax.Array:
  """`mix` with a coefficient uniform on [0, 1) (paper, Appendix A.1), not Zhang et al.'s Beta."""
  return mix(image_HWC, partner_HWC, jax.random.uniform(key, (), jnp.float32))


def mix(image_HWC: jax.Array, partner_HWC: jax.Array, coefficient: jax.Array) -> jax.Array:
  """λ · image + (1 − λ) · partner (mixup, Zhang et al. 2018), with the coefficient λ () in [0, 1]."""
  # The barrier keeps the weights from being multiplied into the scaling of `unit_cube`.
  image_HWC, partner_HWC = jax.lax.optimization_barrier((image_HWC, partner_HWC))
  # A compiler may fuse a product with the sum, which changes the last bits. Rounding each product to one bit
  # less prevents that.
  image_HWC, partner_HWC = (
    jax.lax.reduce_precision(weight * x_HWC, exponent_bits=8, mantissa_bits=22)
    for weight, x_HWC in ((coefficient, image_HWC), (1 - coefficient, partner_HWC))
  )
  return image_HWC + partner_HWC


def _to_bytes(image_HWC: jax.Array) -> jax.Array:
  """The nearest 8-bit image, as int32: the inverse of `unit_cube`."""
  return jnp.round((image_HWC + 1) * jnp.float32(127.5)).astype(jnp.int32)


def _fixed_point(value: jax.Array) -> jax.Array:
  return jnp.round(jnp.float32(value) * _ONE).astype(jnp.int32)


def _rounded(value: jax.Array, bits: int) -> jax.Array:
  """value / 2^bits to the nearest whole number, halves upwards."""
  return (value + (1 << (bits - 1))) >> bits


def _gray(bytes_HWC: jax.Array) -> jax.Array:
  """The luma of an RGB image, (H, W, 1); a grey image (C = 1) as it is."""
  if bytes_HWC.shape[-1] == 1:
    return bytes_HWC
  return _rounded((bytes_HWC * _LUMA[None, None]).sum(-1, keepdims=True), _BITS)


def _blend(bytes_HWC: jax.Array, origin: jax.Array, factor: jax.Array) -> jax.Array:
  """origin + factor · (bytes − origin), rounded and clipped to [0, 255]; the origin broadcasts."""
  change_HWC = _rounded(_fixed_point(factor) * (bytes_HWC - origin), _BITS)
  return jnp.clip(origin + change_HWC, 0, 255)


# Augmentations that keep an image's label, and their parameters: fields of the section `augmentation`.
FUNCTIONS = {
  'flip': (flip, ()),
  'vertical_flip': (vertical_flip, ()),
  'crop': (crop, ('crop_padding',)),
  'rotation': (rotation, ('rotation_degrees', 'rotation_interpolation')),
  'brightness': (brightness, ('brightness',)),
  'contrast': (contrast, ('contrast',)),
  'saturation': (saturation, ('saturation',)),
  'hue': (hue, ('hue',)),
  'color_jitter': (color_jitter, ('brightness', 'contrast', 'saturation', 'hue')),
}
FIELDS = {name: fields for name, (_, fields) in FUNCTIONS.items()}
MOVING = ('flip', 'vertical_flip', 'crop')


def find(name: str) -> Augmentation:
  """The augmentation of FUNCTIONS, or a user's (key, image_HWC) → image_HWC, 'module:attribute'.

  Raises:
    UserError: there is no augmentation of this name.
  """
  found = plugins.look_up(FUNCTIONS, name, 'augmentation')
  function, fields = found if name in FUNCTIONS else (found, ())
  return lambda key, image_HWC, config: function(key, image_HWC, *(config[f] for f in fields))
