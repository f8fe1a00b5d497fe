"""Lanczos iteration and Gauss quadrature on the spectrum of a symmetric operator.

The operator is any function v_P → (A v)_P. The loop runs on the host, because products are host loops over
batches (see `curvature`) and because it must stop at a breakdown, which `matfree` does not handle. LAPACK
solves the tridiagonal eigenproblems in float64.
Axes: P parameter, T Lanczos step, K eigenpair or probe, G grid.
"""

import dataclasses
from collections.abc import Callable

import numpy as np
from scipy.linalg import eigh_tridiagonal
from scipy.stats import norm

Multiply = Callable[[np.ndarray], np.ndarray]  # v_P → (A v)_P

BREAKDOWN = 1e-5  # relative to max |T|: float32 rounding of a residual that is zero
CONVERGED = 1e-2  # relative error bound of an eigenvalue that counts as found
COLUMNS = 65536  # columns of a basis that are converted to float64 at a time


@dataclasses.dataclass(frozen=True)
class Krylov:
  """The operator A on the Krylov space of a vector: Q A Qᵀ = T, with Q the rows of `basis_TP`.

  T is tridiagonal with `alphas_T` on its diagonal and `betas_T[:-1]` beside it; `betas_T[-1]` is the norm
  of the last residual, the part of A q_T outside the space.
  """

  alphas_T: np.ndarray  # float64
  betas_T: np.ndarray  # float64
  basis_TP: np.ndarray  # float32, orthonormal rows

  def eigenvalues(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Ritz values in ascending order, their error bounds, and the eigenvectors of T as columns.

    An eigenvalue of A lies within |β s| of each Ritz value, where s is the last entry of its vector
    (Parlett 1998, "The Symmetric Eigenvalue Problem", Section 13.2).

    Returns: values_T, bounds_T and vectors_TT.
    """
    values_T, vectors_TT = eigh_tridiagonal(self.alphas_T, self.betas_T[:-1])
    return values_T, np.abs(self.betas_T[-1] * vectors_TT[-1]), vectors_TT

  def quadrature(self) -> tuple[np.ndarray, np.ndarray]:
    """Gauss quadrature of the start's spectral measure: qᵀ f(A) q ≈ Σ_t w_t f(θ_t).

    It is exact for polynomials of degree below 2T (Golub & Meurant 2010, Chapter 6).

    Returns: nodes_T θ and weights_T w, which are non-negative and sum to 1.
    """
    nodes_T, _, vectors_TT = self.eigenvalues()
    return nodes_T, vectors_TT[0] ** 2

  def largest(self, num: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Up to `num` of the largest positive eigenvalues, in descending order.

    Eigenvalues that are zero up to rounding are left out.

    Returns: values_K, error bounds_K and float32 unit vectors_KP.
    """
    values_T, bounds_T, vectors_TT = self.eigenvalues()
    largest_K = np.argsort(-values_T)[:num]
    largest_K = largest_K[values_T[largest_K] > BREAKDOWN * np.abs(values_T).max()]
    vectors_KP = vectors_TT[:, largest_K].T.astype(np.float32) @ self.basis_TP
    return values_T[largest_K], bounds_T[largest_K], vectors_KP

  def converged(self) -> tuple[np.ndarray, np.ndarray]:
    """The nonzero eigenvalues that are accurate to `CONVERGED`, in descending order.

    Each of the other Ritz values represents many eigenvalues.

    Returns: indices_K into `eigenvalues` and `quadrature`, and float32 unit vectors_KP.
    """
    values_T, bounds_T, vectors_TT = self.eigenvalues()
    sizes_T = np.abs(values_T)
    found_T = (bounds_T <= CONVERGED * sizes_T) & (sizes_T > BREAKDOWN * sizes_T.max())
    indices_K = np.flatnonzero(found_T)[::-1]
    return indices_K, vectors_TT[:, indices_K].T.astype(np.float32) @ self.basis_TP

  def flattest(self) -> np.ndarray:
    """The float32 unit vector_P of the space with the smallest ‖A v‖.

    For v = Qᵀ y, ‖A v‖² is ‖T y‖² + β² y_T². The solution is the last right singular vector of T extended
    by one row.
    """
    size = len(self.alphas_T)
    extended = (
      np.diag(self.alphas_T) + np.diag(self.betas_T[:-1], 1) + np.diag(self.betas_T[:-1], -1)
    )
    extended = np.concatenate([extended, self.betas_T[-1] * np.eye(size)[-1:]])
    return np.linalg.svd(extended)[2][-1].astype(np.float32) @ self.basis_TP

  def deviation(self) -> float:
    """max |Q Qᵀ − I|, the deviation of the basis from orthonormality, summed in float64."""
    deviation_TT = -np.eye(len(self.basis_TP))
    for start in range(0, self.basis_TP.shape[1], COLUMNS):
      block = self.basis_TP[:, start : start + COLUMNS].astype(np.float64)
      deviation_TT += block @ block.T
    return float(np.abs(deviation_TT).max())


def lanczos(
  multiply: Multiply, start_P: np.ndarray, num_steps: int, show: Callable[[], None] = lambda: None
) -> Krylov:
  """Lanczos iteration with full reorthogonalisation.

  Every new vector is orthogonalised twice against all others, which suffices (Giraud et al. 2005); without
  it, float32 rounding produces copies of converged eigenvalues. The iteration stops early at a breakdown,
  β ≤ 1e-5 max |T|, where the space is invariant.

  Args:
    multiply: v_P → (A v)_P, in float32 or better.
    start_P: any vector but 0.
    num_steps: products with A. Memory is 4 bytes per step and parameter.
    show: is called after each product.
  """
  start_P = np.asarray(start_P, np.float64)
  vector_P, alphas, betas = start_P / np.linalg.norm(start_P), [], []
  basis_TP = np.empty((num_steps, len(start_P)), np.float32)
  for step in range(num_steps):
    basis_TP[step] = vector_P
    product_P = np.asarray(multiply(basis_TP[step]))
    show()
    alphas.append(basis_TP[step].astype(np.float64) @ product_P.astype(np.float64))
    rest_P = product_P.astype(np.float32)
    for _ in range(2):
      so_far_TP = basis_TP[: step + 1]
      rest_P = rest_P - (so_far_TP @ rest_P) @ so_far_TP
    rest_P = rest_P.astype(np.float64)
    betas.append(np.linalg.norm(rest_P))
    if betas[-1] <= BREAKDOWN * np.abs([*alphas, *betas[:-1]]).max():
      break
    vector_P = rest_P / betas[-1]
  return Krylov(np.array(alphas), np.array(betas), basis_TP[: len(alphas)])


def without(vectors_KP: np.ndarray, vector_P: np.ndarray) -> np.ndarray:
  """Removes from a vector its components along orthonormal vectors."""
  for _ in range(2):  # float32 vectors are orthonormal only up to rounding
    vector_P = vector_P - (vectors_KP @ vector_P) @ vectors_KP
  return vector_P


def rademacher(rng: np.random.Generator, size: int) -> np.ndarray:
  """A float32 vector of random signs: E[v vᵀ] = I, and ‖v‖² = P exactly."""
  return 2 * rng.integers(2, size=size).astype(np.float32) - 1


def density(
  nodes_KT: np.ndarray, weights_KT: np.ndarray, grid_G: np.ndarray, width: float
) -> np.ndarray:
  """Spectral densities by stochastic Lanczos quadrature (Ubaru et al. 2017; Ghorbani et al. 2019).

  Args:
    nodes_KT, weights_KT: `Krylov.quadrature` of each probe; entries of weight 0 are ignored.
    width: standard deviation of the Gaussian that replaces each node.

  Returns: densities_KG of the probes, each with integral 1. Their mean estimates the density of the
    eigenvalues, smoothed by the Gaussian.
  """
  kernels_KTG = norm.pdf(grid_G[None, None], loc=nodes_KT[..., None], scale=width)
  return np.einsum('kt,ktg->kg', weights_KT, kernels_KTG)
