"""The quality of generated images: their Fréchet distance to real ones, and a picture of them.

Axes: N example, F feature, H W C image.
"""

import numpy as np

GRID = 8  # columns of a picture


def frechet_distance(x_NF: np.ndarray, y_NF: np.ndarray) -> float:
  """The Fréchet distance of the Gaussians that fit two sets of features (Heusel et al. 2017).

  |μ_x − μ_y|² + Tr(Σ_x + Σ_y − 2 (Σ_x Σ_y)^½), squared as in the FID. It grows as the sets shrink, so
  compare distances of sets of similar sizes.
  """
  x_NF, y_NF = np.asarray(x_NF, np.float64), np.asarray(y_NF, np.float64)
  mean_x_F, mean_y_F = x_NF.mean(0), y_NF.mean(0)
  covariance_x_FF, covariance_y_FF = (np.atleast_2d(np.cov(z, rowvar=False)) for z in (x_NF, y_NF))
  # The eigenvalues of Σ_x Σ_y are the squares of these singular values.
  shared_F = np.linalg.svd(_root(covariance_x_FF) @ _root(covariance_y_FF), compute_uv=False)
  traces = np.trace(covariance_x_FF) + np.trace(covariance_y_FF)
  return float(np.sum((mean_x_F - mean_y_F) ** 2) + traces - 2 * shared_F.sum())


def _root(covariance_FF: np.ndarray) -> np.ndarray:
  eigenvalues_F, vectors_FF = np.linalg.eigh(covariance_FF)
  return (vectors_FF * np.sqrt(eigenvalues_F.clip(0))[None]) @ vectors_FF.T


def grid(images_NHWC: np.ndarray) -> np.ndarray:
  """One image_HWC with rows of eight images; the last row is filled up with black."""
  count, height, width, channels = images_NHWC.shape
  rows = -(-count // GRID)
  padded = np.zeros((rows * GRID, height, width, channels), np.uint8)
  padded[:count] = images_NHWC
  tiles = padded.reshape(rows, GRID, height, width, channels)
  return tiles.transpose(0, 2, 1, 3, 4).reshape(rows * height, GRID * width, channels)
