"""The functions that losses and steps share: ensembles, cross-entropy, KL, labels and the temperature."""

import math
from typing import TypeVar

import jax
import jax.numpy as jnp
import numpy as np

Array = TypeVar('Array', np.ndarray, jax.Array)


def ensemble_log_probs(logits_MBC: Array) -> Array:
  """Log-probabilities of an ensemble, combined in probability space (paper, Section 3).

  log mean_m softmax(z_m), computed as logsumexp_m log_softmax(z_m) − log M. Members' log-probabilities
  are as good as logits here, since softmax does not see a constant. Arrays of NumPy are combined on the host,
  which waits for no device.

  Returns: log_probs_BC, of NumPy or of JAX as the logits are.

  >>> logits_MBC = jnp.log(jnp.array([[[0.9, 0.1]], [[0.5, 0.5]]]))
  >>> print(jax.device_get(jnp.exp(ensemble_log_probs(logits_MBC))).round(4))
  [[0.7 0.3]]
  """
  xp = logits_MBC.__array_namespace__()
  shifted_MBC = logits_MBC - xp.max(logits_MBC, axis=-1, keepdims=True)
  log_probs_MBC = shifted_MBC - xp.log(xp.sum(xp.exp(shifted_MBC), axis=-1, keepdims=True))
  largest_1BC = xp.max(log_probs_MBC, axis=0, keepdims=True)
  # If all members have −∞, as float16 does below −65,504 and classes that are not stored have, so has the ensemble.
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
