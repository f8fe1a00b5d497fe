"""The checks of predictions that are stored as k classes of each example.

The loss is computed for a few examples, so that a loss of the user is checked as the built-in ones are.
Axes: B example, C class.
"""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from kdjax import data, losses
from kdjax.config import fields
from kdjax.config.rules import keeps
from kdjax.predictions.encodings import TAIL, TRUNCATED, UNBIASED

BATCH = 4
LINEAR = 1e-4  # how far a gradient that is linear may be from that, relative to its largest value


def problems(config: ConfigDict, description: data.Description) -> Iterator[str]:
  """A line if there are fewer classes than are to be stored."""
  k, num_classes = config.predictions.top_k, description.num_classes
  if fields.is_top_k(config) and keeps(config, 'predictions.top_k') and (k or 0) > num_classes:
    yield (
      f'predictions.top_k = {k}: allowed: up to the {num_classes} classes of dataset.name = '
      f'{config.dataset.name!r}'
    )


def loss_problems(config: ConfigDict, description: data.Description) -> Iterator[str]:
  """A line if the loss cannot take the probabilities of 0, or the draws, of the estimator."""
  section, estimator = config.student, config.predictions.top_k_estimator
  if not fields.is_top_k(config) or estimator == TAIL:
    return
  needs = losses.find(section.loss).needs
  if 'teacher_features' in needs:  # refused with stored predictions of any dtype
    return
  if 'student_features' in needs:
    yield (
      f'student.loss = {section.loss!r}: needs features of the student, so that it is not known whether it '
      f"can learn from predictions.top_k_estimator = {estimator!r}; allowed: 'tail', or a loss on logits"
    )
    return
  # A draw may give one class all the probability.
  num_positive = config.predictions.top_k if estimator == TRUNCATED else 1
  gradient = _gradient(section.loss, section.loss_options.to_dict(), description.num_classes)
  uses_temperature = losses.find(section.loss).uses_temperature
  for field in ('temperature', 'final_temperature')[: 1 + uses_temperature]:
    if (temperature := section[field]) is None:
      continue
    which = f'student.loss = {section.loss!r}'
    if uses_temperature:
      which = f'{which} with student.{field} = {temperature}'
    if not _takes_zeros(gradient, description.num_classes, num_positive, temperature):
      yield (
        f'{which}: is ∞ or NaN, or its gradient is, where a probability of the teacher is 0, as '
        f"predictions.top_k_estimator = {estimator!r} makes some; allowed: 'tail', or another loss, such as "
        'cross_entropy'
      )
      return
    if estimator in UNBIASED and not _is_linear(gradient, description.num_classes, temperature):
      yield (
        f"{which}: its gradient is not linear in the teacher's probabilities, so that predictions.top_k_estimator "
        f'= {estimator!r}, an unbiased estimate of them, would give a biased gradient; allowed: '
        "cross_entropy with student.temperature = 1, or predictions.top_k_estimator = 'tail'"
      )
      return


# (student_BC, teacher_log_probs_BC, temperature) → the values (B,) and their gradient (B, C).
Gradient = Callable[[Any, Any, float], tuple[jax.Array, jax.Array]]


def _gradient(name: str, options: dict[str, Any], num_classes: int) -> Gradient:
  loss = losses.make(name, options)
  available = {
    'labels_B': _labels(num_classes),
    'batch_mean': partial(jnp.mean, axis=0),
    'batch_gather': lambda x_BX: x_BX,
  }

  def total(student_BC: jax.Array, teacher_BC: jax.Array, temperature: float) -> Any:
    value_B = losses.apply(loss, student_BC, teacher_BC, temperature, **available)
    return value_B.sum(), value_B

  def gradient(*arguments: Any) -> tuple[jax.Array, jax.Array]:
    (_, value_B), gradient_BC = jax.value_and_grad(total, has_aux=True)(*arguments)
    return value_B, gradient_BC

  return jax.jit(gradient)


def _labels(num_classes: int) -> np.ndarray:
  return np.arange(BATCH, dtype=np.int32) % num_classes


def _takes_zeros(
  gradient: Gradient, num_classes: int, num_positive: int, temperature: float
) -> bool:
  """Whether all is finite for a teacher with so many classes, half of the time without the label."""
  first_B = _labels(num_classes) + np.arange(BATCH) % 2
  classes_BK = (first_B[:, None] + np.arange(num_positive)) % num_classes
  teacher_BC = np.full((BATCH, num_classes), -np.inf, np.float32)
  np.put_along_axis(teacher_BC, classes_BK, np.float32(-np.log(num_positive)), axis=-1)
  found = gradient(_student(num_classes), teacher_BC, temperature)
  return all(np.isfinite(x).all() for x in found)


def _is_linear(gradient: Gradient, num_classes: int, temperature: float) -> bool:
  """Whether the gradient for the mean of two teachers is the mean of their gradients.

  The teachers differ in the most probable class.
  """
  student_BC = _student(num_classes)
  logits_BC = student_BC[:, ::-1]
  pair = jax.nn.softmax(3 * logits_BC), jax.nn.softmax(5 * jnp.roll(logits_BC, 1, axis=-1))
  of = lambda teacher_BC: np.asarray(gradient(student_BC, jnp.log(teacher_BC), temperature)[1])
  first_BC, second_BC, middle_BC = (of(x_BC) for x_BC in (*pair, (pair[0] + pair[1]) / 2))
  error = np.abs(middle_BC - (first_BC + second_BC) / 2).max()
  return bool(error <= LINEAR * np.abs(middle_BC).max())


def _student(num_classes: int) -> np.ndarray:
  return np.random.default_rng(0).normal(size=(BATCH, num_classes)).astype(np.float32)
