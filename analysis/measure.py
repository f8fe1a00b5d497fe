"""Forward passes at points of weight space: losses, fidelity and accuracy on one fixed set of examples.

The examples are the same at every point, so that points differ by their weights alone:
'distillation', view 0 of what the student was distilled on, and 'test'. A point is built from a few
coordinates inside jit, all measures come from one forward pass, and points are spread over the
devices. Axes: P point, D device, K coordinate, M member, N example, B batch, C class.
"""

import functools
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from scipy.special import log_softmax

from analysis.runs import Study
from kdjax import devices, intervals, keys, losses, models, predictions, prefetch, steps
from kdjax.steps import Variables

SETS = ('distillation', 'test')
UNITS = {'brier': 'no unit', 'logit_mse': 'logits²'}  # of losses.LOSSES; all others are in nats
Batch = dict[str, jax.Array]
Build = Callable[[Any, jax.Array], Variables]  # (shared, coordinates_K) → variables, traced
Values = dict[str, np.ndarray]  # '<set>/<measure>' → values_PN
Objective = Callable[..., jax.Array]  # (logits_BC, batch), and perhaps temperature= → losses_B
OF_LABELS = ('accuracy', 'nll')
GROUPS_AHEAD = 4  # of points, dispatched while the measures of another are fetched


def example_losses(
  logits_BC: jax.Array,
  batch: Batch,
  *,
  loss: Callable[..., jax.Array],
  temperature: float,
  alpha: float,
) -> dict[str, jax.Array]:
  """All measures of each example, all of them NaN where a logit is.

  Those of OF_LABELS mean nothing where there is no label.

  Returns: 'loss' (what the student minimises), 'predictive_kl' (nats, at τ = 1), 'top1_agreement',
    'accuracy' and 'nll' (nats), each of shape (B,).
  """
  teacher_BC, labels_B = batch['teacher_log_probs'], batch['labels']
  loss_B = loss(logits_BC, teacher_BC, temperature)
  if alpha:
    loss_B = losses.with_labels(loss_B, logits_BC, labels_B, alpha, batch['labelled'])
  correct_B = (logits_BC.argmax(-1) == labels_B).astype(jnp.float32)
  measures = {
    'loss': loss_B,
    'predictive_kl': losses.kl_divergence(teacher_BC, logits_BC),
    'top1_agreement': (logits_BC.argmax(-1) == teacher_BC.argmax(-1)).astype(jnp.float32),
    'accuracy': correct_B,
    'nll': losses.cross_entropy(logits_BC, jnp.maximum(labels_B, 0)),
  }
  broken_B = jnp.isnan(logits_BC).any(axis=-1)  # else the first NaN would be taken for a class
  return {name: jnp.where(broken_B, jnp.nan, of_B) for name, of_B in measures.items()}


class Measure:
  """The fixed examples of a student, and what weights of its architecture do on them.

  `model` computes in float32 whatever the student was trained in: a small change of the loss between
  two points, a gradient and a curvature must not drown in rounding.
  """

  def __init__(self, study: Study, num_examples: int):
    """Chooses up to `num_examples` of each set, the same for every point and every call."""
    self._run, self._steps, self._placed = study.run, {}, {}
    self.model = in_float32(study.run.student_model)
    self.sets = SETS
    self._has_statistics = bool(study.run.abstract_state('student').batch_stats)
    section = study.run.config.student
    self._loss = {
      'loss': losses.LOSSES[section.loss],
      'temperature': self.temperature(study.run.plan('student').num_steps),
      'alpha': section.alpha,
    }
    members = _members(study)
    self._examples = {name: _examples(study, members, name, num_examples) for name in SETS}

  @property
  def context(self) -> dict[str, np.ndarray]:
    """What figures and captions say of the run and of these examples."""
    return {
      'loss_unit': np.array(UNITS.get(self._run.config.student.loss, 'nats')),
      'num_members': np.array(self._run.config.teacher.num_members),
      'num_examples': np.array([self.num_examples(name) for name in SETS]),
      'reestimated': np.array(self._has_statistics),
    }

  def temperature(self, step: int) -> float:
    """The student's τ at a step of its training."""
    section, num_steps = self._run.config.student, self._run.plan('student').num_steps
    return float(
      losses.temperature_at(step, num_steps, section.temperature, section.final_temperature)
    )

  def num_examples(self, name: str) -> int:
    return len(self._examples[name]['labels'])

  def batches(self, name: str) -> list[Batch]:
    """The examples in batches of one size; what fills up the last has weight 0.

    Each has inputs_BX as the model takes them, labels_B (−1: none), teacher_log_probs_BC of the
    ensemble, weights_B, and labelled_B, the fraction of all examples that have a label.
    """
    count = self.num_examples(name)
    size = min(count, self._run.config.evaluation.batch_size)
    indices = np.arange(-(-count // size) * size)
    padded = {key: x[np.minimum(indices, count - 1)] for key, x in self._examples[name].items()}
    padded['weights'] = (indices < count).astype(np.float32)
    fraction = (self._examples[name]['labels'] >= 0).mean()
    padded['labelled'] = np.full(len(indices), fraction, np.float32)
    return [
      {key: x[start : start + size] for key, x in padded.items()}
      for start in range(0, len(indices), size)
    ]

  def objective(self, name: str) -> Objective:
    """A loss of each example by name.

    'distillation' is what the student minimises, at the last τ of its schedule unless it is called
    with another `temperature`; 'cross_entropy' the same with the labels (0 where there is none), and
    'predictive_kl' is KL(teacher ‖ student) at τ = 1.
    """
    return partial(_objective, name=name, **self._loss)

  def at(
    self,
    build: Build,
    shared: Any,
    coordinates_PK: np.ndarray,
    reestimate: bool = False,
    show: Callable[[int, str], None] | None = None,
  ) -> Values:
    """Measures the points build(shared, coordinates).

    Args:
      build: a function of a module, so that it is compiled once; nothing is compiled from point to
        point.
      shared: its first argument, any tree of arrays; put on the devices once.
      reestimate: whether BatchNorm's statistics are those of the 'distillation' examples at each
        point, and not those that `build` returns. Those of other weights fit none in between.
      show: is called as show(points done, '').

    Returns: values_PN, '<set>/<measure>' for the measures of `example_losses`; those of OF_LABELS of
      the N examples that have one. What is NaN is a network whose output is.
    """
    shared = devices.replicate(shared)
    groups = _over_devices(np.asarray(coordinates_PK, np.float32))
    dispatched = (
      (count, self._dispatch(build, shared, coordinates_DK, reestimate))
      for count, coordinates_DK in groups
    )
    collected: dict[str, list[np.ndarray]] = {}
    for count, outputs in prefetch.ahead(dispatched, GROUPS_AHEAD):
      for name, of_batches in outputs.items():
        for key in of_batches[0]:
          values_DN = np.concatenate([np.asarray(of[key]) for of in of_batches], axis=1)
          kept = values_DN[:count, : self.num_examples(name)]
          if key in OF_LABELS:
            kept = kept[:, self._examples[name]['labels'] >= 0]
          collected.setdefault(f'{name}/{key}', []).append(kept)
      if show is not None:
        show(sum(len(x) for x in collected['test/loss']), '')
    return {key: np.concatenate(pieces) for key, pieces in collected.items()}

  def variables(self, variables: Variables, reestimate: bool = False) -> Values:
    """The same of one point, so that P is 1."""
    return self.at(as_given, variables, np.zeros((1, 1)), reestimate)

  def _dispatch(
    self, build: Build, shared: Any, coordinates_DK: np.ndarray, reestimate: bool
  ) -> dict[str, list[dict[str, jax.Array]]]:
    """For each set the measures_DB of its batches, of a group of points, one a device."""
    reestimate &= self._has_statistics
    stats = self._statistics(build, shared, coordinates_DK) if reestimate else {}
    step = self._step(_values, build, num_sharded=2)
    return {
      name: [step(shared, coordinates_DK, stats, batch) for batch in self._placed_batches(name)]
      for name in SETS
    }

  def _statistics(self, build: Build, shared: Any, coordinates_DK: np.ndarray) -> Any:
    """BatchNorm statistics of each device's point."""
    step = self._step(_moments, build, num_sharded=1)
    moments = [step(shared, coordinates_DK, batch) for batch in self.unpadded_batches()]
    return _pool(moments, [len(batch['inputs']) for batch in self.unpadded_batches()])

  def _step(self, step: Callable, build: Build, num_sharded: int) -> Callable:
    key = step, build
    if key not in self._steps:
      bound = {'build': build, 'model': self.model}
      bound |= {'loss': self._loss} if step is _values else {}
      self._steps[key] = devices.parallel(
        partial(step, **bound), num_sharded=num_sharded, sharded_output=True
      )
    return self._steps[key]

  def _placed_batches(self, name: str) -> list[Batch]:
    if name not in self._placed:
      self._placed[name] = [devices.replicate(batch) for batch in self.batches(name)]
    return self._placed[name]

  def unpadded_batches(self) -> list[Batch]:
    """Of the distillation data, for statistics, in which padding would count."""
    if 'unpadded' not in self._placed:
      self._placed['unpadded'] = [
        devices.replicate({'inputs': batch['inputs'][batch['weights'] > 0]})
        for batch in self.batches('distillation')
      ]
    return self._placed['unpadded']


def in_float32(model: nn.Module) -> nn.Module:
  return model.clone(dtype=jnp.float32)


@partial(jax.jit, static_argnames='model')
def logits(variables: Variables, inputs_BX: jax.Array, *, model: nn.Module) -> jax.Array:
  """logits_BC, with running statistics and without dropout."""
  return model.apply(variables, inputs_BX, train=False)[0]


def as_given(variables: Variables, coordinates_K: jax.Array) -> Variables:
  """The `build` of a single point."""
  del coordinates_K
  return variables


def reestimated(variables: Variables, batches: list[Batch], model: nn.Module) -> Variables:
  """The variables with BatchNorm statistics pooled over `batches`, which have 'inputs'.

  The variance is the mean of the batches' variances plus the variance of their means, weighted by
  their sizes. Other variables come back as they are.
  """
  if not variables['batch_stats']:
    return variables
  moments = [_jitted_moments(variables, {'inputs': b['inputs']}, model=model) for b in batches]
  pooled = _pool(moments, [len(batch['inputs']) for batch in batches])
  return {'params': variables['params'], 'batch_stats': pooled}


def summary(values: Values, seed: int) -> dict[str, np.ndarray]:
  """Means over examples and their 95 % percentile bootstrap intervals.

  All points share the resamples, so that their errors move together. Where an example is NaN, and
  where there is none, so are the mean and its interval.

  Returns: for each key, `key`, `key/low` and `key/high`, of shape (P,).
  """
  found = {}
  for key, values_PN in values.items():
    values_PN = values_PN.astype(np.float64)
    mean_P, low_P, high_P = np.full((3, len(values_PN)), np.nan)
    if num_examples := values_PN.shape[1]:
      with np.errstate(invalid='ignore'):  # 0 · ∞, of an infinite loss that was not drawn
        means_RP = _resamples(num_examples, seed) @ values_PN.T / num_examples
      mean_P = values_PN.mean(axis=1)
      low_P, high_P = np.quantile(means_RP, [intervals.TAIL, 1 - intervals.TAIL], axis=0)
    found |= dict(
      zip((f'{key}{end}' for end in intervals.ENDS), (mean_P, low_P, high_P), strict=True)
    )
  return found


@functools.lru_cache(4)
def _resamples(num_examples: int, seed: int) -> np.ndarray:
  """How often each example is drawn in each resample."""
  return intervals.resamples(num_examples, keys.numpy_rng(seed, 'analysis/bootstrap'))


# Inside jit.


def _values(
  shared: Any,
  coordinates_K: jax.Array,
  stats: Any,
  batch: Batch,
  *,
  build: Build,
  model: nn.Module,
  loss: dict[str, Any],
) -> dict[str, jax.Array]:
  variables = build(shared, coordinates_K)
  variables = variables | ({'batch_stats': stats} if stats else {})
  logits_BC, _ = model.apply(variables, batch['inputs'], train=False)
  return example_losses(logits_BC, batch, **loss)


def _moments(
  shared: Any, coordinates_K: jax.Array, batch: Batch, *, build: Build, model: nn.Module
) -> Any:
  """BatchNorm's mean and variance of one batch at one point."""
  variables = build(shared, coordinates_K)

  # Here devices hold different points. An axis of length one, of the same name, keeps each to itself.
  def alone(inputs):
    view = lambda seed, batch: (batch['inputs'], None)
    return steps.batch_moments_step(variables, {'inputs': inputs}, 0, model=model, view=view)

  moments = jax.vmap(alone, axis_name=models.AXIS_NAME)(batch['inputs'][None])
  return jax.tree.map(lambda x: x[0], moments)


@partial(jax.jit, static_argnames='model')
def _jitted_moments(variables: Variables, batch: Batch, *, model: nn.Module) -> Any:
  return _moments(variables, jnp.zeros(1), batch, build=as_given, model=model)


def _objective(logits_BC: jax.Array, batch: Batch, *, name: str, **loss: Any) -> jax.Array:
  measure = {'distillation': 'loss', 'cross_entropy': 'nll', 'predictive_kl': 'predictive_kl'}[name]
  losses_B = example_losses(logits_BC, batch, **loss)[measure]
  return jnp.where(batch['labels'] >= 0, losses_B, 0.0) if measure in OF_LABELS else losses_B


# On the host.


def _pool(moments: list[Any], sizes: list[int]) -> Any:
  """Pools the 'mean' and 'var' leaves of batches of the given sizes."""
  if len(moments) == 1:
    return moments[0]
  weights = [size / sum(sizes) for size in sizes]
  return _pooled(weights, *moments)


def _pooled(weights: list[float], *stats: Any) -> Any:
  if 'mean' not in stats[0]:
    return {name: _pooled(weights, *(of[name] for of in stats)) for name in stats[0]}
  mean = sum(w * of['mean'] for w, of in zip(weights, stats, strict=True))
  var = sum(
    w * (of['var'] + (of['mean'] - mean) ** 2) for w, of in zip(weights, stats, strict=True)
  )
  return {'mean': mean, 'var': var}


def _over_devices(coordinates_PK: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
  """Points in groups of one a device; how many of a group count, and the group."""
  num_devices = jax.local_device_count()
  for start in range(0, len(coordinates_PK), num_devices):
    group = coordinates_PK[start : start + num_devices]
    padding = np.repeat(group[:1], num_devices - len(group), axis=0)
    yield len(group), np.concatenate([group, padding])


def _members(study: Study) -> list[Variables] | None:
  """The teacher's members, or None where only their predictions are left."""
  if not study.has_teachers:
    return None
  return [study.member(i) for i in range(study.num_members)]


def _examples(
  study: Study, members: list[Variables] | None, name: str, num_examples: int
) -> dict[str, np.ndarray]:
  """Fixed examples of a set, as the model sees them, and the ensemble's log_probs on them.

  These are computed in float32, so that a student with its teacher's weights has a KL of exactly 0;
  those of the store, which are rounded, serve where the teachers are gone.
  """
  run, inputs = study.run, study.run.inputs[name]
  order_N = keys.numpy_rng(study.seed, f'analysis/{name}').permutation(len(inputs.split))
  indices_N = order_N[:num_examples]  # mixed, where data come by class: so are the batches
  if members is None:
    log_probs_MNC = predictions.open_teacher(run).members(name, 0)[:, indices_N]
  else:
    model = in_float32(run.teacher_model)
    logits = [run.predict(model, m, inputs, 0, indices_N) for m in members]
    log_probs_MNC = log_softmax(np.stack(logits), axis=-1)
  batches = inputs.evaluation(indices_N, 0, run.config.evaluation.batch_size)
  seen = [_seen(inputs.view, inputs.seed, batch, count) for batch, count in batches]
  return {
    'inputs': np.concatenate([x for x, _ in seen]),
    'labels': np.concatenate([y for _, y in seen]),
    'teacher_log_probs': predictions.combine(log_probs_MNC),
  }


def _seen(
  view: Callable, seed: int, batch: steps.Batch, count: int
) -> tuple[np.ndarray, np.ndarray]:
  """The first `count` inputs and labels of a batch as the model sees them, on the host."""
  flat = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), batch)  # no axis of devices
  return jax.tree.map(lambda x: np.asarray(x)[:count], jax.jit(view)(seed, flat))
