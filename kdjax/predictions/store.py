"""The prediction store: log-probabilities of every (split, member, view, example).

One TensorStore array (zarr3) for each split, with axes (member, view, example, class), cut into
chunks of one member, one view and a block of examples; each chunk is compressed and carries a
checksum. A chunk is written whole or not at all, and missing chunks read as NaN. So members and views
can be added at any time and in any order, and a killed run resumes.

Axes of arrays: M member, N example, C class.
"""

import contextlib
import hashlib
from collections.abc import Iterator, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
import tensorstore as ts
from etils import epath
from scipy.special import log_softmax

from kdjax.errors import DamageError, StorageError
from kdjax.runtime import files

DTYPES = {
  'float16': np.dtype(np.float16),
  'bfloat16': np.dtype(jnp.bfloat16),
  'float32': np.dtype(np.float32),
}
CHUNK_BYTES = 2**20
BLOCK_VALUES = 2**19  # values of a member that are converted or combined at once; bounds the memory
AXES = ('member', 'view', 'example', 'class')


class PredictionStore:
  """Reads and writes the predictions in `folder`."""

  def __init__(self, folder: epath.Path):
    self.folder = folder
    self._arrays: dict[str, ts.TensorStore] = {}

  @property
  def meta(self) -> dict[str, Any]:
    """meta.json, or {} before the first predictions are complete."""
    path = self.folder / 'meta.json'
    return files.read_json(path) if path.exists() else {}

  def write_meta(self, meta: dict[str, Any]) -> None:
    files.write_json(self.folder / 'meta.json', meta)

  def reserve(self, split: str, shape: tuple[int, int, int, int], dtype: str) -> None:
    """Makes room for at least (members, views, examples, classes). Stored values stay.

    Raises:
      DamageError: the array has another number of examples or classes.
      StorageError: it cannot be written.
    """
    _, _, num_examples, num_classes = shape
    block = max(1, min(num_examples, CHUNK_BYTES // (num_classes * DTYPES[dtype].itemsize)))
    codecs = [
      {'name': 'bytes', 'configuration': {'endian': 'little'}},
      {'name': 'zstd', 'configuration': {'level': 3}},
      {'name': 'crc32c'},
    ]
    metadata = {
      'data_type': dtype,
      'dimension_names': AXES,
      'fill_value': 'NaN',
      'chunk_grid': {
        'name': 'regular',
        'configuration': {'chunk_shape': (1, 1, block, num_classes)},
      },
      'codecs': codecs,
    }
    spec = self._spec(split)
    if not (self.folder / 'logits' / split / 'zarr.json').exists():
      with self._writing(split):
        array = ts.open(spec | {'metadata': metadata | {'shape': shape}}, create=True).result()
    else:
      self.check(split, *shape[2:])
      array = self._open(split)
      room = [max(size, wanted) for size, wanted in zip(array.shape, shape, strict=True)]
      with self._writing(split):
        array = array.resize(exclusive_max=room, expand_only=True).result()
    self._arrays[split] = array

  def check(self, split: str, num_examples: int, num_classes: int) -> None:
    """Raises DamageError unless the array of a split has that size."""
    size = tuple(self._open(split).shape[2:])
    if size != (num_examples, num_classes):
      raise DamageError(
        f'{self._where(split)} has {size[0]} examples and {size[1]} classes instead of {num_examples} '
        f'and {num_classes}. {self._mend_metadata(split)}'
      )

  def write(
    self, split: str, member: int, view: int, logits_NC: np.ndarray, are_log_probs: bool = False
  ) -> None:
    """Stores one member's log-probabilities of one view of every example.

    Args:
      are_log_probs: whether the values are log-probabilities, which are stored as they are.

    Raises:
      StorageError: they cannot be written.
    """
    array = self._open(split)
    for block in _blocks(array):
      log_probs_NC = logits_NC[block].astype(np.float64)
      if not are_log_probs:
        log_probs_NC = log_softmax(log_probs_NC, axis=-1)
      with self._writing(split):
        array[member, view, block].write(log_probs_NC.astype(array.dtype.numpy_dtype)).result()

  def has(self, split: str, member: int, view: int) -> bool:
    """Whether the predictions of all examples are stored."""
    array = self._open(split)
    blocks = (self._stored(split, member, view, block) for block in _blocks(array))
    return not any(np.isnan(values.astype(np.float32)).any() for values in blocks)

  def digest(self, split: str, member: int, view: int) -> str:
    """SHA-256 of one member's stored values of one view, a block of examples at a time.

    Raises:
      DamageError: a chunk has changed since it was written.
    """
    sha = hashlib.sha256()
    for block in _blocks(self._open(split)):
      values = self._stored(split, member, view, block)
      sha.update(np.ascontiguousarray(values).view(np.uint8))
    return sha.hexdigest()

  def read(
    self, split: str, members: Sequence[int], view: int, examples: slice = slice(None)
  ) -> np.ndarray:
    """log_probs_MNC in float32 of one view of every example, or of some, for the given members.

    Raises:
      DamageError: a chunk is missing, or has changed since it was written.
    """
    num_examples, num_classes = self._open(split).shape[2:]
    shape = (len(members), len(range(num_examples)[examples]), num_classes)
    log_probs_MNC = np.empty(shape, np.float32)
    for i, member in enumerate(members):
      log_probs_MNC[i] = self._stored(split, member, view, examples)
      if np.isnan(log_probs_MNC[i]).any():
        raise DamageError(
          f'{self._where(split)} lacks predictions of view {view} by member {member}. '
          f'{self.mend(split, member, view)}'
        )
    return log_probs_MNC

  def read_ensemble(self, split: str, num_members: int, view: int) -> np.ndarray:
    """log_probs_NC of the ensemble of the first members, as `losses.ensemble_log_probs` defines it.

    It is computed on the host, so that reading the next view does not wait for steps on the devices, and in
    blocks of examples, to save memory.
    """
    array = self._open(split)
    log_probs_NC = np.empty(array.shape[2:], np.float32)
    for block in _blocks(array):
      log_probs_NC[block] = _combined(self.read(split, range(num_members), view, block))
    return log_probs_NC

  def mend(self, split: str, member: int, view: int) -> str:
    """Advice for an error: what to do when one member's predictions of one view are damaged."""
    chunks = self.folder / 'logits' / split / 'c' / str(member) / str(view)
    return (
      f'Delete {chunks} and {self.folder / "meta.json"}, and run with --stages=predictions: the teacher '
      'predicts what is missing again.'
    )

  def _mend_metadata(self, split: str) -> str:
    metadata = self.folder / 'logits' / split / 'zarr.json'
    return (
      f'Delete {metadata} and {self.folder / "meta.json"}, and run with --stages=predictions: they are '
      'written again, and the predictions stay.'
    )

  @contextlib.contextmanager
  def _writing(self, split: str) -> Iterator[None]:
    try:
      yield
    except ValueError as error:  # TensorStore raises it for a full disk, too
      raise StorageError(
        f'{self._where(split)} could not be written ({error}). Make room, or mend what else is wrong '
        'there, and run the same command: it goes on where it was.'
      ) from error

  def _where(self, split: str) -> str:
    return f'the prediction store {self.folder / "logits" / split}'

  def _stored(self, split: str, member: int, view: int, examples: slice) -> np.ndarray:
    array = self._open(split)
    try:
      values = array[member, view, examples]
    except IndexError as error:
      mend = self._mend_metadata(split)
      raise DamageError(f'{self._where(split)} lacks a view: {error}. {mend}') from error
    try:
      return values.read().result()
    except ValueError as error:  # a wrong checksum
      if files.is_refused(error):
        raise files.refusal(self.folder, error) from error
      mend = self.mend(split, member, view)
      raise DamageError(f'{self._where(split)} is damaged: {error}. {mend}') from error

  def _open(self, split: str) -> ts.TensorStore:
    if split not in self._arrays:
      try:
        self._arrays[split] = ts.open(self._spec(split), open=True).result()
      except ValueError as error:
        if files.is_refused(error):
          raise files.refusal(self.folder, error) from error
        raise DamageError(
          f'{self._where(split)} cannot be opened: {error}. {self._mend_metadata(split)}'
        ) from error
    return self._arrays[split]

  def _spec(self, split: str) -> dict[str, Any]:
    return {'driver': 'zarr3', 'kvstore': kvstore(self.folder / 'logits' / split)}


def _blocks(array: ts.TensorStore) -> Iterator[slice]:
  """Slices over all examples, each of whole chunks and of about `BLOCK_VALUES` values."""
  _, _, num_examples, num_classes = array.shape
  chunk = array.chunk_layout.read_chunk.shape[2]
  size = chunk * max(1, BLOCK_VALUES // (chunk * num_classes))
  for start in range(0, num_examples, size):
    yield slice(start, min(start + size, num_examples))


def _combined(log_probs_MNC: np.ndarray) -> np.ndarray:
  """log_probs_NC of an ensemble of members whose log-probabilities were rounded. Overwrites them."""
  # Log-probabilities are at most 0, up to rounding, so no exponential overflows.
  log_probs_MNC -= np.log(np.exp(log_probs_MNC).sum(axis=-1, keepdims=True))
  largest_NC = log_probs_MNC.max(axis=0)
  # If all members have −∞, as float16 does below −65,504, so has the ensemble.
  shift_NC = np.where(np.isneginf(largest_NC), 0, largest_NC)
  with np.errstate(divide='ignore'):
    return shift_NC + np.log(np.exp(log_probs_MNC - shift_NC).mean(axis=0))


def kvstore(path: epath.Path) -> dict[str, str]:
  """TensorStore's specification of a folder on a local disk or on gs://."""
  text = path.as_posix()
  if text.startswith('gs://'):
    bucket, _, inside = text.removeprefix('gs://').partition('/')
    return {'driver': 'gcs', 'bucket': bucket, 'path': f'{inside}/'}
  return {'driver': 'file', 'path': f'{path.absolute().as_posix()}/'}
