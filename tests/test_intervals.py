import math

import numpy as np
import pytest

from kdjax import intervals


@pytest.mark.parametrize(
  ('low', 'high', 'reference', 'expected'),
  [
    (0.01, 0.2, 0.0, intervals.HIGHER),
    (-0.2, -0.01, 0.0, intervals.LOWER),
    (-0.0125, 0.0018, 0.0, intervals.UNDECIDED),
    (0.0, 0.1, 0.0, intervals.UNDECIDED),  # an interval that touches the reference decides nothing
    (-0.1, 0.0, 0.0, intervals.UNDECIDED),
    (0.87, 2.63, 2.0, intervals.UNDECIDED),
    (2.1, 2.63, 2.0, intervals.HIGHER),
    (math.nan, math.nan, 0.0, intervals.UNDECIDED),
  ],
)
def test_a_verdict_needs_the_whole_interval_on_one_side(low, high, reference, expected):
  assert intervals.verdict(low, high, reference) == expected


def test_the_interval_of_a_mean_is_students():
  """The textbook's: the mean of 1, 2, 3 is 2 ± 4.303 · 1 / √3."""
  mean, low, high = intervals.of_mean(np.array([1.0, 2.0, 3.0]))
  np.testing.assert_allclose([mean, low, high], [2, 2 - 2.4841, 2 + 2.4841], atol=1e-4)
