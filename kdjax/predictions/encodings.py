"""Encodings of stored predictions, which map the log-probabilities of an example to a stored row and back.

`Dense` stores the log-probability of every class. `TopK` stores k classes of each example, which takes less
space if there are many classes; the decoded log-probabilities are an estimate.

Axes: M member, N example, C class, K stored class, W stored number, X compared value.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

import jax.numpy as jnp
import numpy as np
from scipy.special import logsumexp

from kdjax import keys

DTYPES = {
  'float16': np.dtype(np.float16),
  'bfloat16': np.dtype(jnp.bfloat16),
  'float32': np.dtype(np.float32),
}
TOP_K = 'top_k'  # the `predictions.dtype` that stands for `TopK`
TRUNCATED, TAIL, SAMPLED, SYSTEMATIC = ESTIMATORS = ('truncated', 'tail', 'sampled', 'systematic')
UNBIASED = (SAMPLED, SYSTEMATIC)  # the expectation of the decoded probabilities is the teacher's
DRAWN_TOGETHER = 256  # examples that share a generator


@dataclasses.dataclass(frozen=True)
class Dense:
  """Log-probabilities of all classes, in one of DTYPES."""

  dtype: str
  num_classes: int

  axis: ClassVar[str] = 'class'
  fill_value: ClassVar[str] = 'NaN'  # of rows that are not stored
  attributes: ClassVar[dict[str, Any]] = {}

  def __str__(self) -> str:
    return self.dtype

  @property
  def data_type(self) -> str:
    """The type of the array."""
    return self.dtype

  @property
  def precision(self) -> np.dtype:
    """The type that log-probabilities are rounded to."""
    return DTYPES[self.dtype]

  @property
  def width(self) -> int:
    """The length of a row."""
    return self.num_classes

  @property
  def num_bytes(self) -> int:
    """The bytes of a row, before compression."""
    return self.width * self.precision.itemsize

  def encode(
    self, log_probs_NC: np.ndarray, member: int, view: int, indices_N: np.ndarray
  ) -> np.ndarray:
    """The rows that are stored for log-probabilities in float64."""
    return log_probs_NC.astype(self.precision)

  def decode(self, rows_NW: np.ndarray, log_probs_NC: np.ndarray) -> None:
    """Writes the log-probabilities of stored rows into a float32 array; NaN where nothing is stored."""
    log_probs_NC[:] = rows_NW

  def is_missing(self, rows_NW: np.ndarray) -> np.ndarray:
    """Whether a row is not stored, of shape (N,)."""
    return np.isnan(rows_NW.astype(np.float32)).any(axis=-1)

  def compared(
    self,
    rows_NW: np.ndarray,
    log_probs_NC: np.ndarray,
    member: int,
    view: int,
    indices_N: np.ndarray,
  ) -> tuple[np.ndarray, np.ndarray]:
    """(stored_NX, fresh_NX) of stored rows and of log-probabilities of the same examples predicted again.

    Both are in nats, and equal up to rounding if the predictions are equal.
    """
    return rows_NW.astype(np.float32), log_probs_NC


@dataclasses.dataclass(frozen=True)
class TopK:
  """k classes of each example.

  A row has the classes, and then the bits of log-probabilities in float16:

    truncated: the k most probable classes, the most probable first, and their log-probabilities,
      renormalised. All other classes have the probability 0.
    tail: the k most probable classes, their log-probabilities, and the logarithm of the mean probability of
      the other classes. Each of these decodes to that mean, so that no mass is lost.
    sampled: k classes drawn with replacement from the teacher's probabilities, in ascending order. The
      decoded probability of a class is its share of the draws, whose expectation is the teacher's
      probability (Anshumann et al., "Sparse Logit Sampling", ACL 2025).
    systematic: the same, but drawn at k evenly spaced places of the cumulative probabilities, with one
      random shift (Madow 1949). A class of probability p is drawn ⌊kp⌋ or ⌈kp⌉ times, so that the
      variance is smaller.

  The draws follow from (seed, member, view, index of the example) alone.

  Attributes:
    k: in [1, num_classes].
    estimator: of ESTIMATORS.
    seed: of the draws. Only the last two estimators draw.
  """

  k: int
  estimator: str
  num_classes: int
  seed: int

  axis: ClassVar[str] = 'number'
  precision: ClassVar[np.dtype] = np.dtype(np.float16)

  def __str__(self) -> str:
    return f'top_k, k = {self.k}, {self.estimator}'

  @property
  def attributes(self) -> dict[str, Any]:
    """The attributes of the array, from which `from_metadata` makes the encoding again."""
    return {TOP_K: dataclasses.asdict(self)}

  @property
  def data_type(self) -> str:
    return 'uint16' if self.num_classes < 2**16 else 'uint32'

  @property
  def fill_value(self) -> int:
    """A number that is no class, and the bits of a NaN that no rounding gives."""
    return int(np.iinfo(self.data_type).max)

  @property
  def width(self) -> int:
    return self.k if self._is_drawn else 2 * self.k + self._has_tail

  @property
  def num_bytes(self) -> int:
    return self.width * np.dtype(self.data_type).itemsize

  @property
  def _is_drawn(self) -> bool:
    return self.estimator in UNBIASED

  @property
  def _has_tail(self) -> bool:
    return self.estimator == TAIL and self.k < self.num_classes

  def encode(
    self, log_probs_NC: np.ndarray, member: int, view: int, indices_N: np.ndarray
  ) -> np.ndarray:
    is_nan_N = np.isnan(log_probs_NC).any(axis=-1)
    log_probs_NC = np.where(is_nan_N[:, None], 0, log_probs_NC)
    if self._is_drawn:
      places_NK = self._places(member, view, indices_N)
      rows_NW = [
        np.searchsorted(cumulative_C, places_K, side='right')
        for cumulative_C, places_K in zip(_cumulative(log_probs_NC), places_NK, strict=True)
      ]
    else:
      classes_NK = _most_probable(log_probs_NC, self.k)
      values_NX = self._values(log_probs_NC, classes_NK).astype(np.float16)
      rows_NW = np.concatenate([classes_NK, values_NX.view(np.uint16)], axis=-1)
    rows_NW = np.asarray(rows_NW).astype(self.data_type)
    rows_NW[is_nan_N] = self.fill_value
    return rows_NW

  def decode(self, rows_NW: np.ndarray, log_probs_NC: np.ndarray) -> None:
    is_missing_N = self.is_missing(rows_NW)
    classes_NK = np.where(is_missing_N[:, None], 0, rows_NW[:, : self.k]).astype(np.int64)
    if self._is_drawn:
      counts_NC, rows_N = np.zeros(log_probs_NC.shape, np.int32), np.arange(len(rows_NW))
      for classes_N in (
        classes_NK.T
      ):  # one class of each example at a time, since += counts repeated indices once
        counts_NC[rows_N, classes_N] += 1
      with np.errstate(divide='ignore'):
        by_count = np.log(np.arange(self.k + 1) / self.k).astype(np.float32)
      log_probs_NC[:] = by_count[counts_NC]
    else:
      values_NX = self._stored_values(rows_NW)
      log_probs_NC[:] = values_NX[:, self.k :] if self._has_tail else -np.inf
      np.put_along_axis(log_probs_NC, classes_NK, values_NX[:, : self.k], axis=-1)
    log_probs_NC[is_missing_N] = np.nan

  def is_missing(self, rows_NW: np.ndarray) -> np.ndarray:
    return (rows_NW == self.fill_value).any(axis=-1)

  def compared(
    self,
    rows_NW: np.ndarray,
    log_probs_NC: np.ndarray,
    member: int,
    view: int,
    indices_N: np.ndarray,
  ) -> tuple[np.ndarray, np.ndarray]:
    """Compares the stored values and, last, the choice of the classes.

    Drift between machines may exchange classes that are about equally probable. So the values of the stored
    classes are compared. The last pair is 0 and the nats by which a class that was left out is more
    probable than a stored one. Draws are compared by how far their places lie outside the intervals of the
    classes drawn.
    """
    classes_NK = rows_NW[:, : self.k].astype(np.int64)
    if self._is_drawn:
      cumulative_NC = _cumulative(log_probs_NC)
      ends_NC = np.concatenate([np.zeros_like(cumulative_NC[:, :1]), cumulative_NC], axis=-1)
      low_NK, high_NK = (np.take_along_axis(ends_NC, classes_NK + i, axis=-1) for i in (0, 1))
      places_NK = self._places(member, view, indices_N)
      outside_NK = np.maximum(np.maximum(low_NK - places_NK, places_NK - high_NK), 0)
      return np.zeros_like(outside_NK), outside_NK
    kept_NK = np.take_along_axis(log_probs_NC, classes_NK, axis=-1)
    others_NC = _without(log_probs_NC, classes_NK)
    left_N1 = (others_NC.max(axis=-1) - kept_NK.min(axis=-1))[:, None]
    stored_NX, fresh_NX = self._stored_values(rows_NW), self._values(log_probs_NC, classes_NK)
    return (
      np.concatenate([stored_NX, np.zeros_like(left_N1)], axis=-1),
      np.concatenate([fresh_NX, np.maximum(left_N1, 0)], axis=-1),
    )

  def _values(self, log_probs_NC: np.ndarray, classes_NK: np.ndarray) -> np.ndarray:
    """The values that are stored beside the classes, before they are rounded."""
    kept_NK = np.take_along_axis(log_probs_NC, classes_NK, axis=-1)
    if self.estimator == TRUNCATED:
      return kept_NK - logsumexp(kept_NK, axis=-1, keepdims=True)
    if not self._has_tail:
      return kept_NK
    rest_N1 = logsumexp(_without(log_probs_NC, classes_NK), axis=-1, keepdims=True)
    return np.concatenate([kept_NK, rest_N1 - np.log(self.num_classes - self.k)], axis=-1)

  def _stored_values(self, rows_NW: np.ndarray) -> np.ndarray:
    return rows_NW[:, self.k :].astype(np.uint16).view(np.float16).astype(np.float32)

  def _places(self, member: int, view: int, indices_N: np.ndarray) -> np.ndarray:
    """Draws places_NK in [0, 1), in ascending order, at which the cumulative probabilities are looked up."""
    num_random = 1 if self.estimator == SYSTEMATIC else self.k
    uniform_NK = np.empty((len(indices_N), num_random))
    blocks_N = indices_N // DRAWN_TOGETHER
    for block in np.unique(blocks_N):
      rng = keys.numpy_rng(self.seed, 'top_k', member, view, int(block))
      drawn = rng.random((DRAWN_TOGETHER, num_random))
      uniform_NK[blocks_N == block] = drawn[indices_N[blocks_N == block] % DRAWN_TOGETHER]
    if self.estimator == SYSTEMATIC:
      return np.minimum((np.arange(self.k) + uniform_NK) / self.k, np.nextafter(1, 0))
    return np.sort(uniform_NK, axis=-1)


Encoding = Dense | TopK


def from_metadata(attributes: Mapping[str, Any], data_type: str, width: int) -> Encoding:
  """The encoding of an array, from its metadata.

  Raises:
    ValueError: the metadata contradict each other.
  """
  if TOP_K not in attributes:
    return Dense(data_type, width)
  try:
    found = TopK(**attributes[TOP_K])
    is_consistent = (found.data_type, found.width) == (data_type, width)
  except TypeError:
    is_consistent = False
  if not is_consistent:
    raise ValueError(f'{attributes} does not describe {width} numbers in {data_type}')
  return found


def _most_probable(log_probs_NC: np.ndarray, k: int) -> np.ndarray:
  """The k most probable classes_NK, the most probable first; of equally probable ones, the lower first."""
  least_N1 = np.partition(log_probs_NC, -k, axis=-1)[:, -k, None]
  above_NC, equal_NC = log_probs_NC > least_N1, log_probs_NC == least_N1
  room_N1 = k - above_NC.sum(axis=-1, keepdims=True)
  kept_NC = above_NC | (equal_NC & (equal_NC.cumsum(axis=-1) <= room_N1))
  classes_NK = np.nonzero(kept_NC)[1].reshape(-1, k)
  order_NK = np.argsort(
    -np.take_along_axis(log_probs_NC, classes_NK, axis=-1), axis=-1, kind='stable'
  )
  return np.take_along_axis(classes_NK, order_NK, axis=-1)


def _without(log_probs_NC: np.ndarray, classes_NK: np.ndarray) -> np.ndarray:
  """The log-probabilities with −∞ for some classes."""
  others_NC = log_probs_NC.copy()
  np.put_along_axis(others_NC, classes_NK, -np.inf, axis=-1)
  return others_NC


def _cumulative(log_probs_NC: np.ndarray) -> np.ndarray:
  """Cumulative probabilities in float64; the last is exactly 1."""
  cumulative_NC = np.exp(log_probs_NC.astype(np.float64)).cumsum(axis=-1)
  return cumulative_NC / cumulative_NC[:, -1:]
