"""Centred kernel alignment (CKA), the similarity of the features of two networks on the same examples.

In float64 on the host. Axes: N example, F and G features.
"""

import math

import numpy as np

BLOCK = 4096  # features that are converted to float64 at a time
MIN_EXAMPLES = 4  # for the unbiased estimate, which divides by N (N − 3)


def linear_cka(x_NF: np.ndarray, y_NG: np.ndarray) -> float | None:
  """Linear CKA (Kornblith et al. 2019) with the unbiased HSIC₁ (Song et al. 2012, eq. 5).

  CKA = HSIC₁(K, L) / √(HSIC₁(K, K) HSIC₁(L, L)), with K = X Xᵀ and L = Y Yᵀ (Nguyen et al. 2021). For
  independent features it is 0 in expectation for any N, and may be slightly negative; the biased estimate
  grows with F / N. It is 1 for features that are equal up to rotation, scale and translation.

  Args:
    x_NF, y_NG: features of the same N ≥ 4 examples, in the same order. Further axes are flattened: every
      position of a convolution's (N, H, W, C) is a feature.

  Returns: a value in [−1, 1], or None if a network gives all examples the same features.

  Raises:
    ValueError: the numbers of examples differ, or are below four.

  >>> x_NF = np.array([[0.0, 1.0], [1.0, 0.0], [2.0, 5.0], [3.0, 1.0], [4.0, 2.0]])
  >>> round(linear_cka(x_NF, 3 * x_NF[:, ::-1] + 1), 4)  # rotated, scaled and translated
  1.0
  """
  if len(x_NF) != len(y_NG) or len(x_NF) < MIN_EXAMPLES:
    raise ValueError(
      f'{len(x_NF)} and {len(y_NG)} examples; CKA needs the same {MIN_EXAMPLES} or more'
    )
  k_NN, l_NN = _centred_gram(x_NF), _centred_gram(y_NG)
  scale = math.sqrt(np.vdot(k_NN, k_NN)) * math.sqrt(np.vdot(l_NN, l_NN))
  return float(np.vdot(k_NN, l_NN)) / scale if scale > 0 else None


def _centred_gram(x_NF: np.ndarray) -> np.ndarray:
  """U-centred X Xᵀ (Székely & Rizzo 2014): HSIC₁ is Σ K L / (N (N − 3)), of centred K and L."""
  x_NF = np.asarray(x_NF).reshape(len(x_NF), -1)
  gram_NN = np.zeros((len(x_NF), len(x_NF)))
  for start in range(0, x_NF.shape[1], BLOCK):
    block_NF = x_NF[:, start : start + BLOCK].astype(np.float64)
    # A translation changes only rounding. Subtracting an example makes constant features exactly 0.
    block_NF = block_NF - block_NF[:1]
    gram_NN += block_NF @ block_NF.T
  n = len(gram_NN)
  np.fill_diagonal(gram_NN, 0)
  sums_N = gram_NN.sum(axis=0)
  gram_NN += sums_N.sum() / ((n - 1) * (n - 2)) - (sums_N[:, None] + sums_N[None, :]) / (n - 2)
  np.fill_diagonal(gram_NN, 0)
  return gram_NN
