"""95 % intervals, and the one rule that turns an interval into a verdict.

Evaluation, sweeps and the analysis share them. Intervals over examples are percentile bootstraps; intervals
over trials, seeds, probes or batches use Student's t distribution. A bootstrap has no width where every
example has the same value, for example at an agreement of 100 %; the true rate of exceptions may then be up
to 3/N.
Axes: R resample, N example, K trial, seed, probe or batch.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping

import numpy as np
from scipy.special import stdtrit

LEVEL = 0.95  # the level of confidence
TAIL = (1 - LEVEL) / 2  # the probability on either side
NUM_RESAMPLES = 1000  # the default number of bootstrap resamples
ENDS = ('', '/low', '/high')  # suffixes of the names of a value and the ends of its interval
MAX_ENTRIES, MAX_ROWS = 2**24, 4096  # limits on counts_RN in memory at a time: 128 MB

HIGHER, LOWER, UNDECIDED = 'higher', 'lower', 'cannot be told'  # verdicts


def verdict(low: float, high: float, reference: float = 0.0) -> str:
  """Whether a quantity with the interval [low, high] is above or below a reference.

  Returns: HIGHER if the whole interval lies above the reference, LOWER if it lies below, and UNDECIDED if
  it contains the reference or is unknown (NaN).
  """
  if low > reference:
    return HIGHER
  if high < reference:
    return LOWER
  return UNDECIDED


@dataclasses.dataclass(frozen=True)
class Estimate:
  """A value and its interval; the ends are NaN where the interval is unknown."""

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
  """counts_RN: how often each example is drawn in each resample; each row sums to N."""
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
    statistic: maps counts_RN, as `resamples` returns them, to an array whose first axis is R. Values computed
      from the same counts are paired. It is called for blocks of resamples, which bounds the memory.
    rng: a generator, for example `keys.numpy_rng`. Equal generators give equal resamples for any blocks.

  Returns: the arrays of all blocks, joined along R.
  """
  size = max(1, min(MAX_ROWS, MAX_ENTRIES // num_examples))
  counts = [min(size, num_resamples - start) for start in range(0, num_resamples, size)]
  return np.concatenate([statistic(resamples(num_examples, rng, count)) for count in counts])


def percentiles(values_R: np.ndarray, level: float = LEVEL) -> tuple[np.ndarray, np.ndarray]:
  """The low and high ends over the first axis; NaN where the statistic of any resample is NaN."""
  tail = (1 - level) / 2
  low, high = np.quantile(values_R, [tail, 1 - tail], axis=0)
  return low, high


def bootstrap_interval(
  values_N: np.ndarray, num_resamples: int, rng: np.random.Generator, level: float = LEVEL
) -> tuple[float, float] | None:
  """The percentile bootstrap interval of the mean over examples (Efron & Tibshirani 1993, ch. 13).

  Examples are resampled, so `values_N` must have one value per example: average its views first.

  Args:
    values_N: a value for each example, for instance 'top1_agreement' of `metrics.fidelity_values`.
    num_resamples: how many times N examples are drawn with replacement.
    rng: a generator, for example `keys.numpy_rng`. Equal generators give equal intervals.
    level: the level of confidence, in (0, 1).

  Returns: (low, high), or None if there are no examples.
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
  """Means over the first axis, with intervals from Student's t distribution; K must be 2 or more.

  Returns: mean, low and high, each with the shape of `values_K` without its first axis.
  """
  count = len(values_K)
  mean = values_K.mean(axis=0)
  error = values_K.std(axis=0, ddof=1) / np.sqrt(count)
  half = stdtrit(count - 1, 1 - TAIL) * error  # scipy.stats takes a second to import
  return mean, mean - half, mean + half


def paired(first_K: np.ndarray, second_K: np.ndarray) -> Estimate:
  """The mean of `first_K − second_K` with its paired t interval.

  The interval is unknown for a single pair, and where all differences are equal up to rounding: two trials
  that happen to differ by one image each do not have zero spread.

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
