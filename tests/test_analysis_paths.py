"""Paths and barriers against functions whose barriers are known."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from analysis import paths

TS = np.linspace(0, 1, 11)


def make_variables(seed):
  rng = np.random.default_rng(seed)
  draw = lambda *shape: rng.normal(size=shape).astype(np.float32)
  return {
    'params': {
      'Dense_0': {'kernel': draw(3, 4), 'bias': draw(4)},
      'BatchNorm_0': {'scale': draw(4)},
    },
    'batch_stats': {'BatchNorm_0': {'mean': draw(4), 'var': draw(4)}},
  }


def assert_equal(found, expected):
  jax.tree.map(np.testing.assert_array_equal, jax.device_get(found), expected)


def point(*xs):
  return {'params': {'w': np.array(xs, np.float32)}, 'batch_stats': {}}


def along(function, path, controls):
  """function(weights) along a path."""
  points = jax.jit(jax.vmap(path, (None, 0)))(controls, TS.astype(np.float32))
  return np.array([function(w) for w in np.asarray(points['params']['w'], np.float64)])


@pytest.mark.parametrize('path', [paths.line_point, paths.bezier_point])
def test_paths_begin_and_end_at_their_ends_exactly(path):
  controls = [make_variables(seed) for seed in range(2 if path is paths.line_point else 3)]
  at = jax.jit(path)
  assert_equal(at(tuple(controls), jnp.zeros(1)), controls[0])
  assert_equal(at(tuple(controls), jnp.ones(1)), controls[-1])


def test_points_of_a_line_and_of_a_curve():
  found = paths.line_point((point(0, 4), point(8, 0)), 0.25)
  np.testing.assert_array_equal(found['params']['w'], [2, 3])
  found = paths.bezier_point((point(0, 0), point(8, 16), point(16, 0)), 0.25)
  np.testing.assert_array_equal(found['params']['w'], [4, 6])  # 2 · 1/4 · 3/4 of 16 is 6
  a, b = make_variables(0), make_variables(1)  # statistics are interpolated, too
  found, *ends = (
    x['batch_stats']['BatchNorm_0']['var'] for x in (paths.line_point((a, b), 0.5), a, b)
  )
  np.testing.assert_allclose(found, np.mean(ends, axis=0), rtol=1e-6)


def test_one_layer_of_the_other_end():
  a, b = make_variables(0), make_variables(1)
  assert paths.layer_names(a) == ['BatchNorm_0', 'Dense_0']
  at = jax.jit(paths.layerwise_point)
  found = at((a, b), jnp.array([1.0, 0.0]))
  assert_equal(found['params'], a['params'] | {'BatchNorm_0': b['params']['BatchNorm_0']})
  assert_equal(
    found['batch_stats'], b['batch_stats']
  )  # all statistics belong to the BatchNorm layer
  found = at((a, b), jnp.array([0.0, 0.5]))
  kernels = [x['params']['Dense_0']['kernel'] for x in (a, b)]
  np.testing.assert_allclose(found['params']['Dense_0']['kernel'], np.mean(kernels, 0), rtol=1e-5)
  assert_equal(found['batch_stats'], a['batch_stats'])


def test_a_barrier_is_above_the_line_between_unequal_ends():
  # 4 t (1 − t) has height 1 in the middle, whatever line is added.
  values_T = 4 * TS * (1 - TS) + 7 * TS - 2
  assert paths.barrier(values_T, TS) == pytest.approx(1, abs=1e-12)
  np.testing.assert_allclose(paths.barrier([values_T, -values_T], TS), [1, 0], atol=1e-12)


def test_a_barrier_needs_both_ends_and_finite_values():
  for place in (0, 5, 10):
    assert np.isnan(paths.barrier(np.where(np.arange(11) == place, np.nan, 0.0), TS))
  with pytest.raises(ValueError, match='between 0 and 1'):
    paths.barrier(np.zeros(3), np.array([0, 0.5, 0.9]))


def test_the_interval_has_the_width_of_the_normal_one():
  """Example n rises by x_n in the middle alone: the barrier is the mean of x."""
  rng = np.random.default_rng(0)
  heights_N = rng.normal(5, 2, size=400)
  values_TN = rng.normal(size=(1, 400)) + (TS == 0.5)[:, None] * heights_N
  value, low, high = paths.barrier_interval(values_TN, TS, seed=0)
  assert value == pytest.approx(heights_N.mean(), rel=1e-9)
  assert low < value < high
  assert high - low == pytest.approx(2 * 1.96 * heights_N.std() / math.sqrt(400), rel=0.1)


def test_resamples_are_the_same_at_all_positions():
  """Noise that all positions share cancels."""
  noise_N = 100 * np.random.default_rng(0).normal(size=50)
  values_TN = noise_N[None] + (TS * (1 - TS))[:, None]
  np.testing.assert_allclose(paths.barrier_interval(values_TN, TS, seed=3), 0.25, atol=1e-9)


def test_an_interval_comes_from_resampled_means():
  values_TN = np.stack([4 * TS * (1 - TS), 8 * TS * (1 - TS)], axis=1)
  value, low, high = paths.barrier_interval(values_TN, TS, seed=0)
  assert value == pytest.approx(1.5)
  assert (low, high) == pytest.approx((1, 2))
  assert np.isnan(paths.barrier_interval(values_TN[:, :0], TS, seed=0)).all()
  values_TN[3, 0] = np.nan
  assert np.isnan(paths.barrier_interval(values_TN, TS, seed=0)).all()


def valley(variables, batch):
  """Zero on the circle whose radius is the batch's."""
  return (jnp.sum(variables['params']['w'] ** 2) - batch**2) ** 2


ON_CIRCLE = point(1, 0), point(-0.5, math.sqrt(0.75))  # 120° apart


def trained(seed, num_steps=300):
  return paths.train_bezier(valley, *ON_CIRCLE, [1.0], num_steps, 0.05, jax.random.key(seed))


def test_a_curve_goes_round_a_hill():
  height = lambda w: (w[0] ** 2 + w[1] ** 2 - 1) ** 2
  straight = paths.barrier(along(height, paths.line_point, ON_CIRCLE), TS)
  assert straight == pytest.approx(0.75**2, abs=1e-5)  # the chord's middle has radius 1/2
  middle = trained(0)
  controls = ON_CIRCLE[0], middle, ON_CIRCLE[1]
  assert paths.barrier(along(height, paths.bezier_point, controls), TS) < 0.1 * straight


def test_equal_keys_give_equal_curves():
  first, again, other = (trained(seed, num_steps=5) for seed in (0, 0, 1))
  assert_equal(first, again)
  assert not np.array_equal(first['params']['w'], other['params']['w'])


def test_batches_are_cycled_and_the_ends_and_statistics_stay():
  seen = []
  a, b = make_variables(0), make_variables(1)
  originals = jax.tree.map(np.copy, (a, b))

  def loss(variables, batch):
    jax.debug.callback(lambda x: seen.append(int(x)), batch, ordered=True)
    return (variables['params']['Dense_0']['kernel'] ** 2).sum()

  shown = []
  show = lambda done, _: shown.append(done)
  middle = paths.train_bezier(loss, a, b, [1, 2, 3], 4, 0.1, jax.random.key(0), show)
  jax.effects_barrier()
  assert (seen, shown) == ([1, 2, 3, 1], [1, 2, 3, 4])
  assert_equal((a, b), originals)
  halfway = paths.line_point((a, b), 0.5)
  assert_equal(middle['batch_stats'], jax.device_get(halfway['batch_stats']))
  assert not np.array_equal(
    middle['params']['Dense_0']['kernel'], halfway['params']['Dense_0']['kernel']
  )


def test_training_batches_have_one_size_and_each_example_once():
  given = [{'inputs': x, 'labels': x + 10} for x in (np.arange(6), np.arange(6, 9))]
  found = paths.training_batches(given, 4)
  assert [batch['inputs'].tolist() for batch in found] == [[0, 1, 2, 3], [4, 5, 6, 7]]
  assert found[1]['labels'].tolist() == [14, 15, 16, 17]
  (found,) = paths.training_batches(given, 100)
  assert found['inputs'].tolist() == list(range(9))
