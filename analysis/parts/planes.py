"""Surfaces over planes in weight space (paper, Figure 6c; Li et al. 2018; Garipov et al. 2018).

Three parts: `plane` goes through a teacher and through the student before and after its training,
`random_plane` along two filter-normalised directions from the student, and `ensemble_plane` through any
three networks, by default two teachers and the student. Values lie as values_YX[row of y, column of x].
Axes: Y X grid, K corner, P point, T checkpoint.
"""

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from analysis import geometry, measure
from analysis.figures import planes as drawing
from analysis.figures.planes import Panel
from analysis.geometry import Plane
from analysis.part import Arrays, Blocks, Checks, Part, Settings, stacked
from analysis.runs import Study
from kdjax import intervals, keys
from kdjax.runtime import progress
from kdjax.train.steps import Variables

if TYPE_CHECKING:
  from matplotlib.figure import Figure

PAPER_CORNERS = ('teacher 0', 'student', 'initial')
ENSEMBLE_CORNERS = ('teacher 0', 'student', 'teacher 1', 'sibling', 'independent', 'initial')
MARGIN = 0.25  # around the corners, as a fraction of the longer side of their box
CONTINUOUS = ('distillation/loss', 'distillation/predictive_kl', 'test/predictive_kl')
TOLERANCE = 1e-3  # of a corner's values, relative where they are above 1; float32 gives under 1e-6
ORTHONORMAL = 1e-6


# Computing.


def build_point(shared: dict[str, Any], xy_2: jax.Array) -> Variables:
  """The variables at a point of shared['plane']; traced by `Measure.at`."""
  params = geometry.plane_point(shared['plane'], xy_2)
  return {'params': params, 'batch_stats': shared['batch_stats']}


def compute_plane(study: Study, settings: Settings, blocks: Blocks, checks: Checks) -> Arrays:
  """The plane through teacher 0, the initial and the final student, with the kept checkpoints."""
  return _compute_corners(study, settings, blocks, checks, PAPER_CORNERS)


def compute_ensemble_plane(
  study: Study, settings: Settings, blocks: Blocks, checks: Checks
) -> Arrays:
  """The plane through settings.corners, by default the first three that there are of an order."""
  there = set(study.names)
  names = settings.corners or [name for name in ENSEMBLE_CORNERS if name in there][:3]
  return _compute_corners(study, settings, blocks, checks, names)


def misnamed_corners(names: list[str], settings: Settings) -> list[str]:
  """What is wrong with settings.corners, given the networks that there are."""
  corners = settings.corners
  if corners and (len(set(corners)) != 3 or len(corners) != 3 or not set(corners) <= set(names)):
    return [f'--corners = {",".join(corners)}: allowed: three different ones of {", ".join(names)}']
  return []


def compute_random_plane(
  study: Study, settings: Settings, blocks: Blocks, checks: Checks
) -> Arrays:
  """Around the final student, along two filter-normalised directions, up to ±1 filter norm."""
  final = study.student()
  rng = keys.numpy_rng(study.seed, 'analysis/random_plane')
  plane = Plane(final['params'], *geometry.random_directions(final['params'], rng))
  xs = np.linspace(-1, 1, settings.random_resolution)
  measured = measure.Measure(study, settings.num_examples)
  shared = {'plane': plane, 'batch_stats': final['batch_stats']}
  return (
    measured.context
    | _check_corners(study, measured, shared, {'student': final}, np.zeros((1, 2)), checks)
    | _surface(study, measured, shared, xs, xs, blocks)
  )


def _compute_corners(
  study: Study, settings: Settings, blocks: Blocks, checks: Checks, names: Sequence[str]
) -> Arrays:
  """The plane through three of `study.names`; where two are ends of the student's path, with that."""
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
    | _surface(study, measured, shared, xs, ys, blocks)
  )


def places(plane: Plane, points: Sequence[Variables], checks: Checks) -> np.ndarray:
  """places_K2 of points that lie on a plane, which is checked."""
  places_K3 = np.array([geometry.project(plane, point['params']) for point in points])
  size = np.abs(places_K3[:, :2]).max()
  checks.at_most('height of the corners', places_K3[:, 2].max() / size, TOLERANCE)
  return places_K3[:, :2]


def _path(study: Study, plane: Plane) -> Arrays:
  """The kept checkpoints on the plane, and their distances from it."""
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
  """Measures the corners as they are, and checks that the plane has the same values at their places."""
  direct = [measured.variables(c, reestimate=True) for c in corners.values()]
  direct = {key: np.concatenate([values[key] for values in direct]) for key in direct[0]}
  on_plane = measured.at(build_point, shared, places_K2, reestimate=True)
  for key in CONTINUOUS:
    expected_K, found_K = direct[key].mean(axis=1), on_plane[key].mean(axis=1)
    deviation_K = np.abs(found_K - expected_K) / np.maximum(1, np.abs(expected_K))
    checks.at_most(f'corners reproduced: {key}', deviation_K.max(), TOLERANCE)
  summary = measure.summary(direct, study.seed)
  return {
    'corners/names': np.array(list(corners)),
    'corners/xy': places_K2,
  } | {f'corners/{key}': values_K for key, values_K in summary.items()}


def _surface(
  study: Study,
  measured: measure.Measure,
  shared: dict[str, Any],
  xs: np.ndarray,
  ys: np.ndarray,
  blocks: Blocks,
) -> Arrays:
  """All measures on the grid, kept row by row. BatchNorm's statistics are those of each point."""

  def measure_row(row: int) -> Arrays:
    coords_P2 = geometry.grid_coords(xs, ys[row : row + 1])
    report = lambda done, text: show(row * len(xs) + done, text)
    values = measured.at(build_point, shared, coords_P2, reestimate=True, show=report)
    return measure.summary(values, study.seed)

  with progress.bar('plane', len(xs) * len(ys), 'points') as show:
    rows = [blocks.get(f'row {row}', partial(measure_row, row)) for row in range(len(ys))]
  return {'xs': xs, 'ys': ys} | stacked(rows)


def start_unavailable(study: Study) -> str | None:
  """Why there is no teacher or no initial student to draw."""
  if reason := study.lacks_teacher:
    return reason
  if not study.initial_is_kept:
    return 'the initial student was not kept: config.student.keep_checkpoints lacks 0.0'
  return None


def plane_unavailable(study: Study) -> str | None:
  """Why there is no plane through teacher, initial and final student."""
  if reason := start_unavailable(study):
    return reason
  section = study.experiment.config.student
  if section.init_lambda == 1 and section.init_from == 'final':
    return 'the student began at the teacher (init_lambda = 1): there are two points, and no third'
  return None


def ensemble_plane_unavailable(study: Study) -> str | None:
  """Why no plane but that of `plane` goes through three networks of the student's architecture."""
  if len(study.names) < 3 or set(study.names) == set(PAPER_CORNERS):
    missing = (
      study.lacks_teacher
      or 'the teacher has one member, and there is no sibling and no independent student'
    )
    return f'{missing}: a third point is missing'
  return None


# Drawing.


def draw_plane(arrays: Arrays) -> 'Figure':
  """All measures; the distillation data on the left, the test set on the right."""
  unit = str(arrays['loss_unit'])
  panels = [
    Panel('distillation/loss', 'distillation loss', unit),
    Panel('test/accuracy', 'accuracy, test', '%', percent=True),
    Panel('distillation/predictive_kl', 'KL, distillation', 'nats'),
    Panel('test/predictive_kl', 'KL, test', 'nats'),
    Panel('distillation/top1_agreement', 'agreement, distillation', '%', percent=True),
    Panel('test/top1_agreement', 'agreement, test', '%', percent=True),
  ]
  return drawing.draw(arrays, panels, ('distance in weight space',) * 2)


def draw_random_plane(arrays: Arrays) -> 'Figure':
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
    'The plane of weights through a teacher, the initial and the final student (paper, Figure 6c). '
    f'{_distances(arrays)} {_at_corners(arrays)} {_path_caption(arrays)} {_how(arrays)}'
  )


def _path_caption(arrays: Arrays) -> str:
  height_T = arrays['path/height']
  off = int(drawing.is_off_plane(arrays).sum())
  return (
    'The line joins the kept checkpoints; the number beside each is its distance from the plane. '
    f'{off} of {len(height_T)} lie off it (white: by more than half a step of the grid, at most '
    f'{height_T.max():.3g}), so that the colours beneath are not theirs.'
  )


def caption_ensemble_plane(arrays: Arrays) -> str:
  path = f'{_path_caption(arrays)} ' if 'path/xy' in arrays else ''
  return (
    f'The plane of weights through {", ".join(_labels(arrays))}. {_distances(arrays)} '
    f'{_at_corners(arrays)} {path}{_how(arrays)}'
  )


def caption_random_plane(arrays: Arrays) -> str:
  kl_YX = arrays['test/predictive_kl']
  return (
    'Around the final student, along two random directions whose filters have the norms of the '
    f"student's (Li et al. 2018). {_at_corners(arrays)} On the plane it lies between "
    f'{np.nanmin(kl_YX):.3g} and {np.nanmax(kl_YX):.3g} nats. {_how(arrays)}'
  )


def _labels(arrays: Arrays) -> list[str]:
  return [look.label for look in drawing.looks(arrays['corners/names'])]


def _distances(arrays: Arrays) -> str:
  labels, xy_K2 = _labels(arrays), arrays['corners/xy']
  pairs = [
    f'{labels[i]} to {labels[j]} {np.linalg.norm(xy_K2[i] - xy_K2[j]):.3g}'
    for i, j in ((0, 1), (0, 2), (1, 2))
  ]
  return f'Distances: {", ".join(pairs)}.'


def _at_corners(arrays: Arrays) -> str:
  """KL on the test set, measured at the corners themselves."""
  texts = [
    f'{intervals.text(arrays, "corners/test/predictive_kl", place)} at {label}'
    for place, label in enumerate(_labels(arrays))
  ]
  return f'KL from {_teacher(arrays)} on the test set, in nats: {", ".join(texts)}.'


def _teacher(arrays: Arrays) -> str:
  members = int(arrays['num_members'])
  return f'the ensemble of {members} teachers' if members > 1 else 'the teacher'


def _how(arrays: Arrays) -> str:
  """On what, with which statistics and which errors it was measured."""
  distillation, test = arrays['num_examples']
  text = (
    f'Measured on {distillation} distillation and {test} test examples, the same at every point; '
    'intervals are 95 % bootstraps over examples. The distillation loss is the one that the student '
    'minimises, less what the teacher itself would have: 0 is a perfect match.'
  )
  if arrays['reestimated']:
    text += (
      " BatchNorm's statistics are those of the distillation examples at every point, re-estimated for the "
      'test set, so that even a teacher at its own weights is not exactly itself.'
    )
  return text


PARTS = (
  Part(
    name='plane',
    title='Plane through teacher, initial and final student',
    answers='do student and teacher lie in one basin of the plane through both (paper, Figure 6c)?',
    reads=('num_examples', 'resolution'),
    compute=compute_plane,
    draw=draw_plane,
    caption=caption_plane,
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
    version=2,
  ),
  Part(
    name='ensemble_plane',
    compares_others=True,
    title='Plane through an ensemble, or siblings, and the student',
    answers='how does the student lie to two teachers, or to its siblings?',
    reads=('num_examples', 'resolution', 'corners'),
    compute=compute_ensemble_plane,
    draw=draw_plane,
    caption=caption_ensemble_plane,
    unavailable=ensemble_plane_unavailable,
    misnamed=misnamed_corners,
    version=3,
  ),
)
