"""Per-example losses. Logits are unnormalised; log_probs sum to one after exp.

Cross-entropies and divergences are in nats (times τ²). `LOSSES` has the distillation losses by
name. Axes: M member, B batch, C class. Any leading axes work in place of B.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp


def ensemble_log_probs(logits_MBC: jax.Array) -> jax.Array:
  """Log-probabilities of an ensemble, combined in probability space (paper, Section 3).

  log mean_m softmax(z_m), computed as logsumexp_m log_softmax(z_m) − log M. Members' log-probabilities
  are as good as logits here, since softmax does not see a constant.

  Returns: log_probs_BC.
  """
  log_probs_MBC = jax.nn.log_softmax(logits_MBC)
  return jax.nn.logsumexp(log_probs_MBC, axis=0) - jnp.log(logits_MBC.shape[0])


def cross_entropy(logits_BC: jax.Array, labels_B: jax.Array) -> jax.Array:
  """−log softmax(z)[label]. Labels are integers in [0, C). Returns losses_B."""
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

  L_KD is a mean over all examples, and L_NLL over the labelled ones: the mean over all of what is
  returned is α (1/L) Σ_labelled NLL + (1 − α) (1/N) Σ L_KD, with L of N examples labelled.

  Args:
    labels_B: in [0, C), or negative where there is none. There L_NLL and its gradient are 0.
    labelled: L / N of the whole batch, over all devices, () or (B,). 0 is allowed: L_NLL is 0.

  Returns: losses_B.
  """
  nll_B = cross_entropy(logits_BC, jnp.maximum(labels_B, 0))
  weight = alpha / jnp.where(labelled == 0, 1, labelled)
  return weight * jnp.where(labels_B >= 0, nll_B, 0.0) + (1 - alpha) * loss_B


def kl_divergence(teacher_log_probs_BC: jax.Array, student_logits_BC: jax.Array) -> jax.Array:
  """KL(teacher ‖ student) = Σ_j p_j (log p_j − log q_j) at τ = 1. Returns losses_B."""
  student_log_probs_BC = jax.nn.log_softmax(student_logits_BC)
  teacher_probs_BC = jnp.exp(teacher_log_probs_BC)
  terms_BC = teacher_probs_BC * (teacher_log_probs_BC - student_log_probs_BC)
  return jnp.where(teacher_probs_BC > 0, terms_BC, 0.0).sum(axis=-1)  # 0 log 0 = 0


# Distillation losses: (student_logits_BC, teacher_log_probs_BC, τ) → losses_B. p is the teacher's
# softmax(z_t/τ), with z_t = `teacher_log_probs_BC`, and q the student's softmax(z_s/τ).


def distillation(
  student_logits_BC: jax.Array, teacher_log_probs_BC: jax.Array, temperature: float | jax.Array
) -> jax.Array:
  """Cross-entropy from teacher to student at temperature τ (paper, equation 1; Hinton et al. 2015).

  −τ² Σ_j p_j log q_j. The factor τ² keeps the size of the gradient; as τ → ∞ the gradient tends to
  that of ½‖z_s − z_t‖²/C on centred logits. The gradient is that of τ² KL(p ‖ q), but the minimum
  over students is not 0: it is τ² times the entropy of p.

  Returns: losses_B.
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
  """
  del temperature
  differences_BC = student_logits_BC - teacher_log_probs_BC
  centred_BC = differences_BC - differences_BC.mean(axis=-1, keepdims=True)
  return jnp.mean(centred_BC**2, axis=-1)


LOSSES: dict[str, Callable[[jax.Array, jax.Array, float | jax.Array], jax.Array]] = {
  'kl': distillation,
  'reverse_kl': reverse_kl,
  'symmetric_kl': symmetric_kl,
  'hard_labels': hard_labels,
  'brier': brier,
  'logit_mse': logit_mse,
}

UNITS = {'brier': '', 'logit_mse': 'squared logits'}  # of the losses that are not in nats


# Losses that take no notice of the temperature.
WITHOUT_TEMPERATURE = ('hard_labels', 'logit_mse')


def temperature_at(
  step: int | jax.Array, num_steps: int, start: float, final: float | None
) -> float | jax.Array:
  """τ at a step: `start` always if `final` is None, else geometric from `start` to `final`.

  start · (final/start)^(step/num_steps): `final` is reached at step `num_steps`, one after the
  last, and stays. The step may be traced.
  """
  if final is None:
    return start
  return start * (final / start) ** jnp.minimum(step / num_steps, 1.0)


def unit(name: str, alpha: float) -> str:
  """The unit of a loss of LOSSES, mixed with that of the labels, in nats, if α > 0; '' for none."""
  own = UNITS.get(name, 'nats')
  return '' if alpha > 0 and own != 'nats' else own
