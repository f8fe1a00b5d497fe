"""Views: view(seed, batch) → inputs and labels, a pure function of each example alone.

An example's index and its view number decide its augmentation exactly, whatever else is in the
batch. The prediction store relies on it: a stored prediction belongs to one (view, index). Runs on
device, inside jit. Which other images an example meets is decided by (view, index) too, on the host,
in `inputs.py`. Axes: X whatever an input has.
"""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from kdjax import augmentations, keys
from kdjax.augmentations import AUGMENTATIONS

Batch = dict[str, jax.Array]
# (seed, batch) → (inputs_BX, labels_B): images as float32 in [−1, 1], and tokens as they are.
View = Callable[[jax.Array, Batch], tuple[jax.Array, jax.Array]]

NO_LABEL = -1
# They leave no label: the teacher alone says what there is to see. 'mixup' needs batch['partners'].
UNLABELLED = ('mixup', 'noise')
NAMES = (*AUGMENTATIONS, *UNLABELLED)
# The fields of the config section `augmentation` that a name reads.
FIELDS = augmentations.FIELDS | {'mixup': (), 'noise': ('noise_probability',)}


def make_view(names: Sequence[str], config: ConfigDict) -> View:
  """The view that applies the named augmentations in order; no names give the example as it is.

  With 'mixup', what is named before it is done to the example and to its partner, each by its own
  index, and what is named after it to the mixture (paper, Appendix A.1).

  Args:
    names: of NAMES. Each draws from its own stream, so adding one leaves the others' draws.
    config: the config section `augmentation`.

  Returns: view(seed, batch). A batch has 'inputs', 'labels', 'indices' and 'views', and for 'mixup'
    also 'partners' and 'partner_indices', all with the same leading axis.
  """

  def apply(names, seed, image_HWC, label, index, view):
    for name in names:
      key = keys.stream(seed, f'view/{name}', view, index)
      if name == 'noise':
        image_HWC, replaced = augmentations.noise(key, image_HWC, config.noise_probability)
        label = jnp.where(replaced, NO_LABEL, label)
      else:
        image_HWC = AUGMENTATIONS[name](key, image_HWC, config)
    return image_HWC, label

  def one(seed, example):
    image_HWC, label = augmentations.unit_cube(example['inputs']), example['labels']
    index, view = example['indices'], example['views']
    if 'mixup' not in names:
      return apply(names, seed, image_HWC, label, index, view)
    place = names.index('mixup')
    before, after = names[:place], names[place + 1 :]
    image_HWC, _ = apply(before, seed, image_HWC, label, index, view)
    partner_HWC = augmentations.unit_cube(example['partners'])
    partner_HWC, _ = apply(before, seed, partner_HWC, label, example['partner_indices'], view)
    mixed_HWC = augmentations.mixup(
      keys.stream(seed, 'view/mixup', view, index), image_HWC, partner_HWC
    )
    return apply(after, seed, mixed_HWC, jnp.full_like(label, NO_LABEL), index, view)

  def view(seed, batch):
    if not jnp.issubdtype(batch['inputs'].dtype, jnp.uint8):  # tokens of a text
      return batch['inputs'], batch['labels']
    return jax.vmap(one, in_axes=(None, 0))(seed, batch)

  return view


def fields(names: Sequence[str], config: ConfigDict) -> dict[str, float]:
  """Those fields of the section `augmentation` that a view of these names depends on."""
  return {field: config[field] for name in names for field in FIELDS[name]}
