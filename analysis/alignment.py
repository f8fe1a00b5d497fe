"""Alignment of two networks by permuting the hidden units of one (Ainsworth et al. 2023).

All functions run on the host. Variables are {'params', 'batch_stats'}. Unit i of a permuted network is unit
indices_U[i] of the given network, times signs_U[i] if units may change sign. Axes: U unit of a group, R row
(every position of every example).
"""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from typing import NamedTuple

import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from scipy.optimize import linear_sum_assignment

from .activations import correlations
from .permutations import FIXED, Path, Spec


class Units(NamedTuple):
  """The source of each unit of a group, and its sign, 1 or −1."""

  indices_U: np.ndarray
  signs_U: np.ndarray


Permutations = dict[str, Units]
Flat = dict[Path, np.ndarray]
MIN_GAIN = 1e-12  # of the inner product, relative to the product of norms; less is rounding
LEARNING_RATE = 0.5  # of a learned alignment: each step moves an array by this share of its norm
UNCHANGED = 'as they are'
WEIGHTS, ACTIVATIONS, LEARNED = 'weights', 'activations', 'learned'


def apply(spec: Spec, permutations: Permutations, variables: Mapping) -> dict:
  """Permutes the units of a network, which leaves its function unchanged.

  Args:
    variables: {'params', 'batch_stats'}, or 'params' alone.

  Raises:
    KeyError: the spec does not describe one of the arrays, or a permutation is missing.
  """
  permuted = {
    path: _permuted(spec, permutations, path, np.asarray(array))
    for path, array in flatten_dict(variables).items()
  }
  return {name: {} for name in variables} | unflatten_dict(permuted)


def identity(spec: Spec) -> Permutations:
  """The permutations that change nothing."""
  return {group: Units(np.arange(size), np.ones(size)) for group, size in spec.sizes.items()}


def random_permutations(spec: Spec, rng: np.random.Generator) -> Permutations:
  """Uniformly random permutations, with random signs for groups whose units may change sign."""
  return {
    group: Units(
      rng.permutation(size), rng.choice([-1.0, 1.0], size) if spec.flips(group) else np.ones(size)
    )
    for group, size in spec.sizes.items()
  }


# The best of several alignments.


class Best(NamedTuple):
  """The name of the alignment with the lowest loss, and all candidates."""

  name: str
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
  """The candidate alignment with the lowest loss halfway to the target.

  The candidates are the network as it is; weight matching from its default start and from `restarts`
  random starts; activation matching; and a learned alignment that starts from the best of these.

  Args:
    target: the variables of the network that stays as it is.
    variables: those of the network that is permuted.
    height: maps aligned variables to the loss halfway between them and the target. It makes the choice,
      so report results on other examples.
    activations: maps variables to their `activations.group_activations`.
    gradient: maps (aligned variables, step) to the gradient of the loss halfway, as for `learned`.
    num_steps: steps of the learned alignment; 0 leaves it out.
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
    visited = [start]
    for found in learned(spec, start, variables, gradient, num_steps, rng):
      if found is not visited[-1]:
        visited.append(found)
    visited_heights = [height(apply(spec, found, variables)) for found in visited]
    lowest = int(np.argmin(visited_heights))
    candidates[LEARNED], heights[LEARNED] = visited[lowest], visited_heights[lowest]
  return Best(min(heights, key=heights.get), candidates, heights)


# By weights.


def weight_matching(
  spec: Spec,
  target_params: Mapping,
  params: Mapping,
  rng: np.random.Generator,
  start_at_random: bool = False,
) -> Permutations:
  """Permutations of `params` that maximise, locally, the inner product with `target_params`.

  This is also a local minimum of the distance. The method is coordinate descent (Ainsworth et al. 2023,
  Algorithm 1): groups are visited in random order, and the best permutation of one group with all others
  held fixed is a linear assignment problem. It ends when no group gains. Where a group lies along two axes
  of one array (the recurrent kernels of an LSTM) the problem is quadratic and is linearised; if that step
  loses, it is repeated with a growing reward for units that stay. No step lowers the inner product, in
  float64.

  By default the better result of two starts is returned. The first start is the identity, so the result is
  never further from the target than `params`. The second matches the groups in order of depth and compares
  only layers whose other groups are already matched, which aligns a permuted copy of the target exactly if no
  two units are equal.

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
  """Yields the alignments that descend the loss, by a straight-through estimator.

  Latent weights start as the permuted network. Each step matches the network's units to the latent
  weights by weight matching, takes the gradient of the loss at the permuted network, and moves the latent
  weights against it (Ainsworth et al. 2023, Section 3.3). Each array moves by LEARNING_RATE of its norm, so
  that the scale of the weights does not matter.

  Args:
    gradient: maps (permuted variables, step) to the gradient with respect to their params.

  Yields: the permutations after each of the `num_steps` steps.
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


def _ascend(
  spec: Spec, target: Flat, flat: Flat, start: Permutations, rng: np.random.Generator
) -> Permutations:
  """Runs coordinate descent from `start` until no group gains."""
  permutations, settled = start, set()  # groups that cannot gain until a neighbour changes
  min_gain = MIN_GAIN * _norm(target) * _norm(flat)
  while len(settled) < len(spec.sizes):
    for group in rng.permutation(list(spec.sizes)):
      if group in settled:
        continue
      before = permutations
      permutations = _step(spec, target, flat, permutations, group, min_gain)
      if permutations is not before:
        settled -= spec.neighbours(group)
      else:
        settled.add(group)
  return permutations


def _step(
  spec: Spec, target: Flat, flat: Flat, permutations: Permutations, group: str, min_gain: float
) -> Permutations:
  """Improves the permutation of one group; returns the same object if there is no gain."""
  similarity_UU, signed_UU = _similarity(spec, target, flat, permutations, group)
  paths = {path for path, _ in spec.places(group) if path in flat}
  product = partial(_inner_product, spec, target, flat, paths=paths)
  current, start = permutations[group], None
  stays = np.arange(len(current.indices_U)), current.indices_U
  reward = (np.ptp(similarity_UU) + np.ptp(signed_UU)) / 16 or 1.0
  while True:
    found = _assigned(similarity_UU, signed_UU)
    if all(np.array_equal(a, b) for a, b in zip(found, current, strict=True)):
      return permutations
    candidate = permutations | {group: found}
    start = product(permutations) if start is None else start
    if product(candidate) > start + min_gain:
      return candidate
    signed_UU[stays] += reward * current.signs_U
    reward *= 2


def _matched_by_depth(spec: Spec, target: Flat, flat: Flat) -> Permutations:
  """Matches each group by the layers that join it to inputs, classes and groups before it."""
  permutations, known = identity(spec), set()
  for group in spec.sizes:
    permutations[group] = _assigned(*_similarity(spec, target, flat, permutations, group, known))
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
  """Inner products of the weights of the target's unit i and the network's unit j, as matrices (i, j).

  The other axes are permuted. With `known`, layers that also have a group outside it are left out.

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


# By activations.


def activation_matching(
  spec: Spec, target_activations: Mapping, activations: Mapping
) -> Permutations:
  """The assignment of units with the largest sum of correlations, for each group.

  It uses Pearson's correlation of two units' activations over all rows (Li et al. 2016, "Convergent
  Learning"; Ainsworth et al. 2023, Section 3.1, use covariances). A constant unit has correlation 0. Where
  units may change sign, the absolute value of the correlation counts.

  Args:
    target_activations, activations: {group: activations_RU} of two networks on the same inputs, from
      `activations.group_activations`; concatenate several batches along R.

  Raises:
    ValueError: the numbers of rows differ.
  """
  permutations = {}
  for group in spec.sizes:
    correlations_UU = correlations(target_activations[group], activations[group])
    zeros_UU = np.zeros_like(correlations_UU)
    flips = spec.flips(group)
    permutations[group] = _assigned(
      *((zeros_UU, correlations_UU) if flips else (correlations_UU, zeros_UU))
    )
  return permutations


# Shared.


def _assigned(similarity_UU: np.ndarray, signed_UU: np.ndarray) -> Units:
  """The one-to-one assignment of columns to rows with the largest sum, with its signs.

  Args:
    signed_UU: the part of the similarity that changes sign with the unit; 0 where units keep theirs.
  """
  rows_U, indices_U = linear_sum_assignment(similarity_UU + np.abs(signed_UU), maximize=True)
  return Units(indices_U, np.where(signed_UU[rows_U, indices_U] < 0, -1.0, 1.0))


def _permuted(
  spec: Spec, permutations: Permutations, path: Path, array: np.ndarray, but: int | None = None
) -> np.ndarray:
  """Permutes one array of the variables along all axes, or all but one."""
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
  """The inner product of the target and the permuted network over the arrays at `paths`."""
  return math.fsum(
    np.vdot(target[path], _permuted(spec, permutations, path, flat[path])) for path in paths
  )


def _norm(flat: Flat) -> float:
  return math.sqrt(math.fsum(np.vdot(array, array) for array in flat.values()))


def _float64(tree: Mapping) -> Flat:
  return {path: np.asarray(array, np.float64) for path, array in flatten_dict(tree).items()}
