"""Distillation losses on the logits of student and teacher.

p is the teacher's softmax(z_t/τ), with z_t = `teacher_log_probs_BC`, and q the student's softmax(z_s/τ).
"""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp

from kdjax.losses.basic import cross_entropy


def distillation(
  student_logits_BC: jax.Array, teacher_log_probs_BC: jax.Array, temperature: float | jax.Array
) -> jax.Array:
  """Cross-entropy from teacher to student at temperature τ (paper, equation 1; Hinton et al. 2015).

  −τ² Σ_j p_j log q_j. The factor τ² keeps the size of the gradient; as τ → ∞ the gradient tends to
  that of ½‖z_s − z_t‖²/C on centred logits. The gradient is that of τ² KL(p ‖ q), but the minimum
  over students is not 0: it is τ² times the entropy of p.

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

  0 at q = p; as τ → ∞ the gradient tends to that of `distillation`. A p_j that underflows counts by
  its finite log_prob. One of exactly 0 (log_prob −∞) makes the loss ∞ and its gradient NaN, unless
  q_j underflows too. Finite logits never give one; a float16 store does below −65,504.

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

  ½ τ² Σ_j (p_j − q_j) (log p_j − log q_j). 0 at q = p, and so is its gradient, with no rounding
  error if z_s = z_t. As τ → ∞ the gradient tends to that of `distillation`. A log_prob of −∞ does
  what it does in `reverse_kl`.

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
  """log p and log q. Where p_j and q_j are both 0, log p_j is made log q_j: 0 log (0/0) = 0."""
  log_p_BC = jax.nn.log_softmax(teacher_log_probs_BC / temperature)
  log_q_BC = jax.nn.log_softmax(student_logits_BC / temperature)
  both_zero_BC = jnp.isneginf(log_p_BC) & (jnp.exp(log_q_BC) == 0)
  return jnp.where(both_zero_BC, jax.lax.stop_gradient(log_q_BC), log_p_BC), log_q_BC


def hard_labels(
  student_logits_BC: jax.Array, teacher_log_probs_BC: jax.Array, temperature: float | jax.Array
) -> jax.Array:
  """Cross-entropy with the teacher's most probable class, the first of equals, whatever τ is.

  −log softmax(z_s)[argmax_j z_t]: the limit of `distillation` at τ = 1 from a teacher that gets
  ever more certain of its choice. Known as pseudo-labels (Lee 2013).

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

  0 at q = p, and at most 2 τ². τ² is there for the same reason as in `distillation`: as τ → ∞ the
  loss tends to ‖z_s − z_t‖²/C² on centred logits. The gradient vanishes for a student that is
  certain, even of what is wrong.

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
  """‖z_s − z_t‖²/C on centred logits, whatever τ is (Ba & Caruana 2014); in squared logits.

  log_probs are logits up to a constant of each example, which softmax does not see and an ensemble
  does not have. So both sides have their mean over classes taken away. Half of this gradient is the
  limit of that of `distillation` as τ → ∞ (Hinton et al. 2015, Section 2.1). A log_prob of −∞ makes
  the loss NaN.

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


_batch_mean = partial(jnp.mean, axis=0)


def standardised_kl(
  student_logits_BC: jax.Array, teacher_log_probs_BC: jax.Array, temperature: float | jax.Array
) -> jax.Array:
  """τ² KL(p ‖ q) of standardised logits (Sun et al. 2024, "Logit standardization").

  Each side's logits have mean 0 and standard deviation 1 over the classes before they are divided by τ, so
  that the student need not have the range of the teacher's logits. 0 for student logits that are a
  z_t + b with a > 0. A log_prob of −∞ makes the loss NaN.

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

  TCKD is KL(b_p ‖ b_q) with b = (probability of the label, 1 − that), and NCKD is KL(p̂ ‖ q̂) over the
  other classes, renormalised. Since KL(p ‖ q) = TCKD + (1 − p_label) NCKD, plain distillation gives
  NCKD little weight where the teacher is certain.

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

  inter is 1 − ρ(p, q) of an example over its classes, and intra is 1 − ρ(p, q) of a class over the
  examples of the batch, averaged over the classes; ρ is Pearson's correlation. So the loss is 0 if q is an
  increasing linear function of p. The value of intra is the same for all examples of a batch.

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
  """KL(p ‖ q) of log_probs; classes where p is 0 count nothing."""
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


_SMALL = 1e-16  # added to variances, which keeps gradients finite where one is 0
