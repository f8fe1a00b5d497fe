"""Planes of a network that is a known function of its weights."""

import dataclasses
import types

import jax
import numpy as np
import pytest
from etils import epath

from analysis import geometry, measure, runs, surface
from analysis.figures import planes as drawing
from analysis.part import Blocks, CheckError, Checks, Settings
from analysis.parts import planes

SETTINGS = Settings(resolution=13, random_resolution=5)
PARTS = {part.name: part for part in planes.PARTS}
OFFSETS_N = np.array([-0.5, 0.0, 0.5], np.float32)  # between examples; their mean is 0


def weights(*w):
  return {
    'params': {'kernel': np.array([w], np.float32).T},
    'batch_stats': {'mean': np.zeros(1, np.float32)},
  }


class FakeStudy(types.SimpleNamespace):
  lacks_teacher = runs.Study.lacks_teacher


def make_study(**fields):
  """Teacher 0 at (0, 0), the student at (8, 0) and its start at (3, 4) of the first two weights."""
  students = {0: weights(3, 4, 0, 0), 7: weights(5, 2, 3, 0), 9: weights(8, 0, 0, 0)}
  section = types.SimpleNamespace(
    loss='cross_entropy', alpha=0.0, init_lambda=0.0, init_from='final'
  )
  study = FakeStudy(
    seed=0,
    num_members=2,
    steps=[0, 7, 9],
    siblings=[],
    same_architecture=True,
    has_teachers=True,
    initial_is_kept=True,
    student=lambda step=9: students[step],
  )
  vars(study).update(fields)
  teacher = types.SimpleNamespace(num_members=study.num_members, source='')
  config = types.SimpleNamespace(student=section, teacher=teacher)
  study.experiment = types.SimpleNamespace(config=config)
  points = {'student': students[9]}
  if study.initial_is_kept:
    points['initial'] = students[0]
  if study.same_architecture and study.has_teachers:
    members = weights(0, 0, 0, 0), weights(2, 6, 0, 0)
    points |= {f'teacher {i}': members[i] for i in range(study.num_members)}
  if study.siblings:
    points['sibling'] = weights(1, 5, 0, 0)
  study.names, study.point = list(points), points.__getitem__
  return study


def weights_of(variables, inputs):
  return variables['params']['kernel'][:, 0][None] + 0 * inputs[:, None]


def values_of(w_NW, batch):
  kl_N = (w_NW**2).sum(axis=1)
  values = {'loss': 100 + w_NW[:, 0] + 10 * w_NW[:, 1] + batch['inputs'], 'predictive_kl': kl_N}
  return values | {'top1_agreement': 1 / (1 + kl_N), 'accuracy': 0.5 / (1 + kl_N), 'nll': kl_N}


class FakeMeasure(surface.Surface):
  """loss = 100 + w0 + 10 w1, and KL = |w|², which is exactly 0 at teacher 0."""

  points = 0
  context = measure.Measure.context
  stop_at = None  # raises after this many points

  def __init__(self, study, num_examples):
    assert num_examples == SETTINGS.num_examples
    self._run = study.experiment
    sets = {name: {'inputs': OFFSETS_N} for name in measure.SETS}
    super().__init__(weights_of, values_of, sets, in_batch=lambda *x: (weights_of(*x), {}))

  def at(self, build, shared, coordinates_PK, reestimate=False, show=None):
    assert reestimate
    cls = type(self)
    cls.points += len(coordinates_PK)
    if cls.stop_at is not None and cls.points > cls.stop_at:
      raise KeyboardInterrupt
    return super().at(build, shared, coordinates_PK, reestimate, show)


def compute(name, folder, study=None, checks=None, measured=FakeMeasure, **settings):
  blocks, checks = Blocks(epath.Path(folder) / name), Checks() if checks is None else checks
  settings = dataclasses.replace(SETTINGS, **settings)
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(measure, 'Measure', measured)
    return PARTS[name].compute(study or make_study(), settings, blocks, checks)


@pytest.fixture(scope='module')
def checks():
  """The checks that `results` makes, by part."""
  return {name: Checks() for name in PARTS}


@pytest.fixture(scope='module')
def results(checks, tmp_path_factory):
  """The arrays of all parts."""
  folder = tmp_path_factory.mktemp('planes')
  return {name: compute(name, folder, checks=checks[name]) for name in PARTS}


@pytest.fixture(scope='module')
def figure(results):
  """The figure of the plane."""
  return PARTS['plane'].draw(results['plane'])


# The plane through teacher, student and initial student.


def test_the_grid_has_the_value_of_x_and_y_at_row_y_and_column_x(results):
  arrays = results['plane']
  xs, ys = arrays['xs'], arrays['ys']
  np.testing.assert_allclose(xs, np.arange(-2, 10.5))
  np.testing.assert_allclose(ys, np.arange(-2, 6.5))
  loss_YX = arrays['distillation/loss']
  assert loss_YX.shape == (9, 13)
  np.testing.assert_allclose(loss_YX, 100 + xs[None, :] + 10 * ys[:, None], atol=1e-4)
  np.testing.assert_allclose(
    arrays['test/predictive_kl'], xs[None, :] ** 2 + ys[:, None] ** 2, atol=1e-4
  )
  low_YX, high_YX = arrays['distillation/loss/low'], arrays['distillation/loss/high']
  assert (low_YX < loss_YX).all() and (loss_YX < high_YX).all()
  np.testing.assert_allclose(high_YX - low_YX, (high_YX - low_YX)[0, 0], atol=1e-4)


def test_corners_are_measured_at_their_own_weights_and_have_their_coordinates(results, checks):
  arrays, values = results['plane'], checks['plane'].values
  assert arrays['corners/names'].tolist() == ['teacher 0', 'student', 'initial']
  np.testing.assert_allclose(arrays['corners/xy'], [[0, 0], [8, 0], [3, 4]], atol=1e-6)
  np.testing.assert_allclose(arrays['corners/distillation/loss'], [100, 108, 143], atol=1e-6)
  np.testing.assert_allclose(arrays['corners/test/predictive_kl'], [0, 64, 25], atol=1e-6)
  assert {'orthonormality', 'corners reproduced: test/predictive_kl'} <= values.keys()
  assert max(value for value, _ in values.values()) < 1e-5
  # Checkpoints have their height above the plane.
  assert arrays['path/steps'].tolist() == [0, 7, 9]
  np.testing.assert_allclose(arrays['path/xy'], [[3, 4], [5, 2], [8, 0]], atol=1e-6)
  np.testing.assert_allclose(arrays['path/height'], [0, 3, 0], atol=1e-6)
  np.testing.assert_array_equal(drawing.is_off_plane(arrays), [False, True, False])


@pytest.mark.parametrize(
  'name, wrong, message',
  [
    ('plane_point', lambda right: lambda plane, xy: right(plane, xy[::-1]), 'corners reproduced'),
    ('plane_point', lambda right: lambda plane, xy: right(plane, -xy), 'corners reproduced'),
    ('plane_point', lambda right: lambda plane, xy: right(plane, 1.01 * xy), 'corners reproduced'),
    ('plane_through', lambda right: lambda *corners: tilted(right(*corners)), 'orthonormality'),
  ],
)
def test_a_wrong_plane_fails_a_check(name, wrong, message, tmp_path, monkeypatch):
  monkeypatch.setattr(geometry, name, wrong(getattr(geometry, name)))
  with pytest.raises(CheckError, match=message):
    compute('plane', tmp_path)


def tilted(plane):
  return plane._replace(second=jax.tree.map(lambda v, u: v + 1e-3 * u, plane.second, plane.first))


def test_the_grid_covers_a_path_that_leaves_the_triangle(tmp_path):
  study = make_study()
  within = study.student
  study.student = lambda step=9: weights(-4, 2, 0, 0) if step == 7 else within(step)
  arrays = compute('plane', tmp_path, study)
  np.testing.assert_allclose(arrays['xs'][[0, -1]], [-7, 11])  # 12 and a quarter on both sides


def test_a_killed_plane_continues_and_a_kl_of_zero_is_not_missing(results, tmp_path):
  whole, measured = results['plane'], type('Killed', (FakeMeasure,), {'points': 0})
  num_rows, num_columns = whole['test/predictive_kl'].shape
  row, column = np.argwhere(np.abs(whole['test/predictive_kl']) < 1e-9)[0]  # of teacher 0
  assert row < num_rows - 2  # finished when it is killed
  num_corners = 2 * 3  # each is measured itself, and on the plane
  measured.stop_at = num_corners + (num_rows - 2) * num_columns
  with pytest.raises(KeyboardInterrupt):
    compute('plane', tmp_path, measured=measured)
  measured.points, measured.stop_at = 0, None
  resumed = compute('plane', tmp_path, measured=measured)
  assert measured.points == num_corners + 2 * num_columns
  assert resumed['test/predictive_kl'][row, column] == whole['test/predictive_kl'][row, column]
  for key, values in whole.items():
    np.testing.assert_array_equal(resumed[key], values, err_msg=key)


# The other planes.


def test_the_ensemble_plane_goes_through_two_teachers_or_a_sibling(results, tmp_path):
  arrays = results['ensemble_plane']
  assert arrays['corners/names'].tolist() == ['teacher 0', 'student', 'teacher 1']
  np.testing.assert_allclose(arrays['corners/xy'], [[0, 0], [8, 0], [2, 6]], atol=1e-6)
  assert not any(key.startswith('path/') for key in arrays)
  study = make_study(num_members=1, siblings=['sister'])
  arrays = compute('ensemble_plane', tmp_path, study)
  assert arrays['corners/names'].tolist() == ['teacher 0', 'student', 'sibling']
  np.testing.assert_allclose(arrays['corners/xy'][2], [1, 5], atol=1e-6)


def test_any_three_networks_may_be_corners(tmp_path):
  study = make_study(siblings=['sister'])
  arrays = compute('ensemble_plane', tmp_path, study, corners=('teacher 1', 'sibling', 'student'))
  assert arrays['corners/names'].tolist() == ['teacher 1', 'sibling', 'student']
  np.testing.assert_allclose(arrays['corners/test/predictive_kl'], [40, 26, 64], atol=1e-4)
  first, second, third = arrays['corners/xy']
  np.testing.assert_allclose(np.linalg.norm(second - first), np.hypot(2 - 1, 6 - 5), atol=1e-5)
  np.testing.assert_allclose(np.linalg.norm(third - first), np.hypot(8 - 2, 0 - 6), atol=1e-5)
  assert 'path/xy' not in arrays
  caption = PARTS['ensemble_plane'].caption(arrays)
  assert 'through teacher 1, sibling student, student.' in caption
  looks = drawing.looks(['teacher 3', 'teacher 0', 'student'])
  assert [look.label for look in looks] == ['teacher 3', 'teacher 0', 'student']
  assert looks[0].marker != looks[1].marker


def test_a_plane_through_both_ends_of_the_training_shows_its_path(tmp_path):
  arrays = compute('ensemble_plane', tmp_path, corners=('initial', 'teacher 1', 'student'))
  np.testing.assert_allclose(arrays['path/height'], [0, 3, 0], atol=1e-5)
  assert 'kept checkpoints' in PARTS['ensemble_plane'].caption(arrays)


@pytest.mark.parametrize(
  'corners',
  [('student', 'initial'), ('student', 'student', 'initial'), ('student', 'initial', 'x')],
)
def test_unknown_or_repeated_corners_are_refused(corners):
  misnamed, names = PARTS['ensemble_plane'].misnamed, ['initial', 'student', 'teacher 0']
  (message,) = misnamed(names, Settings(corners=corners))
  assert message == (
    f'--corners = {",".join(corners)}: allowed: three different ones of initial, student, teacher 0'
  )
  assert misnamed(names, Settings(corners=tuple(names))) == misnamed(names, Settings()) == []


def test_the_random_plane_is_round_around_the_student_in_filter_norms(results):
  """KL = |w|² = 64 |e + x u + y v|² with unit u, v and e: the one filter has the norm 8."""
  arrays = results['random_plane']
  xs = arrays['xs']
  np.testing.assert_allclose(xs, [-1, -0.5, 0, 0.5, 1])
  np.testing.assert_array_equal(arrays['ys'], xs)
  kl_YX = arrays['test/predictive_kl']
  np.testing.assert_allclose(kl_YX[2, 2], 64, rtol=1e-6)
  # Terms that are linear in x and y cancel in the mean over opposite points.
  round_YX = (kl_YX + kl_YX[::-1, ::-1]) / 2
  expected_YX = 64 * (1 + xs[None, :] ** 2 + xs[:, None] ** 2)
  np.testing.assert_allclose(round_YX, expected_YX, rtol=1e-5)


# Planes that cannot be computed.


def test_a_missing_point_is_named():
  for name, fields, reason in (
    ('plane', {'same_architecture': False}, 'architecture'),
    ('plane', {'has_teachers': False}, 'checkpoints are gone'),
    ('plane', {'initial_is_kept': False}, 'keep_checkpoints'),
    ('ensemble_plane', {'same_architecture': False}, 'architecture'),
    ('ensemble_plane', {'has_teachers': False}, 'checkpoints are gone'),
    ('ensemble_plane', {'num_members': 1}, 'no sibling'),
  ):
    assert reason in PARTS[name].unavailable(make_study(**fields))
  assert all(part.unavailable(make_study()) is None for part in planes.PARTS)
  assert PARTS['ensemble_plane'].unavailable(make_study(num_members=1, siblings=['x'])) is None
  gone = make_study(same_architecture=False, has_teachers=False, initial_is_kept=False)
  assert PARTS['random_plane'].unavailable(gone) is None
  study = make_study()
  study.experiment.config.student.init_lambda = 1.0  # the student started at the teacher
  assert 'init_lambda' in PARTS['plane'].unavailable(study)
  study.experiment.config.student.init_from = 'initial'
  assert PARTS['plane'].unavailable(study) is None


# Figures and captions.


def test_contours_lie_where_the_values_are_and_axes_are_true(figure):
  axes = figure.axes[0]
  assert axes.get_aspect() == 1
  filled = next(c for c in axes.collections if hasattr(c, 'levels'))
  # The values are 100 + x + 10 y, for x in [-2, 10] and y in [-2, 6]
  lowest, highest = (filled.get_paths()[i].vertices for i in (0, -1))
  np.testing.assert_allclose(highest[:, 1].min(), (filled.levels[-2] - 110) / 10, atol=1e-4)
  np.testing.assert_allclose(lowest[:, 1].max(), (filled.levels[1] - 98) / 10, atol=1e-4)


def test_the_figure_shows_corners_checkpoints_and_heights(figure):
  panels = figure.axes[:6]
  for axes in panels:
    points = {line.get_label(): np.ravel(line.get_xydata()) for line in axes.lines}
    np.testing.assert_allclose(points['teacher 0'], [0, 0], atol=1e-6)
    np.testing.assert_allclose(points['student'], [8, 0], atol=1e-6)
    np.testing.assert_allclose(points['initial student'], [3, 4], atol=1e-6)
    np.testing.assert_allclose(points['checkpoint off the plane'], [5, 2], atol=1e-6)
    assert 'checkpoint (its distance)' not in points
  assert [text.get_text() for text in panels[0].texts] == ['3']
  titles = [axes.get_title(loc='left') for axes in panels]
  assert titles[0].endswith('a}$  distillation loss (nats)')
  assert titles[-1].endswith('f}$  agreement, test (%)')


@pytest.mark.parametrize('name', PARTS)
def test_every_part_draws_and_describes_itself(name, results, figure):
  arrays = results[name]
  (figure if name == 'plane' else PARTS[name].draw(arrays)).canvas.draw()
  caption = PARTS[name].caption(arrays)
  points = f'{len(arrays["xs"])} × {len(arrays["ys"])} points, interpolated linearly'
  for text in (points, 'n = 3 distillation, 3 test', 're-estimated', '0 at a perfect match'):
    assert text in caption
  rows = {row[0]: row[1:] for row in PARTS[name].table(arrays)[1:]}
  assert rows['student'][1] == '64 [64, 64]'
  if name == 'plane':
    assert rows['teacher 0'][3] == 'student 8, initial student 5'


def levels_of(*values, log=True):
  return drawing.scale_of(np.ma.masked_invalid(np.array([values])), log=log)


def test_a_wide_scale_is_logarithmic_from_the_smallest_positive_value():
  levels, norm, floored = levels_of(0.0, 0.01, 10.0, np.inf)
  np.testing.assert_allclose(levels[[0, -1]], [0.01, 10])
  np.testing.assert_allclose(np.diff(np.log(levels)), np.log(1000) / 11)
  assert floored and norm.vmin == levels[0]
  levels, _, floored = levels_of(-1e-9, 1e-9, 0.1, 10.0)  # rounding errors get no colours
  np.testing.assert_allclose(levels[[0, -1]], [1e-4, 10])
  assert floored


@pytest.mark.parametrize(
  'values, log, ends',
  [
    ((2.0, 5.0), True, (2, 5)),
    ((0.01, 1.0), False, (0.01, 1)),
    ((0.0, 0.0), True, (-0.5, 0.5)),
    ((7.0, 7.0), False, (6.5, 7.5)),
    ((-2.0, 0.1, 10.0), True, (-2, 10)),  # losses below the teacher's are drawn
  ],
)
def test_other_scales_are_linear(values, log, ends):
  levels, norm, floored = levels_of(*values, log=log)
  np.testing.assert_allclose(levels, np.linspace(*ends, len(levels)))
  assert norm is None and not floored


def test_labels_move_apart_around_their_mean():
  np.testing.assert_allclose(drawing._spread(np.array([1.5, 1.0, 3.5]), 2), [2, 0, 4])
  np.testing.assert_allclose(drawing._spread(np.array([3.0, 0.0]), 2), [3, 0])
