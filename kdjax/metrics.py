"""Generalization and fidelity of whole prediction arrays (paper, Section 3), in float64 on the host.

Values are computed for each example and averaged once over all of them, so that a result does not depend
on batches. `Sums` adds up arrays that come in pieces. Fidelity is measured at τ = 1. Features of two networks
are compared by their centred kernel alignment (CKA).
Axes: N example, C class, F and G feature.
"""

import math

import numpy as np
from scipy.special import log_softmax, softmax

NUM_BINS = 10  # of equal width on [0, 1], for the calibration error
CKA_BLOCK = 4096  # features that are converted to float64 at a time
CKA_MIN_EXAMPLES = 4  # for the unbiased estimate, which divides by N (N − 3)
TOP = 5  # classes that 'top5_agreement' compares; with only so many classes it is always 1


class Sums:
  """Running (sum, count) pairs by name.

  >>> values = {'accuracy': np.array([1.0, 0.0])}, {'accuracy': np.array([1.0])}
  >>> sums = Sums().add(values[0]).add(values[1])
  >>> float(sums.mean('accuracy').round(4))
  0.6667
  """

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
  """{'accuracy', 'nll', 'ece'}: fractions, and nats for the negative log-likelihood.

  >>> probs_NC, labels_N = np.array([[0.75, 0.25], [0.25, 0.75]]), np.array([0, 0])
  >>> {name: round(x, 4) for name, x in generalization(np.log(probs_NC), labels_N).items()}
  {'accuracy': 0.5, 'nll': 0.837, 'ece': 0.25}
  """
  return generalization_means(Sums().add(generalization_values(logits_NC, labels_N)))


def fidelity(student_logits_NC: np.ndarray, teacher_log_probs_NC: np.ndarray) -> dict[str, float]:
  """{'top1_agreement', 'predictive_kl'}: a fraction, and KL(teacher ‖ student) in nats, at τ = 1.

  >>> student_NC, teacher_NC = np.log([[0.5, 0.5]]), np.log([[0.25, 0.75]])
  >>> {name: round(x, 4) for name, x in fidelity(student_NC, teacher_NC).items()}
  {'top1_agreement': 0.0, 'predictive_kl': 0.1308}
  """
  values = fidelity_values(student_logits_NC, teacher_log_probs_NC)
  return {name: float(values_N.mean()) for name, values_N in values.items()}


def generalization_values(logits_NC: np.ndarray, labels_N: np.ndarray) -> dict[str, np.ndarray]:
  """The values of each example that `generalization` averages.

  Returns: 'accuracy' and 'nll' of shape (N,), and 'calibration' of shape (N, NUM_BINS, 3). The bin of the
  example's confidence has (1, confidence, correct), the others have zeros. Bins exclude their lower end.
  """
  log_probs_NC = log_softmax(np.asarray(logits_NC, np.float64), axis=-1)
  correct_N = (log_probs_NC.argmax(-1) == labels_N).astype(np.float64)
  confidence_N = np.exp(log_probs_NC.max(-1))
  bin_N = np.clip(np.ceil(confidence_N * NUM_BINS).astype(int) - 1, 0, NUM_BINS - 1)
  calibration = np.zeros((len(labels_N), NUM_BINS, 3))
  rows_N = np.arange(len(labels_N))
  calibration[rows_N, bin_N] = np.stack([np.ones_like(confidence_N), confidence_N, correct_N], -1)
  return {'accuracy': correct_N, 'nll': -log_probs_NC[rows_N, labels_N], 'calibration': calibration}


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

  >>> probs_NC, labels_N = np.array([[0.75, 0.25], [0.25, 0.75]]), np.array([0, 0])
  >>> found = reliability(np.log(probs_NC), labels_N)
  >>> {name: float(values[7].round(4)) for name, values in found.items()}  # confidence in (0.7, 0.8]
  {'fraction': 1.0, 'confidence': 0.75, 'accuracy': 0.5}
  """
  values = generalization_values(logits_NC, labels_N)
  fraction, confidence, correct = Sums().add(values).mean('calibration').T
  filled = np.where(fraction > 0, fraction, np.nan)
  return {'fraction': fraction, 'confidence': confidence / filled, 'accuracy': correct / filled}


def fidelity_values(
  student_logits_NC: np.ndarray, teacher_log_probs_NC: np.ndarray
) -> dict[str, np.ndarray]:
  """The values that `fidelity` averages: 'top1_agreement' and 'predictive_kl' of each example, (N,)."""
  student_NC = log_softmax(np.asarray(student_logits_NC, np.float64), axis=-1)
  teacher_NC = log_softmax(np.asarray(teacher_log_probs_NC, np.float64), axis=-1)
  probs_NC = np.exp(teacher_NC)
  ratios_NC = np.where(probs_NC > 0, teacher_NC - student_NC, 0.0)  # 0 log 0 = 0
  return {
    'top1_agreement': (student_NC.argmax(-1) == teacher_NC.argmax(-1)).astype(np.float64),
    'predictive_kl': (probs_NC * ratios_NC).sum(-1),
  }


def finer_fidelity_values(
  student_logits_NC: np.ndarray, teacher_log_probs_NC: np.ndarray
) -> dict[str, np.ndarray]:
  """Measures of fidelity that compare whole predicted distributions, for each example, shape (N,).

  Returns:
    'total_variation': ½ Σ_c |p_c − q_c|, in [0, 1]; 0 for equal distributions.
    'top5_agreement': the fraction of the teacher's five most probable classes that are among the student's
      five. Of equally probable classes the lower one comes first. Absent with fewer than six classes.
    'rank_correlation': Spearman's correlation of the class probabilities, in [−1, 1]. Equal probabilities,
      which occur in float16, share their mean rank. It is 0 if all classes of one side are equally probable.

  >>> student_NC, teacher_NC = np.log([[0.2, 0.3, 0.5]]), np.log([[0.3, 0.2, 0.5]])
  >>> values = finer_fidelity_values(student_NC, teacher_NC)
  >>> {name: float(values_N.round(4)[0]) for name, values_N in values.items()}
  {'total_variation': 0.1, 'rank_correlation': 0.5}
  """
  student_NC, teacher_NC = np.asarray(student_logits_NC), np.asarray(teacher_log_probs_NC)
  probs_NC, other_NC = (softmax(x.astype(np.float64), axis=-1) for x in (student_NC, teacher_NC))
  order_NC, student_ranks_NC = _ranks(student_NC)  # of logits: probabilities may underflow
  teacher_order_NC, teacher_ranks_NC = _ranks(teacher_NC)
  found = {'total_variation': 0.5 * np.abs(probs_NC - other_NC).sum(axis=-1)}
  if student_NC.shape[-1] > TOP:
    shared_NTT = order_NC[:, :TOP, None] == teacher_order_NC[:, None, :TOP]
    found['top5_agreement'] = shared_NTT.sum(axis=(-2, -1)) / TOP
  return found | {'rank_correlation': _correlation(student_ranks_NC, teacher_ranks_NC)}


def _ranks(values_NC: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """Classes from the largest value down, and each class's place among them; ties share the mean place."""
  if values_NC.dtype.kind != 'f':  # unsigned integers have no negatives
    values_NC = values_NC.astype(np.float64)
  order_NC = np.argsort(-values_NC, axis=-1, kind='stable')
  sorted_NC = np.take_along_axis(values_NC, order_NC, axis=-1)
  places_C = np.arange(values_NC.shape[-1])
  begins_NC = np.ones(sorted_NC.shape, bool)  # a group of equal values
  begins_NC[:, 1:] = sorted_NC[:, 1:] != sorted_NC[:, :-1]
  ends_NC = np.ones_like(begins_NC)
  ends_NC[:, :-1] = begins_NC[:, 1:]
  first_NC = np.maximum.accumulate(np.where(begins_NC, places_C, 0), axis=-1)
  last_NC = np.where(ends_NC, places_C, places_C[-1])[:, ::-1]
  last_NC = np.minimum.accumulate(last_NC, axis=-1)[:, ::-1]
  ranks_NC = np.empty(sorted_NC.shape)
  np.put_along_axis(ranks_NC, order_NC, (first_NC + last_NC) / 2, axis=-1)
  return order_NC, ranks_NC


def _correlation(x_NC: np.ndarray, y_NC: np.ndarray) -> np.ndarray:
  """Pearson's correlation of each row; 0 where a row is constant."""
  x_NC, y_NC = (ranks - ranks.mean(axis=-1, keepdims=True) for ranks in (x_NC, y_NC))
  scale_N = np.sqrt((x_NC**2).sum(axis=-1) * (y_NC**2).sum(axis=-1))
  products_N = (x_NC * y_NC).sum(axis=-1)
  return np.divide(products_N, scale_N, out=np.zeros_like(scale_N), where=scale_N > 0)


def cohens_kappa(agreement: np.ndarray, student_C: np.ndarray, teacher_C: np.ndarray) -> np.ndarray:
  """Agreement beyond chance, κ = (p_o − p_e) / (1 − p_e) (Cohen 1960).

  Args:
    agreement: p_o, the fraction of examples on which both predict the same class; any leading axes.
    student_C, teacher_C: how often each predicts each class, as fractions of the examples. Agreement by chance
      is p_e = Σ_c student_c teacher_c.

  Returns: κ ≤ 1; 0 for independent predictions with these frequencies; NaN where both predict the same class
  for all examples.

  >>> uniform_C = np.array([0.5, 0.5])
  >>> [round(float(cohens_kappa(agreement, uniform_C, uniform_C)), 4) for agreement in (0.5, 0.75, 1)]
  [0.0, 0.5, 1.0]
  """
  chance = np.sum(student_C * teacher_C, axis=-1)
  room = np.where(chance < 1, 1 - chance, np.nan)
  return (agreement - chance) / room


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
  if len(x_NF) != len(y_NG) or len(x_NF) < CKA_MIN_EXAMPLES:
    raise ValueError(
      f'{len(x_NF)} and {len(y_NG)} examples; CKA needs the same {CKA_MIN_EXAMPLES} or more'
    )
  k_NN, l_NN = _centred_gram(x_NF), _centred_gram(y_NG)
  scale = math.sqrt(np.vdot(k_NN, k_NN)) * math.sqrt(np.vdot(l_NN, l_NN))
  return float(np.vdot(k_NN, l_NN)) / scale if scale > 0 else None


def _centred_gram(x_NF: np.ndarray) -> np.ndarray:
  """U-centred X Xᵀ (Székely & Rizzo 2014): HSIC₁ is Σ K L / (N (N − 3)), of centred K and L."""
  x_NF = np.asarray(x_NF).reshape(len(x_NF), -1)
  gram_NN = np.zeros((len(x_NF), len(x_NF)))
  for start in range(0, x_NF.shape[1], CKA_BLOCK):
    block_NF = x_NF[:, start : start + CKA_BLOCK].astype(np.float64)
    # A translation changes only rounding. Subtracting an example makes constant features exactly 0.
    block_NF = block_NF - block_NF[:1]
    gram_NN += block_NF @ block_NF.T
  n = len(gram_NN)
  np.fill_diagonal(gram_NN, 0)
  sums_N = gram_NN.sum(axis=0)
  gram_NN += sums_N.sum() / ((n - 1) * (n - 2)) - (sums_N[:, None] + sums_N[None, :]) / (n - 2)
  np.fill_diagonal(gram_NN, 0)
  return gram_NN
