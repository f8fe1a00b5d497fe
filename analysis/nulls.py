"""Null distributions for distances and cosines to a teacher.

Weights are not random directions: unrelated networks of one recipe share norms, means and layers. Nulls
are therefore networks, not 1/√P: the teacher with randomly permuted units, other teachers of the same
recipe, and the origin, from which training moves away as weight norms grow.
Axes: K draw of a null, X any other axes.
"""

import math

import numpy as np
import scipy.stats

from kdjax import intervals

NUM_PERMUTATIONS = 16  # random permutations of a teacher's units


def excess(
  values_X: np.ndarray,
  nulls_KX: np.ndarray,
  errors_X: np.ndarray | float = 0.0,
  num_errors: float = math.inf,
) -> dict[str, np.ndarray]:
  """A value minus the mean of its null, with a 95 % interval.

  The interval excludes 0 if the value is unlikely to be one more draw of the null. Its half width is
  t √(s² (1 + 1/K) + error²), with s the standard deviation of the draws and t the quantile of Student's
  distribution. For a single draw s is unknown and the interval is NaN.

  Args:
    nulls_KX: draws of the null; an array of the values' own shape is a fixed reference, as the origin is.
    errors_X: standard errors of the difference from other causes, such as the noise of batches.
    num_errors: the degrees of freedom of `errors_X`; the smaller of the two numbers is used.

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
