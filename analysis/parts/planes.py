"""Surfaces over planes in weight space (paper, Figure 6c; Li et al. 2018; Garipov et al. 2018).

There are three parts: `plane` goes through a teacher and the initial and final student; `random_plane` goes
along two filter-normalised directions from the student; `ensemble_plane` goes through any three networks, by
default two teachers and the student. Surfaces are stored as values_YX.
Axes: Y X grid, K corner, P point, T checkpoint.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import numpy as np

from kdjax import intervals, keys
from kdjax.runtime import progress
from kdjax.train.steps import Variables

from .. import geometry, measure, surface
from ..figures import planes as drawing
from ..figures.planes import Panel
from ..figures.style import Figure
from ..geometry import Plane
from ..part import Arrays, Blocks, Checks, Part, Settings, stacked
from ..runs import Study
from ..surface import Values

PAPER_CORNERS = ('teacher 0', 'student', 'initial')
ENSEMBLE_CORNERS = ('teacher 0', 'student', 'teacher 1', 'sibling', 'independent', 'initial')
MARGIN = 0.25  # around the corners, as a fraction of the longer side of their box
CONTINUOUS = ('distillation/loss', 'distillation/predictive_kl', 'test/predictive_kl')
TOLERANCE = 1e-3  # of a corner's values, relative where they are above 1; float32 gives below 1e-6
ORTHONORMAL = 1e-6
PATH_CAPTION = 'Line: kept checkpoints with their distances from the plane. '


# Computing.


def build_point(shared: dict[str, Any], xy_2: jax.Array) -> Variables:
  """The variables at a point of shared['plane']; traceable, for `Measure.at`."""
  params = geometry.plane_point(shared['plane'], xy_2)
  return {'params': params, 'batch_stats': shared['batch_stats']}


def compute_ensemble_plane(
  study: Study, settings: Settings, blocks: Blocks, checks: Checks
) -> Arrays:
  """Computes the plane through settings.corners, by default the first three of ENSEMBLE_CORNERS."""
  there = set(study.names)
  names = settings.corners or [name for name in ENSEMBLE_CORNERS if name in there][:3]
  return _compute_corners(study, settings, blocks, checks, names)


def misnamed_corners(names: list[str], settings: Settings) -> list[str]:
  """The problems of settings.corners, given the names of the available networks."""
  corners = settings.corners
  if corners and (len(set(corners)) != 3 or len(corners) != 3 or not set(corners) <= set(names)):
    return [f'--corners = {",".join(corners)}: allowed: three different ones of {", ".join(names)}']
  return []


def compute_random_plane(
  study: Study, settings: Settings, blocks: Blocks, checks: Checks
) -> Arrays:
  """Computes the plane along two filter-normalised directions from the student, to ±1 filter norm."""
  final = study.student()
  rng = keys.numpy_rng(study.seed, 'analysis/random_plane')
  plane = Plane(final['params'], *geometry.random_directions(final['params'], rng))
  xs = np.linspace(-1, 1, settings.random_resolution)
  measured = measure.Measure(study, settings.num_examples)
  shared = {'plane': plane, 'batch_stats': final['batch_stats']}
  return (
    measured.context
    | _check_corners(study, measured, shared, {'student': final}, np.zeros((1, 2)), checks)
    | {'xs': xs, 'ys': xs}
    | on_grid(study, measured, shared, xs, xs, blocks)
  )


def _compute_corners(
  study: Study, settings: Settings, blocks: Blocks, checks: Checks, names: Sequence[str]
) -> Arrays:
  """The plane through three of `study.names`, with the student's path if both of its ends are named."""
  corners = {name: study.point(name) for name in names}
  plane = geometry.plane_through(*(corner['params'] for corner in corners.values()))
  checks.at_most('orthonormality', geometry.orthonormality_error(plane), ORTHONORMAL)
  path = _path(study, plane) if {'initial', 'student'} <= corners.keys() else {}
  places_K2 = places(plane, list(corners.values()), checks)
  covered = np.concatenate([places_K2, path.get('path/xy', np.zeros((0, 2)))])
  xs, ys = geometry.grid(covered, settings.resolution, MARGIN)
  measured = measure.Measure(study, settings.num_examples)
  shared = {'plane': plane, 'batch_stats': corners[names[0]]['batch_stats']}
  return (
    path
    | measured.context
    | _check_corners(study, measured, shared, corners, places_K2, checks)
    | {'xs': xs, 'ys': ys}
    | on_grid(study, measured, shared, xs, ys, blocks)
  )


def places(plane: Plane, points: Sequence[Variables], checks: Checks) -> np.ndarray:
  """The coordinates places_K2 of points on a plane; checks that they lie on it."""
  places_K3 = np.array([geometry.project(plane, point['params']) for point in points])
  size = np.abs(places_K3[:, :2]).max()
  checks.at_most('height of the corners', places_K3[:, 2].max() / size, TOLERANCE)
  return places_K3[:, :2]


def check_point(
  checks: Checks, name: str, found: Values, place: int, expected: Values, expected_place: int = 0
) -> None:
  """Checks that a measured point has the mean values of a network that was measured on its own."""
  for key in CONTINUOUS:
    of_both = found[key][place], expected[key][expected_place]
    checks.same_mean(f'{name}: {key}', *of_both, TOLERANCE)


def _path(study: Study, plane: Plane) -> Arrays:
  """The projections of the kept checkpoints onto the plane, and their distances from it."""
  places_T3 = np.array(
    [geometry.project(plane, study.student(step)['params']) for step in study.steps]
  )
  return {
    'path/steps': np.array(study.steps),
    'path/xy': places_T3[:, :2],
    'path/height': places_T3[:, 2],
  }


def _check_corners(
  study: Study,
  measured: measure.Measure,
  shared: dict[str, Any],
  corners: dict[str, Variables],
  places_K2: np.ndarray,
  checks: Checks,
) -> Arrays:
  """Measures the corners themselves, and checks that the plane reproduces their values."""
  direct = [measured.variables(c, reestimate=True) for c in corners.values()]
  direct = {key: np.concatenate([values[key] for values in direct]) for key in direct[0]}
  on_plane = measured.at(build_point, shared, places_K2, reestimate=True)
  for k in range(len(corners)):
    check_point(checks, 'corners reproduced', on_plane, k, direct, k)
  summary = surface.summary(direct, study.seed)
  return {
    'corners/names': np.array(list(corners)),
    'corners/xy': places_K2,
  } | {f'corners/{key}': values_K for key, values_K in summary.items()}


def on_grid(
  study: Study,
  measured: measure.Measure,
  shared: dict[str, Any],
  xs: np.ndarray,
  ys: np.ndarray,
  blocks: Blocks,
  name: str = 'row',
) -> Arrays:
  """All measures on the grid, (Y, X), saved row by row, with BatchNorm statistics re-estimated at each point.

  Args:
    shared: as for `build_point`.
    name: of the blocks.
  """

  def measure_row(row: int) -> Arrays:
    coords_P2 = geometry.grid_coords(xs, ys[row : row + 1])
    report = lambda done, text: show(row * len(xs) + done, text)
    values = measured.at(build_point, shared, coords_P2, reestimate=True, show=report)
    return surface.summary(values, study.seed)

  with progress.bar('plane', len(xs) * len(ys), 'points') as show:
    rows = [blocks.get(f'{name} {row}', partial(measure_row, row)) for row in range(len(ys))]
  return stacked(rows)


def start_unavailable(study: Study) -> str | None:
  """Why there is no teacher or no initial student; None if there are both."""
  if reason := study.lacks_teacher:
    return reason
  if not study.initial_is_kept:
    return 'the initial student was not kept: config.student.keep_checkpoints lacks 0.0'
  return None


def plane_unavailable(study: Study) -> str | None:
  """Why there is no plane through teacher, initial and final student; None if there is."""
  if reason := start_unavailable(study):
    return reason
  section = study.experiment.config.student
  if section.init_lambda == 1 and section.init_from == 'final':
    return 'the student started at the teacher (init_lambda = 1), so there are only two points'
  return None


def ensemble_plane_unavailable(study: Study) -> str | None:
  """Why there is no plane other than that of `plane`; None if there is."""
  if len(study.names) < 3 or set(study.names) == set(PAPER_CORNERS):
    missing = (
      study.lacks_teacher
      or 'the teacher has one member, and there is no sibling and no independent student'
    )
    return f'there is no third point: {missing}'
  return None


# Drawing.


def draw_plane(arrays: Arrays) -> Figure:
  """Draws the surfaces, with the distillation data on the left and the test set on the right."""
  unit = str(arrays['loss_unit'])
  panels = [
    Panel('distillation/loss', 'distillation loss', unit),
    Panel('test/accuracy', 'accuracy, test', '%', percent=True),
    Panel('distillation/predictive_kl', 'KL, distillation', 'nats'),
    Panel('test/predictive_kl', 'KL, test', 'nats'),
    Panel('distillation/top1_agreement', 'agreement, distil.', '%', percent=True),
    Panel('test/top1_agreement', 'agreement, test', '%', percent=True),
  ]
  return drawing.draw(arrays, panels, ('distance (units of the weights)',) * 2)


def draw_random_plane(arrays: Arrays) -> Figure:
  panels = [
    Panel('distillation/loss', 'distillation loss', str(arrays['loss_unit'])),
    Panel('test/accuracy', 'accuracy, test', '%', percent=True),
    Panel('test/predictive_kl', 'KL, test', 'nats'),
    Panel('test/top1_agreement', 'agreement, test', '%', percent=True),
  ]
  labels = ('first direction (filter norms)', 'second direction (filter norms)')
  return drawing.draw(arrays, panels, labels)


# Captions.


def caption_plane(arrays: Arrays) -> str:
  return (
    'Plane through a teacher and the initial and final student (paper, Figure 6c). '
    f'{PATH_CAPTION}{_how(arrays)}'
  )


def caption_ensemble_plane(arrays: Arrays) -> str:
  names = [look.label for look in drawing.looks(arrays['corners/names'])]
  path = PATH_CAPTION if 'path/xy' in arrays else ''
  return f'Plane through {", ".join(names)}. {path}{_how(arrays)}'


def caption_random_plane(arrays: Arrays) -> str:
  return (
    'Plane around the final student, along two random directions whose filters have the norms of the '
    f"student's (Li et al. 2018). {_how(arrays)}"
  )


def _how(arrays: Arrays) -> str:
  """The grid, the number of examples, the loss's zero, and the BatchNorm statistics."""
  distillation, test = arrays['num_examples']
  text = (
    f'{len(arrays["xs"])} × {len(arrays["ys"])} points, interpolated linearly; n = {distillation} '
    f'distillation, {test} test examples. Without labels the loss is 0 at a perfect match.'
  )
  return text + (' BatchNorm is re-estimated everywhere.' if arrays['reestimated'] else '')


def table_plane(arrays: Arrays) -> list[list[str]]:
  """Values at the corners, measured at their own weights, and their distances."""
  looks, xy_K2 = drawing.looks(arrays['corners/names']), arrays['corners/xy']
  rows = [
    ['Network', 'loss, distillation', 'KL, test (nats)', 'agreement, test (%)', 'distance to']
  ]
  for k, look in enumerate(looks):
    others = [
      f'{other.label} {np.linalg.norm(xy_K2[k] - xy_K2[i]):.3g}'
      for i, other in enumerate(looks)
      if i != k
    ]
    rows.append(
      [
        look.label,
        intervals.text(arrays, 'corners/distillation/loss', k),
        intervals.text(arrays, 'corners/test/predictive_kl', k),
        intervals.text(arrays, 'corners/test/top1_agreement', k, 100),
        ', '.join(others),
      ]
    )
  return rows


PARTS = (
  Part(
    name='plane',
    title='Plane through teacher, initial and final student',
    answers='are student and teacher in one basin of the plane through both (paper, Figure 6c)?',
    reads=('num_examples', 'resolution'),
    compute=partial(_compute_corners, names=PAPER_CORNERS),
    draw=draw_plane,
    caption=caption_plane,
    table=table_plane,
    unavailable=plane_unavailable,
    version=3,
  ),
  Part(
    name='random_plane',
    title='Random plane around the student',
    answers='how fast does the loss rise along filter-normalised random directions?',
    reads=('num_examples', 'random_resolution'),
    compute=compute_random_plane,
    draw=draw_random_plane,
    caption=caption_random_plane,
    table=table_plane,
    version=2,
  ),
  Part(
    name='ensemble_plane',
    compares_others=True,
    title='Plane through the student and two other networks',
    answers='are the student and two teachers or siblings in one basin?',
    reads=('num_examples', 'resolution', 'corners'),
    compute=compute_ensemble_plane,
    draw=draw_plane,
    caption=caption_ensemble_plane,
    table=table_plane,
    unavailable=ensemble_plane_unavailable,
    misnamed=misnamed_corners,
    version=3,
  ),
)
