"""Planes, grids and random directions against known values."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy_layers import random_variables

from analysis import geometry
from kdjax.models.bilstm import BiLSTM


def random_tree(seed, scale=1.0):
  rng = np.random.default_rng(seed)
  shapes = {'conv': {'kernel': (3, 3, 2, 4), 'bias': (4,)}, 'dense': {'kernel': (4, 5)}}
  return jax.tree.map(
    lambda shape: (scale * rng.standard_normal(shape)).astype(np.float32),
    shapes,
    is_leaf=lambda x: isinstance(x, tuple),
  )


def close(a, b, **kwargs):
  jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, **kwargs), a, b)


# Planes.


def test_a_plane_through_three_known_points():
  a, b, c = ({'w': np.array(w, np.float32)} for w in ([1, 1, 1], [1, 4, 1], [1, 3, -4]))
  plane = geometry.plane_through(a, b, c)
  close(plane.first, {'w': [0, 1, 0]}, atol=1e-7)
  close(plane.second, {'w': [0, 0, -1]}, atol=1e-7)
  found = [geometry.project(plane, p) for p in (a, b, c)]
  np.testing.assert_allclose(found, [(0, 0, 0), (3, 0, 0), (2, 5, 0)], atol=1e-6)


def test_the_points_that_define_a_plane_lie_on_it_and_are_reproduced():
  corners = [random_tree(seed) for seed in range(3)]
  plane = geometry.plane_through(*corners)
  assert geometry.orthonormality_error(plane) < 1e-6
  point = jax.jit(geometry.plane_point)
  for corner in corners:
    x, y, height = geometry.project(plane, corner)
    assert height < 1e-5 and y > -1e-5
    made = point(plane, jnp.array([x, y]))
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(made))
    close(made, corner, atol=2e-6)
  places_K2 = np.array([geometry.project(plane, corner)[:2] for corner in corners])
  for i, j in ((0, 1), (1, 2), (2, 0)):
    distance = geometry.norm(jax.tree.map(np.subtract, corners[i], corners[j]))
    np.testing.assert_allclose(np.linalg.norm(places_K2[i] - places_K2[j]), distance, rtol=1e-6)


@pytest.mark.parametrize('height', [0.0, 1e-3, 7.5])
def test_a_point_at_a_height_above_the_plane_returns_it(height):
  origin, b, c, other = (random_tree(seed) for seed in range(4))
  plane = geometry.plane_through(origin, b, c)
  # A unit normal: `other` minus its part in the plane.
  normal = jax.tree.map(lambda x: x.astype(np.float64), other)
  for _ in range(2):
    for direction in (plane.first, plane.second):
      along = geometry.inner(normal, direction)
      normal = jax.tree.map(lambda n, u: n - along * u, normal, direction)  # noqa: B023
  length = geometry.norm(normal)
  point = jax.tree.map(
    lambda o, u, v, n: o + 1.5 * u.astype(np.float64) - 0.25 * v + height * n / length,
    *plane,
    normal,
  )
  np.testing.assert_allclose(geometry.project(plane, point), (1.5, -0.25, height), atol=1e-6)


def test_a_flat_triangle_still_gives_orthonormal_directions():
  a, b, other = (random_tree(seed) for seed in range(3))
  c = jax.tree.map(lambda x, y, z: 0.3 * x + 0.7 * y + 1e-3 * z, a, b, other)
  assert geometry.orthonormality_error(geometry.plane_through(a, b, c)) < 1e-6


@pytest.mark.parametrize('part', [0.0, 0.4, 1.0, -2.0])
def test_collinear_and_equal_points_are_refused(part):
  a, b = random_tree(0), random_tree(1)
  between = jax.tree.map(lambda x, y: np.float32(part) * x + np.float32(1 - part) * y, a, b)
  for corners in ((a, b, between), (between, a, b)):
    with pytest.raises(geometry.CollinearError, match='span no plane: they must differ'):
      geometry.plane_through(*corners)


def test_the_error_of_directions_that_are_not_orthonormal():
  x, y, tilted, doubled = (
    {'w': np.array(w, np.float32)} for w in ([1, 0], [0, 1], [0.6, 0.8], [0, 2])
  )
  for second, expected in ((y, 0), (tilted, 0.6), (doubled, 3)):
    found = geometry.orthonormality_error(geometry.Plane(x, x, second))
    np.testing.assert_allclose(found, expected, atol=1e-7)
  # In float32 the last 1 would vanish beside 1e8.
  a = {'w': np.array([1e4, 1], np.float32), 'v': np.array([2], np.float32)}
  assert geometry.inner(a, a) == 1e8 + 5


# Grids.


def test_a_two_by_three_grid_is_filled_by_rows_of_y():
  coords_P2 = geometry.grid_coords(np.array([0.0, 1.0, 2.0]), np.array([0.0, 1.0]))
  values_YX = (coords_P2 @ np.array([1, 10])).reshape(2, 3)
  np.testing.assert_array_equal(values_YX, [[0, 1, 2], [10, 11, 12]])


def test_a_grid_has_one_step_and_covers_the_points_with_a_margin():
  xs, ys = geometry.grid(np.array([[0, 0], [8, 0], [3, 4]]), resolution=13, margin=0.25)
  np.testing.assert_allclose(xs, np.arange(-2, 10.5))  # 8 and 2 on both sides: 12 steps of 1
  np.testing.assert_allclose(ys, np.arange(-2, 6.5))
  tall = geometry.grid(np.array([[0, 0], [0, 8], [4, 3]]), resolution=13, margin=0.25)
  np.testing.assert_allclose(tall[1], xs)
  np.testing.assert_allclose(tall[0], ys)


@pytest.mark.parametrize('resolution', [2, 3, 10, 25])
def test_a_side_is_extended_evenly_to_whole_steps(resolution):
  xs, ys = geometry.grid(np.array([[0, 0], [3, 1], [1, 1.1]]), resolution, margin=0.1)
  assert len(xs) == resolution
  np.testing.assert_allclose([xs[0], xs[-1]], [-0.3, 3.3])
  step = 3.6 / (resolution - 1)
  np.testing.assert_allclose(np.diff(ys), step)
  assert ys[0] <= -0.3 and ys[-1] >= 1.4
  np.testing.assert_allclose((ys[0] + ys[-1]) / 2, 0.55)
  assert ys[-1] - ys[0] < 1.7 + step


def test_no_grid_without_two_points_a_side_or_any_extent():
  for points, resolution in (([[0, 0], [1, 2]], 1), ([[3, 3]] * 3, 5)):
    with pytest.raises(ValueError, match='no grid'):
      geometry.grid(np.array(points), resolution, margin=0.25)


def test_a_quadratic_bowl_is_round_on_the_grid():
  """‖w − centre‖² depends on the distance from the centre alone, if axes are equal and orthonormal."""
  corners = [random_tree(seed) for seed in range(3)]
  plane = geometry.plane_through(*corners)
  centre_xy = np.array([2.0, 1.0])
  centre = geometry.plane_point(plane, centre_xy)
  places_K2 = np.array([geometry.project(plane, c)[:2] for c in corners])
  xs, ys = geometry.grid(places_K2, resolution=9, margin=0.25)
  coords_P2 = geometry.grid_coords(xs, ys)

  def bowl(xy_2):
    point = geometry.plane_point(plane, xy_2)
    return sum(jax.tree.leaves(jax.tree.map(lambda a, b: jnp.sum((a - b) ** 2), point, centre)))

  values = np.asarray(jax.jit(lambda c: jax.lax.map(bowl, c))(coords_P2.astype(np.float32)))
  values_YX = values.reshape(len(ys), len(xs))
  expected_YX = (xs[None, :] - centre_xy[0]) ** 2 + (ys[:, None] - centre_xy[1]) ** 2
  np.testing.assert_allclose(values_YX, expected_YX, rtol=1e-4, atol=1e-4)


# Random directions.


def norms_by_filter(tree):
  return {
    jax.tree_util.keystr(path): np.linalg.norm(np.asarray(x).reshape(-1, x.shape[-1]), axis=0)
    for path, x in jax.tree_util.tree_leaves_with_path(tree)
    if x.ndim > 1
  }


def test_every_filter_has_the_norm_of_the_weights_filter():
  model = BiLSTM(num_classes=3, vocabulary_size=11, width=4)
  bilstm = random_variables(model, np.zeros((1, 6), np.int32))['params']
  for params in (random_tree(0, scale=3.0), bilstm):
    expected = norms_by_filter(params)
    for direction in geometry.random_directions(params, np.random.default_rng(1)):
      found = norms_by_filter(direction)
      assert found.keys() == expected.keys()
      for name, norms_F in expected.items():
        np.testing.assert_allclose(found[name], norms_F, rtol=1e-6)
      for x in jax.tree.leaves(direction):
        assert x.dtype == np.float32
        assert x.ndim > 1 or not x.any()


def test_filters_are_the_units_of_the_last_axis():
  params = {'kernel': np.diag([1.0, 2.0, 3.0])[:, :2], 'bias': np.ones(2)}
  direction = {'kernel': np.full((3, 2), 5.0), 'bias': np.ones(2)}
  found = geometry.filter_normalised(direction, params)
  np.testing.assert_allclose(found['kernel'], np.array([[1, 2]] * 3) / np.sqrt(3), rtol=1e-6)
  np.testing.assert_array_equal(found['bias'], [0, 0])


def test_directions_are_gaussian_around_zero():
  params = {'kernel': np.ones((100, 200), np.float32)}
  for direction in geometry.random_directions(params, np.random.default_rng(0)):
    entries = direction['kernel'].ravel()
    assert abs(entries.mean()) < 5 / np.sqrt(entries.size)  # 0.5 if drawn from [0, 1)
    np.testing.assert_allclose(entries.std(), 1, rtol=0.01)
    np.testing.assert_allclose(np.mean(entries**4), 3, rtol=0.05)  # 1.8 if uniform


def test_directions_are_orthogonal_in_every_filter():
  params = random_tree(0)
  first, second = geometry.random_directions(params, np.random.default_rng(0))
  for u, v in zip(jax.tree.leaves(first), jax.tree.leaves(second), strict=True):
    if u.ndim > 1:
      products_F = np.sum(u.astype(np.float64) * v, axis=tuple(range(u.ndim - 1)))
      np.testing.assert_allclose(products_F, 0, atol=1e-6)
      assert np.abs(u - v).max() > 0.1


def test_filters_of_zeros_and_of_one_weight_keep_their_norm():
  """Directions of a single weight stay parallel."""
  zeros = {'kernel': np.array([[1.0, 0.0], [1.0, 0.0]])}
  for params in (zeros, {'kernel': np.array([[2.0, -3.0]])}):
    for direction in geometry.random_directions(params, np.random.default_rng(0)):
      found = norms_by_filter(direction)["['kernel']"]
      np.testing.assert_allclose(found, np.linalg.norm(params['kernel'], axis=0), rtol=1e-6)


def test_a_rescaled_relu_network_has_the_same_surface():
  net = nn.Sequential([nn.Dense(7), nn.relu, nn.Dense(3)])
  inputs = np.random.default_rng(0).standard_normal((5, 4)).astype(np.float32)
  params = net.init(jax.random.key(0), inputs)['params']
  params['layers_0']['bias'] = jnp.linspace(-1, 1, 7)
  c = 10.0
  rescaled = {
    'layers_0': jax.tree.map(lambda x: c * x, params['layers_0']),
    'layers_2': params['layers_2'] | {'kernel': params['layers_2']['kernel'] / c},
  }

  def surface(params):
    plane = geometry.Plane(params, *geometry.random_directions(params, np.random.default_rng(7)))
    coords_P2 = geometry.grid_coords(np.linspace(-1, 1, 3), np.linspace(-1, 1, 3))
    return np.stack(
      [net.apply({'params': geometry.plane_point(plane, xy)}, inputs) for xy in coords_P2]
    )

  np.testing.assert_allclose(surface(rescaled), surface(params), rtol=1e-4, atol=1e-5)
  assert surface(params).std(axis=0).min() > 0.01  # the directions do move the outputs


def test_directions_come_from_the_generator_alone():
  params = random_tree(0)
  one, same, other = (
    geometry.random_directions(params, np.random.default_rng(seed)) for seed in (1, 1, 2)
  )
  close(one, same, rtol=0)
  assert np.abs(one[0]['dense']['kernel'] - other[0]['dense']['kernel']).max() > 0.1
