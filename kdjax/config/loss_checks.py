"""Checks of the student's loss: its options, the features that it needs, and its values on random inputs.

Each loss is computed for a few random examples, so built-in losses and those of a user get the same checks.
Axes: B example, C class.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from kdjax import data, losses, models
from kdjax.config import fields
from kdjax.config.teacher_source import NEEDS_WEIGHTS
from kdjax.data import views
from kdjax.predictions.encodings import TAIL, TRUNCATED, UNBIASED
from kdjax.runtime import plugins

NUM_EXAMPLES = 4  # random examples for which a loss is computed; fewer if the batch is smaller
NUM_MEMBERS = 2  # teacher members with random features
STORED_BYTES = 2  # of a value in float16
LINEAR = 1e-4  # tolerance of the test of linearity, relative to the largest gradient

Shapes = Mapping[str, jax.ShapeDtypeStruct]


def option_problems(config: ConfigDict, description: data.Description) -> Iterator[str]:
  """A line for each option that the loss does not have, and for each input that it needs and does not get.

  Computes a loss without features; `feature_problems` computes the others.
  """
  section = config.student
  name, options = section.loss, section.loss_options.to_dict()
  loss = losses.find(name)
  if unknown := sorted(options.keys() - loss.options.keys()):
    yield (
      f'student.loss_options = {options}: {name} has no {", ".join(unknown)}; allowed: '
      f'{", ".join(loss.options) or "{}"}'
    )
    return
  unlabelled = [n for n in config.predictions.augmentation if n in views.UNLABELLED]
  unlabelled += [config.predictions.extra] if config.predictions.extra else []
  if 'labels_B' in losses.needs(loss) and unlabelled:
    yield (
      f'student.loss = {name!r}: needs the label of every example, but {", ".join(unlabelled)} in the '
      'distillation data has none; allowed: another loss, or other distillation data'
    )
  if 'teacher_features' in losses.needs(loss):
    for prefix, (source, _) in fields.sources(config).items():
      if not fields.has_weights(source):
        yield (
          f'student.loss = {name!r}: {NEEDS_WEIGHTS}, to compute its features, and {prefix}source = '
          f'{source!r} has only predictions; allowed: a loss without teacher_features'
        )
  elif 'student_features' not in losses.needs(loss) and (plugins.is_dotted(name) or options):
    yield from _computed(config, description)


# Features. Checks see their shapes only.


def feature_problems(config: ConfigDict, description: data.Description) -> Iterator[str]:
  """A line for each field that names or needs features that do not exist.

  Call it once all other checks of the models, the loss and the teacher pass.
  """
  yield from _cka_problems(config, description)
  loss = losses.find(config.student.loss)
  if {'student_features', 'teacher_features'} & set(losses.needs(loss)):
    yield from _feature_loss_problems(config, description, loss)


def _shapes(config: ConfigDict, description: data.Description) -> dict[str, Shapes]:
  """{'student', 'teacher': the shapes of the model's features for two examples}."""
  sections = {'student': fields.student_model(config), 'teacher': config.model}
  return {
    role: models.feature_shapes(
      models.build(section, description.num_classes, description.vocabulary_size),
      description.input_shape,
      description.input_dtype,
    )
    for role, section in sections.items()
  }


def _cka_problems(config: ConfigDict, description: data.Description) -> Iterator[str]:
  """A line if CKA is evaluated, but teacher and student have no features in common."""
  names = config.model.name, fields.student_model(config).name
  is_known = len(set(names)) == 1 and names[0] in models.MODELS
  if not config.evaluation.num_cka_examples or is_known:
    return
  shapes = _shapes(config, description)
  if not shapes['teacher'].keys() & shapes['student'].keys():
    yield (
      f'evaluation.num_cka_examples = {config.evaluation.num_cka_examples}: {names[0]} has the features '
      f'{_listed(shapes["teacher"])}, and {names[1]} {_listed(shapes["student"])}: none in common; '
      'allowed: 0'
    )


def _feature_loss_problems(
  config: ConfigDict, description: data.Description, loss: losses.Loss
) -> Iterator[str]:
  """A line for each feature that the loss needs and the models or the store do not have."""
  shapes, section = _shapes(config, description), config.student
  listed = '; '.join(f'features of the {role}: {_listed(of)}' for role, of in shapes.items())
  found = []
  chosen = loss.options | section.loss_options.to_dict()
  for role, of_role in shapes.items():
    option = f'{role}_feature'
    if option in chosen and chosen[option] not in list(of_role):
      found.append(
        f'student.loss_options.{option} = {chosen[option]!r}: the {role} has no such feature; allowed: '
        f'{_listed(of_role)} ({listed})'
      )
    found += [
      f'student.loss = {section.loss!r}: the feature {name!r} of the {role} has the shape {of.shape} for '
      'two examples; needed: an array whose first axis is the examples'
      for name, of in of_role.items()
      if of.shape[:1] != (2,)
    ]
  if 'teacher_features' in losses.needs(loss) and config.predictions.mode == 'stored':
    found.append(_needs_members(config, description, shapes['teacher'], chosen))
  if not found:
    num_members = min(config.teacher.num_members, NUM_MEMBERS)
    needed = {
      'student_features': shapes['student'],
      'teacher_features': jax.tree.map(
        lambda x: jax.ShapeDtypeStruct((2, num_members, *x.shape[1:]), x.dtype), shapes['teacher']
      ),
    }
    needed = {name: needed[name] for name in losses.needs(loss) if name in needed}
    found = [f'{text}; {listed}' for text in _computed(config, description, needed)]
  yield from found


def _needs_members(
  config: ConfigDict, description: data.Description, shapes: Shapes, chosen: Mapping[str, object]
) -> str:
  """A line that the store has no features, with the bytes that they would take."""
  predictions, num_members = config.predictions, config.teacher.num_members
  size = data.split_sizes(config.dataset, description)['train']
  size = data.part_size(size, predictions.examples) + fields.num_extra(config)
  named = chosen.get('teacher_feature')
  stored = {named: shapes[named]} if named in list(shapes) else shapes
  num_values = sum(math.prod(of.shape[1:]) for of in stored.values())
  num_bytes = predictions.num_views * size * num_members * num_values * STORED_BYTES
  return (
    f"predictions.mode = 'stored': the store has no features, and student.loss = {config.student.loss!r} "
    f"needs those of the teacher; allowed: 'online', which runs the members beside the student. Storing "
    f'{_listed(stored)} would take {num_bytes:,} bytes: {predictions.num_views} views x {size} examples x '
    f'{num_members} members x {num_values} values x {STORED_BYTES} bytes'
  )


def _listed(shapes: Shapes) -> str:
  return ', '.join(shapes) or 'none'


# Values and gradients.

# ((student_BC, features), teacher_log_probs_BC, temperature) → value_B, and the gradient in the first argument.
Gradient = Callable[[tuple[Any, Mapping[str, Any]], Any, float], tuple[jax.Array, Any]]


def _gradient(section: ConfigDict, num_classes: int, num_examples: int = NUM_EXAMPLES) -> Gradient:
  loss = losses.make(section.loss, section.loss_options.to_dict())
  available = {
    'labels_B': _labels(num_classes, num_examples),
    'batch_mean': partial(jnp.mean, axis=0),
    'batch_gather': lambda x_BX: x_BX,
  }

  def total(inputs: Any, teacher_BC: Any, temperature: Any) -> Any:
    student_BC, features = inputs
    value_B = losses.apply(loss, student_BC, teacher_BC, temperature, **available, **features)
    return jnp.sum(value_B), value_B

  def gradient(inputs: Any, teacher_BC: Any, temperature: Any) -> tuple[jax.Array, Any]:
    differentiate = jax.value_and_grad(total, has_aux=True, allow_int=True)
    (_, value_B), found = differentiate(inputs, teacher_BC, temperature)
    return value_B, found

  return gradient


def _labels(num_classes: int, num_examples: int) -> np.ndarray:
  return np.arange(num_examples, dtype=np.int32) % num_classes


def _computed(
  config: ConfigDict, description: data.Description, features: Mapping[str, Shapes] | None = None
) -> Iterator[str]:
  """A line if the loss raises an error, or has a wrong shape or values for random examples.

  Args:
    features: shapes of 'student_features' and 'teacher_features', if the loss needs them.
  """
  section = config.student
  field = (
    f'student.loss = {section.loss!r} with student.loss_options = {section.loss_options.to_dict()}'
  )
  num_examples = NUM_EXAMPLES + (description.num_classes == NUM_EXAMPLES)  # no axis is the other
  batch, rng = min(num_examples, section.batch_size), np.random.default_rng(0)
  student_BC, teacher_BC = rng.normal(size=(2, batch, description.num_classes)).astype(np.float32)
  drawn = jax.tree.map(
    lambda x: rng.normal(size=(batch, *x.shape[1:])).astype(x.dtype), features or {}
  )
  # A number, not an array: a fixed temperature is a number in training, too.
  gradient = partial(
    _gradient(section, description.num_classes, batch), temperature=section.temperature
  )
  teacher_log_probs_BC = jax.nn.log_softmax(teacher_BC)
  try:
    value_B, found = jax.jit(gradient)((student_BC, drawn), teacher_log_probs_BC)
  except Exception as error:
    yield f'{field}: {plugins.describe(error)}'
    return
  inexact = [x for x in jax.tree.leaves(found) if jnp.issubdtype(x.dtype, jnp.inexact)]
  num_wrong = sum(int(np.sum(~np.isfinite(x))) for x in inexact)
  if value_B.shape != (batch,):
    yield (
      f'{field}: returns the shape {value_B.shape} for {batch} examples; needed: {(batch,)}, a value for each'
    )
  elif num_wrong or not np.isfinite(value_B).all():
    yield (
      f'{field}: gives {np.asarray(value_B)} for random logits of {batch} examples, and {num_wrong} values '
      'of its gradient are not finite; needed: finite values and gradients'
    )


# Predictions stored as k classes of each example.


def top_k_problems(config: ConfigDict, description: data.Description) -> Iterator[str]:
  """A line if the loss cannot learn from the estimator's probabilities of 0, or from its random draws."""
  section, estimator = config.student, config.predictions.top_k_estimator
  if not fields.is_top_k(config) or estimator == TAIL:
    return
  loss = losses.find(section.loss)
  if 'teacher_features' in losses.needs(loss):  # `feature_problems` reports it
    return
  if 'student_features' in losses.needs(loss):
    yield (
      f'student.loss = {section.loss!r}: needs features of the student, so no check shows whether it can '
      f"learn from predictions.top_k_estimator = {estimator!r}; allowed: 'tail', or a loss on logits"
    )
    return
  # A draw may give one class all the probability.
  num_positive = config.predictions.top_k if estimator == TRUNCATED else 1
  gradient = jax.jit(_gradient(section, description.num_classes))
  for field in ('temperature', 'final_temperature')[: 1 + loss.uses_temperature]:
    if (temperature := section[field]) is None:
      continue
    which = f'student.loss = {section.loss!r}'
    if loss.uses_temperature:
      which = f'{which} with student.{field} = {temperature}'
    if not _takes_zeros(gradient, description.num_classes, num_positive, temperature):
      yield (
        f'{which}: the loss or its gradient is ∞ or NaN where a probability of the teacher is 0, as with '
        f"predictions.top_k_estimator = {estimator!r}; allowed: 'tail', or another loss, such as "
        'cross_entropy'
      )
      return
    if estimator in UNBIASED and not _is_linear(gradient, description.num_classes, temperature):
      yield (
        f"{which}: its gradient is not linear in the teacher's probabilities. predictions.top_k_estimator = "
        f'{estimator!r}, an unbiased estimate of them, would give a biased gradient; allowed: '
        "cross_entropy with student.temperature = 1, or predictions.top_k_estimator = 'tail'"
      )
      return


def _takes_zeros(
  gradient: Gradient, num_classes: int, num_positive: int, temperature: float
) -> bool:
  """Whether all is finite for a teacher with `num_positive` classes, which lack the label of every other example."""
  first_B = _labels(num_classes, NUM_EXAMPLES) + np.arange(NUM_EXAMPLES) % 2
  classes_BK = (first_B[:, None] + np.arange(num_positive)) % num_classes
  teacher_BC = np.full((NUM_EXAMPLES, num_classes), -np.inf, np.float32)
  np.put_along_axis(teacher_BC, classes_BK, np.float32(-np.log(num_positive)), axis=-1)
  value_B, (gradient_BC, _) = gradient((_student(num_classes), {}), teacher_BC, temperature)
  return bool(np.isfinite(value_B).all() and np.isfinite(gradient_BC).all())


def _is_linear(gradient: Gradient, num_classes: int, temperature: float) -> bool:
  """Whether the gradient for the mean of two teachers is the mean of their gradients.

  The teachers differ in the most probable class.
  """
  student_BC = _student(num_classes)
  logits_BC = student_BC[:, ::-1]
  pair = jax.nn.softmax(3 * logits_BC), jax.nn.softmax(5 * jnp.roll(logits_BC, 1, axis=-1))
  teachers = jnp.log(jnp.stack([*pair, (pair[0] + pair[1]) / 2]))
  gradients = [gradient((student_BC, {}), teacher_BC, temperature)[1][0] for teacher_BC in teachers]
  first_BC, second_BC, middle_BC = map(np.asarray, gradients)
  error = np.abs(middle_BC - (first_BC + second_BC) / 2).max()
  return bool(error <= LINEAR * np.abs(middle_BC).max())


def _student(num_classes: int) -> np.ndarray:
  return np.random.default_rng(0).normal(size=(NUM_EXAMPLES, num_classes)).astype(np.float32)
