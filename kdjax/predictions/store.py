"""The prediction store: log-probabilities of every (split, member, view, example).

One TensorStore array (zarr3) for each split, with axes (member, view, example, class), cut into
chunks of one member, one view and a block of examples; each chunk is compressed and carries a
checksum. A chunk is written whole or not at all, and missing chunks read as NaN. So members and views
can be added at any time and in any order, and a killed run resumes. The last axis may be an encoding of
the classes (`encodings`), which is decoded when it is read.

Axes of arrays: M member, N example, C class, X compared value.
"""

import contextlib
import hashlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import tensorstore as ts
from etils import epath
from scipy.special import log_softmax

from kdjax import losses
from kdjax.errors import DamageError, StorageError
from kdjax.predictions.encodings import Dense, Encoding, from_metadata
from kdjax.runtime import files

CHUNK_BYTES = 2**20
CHUNK_VALUES = 2**21  # log-probabilities that a chunk may be decoded to
BLOCK_VALUES = 2**19  # values of a member that are converted or combined at once; bounds the memory
AXES = ('member', 'view', 'example')


class PredictionStore:
  """Reads and writes the predictions in `folder`."""

  def __init__(self, folder: epath.Path):
    self.folder = folder
    self._arrays: dict[str, tuple[ts.TensorStore, Encoding]] = {}

  @property
  def meta(self) -> dict[str, Any]:
    """meta.json, or {} before the first predictions are complete."""
    path = self.folder / 'meta.json'
    return files.read_json(path) if path.exists() else {}

  def write_meta(self, meta: dict[str, Any]) -> None:
    files.write_json(self.folder / 'meta.json', meta)

  def reserve(
    self, split: str, shape: tuple[int, int, int, int], stored_as: str | Encoding
  ) -> None:
    """Makes room for at least (members, views, examples, classes). Stored values are kept.

    Args:
      stored_as: an encoding, or the name of a dtype for `Dense`.

    Raises:
      DamageError: the array has another number of examples or another encoding.
      StorageError: the array cannot be written.
    """
    *shape, num_classes = shape
    encoding = Dense(stored_as, num_classes) if isinstance(stored_as, str) else stored_as
    shape.append(encoding.width)
    block = min(shape[2], CHUNK_BYTES // encoding.num_bytes, CHUNK_VALUES // num_classes)
    codecs = [
      {'name': 'bytes', 'configuration': {'endian': 'little'}},
      {'name': 'zstd', 'configuration': {'level': 3}},
      {'name': 'crc32c'},
    ]
    metadata = {
      'data_type': encoding.data_type,
      'dimension_names': (*AXES, encoding.axis),
      'fill_value': encoding.fill_value,
      'chunk_grid': {
        'name': 'regular',
        'configuration': {'chunk_shape': (1, 1, max(1, block), encoding.width)},
      },
      'codecs': codecs,
      **({'attributes': encoding.attributes} if encoding.attributes else {}),
    }
    spec = self._spec(split)
    if not (self.folder / 'logits' / split / 'zarr.json').exists():
      with self._writing(split):
        array = ts.open(spec | {'metadata': metadata | {'shape': shape}}, create=True).result()
    else:
      self.check(split, shape[2], encoding)
      array, _ = self._open(split)
      room = [max(size, wanted) for size, wanted in zip(array.shape, shape, strict=True)]
      with self._writing(split):
        array = array.resize(exclusive_max=room, expand_only=True).result()
    self._arrays[split] = array, encoding

  def encoding(self, split: str) -> Encoding:
    """The encoding of a split's predictions; raises DamageError if there are none."""
    return self._open(split)[1]

  def check(self, split: str, num_examples: int, encoding: Encoding) -> None:
    """Raises DamageError unless the array of a split has that size and encoding."""
    array, found = self._open(split)
    if (array.shape[2], found) != (num_examples, encoding):
      text = '{} examples and {} classes as {}'.format
      raise DamageError(
        f'{self._where(split)} has {text(array.shape[2], found.num_classes, found)} instead of '
        f'{text(num_examples, encoding.num_classes, encoding)}. {self._mend_metadata(split)}'
      )

  def write(
    self, split: str, member: int, view: int, logits_NC: np.ndarray, are_log_probs: bool = False
  ) -> None:
    """Stores one member's log-probabilities of one view of every example.

    Args:
      are_log_probs: whether the values are log-probabilities, which are not normalised again.

    Raises:
      StorageError: they cannot be written.
    """
    array, encoding = self._open(split)
    for block in self._blocks(split):
      log_probs_NC = logits_NC[block].astype(np.float64)
      if not are_log_probs:
        log_probs_NC = log_softmax(log_probs_NC, axis=-1)
      indices_N = np.arange(block.start, block.stop)
      with self._writing(split):
        rows_NW = encoding.encode(log_probs_NC, member, view, indices_N)
        array[member, view, block].write(rows_NW).result()

  def has(self, split: str, member: int, view: int) -> bool:
    """Whether the predictions of all examples are stored."""
    is_missing = self.encoding(split).is_missing
    blocks = (self._stored(split, member, view, block) for block in self._blocks(split))
    return not any(is_missing(rows_NW).any() for rows_NW in blocks)

  def digest(self, split: str, member: int, view: int) -> str:
    """SHA-256 of one member's stored values of one view, a block of examples at a time.

    Raises:
      DamageError: a chunk has changed since it was written.
    """
    sha = hashlib.sha256()
    for block in self._blocks(split):
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
    array, encoding = self._open(split)
    shape = (len(members), len(range(array.shape[2])[examples]), encoding.num_classes)
    log_probs_MNC = np.empty(shape, np.float32)
    for i, member in enumerate(members):
      encoding.decode(self._stored(split, member, view, examples), log_probs_MNC[i])
      if np.isnan(log_probs_MNC[i]).any():
        raise self._incomplete(split, member, view)
    return log_probs_MNC

  def read_ensemble(self, split: str, num_members: int, view: int) -> np.ndarray:
    """log_probs_NC of the ensemble of the first members, as `losses.ensemble_log_probs` defines it.

    It is computed on the host, so that reading the next view does not wait for steps on the devices, and in
    blocks of examples, to save memory.
    """
    array, encoding = self._open(split)
    log_probs_NC = np.empty((array.shape[2], encoding.num_classes), np.float32)
    for block in self._blocks(split):
      log_probs_NC[block] = losses.ensemble_log_probs(
        self.read(split, range(num_members), view, block)
      )
    return log_probs_NC

  def compared(
    self, split: str, member: int, view: int, indices_N: np.ndarray, log_probs_NC: np.ndarray
  ) -> tuple[np.ndarray, np.ndarray]:
    """(stored_NX, fresh_NX) in nats of some examples, as they are stored and as they are predicted again.

    Args:
      log_probs_NC: new predictions for the examples `indices_N`.

    Raises:
      DamageError: a chunk is missing, or has changed since it was written.
    """
    encoding, rows_NW = (
      self.encoding(split),
      self._stored(split, member, view, slice(None))[indices_N],
    )
    if encoding.is_missing(rows_NW).any():
      raise self._incomplete(split, member, view)
    return encoding.compared(rows_NW, log_probs_NC, member, view, indices_N)

  def mend(self, split: str, member: int, view: int) -> str:
    """Advice for an error about damaged predictions of one member for one view."""
    chunks = self.folder / 'logits' / split / 'c' / str(member) / str(view)
    return (
      f'Delete {chunks} and {self.folder / "meta.json"}, and run with --stages=predictions: the missing '
      'predictions are made again.'
    )

  def _incomplete(self, split: str, member: int, view: int) -> DamageError:
    return DamageError(
      f'{self._where(split)} lacks predictions of view {view} by member {member}. '
      f'{self.mend(split, member, view)}'
    )

  def _mend_metadata(self, split: str) -> str:
    metadata = self.folder / 'logits' / split / 'zarr.json'
    return (
      f'Delete {metadata} and {self.folder / "meta.json"}, and run with --stages=predictions: they are '
      'written again, and the predictions are kept.'
    )

  @contextlib.contextmanager
  def _writing(self, split: str) -> Iterator[None]:
    try:
      yield
    except ValueError as error:  # TensorStore raises it for a full disk, too
      raise StorageError(
        f'{self._where(split)} could not be written ({error}). Make room or fix the disk, '
        'and run the same command again: it resumes.'
      ) from error

  def _where(self, split: str) -> str:
    return f'the prediction store {self.folder / "logits" / split}'

  def _stored(self, split: str, member: int, view: int, examples: slice) -> np.ndarray:
    array, _ = self._open(split)
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

  def _open(self, split: str) -> tuple[ts.TensorStore, Encoding]:
    if split not in self._arrays:
      try:
        array = ts.open(self._spec(split), open=True).result()
        attributes = array.spec().to_json()['metadata'].get('attributes', {})
        self._arrays[split] = array, from_metadata(attributes, array.dtype.name, array.shape[3])
      except ValueError as error:
        if files.is_refused(error):
          raise files.refusal(self.folder, error) from error
        raise DamageError(
          f'{self._where(split)} cannot be opened: {error}. {self._mend_metadata(split)}'
        ) from error
    return self._arrays[split]

  def _blocks(self, split: str) -> Iterator[slice]:
    """Slices over all examples, each of whole chunks and of about `BLOCK_VALUES` log-probabilities."""
    array, encoding = self._open(split)
    chunk = array.chunk_layout.read_chunk.shape[2]
    size = chunk * max(1, BLOCK_VALUES // (chunk * encoding.num_classes))
    for start in range(0, array.shape[2], size):
      yield slice(start, min(start + size, array.shape[2]))

  def _spec(self, split: str) -> dict[str, Any]:
    return {'driver': 'zarr3', 'kvstore': kvstore(self.folder / 'logits' / split)}


def kvstore(path: epath.Path) -> dict[str, str]:
  """TensorStore's specification of a folder on a local disk or on gs://."""
  text = path.as_posix()
  if text.startswith('gs://'):
    bucket, _, inside = text.removeprefix('gs://').partition('/')
    return {'driver': 'gcs', 'bucket': bucket, 'path': f'{inside}/'}
  return {'driver': 'file', 'path': f'{path.absolute().as_posix()}/'}
