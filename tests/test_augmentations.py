"""Augmentations: against SciPy, Pillow and colorsys, their draws, and that equal means equal bits.

Flip and crop are tested as views, in test_views.py. A level is one of the 256 of an 8-bit image.
"""

import colorsys
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.ndimage
import scipy.stats
from ml_collections import ConfigDict
from PIL import Image, ImageEnhance

from kdjax import keys
from kdjax.data import augmentations

CONFIG = ConfigDict(
  {
    'crop_padding': 2,
    'rotation_degrees': 20.0,
    'rotation_interpolation': 'bilinear',
    'brightness': 0.2,
    'contrast': 0.3,
    'saturation': 0.4,
    'hue': 0.1,
  }
)
NUM_KEYS = 2000
ROUNDING = 0.51  # levels: half a level, and what 16 bits of a factor leave
# Name → (key, image_HWC, partner_HWC) → image_HWC.
ALL = {
  name: lambda key, image, _, name=name: augmentations.find(name)(key, image, CONFIG)
  for name in augmentations.FUNCTIONS
} | {
  'noise': lambda key, image, _: augmentations.noise(key, image, 0.5)[0],
  'mixup': augmentations.mixup,
}


def random_images(*shape, seed=0):
  return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def levels(images):
  return np.asarray(images, np.float64) * 127.5 + 127.5


def apply(function, images, *arguments):
  """The levels of function(image, ...) of an 8-bit image, in jit."""
  return levels(jax.jit(function)(augmentations.unit_cube(jnp.asarray(images)), *arguments))


def example_keys(num=NUM_KEYS, seed=0):
  return jax.vmap(lambda i: keys.stream(seed, 'test', i))(np.arange(num, dtype=np.int32))


def of_many_keys(augment, image_HWC):
  """augment(key, image) of one 8-bit image with NUM_KEYS keys."""
  image_HWC = augmentations.unit_cube(jnp.asarray(image_HWC))
  return jax.jit(jax.vmap(lambda key: augment(key, image_HWC)))(example_keys())


def cos_sin(degrees):
  return np.float32(np.cos(np.deg2rad(degrees))), np.float32(np.sin(np.deg2rad(degrees)))


# Rotation.


@pytest.mark.parametrize('shape', [(9, 9, 3), (8, 13, 3), (28, 28, 1)])
def test_rotate_interpolates_in_the_image_surrounded_by_black(shape):
  images = random_images(*shape)
  centre = (np.array(shape[:2]) - 1) / 2
  for degrees in (-163.0, -20.0, 0.5, 45.0):
    cos, sin = cos_sin(degrees)
    # SciPy maps a result's (row, column) to the image's; rows count downwards.
    matrix = np.array([[cos, sin], [-sin, cos]], np.float64)
    expected = [
      scipy.ndimage.affine_transform(
        x, matrix, centre - matrix @ centre, order=1, mode='grid-constant', cval=0.0
      )
      for x in np.moveaxis(images.astype(np.float64), -1, 0)
    ]
    result = apply(augmentations.rotate, images, cos, sin)
    # Half a level of rounding, and what coordinates of 10 bits after the point leave.
    np.testing.assert_allclose(result, np.stack(expected, -1), atol=0.8)


@pytest.mark.parametrize('interpolation', augmentations.INTERPOLATIONS)
def test_rotate_is_pillows(interpolation):
  images = random_images(31, 31, 1)
  expected = Image.fromarray(images[..., 0].astype(np.float32)).rotate(
    25, Image.Resampling[interpolation.upper()]
  )
  rotate = functools.partial(augmentations.rotate, interpolation=interpolation)
  result = apply(rotate, images, *cos_sin(25))[..., 0]
  if interpolation == 'nearest':
    np.testing.assert_allclose(result, expected, atol=1e-3)
    return
  y, x = np.indices((31, 31)) - 15
  inside = np.hypot(y, x) < 14  # Pillow does not blend an edge with black
  np.testing.assert_allclose(result[inside], np.asarray(expected)[inside], atol=0.8)


@pytest.mark.parametrize('size', [6, 7])
def test_quarter_turns_only_move_pixels(size):
  images = augmentations.unit_cube(jnp.asarray(random_images(size, size, 3)))
  for quarters in range(4):
    result = jax.jit(augmentations.rotate)(images, *cos_sin(90 * quarters))
    np.testing.assert_array_equal(result, np.rot90(images, quarters))


def test_rotation_angles_are_uniform():
  # The angle is read from the direction in which a ramp rises, around the centre.
  ramp = np.broadcast_to(np.arange(0, 256, 8, dtype=np.uint8)[None, :, None], (32, 32, 1))
  rotated = levels(of_many_keys(lambda k, x: augmentations.rotation(k, x, 30.0), ramp))
  middle = rotated[:, 8:24, 8:24, 0]
  offsets = np.arange(16) - 7.5
  along_rows = np.einsum('nij,i->n', middle, offsets)
  along_columns = np.einsum('nij,j->n', middle, offsets)
  angles = np.rad2deg(np.arctan2(-along_rows, along_columns))
  assert np.abs(angles).max() < 30.2
  assert scipy.stats.kstest(angles, 'uniform', (-30, 60)).pvalue > 1e-3


def test_vertical_flip_gives_the_image_or_its_mirror_half_of_the_time():
  images = random_images(4, 3, 2)
  result = levels(of_many_keys(augmentations.vertical_flip, images))
  where = (np.abs(result - images[::-1]) < 1e-3).all((1, 2, 3))
  np.testing.assert_allclose(
    result[~where], np.broadcast_to(images, result[~where].shape), atol=1e-3
  )
  assert scipy.stats.binomtest(int(where.sum()), NUM_KEYS).pvalue > 1e-3


# Colours.


@pytest.mark.parametrize('name', augmentations.MOVING)
def test_augmentations_that_only_move_pixels_take_bytes(name):
  images = jnp.asarray(random_images(50, 6, 8, 3))
  move = jax.vmap(lambda key, image: augmentations.find(name)(key, image, CONFIG))
  moved = move(example_keys(50), images)
  assert moved.dtype == jnp.uint8 and (moved != images).any()
  expected = move(example_keys(50), augmentations.unit_cube(images))
  np.testing.assert_array_equal(augmentations.unit_cube(moved), expected)


ENHANCERS = {
  'brightness': (augmentations.adjust_brightness, ImageEnhance.Brightness),
  'contrast': (augmentations.adjust_contrast, ImageEnhance.Contrast),
  'saturation': (augmentations.adjust_saturation, ImageEnhance.Color),
}


@pytest.mark.parametrize('name', ENHANCERS)
@pytest.mark.parametrize('num_channels', [1, 3])
def test_adjustments_are_pillows(name, num_channels):
  adjust, enhancer = ENHANCERS[name]
  images = random_images(16, 16, num_channels, seed=6) // 2 + 90  # grey means of .57 and .61
  enhancer = enhancer(Image.fromarray(images.squeeze()))
  origin = np.asarray(enhancer.degenerate, np.float64).reshape(images.shape)
  for factor in (0.0, 0.7, 1.0, 1.9):
    exact = np.clip(origin + factor * (images - origin), 0, 255)
    result = apply(adjust, images, np.float32(factor))
    np.testing.assert_allclose(result, exact, atol=ROUNDING)
    pillows = np.asarray(enhancer.enhance(factor), np.float64).reshape(images.shape)
    np.testing.assert_allclose(result, pillows, atol=1.01)  # which rounds down


def all_hues():
  """Colours of which every channel is the largest, the smallest, and equal to another."""
  values = np.array([0, 1, 60, 128, 200, 255], np.uint8)
  return np.stack(np.meshgrid(values, values, values, indexing='ij'), -1).reshape(18, 12, 3)


def test_adjust_hue_is_colorsyss():
  images = all_hues()

  def shifted(color, shift):
    hue, saturation, value = colorsys.rgb_to_hsv(*color / 255)
    return colorsys.hsv_to_rgb((hue + shift) % 1, saturation, value)

  for shift in (-0.5, -0.1, 0.0, 0.07, 0.5, 1.0):
    expected = 255 * np.apply_along_axis(shifted, -1, images, shift)
    result = apply(augmentations.adjust_hue, images, np.float32(shift))
    np.testing.assert_allclose(result, expected, atol=ROUNDING)


def test_gray_images_keep_their_colour():
  images = augmentations.unit_cube(jnp.asarray(random_images(6, 8, 1)))
  for name in ('saturation', 'hue'):
    for x in (images, jnp.repeat(images, 3, axis=-1)):
      np.testing.assert_array_equal(jax.jit(ALL[name])(keys.stream(0, 'test'), x, x), x)


def read_saturation(images):
  return np.ptp(images, axis=-1)[..., 0, 0] / 100


def read_hue(images):
  hues = np.array([colorsys.rgb_to_hsv(*x / 255)[0] for x in images[:, 0, 0]])
  return 1 + (hues + 0.5) % 1 - 0.5


# Name → an image of two pixels, and how to read 1 + the draw from the levels of the result.
DRAWS = {
  'brightness': ([[[120] * 3]] * 2, lambda x: x[:, 0, 0, 0] / 120),
  'contrast': ([[[78] * 3], [[178] * 3]], lambda x: np.ptp(x, axis=1)[:, 0, 0] / 100),
  'saturation': ([[[90, 120, 190]]] * 2, read_saturation),
  'hue': ([[[250, 10, 10]]] * 2, read_hue),
}


@functools.cache
def jitter():
  """(image, strengths (4,)) → the image jittered with NUM_KEYS keys."""
  one = lambda key, image, strengths: augmentations.color_jitter(key, image, *strengths)
  return jax.jit(jax.vmap(one, (0, None, None)))


def read_draws(name):
  image, read = DRAWS[name]
  image = augmentations.unit_cube(np.array(image, np.uint8))
  strengths = np.array([0.25 * (name == other) for other in DRAWS], np.float32)
  return read(levels(jitter()(example_keys(), image, strengths)))


def test_colour_draws_are_uniform_and_independent():
  all_draws = [read_draws(name) for name in DRAWS]
  deviation = 0.25 / np.sqrt(3)
  for draws in all_draws:
    assert 0.73 < draws.min() < 0.77 and 1.23 < draws.max() < 1.27
    assert abs(draws.mean() - 1) < 4 * deviation / np.sqrt(NUM_KEYS)
    assert abs(draws.std() / deviation - 1) < 0.04
  assert np.abs(np.corrcoef(all_draws) - np.eye(4)).max() < 4 / np.sqrt(NUM_KEYS)


def test_color_jitter_applies_its_parts_in_order():
  key, images = keys.stream(0, 'test'), augmentations.unit_cube(jnp.asarray(random_images(8, 8, 3)))
  expected = images
  for i, name in enumerate(('brightness', 'contrast', 'saturation', 'hue')):
    expected = jax.jit(ALL[name])(jax.random.fold_in(key, i), expected, images)
  result = jax.jit(ALL['color_jitter'])(key, images, images)
  np.testing.assert_array_equal(result, expected)
  assert not (result == images).all()


# Noise and mixup.


def test_noise_replaces_whole_images_with_the_probability():
  image_HWC = random_images(3, 4, 3)
  noise = lambda key, image: augmentations.noise(key, image, 0.2)
  results, replaced = (np.asarray(x) for x in of_many_keys(noise, image_HWC))
  assert replaced.shape == (NUM_KEYS,) and replaced.dtype == bool
  assert scipy.stats.binomtest(int(replaced.sum()), NUM_KEYS, 0.2).pvalue > 1e-3
  kept = results[~replaced]
  np.testing.assert_allclose(levels(kept), np.broadcast_to(image_HWC, kept.shape), atol=1e-4)
  noise_N = results[replaced].reshape(-1)
  assert scipy.stats.kstest(noise_N, 'uniform', (-1, 2)).pvalue > 1e-3
  assert len(np.unique(noise_N)) > 0.99 * len(noise_N)  # pixels, channels and keys differ


def test_mix_is_the_weighted_mean():
  image, partner = np.random.default_rng(0).uniform(-1, 1, (2, 5, 6, 3)).astype(np.float32)
  for coefficient in (0.0, 0.3, 1.0):
    expected = coefficient * image.astype(np.float64) + (1 - coefficient) * partner
    result = augmentations.mix(image, partner, np.float32(coefficient))
    np.testing.assert_allclose(result, expected, atol=4e-7)


def test_mixup_coefficients_are_uniform_and_one_per_image():
  white = np.full((2, 2, 3), 255)
  mixed = of_many_keys(lambda k, x: augmentations.mixup(k, x, -x), white)
  coefficients = levels(mixed) / 255
  assert (np.ptp(coefficients, axis=(1, 2, 3)) == 0).all()
  assert scipy.stats.kstest(coefficients[:, 0, 0, 0], 'uniform').pvalue > 1e-3


# Purity. Bitwise, since a stored prediction belongs to one view of one example.


def make_batch():
  """Keys, images that are mostly on no grid of levels, and partners for mixup."""
  images, partners = np.random.default_rng(1).uniform(-1, 1, (2, 7, 6, 8, 3)).astype(np.float32)
  images[0] = augmentations.unit_cube(jnp.asarray(random_images(6, 8, 3)))
  return example_keys(len(images)), images, partners


@pytest.mark.parametrize('name', ALL)
def test_an_image_gets_the_same_bits_in_and_out_of_jit(name):
  """And alone and in any batch, as test_views.py checks of all of them together."""
  batch, function = make_batch(), jax.vmap(ALL[name])
  compiled = jax.jit(function)
  found = np.asarray(compiled(*batch))
  assert not (found == batch[1]).all((1, 2, 3)).all()
  np.testing.assert_array_equal(function(*batch), found)
  if name in augmentations.FUNCTIONS:  # an 8-bit image stays one
    images = augmentations.unit_cube(jnp.asarray(random_images(7, 6, 8, 3)))
    grid = augmentations.unit_cube(jnp.arange(256, dtype=jnp.uint8))
    assert np.isin(compiled(batch[0], images, images), grid).all()
