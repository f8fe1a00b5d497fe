"""Generalization and fidelity of whole prediction arrays (paper, Section 3), in float64 on the host.

Values are computed for each example and averaged once over all of them, so that no batch size and no
ragged last batch can enter; `Sums` is for arrays that come in pieces. Axes: N example, C class.
"""

import numpy as np
from scipy.special import log_softmax

NUM_BINS = 10  # of the calibration error: equal widths on [0, 1]


class Sums:
  """Running (sum, count) pairs by name."""

  def __init__(self):
    self._sums: dict[str, np.ndarray] = {}
    self._counts: dict[str, int] = {}

  def add(self, values: dict[str, np.ndarray]) -> 'Sums':
    """Adds per-example values; the first axis of every array is the example."""
    for name, values_N in values.items():
      self._sums[name] = self._sums.get(name, 0) + values_N.sum(axis=0, dtype=np.float64)
      self._counts[name] = self._counts.get(name, 0) + len(values_N)
    return self

  def mean(self, name: str) -> np.ndarray:
    return self._sums[name] / self._counts[name]


def generalization(logits_NC: np.ndarray, labels_N: np.ndarray) -> dict[str, float]:
  """{'accuracy', 'nll', 'ece'}: fractions, and nats for the negative log-likelihood."""
  return generalization_means(Sums().add(generalization_values(logits_NC, labels_N)))


def fidelity(student_logits_NC: np.ndarray, teacher_log_probs_NC: np.ndarray) -> dict[str, float]:
  """{'top1_agreement', 'predictive_kl'}: a fraction, and KL(teacher ‖ student) in nats, at τ = 1."""
  return fidelity_means(Sums().add(fidelity_values(student_logits_NC, teacher_log_probs_NC)))


def generalization_values(logits_NC: np.ndarray, labels_N: np.ndarray) -> dict[str, np.ndarray]:
  """What `generalization` averages, for each example.

  Returns: 'accuracy' and 'nll' of shape (N,), and 'calibration' of shape (N, NUM_BINS, 3): in the bin
  of the example's confidence stand (1, confidence, correct), in the others zeros. Bins are open below.
  """
  log_probs_NC = log_softmax(np.asarray(logits_NC, np.float64), axis=-1)
  correct_N = (log_probs_NC.argmax(-1) == labels_N).astype(np.float64)
  confidence_N = np.exp(log_probs_NC.max(-1))
  bin_N = np.clip(np.ceil(confidence_N * NUM_BINS).astype(int) - 1, 0, NUM_BINS - 1)
  calibration = np.zeros((len(labels_N), NUM_BINS, 3))
  rows_N = np.arange(len(labels_N))
  calibration[rows_N, bin_N] = np.stack([np.ones_like(confidence_N), confidence_N, correct_N], -1)
  return {
    'accuracy': correct_N,
    'nll': -log_probs_NC[rows_N, labels_N],
    'calibration': calibration,
  }


def generalization_means(sums: Sums) -> dict[str, float]:
  """Accuracy, NLL and ECE = Σ_bins |mean(correct − confidence in the bin)| (Guo et al. 2017)."""
  _, confidence, correct = sums.mean('calibration').T
  return {
    'accuracy': float(sums.mean('accuracy')),
    'nll': float(sums.mean('nll')),
    'ece': float(np.abs(correct - confidence).sum()),
  }


def reliability(logits_NC: np.ndarray, labels_N: np.ndarray) -> dict[str, np.ndarray]:
  """The reliability diagram, by bin: 'fraction' of the examples, mean 'confidence' and 'accuracy'.

  The two means are NaN in an empty bin.
  """
  values = generalization_values(logits_NC, labels_N)
  fraction, confidence, correct = Sums().add(values).mean('calibration').T
  filled = np.where(fraction > 0, fraction, np.nan)
  return {'fraction': fraction, 'confidence': confidence / filled, 'accuracy': correct / filled}


def fidelity_values(
  student_logits_NC: np.ndarray, teacher_log_probs_NC: np.ndarray
) -> dict[str, np.ndarray]:
  """What `fidelity` averages, for each example: 'top1_agreement' and 'predictive_kl', shape (N,)."""
  student_NC = log_softmax(np.asarray(student_logits_NC, np.float64), axis=-1)
  teacher_NC = log_softmax(np.asarray(teacher_log_probs_NC, np.float64), axis=-1)
  probs_NC = np.exp(teacher_NC)
  terms_NC = np.where(probs_NC > 0, probs_NC * (teacher_NC - student_NC), 0.0)  # 0 log 0 = 0
  return {
    'top1_agreement': (student_NC.argmax(-1) == teacher_NC.argmax(-1)).astype(np.float64),
    'predictive_kl': terms_NC.sum(-1),
  }


def fidelity_means(sums: Sums) -> dict[str, float]:
  return {name: float(sums.mean(name)) for name in ('top1_agreement', 'predictive_kl')}


def bootstrap_interval(
  values_N: np.ndarray, num_resamples: int, rng: np.random.Generator, level: float = 0.95
) -> tuple[float, float] | None:
  """The percentile bootstrap interval of the mean over examples (Efron & Tibshirani 1993, ch. 13).

  Examples are resampled, so each must stand in `values_N` once: average the views of one image first.

  Args:
    values_N: a value for each example, such as 'top1_agreement' of `fidelity_values`.
    num_resamples: how many times N examples are drawn with replacement.
    rng: such as `keys.numpy_rng`; equal generators give equal intervals.
    level: of confidence, in (0, 1).

  Returns: (low, high), or None where there is no example.
  """
  values_N = np.asarray(values_N, np.float64)
  num_examples = len(values_N)
  if num_examples == 0:
    return None
  means = [
    values_N[rng.integers(num_examples, size=num_examples)].mean() for _ in range(num_resamples)
  ]
  tail = (1 - level) / 2
  low, high = np.quantile(means, [tail, 1 - tail])
  return float(low), float(high)
