"""Per-example losses, in nats. Logits are unnormalised; log_probs sum to one after exp.

Axes: M member, B batch, C class. Any leading axes work in place of B.
"""

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


def distillation(
  student_logits_BC: jax.Array, teacher_log_probs_BC: jax.Array, temperature: float
) -> jax.Array:
  """Cross-entropy from teacher to student at temperature τ (paper, equation 1; Hinton et al. 2015).

  −τ² Σ_j softmax_j(z_t/τ) log softmax_j(z_s/τ), with z_t = `teacher_log_probs_BC`. The factor τ² keeps
  the size of the gradient; as τ → ∞ the gradient tends to that of ½‖z_s − z_t‖²/C on centred logits.
  The minimum over students is not 0 but τ² times the entropy of the tempered teacher.

  Returns: losses_B.
  """
  teacher_probs_BC = jax.nn.softmax(teacher_log_probs_BC / temperature)
  student_log_probs_BC = jax.nn.log_softmax(student_logits_BC / temperature)
  return -(temperature**2) * jnp.sum(teacher_probs_BC * student_log_probs_BC, axis=-1)


def kl_divergence(teacher_log_probs_BC: jax.Array, student_logits_BC: jax.Array) -> jax.Array:
  """KL(teacher ‖ student) = Σ_j p_j (log p_j − log q_j) at τ = 1. Returns losses_B."""
  student_log_probs_BC = jax.nn.log_softmax(student_logits_BC)
  teacher_probs_BC = jnp.exp(teacher_log_probs_BC)
  terms_BC = teacher_probs_BC * (teacher_log_probs_BC - student_log_probs_BC)
  return jnp.where(teacher_probs_BC > 0, terms_BC, 0.0).sum(axis=-1)  # 0 log 0 = 0
