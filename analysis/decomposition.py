"""Decompositions of a student's KL to its teacher.

Axes: K student, V view, N example, C class, X any leading axes, R residual coordinate, G group of directions.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from scipy.special import log_softmax, logsumexp, ndtri

from kdjax import intervals

MIN_STUDENTS = 3  # for an interval over seeds; with two its half width is twelve standard errors
TERMS = ('mean', 'of_mean', 'variance')
LEARNED, NOT_YET, UNREACHABLE = GROUPS = ('learned', 'not yet', 'unreachable')
COLUMNS_AT_ONCE = 16  # columns of the kernel that are computed together

Terms = dict[str, np.ndarray]
Interval = tuple[np.ndarray, np.ndarray, np.ndarray]  # value, low and high


# Bias and variance.


def kl(teacher_XC: np.ndarray, student_XC: np.ndarray) -> np.ndarray:
  """KL(teacher ‖ student)_X in nats, from log-probabilities."""
  probs_XC = np.exp(teacher_XC)
  with np.errstate(invalid='ignore'):
    return np.where(probs_XC > 0, probs_XC * (teacher_XC - student_XC), 0.0).sum(axis=-1)


def heskes(teacher_XC: np.ndarray, students_KXC: np.ndarray) -> Terms:
  """Splits the students' mean KL to the teacher into the KL of their geometric mean and their variance.

  With the geometric mean ḡ = exp(mean_k log s_k) / Z, where Z = Σ_c exp(mean_k log s_kc),

      mean_k KL(t ‖ s_k) = KL(t ‖ ḡ) − log Z,    and    −log Z = mean_k KL(ḡ ‖ s_k) ≥ 0

  (Heskes 1998, "Bias/Variance Decompositions for Likelihood-Based Estimators"). Both identities are exact
  for any number of students. The variance of one student is 0.

  Args:
    teacher_XC, students_KXC: normalised log-probabilities.

  Returns: 'mean', 'of_mean' = KL(t ‖ ḡ) and 'variance', in nats, each of shape X.
  """
  mean_XC = students_KXC.mean(axis=0)
  log_z_X = logsumexp(mean_XC, axis=-1)
  return {
    'mean': kl(teacher_XC, students_KXC).mean(axis=0),
    'of_mean': kl(teacher_XC, mean_XC - log_z_X[..., None]),
    'variance': -log_z_X,
  }


def heskes_jackknife(teacher_XC: np.ndarray, students_KXC: np.ndarray) -> Terms:
  """Jackknife pseudo-values of `heskes`, which extrapolate K ≥ 2 students to infinitely many.

  The mean of K students is nearer to each of them than the mean over all seeds. The plain variance is
  therefore too small by a fraction of about 1/K, and KL(t ‖ ḡ) too large by the same amount. Pseudo-value k
  is K times the plain term minus K − 1 times the term without student k. The mean of the pseudo-values has
  no bias of order 1/K, and their spread gives the standard error (Efron & Tibshirani 1993, ch. 11). The
  identity holds for each pseudo-value.

  Returns: the terms, each of shape KX.
  """
  count = len(students_KXC)
  plain = heskes(teacher_XC, students_KXC)
  without = [heskes(teacher_XC, np.delete(students_KXC, k, axis=0)) for k in range(count)]
  return {
    name: np.stack([count * plain[name] - (count - 1) * terms[name] for terms in without])
    for name in TERMS
  }


def over_students(values_KN: np.ndarray, rng: np.random.Generator) -> Interval:
  """The mean over students and examples with a 95 % interval.

  The interval is Student's t over the students' means if there are at least MIN_STUDENTS of them, and a
  bootstrap over examples otherwise.
  """
  if len(values_KN) >= MIN_STUDENTS:
    return intervals.of_mean(values_KN.mean(axis=1))
  values_N = values_KN.mean(axis=0)
  low, high = intervals.bootstrap_interval(values_N, intervals.NUM_RESAMPLES, rng)
  return values_N.mean(), np.array(low), np.array(high)


# The residual by eigendirections of the tangent kernel.


def tangent_kernel(
  forward: Callable[[Any, jax.Array], jax.Array], params: Any, inputs: jax.Array
) -> jax.Array:
  """The tangent kernel J Jᵀ of outputs_NC = forward(params, inputs), of shape (N·C, N·C).

  The Jacobian J is never stored: each column takes a product with Jᵀ and one with J. Outputs may depend on
  all inputs, as with BatchNorm.
  """
  outputs_NC, transposed = jax.vjp(lambda p: forward(p, inputs), params)

  def column(one_R: jax.Array) -> jax.Array:
    direction = transposed(one_R.reshape(outputs_NC.shape))
    return jax.jvp(lambda p: forward(p, inputs), (params,), direction)[1].ravel()

  identity_RR = jnp.eye(outputs_NC.size, dtype=outputs_NC.dtype)
  return jax.lax.map(column, identity_RR, batch_size=COLUMNS_AT_ONCE)


def residual_groups(
  kernel_RR: np.ndarray, residual_NC: np.ndarray, rate_sum: float
) -> tuple[np.ndarray, np.ndarray]:
  """Shares of a residual in eigendirections that are learned, not yet learned, or unreachable.

  Under gradient flow on the mean loss of N examples the logits follow dz/dt = K (p − q) / N. With a constant
  kernel K, and with the identity in place of the softmax's Jacobian (which is at most ½, so that real
  training is slower), the residual along an eigenvector of K / N with eigenvalue λ decays as
  exp(−λ Σ_t η_t). A direction is 'learned' if λ Σ_t η_t > 1, 'unreachable' if λ is 0 up to float32 rounding,
  and 'not yet' otherwise. The residual concentrates in a group if its share exceeds the group's share of
  directions.

  Adding a constant to all logits of an example changes no probability, and p − q has no component along it.
  These N directions are left out.

  Args:
    kernel_RR: K, with rows by example, then class.
    residual_NC: p − q, teacher minus student probabilities.
    rate_sum: Σ_t η_t, the sum of the learning rates of all steps.

  Returns: for each of GROUPS, its share of ‖p − q‖² (NaN if that is 0) and its share of directions.
  """
  num_examples, num_classes = residual_NC.shape
  ones = np.ones((num_classes, 1))
  basis_CD = np.linalg.qr(np.concatenate([ones, np.eye(num_classes)[:, 1:]], axis=1))[0][:, 1:]
  residual_R = (np.asarray(residual_NC, np.float64) @ basis_CD).ravel()
  kernel_NCNC = np.asarray(kernel_RR, np.float64).reshape(2 * (num_examples, num_classes))
  reduced_RR = np.einsum('ncmd,ce,df->nemf', kernel_NCNC, basis_CD, basis_CD, optimize=True)
  reduced_RR = reduced_RR.reshape(residual_R.size, residual_R.size) / num_examples
  eigenvalues_R, vectors_RR = np.linalg.eigh((reduced_RR + reduced_RR.T) / 2)
  squared_R = (vectors_RR.T @ residual_R) ** 2
  rounding = eigenvalues_R[-1] * residual_R.size * np.finfo(np.float32).eps
  unreachable_R = eigenvalues_R <= rounding
  learned_R = ~unreachable_R & (eigenvalues_R * rate_sum > 1)
  members_GR = np.stack([learned_R, ~learned_R & ~unreachable_R, unreachable_R])
  total = squared_R.sum()
  shares_G = members_GR @ squared_R / total if total > 0 else np.full(len(GROUPS), np.nan)
  return shares_G, members_GR.mean(axis=1)


# Disagreement.


def margins(teacher_NC: np.ndarray) -> np.ndarray:
  """The teacher's margins_N, its largest probability minus the second largest, from log-probabilities."""
  top_N2 = np.sort(np.exp(log_softmax(teacher_NC, axis=-1)), axis=-1)[:, -2:]
  return top_N2[:, 1] - top_N2[:, 0]


def wilson(successes: np.ndarray, counts: np.ndarray) -> Interval:
  """Fractions with Wilson's 95 % score intervals; NaN where the count is 0.

  The interval has a positive width even if no or every trial succeeds (Wilson 1927; Brown, Cai & DasGupta
  2001).
  """
  successes, counts = np.asarray(successes, np.float64), np.asarray(counts, np.float64)
  counts = np.where(counts > 0, counts, np.nan)
  fraction, z = successes / counts, ndtri(1 - intervals.TAIL)
  center = (fraction + z**2 / (2 * counts)) / (1 + z**2 / counts)
  half = np.sqrt(fraction * (1 - fraction) / counts + (z / (2 * counts)) ** 2)
  half *= z / (1 + z**2 / counts)
  return fraction, np.minimum(center - half, fraction), np.maximum(center + half, fraction)


def by_margin(
  margins_N: np.ndarray, disagrees_N: np.ndarray, edges: np.ndarray
) -> tuple[np.ndarray, Interval]:
  """The number of examples in each bin of the margin, and the fraction that disagrees.

  Args:
    edges: bin edges, increasing from 0 to 1. A bin includes its lower edge; the last includes both.

  Returns: the counts, and the fractions with Wilson's intervals.
  """
  num_bins = len(edges) - 1
  bins_N = np.minimum(np.searchsorted(edges, margins_N, side='right') - 1, num_bins - 1)
  counts = np.bincount(bins_N, minlength=num_bins)
  return counts, wilson(np.bincount(bins_N, disagrees_N, num_bins), counts)
