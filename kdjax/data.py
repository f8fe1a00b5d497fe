"""Data sets as arrays, and batches of indices into them.

`describe` tells shapes and sizes without reading images; `load` reads them. A split's arrays stand in
a fixed order, and an example's index is its position there. Axes: N example, B batch, H W C image.
"""

import dataclasses
import hashlib
import importlib.util
from collections.abc import Iterator

import numpy as np
import tensorflow_datasets as tfds
from etils import epath
from ml_collections import ConfigDict
from sklearn import datasets as sklearn_datasets

from kdjax import keys
from kdjax.errors import UserError

NUM_DIGITS_TEST = 360


@dataclasses.dataclass(frozen=True)
class Split:
  images_NHWC: np.ndarray  # uint8
  labels_N: np.ndarray  # int32

  def __len__(self) -> int:
    return len(self.labels_N)

  def take(self, indices: np.ndarray) -> 'Split':
    return Split(self.images_NHWC[indices], self.labels_N[indices])


@dataclasses.dataclass(frozen=True)
class Description:
  """What is known of a data set before its images are read."""

  image_shape_HWC: tuple[int, int, int]
  class_names: tuple[str, ...]
  num_train: int  # all that the source has, before `num_val` and `num_train` are taken from it
  num_test: int

  @property
  def num_classes(self) -> int:
    return len(self.class_names)


def describe(config: ConfigDict, prepare: bool = True) -> Description:
  """Describes the source of the `dataset` section.

  Raises:
    UserError: it is not there, and `prepare` is False or preparing it here and now is not possible.
  """
  if config.name in EMBEDDED:
    return EMBEDDED[config.name][0]
  builder = _tfds_builder(config, prepare)
  image, label = _supervised_features(builder)
  splits = builder.info.splits
  if 'train' not in splits or _test_name(builder) not in splits:
    raise UserError(
      f"dataset.name = {config.name!r}: has the splits {list(splits)}. Needed: 'train', and 'test' or "
      "'validation'"
    )
  return Description(
    tuple(builder.info.features[image].shape),
    tuple(builder.info.features[label].names),
    splits['train'].num_examples,
    splits[_test_name(builder)].num_examples,
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
  """Reads the splits of the `dataset` section, in the order of `split_sizes`."""
  train, test = EMBEDDED[config.name][1]() if config.name in EMBEDDED else _load_tfds(config)
  sizes = split_sizes(config, Description((), (), len(train), len(test)))
  order = _balanced_order(train.labels_N)
  num_val = config.num_val
  chosen = {
    'train': order[num_val : num_val + sizes['train']],
    'val': order[:num_val],
    'test': _balanced_order(test.labels_N)[: sizes['test']],
  }
  source = {'train': train, 'val': train, 'test': test}
  return {name: source[name].take(np.sort(chosen[name])) for name in sizes}


def checksum(splits: dict[str, Split]) -> str:
  """Of every image and label, to notice that a data set of the same name has other content."""
  digest = hashlib.sha256()
  for name, split in splits.items():
    digest.update(name.encode())
    digest.update(np.ascontiguousarray(split.images_NHWC))
    digest.update(np.ascontiguousarray(split.labels_N))
  return digest.hexdigest()[:16]


def training_batches(
  seed: int, num_examples: int, batch_size: int, num_steps: int, start: int = 0
) -> Iterator[dict[str, np.ndarray]]:
  """Batches of indices for steps start, start + 1, ..., num_steps − 1.

  The order is one stream: a fresh permutation of all examples for each epoch, one after the other, cut
  into batches. So a batch may reach into the next epoch, every batch is full, and every example comes
  exactly once an epoch.

  Yields: 'indices' and 'epochs', each of shape (B,), int32.
  """
  permutations: dict[int, np.ndarray] = {}
  for step in range(start, num_steps):
    epochs, offsets = divmod(np.arange(step * batch_size, (step + 1) * batch_size), num_examples)
    needed = range(epochs[0], epochs[-1] + 1)
    permutations = {
      epoch: permutations[epoch]
      if epoch in permutations
      else keys.numpy_rng(seed, 'order', epoch).permutation(num_examples)
      for epoch in needed
    }
    indices = np.empty(batch_size, np.int32)
    for epoch in needed:
      indices[epochs == epoch] = permutations[epoch][offsets[epochs == epoch]]
    yield {'indices': indices, 'epochs': epochs.astype(np.int32)}


def _balanced_order(labels_N: np.ndarray) -> np.ndarray:
  """A fixed random order in which the first n hold each class equally often, as far as they last."""
  shuffled = keys.numpy_rng(0, 'subset').permutation(len(labels_N))
  rank_N = np.empty(len(labels_N), int)  # how many of its own class come before
  for label in np.unique(labels_N):
    of_label = np.flatnonzero(labels_N[shuffled] == label)
    rank_N[of_label] = np.arange(len(of_label))
  return shuffled[np.argsort(rank_N, kind='stable')]


def _load_digits() -> tuple[Split, Split]:
  """scikit-learn's 1,797 digits; a fixed fifth of them is the test set."""
  digits = sklearn_datasets.load_digits()
  images = np.round(digits.images * (255 / 16)).astype(np.uint8)[..., None]
  everything = Split(images, digits.target.astype(np.int32))
  order = keys.numpy_rng(0, 'digits').permutation(len(everything))
  return everything.take(order[NUM_DIGITS_TEST:]), everything.take(order[:NUM_DIGITS_TEST])


# Sets that need no files: name → (description, function that returns train and test).
EMBEDDED = {
  'digits': (
    Description((8, 8, 1), tuple('0123456789'), 1797 - NUM_DIGITS_TEST, NUM_DIGITS_TEST),
    _load_digits,
  )
}


def _load_tfds(config: ConfigDict) -> tuple[Split, Split]:
  builder = _tfds_builder(config)
  image, label = _supervised_features(builder)

  def read(split_name: str) -> Split:
    source = builder.as_data_source(split_name)
    records = source.__getitems__(list(range(len(source))))
    images = np.stack([record[image] for record in records])
    return Split(images, np.array([record[label] for record in records], np.int32))

  return read('train'), read(_test_name(builder))


def _tfds_builder(config: ConfigDict, prepare: bool = False) -> tfds.core.DatasetBuilder:
  data_dir = None if config.data_dir is None else epath.Path(config.data_dir).expanduser()
  try:
    builder = tfds.builder(config.name, data_dir=data_dir)
  except ImportError as error:
    raise UserError(
      f'dataset.name = {config.name!r}: TensorFlow Datasets cannot describe it without a package that '
      f'is not installed ({error})'
    ) from error
  except (tfds.core.DatasetNotFoundError, ValueError, AssertionError) as error:
    raise UserError(
      f'dataset.name = {config.name!r}: no such data set. Allowed: {", ".join(EMBEDDED)} (embedded), or '
      'the name of an image classification set of TensorFlow Datasets, such as cifar10, cifar100 or mnist. '
      f'({str(error).splitlines()[0]})'
    ) from error
  if not any(epath.Path(builder.data_dir).glob('*.array_record*')):
    _prepare(config.name, data_dir, epath.Path(builder.data_dir), prepare)
    builder = tfds.builder(config.name, data_dir=data_dir)
  return builder


def _prepare(name: str, data_dir: epath.Path | None, place: epath.Path, allowed: bool) -> None:
  """Downloads and prepares a data set, or raises an error that says how to do so."""
  where = '' if data_dir is None else f", data_dir='{data_dir}'"
  advice = (
    f'dataset.name = {name!r}: not found in array_record format under {place}. If it lies elsewhere, '
    'set --config.dataset.data_dir or TFDS_DATA_DIR. To download and prepare it, once, on a machine '
    'with network: pip install tensorflow && python -c "import tensorflow_datasets as tfds; '
    f"tfds.builder('{name}'{where}, file_format='array_record').download_and_prepare()\""
  )
  if importlib.util.find_spec('tensorflow') is None:
    raise UserError(f'{advice}. (TensorFlow, which only this needs, is not installed.)')
  if not allowed:
    raise UserError(advice)
  try:
    tfds.builder(name, data_dir=data_dir, file_format='array_record').download_and_prepare()
  except Exception as error:
    raise UserError(f'{advice}. (Preparing it just now failed: {error})') from error


def _supervised_features(builder: tfds.core.DatasetBuilder) -> tuple[str, str]:
  """The names of the one image and the one label of an image classification set."""
  features = builder.info.features
  images = [name for name, f in features.items() if isinstance(f, tfds.features.Image)]
  labels = [name for name, f in features.items() if isinstance(f, tfds.features.ClassLabel)]
  if builder.info.supervised_keys is not None:
    images = [name for name in images if name in builder.info.supervised_keys] or images
    labels = [name for name in labels if name in builder.info.supervised_keys] or labels
  if (
    len(images) != 1
    or len(labels) != 1
    or None in features[images[0]].shape
    or features[images[0]].np_dtype != np.uint8
  ):
    raise UserError(
      f'dataset.name = {builder.name!r}: has the features {list(features)}. Needed: one uint8 image of '
      'fixed size and one class label'
    )
  return images[0], labels[0]


def _test_name(builder: tfds.core.DatasetBuilder) -> str:
  return 'test' if 'test' in builder.info.splits else 'validation'
