"""Logits of a teacher of the user, in an .npz file or a zarr folder of arrays.

For each name of inputs ('distillation', 'train', 'test', and 'val' where there is one) there are

  NAME: logits_MVNC, or log-probabilities. A split has one view, the distillation data `predictions.num_views`.
  NAME_ids: ids_N, an id for each example (`ids`), by which the order is checked.

and, in an .npz as text and in zarr as attributes of the group,

  space: 'logits', the default, or 'log_probs', which are stored unchanged.
  records: records of some views of the distillation data (`Inputs.record`) by number, as JSON. They are
    needed if the distillation data are augmented.

Axes: M member, V view, N example, C class.
"""

import contextlib
import json
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from functools import cached_property
from typing import IO, Any

import numpy as np
import tensorstore as ts
from etils import epath

from kdjax.errors import UserError
from kdjax.predictions.store import kvstore
from kdjax.runtime import files
from kdjax.train.inputs import Inputs, is_same_view

SPACES = ('logits', 'log_probs')
AUGMENTED = 'distillation'  # the only inputs that have more than one view
RECORDED = (0, 1)  # the views that `write` records
BLOCK = 1024  # examples that are read at once
NORMALISED = 0.01  # how far the sum of probabilities in float16 may be from 1, in nats


def ids(inputs_N: Any) -> np.ndarray:
  """ids_N in uint32: the CRC-32 of each example's bytes in the data set, before any view.

  `zlib.crc32(x.tobytes())` of an image in uint8 (H, W, C), an array in float32, or tokens in int32.
  """
  starts = range(0, len(inputs_N), BLOCK)
  blocks = (
    np.ascontiguousarray(inputs_N[np.arange(i, min(i + BLOCK, len(inputs_N)))]) for i in starts
  )
  return np.array([zlib.crc32(x.tobytes()) for block in blocks for x in block], np.uint32)


def write(
  path: epath.Path,
  logits: Mapping[str, np.ndarray],
  inputs: Mapping[str, Inputs],
  space: str = 'logits',
) -> None:
  """Writes an .npz file that `teacher.source='file'` reads.

  Args:
    logits: logits_MVNC by the name of the inputs.
    inputs: what the teacher was shown, by the same names (`Data.inputs` of an experiment).
    space: 'logits', or 'log_probs', which the store keeps unchanged, up to its dtype.
  """
  records = {
    str(view): inputs[AUGMENTED].record(view) for view in RECORDED[: logits[AUGMENTED].shape[1]]
  }
  named = {f'{name}_ids': ids(inputs[name].split.inputs_N) for name in logits}
  texts = {'space': np.array(space), 'records': np.array(json.dumps(records))}
  files.write_arrays(path, {**logits, **named, **texts})


class LogitsFile:
  """Reads a file of logits. Errors begin with the field and its value.

  Raises:
    UserError: the file is missing or cannot be read, or has another form than above.
  """

  def __init__(self, path: str, field: str):
    self._path, self._field = path, field
    self._place = epath.Path(path).expanduser()
    if not self._place.exists():
      raise self.error('no such file or folder')
    try:
      self._arrays = _Zarr(self._place) if self._place.is_dir() else _Npz(self._place)
      self.space = self._arrays.text('space') or 'logits'
      self._records = json.loads(self._arrays.text('records') or '{}')
    except (OSError, EOFError, ValueError, KeyError, TypeError, zipfile.BadZipFile) as error:
      raise self.error(f'cannot be read as an .npz file or a zarr folder ({error})') from error
    if self.space not in SPACES:
      raise self.error(f'space is {self.space!r}; allowed: {" or ".join(SPACES)}')

  def error(self, problem: str) -> UserError:
    return UserError(f'{self._field} = {self._path!r}: {problem}')

  def require_shape(self, name: str, shape: tuple[int, int, int, int]) -> None:
    """Raises UserError unless there are logits of at least (members, views), and (examples, classes)."""
    found = self._shape(name)
    if len(found) != 4:
      raise self.error(f'{name} has the shape {found}; needed: (member, view, example, class)')
    wanted = f'needed: {shape[2]} examples and {shape[3]} classes, as the data set has'
    if found[2:] != shape[2:]:
      raise self.error(f'{name} has {found[2]} examples and {found[3]} classes; {wanted}')
    if found[0] < shape[0]:
      raise self.error(
        f'{name} has {found[0]} members; needed: the teacher.num_members = {shape[0]}, or more'
      )
    if found[1] < shape[1]:
      raise self.error(
        f'{name} has {found[1]} views; needed: {shape[1]}, or more'
        + ', the predictions.num_views' * (name == AUGMENTED)
      )
    if self._shape(f'{name}_ids') != (shape[2],):
      raise self.error(
        f'{name}_ids has the shape {self._shape(f"{name}_ids")}; needed: {(shape[2],)}, an id for each '
        'example'
      )

  def require_inputs(self, name: str, inputs: Inputs, is_augmented: bool) -> None:
    """Raises UserError unless the logits are of these examples in this order, and of these views."""
    found_N, wanted_N = self._read(f'{name}_ids', ()), ids(inputs.split.inputs_N)
    wrong = np.flatnonzero(found_N != wanted_N)
    if len(wrong):
      same = np.array_equal(np.sort(found_N), np.sort(wanted_N))
      raise self.error(
        f'{name} has {"the examples in another order" if same else "other examples"}: {len(wrong)} of '
        f'{len(wanted_N)} ids differ, the first is that of example {wrong[0]}. An id is '
        'zlib.crc32(x.tobytes()) of an example x as the data set has it'
      )
    if not is_augmented:
      return
    if not self._records:
      raise self.error(
        'has no records, which show that the logits belong to the views of predictions.augmentation; write '
        'it with kdjax.predictions.imported.write, or distil on predictions.augmentation = ()'
      )
    for view, record in self._records.items():
      if not is_same_view(inputs.record(int(view)), record):
        raise self.error(
          f'view {view} of {name} is not the one that is rendered now; needed: the seed, the fields of '
          '`augmentation` and the version of kdjax with which it was written'
        )

  def logits(self, name: str, member: int, view: int) -> np.ndarray:
    """logits_NC, or log_probs_NC, in float32 of one view by one member.

    Raises:
      UserError: a value is not finite, or log-probabilities are not normalised.
    """
    values_NC = self._read(name, (member, view)).astype(np.float32)
    what = f'{name}, member {member}, view {view}'
    if wrong := np.sum(~np.isfinite(values_NC)):
      raise self.error(f'{what}: {wrong} of {values_NC.size} values are not finite')
    if self.space == 'log_probs':
      off = np.abs(np.log(np.exp(values_NC).sum(axis=-1))).max()
      if not off <= NORMALISED:
        raise self.error(
          f'{what}: the probabilities sum to 1 only up to {off:.2g} nats; allowed with space = '
          f"'log_probs': {NORMALISED}. For logits, set space = 'logits'"
        )
    return values_NC

  def _shape(self, name: str) -> tuple[int, ...]:
    return self._asked(name, lambda: self._arrays.shape(name))

  def _read(self, name: str, place: tuple[int, ...]) -> np.ndarray:
    return self._asked(name, lambda: self._arrays.read(name, place))

  def _asked(self, name: str, ask: Callable[[], Any]) -> Any:
    try:
      return ask()
    except (OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile) as error:
      raise self.error(f'has no array {name} that can be read ({error})') from error


class _Npz:
  """An .npz file. The array that was read last stays in memory."""

  def __init__(self, place: epath.Path):
    self._place = place
    self._last = '', np.empty(())
    with place.open('rb') as file, zipfile.ZipFile(file) as arrays:
      self._names = arrays.namelist()

  def text(self, name: str) -> str:
    return str(self.read(name, ())) if f'{name}.npy' in self._names else ''

  def shape(self, name: str) -> tuple[int, ...]:
    with self._opened(name) as content:
      version = np.lib.format.read_magic(content)
      headers = {(1, 0): np.lib.format.read_array_header_1_0}
      return headers.get(version, np.lib.format.read_array_header_2_0)(content)[0]

  def read(self, name: str, place: tuple[int, ...]) -> np.ndarray:
    if self._last[0] != name:
      with self._opened(name) as content:
        self._last = name, np.lib.format.read_array(content)
    return self._last[1][place]

  @contextlib.contextmanager
  def _opened(self, name: str) -> Iterator[IO[bytes]]:
    with (
      self._place.open('rb') as file,
      zipfile.ZipFile(file) as arrays,
      arrays.open(f'{name}.npy') as content,
    ):
      yield content


class _Zarr:
  """A zarr folder of format 2 or 3, which is read one view at a time."""

  def __init__(self, place: epath.Path):
    self._place = place

  @cached_property
  def _attributes(self) -> dict[str, Any]:
    for name, key in (('zarr.json', 'attributes'), ('.zattrs', None)):
      if (self._place / name).exists():
        found = json.loads((self._place / name).read_text())
        return found.get(key, {}) if key else found
    return {}

  def text(self, name: str) -> str:
    value = self._attributes.get(name, '')
    return value if isinstance(value, str) else json.dumps(value)

  def shape(self, name: str) -> tuple[int, ...]:
    return tuple(self._open(name).shape)

  def read(self, name: str, place: tuple[int, ...]) -> np.ndarray:
    return self._open(name)[place].read().result()

  def _open(self, name: str) -> ts.TensorStore:
    driver = 'zarr3' if (self._place / name / 'zarr.json').exists() else 'zarr'
    return ts.open({'driver': driver, 'kvstore': kvstore(self._place / name)}, open=True).result()
