"""The student's training as a path: does it approach the teacher, and does the gradient point to it?

There are two parts. At the kept checkpoints, `trajectory` measures distances in weight space and fidelity,
and `gradients` the norm, noise and direction of the distillation gradient. Distances and cosines are compared
with nulls (`estimates.excess`). Axes: L layer (the first entry is all layers), T checkpoint, B batch,
K draw of a null, A alignment, N example, C class.
"""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import numpy as np

from kdjax import keys, models
from kdjax.runtime import progress
from kdjax.train import devices, steps
from kdjax.train.steps import Variables

from .. import alignment, estimates, geometry, matching, paths, surface, trajectory
from ..figures import trajectory as drawing
from ..matching import Aligner
from ..measure import Measure, Objective
from ..part import Arrays, Blocks, Checks, Part, Settings, stacked
from ..runs import Study
from ..surface import Batch

ROUNDING = 1e-6  # relative rounding error of float64 sums over weights


# Networks to compare with.


@dataclasses.dataclass(frozen=True)
class _Networks:
  """Parameters of teacher 0, 'raw' and 'aligned' to the final student, and its nulls.

  Each draw of a null is a function that returns parameters, so that few are in memory at once.
  """

  teachers: dict[str, Any]
  nulls: dict[str, list[Callable[[], Any]]]
  alignments: Arrays  # all alignments of teacher 0

  @property
  def compared(self) -> list[tuple[str, str]]:
    """The (teacher, null) pairs that are compared; 'origin' is fixed and has no draws."""
    found = []
    for teacher in self.teachers:
      own = ('permuted', 'unrelated') if teacher == 'raw' else ('unrelated, aligned',)
      found += [(teacher, null) for null in (*own, 'origin') if self.nulls.get(null) != []]
    return found


def _networks(study: Study, settings: Settings, checks: Checks) -> _Networks:
  final, teacher = (jax.device_get(x) for x in (study.student(), study.member(0)))
  unrelated = study.unrelated_teachers()
  teachers = {'raw': teacher['params']}
  drawn = {
    'permuted': [],
    'unrelated': [lambda load=load: _params(load()) for load in unrelated.values()],
    'unrelated, aligned': [],
  }
  aligner = Aligner(study, settings, checks)
  if aligner.lacking:
    return _Networks(teachers, drawn, aligner.context)
  found = aligner.best(teacher, final)
  teachers['aligned'] = found.variables['params']
  for load in unrelated.values():
    aligned = aligner.best(jax.device_get(load()), final).variables['params']
    drawn['unrelated, aligned'].append(lambda aligned=aligned: aligned)
  spec = aligner.spec(teacher)
  bare = {'params': teacher['params']}
  drawn['permuted'] = [
    partial(_permuted, spec, bare, keys.derive_seed(study.seed, 'analysis/permuted', i))
    for i in range(estimates.NUM_PERMUTATIONS)
  ]
  distances = [
    trajectory.distances(alignment.apply(spec, order, bare)['params'], final['params'])[0]
    for order in found.candidates.values()
  ]
  alignments = {
    'alignments/names': np.array(list(found.candidates)),
    'alignments/loss': np.array(list(found.heights.values())),
    'alignments/distance': np.array(distances),
    'alignments/chosen': np.array(found.chosen),
  }
  return _Networks(teachers, drawn, alignments | aligner.context)


def _permuted(spec: Any, bare: Variables, seed: int) -> Any:
  order = alignment.random_permutations(spec, np.random.default_rng(seed))
  return alignment.apply(spec, order, bare)['params']


# Computing.


def compute_trajectory(study: Study, settings: Settings, blocks: Blocks, checks: Checks) -> Arrays:
  """Computes distances to teacher 0, raw and aligned, the path length, and fidelity."""
  measured = Measure(study, settings.num_examples)
  networks = _networks(study, settings, checks)
  points = [_params(study.student(step)) for step in study.steps]
  path = trajectory.path(points)
  excess_TL = path['displacement'] / np.maximum(path['length'], 1e-30) - 1
  checks.at_most('displacement over path length', excess_TL.max(), ROUNDING)
  of_layers = path
  for name, teacher in networks.teachers.items():
    of_layers[f'distance/{name}'] = np.stack([trajectory.distances(p, teacher) for p in points])
    of_layers[f'cosine/{name}'] = np.stack([trajectory.cosines(p, teacher) for p in points])
  of_layers['null/origin'] = np.sqrt(np.stack([trajectory.dots(p, p) for p in points]))
  for name, draws in networks.nulls.items():
    if draws:
      of_layers[f'null/{name}'] = np.stack(
        [[trajectory.distances(p, x) for p in points] for x in (make() for make in draws)]
      )
  for teacher, null in networks.compared:
    found = estimates.excess(of_layers[f'distance/{teacher}'], of_layers[f'null/{null}'])
    of_layers |= estimates.named(f'excess/{teacher}/{null}', found)
  arrays = _in_order_of_depth(study, measured, of_layers) | networks.alignments
  with progress.bar('trajectory', len(study.steps), 'checkpoints') as show:
    at_steps = []
    for done, step in enumerate(study.steps, 1):
      values = measured.variables(study.student(step))
      at_steps.append(surface.summary(values, study.seed))
      show(done)
  return arrays | {key: np.concatenate([of[key] for of in at_steps]) for key in at_steps[0]}


def compute_gradients(study: Study, settings: Settings, blocks: Blocks, checks: Checks) -> Arrays:
  """Computes norm and noise of the distillation gradient, and its cosine with the way to teacher 0."""
  batch_size = study.experiment.config.student.batch_size
  measured = Measure(study, settings.gradient_batches * batch_size)
  networks = _networks(study, settings, checks)
  batches = paths.training_batches(measured.batches('distillation'), batch_size)
  step_fn = devices.parallel(
    partial(gradient_step, model=measured.model, objective=measured.objective('distillation'))
  )

  def gradients_at(step: int) -> Arrays:
    temperature = measured.temperature(step)
    found = _gradients_at(study, batches, step_fn, networks, step, temperature)
    return found | {'temperature': np.array(temperature)}

  with progress.bar('gradients', len(study.steps), 'checkpoints') as show:
    at_steps = []
    for done, step in enumerate(study.steps, 1):
      at_steps.append(blocks.get(f'step {step}', partial(gradients_at, step)))
      show(done)
  of_layers = stacked(at_steps)
  temperature_T = of_layers.pop('temperature')
  for name in networks.nulls.keys() & {key.removeprefix('null/') for key in of_layers}:
    of_layers[f'null/{name}'] = of_layers[f'null/{name}'].swapaxes(0, 1)  # K first
  beside = {
    'temperature': temperature_T,
    'num_batches': np.array(len(batches)),
    'batch_size': np.array(batch_size),
  }
  return _in_order_of_depth(study, measured, of_layers) | beside | networks.alignments


def _gradients_at(
  study: Study,
  batches: list[Batch],
  step_fn: Callable[..., Any],
  networks: _Networks,
  step: int,
  temperature: float,
) -> Arrays:
  variables = study.student(step)
  params = _params(variables)
  at = variables, np.float32(temperature)
  gradients = [
    jax.device_get(
      step_fn(at, devices.shard(batch), keys.derive_seed(study.seed, 'analysis/dropout', i))
    )
    for i, batch in enumerate(batches)
  ]
  gram_LBB = trajectory.gram(gradients)
  found = trajectory.gradient_noise(gram_LBB, len(batches[0]['labels']))
  origin = jax.tree.map(np.zeros_like, params)
  targets = {name: [lambda teacher=x: teacher] for name, x in networks.teachers.items()}
  targets |= {'origin': [lambda: origin]} | {k: x for k, x in networks.nulls.items() if x}
  cosines = {
    name: trajectory.descent_cosines(
      gradients, (geometry.difference(make(), params) for make in draws), gram_LBB
    )
    for name, draws in targets.items()
  }
  for name, (values_KL, without_BKL) in cosines.items():
    if name in networks.teachers:
      found |= estimates.named(
        f'cosine/{name}', estimates.jackknife(values_KL[0], without_BKL[:, 0])
      )
    else:
      found[f'null/{name}'] = values_KL[0] if name == 'origin' else values_KL
  for teacher, null in networks.compared:
    difference_BL = cosines[teacher][1][:, 0] - cosines[null][1].mean(axis=1)
    excess = estimates.excess(
      found[f'cosine/{teacher}'],
      found[f'null/{null}'],
      estimates.jackknife_error(difference_BL),
      len(batches) - 1,
    )
    found |= estimates.named(f'excess/{teacher}/{null}', excess)
  return found


def gradient_step(
  at: tuple[Variables, float],
  batch: Batch,
  seed: jax.Array,
  *,
  model: nn.Module,
  objective: Objective,
) -> Any:
  """The gradient of the mean objective over a batch, as in `steps.student_step` without weight decay.

  BatchNorm uses the statistics of the batch over all devices, and dropout is on.

  Args:
    at: the variables, and the loss's τ.
    batch: one device's share; call this through `devices.parallel`.
    seed: draws the dropout masks.
  """
  variables, temperature = at
  dropout = keys.stream(seed, 'analysis/dropout', jax.lax.axis_index(models.AXIS_NAME))
  count = jax.lax.psum(len(batch['labels']), models.AXIS_NAME)

  def mean_loss(params):
    (logits_BC, _), _ = model.apply(
      variables | {'params': params},
      batch['inputs'],
      train=True,
      mutable=['batch_stats'],
      rngs={'dropout': dropout},
    )
    over_batch = steps.OVER_BATCH
    return objective(logits_BC, batch, temperature=temperature, over_batch=over_batch).sum() / count

  return jax.lax.psum(jax.grad(mean_loss)(variables['params']), models.AXIS_NAME)


def _params(variables: Variables) -> Any:
  return jax.device_get(variables['params'])


def _in_order_of_depth(study: Study, measured: Measure, of_layers: Arrays) -> Arrays:
  """Reorders the last axis, that of `trajectory.layers`, by depth."""
  names = trajectory.layers(study.student()['params'])
  by_depth = surface.layers(measured.model, measured.batches('distillation')[0]['inputs'])
  order = [names.index(name) for name in ('all', *by_depth)]
  arrays = {key: x[..., order] for key, x in of_layers.items()}
  return arrays | {'layers': np.array(names)[order], 'steps': np.array(study.steps)}


def gradients_unavailable(study: Study) -> str | None:
  plan, least = study.experiment.student.plan, estimates.MIN_PARTS
  if plan.num_examples < least * plan.batch_size:
    return (
      f'the noise of gradients needs {least} batches of student.batch_size = {plan.batch_size}, and the '
      f'distillation data have only {plan.num_examples} examples'
    )
  return study.lacks_teacher


def _unrelated(study: Study, settings: Settings) -> list[str]:
  """Names of the teachers that nulls are made of."""
  return list(study.unrelated_teachers())


PARTS = (
  Part(
    name='trajectory',
    title='Distance to the teacher during training',
    answers='does the student approach its teacher more than an unrelated or a permuted teacher?',
    reads=matching.READS,
    compute=compute_trajectory,
    draw=drawing.draw_trajectory,
    caption=drawing.caption_trajectory,
    table=drawing.table_trajectory,
    unavailable=lambda study: study.lacks_teacher,
    depends=_unrelated,
    version=2,
  ),
  Part(
    name='gradients',
    title='Direction of the distillation gradient',
    answers='how noisy is the gradient, and does it point to the teacher more than to its nulls?',
    reads=(*matching.READS, 'gradient_batches'),
    compute=compute_gradients,
    draw=drawing.draw_gradients,
    caption=drawing.caption_gradients,
    table=drawing.table_gradients,
    unavailable=gradients_unavailable,
    depends=_unrelated,
    version=3,
  ),
)
