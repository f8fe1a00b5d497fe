"""Inputs of a model: a split, the view that is taken of it, and the seed that decides the view.

The partner of an example in a mixture follows from (view, index) alone, by a table over all examples for
each view. Partners are gathered here, with the examples; the view mixes on the device. Streamed images
are gathered ahead of time by threads or processes, since the content of batch k follows from k.
Axes: N example, B batch.
"""

import dataclasses
import functools
import hashlib
from collections.abc import Callable, Iterator
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from kdjax import data, keys
from kdjax.data import order, streaming
from kdjax.data.views import View
from kdjax.runtime import hosts
from kdjax.train import devices, steps

RECORDED = 4096  # examples whose draws are in a record
SHOWN = 8  # labelled examples whose images are in a record, and as many unlabelled ones
PIXELS = 64  # values of each image in a record
# Levels of 256 by which views may differ. Another order of floating-point operations can move a mixture to
# the next level, and a later augmentation can double that.
ROUNDING = 2

# The examples of a batch, and their views: its number → indices_B, views_B.
Schedule = Callable[[int], tuple[np.ndarray, np.ndarray]]


@dataclasses.dataclass(frozen=True)
class Inputs:
  """The pure function view(index, v) → input over one split, as batches for the devices."""

  split: data.Split
  view: View  # runs inside the step
  seed: int
  num_views: int | None = None  # epoch e sees view e mod num_views; None: a fresh view each epoch
  has_partners: bool = False  # whether the view is a mixture with another example

  def batch(self, indices_B: np.ndarray, views_B: np.ndarray) -> steps.Batch:
    """Gathers this host's share of the examples for a step, split over its devices."""
    rows = hosts.share(len(indices_B))
    indices_B, views_B = indices_B[rows], views_B[rows]
    return devices.shard(self._gather(indices_B, views_B))

  def training(
    self, order_seed: int, batch_size: int, num_steps: int, start: int
  ) -> Iterator[steps.Batch]:
    """Batches for steps start, start + 1, ..., num_steps − 1 (see `data.training_batch`)."""
    schedule = partial(_in_epochs, order_seed, len(self.split), batch_size, self.num_views)
    return self._batches(schedule, range(start, num_steps), batch_size)

  def evaluation(
    self, indices_N: np.ndarray, view: int, batch_size: int
  ) -> Iterator[tuple[steps.Batch, int]]:
    """One view of the given examples in order, and how many of each batch count.

    The last batch is filled up with its first example.
    """
    padded, counts = pad(indices_N.astype(np.int32), batch_size)
    schedule = partial(_in_order, padded, view)
    batches = self._batches(schedule, range(len(counts)), batch_size)
    return zip(batches, counts, strict=True)

  def record(self, view: int) -> dict[str, str]:
    """Data that distinguish one view from every other, in less than 3 kB (see `is_same_view`).

    Returns:
      'draws': a digest of integers of up to 4,096 examples, which are the same on every machine: the
        labels, which tell the examples that are replaced by noise, and the partners. Texts add some tokens.
      'levels': 64 values of each of 16 images in 8 bits, as hexadecimal digits. Eight of the images are of
        examples without a label in the view, if there are any.
    """
    rng = keys.numpy_rng(0, 'record')
    indices_B = rng.permutation(len(self.split))[:RECORDED].astype(np.int32)
    numbers = self._numbers(indices_B, np.full_like(indices_B, view))
    blank = self._with_images(numbers, blank=True)
    labels_B = np.asarray(_compiled(self.view, output=1)(self.seed, blank))
    sha = hashlib.sha256(labels_B.tobytes())
    for array_B in jax.tree.leaves(numbers):
      sha.update(array_B.tobytes())
    unlabelled_first = np.argsort(labels_B >= 0, kind='stable')
    shown = np.concatenate([unlabelled_first[:SHOWN], unlabelled_first[-SHOWN:]])
    batch = self._with_images(jax.tree.map(lambda x: x[shown], numbers))
    inputs_BX = np.asarray(_compiled(self.view, output=0)(self.seed, batch))
    inputs_BP = inputs_BX.reshape(len(shown), -1)
    inputs_BP = inputs_BP[:, rng.permutation(inputs_BP.shape[1])[:PIXELS]]
    levels = b''
    if jnp.issubdtype(inputs_BP.dtype, jnp.integer):
      sha.update(inputs_BP.tobytes())
    else:
      levels = np.clip(np.round((inputs_BP + 1) * 127.5), 0, 255).astype(np.uint8).tobytes()
    return {'draws': sha.hexdigest(), 'levels': levels.hex()}

  def _batches(self, schedule: Schedule, numbers: range, batch_size: int) -> Iterator[steps.Batch]:
    """The batches that a schedule has for these numbers."""
    if not self.split.is_streamed:
      return (self.batch(*schedule(number)) for number in numbers)
    gather = partial(_gather_rows, dataclasses.replace(self, view=None), schedule)
    rows = range(batch_size)[hosts.share(batch_size)]
    num_workers = self.split.inputs_N.num_workers
    return map(devices.shard, streaming.batches(gather, numbers, rows, num_workers))

  def _gather(self, indices_B: np.ndarray, views_B: np.ndarray) -> steps.Batch:
    """A batch, or some rows of it: each follows from its index and view alone."""
    return self._with_images(self._numbers(indices_B, views_B))

  def _numbers(self, indices_B: np.ndarray, views_B: np.ndarray) -> steps.Batch:
    """A batch without its images."""
    batch = {'labels': self.split.labels_N[indices_B], 'indices': indices_B, 'views': views_B}
    if self.has_partners:
      partners_B = order.look_up(partial(_partners, self.seed, len(self.split)), views_B, indices_B)
      alone = dataclasses.replace(self, has_partners=False)
      batch['partners'] = alone._numbers(partners_B, views_B)
    return batch

  def _with_images(self, numbers: steps.Batch, blank: bool = False) -> steps.Batch:
    """The batch that `_numbers` stands for; with `blank`, of zeros that take no memory."""
    source, indices_B = self.split.inputs_N, numbers['indices']
    if blank:
      images = np.broadcast_to(np.zeros((), source.dtype), (len(indices_B), *source.shape[1:]))
    else:
      images = source[indices_B]
    batch = numbers | {'inputs': images}
    if 'partners' in numbers:
      batch['partners'] = self._with_images(numbers['partners'], blank)
    return batch


@functools.lru_cache(8)
def _compiled(view: View, output: int) -> Callable[[int, steps.Batch], jax.Array]:
  """The compiled view with only its inputs (output 0) or labels (1), so that nothing else is computed."""
  return jax.jit(lambda seed, batch: view(seed, batch)[output])


def is_same_view(one: dict[str, str], other: dict[str, str] | None) -> bool:
  """Whether two records (`Inputs.record`) are of the same view, up to the rounding of processors."""
  if other is None:
    return False
  levels, others = (np.frombuffer(bytes.fromhex(x['levels']), np.uint8) for x in (one, other))
  same_draws = one['draws'] == other['draws'] and len(levels) == len(others)
  return same_draws and np.abs(levels.astype(int) - others).max(initial=0) <= ROUNDING


def pad(indices_N: np.ndarray, batch_size: int) -> tuple[np.ndarray, list[int]]:
  """indices_KB of the K batches that take N examples in order, and how many of each batch count.

  The last batch is filled up with its first example.
  """
  counts = [min(batch_size, len(indices_N) - i) for i in range(0, len(indices_N), batch_size)]
  fill = np.repeat(indices_N[-counts[-1] :][:1], batch_size - counts[-1])
  return np.concatenate([indices_N, fill]).reshape(-1, batch_size), counts


def _in_epochs(
  order_seed: int, num_examples: int, batch_size: int, num_views: int | None, step: int
) -> tuple[np.ndarray, np.ndarray]:
  indices_B, epochs_B = data.training_batch(order_seed, num_examples, batch_size, step)
  return indices_B, epochs_B if num_views is None else epochs_B % num_views


def _in_order(indices_KB: np.ndarray, view: int, number: int) -> tuple[np.ndarray, np.ndarray]:
  return indices_KB[number], np.full_like(indices_KB[number], view)


def _gather_rows(inputs: Inputs, schedule: Schedule, number: int, rows: slice) -> steps.Batch:
  indices_B, views_B = schedule(number)
  return inputs._gather(indices_B[rows], views_B[rows])


TABLES_KEPT = 4  # a batch reaches into two epochs at most, if it is no larger than the split


@functools.lru_cache(TABLES_KEPT)
def _partners(seed: int, num_examples: int, view: int) -> np.ndarray:
  """The index of the partner of each example. Each example is a partner once."""
  rng = keys.numpy_rng(seed, 'view/partners', view)
  return rng.permutation(num_examples).astype(np.int32)
