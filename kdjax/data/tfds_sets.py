"""Data sets of TensorFlow Datasets, read without TensorFlow.

Importing `tensorflow_datasets` takes about as long as importing JAX. So `kdjax.data.load` imports this
module only for a data set that needs it.
"""

import functools
import importlib.util
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from etils import epath

from kdjax.data import images, texts
from kdjax.data.sources import FOLDER, blocks
from kdjax.data.splits import balanced_order
from kdjax.errors import UserError

# Sets of TFDS that differ from the rest, by name.
SPECIAL = {  # functions that change an image before it is resized
  'emnist': images.transposed  # height and width are swapped (NIST's files; its TFDS description)
}
TEST_SPLIT = {
  'imagenet2012': 'validation'  # its 'test' has no labels
}
TEST_SHARE = 0.1  # of the examples of a set that has no other split than 'train'
# Splits without labels, which serve as unlabelled data in place of 'train'.
UNLABELLED_SPLITS = ('unsupervised', 'unlabelled')


class Tfds:
  """A prepared set of TensorFlow Datasets, read without TensorFlow.

  'test' is the split of that name, or 'validation'. If the set has neither, a tenth of 'train' is held out: the
  first examples in `balanced_order`, which are class-balanced and always the same.

  Args:
    name: as TFDS writes it: 'name', 'name/config' or 'name:version'.
    data_dir: the folder of TFDS; None for its default.
    prepare: whether to download and prepare a missing set.
    field: the config field, for errors.
    labelled: whether a class label is needed.

  Raises:
    UserError: the set is missing and is not or cannot be prepared, or is not of the needed kind.
  """

  dtype = np.dtype(np.uint8)

  def __init__(
    self,
    name: str,
    data_dir: str | None,
    prepare: bool = False,
    field: str = 'dataset.name',
    labelled: bool = True,
  ):
    self._name, self._data_dir, self._prefix = name, data_dir, f'{field} = {name!r}'
    self._builder = _open_builder(name, data_dir, self._prefix, prepare)
    self.special = SPECIAL.get(self._builder.name)
    self._input, self._label = self._find_features(labelled)
    self._decoders = {  # images are decoded later; other image features, such as masks, never
      feature: tfds.decode.SkipDecoding()
      for feature, kind in self._builder.info.features.items()
      if isinstance(kind, tfds.features.Image)
    }
    self._opened = {}
    if labelled:
      self._splits = {'train': 'train', 'test': self._test_split()}
      if not set(self._splits.values()) <= set(self._builder.info.splits):
        raise UserError(
          f'{self._prefix}: has the splits {list(self._builder.info.splits)}. Needed: '
          f'{" and ".join(map(repr, dict.fromkeys(self._splits.values())))}'
        )

  @property
  def set_name(self) -> str:
    """The name without config and version, which often share their images."""
    return self._builder.name

  @property
  def is_text(self) -> bool:
    return isinstance(self._builder.info.features[self._input], tfds.features.Text)

  @property
  def image_shape(self) -> tuple[int | None, int | None, int]:
    """(H, W, C); H and W are None where they vary."""
    return tuple(self._builder.info.features[self._input].shape)

  @property
  def class_names(self) -> tuple[str, ...]:
    return tuple(self._builder.info.features[self._label].names)

  @property
  def extra_split(self) -> str:
    splits = self._builder.info.splits
    found = [name for name in (*UNLABELLED_SPLITS, 'train') if name in splits]
    if not found:
      raise UserError(f"{self._prefix}: has the splits {list(splits)}. Needed: 'train'")
    return found[0]

  @property
  def holds_out(self) -> bool:
    """Whether 'test' is a share of the stored 'train'."""
    return self._label is not None and self._splits['test'] == 'train'

  def size(self, split: str) -> int:
    if split == 'val':
      return 0
    stored = self._builder.info.splits[self._stored(split)].num_examples
    if not self.holds_out:
      return stored
    num_test = max(1, round(TEST_SHARE * stored))
    return num_test if split == 'test' else stored - num_test

  def vocabulary(self, min_count: int) -> dict[str, int]:
    """The vocabulary of all training texts, which are read once in a process."""
    found = _vocabulary(self._name, self._data_dir, min_count)
    if not found:
      raise UserError(f'dataset.min_count = {min_count}: no word of {self._name} occurs that often')
    return found

  def labels(self, split: str) -> np.ndarray:
    return np.concatenate([self.fetch(split, block)[1] for block in blocks(self.size(split))])

  def fetch(self, split: str, indices: np.ndarray) -> tuple[list[bytes], np.ndarray]:
    """Encoded images or texts in UTF-8, and their labels: −1 if the split has none.

    Raises:
      UserError: labels are needed and missing.
    """
    records = self._records(self._stored(split), self._rows(split, indices))
    labels = [-1 if self._label is None else record[self._label] for record in records]
    if self._label is not None and min(labels) < 0:
      raise UserError(f'{self._prefix}: its split {self._stored(split)!r} has no labels')
    return [record[self._input] for record in records], np.array(labels, np.int32)

  def place(self, split: str, index: int) -> str:
    (row,) = self._rows(split, np.array([index]))
    return f'{self._prefix}, record {row} of {self._stored(split)!r}'

  def _stored(self, split: str) -> str:
    return self._splits[split] if self._label is not None else split

  def _rows(self, split: str, indices: np.ndarray) -> np.ndarray:
    """The positions of examples in the stored split."""
    return self._shares[split][indices] if self.holds_out else indices

  @functools.cached_property
  def _shares(self) -> dict[str, np.ndarray]:
    """The rows of the stored 'train' that are 'train' here, and those that are 'test'."""
    num_stored, num_test = self._builder.info.splits['train'].num_examples, self.size('test')
    rows = (self._records('train', block) for block in blocks(num_stored))
    order_N = balanced_order(np.array([r[self._label] for records in rows for r in records]))
    return {'test': np.sort(order_N[:num_test]), 'train': np.sort(order_N[num_test:])}

  def _records(self, stored: str, rows: np.ndarray) -> list[dict[str, Any]]:
    if stored not in self._opened:
      self._opened[stored] = self._builder.as_data_source(stored, decoders=self._decoders)
    return self._opened[stored].__getitems__(rows.tolist())

  def _test_split(self) -> str:
    found = [name for name in ('test', 'validation') if name in self._builder.info.splits]
    return TEST_SPLIT.get(self._builder.name, (found or ['train'])[0])

  def _find_features(self, labelled: bool) -> tuple[str, str | None]:
    """The names of the one input and, if labelled, of the one label."""
    features = self._builder.info.features
    supervised = self._builder.info.supervised_keys or ()

    def of_kind(kind) -> list[str]:
      found = [name for name, feature in features.items() if isinstance(feature, kind)]
      return [name for name in found if name in supervised] or found

    inputs = of_kind(tfds.features.Image) or of_kind(tfds.features.Text)
    labels = of_kind(tfds.features.ClassLabel)
    if len(inputs) != 1 or (labelled and len(labels) != 1) or not _is_usable(features[inputs[0]]):
      raise UserError(
        f'{self._prefix}: has the features {list(features)}. Needed: one input, which is a uint8 image '
        f'of 1, 3 or 4 channels or a text{", and one class label" if labelled else ""}'
      )
    return inputs[0], labels[0] if labelled else None


def _is_usable(feature: tfds.features.FeatureConnector) -> bool:
  is_image = isinstance(feature, tfds.features.Image)
  return not is_image or (feature.np_dtype == np.uint8 and feature.shape[-1] in (1, 3, 4))


@functools.lru_cache(maxsize=4)
def _vocabulary(name: str, data_dir: str | None, min_count: int) -> dict[str, int]:
  source = Tfds(name, data_dir)
  fetched = (source.fetch('train', block)[0] for block in blocks(source.size('train')))
  return texts.vocabulary((text.decode() for items in fetched for text in items), min_count)


def _open_builder(
  name: str, data_dir: str | None, prefix: str, prepare: bool
) -> tfds.core.DatasetBuilder:
  data_dir = None if data_dir is None else epath.Path(data_dir).expanduser()
  try:
    builder = tfds.builder(name, data_dir=data_dir)
  except ImportError as error:
    raise UserError(
      f'{prefix}: TensorFlow Datasets cannot describe it without a package that is not installed '
      f'({error})'
    ) from error
  except (tfds.core.DatasetNotFoundError, ValueError, AssertionError, TypeError) as error:
    raise UserError(
      f'{prefix}: no such data set. Allowed: digits (embedded), the name of an image or text '
      'classification set of TensorFlow Datasets, such as cifar10, emnist/byclass or imdb_reviews, or '
      f'images of your own ({_own_images(prefix)}). ({str(error).splitlines()[0]})'
    ) from error
  place = epath.Path(builder.data_dir)
  # A glob would read a * in the path as a pattern.
  if not place.is_dir() or not any('.array_record' in file.name for file in place.iterdir()):
    _prepare(name, data_dir, place, prefix, prepare)
    builder = tfds.builder(name, data_dir=data_dir)
  return builder


def _own_images(prefix: str) -> str:
  if prefix.startswith('dataset.name'):
    return f'{FOLDER!r}, with dataset.data_dir'
  return 'a path that begins with /, ./, ../ or ~'


def _prepare(
  name: str, data_dir: epath.Path | None, place: epath.Path, prefix: str, allowed: bool
) -> None:
  """Downloads and prepares a data set, or raises an error that says how to do so."""
  where = '' if data_dir is None else f", data_dir='{data_dir}'"
  advice = (
    f'{prefix}: not found in array_record format under {place}. If it lies elsewhere, '
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
