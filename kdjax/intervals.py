"""95 % intervals, and the one rule that turns an interval into a verdict.

Evaluation, sweeps and the analysis share these. Intervals are over examples (percentile bootstraps), or
over trials, seeds, probes or batches (Student's t). A bootstrap has no width where every example has the
same value, for example at an agreement of 100 %; up to 3/N of such examples may have been missed.
Axes: R resample, N example, K trial, seed, probe or batch.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping

import numpy as np
from scipy.special import stdtrit

LEVEL = 0.95  # of confidence
TAIL = (1 - LEVEL) / 2  # on either side
NUM_RESAMPLES = 1000  # of a bootstrap
ENDS = ('', '/low', '/high')  # suffixes of the names of a value and the ends of its interval
MAX_ENTRIES, MAX_ROWS = (
  2**24,
  4096,
)  # of counts_RN at a time: 128 MB, and what is computed from each row

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


@dataclasses.dataclass(frozen=True)
class Estimate:
  """A value and its interval; the ends are NaN where the interval is not known."""

  mean: float
  low: float = math.nan
  high: float = math.nan

  @property
  def verdict(self) -> str:
    """Whether the value is above or below 0."""
    return verdict(self.low, self.high)


def resamples(
  num_examples: int, rng: np.random.Generator, num_resamples: int = NUM_RESAMPLES
) -> np.ndarray:
  """counts_RN: how often each example is drawn in each resample; a row's sum is N."""
  counts_RN = np.empty((num_resamples, num_examples))
  for counts_N in counts_RN:  # seven times as fast as one multinomial draw
    drawn_N = rng.integers(num_examples, size=num_examples)
    counts_N[:] = np.bincount(drawn_N, minlength=num_examples)
  return counts_RN


def bootstrap(
  statistic: Callable[[np.ndarray], np.ndarray],
  num_examples: int,
  num_resamples: int,
  rng: np.random.Generator,
) -> np.ndarray:
  """A statistic of every resample of the examples (Efron & Tibshirani 1993, ch. 6).

  Args:
    statistic: maps counts_RN, as `resamples` returns them, to an array whose first axis is R. Whatever is
      computed from the same counts is paired. It is called for blocks of resamples, to bound the memory.
    rng: such as `keys.numpy_rng`; equal generators give equal resamples, whatever the blocks are.

  Returns: the arrays of all blocks, joined along R.
  """
  size = max(1, min(MAX_ROWS, MAX_ENTRIES // num_examples))
  counts = [min(size, num_resamples - start) for start in range(0, num_resamples, size)]
  return np.concatenate([statistic(resamples(num_examples, rng, count)) for count in counts])


def percentiles(values_R: np.ndarray, level: float = LEVEL) -> tuple[np.ndarray, np.ndarray]:
  """Low and high ends over the first axis; NaN where the statistic of any resample is."""
  tail = (1 - level) / 2
  low, high = np.quantile(values_R, [tail, 1 - tail], axis=0)
  return low, high


def bootstrap_interval(
  values_N: np.ndarray, num_resamples: int, rng: np.random.Generator, level: float = LEVEL
) -> tuple[float, float] | None:
  """The percentile bootstrap interval of the mean over examples (Efron & Tibshirani 1993, ch. 13).

  Examples are resampled, so each must stand in `values_N` once: average the views of one image first.

  Args:
    values_N: a value for each example, such as 'top1_agreement' of `metrics.fidelity_values`.
    num_resamples: how many times N examples are drawn with replacement.
    rng: such as `keys.numpy_rng`; equal generators give equal intervals.
    level: of confidence, in (0, 1).

  Returns: (low, high), or None where there is no example.
  """
  values_N = np.asarray(values_N, np.float64)
  if len(values_N) == 0:
    return None
  means_R = bootstrap(
    lambda counts_RN: counts_RN @ values_N / len(values_N), len(values_N), num_resamples, rng
  )
  low, high = percentiles(means_R, level)
  return float(low), float(high)


def of_mean(values_K: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """Means over the first axis and their intervals by Student's t distribution; two values or more.

  Returns: mean, low and high, each of the shape of what follows the first axis.
  """
  count = len(values_K)
  mean = values_K.mean(axis=0)
  error = values_K.std(axis=0, ddof=1) / np.sqrt(count)
  half = stdtrit(count - 1, 1 - TAIL) * error  # scipy.stats takes a second to import
  return mean, mean - half, mean + half


def paired(first_K: np.ndarray, second_K: np.ndarray) -> Estimate:
  """The mean of `first_K − second_K` with its paired t interval.

  The interval is not known for a single pair, nor where all differences are equal up to rounding: the
  spread of two trials that differ by one image each is not zero.

  Args:
    first_K, second_K: values of the same K ≥ 1 trials, in the same order.
  """
  differences_K = np.asarray(first_K, np.float64) - np.asarray(second_K, np.float64)
  if np.allclose(differences_K, differences_K[0]):
    return Estimate(float(differences_K[0]))
  return Estimate(*map(float, of_mean(differences_K)))


def text(
  arrays: Mapping[str, np.ndarray], key: str, place: int | tuple = (), factor: float = 1
) -> str:
  """'value [low, high]' of an entry of arrays[key], for captions."""
  value, low, high = (factor * arrays[f'{key}{end}'][place] for end in ENDS)
  if np.isnan(value):
    return 'undefined'
  return f'{value:.3g} [{low:.3g}, {high:.3g}]'
