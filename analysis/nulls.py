"""What a distance or a cosine to a teacher would be without any relation to it.

Weights are not random directions: unrelated networks of one recipe have norms, means and layers in
common. So nulls are networks, not 1/√P: the teacher with its units permuted at random, other teachers of
the same recipe, and the origin, which training moves away from as weight norms grow. Axes: K draw of a
null, X any other axes.
"""

import math

import numpy as np
import scipy.stats

from kdjax import intervals

NUM_PERMUTATIONS = 16  # of a teacher's units, drawn at random


def excess(
  values_X: np.ndarray,
  nulls_KX: np.ndarray,
  errors_X: np.ndarray | float = 0.0,
  num_errors: float = math.inf,
) -> dict[str, np.ndarray]:
  """A value minus the mean of its null, with a 95 % interval.

  The interval asks whether the value could be one more draw of the null: its half width is
  t √(s² (1 + 1/K) + error²), with s the standard deviation of the draws and t of Student's distribution.
  With one draw nothing is known of s, and the interval is NaN. The origin is not drawn: give it without
  K, as an array of the values' own shape.

  Args:
    errors_X: standard errors of the difference that have another cause, such as the noise of batches.
    num_errors: the degrees of freedom of these; the smaller one of the two counts.

  Returns: '', '/low' and '/high', each of the shape of the values.
  """
  values_X, nulls_KX = np.asarray(values_X, np.float64), np.asarray(nulls_KX, np.float64)
  is_drawn = nulls_KX.ndim > values_X.ndim
  means_X = nulls_KX.mean(axis=0) if is_drawn else nulls_KX
  freedom, variance_X = num_errors, np.square(errors_X) * np.ones_like(values_X)
  if is_drawn:
    count = len(nulls_KX)
    freedom = min(freedom, count - 1)
    spread_X = nulls_KX.var(axis=0, ddof=1) if count > 1 else np.full_like(values_X, np.nan)
    variance_X = variance_X + spread_X * (1 + 1 / count)
  quantile = scipy.stats.t.ppf(1 - intervals.TAIL, freedom) if freedom > 0 else np.nan
  half_X = quantile * np.sqrt(variance_X)
  found_X = values_X - means_X
  return dict(zip(intervals.ENDS, (found_X, found_X - half_X, found_X + half_X), strict=True))
