"""Students that start between random weights and the teacher (paper, Figure 6b and c).

Students that the workdir lacks are trained by the student's recipe on its distillation data.
Axes: L λ, S student of one λ, Y X grid.
"""

from collections.abc import Iterable

import numpy as np

from kdjax import config as config_lib
from kdjax import intervals
from kdjax.stages import student
from kdjax.stages.experiment import Experiment
from kdjax.train.steps import Variables

from .. import basins, geometry, paths, surface
from ..decomposition import MIN_STUDENTS
from ..estimates import named
from ..figures import lambdas as drawing
from ..measure import Measure
from ..part import Arrays, Blocks, Checks, Part, Settings, Training, stacked
from ..runs import Study
from . import planes

MARGIN = 0.15  # around a plane's corners, as a fraction of the longer side of their box


def compute_lambdas(study: Study, settings: Settings, blocks: Blocks, checks: Checks) -> Arrays:
  """Trains students that start at λ teacher + (1 − λ) random, and measures them and their planes.

  If the workdir has at least MIN_STUDENTS students of a λ that differ only in seed, 'final/...' is their
  mean with Student's t interval; otherwise it is that of one student, with a bootstrap over examples.
  'students/...' of shape (L, S) has all students, padded with NaN.

  Each plane goes through the teacher, the random weights and the final student. For λ < 1 this is the plane
  through teacher, initial and final student, since the initial student lies between the teacher and the
  random weights. The definition also covers λ = 1, where the initial student is the teacher. All planes
  have the same first axis and the same grid.
  """
  lambdas = sorted(set(settings.lambdas))
  runs = {value: basins.with_lambda(study.experiment, value) for value in lambdas}
  for value, run in runs.items():
    student.named(_training_name(value)).run(run)
  measured = Measure(study, settings.num_examples)
  trained = [
    _fidelity(measured, [run, *_more_students(study, run)], study.seed) for run in runs.values()
  ]
  num_students_L = np.array([len(of['students/test/loss']) for of in trained])
  for of in trained:
    missing = (0, num_students_L.max() - len(of['students/test/loss']))
    of |= {k: np.pad(x, missing, constant_values=np.nan) for k, x in of.items() if x.ndim}
  return (
    {'lambdas': np.array(lambdas), 'num_students': num_students_L}
    | measured.context
    | stacked(trained)
    | _barriers(study, settings, measured, runs.values())
    | _planes(study, settings, measured, runs, blocks, checks)
  )


def _training_name(value: float) -> str:
  return f'student of λ = {value:g}'


def trainings(study: Study, settings: Settings) -> list[Training]:
  num_steps = study.experiment.student.plan.num_steps
  found = []
  for value in sorted(set(settings.lambdas)):
    done = basins.is_trained(basins.with_lambda(study.experiment, value).folders.student)
    found.append(Training(_training_name(value), 0 if done else num_steps))
  return found


def _barriers(
  study: Study, settings: Settings, measured: Measure, runs: Iterable[Experiment]
) -> Arrays:
  """'barrier/<statistics>/<key>' of shape (L,) on the line from teacher 0 to the student of each λ.

  <statistics> is 'raw' for interpolated BatchNorm statistics or 're-estimated'; models without BatchNorm
  have only 'raw'.
  """
  ts_T = np.linspace(0, 1, settings.path_points)
  teacher, found = study.member(0), []
  statistics = {'raw': False} | ({'re-estimated': True} if teacher['batch_stats'] else {})
  for run in runs:
    line = teacher, student.load(run)
    of_run = {}
    for name, reestimate in statistics.items():
      values = measured.at(paths.line_point, line, ts_T[:, None], reestimate)
      barriers = basins.barriers_of([values], ts_T, study.seed)
      of_run |= {
        f'barrier/{name}/{key}': x for key, x in barriers.items() if not key.endswith('/pairs')
      }
    found.append(of_run)
  return stacked(found)


def _more_students(study: Study, run: Experiment) -> list[Experiment]:
  """Students of the workdir that differ from one only in seed; empty if too few for an interval."""
  found = study.reseeded(run)
  return found if 1 + len(found) >= MIN_STUDENTS else []


def _students_of_lambdas(study: Study, settings: Settings) -> dict[str, list[str]]:
  """Fingerprints of the further students of each λ."""
  found = {}
  for value in sorted(set(settings.lambdas)):
    others = _more_students(study, basins.with_lambda(study.experiment, value))
    if others:
      found[repr(value)] = [run.folders.student.name for run in others]
  return found


def _fidelity(measured: Measure, runs: list[Experiment], seed: int) -> Arrays:
  """'final/<key>' with its interval, and 'students/<key>' of shape (S,), for one λ."""
  values = [measured.variables(student.load(run)) for run in runs]
  found = {}
  for key, own_1N in values[0].items():
    means_S = np.array([of[key].mean() if of[key].size else np.nan for of in values], np.float64)
    found[f'students/{key}'] = means_S
    if len(runs) > 1:
      of_mean = intervals.of_mean(means_S)
    else:
      summary = surface.summary({key: own_1N}, seed)
      of_mean = [summary[f'{key}{end}'][0] for end in intervals.ENDS]
    found |= named(f'final/{key}', of_mean)
  return found


def _planes(
  study: Study,
  settings: Settings,
  measured: Measure,
  runs: dict[float, Experiment],
  blocks: Blocks,
  checks: Checks,
) -> Arrays:
  """The surfaces of all λ on one grid; values_LYX."""
  seed = config_lib.student_seed(study.experiment.config)
  random = study.experiment.student.init_variables(seed)
  teacher, finals = study.member(0), [student.load(run) for run in runs.values()]
  others = [*finals, study.student()]
  planes_L = [_plane(teacher, random, final, others, checks) for final in finals]
  places_L = [
    planes.places(plane, [teacher, random, student.load(run, 0), final], checks)
    for plane, run, final in zip(planes_L, runs.values(), finals, strict=True)
  ]
  xs, ys = geometry.grid(np.concatenate(places_L), settings.lambda_resolution, MARGIN)
  surfaces = []
  for value, plane, final, places in zip(runs, planes_L, finals, places_L, strict=True):
    shared = {'plane': plane, 'batch_stats': final['batch_stats']}
    there = measured.at(planes.build_point, shared, places[-1:], reestimate=True)
    direct = measured.variables(final, reestimate=True)
    planes.check_point(checks, 'students on planes', there, 0, direct)
    name = f'plane {value!r}, row'
    surfaces.append(planes.on_grid(study, measured, shared, xs, ys, blocks, name))
  return {
    'xs': xs,
    'ys': ys,
    'places/names': np.array(['teacher', 'random', 'initial', 'student']),
    'places/xy': np.array(places_L),
  } | {f'plane/{key}': x for key, x in stacked(surfaces).items()}


def _plane(
  teacher: Variables, random: Variables, final: Variables, others: list[Variables], checks: Checks
) -> geometry.Plane:
  """The plane through teacher, random weights and final student.

  A student that never left the teacher, which is possible for λ = 1 with one member, spans no plane. The one
  of `others` that is farthest from the teacher then replaces it.
  """
  far = lambda variables: geometry.distance(variables['params'], teacher['params'])
  if far(final) <= geometry.RESOLVED * geometry.norm(teacher['params']):
    final = max(others, key=far)
  plane = geometry.plane_through(*(point['params'] for point in (teacher, random, final)))
  checks.at_most('orthonormality', geometry.orthonormality_error(plane), planes.ORTHONORMAL)
  return plane


PARTS = (
  Part(
    name='lambdas',
    title='Students that start between random weights and the teacher',
    answers='how close to the teacher must a student start to match it and to share its basin?',
    training='a student for each of lambdas that the workdir lacks',
    reads=('num_examples', 'lambdas', 'lambda_resolution', 'path_points'),
    compute=compute_lambdas,
    draw=drawing.draw_lambdas,
    caption=drawing.caption_lambdas,
    table=drawing.table_lambdas,
    trains=trainings,
    unavailable=planes.start_unavailable,
    depends=_students_of_lambdas,
    version=3,
  ),
)
