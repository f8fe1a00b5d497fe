"""The prediction store: log-probabilities of every (split, member, view, example).

One TensorStore array (zarr3) for each split, with axes (member, view, example, class), cut into
chunks of one member, one view and a block of examples; each chunk is compressed and carries a
checksum. A chunk is written whole or not at all, and what was never written reads as NaN. So members
and views can be added at any time, in any order, and a killed run goes on where it was.

Axes of arrays: M member, N example, C class.
"""

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
import tensorstore as ts
from etils import epath
from scipy.special import log_softmax, logsumexp

from kdjax import files
from kdjax.errors import DamageError

DTYPES = {
  'float16': np.dtype(np.float16),
  'bfloat16': np.dtype(jnp.bfloat16),
  'float32': np.dtype(np.float32),
}
CHUNK_BYTES = 2**20
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
    """Makes room for at least (members, views, examples, classes). What is there stays."""
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
      array = ts.open(spec | {'metadata': metadata | {'shape': shape}}, create=True).result()
    else:
      array = self._open(split)
      room = [max(size, wanted) for size, wanted in zip(array.shape, shape, strict=True)]
      array = array.resize(exclusive_max=room, expand_only=True).result()
    self._arrays[split] = array

  def room(self, split: str) -> tuple[int, int]:
    """For how many members and views there is room; not all need be there."""
    num_members, num_views, _, _ = self._open(split).shape
    return num_members, num_views

  def write(self, split: str, member: int, view: int, logits_NC: np.ndarray) -> None:
    """Stores one member's log-probabilities of one view of every example."""
    array = self._open(split)
    log_probs_NC = log_softmax(logits_NC.astype(np.float64), axis=-1)
    array[member, view].write(log_probs_NC.astype(array.dtype.numpy_dtype)).result()

  def has(self, split: str, member: int, view: int) -> bool:
    """Whether every example is there."""
    return not np.isnan(self._read(split, member, view)).any()

  def read(self, split: str, members: Sequence[int], view: int) -> np.ndarray:
    """log_probs_MNC in float32 of one view of every example, for the given members.

    Raises:
      DamageError: a chunk is missing, or is not what was written.
    """
    log_probs_MNC = np.stack([self._read(split, member, view) for member in members])
    if np.isnan(log_probs_MNC).any():
      raise DamageError(
        f'{self._where(split)} lacks predictions of view {view} by a member of {list(members)}. '
        f'{self._mend}'
      )
    return log_probs_MNC

  def read_ensemble(self, split: str, num_members: int, view: int) -> np.ndarray:
    """log_probs_NC of the ensemble of the first members, as `losses.ensemble_log_probs` has it.

    On the host, so that reading the next view does not wait for the steps that the devices still have.
    """
    log_probs_MNC = log_softmax(self.read(split, range(num_members), view), axis=-1)
    return logsumexp(log_probs_MNC, axis=0) - np.float32(np.log(num_members))

  @property
  def _mend(self) -> str:
    return f'Delete {self.folder} and run with --stages=predictions: only the teachers are needed.'

  def _where(self, split: str) -> str:
    return f'the prediction store {self.folder / "logits" / split}'

  def _read(self, split: str, member: int, view: int) -> np.ndarray:
    array = self._open(split)
    try:
      return array[member, view].read().result().astype(np.float32)
    except (ValueError, IndexError) as error:  # a checksum that does not fit; a view out of range
      raise DamageError(f'{self._where(split)} is damaged: {error}. {self._mend}') from error

  def _open(self, split: str) -> ts.TensorStore:
    if split not in self._arrays:
      try:
        self._arrays[split] = ts.open(self._spec(split), open=True).result()
      except ValueError as error:
        raise DamageError(
          f'{self._where(split)} cannot be opened: {error}. {self._mend}'
        ) from error
    return self._arrays[split]

  def _spec(self, split: str) -> dict[str, Any]:
    return {'driver': 'zarr3', 'kvstore': kvstore(self.folder / 'logits' / split)}


def kvstore(path: epath.Path) -> dict[str, str]:
  """TensorStore's name for a folder on a local disk or on gs://."""
  text = path.as_posix()
  if text.startswith('gs://'):
    bucket, _, inside = text.removeprefix('gs://').partition('/')
    return {'driver': 'gcs', 'bucket': bucket, 'path': f'{inside}/'}
  return {'driver': 'file', 'path': f'{path.absolute().as_posix()}/'}
