"""Splits of a data set in memory or on disk, their parts, sizes and checksums. Axes: N example."""

import dataclasses
import hashlib
from collections.abc import Sequence

import numpy as np
from ml_collections import ConfigDict

from kdjax import keys
from kdjax.data import sources
from kdjax.data.streaming import StreamedImages

# The prefix of checksums that cover a sample of the images. Only checksums of one kind are compared.
SAMPLED = 'sampled-'
NUM_SAMPLED = (
  1024  # images of each split; a change of 0.45 % of all images is missed in 1 % of cases
)


@dataclasses.dataclass(frozen=True)
class Split:
  """Inputs and labels of examples in a fixed order."""

  # Images (N, H, W, C) uint8 or float32 in [−1, 1]; features (N, F) likewise; or tokens (N, T) int32,
  # padded with 0 at the end.
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
    """These examples, then the others. Both are streamed, or neither."""
    if self.is_streamed:
      inputs_N = self.inputs_N.joined(other.inputs_N)
    else:
      inputs_N = np.concatenate([self.inputs_N, other.inputs_N])
    return Split(inputs_N, np.concatenate([self.labels_N, other.labels_N]))


@dataclasses.dataclass(frozen=True)
class Description:
  """Facts about a data set that are known before its inputs are read."""

  input_shape: tuple[int, ...]  # (H, W, C) of images, (T,) of texts
  class_names: tuple[str, ...]
  num_train: int  # all that the source has, before `num_val` and `num_train` are taken from it
  num_test: int
  vocabulary_size: int | None = None  # of texts, with the padding: token ids are below it
  num_val: int = 0  # examples of the source's own validation split
  dtype: str = 'uint8'  # of images: 'uint8', or 'float32' in [−1, 1]

  @property
  def num_classes(self) -> int:
    return len(self.class_names)

  @property
  def input_dtype(self) -> type:
    """The dtype of a model's inputs: int32 for tokens, float32 for images."""
    return np.float32 if self.vocabulary_size is None else np.int32


def split_sizes(config: ConfigDict, description: Description) -> dict[str, int]:
  """Examples in 'train', 'test' and, where it is not empty, 'val'."""
  available = description.num_train - config.num_val
  sizes = {'train': available if config.num_train is None else config.num_train}
  if config.num_val or description.num_val:
    sizes['val'] = config.num_val or description.num_val
  sizes['test'] = description.num_test if config.num_test is None else config.num_test
  return sizes


def balanced_order(labels_N: np.ndarray, seed: int = 0) -> np.ndarray:
  """A random order of all indices whose every prefix is class-balanced.

  Each class comes once in every round of the order, until it has no more examples.
  """
  shuffled = keys.numpy_rng(seed, 'subset').permutation(len(labels_N))
  rank_N = np.empty(len(labels_N), int)  # the number of earlier examples of the same class
  for label in np.unique(labels_N):
    of_label = np.flatnonzero(labels_N[shuffled] == label)
    rank_N[of_label] = np.arange(len(of_label))
  return shuffled[np.argsort(rank_N, kind='stable')]


def part_size(num_examples: int, examples: Sequence[int]) -> int:
  """The size of a part of `num_examples` examples."""
  return examples[1] - examples[0] if examples else num_examples


def part(split: Split, examples: Sequence[int], seed: int = 0) -> Split:
  """The examples at positions start, ..., stop − 1 of the class-balanced order, by their index.

  Parts that start at 0 are nested and class-balanced. If all classes are equally frequent, parts that start
  and stop at multiples of the number of classes are class-balanced too, such as the halves of data
  recycling (Stanton et al. 2021, Figure 4).

  Args:
    examples: (start, stop), or () for all.
    seed: decides the order.
  """
  if not examples:
    return split
  start, stop = examples
  return split.take(np.sort(balanced_order(split.labels_N, seed)[start:stop]))


def checksum(splits: dict[str, Split], sampled: bool | None = None) -> str:
  """A digest of every image and label, which distinguishes data sets of the same name.

  Reading a set larger than memory takes as long as an epoch. So a `sampled` digest, which begins with
  SAMPLED, covers every label, the shape, and 1,024 images of each split, always the same ones.

  Args:
    sampled: None means True if any split is streamed.
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
