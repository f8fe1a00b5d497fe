"""The functions that losses and steps share: ensembles, cross-entropy, KL, labels and the temperature."""

import jax
import jax.numpy as jnp


def ensemble_log_probs(logits_MBC: jax.Array) -> jax.Array:
  """Log-probabilities of an ensemble, combined in probability space (paper, Section 3).

  log mean_m softmax(z_m), computed as logsumexp_m log_softmax(z_m) − log M. Members' log-probabilities
  are as good as logits here, since softmax does not see a constant.

  Returns: log_probs_BC.

  >>> logits_MBC = jnp.log(jnp.array([[[0.9, 0.1]], [[0.5, 0.5]]]))
  >>> print(jax.device_get(jnp.exp(ensemble_log_probs(logits_MBC))).round(4))
  [[0.7 0.3]]
  """
  log_probs_MBC = jax.nn.log_softmax(logits_MBC)
  return jax.nn.logsumexp(log_probs_MBC, axis=0) - jnp.log(logits_MBC.shape[0])


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

  L_KD is a mean over all examples, and L_NLL over the labelled ones: the mean over all of what is
  returned is α (1/L) Σ_labelled NLL + (1 − α) (1/N) Σ L_KD, with L of N examples labelled.

  Args:
    labels_B: in [0, C), or negative where there is none. There L_NLL and its gradient are 0.
    labelled: L / N of the whole batch, over all devices, () or (B,). 0 is allowed: L_NLL is 0.

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
  """τ at a step: `start` always if `final` is None, else geometric from `start` to `final`.

  start · (final/start)^(step/num_steps): `final` is reached at step `num_steps`, one after the
  last, and stays. The step may be traced.

  >>> print([round(float(temperature_at(step, 2, 4.0, 1.0)), 4) for step in (0, 1, 2)])
  [4.0, 2.0, 1.0]
  """
  if final is None:
    return start
  return start * (final / start) ** jnp.minimum(step / num_steps, 1.0)
