"""Views that treat examples differently: mixtures of two, and extra examples that are not augmented."""

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
