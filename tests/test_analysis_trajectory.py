"""Paths, gradients, PCA and prediction maps against known answers."""

import math
from functools import partial

import numpy as np
import pytest
import scipy.stats

from analysis import geometry, trajectory


def make_tree(rng, scale=1.0):
  """Layers of 6, 4 and 5 parameters; 'b' has two arrays."""
  draw = lambda *shape: scale * rng.normal(size=shape).astype(np.float32)
  return {'b': {'kernel': draw(2, 2, 1), 'bias': draw(2)}, 'a': {'x': draw(4)}, 'c': draw(5)}


def flat(tree):
  """The layers in the order of `layers`, after all of them."""
  parts = [
    tree['a']['x'],
    np.concatenate([tree['b']['kernel'].ravel(), tree['b']['bias']]),
    tree['c'],
  ]
  return [x.astype(np.float64) for x in (np.concatenate(parts), *parts)]


def of(vector):
  return {'layer': np.asarray(vector, np.float64)}


# Weight space.


def test_layers_are_top_level_modules_after_all_of_them():
  tree = make_tree(np.random.default_rng(0))
  assert trajectory.layers(tree) == ('all', 'a', 'b', 'c')
  np.testing.assert_array_equal(trajectory.sizes(tree), [15, 4, 6, 5])


def test_distances_and_cosines_are_those_of_the_flat_vectors():
  rng = np.random.default_rng(1)
  a, b = make_tree(rng), make_tree(rng)
  norm = np.linalg.norm
  expected = [norm(x - y) for x, y in zip(flat(a), flat(b), strict=True)]
  np.testing.assert_allclose(trajectory.distances(a, b), expected, rtol=1e-12)
  expected = [x @ y / norm(x) / norm(y) for x, y in zip(flat(a), flat(b), strict=True)]
  np.testing.assert_allclose(trajectory.cosines(a, b), expected, rtol=1e-12)
  with_zero = trajectory.cosines(a, a | {'c': np.zeros(5)})
  assert np.isnan(with_zero).tolist() == [False, False, False, True]
  with pytest.raises(ValueError, match='key'):
    trajectory.dots(a, {'a': a['a'], 'b': a['b']})


def test_distances_of_float32_weights_are_taken_in_float64():
  a = {'x': np.full(3, 1e4, np.float32)}
  b = {'x': np.nextafter(a['x'], np.float32(2e4))}
  expected = math.sqrt(3) * 2.0**-10  # the gap of float32 between 2¹³ and 2¹⁴
  np.testing.assert_allclose(trajectory.distances(a, b), [expected] * 2, rtol=1e-12)


def test_a_straight_path_is_as_long_as_its_displacement_until_it_turns():
  rng = np.random.default_rng(2)
  start, step = make_tree(rng), make_tree(rng)
  at = lambda t: geometry.difference(start, {k: scaled(v, -t) for k, v in step.items()})
  path = trajectory.path([at(t) for t in (0, 0.5, 2, 0.25)])
  norms_L = np.array([np.linalg.norm(x) for x in flat(step)])
  for key, expected_T in (('length', [0, 0.5, 2, 3.75]), ('displacement', [0, 0.5, 2, 0.25])):
    np.testing.assert_allclose(path[key], np.outer(expected_T, norms_L), rtol=1e-12)


def scaled(tree, factor):
  if isinstance(tree, dict):
    return {name: scaled(x, factor) for name, x in tree.items()}
  return factor * tree.astype(np.float64)


def test_gram_is_the_inner_products_by_layer():
  rng = np.random.default_rng(3)
  trees = [make_tree(rng) for _ in range(4)]
  gram = trajectory.gram(trees)
  assert gram.shape == (4, 4, 4)
  for place in range(4):
    x = np.stack([flat(tree)[place] for tree in trees])
    np.testing.assert_allclose(gram[place], x @ x.T, rtol=1e-12)


# PCA.


def test_pca_is_the_singular_value_decomposition():
  rng = np.random.default_rng(4)
  trees = [make_tree(rng) for _ in range(6)]
  x = np.stack([flat(tree)[0] for tree in trees])
  x = x - x.mean(0, keepdims=True)
  singular = np.linalg.svd(x, compute_uv=False)[:5]
  coords, explained = trajectory.pca(trees)
  np.testing.assert_allclose(explained, singular**2 / (singular**2).sum(), rtol=1e-9)
  np.testing.assert_allclose(coords @ coords.T, x @ x.T, atol=1e-9)
  assert (coords[-1] > 0).all()


def test_pca_of_a_line_far_from_the_origin_has_one_component():
  coords, explained = trajectory.pca([of([1e6 + 3 * t, 1e6 - 4 * t]) for t in (0, 1, 3)])
  np.testing.assert_allclose(explained, [1, 0], atol=1e-9)
  np.testing.assert_allclose(coords[:, 0], [-20 / 3, -5 / 3, 25 / 3], rtol=1e-9)


def test_a_random_walk_seems_to_have_structure():
  """The explained variance of even steps has a closed form."""
  for num_points in (2, 3, 6, 200):
    k = np.arange(1, num_points)
    values = 1 / (4 * np.sin(np.pi * k / (2 * num_points)) ** 2)
    explained = trajectory.random_walk_explained(10 + 7 * np.arange(num_points))
    np.testing.assert_allclose(explained, values / ((num_points**2 - 1) / 6), rtol=1e-9)
  np.testing.assert_allclose(explained[:2], [0.608, 0.152], atol=5e-4)


def test_pca_of_simulated_random_walks_agrees_with_the_null():
  rng, times = np.random.default_rng(5), np.array([0, 1, 2, 8, 20, 60, 61])
  found = []
  for _ in range(5):
    steps = np.sqrt(np.diff(times, prepend=times[0]))[:, None] * rng.normal(
      size=(len(times), 10_000)
    )
    found.append(trajectory.pca([of(x) for x in steps.cumsum(0)])[1])
  np.testing.assert_allclose(
    np.mean(found, axis=0), trajectory.random_walk_explained(times), atol=0.004
  )


# Gradients.


def noisy_gradients(rng, num_batches, batch_size, mean, deviation):
  noise = rng.normal(size=(num_batches, len(mean))) * deviation / math.sqrt(batch_size)
  return mean + noise


def noise_of(gradients, batch_size):
  return trajectory.gradient_noise(trajectory.gram([of(g) for g in gradients]), batch_size)


def test_signal_to_noise_of_gaussian_gradients():
  rng = np.random.default_rng(6)
  mean = np.full(400, 0.05)  # ‖G‖² = 1, tr Σ = 400 · 0.5² = 100
  found = [noise_of(noisy_gradients(rng, 16, 8, mean, 0.5), 8) for _ in range(200)]
  snr, norm, noise = (np.array([v[key][0] for v in found]) for key in ('snr', 'norm', 'noise'))
  assert snr.mean() == pytest.approx(0.01, abs=3e-4)
  assert (norm**2).mean() == pytest.approx(1 + 100 / 128, rel=0.02)
  assert (noise**2).mean() == pytest.approx(100 / 128, rel=0.02)
  covered = [v['snr/low'][0] <= 0.01 <= v['snr/high'][0] for v in found]
  assert 0.9 <= np.mean(covered) <= 0.99
  # Without a signal the ratio is 0 on average.
  snr = [noise_of(noisy_gradients(rng, 8, 4, np.zeros(50), 1), 4)['snr'][0] for _ in range(300)]
  assert min(snr) < 0 < max(snr)
  assert np.mean(snr) == pytest.approx(0, abs=4 * np.std(snr) / math.sqrt(300))


def test_signal_to_noise_is_its_definition():
  # Three gradients around (3, 4): sum of squared deviations 2, so S = 10 · 2 / 2 and ‖G‖² = 25 − 1/3.
  noise = noise_of([[3, 3], [3, 4], [3, 5]], 10)
  np.testing.assert_allclose(noise['norm'], [5, 5])
  np.testing.assert_allclose(noise['noise'] ** 2, [1 / 3] * 2)
  np.testing.assert_allclose(noise['snr'], [(25 - 1 / 3) / 10] * 2)
  with pytest.raises(ValueError, match='2 batches'):
    noise_of([[3, 3], [3, 4]], 4)


def test_descent_on_a_round_quadratic_goes_straight_to_its_minimum():
  rng = np.random.default_rng(9)
  target, point = make_tree(rng), make_tree(rng)
  direction = geometry.difference(target, point)
  gradients = [scaled(direction, -size) for size in (1.0, 2.0, 0.5)]  # of c ‖x − target‖² / 2
  directions = [direction, scaled(direction, -1)]
  values_KL, without_BKL = trajectory.descent_cosines(
    gradients, directions, trajectory.gram(gradients)
  )
  for found in (values_KL, *without_BKL):
    np.testing.assert_allclose(found, [[1] * 4, [-1] * 4], atol=1e-12)


def test_the_cosine_is_that_of_the_mean_gradient_and_nan_at_the_target():
  gradients = [of([-1, 3]), of([-1, -3]), of([-1, 0])]  # mean (−1, 0)
  values_KL, without_BKL = trajectory.descent_cosines(
    gradients, [of([1, 1]), of([0, 0])], trajectory.gram(gradients)
  )
  np.testing.assert_allclose(values_KL[0], 1 / math.sqrt(2))
  # Without the first the mean is (−1, −3/2): cos = (1 + 3/2) / √(2 (1 + 9/4)).
  np.testing.assert_allclose(without_BKL[0, 0], 2.5 / math.sqrt(6.5))
  assert np.isnan(values_KL[1]).all()


# Prediction space.


def make_log_probs(num_predictors, num_examples=40, num_classes=5, seed=0):
  logits = 2 * np.random.default_rng(seed).normal(size=(num_predictors, num_examples, num_classes))
  return logits - np.log(np.exp(logits).sum(-1, keepdims=True))


def distances_of(log_probs, seed=0):
  return trajectory.prediction_distances(log_probs, 100, lambda: np.random.default_rng(seed))


def test_jensen_shannon_of_disjoint_predictions_is_one_bit():
  with np.errstate(divide='ignore'):
    p, q = np.log([[1.0, 0, 0], [0.5, 0.5, 0]]), np.log([[0, 0.5, 0.5], [0, 0, 1.0]])
  np.testing.assert_allclose(trajectory.jensen_shannon(p, q), 1, rtol=1e-14)
  tiny = np.array([[5e-324, 1.0]])  # other code returns infinity
  with np.errstate(divide='ignore'):
    value = trajectory.jensen_shannon(np.log([[0, 1.0]]), np.log(tiny))
  np.testing.assert_allclose(value, 0, atol=1e-12)


def test_jensen_shannon_is_its_definition_in_bits():
  # p = (1, 0), q = (½, ½), m = (¾, ¼): ½ log₂ 4/3 + ½ (½ log₂ 2/3 + ½ log₂ 2).
  expected = 0.5 * math.log2(4 / 3) + 0.25 * math.log2(2 / 3) + 0.25
  with np.errstate(divide='ignore'):
    p, q = np.log([[1.0, 0]]), np.log([[0.5, 0.5]])
  for pair in ((p, q), (q, p)):
    assert trajectory.jensen_shannon(*pair)[0] == pytest.approx(expected, rel=1e-12)
  log_probs = make_log_probs(1, 2000)[0].astype(np.float32)
  np.testing.assert_allclose(trajectory.jensen_shannon(log_probs, log_probs), 0, atol=1e-15)
  near = np.nextafter(log_probs, np.float32(0))
  np.testing.assert_allclose(trajectory.jensen_shannon(log_probs, near), 0, atol=1e-12)  # no NaN


def test_disagreement_counts_other_classes():
  a = np.log(np.array([[0.7, 0.3], [0.6, 0.4], [0.2, 0.8], [0.1, 0.9]]))
  b = np.log(np.array([[0.9, 0.1], [0.4, 0.6], [0.3, 0.7], [0.2, 0.8]]))
  np.testing.assert_array_equal(trajectory.disagreements(a, b), [0, 1, 0, 0])
  found = distances_of([a, b])
  np.testing.assert_allclose(found['disagreement'], [[0, 0.25], [0.25, 0]])
  mean = trajectory.jensen_shannon(a, b).mean()
  np.testing.assert_allclose(found['jensen_shannon'][0, 1], math.sqrt(mean))


def test_prediction_distances_are_metrics_with_intervals():
  log_probs = make_log_probs(5)
  found = distances_of(log_probs)
  for name in ('disagreement', 'jensen_shannon'):
    d, low, high = (found[name + end] for end in ('', '/low', '/high'))
    np.testing.assert_array_equal(d, d.T)
    np.testing.assert_array_equal(np.diag(high), 0)
    off = ~np.eye(5, dtype=bool)
    assert (low[off] > 0).all() and (low[off] < d[off]).all() and (d[off] < high[off]).all()
    assert (d[:, :, None] <= d[:, None, :] + d.T[None, :, :] + 1e-12).all()
  # The interval of a proportion p is about p ± 1.96 √(p (1 − p) / N).
  p = found['disagreement'][1, 0]
  width = (found['disagreement/high'] - found['disagreement/low'])[1, 0]
  assert width == pytest.approx(2 * 1.96 * math.sqrt(p * (1 - p) / 40), rel=0.25)


def pairwise(points):
  return np.linalg.norm(points[:, None] - points[None], axis=-1)


def test_mds_of_points_of_a_plane_returns_their_distances():
  plane = np.random.default_rng(10).normal(size=(7, 2))
  rotation = scipy.stats.ortho_group.rvs(5, random_state=0)[:2]
  coords, kept = trajectory.mds(pairwise(plane @ rotation + 3))
  np.testing.assert_allclose(pairwise(coords), pairwise(plane), atol=1e-9)
  np.testing.assert_allclose(coords.mean(0), 0, atol=1e-9)
  assert kept == pytest.approx(1, abs=1e-9)


def test_mds_of_a_simplex_keeps_two_of_its_dimensions():
  _, kept = trajectory.mds(1 - np.eye(5))
  assert kept == pytest.approx(2 / 4)
  points = np.random.default_rng(11).normal(size=(8, 4)) * np.array([3, 2, 1, 1])[None]
  coords, kept = trajectory.mds(pairwise(points))
  assert kept == pytest.approx((pairwise(coords) ** 2).sum() / (pairwise(points) ** 2).sum())
  assert 0.5 < kept < 0.99


def test_what_is_not_euclidean_counts_as_lost():
  # Along a square's sides: −½ D² has the eigenvalues 2, 2, −1 (and 0).
  around = np.array([[0, 1, 2, 1], [1, 0, 1, 2], [2, 1, 0, 1], [1, 2, 1, 0]])
  _, kept = trajectory.mds(around)
  assert kept == pytest.approx(4 / 5)


def test_mds_of_two_predictors_lies_on_a_line():
  coords, kept = trajectory.mds(np.array([[0, 0.5], [0.5, 0]]))
  np.testing.assert_allclose(coords, [[-0.25, 0], [0.25, 0]], atol=1e-9)
  assert kept == pytest.approx(1)


def repeated(mismatch_KN, pairs):
  make_rng = partial(np.random.default_rng, 0)
  return trajectory.repeated_mismatches(np.asarray(mismatch_KN, bool), pairs, 200, make_rng)


def test_repeated_mismatches():
  mismatch_KN = np.tile([[1, 1, 0, 0], [1, 0, 1, 0], [1, 0, 0, 0]], 20)
  same, half = repeated(mismatch_KN, [(0, 0)]), repeated(mismatch_KN, [(0, 1)])
  assert [same[f'repeated{end}'] for end in ('', '/low', '/high')] == [1, 1, 1]
  assert (half['mismatch'], half['repeated']) == (0.5, 0.5)
  assert half['repeated/low'] < 0.5 < half['repeated/high']
  # All mismatches of the third are also those of the first; half of those of the first of the third.
  assert repeated(mismatch_KN, [(2, 0)])['repeated'] == 1
  assert repeated(mismatch_KN, [(0, 2), (2, 0)])['repeated'] == pytest.approx(2 / 3)
  assert np.isnan(repeated(mismatch_KN, [])['mismatch'])
  nothing = repeated(np.zeros((2, 5)), [(0, 1)])
  assert nothing['mismatch'] == 0 and np.isnan(nothing['repeated'])


def test_few_mismatches_have_an_interval():
  few = np.zeros((2, 400))
  few[0, :3] = few[1, :2] = 1
  found = repeated(few, [(0, 1)])
  assert found['repeated'] == pytest.approx(2 / 3)
  assert 0 <= found['repeated/low'] < 2 / 3 < found['repeated/high'] <= 1


def test_unrelated_mismatches_are_repeated_at_their_own_rate():
  rng = np.random.default_rng(0)
  found = repeated(np.stack([rng.random(8000) < 0.2, rng.random(8000) < 0.5]), [(0, 1)])
  error = math.sqrt(0.5 * 0.5 / (0.2 * 8000))
  assert found['repeated'] == pytest.approx(0.5, abs=4 * error)
  width = found['repeated/high'] - found['repeated/low']
  assert width == pytest.approx(2 * 1.96 * error, rel=0.2)
