"""The path of a training through weight space and through the space of predictions.

All are pure functions of parameter trees and prediction arrays, in float64 on the host. A layer is a
top-level module of the parameters; the first entry along L is all layers together (`layers`). Axes: L layer,
T checkpoint, B batch, K predictor or component, N example, C class, P parameter, X any other axes.
"""

import itertools
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any

import jax
import numpy as np
import scipy.linalg
from scipy.special import log_softmax, rel_entr

from kdjax import intervals

from .estimates import jackknife, leave_one_out, named
from .geometry import difference

Tree = dict[str, Any]  # nested dicts of arrays
Values = dict[str, np.ndarray]  # 'x' with its interval 'x/low' and 'x/high'


# Weight space.


def layers(params: Tree) -> tuple[str, ...]:
  """Names along the axis L: 'all', then the top-level modules in alphabetical order."""
  return ('all', *sorted(params))


def sizes(params: Tree) -> np.ndarray:
  """The numbers of parameters, sizes_L."""
  return _by_layer(jax.tree.map(np.size, params))


def dots(a: Tree, b: Tree) -> np.ndarray:
  """Inner products, dots_L."""
  return _by_layer(jax.tree.map(lambda x, y: np.vdot(_float64(x), _float64(y)), a, b))


def distances(a: Tree, b: Tree) -> np.ndarray:
  """‖a − b‖, distances_L, in units of the weights."""
  step = difference(a, b)
  return np.sqrt(dots(step, step))


def cosines(a: Tree, b: Tree) -> np.ndarray:
  """Cosines of the angles between two trees as vectors, cosines_L; NaN where either is 0."""
  return _ratio(dots(a, b), np.sqrt(dots(a, a) * dots(b, b)))


def path(points: Sequence[Tree]) -> Values:
  """Length and displacement of a path at each of its points, in units of the weights.

  Returns: 'length', the sum of the straight pieces up to the point, lengths_TL, and 'displacement', the
    distance from the first point, displacements_TL. The length is a lower bound of that of the training,
    which is unknown between the points.
  """
  pieces = [distances(a, b) for a, b in itertools.pairwise(points)]
  start = np.zeros(len(layers(points[0])))
  return {
    'length': np.cumsum([start, *pieces], axis=0),
    'displacement': np.stack([distances(point, points[0]) for point in points]),
  }


def gram(trees: Sequence[Tree], centred: bool = False) -> np.ndarray:
  """Inner products of all pairs of trees, gram_LTT; of their differences from the mean if `centred`."""

  def of_leaf(*leaves: np.ndarray) -> np.ndarray:
    x_TP = np.stack([_float64(leaf).ravel() for leaf in leaves])
    x_TP = x_TP - x_TP.mean(axis=0, keepdims=True) if centred else x_TP
    return x_TP @ x_TP.T

  return _by_layer(jax.tree.map(of_leaf, *trees))


def pca(points: Sequence[Tree]) -> tuple[np.ndarray, np.ndarray]:
  """Principal components of T points, from the eigenvectors of their centred Gram matrix.

  Returns: coords_TK in units of the weights, for all K = T − 1 components, with signs that make the last
    point's coordinates positive; and explained_K, their fractions of the variance.
  """
  gram_TT = gram(points, centred=True)[0]
  return _principal(gram_TT, len(points) - 1)


def random_walk_explained(times_T: np.ndarray) -> np.ndarray:
  """The fractions of variance that PCA explains of a random walk in high dimension.

  A walk x(t) with independent steps has covariance min(s, t). The fractions are its centred eigenvalues over
  their sum; fluctuations vanish as the dimension grows. For evenly spaced times they are
  1 / (4 sin² (π k / 2T)) over (T² − 1) / 6, which tends to 6 / (π k)²: 60.8 %, 15.2 %, 6.8 %, ...
  (Antognini & Sohl-Dickstein 2018, "PCA of high dimensional random walks with comparison to neural
  network training"). Training steps are only a rough choice of times: a walk slows down as the learning
  rate falls.

  Args:
    times_T: increasing times, such as the steps of the checkpoints.

  Returns: explained_K, K = T − 1.
  """
  times_T = _float64(times_T) - times_T[0]
  covariance_TT = np.minimum(times_T[:, None], times_T[None, :])
  return _principal(_centred(covariance_TT), len(times_T) - 1)[1]


# Gradients, from the inner products of the batches' gradients.


def gradient_noise(gram_LBB: np.ndarray, batch_size: int) -> Values:
  """Norm and signal-to-noise ratio of a gradient, from B batches of equal size.

  Let g_b be the batch gradients, g their mean, n = `batch_size`, and Σ the covariance of one example's
  gradient. Unbiased estimates are S = n Σ_b ‖g_b − g‖² / (B − 1) for tr Σ, and ‖g‖² − S / (n B) for the
  squared norm of the true gradient G. The ratio ‖G‖² / tr Σ is `snr`, the inverse of the "simple noise
  scale" in examples (McCandlish et al. 2018, "An empirical model of large-batch training", equation 2.9 and
  Appendix A.1). Its estimate can be negative if the true value is near 0.

  Args:
    gram_LBB: `gram` of the batches' mean gradients.
    batch_size: examples in each batch.

  Returns: values_L with jackknife intervals over batches: 'norm', ‖g‖; 'noise', √(S / (n B)), the
    root-mean-square norm of the noise alone; and 'snr', per example.

  Raises:
    ValueError: there are fewer than three batches.
  """

  def statistics(kept_B: np.ndarray) -> np.ndarray:
    kept_LBB = gram_LBB[:, kept_B][:, :, kept_B]
    count = len(kept_B)
    squared_L = kept_LBB.mean(axis=(1, 2))
    spread_L = np.trace(kept_LBB, axis1=1, axis2=2) - count * squared_L
    trace_L = batch_size * spread_L / (count - 1)
    noise_L = trace_L / (batch_size * count)
    return np.stack(
      [np.sqrt(squared_L), np.sqrt(np.maximum(noise_L, 0)), _ratio(squared_L - noise_L, trace_L)]
    )

  found = jackknife(*leave_one_out(statistics, gram_LBB.shape[1]))
  norm, noise, snr = np.swapaxes(found, 0, 1)
  return named('norm', norm) | named('noise', noise) | named('snr', snr)


def descent_cosines(
  gradients: Sequence[Tree], directions: Iterable[Tree], gram_LBB: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
  """The cosines of a step of gradient descent with K directions, such as those to teachers.

  The cosine is cos(−g, d), with g the mean of the batches' gradients. Noise in g shrinks it by a factor
  √(1 − noise² / norm²), see `gradient_noise`, and keeps its sign.

  Args:
    gradients: of B batches of equal size.
    directions: an iterable that is read once, so that not all need to be in memory.
    gram_LBB: `gram` of `gradients`.

  Returns: values_KL, and without_BKL, the values without each of the batches, for `estimates.jackknife_error`. They
    are NaN where the direction or the gradient is 0.
  """
  products, squared = [], []
  for direction in directions:
    products.append([dots(gradient, direction) for gradient in gradients])
    squared.append(dots(direction, direction))
  dots_KBL, squared_KL = np.stack(products), np.stack(squared)

  def cosines(kept_B: np.ndarray) -> np.ndarray:
    norm_squared_L = gram_LBB[:, kept_B][:, :, kept_B].mean(axis=(1, 2))
    return _ratio(-dots_KBL[:, kept_B].mean(axis=1), np.sqrt(norm_squared_L[None] * squared_KL))

  return leave_one_out(cosines, len(gradients))


# Prediction space.


def disagreements(a_NC: np.ndarray, b_NC: np.ndarray) -> np.ndarray:
  """values_N, 1 where the most probable classes differ, else 0; the mean is a distance in [0, 1]."""
  return (a_NC.argmax(axis=-1) != b_NC.argmax(axis=-1)).astype(np.float64)


def jensen_shannon(log_p_NC: np.ndarray, log_q_NC: np.ndarray) -> np.ndarray:
  """Jensen–Shannon divergences in bits, values_N in [0, 1]: 0 for equal, 1 for disjoint predictions.

  The divergence is ½ KL(p ‖ m) + ½ KL(q ‖ m) with m = (p + q)/2 (Lin 1991). The square root of its mean over
  examples is a Euclidean metric (Fuglede & Topsøe 2004).
  """
  # scipy.spatial.distance.jensenshannon is NaN where p and q differ only by rounding.
  p_NC, q_NC = (np.exp(log_softmax(_float64(x), axis=-1)) for x in (log_p_NC, log_q_NC))
  terms_NC = rel_entr(p_NC, p_NC + q_NC) + rel_entr(q_NC, p_NC + q_NC)
  return np.clip(1 + 0.5 * terms_NC.sum(axis=-1) / np.log(2), 0, 1)


def prediction_distances(
  log_probs_KNC: Sequence[np.ndarray],
  num_resamples: int,
  make_rng: Callable[[], np.random.Generator],
) -> Values:
  """Distances between K predictors on the same examples, with bootstrap intervals over examples.

  Args:
    log_probs_KNC: of each predictor.
    num_resamples: of the bootstrap.
    make_rng: returns a new generator with the same state each time, so that all pairs share resamples.

  Returns: 'disagreement', 1 − top-1 agreement, and 'jensen_shannon', √ of the mean divergence in bits, each
    of shape (K, K) and in [0, 1]. √ of the disagreement is Euclidean too: it is the distance of the one-hot
    predictions divided by √(2 N).
  """
  count = len(log_probs_KNC)
  keys = [f'{name}{end}' for name in ('disagreement', 'jensen_shannon') for end in intervals.ENDS]
  found = {key: np.zeros((count, count)) for key in keys}
  for i in range(count):
    for j in range(i):
      of_pair = {
        'disagreement': disagreements(log_probs_KNC[i], log_probs_KNC[j]),
        'jensen_shannon': jensen_shannon(log_probs_KNC[i], log_probs_KNC[j]),
      }
      for name, values_N in of_pair.items():
        interval = intervals.bootstrap_interval(values_N, num_resamples, make_rng())
        for end, value in zip(intervals.ENDS, (values_N.mean(), *interval), strict=True):
          # The root of a percentile interval is the interval of the root.
          value = np.sqrt(value) if name == 'jensen_shannon' else value
          found[name + end][i, j] = found[name + end][j, i] = value
  return found


MISMATCHES = ('mismatch', 'repeated')  # names of what `repeated_mismatches` returns


def repeated_mismatches(
  mismatch_KN: np.ndarray,
  pairs: Sequence[tuple[int, int]],
  num_resamples: int,
  make_rng: Callable[[], np.random.Generator],
) -> Values:
  """Whether predictors fail to match the teacher on the same examples, with bootstrap intervals over examples.

  Args:
    mismatch_KN: whether a predictor's class is another than the teacher's.
    pairs: ordered pairs of predictors (i, j).
    num_resamples, make_rng: as of `prediction_distances`.

  Returns: 'mismatch', the rate of mismatches of the predictors i, and 'repeated', the share of them that
    are also mismatches of j, over all pairs. If mismatches of i and j have nothing in common, 'repeated' is the
    rate of mismatches of j. Values are NaN if there is no pair, and 'repeated' if there is no mismatch.
  """
  if not pairs:
    return {key: np.array(np.nan) for name in MISMATCHES for key in named(name, intervals.ENDS)}
  first, second = (mismatch_KN[list(places)] for places in zip(*pairs, strict=True))
  of_first_N, of_both_N = first.mean(axis=0), (first & second).mean(axis=0)
  every_N = np.ones_like(of_first_N)
  found = {}
  for name, part_N, whole_N in zip(
    MISMATCHES, (of_first_N, of_both_N), (every_N, of_first_N), strict=True
  ):
    share = partial(_share, part_N=part_N, whole_N=whole_N)
    shares_R = intervals.bootstrap(share, len(every_N), num_resamples, make_rng())
    defined_R = shares_R[~np.isnan(shares_R)]  # a resample of few mismatches may have none
    ends = intervals.percentiles(defined_R) if len(defined_R) else (np.nan, np.nan)
    found |= named(name, (share(every_N), *ends))
  return found


def _share(counts_RN: np.ndarray, *, part_N: np.ndarray, whole_N: np.ndarray) -> np.ndarray:
  """The sum of a part relative to that of the whole, in each resample; NaN for 0 / 0."""
  with np.errstate(invalid='ignore'):
    return (counts_RN @ part_N) / (counts_RN @ whole_N)


def mds(distances_KK: np.ndarray) -> tuple[np.ndarray, float]:
  """Classical multidimensional scaling to the plane (Torgerson 1952).

  Args:
    distances_KK: symmetric, with 0 on the diagonal.

  Returns: coords_K2, centred, in units of the distances, with signs that make the last point's coordinates
    positive; and the fraction of the sum of squared distances that the plane keeps. The fraction is
    (λ1 + λ2) / Σ |λ| over the eigenvalues of the centred −½ D² (Mardia et al. 1979, eq. 14.4.7); distances
    that are not Euclidean give negative eigenvalues, which count as lost.
  """
  coords_KK, kept_K = _principal(_centred(-0.5 * _float64(distances_KK) ** 2), len(distances_KK))
  return coords_KK[:, :2], float(kept_K[:2].sum())


# Shared.


def _float64(x: Any) -> np.ndarray:
  return np.asarray(x, np.float64)


def _by_layer(tree: Tree) -> np.ndarray:
  """Sums equally shaped leaves within each layer, and prepends the sum over all layers."""
  of_layers = np.stack([sum(jax.tree.leaves(tree[name])) for name in sorted(tree)])
  return np.concatenate([of_layers.sum(axis=0, keepdims=True), of_layers])


def _ratio(above: np.ndarray, below: np.ndarray) -> np.ndarray:
  """above / below, NaN where `below` is 0."""
  return np.divide(above, below, out=np.full_like(below, np.nan), where=below != 0)


def _centred(matrix_TT: np.ndarray) -> np.ndarray:
  """Centres a symmetric matrix, so that rows and columns have mean 0."""
  matrix_TT = matrix_TT - matrix_TT.mean(axis=0, keepdims=True)
  return matrix_TT - matrix_TT.mean(axis=1, keepdims=True)


def _principal(gram_TT: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
  """The first `count` coordinates of points with these centred inner products, and λ / Σ |λ|.

  Coordinates of negative eigenvalues are set to 0.
  """
  values_T, vectors_TT = scipy.linalg.eigh(gram_TT)
  values_K, vectors_TK = values_T[::-1][:count], vectors_TT[:, ::-1][:, :count]
  signs_K = np.where(vectors_TK[-1] < 0, -1.0, 1.0)
  coords_TK = vectors_TK * (signs_K * np.sqrt(np.maximum(values_K, 0)))[None, :]
  return coords_TK, values_K / (np.abs(values_T).sum() or 1.0)  # all points may be one
