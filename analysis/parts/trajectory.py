"""The training of the student as a path: where it goes, what drives it, and whether it nears a teacher.

Two parts: `trajectory`, distances in weight space and fidelity at the kept checkpoints; `gradients`,
the distillation gradient there, its noise and its direction. Axes: L layer (the first is all of them),
T checkpoint, B batch, N example, C class.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import numpy as np

from analysis import alignment, measure, permutations, trajectory
from analysis.figures import trajectory as drawing
from analysis.measure import Batch, Measure, Objective
from analysis.part import Arrays, Blocks, Checks, Part, Settings, stacked
from analysis.runs import Study
from kdjax import devices, keys, models, progress
from kdjax.errors import ConfigError
from kdjax.intervals import ENDS
from kdjax.steps import Variables

NUM_BATCHES = 16  # of the gradient at a checkpoint
SAME_FUNCTION = 1e-3  # by which float32 may change a KL, in nats
ROUNDING = 1e-6  # of float64 sums over weights, relative


# Computing.


def compute_trajectory(study: Study, settings: Settings, blocks: Blocks, checks: Checks) -> Arrays:
  """Distances to teacher 0 as it is and aligned to the final student, path length, fidelity."""
  measured = Measure(study, settings.num_examples)
  teachers = _teachers(study, measured, checks)
  points = [_params(study.student(step)) for step in study.steps]
  path = trajectory.path(points)
  excess_TL = path['displacement'] / np.maximum(path['length'], 1e-30) - 1
  checks.at_most('displacement over path length', excess_TL.max(), ROUNDING)
  of_layers = path | {'teacher_norm': np.sqrt(trajectory.dots(teachers['raw'], teachers['raw']))}
  for name, teacher in teachers.items():
    of_layers[f'distance/{name}'] = np.stack([trajectory.distances(p, teacher) for p in points])
    of_layers[f'cosine/{name}'] = np.stack([trajectory.cosines(p, teacher) for p in points])
  last = [of_layers[f'distance/{name}'][-1, 0] for name in ('aligned', 'raw')]
  checks.at_most('aligned over raw distance', last[0] / max(last[1], 1e-30) - 1, ROUNDING)
  arrays = _in_order_of_depth(study, measured, of_layers)
  with progress.bar('trajectory', len(study.steps), 'checkpoints') as show:
    at_steps = []
    for done, step in enumerate(study.steps, 1):
      values = measured.variables(study.student(step))
      at_steps.append(measure.summary(values, study.seed))
      show(done)
  return arrays | {key: np.concatenate([of[key] for of in at_steps]) for key in at_steps[0]}


def compute_gradients(study: Study, settings: Settings, blocks: Blocks, checks: Checks) -> Arrays:
  """Norm and noise of the distillation gradient, and its cosine with the direction to teacher 0."""
  measured = Measure(study, settings.num_examples)
  teachers = _teachers(study, measured, checks)
  batches = gradient_batches(measured, study.seed)
  step_fn = devices.parallel(
    partial(gradient_step, model=measured.model, objective=measured.objective('distillation'))
  )

  def gradients_at(step: int) -> Arrays:
    temperature = measured.temperature(step)
    found = _gradients_at(study, batches, step_fn, teachers, step, temperature)
    return found | {'temperature': np.array(temperature)}

  with progress.bar('gradients', len(study.steps), 'checkpoints') as show:
    at_steps = []
    for done, step in enumerate(study.steps, 1):
      at_steps.append(blocks.get(f'step {step}', partial(gradients_at, step)))
      show(done)
  of_layers = stacked(at_steps)
  temperature_T = of_layers.pop('temperature')
  of_layers['sizes'] = trajectory.sizes(teachers['raw'])
  beside = {
    'temperature': temperature_T,
    'num_batches': np.array(len(batches)),
    'batch_size': _size(batches),
  }
  return _in_order_of_depth(study, measured, of_layers) | beside


def _gradients_at(
  study: Study,
  batches: list[Batch],
  step_fn: Callable[..., Any],
  teachers: dict[str, Any],
  step: int,
  temperature: float,
) -> Arrays:
  variables = study.student(step)
  at = variables, np.float32(temperature)
  gradients = [
    jax.device_get(
      step_fn(at, devices.shard(batch), keys.derive_seed(study.seed, 'analysis/dropout', i))
    )
    for i, batch in enumerate(batches)
  ]
  gram_LBB = trajectory.gram(gradients)
  found = trajectory.gradient_noise(gram_LBB, int(_size(batches)))
  for name, teacher in teachers.items():
    direction = trajectory.difference(teacher, _params(variables))
    cosines = trajectory.descent_cosines(gradients, direction, gram_LBB)
    found |= {f'cosine/{name}{end}': cosines[f'cosine{end}'] for end in ENDS}
  return found


def gradient_step(
  at: tuple[Variables, float],
  batch: Batch,
  seed: jax.Array,
  *,
  model: nn.Module,
  objective: Objective,
) -> Any:
  """The gradient of the mean objective over a batch, as `steps.student_step` has it in training.

  `at` are the variables and the loss's τ. BatchNorm takes the statistics of the batch, over all devices,
  and dropout is on, with the masks of `seed`. Weight decay is not in it. For `devices.parallel`; `batch` is
  one device's share.
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
    return objective(logits_BC, batch, temperature=temperature).sum() / count

  return jax.lax.psum(jax.grad(mean_loss)(variables['params']), models.AXIS_NAME)


def gradient_batches(measured: Measure, seed: int) -> list[Batch]:
  """The distillation examples in random order in up to NUM_BATCHES batches of one size.

  The size divides by the number of devices; what is left over is left out.

  Raises:
    ConfigError: there are too few examples.
  """
  padded, num_devices = measured.batches('distillation'), jax.local_device_count()
  examples = {
    key: np.concatenate([batch[key][batch['weights'] > 0] for batch in padded])
    for key in ('inputs', 'labels', 'teacher_log_probs')
  }
  count = len(examples['labels'])
  size = max(count // NUM_BATCHES // num_devices, 1) * num_devices
  num_batches = min(count // size, NUM_BATCHES)
  if num_batches < trajectory.MIN_BATCHES:
    raise ConfigError(
      [
        f'--num_examples: {count} examples are too few for the noise of gradients; allowed here: '
        f'{trajectory.MIN_BATCHES * num_devices} or more'
      ]
    )
  order_N = keys.numpy_rng(seed, 'analysis/gradients').permutation(count)  # a folder's is by class
  return [
    {key: x[order_N[i * size : (i + 1) * size]] for key, x in examples.items()}
    for i in range(num_batches)
  ]


def _size(batches: list[Batch]) -> np.ndarray:
  return np.array(len(batches[0]['labels']))


def _teachers(study: Study, measured: Measure, checks: Checks) -> dict[str, Any]:
  """The parameters of teacher 0, 'raw' and 'aligned': its units permuted to match the final student's.

  The permuted teacher is the same function (Ainsworth et al. 2023).
  """
  final, teacher = (jax.device_get(x) for x in (study.student(), study.member(0)))
  spec = permutations.spec_for(measured.model, final['params'])
  rng = keys.numpy_rng(study.seed, 'analysis/trajectory')
  matched = alignment.weight_matching(spec, final['params'], teacher['params'], rng)
  aligned = alignment.apply(spec, matched, teacher)
  before, after = (measured.variables(x)['test/predictive_kl'] for x in (teacher, aligned))
  checks.at_most('change of the aligned teacher', np.abs(after - before).max(), SAME_FUNCTION)
  return {'raw': teacher['params'], 'aligned': aligned['params']}


def _params(variables: Variables) -> Any:
  return jax.device_get(variables['params'])


def _in_order_of_depth(study: Study, measured: Measure, of_layers: Arrays) -> Arrays:
  """Arrays whose last axis is that of `trajectory.layers`, in the order in which layers are called."""
  called = ['all']

  def record(
    call: Callable, args: tuple, kwargs: dict, context: nn.module.InterceptorContext
  ) -> Any:
    called.extend(context.module.path[:1])
    return call(*args, **kwargs)

  variables = study.student()
  with nn.intercept_methods(record):
    apply = partial(measured.model.apply, train=False)
    jax.eval_shape(apply, variables, measured.batches('distillation')[0]['inputs'])
  names = trajectory.layers(variables['params'])
  order = [names.index(name) for name in dict.fromkeys(called) if name in names]
  arrays = {key: x[..., order] for key, x in of_layers.items()}
  return arrays | {'layers': np.array(names)[order], 'steps': np.array(study.steps)}


PARTS = (
  Part(
    name='trajectory',
    title='Through weight space, and towards the teacher?',
    reads=('num_examples',),
    compute=compute_trajectory,
    draw=drawing.draw_trajectory,
    caption=drawing.caption_trajectory,
    unavailable=lambda study: study.lacks_teacher,
  ),
  Part(
    name='gradients',
    title='What the distillation gradient points at',
    reads=('num_examples',),
    compute=compute_gradients,
    draw=drawing.draw_gradients,
    caption=drawing.caption_gradients,
    unavailable=lambda study: study.lacks_teacher,
    version=2,
  ),
)
