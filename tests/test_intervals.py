"""Intervals against SciPy, textbooks and the coverage that they promise; the verdict rule."""

import math

import numpy as np
import pytest
import scipy.stats

from kdjax import intervals


def test_a_verdict_needs_the_whole_interval_on_one_side():
  for low, high, reference, expected in (
    (0.01, 0.2, 0.0, intervals.HIGHER),
    (-0.2, -0.01, 0.0, intervals.LOWER),
    (-0.0125, 0.0018, 0.0, intervals.UNDECIDED),
    (0.0, 0.1, 0.0, intervals.UNDECIDED),  # an interval that touches the reference decides nothing
    (-0.1, 0.0, 0.0, intervals.UNDECIDED),
    (0.87, 2.63, 2.0, intervals.UNDECIDED),
    (2.1, 2.63, 2.0, intervals.HIGHER),
    (math.nan, math.nan, 0.0, intervals.UNDECIDED),
  ):
    assert intervals.verdict(low, high, reference) == expected, (low, high, reference)


# Student's t.


def test_the_interval_of_a_mean_is_students():
  """The textbook's: the mean of 1, 2, 3 is 2 ± 4.303 · 1 / √3."""
  mean, low, high = intervals.of_mean(np.array([1.0, 2.0, 3.0]))
  np.testing.assert_allclose([mean, low, high], [2, 2 - 2.4841, 2 + 2.4841], atol=1e-4)


def test_the_paired_interval_is_that_of_scipy():
  first, noise = np.random.default_rng(0).normal(size=(2, 7))
  second = first + 0.1 * noise - 0.5
  expected = scipy.stats.ttest_rel(first, second).confidence_interval()
  found = intervals.paired(first, second)
  assert (found.low, found.high) == pytest.approx(expected, rel=1e-9)
  assert found.mean == pytest.approx((first - second).mean())
  assert found.verdict == intervals.HIGHER
  apart = scipy.stats.ttest_ind(first, second).confidence_interval()
  assert apart.low < 0 < apart.high  # not resolved without the pairs


def test_pairs_without_a_spread_have_no_interval():
  for first, second in (([3.0], [1.0]), ([0.3 + 2, 0.1 + 2], [0.3, 0.1])):
    found = intervals.paired(first, second)
    assert found.mean == pytest.approx(2) and math.isnan(found.low)
    assert found.verdict == intervals.UNDECIDED


# The bootstrap.


def interval(values, num_resamples=2000, seed=0, **options):
  return intervals.bootstrap_interval(values, num_resamples, np.random.default_rng(seed), **options)


def test_bootstrap_of_a_fraction_is_the_normal_approximation():
  num_examples = 2500
  error = np.sqrt(0.8 * 0.2 / num_examples)
  for level, z in ((0.95, 1.9600), (0.5, 0.6745)):
    low, high = interval(np.arange(num_examples) < 2000, level=level)
    assert low == pytest.approx(0.8 - z * error, abs=0.15 * error)
    assert high == pytest.approx(0.8 + z * error, abs=0.15 * error)


def test_bootstrap_is_that_of_scipy():
  values = np.random.default_rng(1).exponential(size=25)  # skewed: the interval is lopsided
  expected = scipy.stats.bootstrap(
    (values,), np.mean, n_resamples=20_000, method='percentile', random_state=1
  ).confidence_interval
  lengths = np.subtract([values.mean(), expected.high], [expected.low, values.mean()])
  assert lengths[1] > 1.1 * lengths[0]
  assert interval(values, 20_000) == pytest.approx(expected, abs=0.05 * lengths.sum() / 2)


def test_bootstrap_covers_the_true_mean_as_often_as_its_level_says():
  rng = np.random.default_rng(2)
  num_trials = 500
  hits = 0
  for i in range(num_trials):
    low, high = interval(rng.normal(3.0, 2.0, size=50), 200, seed=i, level=0.9)
    hits += low <= 3.0 <= high
  # 0.9 but for 50 examples and 200 resamples: a bit less. The standard error is 0.013.
  assert 0.85 < hits / num_trials < 0.93


def test_bootstrap_of_equal_values_has_no_width_and_of_none_is_none():
  assert interval(np.full(5, 0.25, np.float32)) == (0.25, 0.25)
  assert interval(np.array([7.0])) == (7.0, 7.0)
  assert interval(np.zeros(0)) is None


def test_bootstrap_repeats_with_the_generator_and_whatever_the_blocks(monkeypatch):
  values = np.random.default_rng(3).normal(size=100)
  whole = interval(values, 50)
  assert whole == interval(values, 50) != interval(values, 50, seed=1)
  monkeypatch.setattr(intervals, 'MAX_ENTRIES', 700)  # seven resamples at a time
  assert interval(values, 50) == pytest.approx(whole, rel=1e-12)


def test_a_resample_draws_every_example_equally_often_with_replacement():
  counts_RN = intervals.resamples(50, np.random.default_rng(4), 2000)
  assert counts_RN.shape == (2000, 50)
  np.testing.assert_array_equal(counts_RN.sum(axis=1), 50)
  # A count is binomial: mean 1, variance 1 − 1/50.
  np.testing.assert_allclose(counts_RN.mean(axis=0), 1, atol=5 / np.sqrt(2000))
  assert counts_RN.var() == pytest.approx(1 - 1 / 50, rel=0.02)
