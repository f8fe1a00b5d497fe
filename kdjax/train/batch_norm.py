"""BatchNorm's statistics of single batches, and their pooling over several batches.

Statistics are trees shaped like the collection 'batch_stats', with leaves 'mean' and 'var'.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

Variables = dict[str, Any]


def apply_in_batch(
  model: nn.Module, variables: Variables, inputs_BX: jax.Array
) -> tuple[jax.Array, Any]:
  """logits_BC with BatchNorm's statistics of this batch, and these statistics.

  The running statistics are not read. BatchNorm may have any momentum; it averages over the mapped axis
  `models.AXIS_NAME`.
  """

  def apply(running: Any) -> tuple[Any, jax.Array]:
    (logits_BC, _), updated = model.apply(
      {'params': variables['params'], 'batch_stats': running},
      inputs_BX,
      train=True,
      mutable=['batch_stats'],
      rngs={'dropout': jax.random.key(0)},
    )
    return updated['batch_stats'], logits_BC

  # The new statistics are momentum · running + (1 − momentum) · batch: their derivative is the momentum.
  zeros = jax.tree.map(jnp.zeros_like, variables['batch_stats'])
  ones = jax.tree.map(jnp.ones_like, zeros)
  updated, momentum, logits_BC = jax.jvp(apply, (zeros,), (ones,), has_aux=True)
  weight = jax.tree.map(lambda x: jnp.round(1 - x, 6), momentum)  # float32: 1 − 0.9 is not 0.1
  return logits_BC, jax.tree.map(jnp.divide, updated, weight)


def pool(statistics: Sequence[Any], sizes: Sequence[int] | None = None) -> Any:
  """The pooled statistics of several batches, in arrays of NumPy or of JAX, as the given ones.

  The variance is the mean of the batches' variances plus the variance of their means.

  Args:
    statistics: a tree for each batch.
    sizes: examples in each batch, the weights of all means. None: all batches are of one size.
  """

  def average(values: list) -> Any:
    library = np if isinstance(values[0], np.ndarray) else jnp
    weights = None if sizes is None else np.asarray(sizes)
    return library.average(library.stack(values), 0, weights).astype(values[0].dtype)

  first = statistics[0]
  if not isinstance(first, Mapping):  # another statistic of a user's model
    return average(statistics)
  if not first.keys() >= {'mean', 'var'}:
    return {name: pool([tree[name] for tree in statistics], sizes) for name in first}
  means, variances = ([tree[key] for tree in statistics] for key in ('mean', 'var'))
  mean = average(means)
  return {'mean': mean, 'var': average(variances) + average([(x - mean) ** 2 for x in means])}
