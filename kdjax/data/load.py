"""Loading of data sets: `describe` tells shapes and sizes, `load` reads the splits.

With `dataset.streaming`, `load` leaves the images on disk. Axes: N example, B batch, H W C image.
"""

import dataclasses
import functools
import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from ml_collections import ConfigDict

from kdjax import keys
from kdjax.data import arrays, images, sources, texts
from kdjax.data.sources import Source
from kdjax.data.splits import Description, Split, balanced_order, split_sizes
from kdjax.data.streaming import StreamedImages
from kdjax.errors import UserError

EXTRA = 'predictions.extra'  # the field that names a set of unlabelled inputs


def forget() -> None:
  """Clears the caches, so that changed data of a user are read again."""
  arrays.forget()
  _opened.cache_clear()


def describe(config: ConfigDict, prepare: bool = True) -> Description:
  """Describes the source of the `dataset` section.

  For texts, it reads the training split once in a process, to make the vocabulary.

  Raises:
    UserError: the data set is missing, and `prepare` is False or it cannot be prepared; or its images vary in
      size and `image_size` is not set.
  """
  source = _open(config, prepare)
  return Description(
    _input_shape(source, config),
    source.class_names,
    source.size('train'),
    source.size('test'),
    len(source.vocabulary(config.min_count)) + 1 if source.is_text else None,
    source.size('val'),
    source.dtype.name,
  )


def load(config: ConfigDict) -> dict[str, Split]:
  """Reads the splits of the `dataset` section, in the order of `split_sizes`.

  Only the chosen examples are decoded; with `streaming`, only labels are read. The vocabulary of texts is
  made of all training texts of the source, for any `num_train` and `num_val`.

  Raises:
    UserError: as `describe`; or an image is broken, which the message names.
  """
  source = _open(config, prepare=False)
  shape = _input_shape(source, config)
  decode = _decoder(source, config, shape, resize=config.image_size is not None, to_grey=False)
  num_own_val = source.size('val')
  counts = source.size('train'), source.size('test')
  sizes = split_sizes(config, Description((), (), *counts, num_val=num_own_val))
  origins = {  # the split of the source, and start and stop in its class-balanced order
    'train': ('train', config.num_val, config.num_val + sizes['train']),
    'val': ('val', 0, num_own_val) if num_own_val else ('train', 0, config.num_val),
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
      images_N = _stream(
        _Reader(config.to_json(), split, shape, source.dtype.name), indices, config
      )
      splits[name] = Split(images_N, labels(split)[indices])
    else:
      splits[name] = _read(source, split, indices, decode, shape)
  return splits


def extra_size(name: str, config: ConfigDict) -> int:
  """The number of unlabelled inputs that `load_extra` finds. It reads none.

  Raises:
    UserError: they are missing, or are texts where the data set has images (or the reverse).
  """
  source = _open_extra(name, config)
  return source.size(source.extra_split)


def load_extra(
  name: str, config: ConfigDict, input_shape: tuple[int, ...], count: int | None = None
) -> np.ndarray | StreamedImages:
  """Unlabelled inputs_N from another data set, in the form of those of the `dataset` section.

  Images are brought to `input_shape` (see `images.decode`); texts become tokens of the vocabulary of
  the `dataset` section. The order is random and fixed, and a smaller `count` takes the first of them.

  Args:
    name: 'digits', a set of TFDS (its training split, or an unlabelled one if it has that), or the
      path of a folder of images, which begins with /, ./, ../, ~ or a scheme such as gs://.
    count: the number of inputs; None for all.

  Raises:
    UserError: as `extra_size`, or there are fewer than `count`.
  """
  source = _open_extra(name, config)
  size = source.size(source.extra_split)
  if count is not None and count > size:
    raise UserError(f'{EXTRA} = {name!r}: has {size} inputs, and {count} were asked for')
  indices = keys.numpy_rng(0, 'extra').permutation(size)[:count]
  if config.streaming:
    reader = _Reader(
      config.to_json(), source.extra_split, tuple(input_shape), source.dtype.name, name
    )
    return _stream(reader, indices, config)
  decode = _decoder(source, config, input_shape, resize=True, to_grey=True)
  return _read(source, source.extra_split, indices, decode, input_shape).inputs_N


def _open(config: ConfigDict, prepare: bool) -> Source:
  if arrays.is_arrays(config.name):
    return arrays.open_arrays(config)
  if config.name == sources.FOLDER:
    return sources.Folder(config.data_dir)
  from kdjax.data import tfds_sets  # takes a second to import

  return tfds_sets.Tfds(config.name, config.data_dir, prepare)


def _open_extra(name: str, config: ConfigDict) -> Source:
  if name in arrays.EMBEDDED:
    source = arrays.open_arrays(ConfigDict({'name': name}))
  elif name.startswith(('/', './', '../', '~')) or '://' in name:
    source = sources.Unlabelled(name, EXTRA)
  else:
    from kdjax.data import tfds_sets  # takes a second to import

    data_dir = None if config.name == sources.FOLDER else config.data_dir
    source = tfds_sets.Tfds(name, data_dir, field=EXTRA, labelled=False)
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


def _check_nothing_is_held_out(own: Source, config: ConfigDict, prefix: str) -> None:
  """Raises UserError if the stored 'train' holds examples that students are evaluated on."""
  kept = ['test'] * own.holds_out + ['validation'] * bool(config.num_val)
  if kept:
    otherwise = '' if own.holds_out else ', or dataset.num_val = 0'
    raise UserError(
      f'{prefix}: is the set of dataset.name = {config.name!r}, whose {" and ".join(kept)} examples come '
      f"from its 'train', too; allowed: another set{otherwise}"
    )


def _input_shape(source: Source, config: ConfigDict) -> tuple[int, ...]:
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
  source: Source, config: ConfigDict, shape: tuple[int, ...], resize: bool, to_grey: bool
) -> Callable[[bytes | np.ndarray, str], np.ndarray]:
  """A function (stored input, its place) → input as an array of the given shape."""
  if isinstance(source, arrays.Arrays) and source.image_shape == tuple(shape):
    return lambda item, place: item
  if not source.is_text:
    return lambda item, place: images.decode(item, shape, place, resize, to_grey, source.special)
  vocabulary = _open(config, prepare=False).vocabulary(config.min_count)
  return lambda item, place: texts.encode(item.decode(), vocabulary, shape[0])


def _stream(reader: '_Reader', indices_N: np.ndarray, config: ConfigDict) -> StreamedImages:
  rows_N2 = np.stack([np.zeros_like(indices_N), indices_N], axis=1)
  return StreamedImages([reader], rows_N2, reader.shape, config.num_workers, reader.dtype)


@dataclasses.dataclass(frozen=True)
class _Reader:
  """Reads images of one split, in any process: each opens the source for itself, once."""

  dataset: str  # the section as JSON
  split: str  # of the source
  shape: tuple[int, ...]
  dtype: str
  extra: str | None = None  # the name of another data set

  def __call__(self, indices_B: np.ndarray) -> np.ndarray:
    source, decode = _opened(self)
    items, _ = source.fetch(self.split, indices_B)
    places = [source.place(self.split, index) for index in indices_B]
    return np.stack([decode(item, place) for item, place in zip(items, places, strict=True)])


@functools.lru_cache(maxsize=16)
def _opened(reader: _Reader) -> tuple[Source, Callable]:
  config = ConfigDict(json.loads(reader.dataset))
  if reader.extra is None:
    source = _open(config, prepare=False)
    resize, to_grey = config.image_size is not None, False
  else:
    source = _open_extra(reader.extra, config)
    resize = to_grey = True
  return source, _decoder(source, config, reader.shape, resize, to_grey)


def _read(
  source: Source, split: str, indices_N: np.ndarray, decode: Callable, shape: tuple[int, ...]
) -> Split:
  """The examples at the indices, in their order, read in blocks to bound the memory."""
  inputs_N = np.empty((len(indices_N), *shape), np.int32 if source.is_text else source.dtype)
  labels_N = np.empty(len(indices_N), np.int32)
  with ThreadPoolExecutor() as pool:
    run = map if source.is_text else pool.map  # decoding an image releases Python's lock
    for positions in sources.blocks(len(indices_N)):
      indices = indices_N[positions]
      items, labels_N[positions] = source.fetch(split, indices)
      places = [source.place(split, index) for index in indices]
      for position, decoded in zip(positions, run(decode, items, places), strict=True):
        inputs_N[position] = decoded
  return Split(inputs_N, labels_N)
