"""95 % intervals, and the one rule that turns an interval into a verdict.

Evaluation, sweeps and the analysis share these. Intervals are over examples (percentile bootstraps), or
over seeds, probes or batches (Student's t). A bootstrap has no width where every example has the same
value, for example at an agreement of 100 %; up to 3/N of such examples may have been missed.
Axes: R resample, N example, K seed, probe or batch.
"""

from collections.abc import Mapping

import numpy as np
import scipy.stats

LEVEL = 0.95  # of confidence
TAIL = (1 - LEVEL) / 2  # on either side
NUM_RESAMPLES = 1000  # of a bootstrap
ENDS = ('', '/low', '/high')  # suffixes of the names of a value and the ends of its interval

HIGHER, LOWER, UNDECIDED = 'higher', 'lower', 'cannot be told'  # verdicts


def verdict(low: float, high: float, reference: float = 0.0) -> str:
  """Whether a quantity with the interval [low, high] is above or below a reference.

  Returns: HIGHER if the whole interval lies above the reference, LOWER if it lies below, and UNDECIDED if
  it holds the reference or is not known (NaN).
  """
  if low > reference:
    return HIGHER
  if high < reference:
    return LOWER
  return UNDECIDED


def resamples(num_examples: int, rng: np.random.Generator) -> np.ndarray:
  """counts_RN: how often each example is drawn in each resample; a row's sum is N."""
  uniform = np.full(num_examples, 1 / num_examples)
  return rng.multinomial(num_examples, uniform, size=NUM_RESAMPLES).astype(np.float64)


def of_mean(values_K: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """Means over the first axis and their intervals by Student's t distribution; two values or more.

  Returns: mean, low and high, each of the shape of what follows the first axis.
  """
  mean = values_K.mean(axis=0)
  half = scipy.stats.t.ppf(1 - TAIL, len(values_K) - 1) * scipy.stats.sem(values_K, axis=0)
  return mean, mean - half, mean + half


def text(
  arrays: Mapping[str, np.ndarray], key: str, place: int | tuple = (), factor: float = 1
) -> str:
  """'value [low, high]' of an entry of arrays[key], for captions."""
  value, low, high = (factor * arrays[f'{key}{end}'][place] for end in ENDS)
  if np.isnan(value):
    return 'undefined'
  return f'{value:.3g} [{low:.3g}, {high:.3g}]'
