"""Inputs of a model: a split, the view that is taken of it, and the seed that decides the view.

The order of the examples, their views and their partners in mixtures follow from seeds and numbers alone. So
the content of batch k follows from k, and streamed images are gathered ahead of time by threads or processes.
Examples and partners are gathered on the host; the view mixes and augments them on the device.
Axes: N example, B batch, K batches, X the axes of one input, P pixel.
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
from kdjax.data import streaming
from kdjax.data.views import View
from kdjax.runtime import hosts
from kdjax.train import devices, steps

RECORDED = 4096  # examples whose draws are in a record
SHOWN = 8  # labelled examples whose images are in a record, and as many unlabelled ones
PIXELS = 64  # values of each image in a record
# The number of levels, of 256, by which equal views may differ. Another order of floating-point operations
# can move a mixture to the next level, and a later augmentation can double the difference.
ROUNDING = 2
# Permutations that stay in memory for each seed. A batch that is no larger than the split needs two of them.
PERMUTATIONS_KEPT = 4
SEEDS_KEPT = 16  # members that train in parallel have a seed each

# Maps the number of a batch to its examples and their views, (indices_B, views_B).
Schedule = Callable[[int], tuple[np.ndarray, np.ndarray]]


@dataclasses.dataclass(frozen=True)
class Inputs:
  """The pure function view(index, v) → input over one split, as batches for the devices."""

  split: data.Split
  view: View  # runs inside the step
  seed: int
  num_views: int | None = None  # epoch e sees view e mod num_views; None: a fresh view each epoch
  has_partners: bool = False  # whether the view is a mixture with another example

  def training(
    self, order_seed: int, batch_size: int, num_steps: int, start: int
  ) -> Iterator[steps.Batch]:
    """Batches for steps start, start + 1, ..., num_steps − 1 (see `training_batch`)."""
    schedule = partial(_in_epochs, order_seed, len(self.split), batch_size, self.num_views)
    return self._batches(schedule, range(start, num_steps), batch_size)

  def evaluation(
    self, indices_N: np.ndarray, view: int, batch_size: int
  ) -> Iterator[tuple[steps.Batch, int]]:
    """One view of the given examples in order, and how many of each batch count.

    The last batch is filled up with its first example.
    """
    indices_KB, counts = pad(indices_N.astype(np.int32), batch_size)
    schedule = partial(_in_order, indices_KB, view)
    batches = self._batches(schedule, range(len(counts)), batch_size)
    return zip(batches, counts, strict=True)

  def batch(self, indices_B: np.ndarray, views_B: np.ndarray) -> steps.Batch:
    """The arrays of a batch, or of some of its rows, on the host."""
    return self._with_images(self._numbers(indices_B, views_B))

  def record(self, view: int) -> dict[str, str]:
    """Data that distinguish one view from every other, in less than 3 kB (see `is_same_view`).

    Returns:
      'draws': a digest of integers of up to 4,096 examples, which are the same on every machine: labels, which
        show the examples that noise replaces, partners, and for texts some tokens.
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
    """This host's share of the batches of a schedule, split over its devices."""
    rows = hosts.share(batch_size)
    gather = partial(_gather, dataclasses.replace(self, view=None), schedule)  # can be pickled
    if self.split.is_streamed:
      num_workers = self.split.inputs_N.num_workers
      batches = streaming.batches(gather, numbers, range(batch_size)[rows], num_workers)
    else:
      batches = (gather(number, rows) for number in numbers)
    return map(devices.shard, batches)

  def _numbers(self, indices_B: np.ndarray, views_B: np.ndarray) -> steps.Batch:
    """A batch without its images."""
    batch = {'labels': self.split.labels_N[indices_B], 'indices': indices_B, 'views': views_B}
    if self.has_partners:
      partners_B = look_up(partial(_partners, self.seed, len(self.split)), views_B, indices_B)
      alone = dataclasses.replace(self, has_partners=False)
      batch['partners'] = alone._numbers(partners_B, views_B)
    return batch

  def _with_images(self, numbers: steps.Batch, blank: bool = False) -> steps.Batch:
    """The batch that `_numbers` describes; with `blank`, images of zeros that take no memory."""
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
  """The compiled view with only its inputs (output 0) or only its labels (1)."""
  return jax.jit(lambda seed, batch: view(seed, batch)[output])


def is_same_view(one: dict[str, str], other: dict[str, str] | None) -> bool:
  """Whether two records (`Inputs.record`) are of the same view, up to the rounding of processors."""
  if other is None:
    return False
  levels, others = (np.frombuffer(bytes.fromhex(x['levels']), np.uint8) for x in (one, other))
  same_draws = one['draws'] == other['draws'] and len(levels) == len(others)
  return same_draws and np.abs(levels.astype(int) - others).max(initial=0) <= ROUNDING


def training_batch(
  seed: int, num_examples: int, batch_size: int, step: int
) -> tuple[np.ndarray, np.ndarray]:
  """The indices_B and epochs_B of one step, int32.

  The order is one stream of fresh permutations of all examples, one for each epoch, cut into batches. A batch
  may reach into the next epoch. Every batch is full, and every example comes exactly once an epoch.
  """
  epochs_B, offsets_B = divmod(np.arange(step * batch_size, (step + 1) * batch_size), num_examples)
  indices_B = look_up(_permutations(seed, num_examples), epochs_B, offsets_B)
  return indices_B, epochs_B.astype(np.int32)


@functools.lru_cache(SEEDS_KEPT)
def _permutations(seed: int, num_examples: int) -> Callable[[int], np.ndarray]:
  """The order of all examples, by epoch. A large one takes longer to draw than a batch to train."""

  @functools.lru_cache(PERMUTATIONS_KEPT)
  def permutation(epoch: int) -> np.ndarray:
    return keys.numpy_rng(seed, 'order', epoch).permutation(num_examples).astype(np.int32)

  return permutation


@functools.lru_cache(PERMUTATIONS_KEPT)
def _partners(seed: int, num_examples: int, view: int) -> np.ndarray:
  """The index of the partner of each example. Each example is a partner once."""
  rng = keys.numpy_rng(seed, 'view/partners', view)
  return rng.permutation(num_examples).astype(np.int32)


def look_up(
  table: Callable[[int], np.ndarray], keys_B: np.ndarray, indices_B: np.ndarray
) -> np.ndarray:
  """table(key)[index] of each example of a batch. `table` is called once for each key."""
  needed = np.unique(keys_B).tolist()
  if len(needed) == 1:  # most batches
    return table(needed[0])[indices_B]
  tables = {key: table(key) for key in needed}
  values = np.empty((*indices_B.shape, *tables[needed[0]].shape[1:]), tables[needed[0]].dtype)
  for key in needed:
    values[keys_B == key] = tables[key][indices_B[keys_B == key]]
  return values


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
  """The schedule of a training."""
  indices_B, epochs_B = training_batch(order_seed, num_examples, batch_size, step)
  return indices_B, epochs_B if num_views is None else epochs_B % num_views


def _in_order(indices_KB: np.ndarray, view: int, number: int) -> tuple[np.ndarray, np.ndarray]:
  """The schedule of an evaluation."""
  return indices_KB[number], np.full_like(indices_KB[number], view)


def _gather(inputs: Inputs, schedule: Schedule, number: int, rows: slice) -> steps.Batch:
  """Some rows of a batch of a schedule."""
  indices_B, views_B = schedule(number)
  return inputs.batch(indices_B[rows], views_B[rows])
