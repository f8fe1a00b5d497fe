"""What the 95 % intervals of all analyses have in common. Axes: R resample, N example, K seed or probe.

They are over examples (percentile bootstraps), or seeds, probes or batches. A bootstrap has no width where
all examples have one value, as those of an agreement of 100 %: up to 3/N may have been missed then.
"""

from collections.abc import Mapping

import numpy as np
import scipy.stats

LEVEL = 0.95  # of confidence
TAIL = (1 - LEVEL) / 2  # on either side
NUM_RESAMPLES = 1000  # of a bootstrap
ENDS = ('', '/low', '/high')  # of the names of a value and its interval


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
