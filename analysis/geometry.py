"""Planes in weight space, projections onto them, and filter-normalised random directions.

All are pure functions of parameter trees, nested dicts of float32 arrays. Inner products are computed in
float64 on the host. `plane_point` is traceable, so only two coordinates are sent to the device.
Axes: K points, P points of a grid, F filters.
"""

from typing import Any, NamedTuple

import jax
import numpy as np

from kdjax.errors import UserError

Tree = Any  # nested dicts of arrays

# The height of a triangle that float32 rounding alone can cause, relative to the weights' norm.
RESOLVED = 1e-6


class CollinearError(UserError):
  """Three points lie on one line and span no plane."""


class Plane(NamedTuple):
  """The points origin + x first + y second; three trees of one structure."""

  origin: Tree
  first: Tree
  second: Tree


def inner(a: Tree, b: Tree) -> float:
  """⟨a, b⟩ over all entries of two trees, in float64."""
  products = jax.tree.map(
    lambda x, y: np.vdot(np.asarray(x, np.float64), np.asarray(y, np.float64)), a, b
  )
  return float(sum(jax.tree.leaves(products)))


def norm(a: Tree) -> float:
  """‖a‖₂ over all entries, in float64."""
  return float(np.sqrt(inner(a, a)))


def plane_through(a: Tree, b: Tree, c: Tree) -> Plane:
  """The plane through three points, in orthonormal coordinates (Garipov et al. 2018, Appendix A.1).

  Gram–Schmidt puts a at (0, 0), b at (‖b − a‖, 0), and c at y > 0. Distances in the plane equal distances
  between weights.

  Raises:
    CollinearError: the points lie on one line, up to the resolution of float32.
  """
  along, across = difference(b, a), difference(c, a)
  least = RESOLVED * max(norm(a), norm(b), norm(c))
  length = norm(along)
  if length > least:
    first = _scaled(along, 1 / length)
    across = _without(across, first)
    height = norm(across)
  if length <= least or height <= least:
    raise CollinearError(
      'the three networks lie on one line and span no plane: they must differ, and none may be an '
      'interpolation of the other two. Choose other networks.'
    )
  # A second pass: scaling up a flat triangle would enlarge the rounding error along `first`.
  across = _without(across, first)
  second = _scaled(across, 1 / norm(across))
  return Plane(a, _float32(first), _float32(second))


def plane_point(plane: Plane, xy_2: jax.Array) -> Tree:
  """The point origin + x first + y second, in the trees' dtype; traceable.

  Args:
    xy_2: coordinates in units of the directions' lengths.
  """
  return jax.tree.map(lambda o, u, v: o + xy_2[0] * u + xy_2[1] * v, *plane)


def project(plane: Plane, point: Tree) -> tuple[float, float, float]:
  """Projects a point onto a plane with orthonormal directions.

  Returns: (x, y, height), the coordinates of the nearest point and the distance to it.
  """
  offset = difference(point, plane.origin)
  x, y = inner(offset, plane.first), inner(offset, plane.second)
  # √(‖offset‖² − x² − y²) would lose a small height to cancellation.
  height = norm(_without(_without(offset, plane.first), plane.second))
  return x, y, height


def orthonormality_error(plane: Plane) -> float:
  """max |⟨uᵢ, uⱼ⟩ − δᵢⱼ| over the two directions; 0 if they are orthonormal."""
  u, v = plane.first, plane.second
  return max(abs(inner(u, u) - 1), abs(inner(v, v) - 1), abs(inner(u, v)))


def grid(points_K2: np.ndarray, resolution: int, margin: float) -> tuple[np.ndarray, np.ndarray]:
  """Coordinates (xs, ys) of a grid around points, with the same step in x and y.

  Args:
    points_K2: points (x, y) that the grid covers.
    resolution: points along the longer side, at least 2.
    margin: free space on all four sides, as a fraction of the longer side of the points' bounding box.

  Returns: two ascending arrays of equal spacing. The shorter side is extended to whole steps, equally at
    both ends.

  Raises:
    ValueError: the resolution is below 2, or all points coincide.
  """
  low_2, high_2 = np.min(points_K2, axis=0), np.max(points_K2, axis=0)
  longest = float(np.max(high_2 - low_2))
  if resolution < 2 or not longest > 0:
    raise ValueError(f'no grid of {resolution} points a side around {len(points_K2)} points')
  step = longest * (1 + 2 * margin) / (resolution - 1)
  middle_2, sides_2 = (low_2 + high_2) / 2, high_2 - low_2 + 2 * margin * longest
  # The longer side is a whole number of steps; rounding must not add one.
  counts_2 = np.ceil(sides_2 / step - 1e-9).astype(int) + 1
  xs, ys = (
    middle + step * (np.arange(count) - (count - 1) / 2)
    for middle, count in zip(middle_2, counts_2, strict=True)
  )
  return xs, ys


def grid_coords(xs: np.ndarray, ys: np.ndarray) -> np.ndarray:
  """coords_P2 of a grid's points, row by row.

  values_P.reshape(len(ys), len(xs))[row, column] is the value at x = xs[column], y = ys[row].
  """
  x_YX, y_YX = np.meshgrid(xs, ys)
  return np.stack([x_YX.ravel(), y_YX.ravel()], axis=1)


def random_directions(params: Tree, rng: np.random.Generator) -> tuple[Tree, Tree]:
  """Two filter-normalised random directions (Li et al. 2018, Section 4).

  Entries are drawn from N(0, 1), and each filter is scaled to the norm of the parameters' filter
  (`filter_normalised`). The second draw is first made orthogonal to the first within each filter, so that
  both are exactly filter-normalised and, up to rounding, orthogonal. Filters with a single weight have
  only one direction and stay parallel.

  Returns: (first, second), trees like `params`; the norm of each is that of all filters together.
  """
  first = jax.tree.map(lambda x: rng.standard_normal(np.shape(x)), params)
  second = jax.tree.map(lambda x: rng.standard_normal(np.shape(x)), params)
  second = jax.tree.map(_orthogonal_filters, second, first)
  return filter_normalised(first, params), filter_normalised(second, params)


def filter_normalised(direction: Tree, params: Tree) -> Tree:
  """Rescales each filter of a direction to the norm of the parameters' filter (Li et al. 2018).

  A filter holds the weights into one unit: the entries at one index of the last axis, for kernels of Dense,
  Conv and LSTM gates and for embeddings. Arrays with one axis (biases, scales of norms) have no filters
  and become 0. A ReLU network whose layers are rescaled by c and 1/c therefore has the same surface.

  Returns: a float32 tree like `params`.
  """

  def rescale(direction, weights):
    if np.ndim(weights) < 2:
      return np.zeros(np.shape(weights), np.float32)
    drawn_xF = np.asarray(direction, np.float64).reshape(-1, np.shape(weights)[-1])
    weights_xF = np.asarray(weights, np.float64).reshape(drawn_xF.shape)
    norms_F = np.linalg.norm(weights_xF, axis=0) / np.linalg.norm(drawn_xF, axis=0)
    return (drawn_xF * norms_F).reshape(np.shape(weights)).astype(np.float32)

  return jax.tree.map(rescale, direction, params)


def _orthogonal_filters(draw: np.ndarray, other: np.ndarray) -> np.ndarray:
  """Removes from `draw` its component along `other`, filter by filter."""
  if draw.ndim < 2 or draw[..., 0].size == 1:
    return draw
  axes = tuple(range(draw.ndim - 1))
  along = np.sum(draw * other, axes, keepdims=True) / np.sum(other * other, axes, keepdims=True)
  return draw - along * other


def difference(a: Tree, b: Tree) -> Tree:
  """a − b, in float64."""
  return jax.tree.map(lambda x, y: np.asarray(x, np.float64) - np.asarray(y, np.float64), a, b)


def distance(a: Tree, b: Tree) -> float:
  """‖a − b‖₂, in float64."""
  return norm(difference(a, b))


def _scaled(a: Tree, factor: float) -> Tree:
  return jax.tree.map(lambda x: factor * x, a)


def _without(a: Tree, unit: Tree) -> Tree:
  """Removes from `a` its component along a direction of length 1."""
  along = inner(a, unit)
  return jax.tree.map(lambda x, u: x - along * np.asarray(u, np.float64), a, unit)


def _float32(a: Tree) -> Tree:
  return jax.tree.map(lambda x: x.astype(np.float32), a)
