"""What a model sees: a split, the view that is taken of it, and the seed that decides the view."""

import dataclasses
from collections.abc import Iterator

import numpy as np

from kdjax import data, steps
from kdjax.views import View


@dataclasses.dataclass(frozen=True)
class Inputs:
  """The pure function view(index, v) → input over one split, as batches for the devices."""

  split: data.Split
  view: View  # runs inside the step
  seed: int
  num_views: int | None = None  # epoch e sees view e mod num_views; None: a fresh view each epoch

  def batch(self, indices_B: np.ndarray, views_B: np.ndarray) -> steps.Batch:
    """Gathers examples for a step, split over the devices."""
    return steps.shard(
      {
        'images': self.split.images_NHWC[indices_B],
        'labels': self.split.labels_N[indices_B],
        'indices': indices_B,
        'views': views_B,
      }
    )

  def training(
    self, order_seed: int, batch_size: int, num_steps: int, start: int
  ) -> Iterator[steps.Batch]:
    """Batches for steps start, start + 1, ..., num_steps − 1 (see `data.training_batches`)."""
    batches = data.training_batches(order_seed, len(self.split), batch_size, num_steps, start)
    for batch in batches:
      epochs_B = batch['epochs']
      views_B = epochs_B if self.num_views is None else epochs_B % self.num_views
      yield self.batch(batch['indices'], views_B)

  def evaluation(
    self, indices_N: np.ndarray, view: int, batch_size: int
  ) -> Iterator[tuple[steps.Batch, int]]:
    """One view of the given examples in order, and how many of each batch count.

    The last batch is filled up with its first example.
    """
    for start in range(0, len(indices_N), batch_size):
      indices = indices_N[start : start + batch_size].astype(np.int32)
      padded_B = np.pad(indices, (0, batch_size - len(indices)), constant_values=indices[0])
      yield self.batch(padded_B, np.full_like(padded_B, view)), len(indices)
