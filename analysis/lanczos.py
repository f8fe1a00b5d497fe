"""Lanczos iteration and Gauss quadrature on the spectrum of a symmetric operator.

The operator is any function v_P → (A v)_P. The loop is on the host, because the products are host
loops over batches (see `curvature`) and because it has to end at a breakdown; `matfree`, which runs
inside one compiled program and does not handle breakdown, fits neither. Tridiagonal eigenproblems are
solved by LAPACK in float64. Axes: P parameter, T Lanczos step, K a small count (eigenpair or
probe), G grid.
"""

import dataclasses
from collections.abc import Callable

import numpy as np
from scipy.linalg import eigh_tridiagonal
from scipy.stats import norm

Multiply = Callable[[np.ndarray], np.ndarray]  # v_P → (A v)_P

BREAKDOWN = 1e-5  # of max |T|: what float32 products leave of a residual that is zero
CONVERGED = 1e-2  # error bound of an eigenvalue that counts as found, relative to it
COLUMNS = 65536  # of a basis that are converted to float64 at a time


@dataclasses.dataclass(frozen=True)
class Krylov:
  """A on the Krylov space of a vector: Q A Qᵀ = T, with Q the rows of `basis_TP`.

  T is tridiagonal with `alphas_T` on its diagonal and `betas_T[:-1]` beside it; `betas_T[-1]` is the
  norm of what A leads out of the space.
  """

  alphas_T: np.ndarray  # float64
  betas_T: np.ndarray  # float64
  basis_TP: np.ndarray  # float32, orthonormal rows

  def eigenvalues(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Ritz values in ascending order, their error bounds, and the eigenvectors of T as columns.

    Within |β s| of a Ritz value, s being the last entry of its vector, lies an eigenvalue of A
    (Parlett 1998, "The Symmetric Eigenvalue Problem", Section 13.2).

    Returns: values_T, bounds_T and vectors_TT.
    """
    values_T, vectors_TT = eigh_tridiagonal(self.alphas_T, self.betas_T[:-1])
    return values_T, np.abs(self.betas_T[-1] * vectors_TT[-1]), vectors_TT

  def quadrature(self) -> tuple[np.ndarray, np.ndarray]:
    """Gauss quadrature of the start's spectral measure: qᵀ f(A) q ≈ Σ_t w_t f(θ_t).

    Exact for polynomials of degree under 2T (Golub & Meurant 2010, Chapter 6).

    Returns: nodes_T θ and weights_T w, which are ≥ 0 and have the sum 1.
    """
    nodes_T, _, vectors_TT = self.eigenvalues()
    return nodes_T, vectors_TT[0] ** 2

  def largest(self, num: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The largest positive eigenvalues in descending order, fewer than `num` where there are fewer.

    Those that are zero up to rounding are left out.

    Returns: values_K, error bounds_K and float32 unit vectors_KP.
    """
    values_T, bounds_T, vectors_TT = self.eigenvalues()
    largest_K = np.argsort(-values_T)[:num]
    largest_K = largest_K[values_T[largest_K] > BREAKDOWN * np.abs(values_T).max()]
    vectors_KP = vectors_TT[:, largest_K].T.astype(np.float32) @ self.basis_TP
    return values_T[largest_K], bounds_T[largest_K], vectors_KP

  def converged(self) -> tuple[np.ndarray, np.ndarray]:
    """The eigenvalues that are found to `CONVERGED`, in descending order; none that is zero.

    The rest of the Ritz values stand for many eigenvalues each.

    Returns: indices_K into `eigenvalues` and `quadrature`, and float32 unit vectors_KP.
    """
    values_T, bounds_T, vectors_TT = self.eigenvalues()
    sizes_T = np.abs(values_T)
    found_T = (bounds_T <= CONVERGED * sizes_T) & (sizes_T > BREAKDOWN * sizes_T.max())
    indices_K = np.flatnonzero(found_T)[::-1]
    return indices_K, vectors_TT[:, indices_K].T.astype(np.float32) @ self.basis_TP

  def flattest(self) -> np.ndarray:
    """The float32 unit vector_P of the space that A changes least, argmin ‖A v‖.

    For v = Qᵀ y it is ‖T y‖² + β² y_T²: the last singular vector of T with one more row.
    """
    size = len(self.alphas_T)
    extended = (
      np.diag(self.alphas_T) + np.diag(self.betas_T[:-1], 1) + np.diag(self.betas_T[:-1], -1)
    )
    extended = np.concatenate([extended, self.betas_T[-1] * np.eye(size)[-1:]])
    return np.linalg.svd(extended)[2][-1].astype(np.float32) @ self.basis_TP

  def deviation(self) -> float:
    """max |Q Qᵀ − I|, how far the basis is from orthonormal; summed in float64."""
    deviation_TT = -np.eye(len(self.basis_TP))
    for start in range(0, self.basis_TP.shape[1], COLUMNS):
      block = self.basis_TP[:, start : start + COLUMNS].astype(np.float64)
      deviation_TT += block @ block.T
    return float(np.abs(deviation_TT).max())


def lanczos(
  multiply: Multiply,
  start_P: np.ndarray,
  num_steps: int,
  show: Callable[[], None] = lambda: None,
) -> Krylov:
  """Lanczos iteration with full reorthogonalisation.

  Every new vector is made orthogonal to all others twice, which is enough (Giraud et al. 2005);
  without it rounding in float32 brings copies of converged eigenvalues. It ends early at a
  breakdown, β ≤ 1e-5 max |T|: then the space is invariant, and what would follow is noise.

  Args:
    multiply: v_P → (A v)_P, in float32 or better.
    start_P: any vector but 0.
    num_steps: products with A. Memory is 4 bytes for each step and parameter.
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
  """A vector less its part along orthonormal ones."""
  for _ in range(2):  # float32 vectors are orthonormal up to rounding
    vector_P = vector_P - (vectors_KP @ vector_P) @ vectors_KP
  return vector_P


def rademacher(rng: np.random.Generator, size: int) -> np.ndarray:
  """float32 entries of −1 and 1 with equal chance: E[v vᵀ] = I and ‖v‖² = P exactly."""
  return 2 * rng.integers(2, size=size).astype(np.float32) - 1


def density(
  nodes_KT: np.ndarray, weights_KT: np.ndarray, grid_G: np.ndarray, width: float
) -> np.ndarray:
  """Spectral densities by stochastic Lanczos quadrature (Ubaru et al. 2017; Ghorbani et al. 2019).

  Args:
    nodes_KT, weights_KT: of `Krylov.quadrature` for each probe; entries of weight 0 are ignored.
    width: standard deviation of the Gaussian that each node is drawn as.

  Returns: densities_KG of the probes, each with the integral 1. Their mean estimates the density of
    the eigenvalues, smoothed by the Gaussian.
  """
  kernels_KTG = norm.pdf(grid_G[None, None], loc=nodes_KT[..., None], scale=width)
  return np.einsum('kt,ktg->kg', weights_KT, kernels_KTG)
