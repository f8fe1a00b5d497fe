"""The training of the student as a path: where it goes, what drives it, and whether it nears a teacher.

Two parts: `trajectory`, distances in weight space and fidelity at the kept checkpoints; `gradients`,
the distillation gradient there, its noise and its direction. Axes: L layer (the first is all of them),
T checkpoint, B batch, N example, C class.
"""

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

import flax.linen as nn
import jax
import numpy as np

from analysis import alignment, measure, permutations, trajectory
from analysis.measure import Batch, Measure, Objective
from analysis.part import Arrays, Blocks, Checks, Part, Settings
from analysis.runs import Study
from kdjax import figures, keys, models, progress, steps
from kdjax.errors import ConfigError
from kdjax.steps import Variables

if TYPE_CHECKING:
  from matplotlib.axes import Axes
  from matplotlib.figure import Figure

NUM_BATCHES = 16  # of the gradient at a checkpoint
ENDS = ('', '/low', '/high')
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
  step_fn = steps.parallel(
    partial(
      gradient_step, model=study.run.student_model, objective=measured.objective('distillation')
    )
  )
  gradients_at = partial(_gradients_at, study, batches, step_fn, teachers)
  with progress.bar('gradients', len(study.steps), 'checkpoints') as show:
    at_steps = []
    for done, step in enumerate(study.steps, 1):
      at_steps.append(blocks.get(f'step {step}', partial(gradients_at, step)))
      show(done)
  of_layers = {key: np.stack([of[key] for of in at_steps]) for key in at_steps[0]}
  of_layers['sizes'] = trajectory.sizes(teachers['raw'])
  sizes = {'num_batches': np.array(len(batches)), 'batch_size': _size(batches)}
  return _in_order_of_depth(study, measured, of_layers) | sizes


def _gradients_at(
  study: Study,
  batches: list[Batch],
  step_fn: Callable[..., Any],
  teachers: dict[str, Any],
  step: int,
) -> Arrays:
  variables = study.student(step)
  gradients = [
    jax.device_get(
      step_fn(variables, steps.shard(batch), keys.derive_seed(study.seed, 'analysis/dropout', i))
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
  variables: Variables, batch: Batch, seed: jax.Array, *, model: nn.Module, objective: Objective
) -> Any:
  """The gradient of the mean objective over a batch, as `steps.student_step` has it in training.

  BatchNorm takes the statistics of the batch, over all devices, and dropout is on, with the masks of
  `seed`. Weight decay is not in it. For `steps.parallel`; `batch` is one device's share.
  """
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
    return objective(logits_BC, batch).sum() / count

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
  spec = permutations.spec_for(study.run.student_model, final['params'])
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
    apply = partial(study.run.student_model.apply, train=False)
    jax.eval_shape(apply, variables, measured.batches('distillation')[0]['inputs'])
  names = trajectory.layers(variables['params'])
  order = [names.index(name) for name in dict.fromkeys(called) if name in names]
  arrays = {key: x[..., order] for key, x in of_layers.items()}
  return arrays | {'layers': np.array(names)[order], 'steps': np.array(study.steps)}


# Drawing.

SETS = {'distillation': ('-', 'o', 0.0), 'test': ('--', '^', 0.015)}  # line, marker, shift
TEACHERS = {
  'raw': ('s', '--', 'teacher 0'),
  'aligned': ('o', '-', 'teacher 0, aligned'),
}


def draw_trajectory(arrays: Arrays) -> 'Figure':
  with figures.style('trajectory'):
    figure = figures.blank((8.4, 7.4))
    (far, near), (kl, disagreement) = figure.subplots(2, 2)
    steps_T = arrays['steps']
    for name, (marker, line, label) in TEACHERS.items():
      color = figures.COLORS['teacher']
      values_T = arrays[f'distance/{name}'][:, 0]
      far.plot(steps_T, values_T, line, marker=marker, color=color, label=f'to {label}')
    for key, line in (('length', '-'), ('displacement', '--')):
      label = {'length': 'path length', 'displacement': 'from the start'}[key]
      color = figures.COLORS['student']
      far.plot(steps_T, arrays[key][:, 0], line, marker='^', color=color, label=label)
    _finish(far, 'distance in weight space')
    far.set_ylim(bottom=0)
    with np.errstate(divide='ignore', invalid='ignore'):
      relative_TL = arrays['distance/aligned'] / arrays['teacher_norm'][None]
    _heat(near, arrays, relative_TL, "distance / teacher's norm", cmap='viridis', vmin=0)
    near.set_title('to teacher 0, aligned', fontsize=12)
    for name, (line, marker, shift) in SETS.items():
      moved = arrays | {'steps': steps_T + shift * np.ptp(steps_T)}
      for end, source in zip(ENDS, ('', '/high', '/low'), strict=True):
        moved[f'disagreement{end}'] = 100 - 100 * arrays[f'{name}/top1_agreement{source}']
      _errors(kl, moved, f'{name}/predictive_kl', line, name, marker=marker)
      _errors(disagreement, moved, 'disagreement', line, name, marker=marker)
    kl.set_yscale('log', nonpositive='mask')
    _finish(kl, 'KL to the ensemble (nats)')
    # Both what is near 0 and the start, near 100, are to be seen.
    disagreement.set_yscale('function', functions=(lambda x: np.sqrt(np.maximum(x, 0)), np.square))
    disagreement.set_yticks([0, 1, 5, 20, 50, 100])
    disagreement.set_ylim(0, 100)
    _finish(disagreement, '100 − agreement (%)')
    return figure


def draw_gradients(arrays: Arrays) -> 'Figure':
  with figures.style('gradients'):
    figure = figures.blank((8.4, 9.4))
    axes = figure.subplot_mosaic(
      [['norm', 'snr'], ['cosine', 'cosine'], ['raw', 'aligned']], height_ratios=[1, 1, 1.4]
    )
    overall = {key: x[:, 0] for key, x in arrays.items() if x.ndim == 2}
    overall['steps'] = arrays['steps']
    _errors(axes['norm'], overall, 'norm', '-', None)
    axes['norm'].set_ylim(bottom=0)
    _finish(axes['norm'], 'gradient norm')
    _errors(axes['snr'], overall, 'snr', '-', None)
    axes['snr'].axhline(0, color=figures.COLORS['ink'], linewidth=0.8)
    _finish(axes['snr'], 'SNR of one example')
    for name, (marker, line, label) in TEACHERS.items():
      color = figures.COLORS['teacher']
      _errors(axes['cosine'], overall, f'cosine/{name}', line, label, color=color, marker=marker)
    axes['cosine'].axhline(0, color=figures.COLORS['ink'], linewidth=0.8)
    _finish(axes['cosine'], 'cosine of −gradient with\nthe direction to')
    limit = max(
      np.nan_to_num(np.abs(arrays[f'cosine/{name}'])).max(initial=1e-3) for name in TEACHERS
    )
    for name, (_, _, label) in TEACHERS.items():
      values_TL = arrays[f'cosine/{name}']
      _heat(axes[name], arrays, values_TL, 'cosine', cmap='RdBu', vmin=-limit, vmax=limit)
      away_TL = (arrays[f'cosine/{name}/low'] > 0) | (arrays[f'cosine/{name}/high'] < 0)
      places = np.nonzero(away_TL)
      axes[name].plot(*places, '.', color=figures.COLORS['ink'], markersize=4)
      axes[name].set_title(f'to {label}', fontsize=12)
    return figure


def _errors(
  axes: 'Axes',
  arrays: Arrays,
  key: str,
  line: str,
  label: str | None,
  color: str = figures.COLORS['student'],
  marker: str = 'o',
) -> None:
  """Values of shape (T,) with their intervals, against steps."""
  value, low, high = (arrays[key + end] for end in ENDS)
  axes.errorbar(
    arrays['steps'],
    value,
    yerr=np.maximum([value - low, high - value], 0),
    fmt=line,
    marker=marker,
    markersize=4,
    capsize=2,
    color=color,
    label=label,
  )


def _finish(axes: 'Axes', ylabel: str) -> None:
  axes.set_xlabel('training step')
  axes.set_ylabel(ylabel)
  if axes.get_legend_handles_labels()[0]:
    axes.legend(loc='lower left', bbox_to_anchor=(0, 1.0), ncols=2, fontsize=9)


def _heat(axes: 'Axes', arrays: Arrays, values_TL: np.ndarray, label: str, **colors: Any) -> None:
  """Layers from top to bottom, checkpoints from left to right; grey where there is no value."""
  axes.grid(False)
  axes.set_facecolor('0.8')
  values_LT = np.ma.masked_invalid(values_TL.T)
  image = axes.imshow(values_LT, aspect='auto', interpolation='nearest', **colors)
  axes.figure.colorbar(image, ax=axes, label=label)
  axes.set_xticks(range(len(arrays['steps'])), arrays['steps'], rotation=45, fontsize=9)
  axes.set_yticks(range(len(arrays['layers'])), arrays['layers'], fontsize=9)
  axes.axhline(0.5, color='white', linewidth=2)
  axes.set_xlabel('training step')


# Captions.


def caption_trajectory(arrays: Arrays) -> str:
  first, last = (int(arrays['steps'][place]) for place in (0, -1))
  to = {name: arrays[f'distance/{name}'][:, 0] for name in TEACHERS}
  cosine = {name: arrays[f'cosine/{name}'][-1, 0] for name in TEACHERS}
  fidelity = [
    f'{name} {arrays[f"{name}/{key}"][-1] * scale:.3g} '
    f'[{arrays[f"{name}/{key}/low"][-1] * scale:.3g}, {arrays[f"{name}/{key}/high"][-1] * scale:.3g}]{unit}'
    for key, scale, unit in (('predictive_kl', 1, ' nats'), ('top1_agreement', 100, ' %'))
    for name in SETS
  ]
  return (
    f'From step {first} to step {last}, the distance in weight space to teacher 0 goes from '
    f'{to["raw"][0]:.3g} to {to["raw"][-1]:.3g}; from {to["aligned"][0]:.3g} to {to["aligned"][-1]:.3g} if its '
    'units are permuted to match those of the final student, which changes no prediction (Ainsworth et '
    f'al. 2023). The path through {len(arrays["steps"])} kept checkpoints has the length '
    f'{arrays["length"][-1, 0]:.3g}, the straight line {arrays["displacement"][-1, 0]:.3g}. At the end, the cosine '
    f'of the weights with those of the teacher is {cosine["raw"]:.2g}, aligned {cosine["aligned"]:.2g}; KL to the '
    f'ensemble: {", ".join(fidelity[:2])}; agreement: {", ".join(fidelity[2:])}. Intervals: 95 % bootstrap over '
    'examples, with the running statistics of BatchNorm; distances have no sampling error.'
  )


def caption_gradients(arrays: Arrays) -> str:
  ends = (0, -1)
  snr = [_with_interval(arrays, 'snr', place) for place in ends]
  cosine = {name: [_with_interval(arrays, f'cosine/{name}', i) for i in ends] for name in TEACHERS}
  chance = 1 / np.sqrt(arrays['sizes'])
  return (
    'The gradient of the distillation loss at the kept checkpoints, as in training (BatchNorm takes the '
    f"batch's statistics; without weight decay), from {int(arrays['num_batches'])} batches of "
    f'{int(arrays["batch_size"])} examples. Signal to noise, ‖G‖² / tr Σ for one example (McCandlish et al. '
    f'2018): {snr[0]} at first, {snr[1]} at last. Cosine of −gradient with the direction to teacher '
    f'0: {cosine["raw"][0]}, then {cosine["raw"][1]}; to its aligned copy {cosine["aligned"][0]}, then '
    f'{cosine["aligned"][1]}. Random directions have a standard deviation of {chance[0]:.2g} for all weights and '
    f'up to {chance.max():.2g} for a layer. Intervals: 95 % jackknife over batches; dots mark those without 0, '
    'by chance one in twenty.'
  )


def _with_interval(arrays: Arrays, key: str, place: int) -> str:
  value, low, high = (arrays[key + end][place, 0] for end in ENDS)
  if np.isnan(value):
    return 'undefined (the direction or the gradient is 0)'
  return f'{value:.2g} [{low:.2g}, {high:.2g}]'


PARTS = (
  Part(
    name='trajectory',
    title='Through weight space, and towards the teacher?',
    reads=('num_examples',),
    compute=compute_trajectory,
    draw=draw_trajectory,
    caption=caption_trajectory,
    unavailable=lambda study: study.lacks_teacher,
  ),
  Part(
    name='gradients',
    title='What the distillation gradient points at',
    reads=('num_examples',),
    compute=compute_gradients,
    draw=draw_gradients,
    caption=caption_gradients,
    unavailable=lambda study: study.lacks_teacher,
  ),
)
