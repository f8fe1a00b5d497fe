"""Trainings around the student and the teacher.

There are two parts: `forks` asks when the basin is decided (Frankle et al. 2020), and `returns` whether
distillation returns to a perturbed teacher. Both train more students by the student's recipe on its
distillation data. Values of a training that diverges are NaN.
Axes: K fork, P pair of ends, T position on a path, S start, N example.
"""

import itertools
from functools import partial

import jax
import numpy as np
from etils import epath
from jax.flatten_util import ravel_pytree

from kdjax import intervals, keys
from kdjax.errors import UserError
from kdjax.runtime import progress
from kdjax.train.steps import Variables

from .. import basins, curvature, geometry, part, paths, surface, trajectory
from ..figures import basins as drawing
from ..geometry import Tree
from ..measure import Measure, teacher_log_probs, teacher_members
from ..part import Arrays, Blocks, Checks, Part, Settings, Training, stacked
from ..runs import Study
from . import planes

RESIDUAL = 0.1  # largest ‖H v − λ v‖ / λ of the sharpest direction


# Forks.


def compute_forks(study: Study, settings: Settings, blocks: Blocks, checks: Checks) -> Arrays:
  """Trains continuations from kept steps, and computes the barriers between their ends."""
  run, measured = study.experiment, Measure(study, settings.num_examples)
  distiller, plan = basins.distiller(run), run.student.plan
  steps = basins.fork_steps(study.steps, settings.num_forks)

  def ends_of(step: int) -> list[Variables | None]:
    found = [study.student()]
    for index in range(settings.fork_seeds):
      folder, seed = _fork_folder(study, step, index), basins.order_seed(run, index)
      name = _fork_name(step, index, settings)
      found.append(basins.continued(run, distiller, folder, step, seed, name))
    return found

  rows = [
    blocks.get(f'step {k}', lambda k=k: _compare(study, settings, measured, checks, ends_of(k)))
    for k in steps
  ]
  return (
    {
      'steps': np.array(steps),
      'epochs': np.array([plan.epoch(step) for step in steps]),
      'fractions': np.array(steps) / plan.num_steps,
      'num_epochs': np.array(plan.epoch(plan.num_steps)),
      'num_continuations': np.array(settings.fork_seeds),
    }
    | measured.context
    | stacked(rows)
  )


def _fork_folder(study: Study, step: int, index: int) -> epath.Path:
  return study.folder / 'forks' / f'step_{step}_seed_{index}'


def _fork_name(step: int, index: int, settings: Settings) -> str:
  return f'forks: {index + 1} of {settings.fork_seeds} from step {step}'


def fork_trainings(study: Study, settings: Settings) -> list[Training]:
  num_steps = study.experiment.student.plan.num_steps
  return [
    Training(
      _fork_name(step, index, settings),
      0 if basins.is_trained(_fork_folder(study, step, index)) else num_steps - step,
    )
    for step in basins.fork_steps(study.steps, settings.num_forks)
    for index in range(settings.fork_seeds)
  ]


def _compare(
  study: Study, settings: Settings, measured: Measure, checks: Checks, ends: list[Variables | None]
) -> Arrays:
  """Barriers, distances and agreement between all pairs of ends, and the values of each end.

  Values of an end that is None are NaN, and means over pairs leave it out.
  """
  ts_T = np.linspace(0, 1, settings.path_points)
  is_there = np.array([end is not None for end in ends])
  ends = [ends[0] if end is None else end for end in ends]  # placeholders of the right shapes
  pairs = list(itertools.combinations(range(len(ends)), 2))
  there_P = np.array([is_there[i] and is_there[j] for i, j in pairs])
  values, distances = [], []
  with progress.bar('barriers', len(pairs), 'paths') as show:
    for done, (i, j) in enumerate(pairs, 1):
      line = ends[i], ends[j]
      values.append(measured.at(paths.line_point, line, ts_T[:, None], reestimate=True))
      distances.append(geometry.distance(ends[i]['params'], ends[j]['params']))
      show(done, '')
  direct = [measured.variables(end, reestimate=True) for end in ends]
  for (i, j), of in zip(pairs, values, strict=True):
    planes.check_point(checks, 'ends of paths', of, 0, direct[i])
    planes.check_point(checks, 'ends of paths', of, -1, direct[j])
  values = [_nan_unless(there, of) for there, of in zip(there_P, values, strict=True)]
  direct = [_nan_unless(there, of) for there, of in zip(is_there, direct, strict=True)]
  own = surface.summary(
    {k: np.concatenate([of[k] for of in direct]) for k in direct[0]}, study.seed
  )
  return (
    {f'barrier/{key}': x for key, x in basins.barriers_of(values, ts_T, study.seed).items()}
    | {f'ends/{key}': x for key, x in own.items()}
    | _predicted(study, ends, pairs, there_P)
    | {'distances': np.where(there_P, distances, np.nan), 'diverged': ~is_there[1:]}
  )


def _nan_unless(there: bool, arrays: Arrays) -> Arrays:
  return arrays if there else {key: np.full_like(x, np.nan) for key, x in arrays.items()}


def _predicted(
  study: Study, ends: list[Variables], pairs: list[tuple[int, int]], there_P: np.ndarray
) -> Arrays:
  """How often two ends predict the same class on the whole test set, and share their mismatches with the teacher."""
  run = study.experiment
  inputs = run.data.inputs['test']
  classes_EN = np.stack(
    [run.predictor.logits(run.student.model, end, inputs).argmax(-1) for end in ends]
  )
  same_PN = np.array([classes_EN[i] == classes_EN[j] for i, j in pairs], np.float64)[there_P]
  some_1N = same_PN.mean(axis=0, keepdims=True) if len(same_PN) else np.full((1, 1), np.nan)
  mean = {key: x[0] for key, x in surface.summary({'agreement': some_1N}, study.seed).items()}
  pairs_P = np.full(len(pairs), np.nan)
  pairs_P[there_P] = same_PN.mean(axis=1)
  everyone_N = np.arange(len(inputs.split))
  teacher_NC = teacher_log_probs(study, teacher_members(study), 'test', 0, everyone_N)
  compared = [pair for pair, there in zip(pairs, there_P, strict=True) if there]
  mismatch_EN = classes_EN != teacher_NC.argmax(-1)
  both_ways = compared + [(j, i) for i, j in compared]
  make_rng = partial(keys.numpy_rng, study.seed, 'analysis/forks')
  found = trajectory.repeated_mismatches(mismatch_EN, both_ways, intervals.NUM_RESAMPLES, make_rng)
  return mean | {'agreement/pairs': pairs_P} | found


# Returns.


def compute_returns(study: Study, settings: Settings, blocks: Blocks, checks: Checks) -> Arrays:
  """Distils again from perturbations of the first member; row 0 is the unperturbed control."""
  run = basins.shortened(study.experiment, settings.return_epochs)
  measured, distiller = Measure(study, settings.num_examples), basins.distiller(run)
  teacher = jax.device_get(study.member(0))
  norm = geometry.norm(teacher['params'])
  directions, curvatures, num_examples = _directions(study, settings, teacher, checks)
  starts, folder = _starts(settings), _returns_folder(study, settings)

  def distilled(name: str, radius: float) -> Arrays:
    params = basins.moved(teacher['params'], directions[name], radius * norm)
    start = {'params': params, 'batch_stats': teacher['batch_stats']}
    start = surface.reestimated(start, measured.batches('distillation'), measured.model)
    label = f'returns: {name} {radius:g}'
    end = basins.returned(run, distiller, folder / f'{name}_{radius!r}', start, label)
    before = surface.summary(measured.variables(start, reestimate=True), study.seed)
    return (
      {f'before/{key}': x[0] for key, x in before.items()}
      | _after(study, settings, measured, teacher, end)
      | _distances(teacher, start, end, directions[name])
    )

  rows = [
    blocks.get(f'{name} {radius!r}', partial(distilled, name, radius)) for name, radius in starts
  ]
  own = surface.summary(measured.variables(teacher, reestimate=True), study.seed)
  return (
    {
      'directions': np.array([name for name, _ in starts]),
      'radii': np.array([radius for _, radius in starts]),
      'norm': np.array(norm),
      'num_steps': np.array(run.student.plan.num_steps),
      'num_epochs': np.array(settings.return_epochs),
      'num_curvature_examples': np.array(num_examples),
      'curvatures': np.array([curvatures[name] for name, _ in starts]),
    }
    | measured.context
    | {f'teacher/{k}': x[0] for k, x in own.items()}
    | stacked(rows)
  )


def _starts(settings: Settings) -> list[tuple[str, float]]:
  """Direction and radius of each start; the first is the teacher itself."""
  radii = sorted(set(settings.return_radii))
  return [('random', 0.0), *itertools.product(drawing.DIRECTIONS, radii)]


def _returns_folder(study: Study, settings: Settings) -> epath.Path:
  reads = {'version': VERSION} | {name: getattr(settings, name) for name in STARTS_READ}
  return study.folder / 'returns' / part.digest(reads)


def return_trainings(study: Study, settings: Settings) -> list[Training]:
  num_steps = basins.shortened(study.experiment, settings.return_epochs).config.student.num_steps
  folder = _returns_folder(study, settings)
  return [
    Training(
      f'{name} {radius:g}', 0 if basins.is_trained(folder / f'{name}_{radius!r}') else num_steps
    )
    for name, radius in _starts(settings)
  ]


def _directions(
  study: Study, settings: Settings, teacher: Variables, checks: Checks
) -> tuple[dict[str, Tree], dict[str, float], int]:
  """Directions away from a teacher, and the curvature vᵀ H v of the distillation loss along each.

  The loss is that of planes and barriers, on `settings.curvature_examples`.

  Returns: directions and curvatures by name, and the number of examples.

  Raises:
    UserError: there are too few Lanczos steps for the sharpest direction.
  """
  measured = Measure(study, settings.curvature_examples)
  mean_loss = curvature.MeanLoss(
    surface.of_params(measured.model, teacher),
    measured.objective('distillation'),
    teacher['params'],
    measured.batches('distillation'),
  )
  rng = keys.numpy_rng(study.seed, 'analysis/returns')
  directions = basins.perturbations(teacher, mean_loss, rng, settings)
  curvatures = {}
  for name, direction in directions.items():
    vector_P = np.asarray(ravel_pytree(direction)[0])
    product_P = mean_loss.hvp(vector_P)
    curvatures[name] = float(vector_P @ product_P)
    if name == 'sharp':
      rest_P = product_P - curvatures[name] * vector_P
      residual = np.linalg.norm(rest_P) / abs(curvatures[name])
      if residual > RESIDUAL:
        raise UserError(
          f'--lanczos_steps = {settings.lanczos_steps}: too few for the sharpest direction v of the '
          f'Hessian H at the teacher: ‖H v − λ v‖ is {residual:.2g} λ; allowed: {RESIDUAL} λ. Use '
          f'more, such as {2 * settings.lanczos_steps}. Nothing was trained yet.'
        )
      checks.at_most('residual of the sharpest direction', residual, RESIDUAL)
  return directions, curvatures, mean_loss.num_examples


def _after(
  study: Study, settings: Settings, measured: Measure, teacher: Variables, end: Variables | None
) -> Arrays:
  """Values of the end, and the barrier on the line from the teacher; NaN if there is no end."""
  ts_T = np.linspace(0, 1, settings.path_points)
  line = teacher, teacher if end is None else end
  path = measured.at(paths.line_point, line, ts_T[:, None], reestimate=True)
  path = _nan_unless(end is not None, path)
  after = surface.summary({key: values_TN[-1:] for key, values_TN in path.items()}, study.seed)
  return {f'after/{key}': x[0] for key, x in after.items()} | {
    f'barrier/{key}': x for key, x in basins.barriers_of([path], ts_T, study.seed).items()
  }


def _distances(
  teacher: Variables, start: Variables, end: Variables | None, direction: Tree
) -> Arrays:
  """Distances from the teacher, in all and 'along' the direction of the perturbation."""
  found = {}
  for when, point in (('before', start), ('after', end)):
    length, along = np.nan, np.nan
    if point is not None:
      offset = basins.moved(point['params'], teacher['params'], -1)
      length, along = geometry.norm(offset), geometry.inner(offset, direction)
    found |= {f'distance/{when}': np.array(length), f'along/{when}': np.array(along)}
  return found


# Parts.


def _forks_unavailable(study: Study) -> str | None:
  if len(study.steps) < 2:
    return 'only the last checkpoint of the student was kept: config.student.keep_checkpoints'
  return None


# Settings of a start and its distillation, besides direction and radius.
STARTS_READ = ('num_examples', 'curvature_examples', 'lanczos_steps', 'return_epochs')
VERSION = 3  # of the starts
RETURNS_READ = (*STARTS_READ, 'path_points', 'return_radii')
PARTS = (
  Part(
    name='forks',
    title='When the basin is decided',
    answers='from which training step on do continuations end in one basin?',
    training='num_forks x fork_seeds continuations of the student, from kept steps',
    reads=('num_examples', 'path_points', 'num_forks', 'fork_seeds'),
    compute=compute_forks,
    draw=drawing.draw_forks,
    caption=drawing.caption_forks,
    table=drawing.table_forks,
    trains=fork_trainings,
    unavailable=_forks_unavailable,
    version=3,
  ),
  Part(
    name='returns',
    title='Returns to a perturbed teacher',
    answers='does distillation from a perturbed teacher return to the teacher?',
    training='3 x return_radii + 1 students for return_epochs each',
    reads=RETURNS_READ,
    compute=compute_returns,
    draw=drawing.draw_returns,
    caption=drawing.caption_returns,
    table=drawing.table_returns,
    trains=return_trainings,
    unavailable=lambda study: study.lacks_teacher,
    version=VERSION,
  ),
)
