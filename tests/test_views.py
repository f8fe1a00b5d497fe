"""Views: each augmentation against NumPy, and that a view is a function of its example alone."""

import functools

import jax
import numpy as np
import pytest
import scipy.stats
from ml_collections import ConfigDict

from kdjax import views

PADDING = 2
NUM_OFFSETS = 2 * PADDING + 1
CONFIG = ConfigDict({'crop_padding': PADDING})
# Every pixel has a value of its own, so that a crop tells where it was cut.
POSITIONS_HWC = np.arange(48, dtype=np.uint8).reshape(6, 8, 1)
NUM_EXAMPLES = 2500
# Of the first four crops and the first eight flips, with seed 0 and view 0.
GOLDEN_OFFSETS = [[1, 4], [0, 1], [4, 2], [1, 3]]
GOLDEN_FLIPS = [True, False, False, True, False, True, False, True]


@functools.cache
def compiled_view(names):
  return jax.jit(views.make_view(names, CONFIG))


def view_positions(names, seed=0, view=0):
  """One view of many examples that all show POSITIONS_HWC."""
  images = np.broadcast_to(POSITIONS_HWC, (NUM_EXAMPLES, *POSITIONS_HWC.shape))
  indices = np.arange(NUM_EXAMPLES, dtype=np.int32)
  return np.asarray(compiled_view(names)(seed, images, indices, np.full_like(indices, view)))


def make_batch():
  images = np.random.default_rng(0).integers(0, 256, (6, 6, 8, 3), dtype=np.uint8)
  indices = np.array([5, 17, 2, 40_000, 9, 5], np.int32)
  view_numbers = np.array([0, 3, 1, 299, 0, 1], np.int32)
  return images, indices, view_numbers


def in_unit_cube(images):
  return (images.astype(np.float64) / 127.5 - 1).astype(np.float32)


def offsets_of(crops_NHWC):
  """(top, left) of crops of POSITIONS_HWC, read from a pixel that no crop can lose."""
  values = np.round((crops_NHWC[:, PADDING, PADDING, 0] + 1) * 127.5).astype(int)
  return np.stack(np.divmod(values, POSITIONS_HWC.shape[1]), axis=-1)


def cropped(images_NHWC, offsets_N2):
  border = (PADDING, PADDING)
  padded = np.pad(images_NHWC, ((0, 0), border, border, (0, 0)), constant_values=-1)
  height, width = images_NHWC.shape[1:3]
  cuts = zip(padded, offsets_N2, strict=True)
  return np.stack([x[top : top + height, left : left + width] for x, (top, left) in cuts])


def is_flipped(images_NHWC):
  return images_NHWC[:, 0, 0, 0] > images_NHWC[:, 0, -1, 0]


def flipped(images_NHWC, where_N):
  return np.where(where_N[:, None, None, None], images_NHWC[:, :, ::-1], images_NHWC)


ALL_POSITIONS = np.repeat(in_unit_cube(POSITIONS_HWC)[None], NUM_EXAMPLES, axis=0)


@pytest.mark.parametrize('apply', [views.unit_cube, jax.jit(views.unit_cube)], ids=['eager', 'jit'])
def test_unit_cube(apply):
  scaled = np.asarray(apply(np.arange(256, dtype=np.uint8)))
  assert scaled.dtype == np.float32
  assert scaled[0] == -1 and scaled[255] == 1
  np.testing.assert_allclose(scaled, np.linspace(-1, 1, 256), atol=1e-7)


def test_no_names_give_the_clean_image():
  batch = make_batch()
  np.testing.assert_allclose(compiled_view(())(0, *batch), in_unit_cube(batch[0]), atol=2e-7)


def test_flip_gives_the_image_or_its_mirror_half_of_the_time():
  result = view_positions(('flip',))
  where = is_flipped(result)
  np.testing.assert_allclose(result, flipped(ALL_POSITIONS, where), atol=2e-7)
  assert scipy.stats.binomtest(int(where.sum()), NUM_EXAMPLES).pvalue > 1e-3


def test_crop_is_a_slice_of_the_image_padded_with_black():
  result = view_positions(('crop',))
  np.testing.assert_allclose(result, cropped(ALL_POSITIONS, offsets_of(result)), atol=2e-7)


def test_crop_offsets_are_uniform():
  top, left = offsets_of(view_positions(('crop',))).T
  assert top.max() < NUM_OFFSETS and left.max() < NUM_OFFSETS
  counts = np.bincount(top * NUM_OFFSETS + left, minlength=NUM_OFFSETS**2)
  assert scipy.stats.chisquare(counts).pvalue > 1e-3


def test_draws_golden():
  offsets = offsets_of(view_positions(('crop',))[:4]).tolist()
  where = is_flipped(view_positions(('flip',))[:8]).tolist()
  assert (offsets, where) == (GOLDEN_OFFSETS, GOLDEN_FLIPS), (
    'Views are not what they were. That is legitimate only together with a higher '
    'config.ARTEFACT_VERSION, since stored predictions belong to the old ones.'
  )


def test_crop_without_padding_is_the_image():
  batch = make_batch()
  view = views.make_view(('crop',), ConfigDict({'crop_padding': 0}))
  np.testing.assert_allclose(jax.jit(view)(0, *batch), in_unit_cube(batch[0]), atol=2e-7)


@pytest.mark.parametrize('names', [('crop', 'flip'), ('flip', 'crop')])
def test_names_apply_in_order_and_leave_the_draws_of_one_another_alone(names):
  where = is_flipped(view_positions(('flip',)))
  offsets = offsets_of(view_positions(('crop',)))
  expected = ALL_POSITIONS
  for name in names:
    expected = flipped(expected, where) if name == 'flip' else cropped(expected, offsets)
  np.testing.assert_allclose(view_positions(names), expected, atol=2e-7)


@pytest.mark.parametrize(('name', 'chance'), [('crop', NUM_OFFSETS**-2), ('flip', 1 / 2)])
@pytest.mark.parametrize('changed', [{'seed': 1}, {'view': 1}], ids=['seed', 'view'])
def test_draws_differ_between_seeds_and_views(name, chance, changed):
  first, other = view_positions((name,)), view_positions((name,), **changed)
  num_same = int((first == other).all((1, 2, 3)).sum())
  assert scipy.stats.binomtest(num_same, NUM_EXAMPLES, chance).pvalue > 1e-3


def test_channels_move_together():
  images, indices, view_numbers = make_batch()
  gray = np.repeat(images[..., :1], 3, axis=-1)
  result = np.asarray(compiled_view(('crop', 'flip'))(0, gray, indices, view_numbers))
  np.testing.assert_array_equal(result, result[..., :1].repeat(3, axis=-1))


# Purity. Bitwise, since a stored prediction belongs to one view of one example.


def test_a_view_is_the_same_alone_in_a_batch_and_in_any_order():
  batch, view = make_batch(), compiled_view(('crop', 'flip'))
  expected = np.asarray(view(0, *batch))
  order = np.array([3, 0, 5, 1, 4, 2])
  np.testing.assert_array_equal(view(0, *(x[order] for x in batch)), expected[order])
  for i in range(len(expected)):
    alone = view(0, *(x[i : i + 1] for x in batch))
    np.testing.assert_array_equal(alone, expected[i : i + 1])


def test_a_view_does_not_depend_on_the_other_examples():
  batch, view = make_batch(), compiled_view(('crop', 'flip'))
  others = [np.concatenate([x[:1], x[1:] + x.dtype.type(1)]) for x in batch]
  expected, result = (np.asarray(view(0, *x)) for x in (batch, others))
  np.testing.assert_array_equal(result[0], expected[0])
  assert not (result[1:] == expected[1:]).all((1, 2, 3)).any()


def test_a_view_is_the_same_under_jit():
  batch, names = make_batch(), ('crop', 'flip')
  eager = views.make_view(names, CONFIG)(0, *batch)
  np.testing.assert_array_equal(compiled_view(names)(0, *batch), eager)
