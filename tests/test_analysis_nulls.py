"""Values against their nulls: known differences, and how often a draw of the null is taken for more."""

import math

import numpy as np
import pytest

from analysis import nulls
from kdjax import intervals


def test_the_excess_has_the_interval_of_one_more_draw():
  found = nulls.excess(5.0, [1.0, 2.0, 3.0])
  half = 4.302653 * math.sqrt(1 + 1 / 3)  # Student's t with 2 degrees of freedom; s is 1
  np.testing.assert_allclose(
    [found[end] for end in intervals.ENDS], [3, 3 - half, 3 + half], rtol=1e-6
  )
  found = nulls.excess(5.0, [1.0, 2.0, 3.0], errors_X=2.0, num_errors=7)
  half = 4.302653 * math.sqrt(4 / 3 + 4)
  np.testing.assert_allclose(found['/high'] - found[''], half, rtol=1e-6)


def test_a_null_that_is_not_drawn_has_no_spread():
  found = nulls.excess(np.array([5.0, 1.0]), np.array([4.0, 4.0]))
  for end in intervals.ENDS:
    np.testing.assert_array_equal(found[end], [1, -3])
  found = nulls.excess(np.array([5.0]), np.array([4.0]), errors_X=0.5, num_errors=9)
  np.testing.assert_allclose(found['/low'], 1 - 0.5 * 2.262157, rtol=1e-6)


def test_nothing_can_be_told_from_one_draw():
  found = nulls.excess(np.array([5.0]), np.array([[1.0]]))
  assert found[''] == 4
  assert intervals.verdict(found['/low'], found['/high']) == intervals.UNDECIDED


@pytest.mark.parametrize('count', [2, 5, 16])
def test_a_draw_of_the_null_is_taken_for_more_in_one_of_twenty_cases(count):
  draws = np.random.default_rng(0).normal(7, 3, size=(count + 1, 4000))
  found = nulls.excess(draws[0], draws[1:])
  outside = (found['/low'] > 0) | (found['/high'] < 0)
  assert outside.mean() == pytest.approx(0.05, abs=0.012)
