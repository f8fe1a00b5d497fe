"""Estimates with 95 % intervals: the jackknife, and values compared with a null distribution.

`kdjax.intervals` has the bootstrap and the intervals of means. Axes: B part of the data, such as a batch or a
probe, K draw of a null, X any other axes.
"""

import math
from collections.abc import Callable, Sequence

import numpy as np
import scipy.stats

from kdjax import intervals

MIN_PARTS = 3  # a jackknife needs a variance of the remaining parts
NUM_PERMUTATIONS = 16  # random permutations of a teacher's units


def named(name: str, value_low_high: Sequence[np.ndarray]) -> dict[str, np.ndarray]:
  """A value and the ends of its interval as `name`, `name/low` and `name/high`."""
  ends = (f'{name}{end}' for end in intervals.ENDS)
  return {key: np.asarray(x) for key, x in zip(ends, value_low_high, strict=True)}


def leave_one_out(
  statistic: Callable[[np.ndarray], np.ndarray], count: int
) -> tuple[np.ndarray, np.ndarray]:
  """A statistic of `count` parts, and its values without each part, along a new first axis.

  Args:
    statistic: maps the indices of the parts to use to values_X.

  Raises:
    ValueError: there are fewer than three parts.
  """
  if count < MIN_PARTS:
    raise ValueError(f'{count} batches or probes: a jackknife needs {MIN_PARTS} or more')
  everything = np.arange(count)
  return statistic(everything), np.stack([statistic(np.delete(everything, i)) for i in everything])


def jackknife_error(without_BX: np.ndarray) -> np.ndarray:
  """The jackknife standard error of a statistic (Efron & Tibshirani 1993, ch. 11).

  It is √((n − 1)/n Σ_i (value without part i − their mean)²), with n − 1 degrees of freedom.
  """
  return np.sqrt((len(without_BX) - 1) * without_BX.var(axis=0))


def jackknife(value_X: np.ndarray, without_BX: np.ndarray) -> np.ndarray:
  """The value and its 95 % interval by Student's t: (value, low, high) along a new first axis."""
  quantile = scipy.stats.t.ppf(1 - intervals.TAIL, len(without_BX) - 1)
  half_X = quantile * jackknife_error(without_BX)
  return np.stack([value_X, value_X - half_X, value_X + half_X])


def excess(
  values_X: np.ndarray,
  nulls_KX: np.ndarray,
  errors_X: np.ndarray | float = 0.0,
  freedom_of_errors: float = math.inf,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """A value minus the mean of its null, with a 95 % interval.

  Weights are not random directions: unrelated networks of one recipe share norms, means and layers. Nulls of
  distances and cosines to a teacher are therefore networks, not 1/√P: the teacher with randomly permuted
  units, other teachers of the same recipe, and the origin, from which training moves away as weight norms grow.

  The interval excludes 0 if the value is unlikely to be one more draw of the null. Its half width is
  t √(s² (1 + 1/K) + error²), with s the standard deviation of the draws and t the quantile of Student's
  distribution. For a single draw s is unknown and the interval is NaN.

  Args:
    nulls_KX: draws of the null; an array of the values' own shape is a fixed reference, as the origin is.
    errors_X: standard errors of the difference from other causes, such as the noise of batches.
    freedom_of_errors: the degrees of freedom of `errors_X`; the smaller of the two numbers is used.

  Returns: (value, low, high), each of the shape of the values.
  """
  values_X, nulls_KX = np.asarray(values_X, np.float64), np.asarray(nulls_KX, np.float64)
  is_drawn = nulls_KX.ndim > values_X.ndim
  means_X = nulls_KX.mean(axis=0) if is_drawn else nulls_KX
  freedom, variance_X = freedom_of_errors, np.square(errors_X) * np.ones_like(values_X)
  if is_drawn:
    count = len(nulls_KX)
    freedom = min(freedom, count - 1)
    spread_X = nulls_KX.var(axis=0, ddof=1) if count > 1 else np.full_like(values_X, np.nan)
    variance_X = variance_X + spread_X * (1 + 1 / count)
  quantile = scipy.stats.t.ppf(1 - intervals.TAIL, freedom) if freedom > 0 else np.nan
  half_X = quantile * np.sqrt(variance_X)
  found_X = values_X - means_X
  return found_X, found_X - half_X, found_X + half_X
