"""What a model sees: a split, the view that is taken of it, and the seed that decides the view.

Which other images an example meets in a view, as the partner of a mixture or in its own place, is
decided here, by (view, index) alone: by one table over all examples for each view. The images are
gathered on the host and go through the view on the device. Those that stay on disk are gathered ahead of
time by threads or processes: what batch k holds follows from k. Axes: N example, B batch.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterator
from functools import partial

import numpy as np

from kdjax import data, hosts, keys, steps
from kdjax.data import streaming
from kdjax.views import NO_LABEL, View

# Which examples a batch has, and in which views: its number → indices_B, views_B.
Plan = Callable[[int], tuple[np.ndarray, np.ndarray]]


@dataclasses.dataclass(frozen=True)
class Replacement:
  """Images that stand in for examples: in each view, each example with a probability."""

  inputs_K: np.ndarray | streaming.StreamedImages
  probability: float


@dataclasses.dataclass(frozen=True)
class Inputs:
  """The pure function view(index, v) → input over one split, as batches for the devices."""

  split: data.Split
  view: View  # runs inside the step
  seed: int
  num_views: int | None = None  # epoch e sees view e mod num_views; None: a fresh view each epoch
  replacement: Replacement | None = None
  has_partners: bool = False  # whether the view is a mixture with another example

  def batch(self, indices_B: np.ndarray, views_B: np.ndarray) -> steps.Batch:
    """Gathers this host's share of the examples for a step, split over its devices."""
    rows = hosts.share(len(indices_B))
    indices_B, views_B = indices_B[rows], views_B[rows]
    return steps.shard(self._gather(indices_B, views_B))

  def training(
    self, order_seed: int, batch_size: int, num_steps: int, start: int
  ) -> Iterator[steps.Batch]:
    """Batches for steps start, start + 1, ..., num_steps − 1 (see `data.training_batch`)."""
    plan = partial(_of_step, order_seed, len(self.split), batch_size, self.num_views)
    return self._batches(plan, range(start, num_steps), batch_size)

  def evaluation(
    self, indices_N: np.ndarray, view: int, batch_size: int
  ) -> Iterator[tuple[steps.Batch, int]]:
    """One view of the given examples in order, and how many of each batch count.

    The last batch is filled up with its first example.
    """
    starts = range(0, len(indices_N), batch_size)
    plan = partial(_in_order, indices_N.astype(np.int32), view, batch_size)
    batches = self._batches(plan, range(len(starts)), batch_size)
    for start, batch in zip(starts, batches, strict=True):
      yield batch, min(batch_size, len(indices_N) - start)

  def _batches(self, plan: Plan, numbers: range, batch_size: int) -> Iterator[steps.Batch]:
    """The batches that a plan has for these numbers."""
    if not self.split.is_streamed:
      return (self.batch(*plan(number)) for number in numbers)
    gather = partial(_gather_rows, dataclasses.replace(self, view=None), plan)
    rows = range(batch_size)[hosts.share(batch_size)]
    num_workers = self.split.inputs_N.num_workers
    return map(steps.shard, streaming.batches(gather, numbers, rows, num_workers))

  def _gather(self, indices_B: np.ndarray, views_B: np.ndarray) -> dict[str, np.ndarray]:
    """A batch, or some rows of it: each follows from its index and view alone."""
    inputs, labels = self._look(indices_B, views_B)
    batch = {'inputs': inputs, 'labels': labels, 'indices': indices_B, 'views': views_B}
    if self.has_partners:
      tables = partial(_partners, self.seed, len(self.split))
      batch['partner_indices'] = _look_up(tables, indices_B, views_B)
      batch['partners'], _ = self._look(batch['partner_indices'], views_B)
    return batch

  def _look(self, indices_B: np.ndarray, views_B: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Inputs and labels, with others in the place of some."""
    inputs, labels = self.split.inputs_N[indices_B], self.split.labels_N[indices_B]
    if self.replacement is not None:
      others_K, probability = self.replacement.inputs_K, self.replacement.probability
      tables = partial(_replacements, self.seed, len(self.split), len(others_K), probability)
      chosen_B = _look_up(tables, indices_B, views_B)
      replaced_B = chosen_B >= 0
      inputs[replaced_B] = others_K[chosen_B[replaced_B]]
      labels[replaced_B] = NO_LABEL
    return inputs, labels


def _of_step(
  order_seed: int, num_examples: int, batch_size: int, num_views: int | None, step: int
) -> tuple[np.ndarray, np.ndarray]:
  indices_B, epochs_B = data.training_batch(order_seed, num_examples, batch_size, step)
  return indices_B, epochs_B if num_views is None else epochs_B % num_views


def _in_order(
  indices_N: np.ndarray, view: int, batch_size: int, number: int
) -> tuple[np.ndarray, np.ndarray]:
  indices = indices_N[number * batch_size : (number + 1) * batch_size]
  padded_B = np.pad(indices, (0, batch_size - len(indices)), constant_values=indices[0])
  return padded_B, np.full_like(padded_B, view)


def _gather_rows(inputs: Inputs, plan: Plan, number: int, rows: slice) -> dict[str, np.ndarray]:
  indices_B, views_B = plan(number)
  return inputs._gather(indices_B[rows], views_B[rows])


def _look_up(
  table: Callable[[int], np.ndarray], indices_B: np.ndarray, views_B: np.ndarray
) -> np.ndarray:
  """table(v)[index] for each example."""
  found_B = np.empty_like(indices_B)
  for view in np.unique(views_B):
    of_view = views_B == view
    found_B[of_view] = table(int(view))[indices_B[of_view]]
  return found_B


TABLES_KEPT = 4  # a batch reaches into two epochs at most, if it is no larger than the split


@functools.lru_cache(TABLES_KEPT)
def _partners(seed: int, num_examples: int, view: int) -> np.ndarray:
  """For each example the one that it is mixed with; everyone is a partner once."""
  rng = keys.numpy_rng(seed, 'view/partners', view)
  return rng.permutation(num_examples).astype(np.int32)


@functools.lru_cache(TABLES_KEPT)
def _replacements(
  seed: int, num_examples: int, num_others: int, probability: float, view: int
) -> np.ndarray:
  """For each example the image that takes its place, or −1."""
  rng = keys.numpy_rng(seed, 'view/replacements', view)
  others_N = rng.integers(num_others, size=num_examples)
  return np.where(rng.random(num_examples) < probability, others_N, -1).astype(np.int32)
