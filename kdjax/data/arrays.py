"""Data sets of arrays: the embedded digits, an .npz file, and what a user's function returns.

Axes: N example, H W C image.
"""

import functools
import hashlib
import pathlib
import zipfile
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from etils import epath
from ml_collections import ConfigDict

from kdjax import keys
from kdjax.data.sources import Source
from kdjax.errors import UserError
from kdjax.runtime import plugins

NAME = 'arrays'  # the `dataset.name` of an .npz file
NUM_DIGITS_TEST = 360
NUM_DIGESTED = 64  # examples that a digest covers where inputs are read one by one
SPLITS = ('train', 'test', 'val')
_NEEDED = (
  "Needed: {'train': (x, y), 'test': (x, y)}, and optionally 'val': (x, y) and 'class_names': a list of "
  'strings. x holds inputs of one shape, in uint8 or floating point, as an array or as an object with '
  '`len(x)` and `x[i]`; y holds their classes, 0, 1, ...'
)


def digits() -> dict[str, Any]:
  """The embedded digits; a fixed fifth of them is the test set.

  The images are the test set of E. Alpaydin and C. Kaynak, Optical Recognition of Handwritten Digits (UCI
  Machine Learning Repository, 1998; CC BY 4.0): 1,797 images of 8 by 8 pixels with levels 0 to 16.
  """
  with np.load(pathlib.Path(__file__).with_name('digits.npz')) as arrays:
    levels_NHW, labels_N = arrays['images'], arrays['labels']
  images_NHWC = np.round(levels_NHW * (255 / 16)).astype(np.uint8)[..., None]
  order = keys.numpy_rng(0, 'digits').permutation(len(images_NHWC))
  train, test = order[NUM_DIGITS_TEST:], order[:NUM_DIGITS_TEST]
  return {
    'train': (images_NHWC[train], labels_N[train]),
    'test': (images_NHWC[test], labels_N[test]),
    'class_names': tuple('0123456789'),
  }


EMBEDDED = {'digits': digits}  # sets that need no files


def is_arrays(name: str) -> bool:
  """Whether `open_arrays` opens the data set of this name."""
  return name in EMBEDDED or name == NAME or plugins.is_dotted(name)


def open_arrays(config: ConfigDict) -> 'Arrays':
  """The data set that the `dataset` section names. It is opened once in a process, until `forget`.

  Raises:
    UserError: the data cannot be loaded or are not as needed; the message gives the reason.
  """
  return _opened(config.name, config.path if config.name == NAME else None)


def content(config: ConfigDict) -> dict[str, str]:
  """The digest of each split of a user's data set (`Arrays.digests`); {} for other sets.

  The names of other sets determine their content.

  Raises:
    UserError: as `open_arrays`.
  """
  if not is_arrays(config.name) or config.name in EMBEDDED:
    return {}
  return _digests(config.name, config.path if config.name == NAME else None)


def forget() -> None:
  """Clears the caches, so that changed files are read and functions are called again."""
  for function in (_opened, _digests):
    function.cache_clear()


@functools.lru_cache(64)
def _digests(name: str, path: str | None) -> dict[str, str]:
  return _opened(name, path).digests


@functools.lru_cache(2)
def _opened(name: str, path: str | None) -> 'Arrays':
  if name == NAME:
    return Arrays(name, _read_npz(path), f'dataset.path = {path!r}')
  function = plugins.look_up(EMBEDDED, name, 'dataset.name')
  content = plugins.call(name, 'dataset.name', function)
  return Arrays(name, content, f'dataset.name = {name!r}')


def _read_npz(path: str | None) -> dict[str, Any]:
  prefix = f'dataset.path = {path!r}'
  layout = (
    f'allowed with dataset.name = {NAME!r}: an .npz file with x_train, y_train, x_test, y_test, and '
    'optionally x_val, y_val and class_names'
  )
  if not path or not epath.Path(path).expanduser().is_file():
    raise UserError(f'{prefix}: no such file; {layout}')
  try:
    with epath.Path(path).expanduser().open('rb') as file, np.load(file) as arrays:
      found = dict(arrays)
  except (OSError, EOFError, ValueError, TypeError, zipfile.BadZipFile) as error:
    raise UserError(f'{prefix}: cannot be read as an .npz file ({error}); {layout}') from error
  names = {f'{axis}_{split}': split for split in SPLITS for axis in 'xy'}
  has_val = any(name in found for name in ('x_val', 'y_val'))
  wanted = {name for name, split in names.items() if split != 'val' or has_val}
  if found.keys() - {'class_names'} != wanted:
    raise UserError(f'{prefix}: has the arrays {", ".join(sorted(found))}; {layout}')
  splits = {split: (found[f'x_{split}'], found[f'y_{split}']) for split in map(names.get, wanted)}
  return splits | ({'class_names': found['class_names']} if 'class_names' in found else {})


class Arrays(Source):
  """A source of arrays.

  uint8 inputs are images with levels 0 to 255, which views scale to [−1, 1]. Inputs in floating point
  become float32 and must lie in [−1, 1], which is checked as they are read.

  Args:
    content: 'train', 'test' and optionally 'val': (inputs, labels); optionally 'class_names'.
    prefix: the field and its value, with which errors begin.

  Raises:
    UserError: the content has another form.
  """

  def __init__(self, name: str, content: Mapping[str, Any], prefix: str):
    self._prefix, self.set_name = prefix, name
    if not isinstance(content, Mapping) or not {'train', 'test'} <= content.keys() <= {
      *SPLITS,
      'class_names',
    }:
      shown = sorted(map(str, content)) if isinstance(content, Mapping) else type(content).__name__
      raise UserError(f'{prefix}: gives {shown}. {_NEEDED}')
    self._inputs, self._labels = {}, {}
    for split in (split for split in SPLITS if split in content):
      self._inputs[split], self._labels[split] = self._checked(split, content[split])
    self.image_shape, self._stored_dtype = self._layout('train')
    for split in self._inputs:
      if self._layout(split) != (self.image_shape, self._stored_dtype):
        self._fail(f'{split} holds {self._layout(split)}, train {self._layout("train")}')
    is_bytes = self._stored_dtype == np.uint8
    if not is_bytes and not np.issubdtype(self._stored_dtype, np.floating):
      self._fail(f'the inputs are of dtype {self._stored_dtype}')
    self.dtype = np.dtype(np.uint8 if is_bytes else np.float32)
    self.class_names = self._names(content.get('class_names'))

  def size(self, split: str) -> int:
    return len(self._labels[split]) if split in self._labels else 0

  def labels(self, split: str) -> np.ndarray:
    return self._labels[split]

  def fetch(self, split: str, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    inputs = self._inputs[split]
    if isinstance(inputs, np.ndarray):
      taken = inputs[indices]
    else:
      items = [np.asarray(inputs[int(i)]) for i in indices]
      for i, item in zip(indices, items, strict=True):
        if (item.shape, item.dtype) != (self.image_shape, self._stored_dtype):
          self._fail(
            f'{self.place(split, i)} has {item.shape} in {item.dtype}, the first example of '
            f'train {self.image_shape} in {self._stored_dtype}'
          )
      taken = np.stack(items) if items else np.empty((0, *self.image_shape), self.dtype)
    if self.dtype != np.uint8 and taken.size and not np.abs(taken).max() <= 1:  # also true of NaN
      self._fail(
        f'{split} has values in [{taken.min():g}, {taken.max():g}]; allowed in floating point: '
        '[-1, 1]'
      )
    return taken.astype(self.dtype, copy=False), self._labels[split][indices]

  def place(self, split: str, index: int) -> str:
    return f'{self.set_name}, example {index} of {split!r}'

  @property
  def digests(self) -> dict[str, str]:
    """A digest of each split: inputs, labels and the number of classes.

    If inputs are read one by one, it covers their number and a sample of 64.
    """
    found = {}
    for split, inputs in self._inputs.items():
      if not isinstance(inputs, np.ndarray):
        inputs, _ = self.fetch(split, np.arange(len(inputs))[:: -(-len(inputs) // NUM_DIGESTED)])
      labels_N = self._labels[split]
      sha = hashlib.sha256(f'{inputs.shape} {inputs.dtype} {len(self.class_names)}'.encode())
      for array in (inputs, labels_N):
        sha.update(np.ascontiguousarray(array))
      found[split] = sha.hexdigest()[:16]
    return found

  def _checked(self, split: str, pair: Any) -> tuple[Any, np.ndarray]:
    if not isinstance(pair, Sequence) or len(pair) != 2:
      self._fail(f'{split!r} is not a pair (x, y)')
    inputs, labels_N = pair[0], np.asarray(pair[1])
    if not hasattr(inputs, '__len__') or not hasattr(inputs, '__getitem__'):
      self._fail(f'x of {split!r} is a {type(inputs).__name__}')
    if isinstance(inputs, list | tuple) or hasattr(inputs, '__array__'):
      inputs = np.asarray(inputs)
    if labels_N.ndim != 1 or not np.issubdtype(labels_N.dtype, np.integer):
      self._fail(
        f'y of {split!r} has the shape {labels_N.shape} and dtype {labels_N.dtype}; needed: (N,), '
        'integers'
      )
    if len(inputs) != len(labels_N) or not len(labels_N):
      self._fail(f'{split!r} has {len(inputs)} inputs and {len(labels_N)} labels')
    if labels_N.min() < 0:
      self._fail(f'y of {split!r} has the label {labels_N.min()}')
    return inputs, labels_N.astype(np.int32)

  def _layout(self, split: str) -> tuple[tuple[int, ...], np.dtype]:
    """Shape and dtype of one input."""
    inputs = self._inputs[split]
    first = inputs[:1][0] if isinstance(inputs, np.ndarray) else np.asarray(inputs[0])
    if first.ndim == 0:
      self._fail(f'an input of {split!r} is a single number; needed: an array, such as (H, W, C)')
    return first.shape, first.dtype

  def _names(self, names: Any) -> tuple[str, ...]:
    num_classes = 1 + max(int(labels_N.max()) for labels_N in self._labels.values())
    names = tuple(map(str, range(num_classes) if names is None else names))
    if len(names) < max(num_classes, 2):
      self._fail(
        f'class_names has {len(names)} names, and y labels up to {num_classes - 1}; needed: a name '
        'for each label, and two or more'
      )
    return names

  def _fail(self, problem: str) -> None:
    raise UserError(f'{self._prefix}: {problem}. {_NEEDED}')
