"""Data sets as arrays, and batches of indices into them.

`describe` tells shapes and sizes without reading images; `load` reads them, or with `dataset.streaming`
leaves them on disk. A split's arrays stand in a fixed order, and an example's index is its position
there. Axes: N example, B batch, H W C image, T token.
"""

import dataclasses
import functools
import hashlib
import json
import pathlib
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from ml_collections import ConfigDict

from kdjax import keys
from kdjax.data import images, sources, texts
from kdjax.data.order import balanced_order
from kdjax.data.order import training_batch as training_batch
from kdjax.data.order import training_batches as training_batches
from kdjax.data.streaming import StreamedImages
from kdjax.errors import UserError

NUM_DIGITS_TEST = 360
EXTRA = 'predictions.extra'  # the field that names a set of unlabelled inputs
# Of checksums that have seen the images only in part, so that they are compared with their like.
SAMPLED = 'sampled-'
NUM_SAMPLED = 1024  # images of each split; a change of 0.45 % of all is missed once in 100 times


@dataclasses.dataclass(frozen=True)
class Split:
  # Images (N, H, W, C) uint8, or tokens (N, T) int32 padded with 0 at the end.
  inputs_N: np.ndarray | StreamedImages
  labels_N: np.ndarray  # int32

  def __len__(self) -> int:
    return len(self.labels_N)

  @property
  def is_streamed(self) -> bool:
    return isinstance(self.inputs_N, StreamedImages)

  def take(self, indices: np.ndarray) -> 'Split':
    inputs_N = self.inputs_N.take(indices) if self.is_streamed else self.inputs_N[indices]
    return Split(inputs_N, self.labels_N[indices])

  def joined(self, other: 'Split') -> 'Split':
    """These examples and then the others: both streamed, or neither."""
    if self.is_streamed:
      inputs_N = self.inputs_N.joined(other.inputs_N)
    else:
      inputs_N = np.concatenate([self.inputs_N, other.inputs_N])
    return Split(inputs_N, np.concatenate([self.labels_N, other.labels_N]))


@dataclasses.dataclass(frozen=True)
class Description:
  """What is known of a data set before its inputs are read."""

  input_shape: tuple[int, ...]  # (H, W, C), or (T,) of texts
  class_names: tuple[str, ...]
  num_train: int  # all that the source has, before `num_val` and `num_train` are taken from it
  num_test: int
  vocabulary_size: int | None = None  # of texts, with the padding: token ids are below it

  @property
  def num_classes(self) -> int:
    return len(self.class_names)


def describe(config: ConfigDict, prepare: bool = True) -> Description:
  """Describes the source of the `dataset` section.

  Of texts, it reads the training split once in a process, for the vocabulary.

  Raises:
    UserError: it is not there, and `prepare` is False or preparing it here and now is not possible;
      or its images vary in size and `image_size` is not set.
  """
  source = _open(config, prepare)
  return Description(
    _input_shape(source, config),
    source.class_names,
    source.size('train'),
    source.size('test'),
    len(source.vocabulary(config.min_count)) + 1 if source.is_text else None,
  )


def split_sizes(config: ConfigDict, description: Description) -> dict[str, int]:
  """Examples in 'train', 'test' and, where it is not empty, 'val'."""
  available = description.num_train - config.num_val
  sizes = {'train': available if config.num_train is None else config.num_train}
  if config.num_val:
    sizes['val'] = config.num_val
  sizes['test'] = description.num_test if config.num_test is None else config.num_test
  return sizes


def load(config: ConfigDict) -> dict[str, Split]:
  """Reads the splits of the `dataset` section, in the order of `split_sizes`.

  Only the chosen examples are decoded, or with `streaming` none: just the labels are read. The vocabulary
  of texts is that of all training texts of the source, whatever `num_train` and `num_val` are.

  Raises:
    UserError: as `describe`; or an image is broken, named in the message.
  """
  source = _open(config, prepare=False)
  shape = _input_shape(source, config)
  decode = _decoder(source, config, shape, resize=config.image_size is not None, to_grey=False)
  sizes = split_sizes(config, Description((), (), source.size('train'), source.size('test')))
  origins = {  # the split of the source, and where in its class-balanced order
    'train': ('train', config.num_val, config.num_val + sizes['train']),
    'val': ('train', 0, config.num_val),
    'test': ('test', 0, sizes['test']),
  }
  labels = functools.cache(source.labels)
  order = functools.cache(lambda split: balanced_order(labels(split)))
  splits = {}
  for name in sizes:
    split, start, stop = origins[name]
    is_all = stop - start == source.size(split)
    indices = np.arange(stop) if is_all else np.sort(order(split)[start:stop])
    if config.streaming:
      images_N = _stream(_Reader(config.to_json(), split, shape), indices, config)
      splits[name] = Split(images_N, labels(split)[indices])
    else:
      splits[name] = _read(source, split, indices, decode, shape)
  return splits


def part_size(num_examples: int, examples: Sequence[int]) -> int:
  """How many `part` takes of so many examples."""
  return examples[1] - examples[0] if examples else num_examples


def part(split: Split, examples: Sequence[int], seed: int = 0) -> Split:
  """The examples at positions start, ..., stop − 1 of the class-balanced order, by their index.

  Parts that begin at 0 are class-balanced and nested. Of classes equally frequent, so is every other part that begins and ends at
  a multiple of their number, such as the halves of data recycling (Stanton et al. 2021, Figure 4).

  Args:
    examples: (start, stop), or () for all.
    seed: decides the order.
  """
  if not examples:
    return split
  start, stop = examples
  return split.take(np.sort(balanced_order(split.labels_N, seed)[start:stop]))


def extra_size(name: str, config: ConfigDict) -> int:
  """How many unlabelled inputs `load_extra` finds. Reads none.

  Raises:
    UserError: they are not there, or are texts where the data set has images (or the reverse).
  """
  source = _open_extra(name, config)
  return source.size(source.extra_split)


def load_extra(
  name: str,
  config: ConfigDict,
  input_shape: tuple[int, ...],
  count: int | None = None,
) -> np.ndarray | StreamedImages:
  """inputs_N without labels from another data set, of the form that the `dataset` section has.

  Images are brought to `input_shape` (see `images.decode`); texts become tokens of the vocabulary of
  the `dataset` section. The order is random and fixed, so that fewer are the first of more.

  Args:
    name: 'digits', a set of TFDS (its training split, or an unlabelled one if it has that), or the
      path of a folder of images, which begins with /, ./, ../, ~ or a scheme such as gs://.
    count: how many; None is all.

  Raises:
    UserError: as `extra_size`, or there are fewer than `count`.
  """
  source = _open_extra(name, config)
  size = source.size(source.extra_split)
  if count is not None and count > size:
    raise UserError(f'{EXTRA} = {name!r}: has {size} inputs, and {count} were asked for')
  indices = keys.numpy_rng(0, 'extra').permutation(size)[:count]
  if config.streaming:
    reader = _Reader(config.to_json(), source.extra_split, tuple(input_shape), name)
    return _stream(reader, indices, config)
  decode = _decoder(source, config, input_shape, resize=True, to_grey=True)
  return _read(source, source.extra_split, indices, decode, input_shape).inputs_N


def checksum(splits: dict[str, Split], sampled: bool | None = None) -> str:
  """Of every image and label, to notice that a data set of the same name has other content.

  Reading a set larger than memory for that would take as long as an epoch. So a `sampled` one is of
  every label, of the shape, and of 1,024 images of each split, the same each time. It begins with
  SAMPLED.

  Args:
    sampled: None: if any split is streamed.
  """
  if sampled is None:
    sampled = any(split.is_streamed for split in splits.values())
  digest = hashlib.sha256()
  for name, split in splits.items():
    digest.update(name.encode())
    if sampled:
      digest.update(repr(split.inputs_N.shape).encode())
      order_N = keys.numpy_rng(0, 'checksum').permutation(len(split))
      digest.update(split.inputs_N[np.sort(order_N[:NUM_SAMPLED])])
    else:
      for block in sources.blocks(len(split)):
        digest.update(np.ascontiguousarray(split.inputs_N[block]))
    digest.update(np.ascontiguousarray(split.labels_N))
  return sampled * SAMPLED + digest.hexdigest()[:16]


def _load_digits() -> tuple[Split, Split]:
  """The digits.npz beside this file; a fixed fifth of them is the test set.

  They are the test set of E. Alpaydin and C. Kaynak, Optical Recognition of Handwritten Digits (UCI
  Machine Learning Repository, 1998; CC BY 4.0): 1,797 images of 8 by 8 pixels with levels 0 to 16.
  """
  with np.load(pathlib.Path(__file__).with_name('digits.npz')) as digits:
    levels_NHW, labels_N = digits['images'], digits['labels']
  images_NHWC = np.round(levels_NHW * (255 / 16)).astype(np.uint8)[..., None]
  everything = Split(images_NHWC, labels_N.astype(np.int32))
  order = keys.numpy_rng(0, 'digits').permutation(len(everything))
  return everything.take(order[NUM_DIGITS_TEST:]), everything.take(order[:NUM_DIGITS_TEST])


# Sets that need no files: name → (description, function that returns train and test).
EMBEDDED = {
  'digits': (
    Description((8, 8, 1), tuple('0123456789'), 1797 - NUM_DIGITS_TEST, NUM_DIGITS_TEST),
    _load_digits,
  )
}


class _Embedded:
  """A set of EMBEDDED as a source."""

  is_text = False
  special = None
  extra_split = 'train'
  holds_out = False

  def __init__(self, name: str):
    self._name = self.set_name = name
    self._description, self._load = EMBEDDED[name]
    self.image_shape = self._description.input_shape
    self.class_names = self._description.class_names

  @functools.cached_property
  def _splits(self) -> dict[str, Split]:
    return dict(zip(('train', 'test'), self._load(), strict=True))

  def size(self, split: str) -> int:
    return {'train': self._description.num_train, 'test': self._description.num_test}[split]

  def labels(self, split: str) -> np.ndarray:
    return self._splits[split].labels_N

  def fetch(self, split: str, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    taken = self._splits[split].take(indices)
    return taken.inputs_N, taken.labels_N

  def place(self, split: str, index: int) -> str:
    return f'{self._name}, example {index} of {split!r}'


_Source = _Embedded | sources.Folder | sources.Unlabelled | sources.Tfds


def _open(config: ConfigDict, prepare: bool) -> _Source:
  if config.name in EMBEDDED:
    return _Embedded(config.name)
  if config.name == sources.FOLDER:
    return sources.Folder(config.data_dir)
  return sources.Tfds(config.name, config.data_dir, prepare)


def _open_extra(name: str, config: ConfigDict) -> _Source:
  if name in EMBEDDED:
    source = _Embedded(name)
  elif name.startswith(('/', './', '../', '~')) or '://' in name:
    source = sources.Unlabelled(name, EXTRA)
  else:
    data_dir = None if config.name == sources.FOLDER else config.data_dir
    source = sources.Tfds(name, data_dir, field=EXTRA, labelled=False)
  own = _open(config, prepare=False)
  if source.extra_split == 'train' and source.set_name == own.set_name:
    _check_nothing_is_held_out(own, config, f'{EXTRA} = {name!r}')
  if source.is_text != own.is_text:
    kinds = {True: 'texts', False: 'images'}
    raise UserError(
      f'{EXTRA} = {name!r}: has {kinds[source.is_text]}. Needed: {kinds[own.is_text]}, as those of '
      f'dataset.name = {config.name!r}'
    )
  return source


def _check_nothing_is_held_out(own: _Source, config: ConfigDict, prefix: str) -> None:
  """Raises UserError where all of the set's 'train' holds examples that students are judged by."""
  kept = ['test'] * own.holds_out + ['validation'] * bool(config.num_val)
  if kept:
    otherwise = '' if own.holds_out else ', or dataset.num_val = 0'
    raise UserError(
      f'{prefix}: is the set of dataset.name = {config.name!r}, whose {" and ".join(kept)} examples come '
      f"from its 'train', too; allowed: another{otherwise}"
    )


def _input_shape(source: _Source, config: ConfigDict) -> tuple[int, ...]:
  if source.is_text:
    return (config.max_tokens,)
  if config.image_size is not None:
    return config.image_size, config.image_size, source.image_shape[-1]
  if None in source.image_shape:
    raise UserError(
      f'dataset.image_size = None: the images of {config.name} vary in size. Allowed: a size in pixels '
      'to which all are resized and cropped, such as 224'
    )
  return source.image_shape


def _decoder(
  source: _Source, config: ConfigDict, shape: tuple[int, ...], resize: bool, to_grey: bool
) -> Callable[[bytes | np.ndarray, str], np.ndarray]:
  """The function of what a source stores, and its place there, that makes an input of it."""
  if not source.is_text:
    return lambda item, place: images.decode(item, shape, place, resize, to_grey, source.special)
  vocabulary = _open(config, prepare=False).vocabulary(config.min_count)
  return lambda item, place: texts.encode(item.decode(), vocabulary, shape[0])


def _stream(reader: '_Reader', indices_N: np.ndarray, config: ConfigDict) -> StreamedImages:
  rows_N2 = np.stack([np.zeros_like(indices_N), indices_N], axis=1)
  return StreamedImages([reader], rows_N2, reader.shape, config.num_workers)


@dataclasses.dataclass(frozen=True)
class _Reader:
  """Reads images of one split, in any process: each opens the source for itself, once."""

  dataset: str  # the section as JSON
  split: str  # of the source
  shape: tuple[int, int, int]
  extra: str | None = None  # the name of another data set

  def __call__(self, indices_B: np.ndarray) -> np.ndarray:
    source, decode = _opened(self)
    items, _ = source.fetch(self.split, indices_B)
    places = [source.place(self.split, index) for index in indices_B]
    return np.stack([decode(item, place) for item, place in zip(items, places, strict=True)])


@functools.lru_cache(maxsize=16)
def _opened(reader: _Reader) -> tuple[_Source, Callable]:
  config = ConfigDict(json.loads(reader.dataset))
  if reader.extra is None:
    source = _open(config, prepare=False)
    resize, to_grey = config.image_size is not None, False
  else:
    source = _open_extra(reader.extra, config)
    resize = to_grey = True
  return source, _decoder(source, config, reader.shape, resize, to_grey)


def _read(
  source: _Source, split: str, indices_N: np.ndarray, decode: Callable, shape: tuple[int, ...]
) -> Split:
  """The examples at the indices, in their order. Only what it returns is ever held as a whole."""
  inputs_N = np.empty((len(indices_N), *shape), np.int32 if source.is_text else np.uint8)
  labels_N = np.empty(len(indices_N), np.int32)
  with ThreadPoolExecutor() as pool:
    run = map if source.is_text else pool.map  # decoding images leaves other threads running
    for positions in sources.blocks(len(indices_N)):
      indices = indices_N[positions]
      items, labels_N[positions] = source.fetch(split, indices)
      places = [source.place(split, index) for index in indices]
      for position, decoded in zip(positions, run(decode, items, places), strict=True):
        inputs_N[position] = decoded
  return Split(inputs_N, labels_N)
