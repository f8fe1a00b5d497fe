"""CKA against its definition by sums, and against what is known of it."""

import itertools
import math

import numpy as np
import pytest
import scipy.stats

from kdjax import metrics


def make_features(*shapes, seed=0):
  rng = np.random.default_rng(seed)
  return [rng.normal(size=shape) for shape in shapes]


def hsic_by_sums(k, l):  # noqa: E741
  """Unbiased HSIC by its definition: means over all tuples of examples that are all different."""
  examples = range(len(k))
  pairs = [k[i, j] * l[i, j] for i, j in itertools.permutations(examples, 2)]
  triples = [k[i, j] * l[i, q] for i, j, q in itertools.permutations(examples, 3)]
  fours = [k[i, j] * l[q, r] for i, j, q, r in itertools.permutations(examples, 4)]
  return np.mean(pairs) - 2 * np.mean(triples) + np.mean(fours)


def cka_by_sums(x, y):
  k, l = x @ x.T, y @ y.T  # noqa: E741
  return hsic_by_sums(k, l) / math.sqrt(hsic_by_sums(k, k) * hsic_by_sums(l, l))


def test_cka_is_its_definition_by_sums():
  x, noise = make_features((9, 3), (9, 2))
  y = x[:, :2] + 0.8 * noise + 5
  assert 0.2 < cka_by_sums(x, y) < 0.9
  for num_examples in (9, 4):
    pair = x[:num_examples], y[:num_examples]
    assert metrics.linear_cka(*pair) == pytest.approx(cka_by_sums(*pair), rel=1e-9)


def test_cka_ignores_rotations_scales_and_shifts_but_no_other_linear_maps():
  x, y = make_features((40, 8), (40, 8))
  y += 0.5 * x
  rotation = scipy.stats.ortho_group.rvs(8, random_state=0)
  value = metrics.linear_cka(x, y)
  assert metrics.linear_cka(x, -0.01 * x @ rotation + 100) == pytest.approx(1, abs=1e-9)
  assert metrics.linear_cka(x @ rotation, y) == pytest.approx(value, rel=1e-9)
  stretched = x * np.array([[10.0] + [1.0] * 7])
  assert abs(metrics.linear_cka(stretched, y) - value) > 0.05


def test_cka_is_symmetric_and_ignores_a_common_order_of_the_examples():
  x, noise = make_features((30, 5), (30, 7))
  y = noise + x[:, :1]
  value = metrics.linear_cka(x, y)
  order = np.random.default_rng(1).permutation(30)
  assert metrics.linear_cka(y, x) == pytest.approx(value, rel=1e-12)
  assert metrics.linear_cka(x[order], y[order]) == pytest.approx(value, rel=1e-9)
  assert abs(metrics.linear_cka(x[order], y) - value) > 0.05


def test_positions_of_a_convolution_are_features_of_their_own():
  (x,) = make_features((50, 4, 4, 3))
  assert metrics.linear_cka(x, x.reshape(50, 48)) == pytest.approx(1, abs=1e-12)
  moved = np.random.default_rng(1).permuted(x, axis=0)  # keeps each position's distribution
  assert abs(metrics.linear_cka(x, moved)) < 0.1
  # A shuffle of the positions within every image keeps the mean over positions, and is no rotation.
  shuffled = np.random.default_rng(1).permuted(x.reshape(50, 16, 3), axis=1)
  np.testing.assert_allclose(shuffled.mean(1), x.mean((1, 2)), rtol=1e-9)
  assert metrics.linear_cka(x, shuffled) < 0.5


def test_blocks_of_features_equal_the_whole(monkeypatch):
  x, noise = make_features((20, 30), (20, 30))
  whole = metrics.linear_cka(x, x + noise)
  monkeypatch.setattr(metrics, 'CKA_BLOCK', 7)
  assert metrics.linear_cka(x, x + noise) == pytest.approx(whole, rel=1e-10)


def test_float16_features_are_reduced_in_float64():
  x, noise = make_features((64, 2000), (64, 2000))
  x, y = (100 * x).astype(np.float16), (100 * (x + noise)).astype(np.float16)  # sums overflow it
  expected = metrics.linear_cka(x.astype(np.float64), y.astype(np.float64))
  assert metrics.linear_cka(x, y) == expected


def test_cka_of_constant_features_is_none():
  (x,) = make_features((10, 3))
  assert metrics.linear_cka(x, np.full((10, 4), 0.1, np.float32)) is None
  assert metrics.linear_cka(np.zeros((10, 4)), x) is None


def test_cka_refuses_examples_that_it_cannot_compare():
  for shapes in (((5, 2), (6, 2)), ((3, 2), (3, 2))):
    with pytest.raises(ValueError, match='examples'):
      metrics.linear_cka(*make_features(*shapes))
