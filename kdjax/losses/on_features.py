"""Distillation losses that also compare named features of student and teacher.

The second axis of the teacher's features is the member. Axes: M member, B example of one
device, N example of the whole batch, C class, F feature.
"""

from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp

from kdjax.losses.on_logits import distillation

MIN_EXAMPLES = 4  # for CKA, which divides by N (N − 3)
_SMALL = 1e-16  # added to squared norms, so that gradients are finite where features are constant


def _one_device(x_BX: jax.Array) -> jax.Array:
  return x_BX


def cka(
  student_logits_BC: jax.Array,
  teacher_log_probs_BC: jax.Array,
  temperature: float | jax.Array,
  *,
  student_features: Mapping[str, jax.Array],
  teacher_features: Mapping[str, jax.Array],
  batch_gather: Callable[[jax.Array], jax.Array] = _one_device,
  student_feature: str = 'pooled',
  teacher_feature: str = 'pooled',
  weight: float = 1.0,
) -> jax.Array:
  """`distillation` + weight · (1 − CKA) of one feature over the batch (Saha et al. 2022); no unit.

  CKA is linear with the unbiased HSIC₁, as in `metrics.linear_cka`. It does not grow with the number of
  features, so a small batch is enough. The two features may have different widths. 1 − CKA is in [0, 2], the
  same for all examples of a batch, and 0 if the features are equal up to rotation, scale and translation. The
  kernel of an ensemble is the mean of its members' kernels.

  Args:
    student_features: by name, arrays (B, ...), which are flattened to (B, F).
    teacher_features: by name, arrays (B, M, ...).
    batch_gather: x_BX → x_NX, the examples of the whole batch, on all devices. N is 4 or more.
    student_feature, teacher_feature: the names of the features that are compared.
    weight: of 1 − CKA.

  Returns: losses_B.

  Raises:
    ValueError: the batch has fewer than four examples.

  >>> logits = jnp.zeros((4, 2))
  >>> x = jnp.array([[0.0, 1.0], [1.0, 0.0], [2.0, 5.0], [3.0, 1.0]])
  >>> features = {'student_features': {'pooled': 3 * x[:, ::-1]}, 'teacher_features': {'pooled': x[:, None]}}
  >>> losses_B = cka(logits, logits, 1.0, **features, weight=8.0)  # the cross-entropy is log 2
  >>> print(jax.device_get(losses_B).round(4))
  [0.6931 0.6931 0.6931 0.6931]
  """
  x_NF, y_NF = map(
    batch_gather, (student_features[student_feature], teacher_features[teacher_feature])
  )
  loss_B = distillation(student_logits_BC, teacher_log_probs_BC, temperature)
  return loss_B + weight * (1 - _linear_cka(x_NF, y_NF))


def _linear_cka(x_NF: jax.Array, y_NF: jax.Array) -> jax.Array:
  """Unbiased linear CKA of features of the same examples; 0 where a side is constant."""
  if len(x_NF) < MIN_EXAMPLES:
    raise ValueError(f'CKA needs {MIN_EXAMPLES} examples or more, and a batch has {len(x_NF)}')
  k_NN, l_NN = _centred_gram(x_NF), _centred_gram(y_NF)
  scales = jax.lax.rsqrt(jnp.sum(k_NN**2) + _SMALL) * jax.lax.rsqrt(jnp.sum(l_NN**2) + _SMALL)
  return jnp.sum(k_NN * l_NN) * scales


def _centred_gram(x_NF: jax.Array) -> jax.Array:
  """U-centred X Xᵀ / F (Székely & Rizzo 2014); HSIC₁ is Σ K L / (N (N − 3)), of centred K and L."""
  n = len(x_NF)
  x_NF = x_NF.reshape(n, -1).astype(jnp.float32)
  x_NF = x_NF - x_NF.mean(axis=0, keepdims=True)  # changes nothing but rounding
  gram_NN = jnp.matmul(x_NF, x_NF.T, precision=jax.lax.Precision.HIGHEST) / x_NF.shape[1]
  is_other_NN = ~jnp.eye(n, dtype=bool)
  gram_NN = jnp.where(is_other_NN, gram_NN, 0.0)
  sums_N = gram_NN.sum(axis=0)
  means_NN = (sums_N[:, None] + sums_N[None, :]) / (n - 2) - sums_N.sum() / ((n - 1) * (n - 2))
  return jnp.where(is_other_NN, gram_NN - means_NN, 0.0)
