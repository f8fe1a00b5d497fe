"""Jackknife intervals and comparisons with a null distribution, against known values and coverage."""

import math

import numpy as np
import pytest
import scipy.stats

from analysis import estimates
from kdjax import intervals


def test_the_jackknife_of_a_mean_is_students_interval():
  x = np.random.default_rng(8).normal(size=9)
  parts = estimates.leave_one_out(lambda kept: x[kept].mean(), 9)
  value, low, high = estimates.jackknife(*parts)
  assert estimates.jackknife_error(parts[1]) == pytest.approx(x.std(ddof=1) / 3)
  half = scipy.stats.t.ppf(0.975, 8) * x.std(ddof=1) / 3
  np.testing.assert_allclose([value, low, high], [x.mean(), x.mean() - half, x.mean() + half])


def test_the_excess_has_the_interval_of_one_more_draw():
  found = estimates.excess(5.0, [1.0, 2.0, 3.0])
  half = 4.302653 * math.sqrt(1 + 1 / 3)  # Student's t with 2 degrees of freedom; s is 1
  np.testing.assert_allclose(found, [3, 3 - half, 3 + half], rtol=1e-6)
  value, _, high = estimates.excess(5.0, [1.0, 2.0, 3.0], errors_X=2.0, freedom_of_errors=7)
  half = 4.302653 * math.sqrt(4 / 3 + 4)
  np.testing.assert_allclose(high - value, half, rtol=1e-6)


def test_a_fixed_null_has_no_spread():
  found = estimates.excess(np.array([5.0, 1.0]), np.array([4.0, 4.0]))
  np.testing.assert_array_equal(found, [[1, -3]] * 3)
  _, low, _ = estimates.excess(np.array([5.0]), np.array([4.0]), errors_X=0.5, freedom_of_errors=9)
  np.testing.assert_allclose(low, 1 - 0.5 * 2.262157, rtol=1e-6)


def test_one_draw_decides_nothing():
  value, low, high = estimates.excess(np.array([5.0]), np.array([[1.0]]))
  assert value == 4
  assert intervals.verdict(low, high) == intervals.UNDECIDED


@pytest.mark.parametrize('count', [2, 5, 16])
def test_the_interval_of_a_draw_of_the_null_excludes_zero_in_one_of_twenty_cases(count):
  draws = np.random.default_rng(0).normal(7, 3, size=(count + 1, 4000))
  _, low, high = estimates.excess(draws[0], draws[1:])
  outside = (low > 0) | (high < 0)
  assert outside.mean() == pytest.approx(0.05, abs=0.012)
