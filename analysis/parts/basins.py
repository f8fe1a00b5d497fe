"""When the student's basin is decided, where interpolated students end, and who returns to the teacher.

Three parts: `forks` (Frankle et al. 2020), `lambdas` (paper, Figure 6b and c), and `returns`. All train
more students by the student's recipe and on its distillation data. Axes: K fork, E end of a training,
P pair of ends, T position on a path, L λ, Y X grid, S start, N example.
"""

import itertools
from functools import partial

import jax
import numpy as np
from jax.flatten_util import ravel_pytree

from analysis import basins, curvature, geometry, measure, part, paths
from analysis.figures import basins as drawing
from analysis.geometry import Tree
from analysis.measure import Measure
from analysis.part import Arrays, Blocks, Checks, Part, Settings, stacked
from analysis.parts import planes
from analysis.runs import Study
from kdjax import config as config_lib
from kdjax import keys, progress, student
from kdjax.run import Run
from kdjax.steps import Variables

MARGIN = 0.15  # around a plane's corners, as a fraction of the longer side of their box
RESIDUAL = 0.1  # ‖H v − λ v‖ of the sharpest direction, in units of λ


# Forks.


def compute_forks(study: Study, settings: Settings, blocks: Blocks, checks: Checks) -> Arrays:
  """Continuations from kept steps, and the barriers between where they and the student end."""
  run, measured = study.run, Measure(study, settings.num_examples)
  distil, plan = basins.distiller(run), run.plan('student')
  steps = basins.fork_steps(study.steps, settings.num_forks)

  def ends_of(step: int) -> list[Variables]:
    found = [study.student()]
    for index in range(settings.fork_seeds):
      folder = study.folder / 'forks' / f'step_{step}_seed_{index}'
      name, seed = f'fork {index + 1} of step {step}', basins.order_seed(run, index)
      found.append(basins.continued(run, distil, folder, step, seed, name))
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


def _compare(
  study: Study, settings: Settings, measured: Measure, checks: Checks, ends: list[Variables]
) -> Arrays:
  """Barriers, distances and agreement between all pairs of ends, and how each end does."""
  ts_T = np.linspace(0, 1, settings.path_points)
  pairs = list(itertools.combinations(range(len(ends)), 2))
  values, distances = [], []
  with progress.bar('barriers', len(pairs), 'paths') as show:
    for done, (i, j) in enumerate(pairs, 1):
      line = ends[i], ends[j]
      values.append(measured.at(paths.line_point, line, ts_T[:, None], reestimate=True))
      distances.append(basins.distance(ends[i]['params'], ends[j]['params']))
      show(done, '')
  direct = [measured.variables(end, reestimate=True) for end in ends]
  for (i, j), of in zip(pairs, values, strict=True):
    _check_ends(checks, of, direct[i], direct[j])
  own = measure.summary(
    {k: np.concatenate([of[k] for of in direct]) for k in direct[0]}, study.seed
  )
  return (
    {f'barrier/{key}': x for key, x in basins.barriers_of(values, ts_T, study.seed).items()}
    | {f'ends/{key}': x for key, x in own.items()}
    | _agreement(study, ends, pairs)
    | {'distances': np.array(distances)}
  )


def _agreement(study: Study, ends: list[Variables], pairs: list[tuple[int, int]]) -> Arrays:
  """How often two ends predict the same class on the whole test set, each as it was trained."""
  run = study.run
  classes = [run.predict(run.student_model, end, run.inputs['test']).argmax(-1) for end in ends]
  same_PN = np.array([classes[i] == classes[j] for i, j in pairs], np.float64)
  mean = measure.summary({'agreement': same_PN.mean(axis=0, keepdims=True)}, study.seed)
  return {key: x[0] for key, x in mean.items()} | {'agreement/pairs': same_PN.mean(axis=1)}


def _check_ends(checks: Checks, path: Arrays, first: Arrays, last: Arrays) -> None:
  """A path's ends must give what the networks give themselves."""
  for key in planes.CONTINUOUS:
    for place, direct in ((0, first), (-1, last)):
      _check_same(checks, f'ends of paths: {key}', path[key][place], direct[key][0])


def _check_same(checks: Checks, name: str, found_N: np.ndarray, expected_N: np.ndarray) -> None:
  expected = float(expected_N.mean())
  deviation = abs(float(found_N.mean()) - expected) / max(1, abs(expected))
  checks.at_most(name, deviation, planes.TOLERANCE)


# λ.


def compute_lambdas(study: Study, settings: Settings, blocks: Blocks, checks: Checks) -> Arrays:
  """Students that start at λ teacher + (1 − λ) random, and the plane of each.

  A plane goes through the teacher, the random weights and the final student. For λ < 1 that is the plane
  through teacher, initial and final student, since the initial one lies between the first two; and so it
  is defined for λ = 1 too, where the initial student is the teacher. All have the same first axis, and
  the same grid.
  """
  lambdas = sorted(set(settings.lambdas))
  runs = [basins.with_lambda(study.run, value) for value in lambdas]
  for run in runs:
    student.run(run)
  finals = [student.load(run) for run in runs]
  measured = Measure(study, settings.num_examples)
  trained = [measure.summary(measured.variables(final), study.seed) for final in finals]
  found = _planes(study, settings, measured, dict(zip(lambdas, runs, strict=True)), blocks, checks)
  found |= {f'final/{key}': x[:, 0] for key, x in stacked(trained).items()}
  return {'lambdas': np.array(lambdas)} | measured.context | found


def _planes(
  study: Study,
  settings: Settings,
  measured: Measure,
  runs: dict[float, Run],
  blocks: Blocks,
  checks: Checks,
) -> Arrays:
  """The surfaces of all λ on one grid; values_LYX."""
  seed = config_lib.student_seed(study.run.config)
  random = study.run.init_variables(study.run.student_model, seed)
  teacher, finals = study.member(0), [student.load(run) for run in runs.values()]
  others = [*finals, study.student()]
  planes_L = [_plane(teacher, random, final, others, checks) for final in finals]
  places_L = [
    _places(plane, [teacher, random, student.load(run, 0), final], checks)
    for plane, run, final in zip(planes_L, runs.values(), finals, strict=True)
  ]
  xs, ys = geometry.grid(np.concatenate(places_L), settings.lambda_resolution, MARGIN)
  surfaces = [
    blocks.get(
      f'plane {value!r}',
      partial(_surface, study, measured, checks, plane, final, places[-1], xs, ys),
    )
    for value, plane, final, places in zip(runs, planes_L, finals, places_L, strict=True)
  ]
  return {
    'xs': xs,
    'ys': ys,
    'places/names': np.array(['teacher', 'random', 'initial', 'student']),
    'places/xy': np.array(places_L),
  } | {f'plane/{key}': x for key, x in stacked(surfaces).items()}


def _surface(
  study: Study,
  measured: Measure,
  checks: Checks,
  plane: geometry.Plane,
  final: Variables,
  place_2: np.ndarray,
  xs: np.ndarray,
  ys: np.ndarray,
) -> Arrays:
  """All measures on a plane, which must give at `place_2` what the final student gives itself."""
  shared = {'plane': plane, 'batch_stats': final['batch_stats']}
  coords_P2 = geometry.grid_coords(xs, ys)
  with progress.bar('plane', len(coords_P2), 'points') as show:
    values = measured.at(planes.build_point, shared, coords_P2, reestimate=True, show=show)
  there = measured.at(planes.build_point, shared, place_2[None], reestimate=True)
  direct = measured.variables(final, reestimate=True)
  for key in planes.CONTINUOUS:
    _check_same(checks, f'students on planes: {key}', there[key][0], direct[key][0])
  summary = measure.summary(values, study.seed)
  return {key: x_P.reshape(len(ys), len(xs)) for key, x_P in summary.items()}


def _plane(
  teacher: Variables,
  random: Variables,
  final: Variables,
  others: list[Variables],
  checks: Checks,
) -> geometry.Plane:
  """Through teacher, random weights and final student.

  A student that never left the teacher, as one of λ = 1 with one member may, spans no plane. In its
  place comes that of the others which is farthest from the teacher.
  """
  far = lambda variables: basins.distance(variables['params'], teacher['params'])
  if far(final) <= geometry.RESOLVED * geometry.norm(teacher['params']):
    final = max(others, key=far)
  plane = geometry.plane_through(*(point['params'] for point in (teacher, random, final)))
  checks.at_most('orthonormality', geometry.orthonormality_error(plane), planes.ORTHONORMAL)
  return plane


def _places(plane: geometry.Plane, points: list[Variables], checks: Checks) -> np.ndarray:
  """Where points that lie on a plane lie on it."""
  places_3 = np.array([geometry.project(plane, point['params']) for point in points])
  size = np.abs(places_3[:, :2]).max()
  checks.at_most('height of the corners', places_3[:, 2].max() / size, planes.TOLERANCE)
  return places_3[:, :2]


# Returns.


def compute_returns(study: Study, settings: Settings, blocks: Blocks, checks: Checks) -> Arrays:
  """Distils again from around the first member. Row 0 starts at the member itself, for comparison."""
  run = basins.shortened(study.run, settings.return_epochs)
  measured, distil = Measure(study, settings.num_examples), basins.distiller(run)
  teacher = jax.device_get(study.member(0))
  norm = geometry.norm(teacher['params'])
  directions, curvatures = _directions(study, settings, teacher, checks)
  starts = [('random', 0.0), *itertools.product(directions, sorted(set(settings.return_radii)))]
  reads = {name: getattr(settings, name) for name in STARTS_READ}
  folder = study.folder / 'returns' / part.digest(reads)

  def distilled(name: str, radius: float) -> Arrays:
    params = basins.moved(teacher['params'], directions[name], radius * norm)
    start = {'params': params, 'batch_stats': teacher['batch_stats']}
    start = measure.reestimated(start, measured.unpadded_batches(), run.student_model)
    end = basins.returned(run, distil, folder / f'{name}_{radius!r}', start)
    before = measure.summary(measured.variables(start, reestimate=True), study.seed)
    return (
      {f'before/{key}': x[0] for key, x in before.items()}
      | _after(study, settings, measured, teacher, end)
      | _distances(teacher, start, end, directions[name])
    )

  rows = [
    blocks.get(f'{name} {radius!r}', partial(distilled, name, radius)) for name, radius in starts
  ]
  own = measure.summary(measured.variables(teacher, reestimate=True), study.seed)
  return (
    {
      'directions': np.array([name for name, _ in starts]),
      'radii': np.array([radius for _, radius in starts]),
      'norm': np.array(norm),
      'num_steps': np.array(run.plan('student').num_steps),
      'num_epochs': np.array(settings.return_epochs),
      'curvatures': np.array([curvatures[name] for name, _ in starts]),
    }
    | measured.context
    | {f'teacher/{k}': x[0] for k, x in own.items()}
    | stacked(rows)
  )


def _directions(
  study: Study, settings: Settings, teacher: Variables, checks: Checks
) -> tuple[dict[str, Tree], dict[str, float]]:
  """Directions away from a teacher, and the curvature vᵀ H v of the distillation loss along each."""
  measured = Measure(study, settings.curvature_examples)
  mean_loss = curvature.MeanLoss(
    curvature.forward(study.run.student_model),
    measured.objective('distillation'),
    teacher,
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
      checks.at_most('residual of the sharpest direction', residual, RESIDUAL)
  return directions, curvatures


def _after(
  study: Study, settings: Settings, measured: Measure, teacher: Variables, end: Variables | None
) -> Arrays:
  """How the end does, and the barrier on the line from the teacher; NaN if there is no end."""
  ts_T = np.linspace(0, 1, settings.path_points)
  line = teacher, teacher if end is None else end
  path = measured.at(paths.line_point, line, ts_T[:, None], reestimate=True)
  if end is None:
    path = {key: np.full_like(values_TN, np.nan) for key, values_TN in path.items()}
  after = measure.summary({key: values_TN[-1:] for key, values_TN in path.items()}, study.seed)
  return {f'after/{key}': x[0] for key, x in after.items()} | {
    f'barrier/{key}': x for key, x in basins.barriers_of([path], ts_T, study.seed).items()
  }


def _distances(
  teacher: Variables, start: Variables, end: Variables | None, direction: Tree
) -> Arrays:
  """From the teacher; 'along' the direction of the perturbation is what is left of it."""
  found = {}
  for when, point in (('before', start), ('after', end)):
    length, along = np.nan, np.nan
    if point is not None:
      offset = basins.moved(point['params'], teacher['params'], -1)
      length, along = geometry.norm(offset), geometry.inner(offset, direction)
    found |= {f'distance/{when}': np.array(length), f'along/{when}': np.array(along)}
  return found


# What all have in common.


def _forks_unavailable(study: Study) -> str | None:
  if len(study.steps) < 2:
    return 'no checkpoint of the student but the last was kept: config.student.keep_checkpoints'
  return None


def _lambdas_unavailable(study: Study) -> str | None:
  if reason := study.lacks_teacher:
    return reason
  if not study.initial_is_kept:
    return 'the initial student was not kept: config.student.keep_checkpoints lacks 0.0'
  return None


# What a start and its distillation depend on, beside direction and radius.
STARTS_READ = (
  'num_examples',
  'curvature_examples',
  'num_eigenpairs',
  'lanczos_steps',
  'return_epochs',
)
RETURNS_READ = (*STARTS_READ, 'path_points', 'return_radii')
PARTS = (
  Part(
    name='forks',
    title='When the basin is decided',
    reads=('num_examples', 'path_points', 'num_forks', 'fork_seeds'),
    compute=compute_forks,
    draw=drawing.draw_forks,
    caption=drawing.caption_forks,
    unavailable=_forks_unavailable,
  ),
  Part(
    name='lambdas',
    title='Students that start between random weights and the teacher',
    reads=('num_examples', 'lambdas', 'lambda_resolution'),
    compute=compute_lambdas,
    draw=drawing.draw_lambdas,
    caption=drawing.caption_lambdas,
    unavailable=_lambdas_unavailable,
  ),
  Part(
    name='returns',
    title='Back to the teacher from around it',
    reads=RETURNS_READ,
    compute=compute_returns,
    draw=drawing.draw_returns,
    caption=drawing.caption_returns,
    unavailable=lambda study: study.lacks_teacher,
  ),
)
