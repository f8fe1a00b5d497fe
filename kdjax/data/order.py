"""The order of examples: batches of indices, and class-balanced subsets.

Axes: N example, B batch.
"""

import functools
from collections.abc import Callable, Iterator

import numpy as np

from kdjax import keys

PERMUTATIONS_KEPT = 4  # of a seed; a batch no larger than the split reaches into two epochs
SEEDS_KEPT = 16  # members that train in parallel have one each, and take turns


def training_batch(
  seed: int, num_examples: int, batch_size: int, step: int
) -> tuple[np.ndarray, np.ndarray]:
  """The indices_B and epochs_B of one step, int32.

  The order is one stream: a fresh permutation of all examples for each epoch, one after the other, cut
  into batches. So a batch may reach into the next epoch, every batch is full, and every example comes
  exactly once an epoch.
  """
  epochs_B, offsets_B = divmod(np.arange(step * batch_size, (step + 1) * batch_size), num_examples)
  indices_B = look_up(_permutations(seed, num_examples), epochs_B, offsets_B)
  return indices_B, epochs_B.astype(np.int32)


def look_up(
  table: Callable[[int], np.ndarray], keys_B: np.ndarray, indices_B: np.ndarray
) -> np.ndarray:
  """table(key)[index] of each example of a batch. Most batches have one key; each is asked for once."""
  needed = np.unique(keys_B).tolist()
  if len(needed) == 1:
    return table(needed[0])[indices_B]
  tables = {key: table(key) for key in needed}
  values = np.empty((*indices_B.shape, *tables[needed[0]].shape[1:]), tables[needed[0]].dtype)
  for key in needed:
    values[keys_B == key] = tables[key][indices_B[keys_B == key]]
  return values


def training_batches(
  seed: int, num_examples: int, batch_size: int, num_steps: int, start: int = 0
) -> Iterator[dict[str, np.ndarray]]:
  """The batches of steps start, start + 1, ..., num_steps − 1.

  Yields: 'indices' and 'epochs' of `training_batch`.
  """
  for step in range(start, num_steps):
    indices, epochs = training_batch(seed, num_examples, batch_size, step)
    yield {'indices': indices, 'epochs': epochs}


@functools.lru_cache(SEEDS_KEPT)
def _permutations(seed: int, num_examples: int) -> Callable[[int], np.ndarray]:
  """The order of all examples, by epoch. A large one takes longer to draw than a batch to train."""

  @functools.lru_cache(PERMUTATIONS_KEPT)
  def permutation(epoch: int) -> np.ndarray:
    return keys.numpy_rng(seed, 'order', epoch).permutation(num_examples).astype(np.int32)

  return permutation


def balanced_order(labels_N: np.ndarray, seed: int = 0) -> np.ndarray:
  """A random order in which the first n hold each class equally often, as far as they last."""
  shuffled = keys.numpy_rng(seed, 'subset').permutation(len(labels_N))
  rank_N = np.empty(len(labels_N), int)  # how many of its own class come before
  for label in np.unique(labels_N):
    of_label = np.flatnonzero(labels_N[shuffled] == label)
    rank_N[of_label] = np.arange(len(of_label))
  return shuffled[np.argsort(rank_N, kind='stable')]
