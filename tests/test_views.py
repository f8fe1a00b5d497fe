"""Views: flips and crops against NumPy, the order of names, labels, purity, mixtures and extra examples.

test_augmentations.py tests the other augmentations.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from viewed import (
  CONFIG,
  NUM_OFFSETS,
  PADDING,
  batch_of,
  compiled_view,
  differs,
  in_unit_cube,
  inputs_of,
  labels_of,
  make_batch,
  taken,
)

from kdjax import keys
from kdjax.data import augmentations, views

# Every pixel has a value of its own, so that a crop tells where it was cut.
POSITIONS_HWC = np.arange(48, dtype=np.uint8).reshape(6, 8, 1)
NUM_EXAMPLES = 2500


def view_positions(names, seed=0, view=0):
  """One view of many examples that all show POSITIONS_HWC."""
  images = np.broadcast_to(POSITIONS_HWC, (NUM_EXAMPLES, *POSITIONS_HWC.shape))
  return inputs_of(names, batch_of(images, view), seed)


def offsets_of(crops_NHWC):
  """(top, left) of crops of POSITIONS_HWC, read from a pixel that no crop can lose."""
  values = np.round((crops_NHWC[:, PADDING, PADDING, 0] + 1) * 127.5).astype(int)
  return np.stack(np.divmod(values, POSITIONS_HWC.shape[1]), axis=-1)


def cropped(inputs_N, offsets_N2):
  border = (PADDING, PADDING)
  padded = np.pad(inputs_N, ((0, 0), border, border, (0, 0)), constant_values=-1)
  height, width = inputs_N.shape[1:3]
  cuts = zip(padded, offsets_N2, strict=True)
  return np.stack([x[top : top + height, left : left + width] for x, (top, left) in cuts])


def is_flipped(inputs_N):
  return inputs_N[:, 0, 0, 0] > inputs_N[:, 0, -1, 0]


def flipped(inputs_N, where_N):
  return np.where(where_N[:, None, None, None], inputs_N[:, :, ::-1], inputs_N)


ALL_POSITIONS = np.repeat(in_unit_cube(POSITIONS_HWC)[None], NUM_EXAMPLES, axis=0)


def test_no_names_give_the_clean_image_in_the_unit_cube():
  for apply in (augmentations.unit_cube, jax.jit(augmentations.unit_cube)):
    scaled = np.asarray(apply(np.arange(256, dtype=np.uint8)))
    assert scaled.dtype == np.float32
    assert scaled[0] == -1 and scaled[255] == 1
    np.testing.assert_allclose(scaled, np.linspace(-1, 1, 256), atol=1e-7)
  batch = make_batch()
  np.testing.assert_allclose(inputs_of((), batch), in_unit_cube(batch['inputs']), atol=2e-7)


def test_flip_gives_the_image_or_its_mirror_half_of_the_time():
  result = view_positions(('flip',))
  where = is_flipped(result)
  np.testing.assert_allclose(result, flipped(ALL_POSITIONS, where), atol=2e-7)
  assert scipy.stats.binomtest(int(where.sum()), NUM_EXAMPLES).pvalue > 1e-3


def test_crop_is_a_uniform_slice_of_the_image_padded_with_black():
  result = view_positions(('crop',))
  offsets = offsets_of(result)
  np.testing.assert_allclose(result, cropped(ALL_POSITIONS, offsets), atol=2e-7)
  assert offsets.max() < NUM_OFFSETS
  counts = np.bincount(offsets @ [NUM_OFFSETS, 1], minlength=NUM_OFFSETS**2)
  assert scipy.stats.chisquare(counts).pvalue > 1e-3


@pytest.mark.parametrize('names', [('crop', 'flip'), ('flip', 'crop')])
def test_names_apply_in_order_and_leave_the_draws_of_one_another_alone(names):
  where = is_flipped(view_positions(('flip',)))
  offsets = offsets_of(view_positions(('crop',)))
  expected = ALL_POSITIONS
  for name in names:
    expected = flipped(expected, where) if name == 'flip' else cropped(expected, offsets)
  np.testing.assert_allclose(view_positions(names), expected, atol=2e-7)


@pytest.mark.parametrize(('name', 'chance'), [('crop', NUM_OFFSETS**-2), ('flip', 1 / 2)])
def test_draws_differ_between_seeds_and_views(name, chance):
  first = view_positions((name,))
  for changed in ({'seed': 1}, {'view': 1}):
    num_same = int((first == view_positions((name,), **changed)).all((1, 2, 3)).sum())
    assert scipy.stats.binomtest(num_same, NUM_EXAMPLES, chance).pvalue > 1e-3


def test_channels_move_together():
  batch = make_batch()
  batch['inputs'] = np.repeat(batch['inputs'][..., :1], 3, axis=-1)
  result = inputs_of(('crop', 'flip'), batch)
  np.testing.assert_array_equal(result, result[..., :1].repeat(3, axis=-1))


@pytest.mark.parametrize('names', [('crop', 'hue'), ('noise', 'crop')])
def test_every_name_draws_from_its_own_stream_at_view_and_index(names):
  batch = make_batch()

  def expected(image, index, view):
    for name in names:
      key = keys.stream(7, f'view/{name}', view, index)
      if name == 'noise':
        image, _ = augmentations.noise(key, image, CONFIG.noise_probability)
      else:
        image = augmentations.find(name)(key, image, CONFIG)
    return image

  images = augmentations.unit_cube(batch['inputs'])
  examples = zip(images, batch['indices'], batch['views'], strict=True)
  of_each = np.stack([jax.jit(expected)(*example) for example in examples])
  np.testing.assert_array_equal(inputs_of(names, batch, seed=7), of_each)


# Labels.


def test_noise_takes_the_label_exactly_where_it_replaces_the_image():
  images = np.random.default_rng(0).integers(0, 256, (1000, 2, 3, 1), dtype=np.uint8)
  batch = batch_of(images)
  replaced = differs(inputs_of(('noise',), batch), in_unit_cube(images))
  assert scipy.stats.binomtest(int(replaced.sum()), 1000, CONFIG.noise_probability).pvalue > 1e-3
  expected = np.where(replaced, -1, batch['labels'])
  np.testing.assert_array_equal(labels_of(('noise',), batch), expected)
  np.testing.assert_array_equal(labels_of(('flip', 'noise', 'crop'), batch), expected)
  unlabelled = batch | {'labels': np.full_like(expected, -1)}
  np.testing.assert_array_equal(labels_of(('noise',), unlabelled), unlabelled['labels'])


def test_tokens_pass_through():
  batch = make_batch() | {'inputs': np.arange(30, dtype=np.int32).reshape(6, 5)}
  for num_augmented in (None, 10):
    tokens, labels = compiled_view((), num_augmented)(0, batch)
    np.testing.assert_array_equal(tokens, batch['inputs'])
    np.testing.assert_array_equal(labels, batch['labels'])
    assert tokens.dtype == np.int32


class Spy(dict):
  """A config section that knows which of its fields were read."""

  def __init__(self, fields):
    super().__init__(fields)
    self.read = set()

  def __getitem__(self, field):
    self.read.add(field)
    return super().__getitem__(field)

  __getattr__ = __getitem__
  __hash__ = object.__hash__


@pytest.mark.parametrize('names', [(), *((name,) for name in views.NAMES), ('crop', 'noise')])
def test_the_fields_are_those_that_the_view_reads(names):
  """Fingerprints rely on it: what is not among them changes no stored prediction."""
  spy = Spy(CONFIG.to_dict())
  if names in ((), ('mixup',), ('crop', 'noise')):
    jax.eval_shape(views._make_view(names, spy, None, ()), 0, make_batch())
  else:  # takes less to trace
    image, number = jnp.zeros((4, 4, 3)), jnp.int32(0)
    one = partial(views.augmented, *names, spy)
    jax.eval_shape(one, number, image, number, number, number)
  assert views.fields(names, CONFIG) == {field: CONFIG[field] for field in spy.read}


# Purity. Bitwise, since a stored prediction belongs to one view of one example.

MOVING = ('flip', 'vertical_flip', 'crop', 'rotation')
COLOURS = ('brightness', 'contrast', 'saturation', 'hue', 'color_jitter')
assert {*MOVING, *COLOURS, *views.UNLABELLED} == set(views.NAMES)


def assert_equal(view, expected):
  jax.tree.map(np.testing.assert_array_equal, view, expected)


@pytest.mark.parametrize(
  ('names', 'num_augmented'),
  [
    (MOVING, None),
    (COLOURS, None),
    (('mixup', 'noise'), None),
    (('flip', 'mixup', 'saturation', 'noise'), 10),
  ],
)
def test_a_view_depends_on_the_example_alone(names, num_augmented):
  """It is the same alone, in a batch, in any order and beside any others."""
  batch, view = make_batch(), compiled_view(names, num_augmented)
  inputs, labels = (np.asarray(x) for x in view(0, batch))
  order = np.array([3, 0, 5, 1, 4, 2])
  assert_equal(view(0, taken(batch, order)), (inputs[order], labels[order]))
  for i in range(len(inputs)):
    alone = slice(i, i + 1)
    assert_equal(view(0, taken(batch, alone)), (inputs[alone], labels[alone]))
  others = jax.tree.map(lambda x: np.concatenate([x[:1], x[1:] + x.dtype.type(1)]), batch)
  other_inputs, other_labels = view(0, others)
  assert_equal((other_inputs[0], other_labels[0]), (inputs[0], labels[0]))
  assert not (other_inputs[1:] == inputs[1:]).all((1, 2, 3)).any()
  assert labels.dtype == np.int32
  if not {*names} & {*views.UNLABELLED}:
    np.testing.assert_array_equal(labels, batch['labels'])


def test_a_view_is_the_same_under_jit():
  names, batch = ('mixup', 'noise'), make_batch()
  assert_equal(compiled_view(names)(0, batch), views.make_view(names, CONFIG)(0, batch))


# Mixup. Augmentations named before it apply to both images, and those named after it to the mixture.


def coefficients_of(mixed_NHWC, first_NHWC, second_NHWC):
  """λ of mixed = λ · first + (1 − λ) · second, for each example, and what is left over."""
  along, change = (first_NHWC - second_NHWC), (mixed_NHWC - second_NHWC)
  coefficients = (along * change).sum((1, 2, 3)) / (along**2).sum((1, 2, 3))
  return coefficients, np.abs(change - coefficients[:, None, None, None] * along).max()


@pytest.mark.parametrize('before', [(), ('flip', 'crop')])
def test_mixup_mixes_two_views_each_with_the_draws_of_its_own_index(before):
  batch = make_batch()
  first, second = inputs_of(before, batch), inputs_of(before, batch['partners'])
  mixed = inputs_of((*before, 'mixup'), batch)
  coefficients, rest = coefficients_of(mixed, first, second)
  assert rest < 1e-6
  assert (coefficients > 0).all() and (coefficients < 1).all()
  assert np.ptp(coefficients) > 0.2


def test_the_coefficient_of_a_mixture_is_that_of_its_own_index_and_view():
  images = np.random.default_rng(0).integers(0, 256, (500, 2, 2, 1), dtype=np.uint8)
  batch = batch_of(images)
  images = in_unit_cube(images)
  coefficients, _ = coefficients_of(inputs_of(('mixup',), batch), images, np.roll(images, 1, 0))
  assert scipy.stats.kstest(coefficients, 'uniform').pvalue > 1e-3
  partners = {'inputs': images_like(batch), 'indices': batch['indices'] + 1000}
  other = batch | {'partners': batch['partners'] | partners}
  again, rest = coefficients_of(
    inputs_of(('mixup',), other), images, in_unit_cube(images_like(batch))
  )
  np.testing.assert_allclose(again, coefficients, atol=1e-5)
  assert rest < 1e-6


def images_like(batch):
  return np.random.default_rng(1).integers(0, 256, batch['inputs'].shape, dtype=np.uint8)


def test_names_after_mixup_apply_to_the_mixture():
  images = np.random.default_rng(0).integers(0, 256, (64, 6, 8, 1), dtype=np.uint8)
  batch = batch_of(images)
  mirrored = differs(inputs_of(('vertical_flip',), batch), in_unit_cube(images))
  assert 0 < mirrored.sum() < 64
  mixed = inputs_of(('flip', 'mixup'), batch)
  expected = np.where(mirrored[:, None, None, None], mixed[:, ::-1], mixed)
  np.testing.assert_array_equal(inputs_of(('flip', 'mixup', 'vertical_flip'), batch), expected)


@pytest.mark.parametrize('names', [('mixup',), ('noise', 'mixup'), ('mixup', 'noise')])
def test_a_mixture_has_no_label(names):
  batch = make_batch()
  np.testing.assert_array_equal(labels_of(names, batch), [-1] * 6)


# Extra examples, those of index 10 and above, that are not augmented.


@pytest.mark.parametrize('names', [('flip', 'crop'), ('noise',)], ids='+'.join)
def test_examples_from_an_index_on_stay_as_they_are(names):
  batch = make_batch()
  inputs, labels = compiled_view(names, 10)(0, batch)
  augmented = batch['indices'] < 10
  assert 0 < augmented.sum() < 6
  everywhere = augmented[:, None, None, None]
  clean, all_augmented = inputs_of((), batch), inputs_of(names, batch)
  np.testing.assert_array_equal(inputs, np.where(everywhere, all_augmented, clean))
  expected = np.where(augmented, labels_of(names, batch), batch['labels'])
  np.testing.assert_array_equal(labels, expected)


def test_an_extra_partner_is_mixed_in_as_it_is():
  batch = make_batch()
  mixed, _ = compiled_view(('flip', 'crop', 'mixup'), 10)(0, batch)
  first, second = (compiled_view(('flip', 'crop'), 10)(0, b)[0] for b in (batch, batch['partners']))
  augmented = batch['indices'] < 10
  pairs = (np.asarray(x)[augmented] for x in (mixed, first, second))
  coefficients, rest = coefficients_of(*pairs)
  assert rest < 1e-6 and (coefficients < 1).all()
  assert (batch['partners']['indices'][augmented] >= 10).any()
  np.testing.assert_array_equal(np.asarray(mixed)[~augmented], inputs_of((), batch)[~augmented])
