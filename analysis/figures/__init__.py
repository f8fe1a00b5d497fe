"""Drawing, and the words beside it: from the arrays of a part to its figure, caption and table."""

from kdjax import intervals

# Networks between which the error rises by less share a basin (Frankle et al. 2020, Section 2).
SAME_BASIN = 0.02

_ANSWERS = {intervals.LOWER: 'yes', intervals.HIGHER: 'no', intervals.UNDECIDED: 'cannot be told'}


def one_basin(low: float, high: float) -> str:
  """Whether a barrier of the test accuracy with the interval [low, high] leaves its ends in one basin.

  'yes' if the whole interval is below SAME_BASIN, 'no' if it is above, else 'cannot be told'.
  """
  return _ANSWERS[intervals.verdict(low, high, SAME_BASIN)]
