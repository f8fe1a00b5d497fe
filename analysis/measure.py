"""The surface of a finished student: loss, fidelity and accuracy at any weights of its architecture.

The examples are fixed: 'distillation' is view 0 of the student's distillation data, and 'test' is the test
set. `surface` defines how a point of weight space is measured on them.
Axes: M member, N example, B batch, C class.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from scipy.special import log_softmax

from kdjax import keys, losses, models
from kdjax.errors import UserError
from kdjax.predictions.teachers import combine
from kdjax.stages import predictions
from kdjax.train import steps
from kdjax.train.steps import Variables

from .runs import Study
from .surface import Batch, Surface, Values, in_batch, logits

SETS = ('distillation', 'test')
Objective = Callable[..., jax.Array]  # (logits_BC, batch), and perhaps temperature= → losses_B
OF_LABELS = ('accuracy', 'nll')  # the measures that need a label
# For a loss that couples the examples of a batch: those that are measured together, on one device.
ON_ONE_DEVICE = {'batch_mean': partial(jnp.mean, axis=0), 'batch_gather': lambda x_BX: x_BX}
LOWEST = np.float32(-1e30)  # a log-probability whose exponential is 0 at any temperature


def example_losses(
  logits_BC: jax.Array,
  batch: Batch,
  *,
  loss: Callable[..., jax.Array],
  temperature: float,
  alpha: float,
  over_batch: Mapping[str, Callable] = ON_ONE_DEVICE,
) -> dict[str, jax.Array]:
  """All measures of each example; all are NaN where a logit is.

  The measures of OF_LABELS are meaningless for examples without a label.

  Args:
    over_batch: 'batch_mean' and 'batch_gather' for a loss that needs them, as in `steps.OVER_BATCH`.

  Returns: values_B by name. 'loss' is the student's objective minus the distillation loss of the teacher
    itself (for a cross-entropy, τ² times the teacher's entropy), so that without labels the teacher is at
    0. 'predictive_kl' is KL(teacher ‖ student) in nats at τ = 1. The others are 'top1_agreement',
    'accuracy' and 'nll' (nats).
  """
  teacher_BC, labels_B = batch['teacher_log_probs'], batch['labels']
  of = partial(losses.apply, loss, labels_B=labels_B, **over_batch)
  loss_B = of(logits_BC, teacher_BC, temperature) - of(teacher_BC, teacher_BC, temperature)
  if alpha:
    loss_B = losses.with_labels(loss_B, logits_BC, labels_B, alpha, batch['labelled'])
  correct_B = (logits_BC.argmax(-1) == labels_B).astype(jnp.float32)
  measures = {
    'loss': loss_B,
    'predictive_kl': losses.kl_divergence(logits_BC, teacher_BC),
    'top1_agreement': (logits_BC.argmax(-1) == teacher_BC.argmax(-1)).astype(jnp.float32),
    'accuracy': correct_B,
    'nll': losses.cross_entropy(logits_BC, jnp.maximum(labels_B, 0)),
  }
  broken_B = jnp.isnan(logits_BC).any(axis=-1)  # argmax would return the first NaN as a class
  return {name: jnp.where(broken_B, jnp.nan, of_B) for name, of_B in measures.items()}


class Distilled(Surface):
  """The surface of a model on examples with a teacher's predictions."""

  def __init__(
    self,
    model: nn.Module,
    loss: dict[str, Any],
    examples: Mapping[str, Batch],
    batch_size: int,
    has_statistics: bool,
  ):
    """Binds everything that the values depend on.

    Args:
      model: a module with the interface of kdjax's models.
      loss: the keyword arguments of `example_losses`.
      examples: by set, inputs_NX as the model takes them, labels_N (−1: no label), and
        teacher_log_probs_NC of the ensemble.
      has_statistics: whether the model has BatchNorm.
    """
    self.model, self._loss = model, loss
    super().__init__(
      partial(logits, model=model),
      partial(example_losses, **loss),
      examples,
      batch_size,
      partial(in_batch, model=model) if has_statistics else None,
    )

  @property
  def couples_examples(self) -> bool:
    """Whether the loss of an example depends on the others of its batch, by BatchNorm or by itself."""
    needs = losses.needs(self._loss['loss'])
    return self.in_batch is not None or bool({*needs} & ON_ONE_DEVICE.keys())

  def batches(self, name: str) -> list[Batch]:
    """A set in batches, with labelled_B, the fraction of the set that has a label."""
    fraction = (self._examples[name]['labels'] >= 0).mean()
    return [
      batch | {'labelled': np.full(len(batch['inputs']), fraction, np.float32)}
      for batch in super().batches(name)
    ]

  def at(self, *args: Any, **kwargs: Any) -> Values:
    """`Surface.at`, where measures of OF_LABELS cover only the N examples that have a label.

    A value is NaN if the network's output is.
    """
    values = super().at(*args, **kwargs)
    for key in values:
      name, measure = key.split('/')
      if measure in OF_LABELS:
        values[key] = values[key][:, self._examples[name]['labels'] >= 0]
    return values

  def objective(self, name: str) -> Objective:
    """A per-example loss by name.

    Args:
      name: 'distillation' is the measure 'loss', at the last τ of the student's schedule unless it is
        called with another `temperature`; 'cross_entropy' is 'nll' of the examples with a label;
        'predictive_kl' is KL(teacher ‖ student) at τ = 1.
    """
    return partial(_objective, name=name, **self._loss)


class Measure(Distilled):
  """The surface of a study's student.

  `model` computes in float32 whatever dtype the student was trained in, so that rounding does not hide
  small changes of the loss, gradients or curvature.
  """

  def __init__(self, study: Study, num_examples: int, skip: int = 0):
    """Chooses up to `num_examples` of each set, the same for every point and call.

    Args:
      skip: leaves out the examples of Measure(study, skip). If a set is too small, fewer are left out;
        `overlap` counts the distillation examples that are in both.
    """
    self._run = run = study.experiment
    section, members = run.config.student, teacher_members(study)
    sizes = {name: len(run.data.inputs[name].split) for name in SETS}
    starts = {name: max(0, min(skip, size - num_examples)) for name, size in sizes.items()}
    start, size = starts['distillation'], sizes['distillation']
    self.overlap = max(0, min(skip, start + num_examples, size) - start)
    super().__init__(
      model=models.in_float32(run.student.model),
      loss={
        'loss': partial(_refuse, study.lacks_loss)
        if study.lacks_loss
        else losses.make(section.loss, section.loss_options.to_dict()),
        'temperature': self.temperature(run.student.plan.num_steps),
        'alpha': section.alpha,
      },
      examples={name: _examples(study, members, name, starts[name], num_examples) for name in SETS},
      batch_size=run.config.evaluation.batch_size,
      has_statistics=bool(run.student.abstract_state.batch_stats),
    )

  @property
  def context(self) -> dict[str, np.ndarray]:
    """The loss's unit, the number of members and of examples, and whether BatchNorm is re-estimated."""
    section = self._run.config.student
    return {
      'loss_unit': np.array(losses.unit(section.loss, section.alpha) or 'no unit'),
      'num_members': np.array(self._run.config.teacher.num_members),
      'num_examples': np.array([self.num_examples(name) for name in SETS]),
      'reestimated': np.array(self.in_batch is not None),
    }

  def temperature(self, step: int) -> float:
    """The student's τ at a step of its training."""
    section, num_steps = self._run.config.student, self._run.student.plan.num_steps
    return float(
      losses.temperature_at(step, num_steps, section.temperature, section.final_temperature)
    )


def _refuse(reason: str, *_: Any) -> jax.Array:
  raise UserError(f'the loss cannot be measured: {reason}')


def _objective(logits_BC: jax.Array, batch: Batch, *, name: str, **loss: Any) -> jax.Array:
  measure = {'distillation': 'loss', 'cross_entropy': 'nll', 'predictive_kl': 'predictive_kl'}[name]
  losses_B = example_losses(logits_BC, batch, **loss)[measure]
  if measure not in OF_LABELS:
    return losses_B
  # So that the mean over all examples is that over the labelled ones.
  return jnp.where(batch['labels'] >= 0, losses_B / batch['labelled'], 0.0)


def teacher_members(study: Study) -> list[Variables] | None:
  """The teacher's members, or None if only their predictions are left."""
  if not study.has_teachers:
    return None
  return [study.member(i) for i in range(study.num_members)]


def order(study: Study, name: str) -> np.ndarray:
  """The order_N in which all parts take the examples of a set.

  It is shuffled, so that batches mix the classes even if the data are sorted by class.
  """
  count = len(study.experiment.data.inputs[name].split)
  return keys.numpy_rng(study.seed, f'analysis/{name}').permutation(count)


def teacher_log_probs(
  study: Study, members: list[Variables] | None, name: str, view: int, indices_N: np.ndarray
) -> np.ndarray:
  """The ensemble's log_probs_NC for one view of examples.

  They are computed in float32, so that a student with its teacher's weights has a KL of exactly 0. Without
  `members` (see `teacher_members`) the rounded ones of the store are used.
  """
  run = study.experiment
  if members is None:
    return combine(predictions.open_teacher(run).members(name, view)[:, indices_N])
  model, inputs = models.in_float32(run.teacher.model), run.data.inputs[name]
  logits = [run.predictor.logits(model, x, inputs, view, indices_N) for x in members]
  return combine(log_softmax(np.stack(logits), axis=-1))


def _examples(
  study: Study, members: list[Variables] | None, name: str, start: int, num_examples: int
) -> dict[str, np.ndarray]:
  """Fixed examples of a set as the model sees them, with the ensemble's log_probs."""
  run, inputs = study.experiment, study.experiment.data.inputs[name]
  indices_N = order(study, name)[start : start + num_examples]
  batches = inputs.evaluation(indices_N, 0, run.config.evaluation.batch_size)
  seen = [_seen(inputs.view, inputs.seed, batch, count) for batch, count in batches]
  teacher_NC = teacher_log_probs(study, members, name, 0, indices_N)
  return {
    'inputs': np.concatenate([x for x, _ in seen]),
    'labels': np.concatenate([y for _, y in seen]),
    # A probability that is stored as 0 stays 0, and its loss at the teacher itself is not 0 · ∞.
    'teacher_log_probs': np.where(np.isneginf(teacher_NC), LOWEST, teacher_NC),
  }


def _seen(
  view: Callable, seed: int, batch: steps.Batch, count: int
) -> tuple[np.ndarray, np.ndarray]:
  """The first `count` inputs and labels of a batch as the model sees them, on the host."""
  flat = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), batch)  # drops the axis of devices
  return jax.tree.map(lambda x: np.asarray(x)[:count], jax.jit(view)(seed, flat))
