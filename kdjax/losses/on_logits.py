"""Losses on the logits of student and teacher, and the ensembles, labels and temperatures that they need.

In distillation losses, p is the teacher's softmax(z_t/τ), with z_t = `teacher_log_probs_BC`, and q is the
student's softmax(z_s/τ).
"""

import math
from collections.abc import Callable
from functools import partial
from typing import TypeVar

import jax
import jax.numpy as jnp
import numpy as np

Array = TypeVar('Array', np.ndarray, jax.Array)
_SMALL = 1e-16  # added to variances, so that gradients are finite where a variance is 0


def ensemble_log_probs(logits_MBC: Array) -> Array:
  """Log-probabilities of an ensemble, combined in probability space (paper, Section 3).

  log mean_m softmax(z_m), computed as logsumexp_m log_softmax(z_m) − log M.

  Args:
    logits_MBC: logits or log-probabilities of the members. NumPy arrays are combined on the host, without
      waiting for a device.

  Returns: log_probs_BC, an array of the same library.

  >>> logits_MBC = jnp.log(jnp.array([[[0.9, 0.1]], [[0.5, 0.5]]]))
  >>> print(jax.device_get(jnp.exp(ensemble_log_probs(logits_MBC))).round(4))
  [[0.7 0.3]]
  """
  xp = logits_MBC.__array_namespace__()
  shifted_MBC = logits_MBC - xp.max(logits_MBC, axis=-1, keepdims=True)
  log_probs_MBC = shifted_MBC - xp.log(xp.sum(xp.exp(shifted_MBC), axis=-1, keepdims=True))
  largest_1BC = xp.max(log_probs_MBC, axis=0, keepdims=True)
  # The ensemble has −∞ where all members have it, as float16 below −65,504 and classes that are not stored.
  largest_1BC = xp.where(xp.isfinite(largest_1BC), largest_1BC, xp.zeros_like(largest_1BC))
  with np.errstate(divide='ignore'):
    sum_BC = xp.log(xp.sum(xp.exp(log_probs_MBC - largest_1BC), axis=0))
  return sum_BC + largest_1BC[0] - math.log(len(logits_MBC))


def cross_entropy(logits_BC: jax.Array, labels_B: jax.Array) -> jax.Array:
  """−log softmax(z)[label]. Labels are integers in [0, C). Returns losses_B.

  >>> print(jax.device_get(cross_entropy(jnp.log(jnp.array([[0.25, 0.75]])), jnp.array([0]))).round(4))
  [1.3863]
  """
  log_probs_BC = jax.nn.log_softmax(logits_BC)
  return -jnp.take_along_axis(log_probs_BC, labels_B[..., None], axis=-1)[..., 0]


def with_labels(
  loss_B: jax.Array,
  logits_BC: jax.Array,
  labels_B: jax.Array,
  alpha: float,
  labelled: float | jax.Array,
) -> jax.Array:
  """α L_NLL + (1 − α) L_KD (paper, Section 3), with L_KD = `loss_B`.

  L_KD is averaged over all N examples, and L_NLL over the L labelled ones. So the mean of the returned
  values is α (1/L) Σ_labelled NLL + (1 − α) (1/N) Σ L_KD.

  Args:
    labels_B: in [0, C), or negative for examples without a label, whose L_NLL is 0.
    labelled: L / N of the whole batch, over all devices, () or (B,). If it is 0, L_NLL is 0.

  Returns: losses_B.

  >>> losses_B = with_labels(jnp.array([2.0]), jnp.zeros((1, 4)), jnp.array([0]), 0.5, 1.0)
  >>> print(jax.device_get(losses_B).round(4))
  [1.6931]
  """
  nll_B = cross_entropy(logits_BC, jnp.maximum(labels_B, 0))
  weight = alpha / jnp.where(labelled == 0, 1, labelled)
  return weight * jnp.where(labels_B >= 0, nll_B, 0.0) + (1 - alpha) * loss_B


def kl_divergence(student_logits_BC: jax.Array, teacher_log_probs_BC: jax.Array) -> jax.Array:
  """KL(teacher ‖ student) = Σ_j p_j (log p_j − log q_j) at τ = 1, in nats. Returns losses_B.

  >>> student, teacher = jnp.zeros((1, 2)), jnp.log(jnp.array([[0.25, 0.75]]))
  >>> print(jax.device_get(kl_divergence(student, teacher)).round(4))
  [0.1308]
  """
  student_log_probs_BC = jax.nn.log_softmax(student_logits_BC)
  teacher_probs_BC = jnp.exp(teacher_log_probs_BC)
  terms_BC = teacher_probs_BC * (teacher_log_probs_BC - student_log_probs_BC)
  return jnp.where(teacher_probs_BC > 0, terms_BC, 0.0).sum(axis=-1)  # 0 log 0 = 0


def temperature_at(
  step: int | jax.Array, num_steps: int, start: float, final: float | None
) -> float | jax.Array:
  """The temperature τ at a step: `start` if `final` is None, else geometric from `start` to `final`.

  start · (final/start)^(step/num_steps). Step `num_steps`, which comes after the last one, and all later
  steps have `final`. The step may be traced.

  >>> print([round(float(temperature_at(step, 2, 4.0, 1.0)), 4) for step in (0, 1, 2)])
  [4.0, 2.0, 1.0]
  """
  if final is None:
    return start
  return start * (final / start) ** jnp.minimum(step / num_steps, 1.0)


def distillation(
  student_logits_BC: jax.Array, teacher_log_probs_BC: jax.Array, temperature: float | jax.Array
) -> jax.Array:
  """Cross-entropy from teacher to student at temperature τ (paper, equation 1; Hinton et al. 2015).

  −τ² Σ_j p_j log q_j. With the factor τ², the gradient keeps its size: as τ → ∞ it tends to that of
  ½‖z_s − z_t‖²/C on centred logits. The gradient equals that of τ² KL(p ‖ q). The minimum over students is τ² times
  the entropy of p, not 0.

  Returns: losses_B.

  >>> teacher = jnp.log(jnp.array([[0.2, 0.8]]))
  >>> student = jnp.log(jnp.array([[0.1, 0.9]]))
  >>> print(jax.device_get(distillation(student, teacher, 2.0)).round(4))
  [2.6155]
  """
  teacher_probs_BC = jax.nn.softmax(teacher_log_probs_BC / temperature)
  student_log_probs_BC = jax.nn.log_softmax(student_logits_BC / temperature)
  return -(temperature**2) * jnp.sum(teacher_probs_BC * student_log_probs_BC, axis=-1)


def reverse_kl(
  student_logits_BC: jax.Array, teacher_log_probs_BC: jax.Array, temperature: float | jax.Array
) -> jax.Array:
  """τ² KL(q ‖ p) = τ² Σ_j q_j (log q_j − log p_j), mode-seeking (Gu et al. 2024, "MiniLLM").

  The loss is 0 at q = p. As τ → ∞ its gradient tends to that of `distillation`. A p_j that underflows
  counts with its finite log_prob. A log_prob of −∞ makes the loss ∞ and its gradient NaN, unless q_j
  underflows too. Finite logits never give −∞; a float16 store does below −65,504.

  Returns: losses_B.

  >>> teacher = jnp.log(jnp.array([[0.2, 0.8]]))
  >>> student = jnp.log(jnp.array([[0.1, 0.9]]))
  >>> print(jax.device_get(reverse_kl(student, teacher, 2.0)).round(4))
  [0.0657]
  """
  log_p_BC, log_q_BC = _tempered(student_logits_BC, teacher_log_probs_BC, temperature)
  return temperature**2 * jnp.sum(jnp.exp(log_q_BC) * (log_q_BC - log_p_BC), axis=-1)


def symmetric_kl(
  student_logits_BC: jax.Array, teacher_log_probs_BC: jax.Array, temperature: float | jax.Array
) -> jax.Array:
  """½ τ² (KL(p ‖ q) + KL(q ‖ p)), half of the divergence of Jeffreys (1946).

  ½ τ² Σ_j (p_j − q_j) (log p_j − log q_j). The loss and its gradient are 0 at q = p, without rounding error if
  z_s = z_t. As τ → ∞ the gradient tends to that of `distillation`. A log_prob of −∞ has the same effect as in
  `reverse_kl`.

  Returns: losses_B.

  >>> teacher = jnp.log(jnp.array([[0.2, 0.8]]))
  >>> student = jnp.log(jnp.array([[0.1, 0.9]]))
  >>> print(jax.device_get(symmetric_kl(student, teacher, 2.0)).round(4))
  [0.0676]
  """
  log_p_BC, log_q_BC = _tempered(student_logits_BC, teacher_log_probs_BC, temperature)
  differences_BC = jnp.exp(log_p_BC) - jnp.exp(log_q_BC)
  return 0.5 * temperature**2 * jnp.sum(differences_BC * (log_p_BC - log_q_BC), axis=-1)


def _tempered(
  student_logits_BC: jax.Array, teacher_log_probs_BC: jax.Array, temperature: float | jax.Array
) -> tuple[jax.Array, jax.Array]:
  """log p and log q. Where p_j and q_j are both 0, log p_j is set to log q_j, so that 0 log (0/0) = 0."""
  log_p_BC = jax.nn.log_softmax(teacher_log_probs_BC / temperature)
  log_q_BC = jax.nn.log_softmax(student_logits_BC / temperature)
  both_zero_BC = jnp.isneginf(log_p_BC) & (jnp.exp(log_q_BC) == 0)
  return jnp.where(both_zero_BC, jax.lax.stop_gradient(log_q_BC), log_p_BC), log_q_BC


def hard_labels(
  student_logits_BC: jax.Array, teacher_log_probs_BC: jax.Array, temperature: float | jax.Array
) -> jax.Array:
  """Cross-entropy with the teacher's most probable class (pseudo-labels, Lee 2013); τ has no effect.

  −log softmax(z_s)[argmax_j z_t]; of equally probable classes, the first. It is the limit of `distillation`
  at τ = 1 as the teacher becomes certain of its choice.

  Returns: losses_B.

  >>> teacher = jnp.log(jnp.array([[0.2, 0.8]]))
  >>> student = jnp.log(jnp.array([[0.1, 0.9]]))
  >>> print(jax.device_get(hard_labels(student, teacher, 2.0)).round(4))
  [0.1054]
  """
  del temperature
  return cross_entropy(student_logits_BC, teacher_log_probs_BC.argmax(axis=-1))


def brier(
  student_logits_BC: jax.Array, teacher_log_probs_BC: jax.Array, temperature: float | jax.Array
) -> jax.Array:
  """τ² Σ_j (p_j − q_j)², at τ = 1 the score of Brier (1950) with p for the outcome; no unit.

  The loss is 0 at q = p, and at most 2 τ². As τ → ∞ it tends to ‖z_s − z_t‖²/C² on centred logits. Its gradient
  vanishes for a student that is certain, even of a wrong class.

  Returns: losses_B.

  >>> teacher = jnp.log(jnp.array([[0.2, 0.8]]))
  >>> student = jnp.log(jnp.array([[0.1, 0.9]]))
  >>> print(jax.device_get(brier(student, teacher, 2.0)).round(4))
  [0.0556]
  """
  teacher_probs_BC = jax.nn.softmax(teacher_log_probs_BC / temperature)
  student_probs_BC = jax.nn.softmax(student_logits_BC / temperature)
  return temperature**2 * jnp.sum((teacher_probs_BC - student_probs_BC) ** 2, axis=-1)


def logit_mse(
  student_logits_BC: jax.Array, teacher_log_probs_BC: jax.Array, temperature: float | jax.Array
) -> jax.Array:
  """‖z_s − z_t‖²/C on centred logits (Ba & Caruana 2014), in squared logits; τ has no effect.

  An ensemble has log_probs, which are logits up to a constant for each example. So the mean over classes is
  subtracted on both sides. The gradient of `distillation` tends to half of this one as τ → ∞ (Hinton et al.
  2015, Section 2.1). A log_prob of −∞ makes the loss NaN.

  Returns: losses_B.

  >>> teacher = jnp.log(jnp.array([[0.2, 0.8]]))
  >>> student = jnp.log(jnp.array([[0.1, 0.9]]))
  >>> print(jax.device_get(logit_mse(student, teacher, 2.0)).round(4))
  [0.1644]
  """
  del temperature
  differences_BC = student_logits_BC - teacher_log_probs_BC
  centred_BC = differences_BC - differences_BC.mean(axis=-1, keepdims=True)
  return jnp.mean(centred_BC**2, axis=-1)


def standardised_kl(
  student_logits_BC: jax.Array, teacher_log_probs_BC: jax.Array, temperature: float | jax.Array
) -> jax.Array:
  """τ² KL(p ‖ q) of standardised logits (Sun et al. 2024, "Logit standardization").

  Both sides' logits are scaled to mean 0 and standard deviation 1 over the classes before they are divided
  by τ. So the student need not match the range of the teacher's logits: the loss is 0 at z_s = a z_t + b
  with a > 0. A log_prob of −∞ makes the loss NaN.

  Returns: losses_B.

  >>> teacher = jax.nn.log_softmax(jnp.array([[0.0, 1.0, 2.0]]))
  >>> print(jax.device_get(standardised_kl(jnp.array([[0.0, 10.0, 20.0]]), teacher, 2.0)).round(4))
  [0.]
  """
  student_BC, teacher_BC = map(_standardised, (student_logits_BC, teacher_log_probs_BC))
  log_p_BC, log_q_BC = _tempered(student_BC, teacher_BC, temperature)
  return temperature**2 * _kl(log_p_BC, log_q_BC)


def decoupled(
  student_logits_BC: jax.Array,
  teacher_log_probs_BC: jax.Array,
  temperature: float | jax.Array,
  *,
  labels_B: jax.Array,
  target_weight: float = 1.0,
  non_target_weight: float = 8.0,
) -> jax.Array:
  """Decoupled knowledge distillation (Zhao et al. 2022, equation 7), τ² (α TCKD + β NCKD).

  TCKD is the KL of the two-class distributions (p_label, 1 − p_label) and (q_label, 1 − q_label). NCKD is
  the KL over the other classes, renormalised. Since KL(p ‖ q) = TCKD + (1 − p_label) NCKD, plain
  distillation gives NCKD little weight where the teacher is certain.

  Args:
    labels_B: in [0, C).
    target_weight, non_target_weight: α and β of the paper, with its defaults for CIFAR-100.

  Returns: losses_B.

  >>> student, teacher = jnp.zeros((1, 3)), jnp.log(jnp.array([[0.5, 0.25, 0.25]]))
  >>> print(jax.device_get(decoupled(student, teacher, 1.0, labels_B=jnp.array([0]))).round(4))
  [0.0589]
  """
  is_label_BC = jax.nn.one_hot(labels_B, student_logits_BC.shape[-1], dtype=bool)
  log_p_BC, log_q_BC = _tempered(student_logits_BC, teacher_log_probs_BC, temperature)
  others = [jnp.where(is_label_BC, -jnp.inf, log_BC) for log_BC in (log_p_BC, log_q_BC)]
  log_p_rest_B, log_q_rest_B = (jax.nn.logsumexp(x_BC, axis=-1) for x_BC in others)
  log_p_label_B, log_q_label_B = (
    jnp.take_along_axis(x_BC, labels_B[..., None], axis=-1)[..., 0] for x_BC in (log_p_BC, log_q_BC)
  )
  target_B = _kl(
    jnp.stack([log_p_label_B, log_p_rest_B], axis=-1),
    jnp.stack([log_q_label_B, log_q_rest_B], axis=-1),
  )
  non_target_B = _kl(others[0] - log_p_rest_B[..., None], others[1] - log_q_rest_B[..., None])
  return temperature**2 * (target_weight * target_B + non_target_weight * non_target_B)


_batch_mean = partial(jnp.mean, axis=0)


def dist(
  student_logits_BC: jax.Array,
  teacher_log_probs_BC: jax.Array,
  temperature: float | jax.Array,
  *,
  batch_mean: Callable[[jax.Array], jax.Array] = _batch_mean,
  inter_weight: float = 2.0,
  intra_weight: float = 2.0,
) -> jax.Array:
  """DIST (Huang et al. 2022): τ² (β Σ_B inter / B + γ intra), from correlations; no unit.

  ρ is Pearson's correlation. inter is 1 − ρ(p, q) of an example over its classes. intra is 1 − ρ(p, q) of a
  class over the examples of the batch, averaged over the classes; all examples of a batch share its value.
  The loss is 0 if q is an increasing linear function of p.

  Args:
    batch_mean: x_BX → the mean over the examples of the whole batch, on all devices.
    inter_weight, intra_weight: β and γ of the paper, with its defaults.

  Returns: losses_B.

  >>> logits = jnp.log(jnp.array([[0.2, 0.8], [0.6, 0.4]]))
  >>> print(jax.device_get(dist(logits[:, ::-1], logits, 1.0)).round(4))
  [8. 8.]
  """
  p_BC = jax.nn.softmax(teacher_log_probs_BC / temperature)
  q_BC = jax.nn.softmax(student_logits_BC / temperature)
  inter_B = 1 - _correlation(p_BC, q_BC, lambda x_BC: x_BC.mean(axis=-1, keepdims=True))[..., 0]
  intra = 1 - _correlation(p_BC, q_BC, lambda x_BC: batch_mean(x_BC)[None]).mean()
  return temperature**2 * (inter_weight * inter_B + intra_weight * intra)


def _kl(log_p_BC: jax.Array, log_q_BC: jax.Array) -> jax.Array:
  """KL(p ‖ q) of log_probs, with 0 log 0 = 0."""
  is_some_BC = jnp.exp(log_p_BC) > 0
  differences_BC = jnp.where(is_some_BC, log_p_BC, 0.0) - jnp.where(is_some_BC, log_q_BC, 0.0)
  return jnp.sum(jnp.exp(log_p_BC) * differences_BC, axis=-1)


def _standardised(logits_BC: jax.Array) -> jax.Array:
  """Logits with mean 0 and standard deviation 1 over the classes; equal logits become 0."""
  centred_BC = logits_BC - logits_BC.mean(axis=-1, keepdims=True)
  variance_B1 = jnp.mean(centred_BC**2, axis=-1, keepdims=True)
  return centred_BC * jax.lax.rsqrt(variance_B1 + _SMALL)


def _correlation(
  x_BC: jax.Array, y_BC: jax.Array, mean: Callable[[jax.Array], jax.Array]
) -> jax.Array:
  """Pearson's correlation over the axis that `mean` averages; 0 where a side is constant."""
  x_BC, y_BC = x_BC - mean(x_BC), y_BC - mean(y_BC)
  scales = jax.lax.rsqrt(mean(x_BC**2) + _SMALL) * jax.lax.rsqrt(mean(y_BC**2) + _SMALL)
  return mean(x_BC * y_BC) * scales
