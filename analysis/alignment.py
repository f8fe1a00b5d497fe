"""Permuting the units of one network to resemble those of another (Ainsworth et al. 2023).

All on the host. `Variables` are {'params', 'batch_stats'}. Permutations are {group: indices_U}: unit i
of the permuted network is unit indices_U[i] of the given one. Axes: U units of a group, R rows (every
position of every example), B example of a batch, X the axes of one input.
"""

import functools
import math
from collections.abc import Iterable, Mapping

import flax.linen as nn
import jax
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from scipy.optimize import linear_sum_assignment

from analysis.permutations import FIXED, Axis, Path, Spec

Permutations = dict[str, np.ndarray]
Flat = dict[Path, np.ndarray]
MIN_GAIN = 1e-12  # of the inner product, relative to the product of norms; less is rounding


def apply(spec: Spec, permutations: Permutations, variables: Mapping) -> dict:
  """The same function with its units in another order.

  Args:
    variables: {'params', 'batch_stats'}, or 'params' alone.

  Raises:
    KeyError: the spec knows nothing of one of the arrays, or a permutation is missing.
  """
  permuted = {
    path: _permuted(spec, permutations, path, np.asarray(array))
    for path, array in flatten_dict(variables).items()
  }
  return {name: {} for name in variables} | unflatten_dict(permuted)


def identity(spec: Spec) -> Permutations:
  """That which changes nothing."""
  return {group: np.arange(size) for group, size in spec.sizes.items()}


def random_permutations(spec: Spec, rng: np.random.Generator) -> Permutations:
  """One for each group, all equally likely."""
  return {group: rng.permutation(size) for group, size in spec.sizes.items()}


def weight_matching(
  spec: Spec, target_params: Mapping, params: Mapping, rng: np.random.Generator, restarts: int = 0
) -> Permutations:
  """Permutations of `params` that raise their inner product with `target_params` to a local maximum.

  That is also a local minimum of the distance between them. Coordinate descent (Ainsworth et al. 2023,
  Algorithm 1): for one group at a time, in random order, the others held, the best permutation is a
  linear assignment problem; until none gains. Where a group lies along two axes of one array (the
  recurrent kernels of an LSTM) the problem is quadratic: it is solved linearised, and while that is no
  gain, again with a growing reward for staying where it is, so that fewer and fewer units move. No step
  lowers the inner product, in float64.

  The best result is returned of several starts: the identity; a pass in order of depth in which each
  group sees only layers whose other groups are matched; and `restarts` random ones. By the first, the
  result is never further from the target than `params` are. By the second, a permuted copy of the
  target without equal units is always aligned exactly.

  Args:
    rng: draws the order of the groups, and the random starts.
  """
  target, flat = (_float64({'params': tree}) for tree in (target_params, params))
  starts = [identity(spec), _matched_by_depth(spec, target, flat)]
  ends = [_ascend(spec, target, flat, start, rng) for start in starts]
  for _ in range(restarts):
    ends.append(_ascend(spec, target, flat, random_permutations(spec, rng), rng))
  return max(ends, key=lambda end: _inner_product(spec, target, flat, end, flat))


def activation_matching(
  spec: Spec, target_activations: Mapping, activations: Mapping
) -> Permutations:
  """For each group, the assignment of units with the largest sum of correlations.

  Pearson's correlation of two units' activations over all rows (Li et al. 2016, "Convergent Learning";
  Ainsworth et al. 2023, Section 3.1, with covariances). A unit that never changes correlates with none.

  Args:
    target_activations, activations: {group: activations_RU} of two networks on the same inputs, from
      `group_activations`; those of several batches are concatenated along R.

  Raises:
    ValueError: the numbers of rows differ.
  """
  permutations = {}
  for group in spec.sizes:
    target_RU, other_RU = (_standardised(a[group]) for a in (target_activations, activations))
    permutations[group] = _assigned(target_RU.T @ other_RU)
  return permutations


def group_activations(
  model: nn.Module, variables: Mapping, inputs_BX: np.ndarray, spec: Spec
) -> dict[str, np.ndarray]:
  """The activations of every group's units, with running statistics and without dropout.

  They are taken behind the ReLU where there is one, as the next layer reads them.

  Args:
    inputs_BX: images_BHWC float32, or tokens_BT int32 of which padding, 0, is left out.

  Returns: {group: activations_RU}, float32; R = B for dense layers, B · H · W for convolutions, and for
    texts the number of tokens. All of the batch is in memory at once.
  """
  modules = tuple(output.module for output in spec.outputs.values())
  captured = _captured(model, modules, variables, inputs_BX)
  activations = {}
  for (group, output), units in zip(spec.outputs.items(), captured, strict=True):
    units = np.asarray(units)
    if np.issubdtype(inputs_BX.dtype, np.integer):
      units = units[np.asarray(inputs_BX) != 0]
    rows_RU = units.reshape(-1, units.shape[-1])
    activations[group] = np.maximum(rows_RU, 0) if output.relu else rows_RU
  return activations


@functools.partial(jax.jit, static_argnums=(0, 1))
def _captured(
  model: nn.Module, modules: tuple[Path, ...], variables: Mapping, inputs_BX: jax.Array
) -> list[jax.Array]:
  _, state = model.apply(
    variables,
    inputs_BX,
    train=False,
    capture_intermediates=lambda module, method: method == '__call__' and module.path in modules,
    mutable=['intermediates'],
  )
  calls = flatten_dict(state['intermediates'])
  outputs = [calls[*module, '__call__'][0] for module in modules]
  # An RNN returns its carry, and then the states of all positions.
  return [output[1] if isinstance(output, tuple) else output for output in outputs]


def _standardised(activations_RU: np.ndarray) -> np.ndarray:
  """Of mean 0 and norm 1 by unit; 0 for a unit that does not change."""
  centred_RU = activations_RU - activations_RU.mean(axis=0, keepdims=True, dtype=np.float64)
  norms_1U = np.linalg.norm(centred_RU, axis=0, keepdims=True)
  scale_1U = math.sqrt(len(centred_RU)) * np.abs(activations_RU).max(axis=0, keepdims=True)
  changes_1U = norms_1U > 1e-6 * scale_1U  # what float32 may leave of a constant
  return np.divide(centred_RU, norms_1U, out=np.zeros_like(centred_RU), where=changes_1U)


def _assigned(similarity_UU: np.ndarray) -> np.ndarray:
  """For each row its column, each of them once, of the largest sum."""
  return linear_sum_assignment(similarity_UU, maximize=True)[1]


def _ascend(
  spec: Spec, target: Flat, flat: Flat, start: Permutations, rng: np.random.Generator
) -> Permutations:
  """Coordinate descent from `start`, until no group gains."""
  permutations = start
  min_gain = MIN_GAIN * _norm(target) * _norm(flat)
  while True:
    before = permutations
    for group in rng.permutation(list(spec.sizes)):
      permutations = _step(spec, target, flat, permutations, group, min_gain)
    if permutations is before:
      return permutations


def _step(
  spec: Spec, target: Flat, flat: Flat, permutations: Permutations, group: str, min_gain: float
) -> Permutations:
  """With a better permutation of one group, or the same object if none is found."""
  paths = {path for path, _ in spec.places(group) if path in flat}
  start = _inner_product(spec, target, flat, permutations, paths)
  similarity_UU = _similarity(spec, target, flat, permutations, group)
  current_U = permutations[group]
  reluctance = np.ptp(similarity_UU) / 16 or 1.0
  while True:
    candidate = permutations | {group: _assigned(similarity_UU)}
    if (candidate[group] == current_U).all():
      return permutations
    if _inner_product(spec, target, flat, candidate, paths) > start + min_gain:
      return candidate
    similarity_UU[np.arange(len(current_U)), current_U] += reluctance
    reluctance *= 2


def _matched_by_depth(spec: Spec, target: Flat, flat: Flat) -> Permutations:
  """Each group by the layers to already matched groups, to inputs and to classes."""
  permutations, known = identity(spec), set()
  for group in spec.sizes:
    permutations[group] = _assigned(_similarity(spec, target, flat, permutations, group, known))
    known.add(group)
  return permutations


def _similarity(
  spec: Spec,
  target: Flat,
  flat: Flat,
  permutations: Permutations,
  group: str,
  known: set[str] | None = None,
) -> np.ndarray:
  """Entry (i, j): inner product of the weights of the target's unit i and the network's unit j.

  The other axes are permuted. With `known`, layers with other groups along them are left out.
  """
  size = spec.sizes[group]
  similarity_UU = np.zeros((size, size))
  for path, axis in spec.places(group):
    if path not in flat:
      continue
    others = {name for i, names in enumerate(spec.axes[path]) if i != axis for name in names}
    if known is not None and not others <= known:
      continue
    array = np.moveaxis(_permuted(spec, permutations, path, flat[path], but=axis), axis, 0)
    target_array = np.moveaxis(target[path], axis, 0)
    start = 0
    for name in spec.axes[path][axis]:
      stop = start + spec.sizes[name]
      if name == group:
        rows, target_rows = (x[start:stop].reshape(size, -1) for x in (array, target_array))
        similarity_UU += target_rows @ rows.T
      start = stop
  return similarity_UU


def _permuted(
  spec: Spec, permutations: Permutations, path: Path, array: np.ndarray, but: int | None = None
) -> np.ndarray:
  """One array of the variables, along all axes or all but one."""
  for axis, names in enumerate(spec.axes[path]):
    if names != FIXED and axis != but:
      array = np.take(array, _indices(names, permutations), axis=axis)
  return array


def _indices(names: Axis, permutations: Permutations) -> np.ndarray:
  """Along an axis on which groups lie end to end."""
  sizes = [len(permutations[name]) for name in names]
  starts = np.cumsum([0, *sizes[:-1]])
  return np.concatenate([s + permutations[n] for s, n in zip(starts, names, strict=True)])


def _inner_product(
  spec: Spec, target: Flat, flat: Flat, permutations: Permutations, paths: Iterable[Path]
) -> float:
  """Over some arrays, of the target with the permuted network."""
  return math.fsum(
    np.vdot(target[path], _permuted(spec, permutations, path, flat[path])) for path in paths
  )


def _norm(flat: Flat) -> float:
  return math.sqrt(math.fsum(np.vdot(array, array) for array in flat.values()))


def _float64(tree: Mapping) -> Flat:
  return {path: np.asarray(array, np.float64) for path, array in flatten_dict(tree).items()}
