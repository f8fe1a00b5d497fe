"""The state of a training, and the pure train and predict steps that `devices.parallel` maps.

A step sees one device's share of a batch (its fields: `views.make_view`), and one copy of everything else.
A label of −1 means that there is none. Sums over the batch are summed over devices, and BatchNorm pools
its statistics over them (`models.AXIS_NAME`). So D devices give the same numbers as one, except that each
draws its own dropout. Axes: B batch of one device, C class.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import optax

from kdjax import keys, losses
from kdjax.data.views import Batch, View
from kdjax.models import AXIS_NAME, Features
from kdjax.train import batch_norm

Variables = dict[str, Any]  # 'params' and 'batch_stats'

# Arguments of a loss that couples the examples of a batch; `kdjax.losses.registry` explains them.
OVER_BATCH = {
  'batch_mean': lambda x_BX: jax.lax.pmean(x_BX.mean(axis=0), AXIS_NAME),
  'batch_gather': lambda x_BX: jax.lax.all_gather(x_BX, AXIS_NAME, tiled=True),
}


class State(flax.struct.PyTreeNode):
  """Everything that training changes."""

  step: jax.Array
  params: Any
  batch_stats: Any
  opt_state: Any

  @property
  def variables(self) -> Variables:
    return {'params': self.params, 'batch_stats': self.batch_stats}


class Metrics(flax.struct.PyTreeNode):
  """Sums over the examples of a step and their counts, by name: metrics['loss'] is (sum, count).

  All are in one array, since a transfer from a device takes as long for one number as for forty.
  """

  values: jax.Array  # (..., names, 2); of several steps, a leading axis of steps
  names: tuple[str, ...] = flax.struct.field(pytree_node=False)

  @classmethod
  def from_sums(cls, pairs: Mapping[str, tuple[jax.Array, jax.Array | int]]) -> 'Metrics':
    names = tuple(sorted(pairs))
    values = [jnp.stack([jnp.asarray(x, jnp.float32) for x in pairs[name]]) for name in names]
    return cls(jnp.stack(values), names)

  def __getitem__(self, name: str) -> jax.Array:
    return self.values[..., self.names.index(name), :]


def init_state(variables: Variables, optimizer: optax.GradientTransformation) -> State:
  params = variables['params']
  return State(jnp.zeros((), jnp.int32), params, variables['batch_stats'], optimizer.init(params))


def teacher_step(
  state: State,
  batch: Batch,
  seed: jax.Array,
  *,
  model: nn.Module,
  optimizer: optax.GradientTransformation,
  view: View,
) -> tuple[State, Metrics]:
  """One step on the cross-entropy with the labels. `seed` decides the views and the dropout."""

  def losses_and_metrics(logits_BC, features, labels_B, labelled):
    del features, labelled
    return losses.cross_entropy(logits_BC, labels_B), {}

  return _update(
    state, batch, seed, losses_and_metrics, model=model, optimizer=optimizer, view=view
  )


def student_step(
  state: State,
  batch: Batch,
  teacher_log_probs_BC: jax.Array,
  seed: jax.Array,
  *,
  model: nn.Module,
  optimizer: optax.GradientTransformation,
  view: View,
  loss: Callable[..., jax.Array],
  temperature: Callable[[jax.Array], float | jax.Array],
  alpha: float,
  teacher_features: Features | None = None,
) -> tuple[State, Metrics]:
  """One step on α L_NLL + (1 − α) L_KD (paper, Section 3) against the teacher's predictions.

  Args:
    teacher_log_probs_BC: the ensemble's log_probs for the same views.
    loss: L_KD, as `losses.make` returns it.
    temperature: step → τ.
    teacher_features: the members' features for the same views, (B, M, ...) by name, if the loss needs them.
  """

  def losses_and_metrics(logits_BC, features, labels_B, labelled):
    loss_B = losses.apply(
      loss,
      logits_BC,
      teacher_log_probs_BC,
      temperature(state.step),
      labels_B=labels_B,
      **OVER_BATCH,
      student_features=features,
      teacher_features=teacher_features,
    )
    if alpha:
      loss_B = losses.with_labels(loss_B, logits_BC, labels_B, alpha, labelled)
    agreement_B = logits_BC.argmax(-1) == teacher_log_probs_BC.argmax(-1)
    kl_B = losses.kl_divergence(logits_BC, teacher_log_probs_BC)
    return loss_B, {'top1_agreement': agreement_B, 'predictive_kl': kl_B}

  return _update(
    state, batch, seed, losses_and_metrics, model=model, optimizer=optimizer, view=view
  )


def featured_student_step(
  state: State,
  batch: Batch,
  seed_and_members: tuple[jax.Array, Sequence[Variables]],
  *,
  teacher: nn.Module,
  view: View,
  **how: Any,
) -> tuple[State, Metrics]:
  """A `student_step` that runs the members itself, for a loss that needs their features.

  The compiler leaves out the features that the loss does not read.

  Args:
    seed_and_members: the seed, and the variables of each member.
    teacher: the members' model.
    how: the other keyword arguments of `student_step`.
  """
  seed, members = seed_and_members
  log_probs_BC, features_M = _ensemble(members, view(seed, batch)[0], teacher)
  features = jax.tree.map(lambda *x_MBX: jnp.stack(x_MBX, axis=1), *features_M)
  return student_step(state, batch, log_probs_BC, seed, view=view, teacher_features=features, **how)


def _update(
  state: State,
  batch: Batch,
  seed: jax.Array,
  losses_and_metrics: Callable[
    [jax.Array, Features, jax.Array, jax.Array], tuple[jax.Array, dict[str, jax.Array]]
  ],
  *,
  model: nn.Module,
  optimizer: optax.GradientTransformation,
  view: View,
) -> tuple[State, Metrics]:
  inputs, labels_B = view(seed, batch)
  dropout = keys.stream(seed, 'dropout', state.step, jax.lax.axis_index(AXIS_NAME))

  def mean_loss(params):
    variables = {'params': params, 'batch_stats': state.batch_stats}
    (logits_BC, features), updated = model.apply(
      variables, inputs, train=True, mutable=['batch_stats'], rngs={'dropout': dropout}
    )
    loss_B, metrics_B = losses_and_metrics(logits_BC, features, labels_B, num_labelled / count)
    metrics_B |= {'loss': loss_B, 'accuracy': logits_BC.argmax(-1) == labels_B}
    return loss_B.sum() / count, (metrics_B, updated.get('batch_stats', {}))

  count = jax.lax.psum(len(inputs), AXIS_NAME)
  num_labelled = jax.lax.psum((labels_B >= 0).sum(), AXIS_NAME)
  gradient, (metrics_B, batch_stats) = jax.grad(mean_loss, has_aux=True)(state.params)
  gradient = jax.lax.psum(gradient, AXIS_NAME)
  updates, opt_state = optimizer.update(gradient, state.opt_state, state.params)
  sums = jax.lax.psum({name: x_B.sum() for name, x_B in metrics_B.items()}, AXIS_NAME)
  metrics = {name: (total, count) for name, total in sums.items()}
  metrics['accuracy'] = sums['accuracy'], num_labelled
  metrics['gradient_norm'] = optax.tree.norm(gradient), 1
  state = State(state.step + 1, optax.apply_updates(state.params, updates), batch_stats, opt_state)
  return state, Metrics.from_sums(metrics)


def predict_step(
  variables: Variables, batch: Batch, seed: jax.Array, *, model: nn.Module, view: View
) -> jax.Array:
  """logits_BC of the views, with BatchNorm's running statistics."""
  return model.apply(variables, view(seed, batch)[0], train=False)[0]


def features_step(
  variables: Variables, batch: Batch, seed: jax.Array, *, model: nn.Module, view: View
) -> dict[str, jax.Array]:
  """The named features of the views, by name."""
  return model.apply(variables, view(seed, batch)[0], train=False)[1]


def examples_step(
  variables: Variables, batch: Batch, seed: jax.Array, *, view: View
) -> tuple[jax.Array, jax.Array, jax.Array]:
  """indices_B, the views as a model sees them (images_BHWC in float32, or tokens), and labels_B."""
  del variables
  return batch['indices'], *view(seed, batch)


def labels_step(variables: Variables, batch: Batch, seed: jax.Array, *, view: View) -> jax.Array:
  """labels_B of the views; −1 where a view has none."""
  del variables
  return view(seed, batch)[1]


def ensemble_step(
  members: Sequence[Variables], batch: Batch, seed: jax.Array, *, model: nn.Module, view: View
) -> jax.Array:
  """log_probs_BC of the ensemble of `members` for the views of the batch."""
  return _ensemble(members, view(seed, batch)[0], model)[0]


def _ensemble(
  members: Sequence[Variables], inputs: jax.Array, model: nn.Module
) -> tuple[jax.Array, Sequence[Features]]:
  """log_probs_BC of the ensemble, and the named features of each member."""
  logits_MBC, features_M = zip(*(model.apply(m, inputs, train=False) for m in members), strict=True)
  return losses.ensemble_log_probs(jnp.stack(logits_MBC)), features_M


def batch_moments_step(
  variables: Variables, batch: Batch, seed: jax.Array, *, model: nn.Module, view: View
) -> Any:
  """BatchNorm's statistics of this batch alone, shaped like `batch_stats`."""
  return batch_norm.apply_in_batch(model, variables, view(seed, batch)[0])[1]


def multi_step(state: State, *arguments: Any, step: Callable) -> tuple[State, Metrics]:
  """K steps in one call. Batches and metrics have a leading axis of K; otherwise as `step`."""
  *batches, common = arguments
  return jax.lax.scan(lambda state, batch: step(state, *batch, common), state, tuple(batches))
