"""Images that stay on disk and are decoded when they are indexed, or ahead of time by Grain.

The caller decides which rows a batch has; this module only fetches them. So the numbers of threads and
processes change nothing but the speed. Grain is imported when data are first streamed, since that takes time.
Axes: N example, B batch, H W C image, X the axes of an index.
"""

import contextlib
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import jax
import numpy as np
from absl import flags

from kdjax.errors import UserError

PIECE = 32  # rows that a thread or process fetches at once; a few pieces of each are under way
AHEAD = 2  # pieces that wait for the training, for each thread or process
# Smaller arrays, such as labels, go through a pipe. They must never fill it: a process that is ended while it
# waits for a full pipe leaves half a message.
MIN_SHARED_BYTES = 2**12
# Processes take seconds to start, so a short pass over the data uses threads.
MIN_ROWS_FOR_WORKERS = 8192

_STARTING = threading.Lock()

Rows = dict[str, Any]  # arrays or nested rows, by name
Read = Callable[[np.ndarray], np.ndarray]  # indices_B → images_BHWC; can be pickled


class StreamedImages:
  """images_NHWC that are read when they are indexed, and never held as a whole.

  The index is as for the first axis of an array: a number, a slice, or an array of numbers or truth values.

  Args:
    readers: the sources of the images.
    rows_N2: the reader of each image, and the image's index in its source.
    image_shape: (H, W, C) of all images.
    num_workers: the number of processes that `batches` reads with.
    dtype: of all images.
  """

  def __init__(
    self,
    readers: Sequence[Read],
    rows_N2: np.ndarray,
    image_shape: tuple[int, int, int],
    num_workers: int = 0,
    dtype: str = 'uint8',
  ):
    self._readers = tuple(readers)
    self._rows_N2 = rows_N2.astype(np.int32)
    self._image_shape = tuple(image_shape)
    self.num_workers = num_workers
    self.dtype = np.dtype(dtype)

  @property
  def shape(self) -> tuple[int, ...]:
    return (len(self), *self._image_shape)

  @property
  def ndim(self) -> int:
    return len(self.shape)

  def __len__(self) -> int:
    return len(self._rows_N2)

  def __getitem__(self, key: int | slice | np.ndarray) -> np.ndarray:
    rows_X2 = self._rows_N2[key]
    rows_B2 = rows_X2.reshape(-1, 2)
    images_BHWC = np.empty((len(rows_B2), *self._image_shape), self.dtype)
    for number, read in enumerate(self._readers):
      chosen = np.flatnonzero(rows_B2[:, 0] == number)
      if len(chosen):
        images_BHWC[chosen] = read(rows_B2[chosen, 1])
    return images_BHWC.reshape(*rows_X2.shape[:-1], *self._image_shape)

  def take(self, indices_N: np.ndarray) -> 'StreamedImages':
    """The images at the indices, in their order. It reads none."""
    rows_N2 = self._rows_N2[indices_N]
    return StreamedImages(
      self._readers, rows_N2, self._image_shape, self.num_workers, self.dtype.name
    )

  def joined(self, other: 'StreamedImages') -> 'StreamedImages':
    """These images, then the others. It reads none."""
    others_N2 = other._rows_N2 + np.array([len(self._readers), 0], np.int32)
    return StreamedImages(
      self._readers + other._readers,
      np.concatenate([self._rows_N2, others_N2]),
      self._image_shape,
      self.num_workers,
      self.dtype.name,
    )


def batches(
  gather: Callable[[int, slice], Rows], numbers: range, rows: range, num_workers: int
) -> Iterator[Rows]:
  """The batches of the given numbers, in order, fetched ahead of time.

  Args:
    gather: (number of a batch, some of its rows) → these rows of every array. It must be picklable.
    rows: the rows of each batch that are fetched.
    num_workers: the number of processes that gather. 0: threads of this process, one for each core.

  Raises:
    UserError: a process was killed.
  """
  import grain

  pieces = [slice(start, min(start + PIECE, rows.stop)) for start in rows[::PIECE]]
  dataset = grain.MapDataset.range(len(numbers) * len(pieces))
  dataset = dataset.map(partial(_piece, gather, numbers, pieces))
  if len(numbers) * len(rows) < MIN_ROWS_FOR_WORKERS:
    num_workers = 0
  threads = 1 if num_workers else os.cpu_count()
  dataset = dataset.to_iter_dataset(grain.ReadOptions(threads, AHEAD * threads))
  if num_workers:
    if not flags.FLAGS.is_parsed():  # Grain reads flags of its own; a notebook uses their defaults
      flags.FLAGS.mark_as_parsed()
    through_pipes = grain.experimental.DatasetOptions(min_shm_size=MIN_SHARED_BYTES)
    dataset = grain.experimental.WithOptionsIterDataset(dataset, through_pipes)
    options = grain.MultiprocessingOptions(num_workers, per_worker_buffer_size=AHEAD)
    dataset = dataset.mp_prefetch(options, worker_init_fn=_tie_to_parent)
  iterator, workers = iter(dataset), set()
  try:
    for i in range(len(numbers)):
      with _starting(workers) if i == 0 else contextlib.nullcontext():
        batch = _joined([_next(iterator, num_workers) for _ in pieces])
      yield batch
  finally:
    for process in workers:
      process.terminate()  # all at once; Grain would wait for each in turn
    iterator.close()


@contextlib.contextmanager
def _starting(workers: set) -> Iterator[None]:
  """Adds the processes that are started within to `workers`. One thread at a time starts processes."""
  with _STARTING:
    others = set(multiprocessing.active_children())
    try:
      yield
    finally:
      workers |= set(multiprocessing.active_children()) - others


def _piece(
  gather: Callable[[int, slice], Rows], numbers: range, pieces: Sequence[slice], index: int
) -> Rows:
  number, piece = divmod(index, len(pieces))
  return gather(numbers[number], pieces[piece])


def _joined(pieces: Sequence[Rows]) -> Rows:
  """Joins pieces in a copy, and frees their shared memory, since Grain keeps the last piece."""
  joined = jax.tree.map(lambda *of_one: np.concatenate([np.asarray(x) for x in of_one]), *pieces)
  for piece in pieces:
    piece.clear()
  return joined


def _next(iterator: Iterator[Rows], num_workers: int) -> Rows:
  try:
    return next(iterator)
  except RuntimeError as error:
    if 'terminated unexpectedly' not in str(error):
      raise
    raise UserError(
      f'dataset.num_workers = {num_workers}: a process that reads the images was killed ({error}). '
      'Often the memory is full, or /dev/shm, which passes images between processes. Set a smaller number '
      'or 0, and run the same command again: it resumes'
    ) from error


def _tie_to_parent(worker: int, num_workers: int) -> None:
  """Ends a worker when the program ends, even if it is killed. The program handles Ctrl-C."""
  del worker, num_workers
  signal.signal(signal.SIGINT, signal.SIG_IGN)
  parent = multiprocessing.parent_process()

  def wait() -> None:
    parent.join()
    os._exit(1)

  threading.Thread(target=wait, daemon=True).start()
