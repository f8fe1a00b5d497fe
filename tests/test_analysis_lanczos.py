"""Lanczos iteration on matrices with known spectra."""

import numpy as np
import pytest
import scipy.linalg
import scipy.stats

from analysis import lanczos

OUTLIERS = np.array([100.0, 80, 60, 50, 40, 30, 25, 20, 15, 10])


def symmetric(eigenvalues, seed=0):
  """A matrix with these eigenvalues, and its eigenvectors as columns."""
  q = scipy.stats.ortho_group.rvs(len(eigenvalues), random_state=seed)
  return (q * np.asarray(eigenvalues)[None]) @ q.T, q


def float32_product(matrix):
  """A product in float32, as that of a network is."""
  matrix = matrix.astype(np.float32)
  return lambda vector: matrix @ vector


def start(size, seed=1):
  return np.random.default_rng(seed).normal(size=size)


@pytest.fixture(scope='module')
def with_outliers():
  bulk = np.random.default_rng(0).uniform(-0.5, 1, size=390)
  return symmetric([*OUTLIERS, *bulk])


def test_ten_outliers_are_found_once_each_with_their_vectors(with_outliers):
  matrix, q = with_outliers
  krylov = lanczos.lanczos(float32_product(matrix), start(400), 80)
  values, bounds, _ = krylov.eigenvalues()
  assert (values > 2).sum() == 10
  assert np.all(bounds[-10:] < 1e-3)
  assert krylov.deviation() < 1e-5
  values, _, vectors = krylov.largest(10)
  np.testing.assert_allclose(values, OUTLIERS, rtol=1e-5)
  np.testing.assert_allclose(np.abs(vectors @ q[:, :10]), np.eye(10), atol=1e-3)


def test_deviation_is_the_largest_entry_of_the_gram_matrix_minus_one():
  basis = np.array([[1, 0, 0], [0.25, 1, 0]], np.float32)
  assert lanczos.Krylov(np.ones(2), np.ones(2), basis).deviation() == pytest.approx(0.25)


def test_bounds_are_residuals_within_which_an_eigenvalue_lies(with_outliers):
  matrix, _ = with_outliers
  values, bounds, vectors = lanczos.lanczos(lambda v: matrix @ v, start(400), 9).largest(9)
  residuals = np.linalg.norm(vectors @ matrix - values[:, None] * vectors, axis=1)
  np.testing.assert_allclose(bounds, residuals, rtol=1e-2, atol=1e-4)
  distances = np.abs(values[:, None] - np.linalg.eigvalsh(matrix)[None]).min(axis=1)
  assert np.all(distances <= bounds + 1e-4)
  assert bounds.max() > 0.1  # after nine steps some are far from converged


def test_rank_three_returns_three_values_and_stops():
  matrix, q = symmetric([5.0, 3, 1] + 47 * [0])
  calls = []

  def product(vector):
    calls.append(1)
    return float32_product(matrix)(vector)

  inside = lanczos.lanczos(product, q[:, :3] @ np.array([1.0, 2, 3]), 30)
  np.testing.assert_allclose(inside.eigenvalues()[0], [1, 3, 5], rtol=1e-5)
  assert len(calls) == 3

  anywhere = lanczos.lanczos(product, start(50), 30)  # with a component in the null space
  assert len(calls) == 3 + 4
  np.testing.assert_allclose(anywhere.largest(10)[0], [5, 3, 1], rtol=1e-5)


@pytest.mark.parametrize('scale', [1e-8, 1, 1e8])
def test_breakdown_does_not_depend_on_the_scale(scale):
  matrix, _ = symmetric(scale * np.array([5.0, -3, 1] + 47 * [0]))
  krylov = lanczos.lanczos(float32_product(matrix), start(50), 30)
  assert len(krylov.alphas_T) == 4
  np.testing.assert_allclose(krylov.largest(10)[0], [5 * scale, scale], rtol=1e-5)


def test_no_more_steps_than_dimensions_and_one_for_the_zero_matrix():
  matrix, _ = symmetric(np.arange(1.0, 7))
  krylov = lanczos.lanczos(float32_product(matrix), start(6), 20)
  np.testing.assert_allclose(krylov.eigenvalues()[0], np.arange(1.0, 7), rtol=1e-5)
  krylov = lanczos.lanczos(lambda v: 0 * v, start(6), 20)
  np.testing.assert_array_equal(krylov.quadrature(), [[0], [1]])
  assert len(krylov.largest(3)[0]) == len(krylov.converged()[0]) == 0


def test_quadrature_has_the_moments_of_the_matrix():
  matrix, _ = symmetric(np.linspace(-2, 5, 60))
  probe = lanczos.rademacher(np.random.default_rng(0), 60)
  nodes, weights = lanczos.lanczos(lambda v: matrix @ v, probe, 3).quadrature()
  for power in range(6):  # three nodes are exact up to degree five
    expected = probe @ np.linalg.matrix_power(matrix, power) @ probe / 60
    assert weights @ nodes**power == pytest.approx(expected, rel=1e-4)


def test_density_counts_the_eigenvalues_of_two_groups():
  matrix, _ = symmetric(30 * [1.0] + 10 * [4.0])
  rng = np.random.default_rng(0)
  rules = [
    lanczos.lanczos(lambda v: matrix @ v, lanczos.rademacher(rng, 40), 9).quadrature()
    for _ in range(100)
  ]
  grid = np.linspace(-2, 7, 901)
  nodes, weights = np.stack(rules, axis=1)
  densities = lanczos.density(nodes, weights, grid, 0.2)
  np.testing.assert_allclose(densities.sum(axis=1) * 0.01, 1, rtol=1e-6)
  mean = densities.mean(axis=0)
  assert mean[grid > 2.5].sum() * 0.01 == pytest.approx(0.25, abs=0.02)
  assert mean.max() == pytest.approx(0.75 / (0.2 * np.sqrt(2 * np.pi)), rel=0.03)
  assert grid[mean.argmax()] == pytest.approx(1)
  padded = lanczos.density(*(np.pad(x, ((0, 0), (0, 1))) for x in (nodes, weights)), grid, 0.2)
  np.testing.assert_array_equal(padded, densities)  # nodes of weight 0 do not count


def test_converged_eigenvalues_are_those_outside_the_bulk(with_outliers):
  """A Ritz value of the bulk represents many eigenvalues, and one of 0 a null space."""
  matrix, q = with_outliers
  krylov = lanczos.lanczos(float32_product(matrix), start(400), 30)
  found, vectors = krylov.converged()
  np.testing.assert_allclose(krylov.eigenvalues()[0][found], OUTLIERS, rtol=1e-3)
  np.testing.assert_allclose(np.abs(vectors @ q[:, :10]), np.eye(10), atol=0.02)
  matrix, _ = symmetric([5.0, -3, 1] + 47 * [0])
  krylov = lanczos.lanczos(float32_product(matrix), start(50), 30)
  np.testing.assert_allclose(krylov.eigenvalues()[0][krylov.converged()[0]], [5, 1, -3], rtol=1e-5)


def test_a_start_without_the_outliers_gives_the_density_of_the_bulk_alone(with_outliers):
  matrix, _ = with_outliers
  _, vectors = lanczos.lanczos(float32_product(matrix), start(400), 80).converged()
  vectors = vectors[:10]
  probe = lanczos.without(vectors, lanczos.rademacher(np.random.default_rng(0), 400))
  np.testing.assert_allclose(vectors @ probe, 0, atol=1e-5)
  nodes, weights = lanczos.lanczos(float32_product(matrix), probe, 80).quadrature()
  assert weights[nodes > 2].sum() < 1e-9
  bulk = np.linalg.eigvalsh(matrix)[:-10]
  assert weights @ nodes == pytest.approx(bulk.mean(), abs=3 * bulk.std() * (2 / 390) ** 0.5)


def test_the_flattest_vector_is_changed_least(with_outliers):
  matrix, _ = with_outliers
  krylov = lanczos.lanczos(float32_product(matrix), start(400), 20)
  flat = krylov.flattest()
  assert np.linalg.norm(flat) == pytest.approx(1, abs=1e-5)
  in_space = np.linalg.svd(matrix @ krylov.basis_TP.T)[1][-1]
  assert np.linalg.norm(matrix @ flat) == pytest.approx(in_space, rel=1e-2)
  assert in_space < 0.5 * np.linalg.norm(matrix @ start(400)) / np.linalg.norm(start(400)) / 10
  whole = lanczos.lanczos(float32_product(symmetric([4.0, -2, 0.5, 1])[0]), start(4), 9).flattest()
  np.testing.assert_allclose(
    np.abs(symmetric([4.0, -2, 0.5, 1])[1].T @ whole), [0, 0, 1, 0], atol=1e-4
  )


def test_rademacher_entries_are_signs_with_mean_zero():
  probe = lanczos.rademacher(np.random.default_rng(0), 10_000)
  assert set(probe.tolist()) == {-1.0, 1.0}
  assert abs(probe.mean()) < 0.04
