"""Permuting the units of one network to resemble those of another (Ainsworth et al. 2023).

All on the host. `Variables` are {'params', 'batch_stats'}. Unit i of a permuted network is unit
indices_U[i] of the given one, times signs_U[i] where units may change sign. Axes: U units of a group, R
rows (every position of every example), B example of a batch, X the axes of one input.
"""

import functools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import NamedTuple

import flax.linen as nn
import jax
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from scipy.optimize import linear_sum_assignment

from analysis.permutations import FIXED, Path, Spec


class Units(NamedTuple):
  """Where each unit of a group comes from, and 1 or −1."""

  indices_U: np.ndarray
  signs_U: np.ndarray


Permutations = dict[str, Units]
Flat = dict[Path, np.ndarray]
MIN_GAIN = 1e-12  # of the inner product, relative to the product of norms; less is rounding
LEARNING_RATE = 0.5  # of a learned alignment: by how much of its norm an array moves in a step
UNCHANGED = 'as they are'
WEIGHTS, ACTIVATIONS, LEARNED = 'weights', 'activations', 'learned'


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
  """The permutations that change nothing."""
  return {group: _unsigned(np.arange(size)) for group, size in spec.sizes.items()}


def random_permutations(spec: Spec, rng: np.random.Generator) -> Permutations:
  """A permutation, and signs where units have some, for each group; all are equally likely."""
  return {
    group: Units(
      rng.permutation(size),
      rng.choice([-1.0, 1.0], size) if spec.flips(group) else np.ones(size),
    )
    for group, size in spec.sizes.items()
  }


# The best of several alignments.


class Best(NamedTuple):
  """The alignment with the lowest loss, and all that were tried."""

  name: str
  permutations: Permutations
  candidates: dict[str, Permutations]
  heights: dict[str, float]  # of the candidates, on the examples of the choice


def best_alignment(
  spec: Spec,
  target: Mapping,
  variables: Mapping,
  rng: np.random.Generator,
  *,
  height: Callable[[Mapping], float],
  activations: Callable[[Mapping], Mapping],
  gradient: Callable[[Mapping, int], Mapping],
  restarts: int,
  num_steps: int,
) -> Best:
  """The permutations of a network after which the loss halfway to the target is lowest.

  The candidates are the network as it is; weight matching from its usual and from `restarts` random
  starts; activation matching; and a learned alignment that starts from the best of these.

  Args:
    target, variables: of the two networks.
    height: aligned variables → the loss halfway between them and the target, re-estimated where the
      networks have BatchNorm. It decides; measure what is reported on other examples.
    activations: variables → their `group_activations`.
    gradient: (aligned variables, step) → the gradient of the loss halfway, as in `learned`.
    num_steps: of the learned alignment; 0: none.
  """
  params = variables['params']
  candidates = {
    UNCHANGED: identity(spec),
    WEIGHTS: weight_matching(spec, target['params'], params, rng),
    ACTIVATIONS: activation_matching(spec, activations(target), activations(variables)),
  }
  for i in range(restarts):
    name = f'{WEIGHTS}, restart {i + 1}'
    candidates[name] = weight_matching(spec, target['params'], params, rng, start_at_random=True)
  heights = {name: height(apply(spec, found, variables)) for name, found in candidates.items()}
  if num_steps:
    start = candidates[min(heights, key=heights.get)]
    on_the_way = [start]
    for found in learned(spec, start, variables, gradient, num_steps, rng):
      if found is not on_the_way[-1]:
        on_the_way.append(found)
    of_each = [height(apply(spec, found, variables)) for found in on_the_way]
    lowest = int(np.argmin(of_each))
    candidates[LEARNED], heights[LEARNED] = on_the_way[lowest], of_each[lowest]
  name = min(heights, key=heights.get)
  return Best(name, candidates[name], candidates, heights)


def weight_matching(
  spec: Spec,
  target_params: Mapping,
  params: Mapping,
  rng: np.random.Generator,
  start_at_random: bool = False,
) -> Permutations:
  """Permutations of `params` that raise their inner product with `target_params` to a local maximum.

  That is also a local minimum of the distance between them. Coordinate descent (Ainsworth et al. 2023,
  Algorithm 1): for one group at a time, in random order, the others held, the best permutation is a
  linear assignment problem; until none gains. Where a group lies along two axes of one array (the
  recurrent kernels of an LSTM) the problem is quadratic: it is solved linearised, and while that is no
  gain, again with a growing reward for staying where it is, so that fewer and fewer units move. No step
  lowers the inner product, in float64.

  The better result is returned of two starts: the identity, and a pass in order of depth in which each
  group sees only layers whose other groups are matched. By the first, the result is never further from
  the target than `params` are. By the second, a permuted copy of the target without equal units is
  always aligned exactly.

  Args:
    rng: draws the order of the groups, and the random start.
    start_at_random: start from random permutations instead.
  """
  target, flat = (_float64({'params': tree}) for tree in (target_params, params))
  if start_at_random:
    return _ascend(spec, target, flat, random_permutations(spec, rng), rng)
  starts = [identity(spec), _matched_by_depth(spec, target, flat)]
  ends = [_ascend(spec, target, flat, start, rng) for start in starts]
  return max(ends, key=lambda end: _inner_product(spec, target, flat, end, flat))


def learned(
  spec: Spec,
  start: Permutations,
  variables: Mapping,
  gradient: Callable[[Mapping, int], Mapping],
  num_steps: int,
  rng: np.random.Generator,
) -> Iterator[Permutations]:
  """Alignments on the way down the loss, by a straight-through estimator.

  Latent weights start as the permuted network. Each step matches the network's units to them by their
  weights, takes the gradient of the loss with respect to the permuted network, and moves the latent
  weights against it as if they were that network (Ainsworth et al. 2023, Section 3.3). Each array moves
  by LEARNING_RATE of its norm, so that the scale of the weights does not matter.

  Args:
    gradient: (permuted variables, step) → the gradient with respect to their params.

  Yields: the permutations after each step, `num_steps` in all.
  """
  flat = _float64({'params': variables['params']})
  permutations = start
  latent = {path: _permuted(spec, start, path, array) for path, array in flat.items()}
  for step in range(num_steps):
    slopes = _float64({'params': gradient(apply(spec, permutations, variables), step)})
    for path, slope in slopes.items():
      if norm := np.linalg.norm(slope):
        latent[path] = latent[path] - LEARNING_RATE * np.linalg.norm(flat[path]) / norm * slope
    permutations = _ascend(spec, latent, flat, permutations, rng)
    yield permutations


def activation_matching(
  spec: Spec, target_activations: Mapping, activations: Mapping
) -> Permutations:
  """For each group, the assignment of units with the largest sum of correlations.

  Where units may change sign, a negative correlation counts as a positive one of the negated unit.
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
    correlations_UU = target_RU.T @ other_RU
    if spec.flips(group):
      permutations[group] = _assigned(np.zeros_like(correlations_UU), correlations_UU)
    else:
      permutations[group] = _assigned(correlations_UU)
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


def _assigned(similarity_UU: np.ndarray, signed_UU: np.ndarray | None = None) -> Units:
  """For each row its column, each of them once, of the largest sum; and the sign that gives it.

  Args:
    signed_UU: what changes sign with the unit; without it all signs are 1.
  """
  if signed_UU is None:
    return _unsigned(linear_sum_assignment(similarity_UU, maximize=True)[1])
  rows_U, indices_U = linear_sum_assignment(similarity_UU + np.abs(signed_UU), maximize=True)
  return Units(indices_U, np.where(signed_UU[rows_U, indices_U] < 0, -1.0, 1.0))


def _unsigned(indices_U: np.ndarray) -> Units:
  return Units(indices_U, np.ones(len(indices_U)))


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
  similarity_UU, signed_UU = _similarity(spec, target, flat, permutations, group)
  current = permutations[group]
  stays = np.arange(len(current.indices_U)), current.indices_U
  reluctance = (np.ptp(similarity_UU) + np.ptp(signed_UU)) / 16 or 1.0
  while True:
    found = _assigned(similarity_UU, signed_UU if spec.flips(group) else None)
    if all(np.array_equal(a, b) for a, b in zip(found, current, strict=True)):
      return permutations
    candidate = permutations | {group: found}
    if _inner_product(spec, target, flat, candidate, paths) > start + min_gain:
      return candidate
    if spec.flips(group):
      signed_UU[stays] += reluctance * current.signs_U
    else:
      similarity_UU[stays] += reluctance
    reluctance *= 2


def _matched_by_depth(spec: Spec, target: Flat, flat: Flat) -> Permutations:
  """Each group by the layers to already matched groups, to inputs and to classes."""
  permutations, known = identity(spec), set()
  for group in spec.sizes:
    similarity_UU, signed_UU = _similarity(spec, target, flat, permutations, group, known)
    permutations[group] = _assigned(similarity_UU, signed_UU if spec.flips(group) else None)
    known.add(group)
  return permutations


def _similarity(
  spec: Spec,
  target: Flat,
  flat: Flat,
  permutations: Permutations,
  group: str,
  known: set[str] | None = None,
) -> tuple[np.ndarray, np.ndarray]:
  """Entry (i, j): inner product of the weights of the target's unit i and the network's unit j.

  The other axes are permuted. With `known`, layers with other groups along them are left out.

  Returns: the sum over weights that keep their sign, and the sum over those that change it with the unit.
  """
  size = spec.sizes[group]
  similarity_UU, signed_UU = np.zeros((2, size, size))
  for path, axis in spec.places(group):
    if path not in flat:
      continue
    others = {name for i, names in enumerate(spec.axes[path]) if i != axis for name in names}
    if known is not None and not others <= known:
      continue
    array = np.moveaxis(_permuted(spec, permutations, path, flat[path], but=axis), axis, 0)
    target_array = np.moveaxis(target[path], axis, 0)
    total_UU = signed_UU if (path, axis) in spec.signed else similarity_UU
    start = 0
    for name in spec.axes[path][axis]:
      stop = start + spec.sizes[name]
      if name == group:
        rows, target_rows = (x[start:stop].reshape(size, -1) for x in (array, target_array))
        total_UU += target_rows @ rows.T
      start = stop
  return similarity_UU, signed_UU


def _permuted(
  spec: Spec, permutations: Permutations, path: Path, array: np.ndarray, but: int | None = None
) -> np.ndarray:
  """One array of the variables, along all axes or all but one."""
  for axis, names in enumerate(spec.axes[path]):
    if names == FIXED or axis == but:
      continue
    units = [permutations[name] for name in names]
    starts = np.cumsum([0, *(len(of.indices_U) for of in units[:-1])])  # groups lie end to end
    indices = np.concatenate([s + of.indices_U for s, of in zip(starts, units, strict=True)])
    array = np.take(array, indices, axis=axis)
    if (path, axis) in spec.signed:
      signs = np.concatenate([of.signs_U for of in units]).astype(array.dtype)
      array = array * signs.reshape(-1, *(1,) * (array.ndim - axis - 1))
  return array


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
