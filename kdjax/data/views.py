"""Views: view(seed, batch) → inputs and labels, a pure function of each example alone.

An example's index and its view number decide its augmentation exactly, whatever else is in the
batch. The prediction store relies on it: a stored prediction belongs to one (view, index). Runs on
device, inside jit. `train/inputs.py` gathers the examples, and their partners for mixtures.
Axes: B batch, H W C image, X whatever an input has.
"""

import functools
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict, FrozenConfigDict

from kdjax import keys
from kdjax.data import augmentations
from kdjax.data.augmentations import FUNCTIONS
from kdjax.runtime import plugins

# Arrays by name; 'partners' is a nested batch.
Batch = dict[str, Any]
# (seed, batch) → (inputs_BX, labels_B): images as float32 in [−1, 1], and tokens as they are.
View = Callable[[jax.Array, Batch], tuple[jax.Array, jax.Array]]

NO_LABEL = -1
# Augmentations after which examples have no label. 'mixup' needs batch['partners'].
UNLABELLED = ('mixup', 'noise')
NAMES = (*FUNCTIONS, *UNLABELLED)
# The fields of the config section `augmentation` that a name reads.
FIELDS = augmentations.FIELDS | {'mixup': (), 'noise': ('noise_probability',)}


def make_view(names: Sequence[str], config: ConfigDict, num_augmented: int | None = None) -> View:
  """The view that applies the named augmentations in order; no names give the example as it is.

  Augmentations named before 'mixup' are applied to the example and to its partner, each with the key of its own
  index; those named after it are applied to the mixture (paper, Appendix A.1).

  Args:
    names: of NAMES, or 'module:attribute' of a function (key, image_HWC float32) → image_HWC. Each draws
      from its own stream, so adding one does not change the draws of the others.
    config: the config section `augmentation`.
    num_augmented: examples of this index and above stay as they are; None: all are augmented.

  Returns: view(seed, batch). A batch has 'inputs', 'labels', 'indices' and 'views', and for 'mixup'
    also 'partners', a batch of the examples that these are mixed with; all with the same leading axis.
    Equal arguments give the same function, so that equal steps are compiled once.
  """
  # A user's functions are part of the key: modules of one name in two folders differ.
  users = tuple(plugins.find(name, 'augmentation') for name in names if plugins.is_dotted(name))
  return _make_view(tuple(names), FrozenConfigDict(config or {}), num_augmented, users)


@functools.lru_cache
def _make_view(
  names: tuple[str, ...],
  config: FrozenConfigDict,
  num_augmented: int | None,
  users: tuple[Callable, ...],
) -> View:
  def apply(names, seed, images_BHWC, labels_B, indices_B, views_B):
    for name in names:
      one = partial(augmented, name, config, seed)
      if name in augmentations.MOVING:  # faster while images are bytes
        images_BHWC, labels_B = jax.vmap(one)(images_BHWC, labels_B, indices_B, views_B)
        continue
      examples = _scaled(images_BHWC), labels_B, indices_B, views_B
      # The loop over two halves keeps a compiler from fusing augmentations. Fused, a pixel would be computed
      # anew for every pixel of the next augmentation that reads it.
      images_BHWC, labels_B = jax.lax.map(
        lambda example, one=one: one(*example), examples, batch_size=max(len(labels_B) // 2, 1)
      )
    return _scaled(images_BHWC), labels_B

  def view(seed, batch):
    inputs_BX, labels_B = batch['inputs'], batch['labels']
    if inputs_BX.dtype == jnp.int32:  # tokens of a text
      return inputs_BX, labels_B
    return apply(names, seed, inputs_BX, labels_B, batch['indices'], batch['views'])

  def mixed_view(seed, batch):
    place = names.index('mixup')
    before, after = _make_view(names[:place], config, num_augmented, users), names[place + 1 :]
    (images_BHWC, labels_B), (partners_BHWC, _) = (
      before(seed, batch),
      before(seed, batch['partners']),
    )
    mixed_BHWC = jax.vmap(augmentations.mixup)(
      _keys('mixup', seed, batch), images_BHWC, partners_BHWC
    )
    no_labels_B = jnp.full_like(labels_B, NO_LABEL)
    return apply(after, seed, mixed_BHWC, no_labels_B, batch['indices'], batch['views'])

  augment = mixed_view if 'mixup' in names else view
  if num_augmented is None or not names:
    return augment

  def partly_augmented_view(seed, batch):
    images_BHWC, labels_B = augment(seed, batch)
    is_augmented_B = batch['indices'] < num_augmented
    is_augmented_B111 = is_augmented_B.reshape(-1, *(1,) * (images_BHWC.ndim - 1))
    return (
      jnp.where(is_augmented_B111, images_BHWC, _scaled(batch['inputs'])),
      jnp.where(is_augmented_B, labels_B, batch['labels']),
    )

  return partly_augmented_view


def _scaled(images_BHWC: jax.Array) -> jax.Array:
  is_bytes = images_BHWC.dtype == jnp.uint8
  return augmentations.unit_cube(images_BHWC) if is_bytes else images_BHWC


def _keys(name: str, seed: jax.Array, batch: Batch) -> jax.Array:
  return jax.vmap(partial(keys.stream, seed, f'view/{name}'))(batch['views'], batch['indices'])


def augmented(
  name: str,
  config: ConfigDict,
  seed: jax.Array,
  image_HWC: jax.Array,
  label: jax.Array,
  index: jax.Array,
  view: jax.Array,
) -> tuple[jax.Array, jax.Array]:
  """One example after one augmentation or 'noise', and its label: NO_LABEL if noise replaced it.

  The key is that of the stream `view/{name}` at the view and the index, and depends on nothing else.
  """
  key = keys.stream(seed, f'view/{name}', view, index)
  if name == 'noise':
    image_HWC, replaced = augmentations.noise(key, image_HWC, config.noise_probability)
    return image_HWC, jnp.where(replaced, NO_LABEL, label)
  return augmentations.find(name)(key, image_HWC, config), label


def fields(names: Sequence[str], config: ConfigDict) -> dict[str, float | str]:
  """The fields of the section `augmentation` that a view of these names depends on, with their values."""
  return {field: config[field] for name in names for field in FIELDS.get(name, ())}
