"""Views that more than one image goes into: mixtures, and examples that others take the place of."""

import numpy as np
import pytest
import scipy.stats
from viewed import batch_of, compiled_view, differs, in_unit_cube, inputs_of, labels_of, make_batch

# Mixup: what comes before it is done to both images, and what comes after it to the mixture.


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


# Replaced examples.


def replaced_in(batch, probability, names=(), seed=0):
  """Inputs, labels, and which examples were replaced in a view of none but that."""
  inputs, labels = compiled_view(names, probability)(seed, batch)
  plain, _ = compiled_view((), probability)(seed, batch)
  return np.asarray(inputs), np.asarray(labels), differs(plain, in_unit_cube(batch['inputs']))


def two_images(num_examples, view=0):
  """All examples are one image, and all that may take their places another."""
  first, second = np.random.default_rng(0).integers(0, 256, (2, 1, 2, 3, 1), dtype=np.uint8)
  shape = (num_examples, 2, 3, 1)
  return batch_of(np.broadcast_to(first, shape), view) | {'others': np.broadcast_to(second, shape)}


@pytest.mark.parametrize('probability', [0.2, 1.0])
def test_others_take_the_place_of_examples_and_leave_no_label(probability):
  batch = two_images(5000)
  inputs, labels, replaced = replaced_in(batch, probability)
  assert scipy.stats.binomtest(int(replaced.sum()), 5000, probability).pvalue > 1e-3
  chosen = np.where(replaced[:, None, None, None], batch['others'], batch['inputs'])
  np.testing.assert_array_equal(inputs, inputs_of((), batch | {'inputs': chosen}))
  np.testing.assert_array_equal(labels, np.where(replaced, -1, batch['labels']))
  assert inputs.dtype == np.float32 and labels.dtype == np.int32


@pytest.mark.parametrize('changed', [{'seed': 1}, {'view': 1}], ids=['seed', 'view'])
def test_who_is_replaced_is_drawn_anew_for_every_seed_and_view(changed):
  def found(seed=0, view=0):
    return replaced_in(two_images(5000, view), 0.5, seed=seed)[2]

  differ = found() != found(**changed)
  assert scipy.stats.binomtest(int(differ.sum()), 5000, 0.5).pvalue > 1e-3


def test_names_apply_to_whatever_has_taken_the_place():
  batch = make_batch()
  inputs, labels, replaced = replaced_in(batch, 0.5, ('flip', 'crop', 'contrast'))
  assert 0 < replaced.sum() < 6
  chosen = np.where(replaced[:, None, None, None], batch['others'], batch['inputs'])
  expected = inputs_of(('flip', 'crop', 'contrast'), batch | {'inputs': chosen})
  np.testing.assert_array_equal(inputs, expected)
  np.testing.assert_array_equal(labels, np.where(replaced, -1, batch['labels']))


def test_a_partner_is_replaced_by_the_draw_of_its_own_index():
  batch = make_batch()
  first, second = (compiled_view(('flip',), 0.5)(0, b)[0] for b in (batch, batch['partners']))
  mixed, labels, _ = replaced_in(batch, 0.5, ('flip', 'mixup'))
  _, rest = coefficients_of(mixed, np.asarray(first), np.asarray(second))
  assert rest < 1e-6
  _, _, replaced = replaced_in(batch['partners'], 0.5)
  assert 0 < replaced.sum() < 6
  np.testing.assert_array_equal(labels, [-1] * 6)


def test_tokens_are_replaced_too():
  batch = make_batch()
  rng = np.random.default_rng(0)
  tokens = {name: rng.integers(0, 99, (6, 4), dtype=np.int32) for name in ('inputs', 'others')}
  found, labels = compiled_view((), 0.5)(0, batch | tokens)
  replaced = replaced_in(batch, 0.5)[2]
  np.testing.assert_array_equal(
    found, np.where(replaced[:, None], tokens['others'], tokens['inputs'])
  )
  np.testing.assert_array_equal(labels, np.where(replaced, -1, batch['labels']))
