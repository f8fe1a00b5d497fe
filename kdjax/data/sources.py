"""The interface of sources of data, and folders of images.

A source knows sizes and class names without reading its inputs, and returns inputs as they are stored:
arrays, encoded images, or texts. `kdjax.data.load` makes arrays of one shape from them.
"""

import functools
from collections.abc import Callable, Iterator
from typing import Any, Protocol

import numpy as np
from etils import epath

from kdjax.data import images
from kdjax.errors import UserError

FOLDER = 'folder'  # the `dataset.name` of a user's own images
BLOCK = 1024  # examples that are read at once

_FOLDER_LAYOUT = (
  'Needed: one folder of images for each class in train/ and in test/, such as train/cat/1.png, '
  'train/dog/1.png and test/cat/1.png'
)


def blocks(size: int) -> Iterator[np.ndarray]:
  """The indices 0, ..., size − 1 in pieces: one record at a time is slow, all at once fills memory."""
  return (np.arange(start, min(start + BLOCK, size)) for start in range(0, size, BLOCK))


class Source(Protocol):
  """A data set with the splits 'train' and 'test', perhaps 'val', or with unlabelled inputs."""

  is_text = False
  dtype = np.dtype(np.uint8)  # of images after decoding: uint8 or float32
  special: Callable | None = None  # changes a Pillow image before it is resized
  set_name: str | None = None  # equal for sets that share examples
  extra_split = 'train'  # the split that serves as unlabelled data
  holds_out = False  # whether 'test' is a share of the stored 'train'
  class_names: tuple[str, ...]
  image_shape: tuple[int | None, ...]  # None where it varies

  def size(self, split: str) -> int: ...

  def labels(self, split: str) -> np.ndarray: ...

  def fetch(self, split: str, indices: np.ndarray) -> tuple[Any, np.ndarray]:
    """Stored inputs and labels_N of some examples."""
    ...

  def place(self, split: str, index: int) -> str:
    """The place where an example is stored, for errors."""
    ...


class Folder(Source):
  """Images in train/<class>/ and test/<class>/. Classes and files are in alphabetical order.

  Raises:
    UserError: there is no such folder, or it has another layout.
  """

  set_name = FOLDER

  def __init__(self, data_dir: str | None):
    self._prefix = f'dataset.data_dir = {data_dir!r} of dataset.name = {FOLDER!r}'
    root = epath.Path(data_dir or '').expanduser()
    if data_dir is None or not all((root / split).is_dir() for split in ('train', 'test')):
      raise UserError(f'{self._prefix}: has another layout. {_FOLDER_LAYOUT}')
    folders = sorted(p for p in (root / 'train').iterdir() if p.is_dir() and p.name[0] != '.')
    self.class_names = tuple(folder.name for folder in folders)
    if len(self.class_names) < 2:
      raise UserError(
        f'{self._prefix}: has the classes {list(self.class_names)}; needed: two or more. {_FOLDER_LAYOUT}'
      )
    tested = {p.name for p in (root / 'test').iterdir() if p.is_dir() and p.name[0] != '.'}
    unknown = tested - set(self.class_names)
    if unknown:
      raise UserError(f'{self._prefix}: train/ lacks the classes {sorted(unknown)} of test/')
    self._files, self._labels = {}, {}
    for split in ('train', 'test'):
      self._files[split], labels = [], []
      for label, name in enumerate(self.class_names):
        folder = root / split / name
        found = images.files(folder) if folder.is_dir() else []
        if split == 'train' and not found:
          raise UserError(f'{self._prefix}: no image in {folder}. {_FOLDER_LAYOUT}')
        self._files[split] += found
        labels += [label] * len(found)
      if not labels:
        raise UserError(f'{self._prefix}: no image in {root / split}. {_FOLDER_LAYOUT}')
      self._labels[split] = np.array(labels, np.int32)

  @functools.cached_property
  def image_shape(self) -> tuple[int, int, int]:
    return images.shape(self._files['train'][0])

  def size(self, split: str) -> int:
    return len(self._files.get(split, ()))

  def labels(self, split: str) -> np.ndarray:
    return self._labels[split]

  def fetch(self, split: str, indices: np.ndarray) -> tuple[list[epath.Path], np.ndarray]:
    return [self._files[split][i] for i in indices], self._labels[split][indices]

  def place(self, split: str, index: int) -> str:
    return str(self._files[split][index])


class Unlabelled(Source):
  """All images in a folder and its subfolders, in alphabetical order, as the split 'extra'.

  Raises:
    UserError: there are no images.
  """

  extra_split = 'extra'

  def __init__(self, path: str, field: str):
    folder = epath.Path(path).expanduser()
    self._files = images.files(folder, nested=True) if folder.is_dir() else []
    if not self._files:
      raise UserError(
        f'{field} = {path!r}: no image in this folder or its subfolders. Needed: {", ".join(images.SUFFIXES)}'
      )

  def size(self, split: str) -> int:
    return len(self._files)

  def fetch(self, split: str, indices: np.ndarray) -> tuple[list[epath.Path], np.ndarray]:
    return [self._files[i] for i in indices], np.full(len(indices), -1, np.int32)

  def place(self, split: str, index: int) -> str:
    return str(self._files[index])
