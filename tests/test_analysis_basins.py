"""Forks, returns and students by λ: what they train, measure and report."""

import functools
from functools import partial
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import copied, tiny_run
from etils import epath

from analysis import basins, geometry, measure, paths, runs
from analysis.curvature import MeanLoss
from analysis.figures import basins as drawing
from analysis.figures import style
from analysis.part import Blocks, Checks
from analysis.parts import basins as basins_part
from analysis.parts import lambdas
from kdjax import config as config_lib
from kdjax import intervals
from kdjax.errors import DivergedError, UserError
from kdjax.predictions.teachers import combine
from kdjax.stages import predictions, student
from kdjax.train.checkpoint import digest

FORKS, RETURNS = basins_part.PARTS
(LAMBDAS,) = lambdas.PARTS
SMALL = {
  'num_examples': 60,
  'path_points': 3,
  'num_forks': 2,
  'fork_seeds': 1,
  'lambdas': (1.0, 0.0),
  'lambda_resolution': 3,
  'curvature_examples': 40,
  'lanczos_steps': 25,
  'return_radii': (0.3,),
  'return_epochs': 0.5,
}


@pytest.fixture(scope='module')
def study(finished, tmp_path_factory) -> runs.Study:
  return runs.Study(copied(finished, tmp_path_factory.mktemp('basins')))


@pytest.fixture(scope='module')
def distil(study):
  """The student's own distiller, compiled once for this file."""
  return basins.distiller(study.experiment)


@pytest.fixture(scope='module', autouse=True)
def compiled_once(study, distil):
  """All parts share the distiller of the student's plan and the measures of this one study."""
  distiller, make = basins.distiller, functools.cache(partial(measure.Measure, study))
  own = study.experiment.student.plan
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(
      basins, 'distiller', lambda run: distil if run.student.plan == own else distiller(run)
    )
    for module in (measure, basins_part, lambdas):
      patch.setattr(module, 'Measure', lambda _, *args: make(*args))
    yield


def settings_of(part, **others):
  """Only the settings that a part declares."""
  return SimpleNamespace(**{name: SMALL[name] for name in part.reads} | others)


def computed(part, study, tmp_path, **others):
  """The arrays of a part, and its figure, which is not drawn yet."""
  checks = Checks()
  arrays = part.compute(study, settings_of(part, **others), Blocks(tmp_path), checks)
  assert checks.values
  with style.drawing(part.name):
    figure = part.draw(arrays)
  rows = part.table(arrays)
  assert len({len(row) for row in rows}) == 1 and 'nan' not in str(rows)
  return arrays, figure


def found_by(part, study, tmp_path):
  """The arrays of a part, whose figure and caption are made too."""
  arrays, figure = computed(part, study, tmp_path)
  figure.canvas.draw()
  assert part.caption(arrays).endswith('.')
  return arrays


def trained_by(part, study):
  """The name and the steps of each training that the part would do."""
  return [(of.name, of.num_steps) for of in part.trains(study, settings_of(part))]


def raising(error):
  """A distiller whose training fails."""

  def fit(*_):
    raise error

  return SimpleNamespace(fit=fit)


DIVERGING = raising(DivergedError('student: the loss is nan'))


def test_a_continuation_in_the_same_order_ends_where_the_student_does(study, distil):
  """The optimizer, schedule, views and order continue as in the student's training."""
  run, (_, middle, last) = study.experiment, study.steps
  assert 0 < middle < last
  own, other = config_lib.student_seed(run.config), basins.order_seed(run, 0)
  assert len({own, other, basins.order_seed(run, 1), basins.order_seed(run, 2)}) == 4

  def continued(name, seed, distil=distil):
    return digest(basins.continued(run, distil, study.folder / name, middle, seed, 'fork'))

  assert continued('same', own) == digest(study.student())
  end = continued('other', other)
  assert end != digest(study.student())
  assert continued('other', other, None) == end  # it is not trained again
  with pytest.raises(KeyboardInterrupt):
    continued('killed', other, raising(KeyboardInterrupt))
  assert continued('killed', other) == end


def test_forks_are_spread_over_the_kept_steps():
  assert basins.fork_steps([0, 67, 168, 337, 506, 674], 4) == [0, 67, 337, 506]
  assert basins.fork_steps([0, 17, 34], 4) == [0, 17]
  assert basins.fork_steps([0, 17, 34], 1) == [0]


def test_barriers_of_several_paths():
  ts_T = np.array([0, 0.5, 1])
  straight, bump = [1.0, 2.0, 3.0], [1.0, 4.0, 3.0]
  values_PTN = np.repeat(np.array([straight, bump])[..., None], 4, axis=-1)
  found = paths.mean_barriers(values_PTN, ts_T, seed=0)
  np.testing.assert_allclose(found['pairs'], [0, 2])
  np.testing.assert_allclose([found[''], found['low'], found['high']], 1)  # examples do not differ
  accuracy = {'test/accuracy': np.array([[1, 1], [0, 1], [1.0, 1]])}
  found = basins.barriers_of([accuracy], ts_T, seed=0)
  np.testing.assert_allclose(found['test/accuracy'], 0.5)  # falls by a half
  assert found['test/accuracy/low'] == 0
  assert found['test/accuracy/high'] == 1
  for no_path in (np.full((2, 3, 4), np.nan), np.zeros((2, 3, 0))):
    nothing = paths.mean_barriers(no_path, ts_T, seed=0)
    assert np.isnan(nothing['']) and np.isnan(nothing['pairs']).all()
  # A missing path is left out of the mean; a NaN on a path makes the mean NaN.
  values_PTN[0] = np.nan
  found = paths.mean_barriers(values_PTN, ts_T, seed=0)
  np.testing.assert_allclose([found[''], found['pairs'][1]], 2)
  assert np.isnan(found['pairs'][0])
  values_PTN[0] = 0
  values_PTN[0, 1, 0] = np.nan
  assert np.isnan(paths.mean_barriers(values_PTN, ts_T, seed=0)[''])


@pytest.mark.parametrize(
  ('low', 'high', 'answer'),
  [
    (0.001, 0.019, 'yes'),
    (0.0087, 0.0263, 'cannot be told'),  # of a barrier of 1.56 %
    (0.021, 0.08, 'no'),
    (np.nan, np.nan, 'cannot be told'),
  ],
)
def test_one_basin_is_decided_by_the_interval(low, high, answer):
  assert style.one_basin(low, high) == answer
  ends = {'b/low': np.array([low, 0.0]), 'b/high': np.array([high, 0.01])}
  assert drawing.verdicts(ends, 'b') == [answer, 'yes']


def test_the_first_stable_fork_is_the_one_after_the_last_that_is_not():
  yes, no, open_ = 'yes', 'no', 'cannot be told'
  assert drawing.stable_from([no, yes, open_, yes, yes]) == 3
  assert drawing.stable_from([yes, yes]) == 0
  assert drawing.stable_from([yes, open_]) is None


def test_a_shortened_schedule_is_the_whole_one_compressed(tmp_path):
  run = tiny_run(tmp_path, student__warmup_epochs=1.92)  # 8 of 34 steps
  short = basins.shortened(run, 4.08)  # 17
  assert (run.student.plan.num_steps, short.student.plan.num_steps) == (34, 17)
  whole, half = run.student.learning_rate, short.student.learning_rate
  np.testing.assert_allclose([half(i) for i in range(18)], [whole(2 * i) for i in range(18)])
  assert run.config.student.num_epochs == 8


def test_directions_from_a_known_hessian(tmp_path):
  """The loss is ½ Σ h θ², whose eigenvectors are the axes."""
  h_P = np.array([1, 2, 3, 4, 50, 5, 6, 7, 8, 9.0], np.float32)
  kernel = np.arange(1, 9, dtype=np.float32).reshape(4, 2)
  params = {'bias': np.ones(2, np.float32), 'kernel': kernel}  # in the order of the flat vector
  forward = lambda params, inputs: (
    jax.flatten_util.ravel_pytree(params)[0][None] * jnp.ones_like(inputs)
  )
  loss = lambda logits_BC, batch: 0.5 * (logits_BC**2 * batch['h']).sum(axis=-1)
  batch = {'inputs': np.ones((1, 10), np.float32), 'h': h_P[None]}
  variables = {'params': params, 'batch_stats': {}}
  mean_loss = MeanLoss(forward, loss, params, [batch])
  settings = SimpleNamespace(lanczos_steps=10)
  found = basins.perturbations(variables, mean_loss, np.random.default_rng(0), settings)
  flat = {k: np.asarray(jax.flatten_util.ravel_pytree(v)[0]) for k, v in found.items()}
  for direction_P in flat.values():
    np.testing.assert_allclose(np.linalg.norm(direction_P), 1, rtol=1e-5)
  np.testing.assert_allclose(flat['sharp'], np.eye(10)[4], atol=1e-4)
  np.testing.assert_allclose(np.abs(flat['flat']), np.eye(10)[0], atol=1e-3)  # the smallest h
  np.testing.assert_array_equal(found['random']['bias'], 0)
  norms_F = np.linalg.norm(found['random']['kernel'], axis=0)
  expected_F = np.linalg.norm(kernel, axis=0)
  np.testing.assert_allclose(norms_F / norms_F[0], expected_F / expected_F[0], rtol=1e-5)


def test_forks(study, tmp_path):
  assert trained_by(FORKS, study) == [
    ('forks: 1 of 1 from step 0', 34),
    ('forks: 1 of 1 from step 17', 17),
  ]
  found = found_by(FORKS, study, tmp_path)
  assert [steps for _, steps in trained_by(FORKS, study)] == [0, 0]
  np.testing.assert_array_equal(found['steps'], study.steps[:-1])
  np.testing.assert_allclose(found['fractions'], [0, 0.5])
  assert found['barrier/test/loss/pairs'].shape == (2, 1)
  assert (found['barrier/test/loss'] >= 0).all()
  assert found['distances'][0, 0] > found['distances'][1, 0] > 0  # a later fork ends nearer
  # Computed directly: how often the first fork's end and the student predict the same class.
  run = study.experiment
  end = run.student.load(study.folder / 'forks' / 'step_0_seed_0')
  classes = [
    run.predictor.logits(run.student.model, x, run.data.inputs['test']).argmax(-1)
    for x in (end, study.student())
  ]
  np.testing.assert_allclose(found['agreement'][0], (classes[0] == classes[1]).mean())
  assert found['agreement/low'][0] <= found['agreement'][0] <= found['agreement/high'][0]
  teacher_N = combine(predictions.open_teacher(run).members('test')).argmax(-1)
  wrong_EN = np.array(classes) != teacher_N
  np.testing.assert_allclose(found['mismatch'][0], wrong_EN.mean())
  np.testing.assert_allclose(found['repeated'][0], wrong_EN.all(axis=0).mean() / wrong_EN.mean())


def test_lambdas(study, tmp_path):
  own, half = (basins.with_lambda(study.experiment, x).folders.student for x in (0.0, 0.5))
  assert own == study.experiment.folders.student != half
  assert own.parent == half.parent
  assert trained_by(LAMBDAS, study) == [('student of λ = 0', 0), ('student of λ = 1', 34)]
  found = found_by(LAMBDAS, study, tmp_path)
  assert [steps for _, steps in trained_by(LAMBDAS, study)] == [0, 0]
  np.testing.assert_array_equal(found['lambdas'], [0, 1])
  measured = measure.Measure(study, SMALL['num_examples'])
  own = measured.variables(study.student())['test/predictive_kl']
  # The student of λ = 0 is the study's own, which was not trained again.
  np.testing.assert_allclose(found['final/test/predictive_kl'][0], own.mean(), rtol=1e-6)
  teacher, random, initial, final = found['places/xy'].transpose(1, 0, 2)
  np.testing.assert_allclose(teacher, 0, atol=1e-5)
  np.testing.assert_allclose(random[:, 1], 0, atol=1e-5)
  np.testing.assert_allclose(initial[0], random[0], atol=1e-5)
  np.testing.assert_allclose(initial[1], teacher[1], atol=1e-5)
  difference = jax.tree.map(np.subtract, study.student()['params'], study.member(0)['params'])
  np.testing.assert_allclose(np.linalg.norm(final[0]), geometry.norm(difference), rtol=1e-4)
  shape = len(found['ys']), len(found['xs'])
  assert found['plane/distillation/loss'].shape == (2, *shape)
  # The barrier to the teacher, from the three points of each line.
  ts_T = np.linspace(0, 1, SMALL['path_points'])
  ends = study.member(0), study.student()
  for statistics, reestimate in (('raw', False), ('re-estimated', True)):
    values_TN = measured.at(paths.line_point, ends, ts_T[:, None], reestimate)['test/accuracy']
    accuracy_T = values_TN.mean(axis=1)
    expected = max(0, accuracy_T[[0, 2]].mean() - accuracy_T[1])
    barrier = {end: found[f'barrier/{statistics}/test/accuracy{end}'] for end in intervals.ENDS}
    np.testing.assert_allclose(barrier[''][0], expected, atol=1e-6)
    rows = LAMBDAS.table(found)
    place = rows[0].index(f'accuracy barrier, {statistics} (%)')
    for row, low, high in zip(rows[1:], barrier['/low'], barrier['/high'], strict=True):
      assert row[place + 1] == style.one_basin(low, high)


def test_returns(study, tmp_path):
  assert trained_by(RETURNS, study) == [
    (f'{name}', 2) for name in ('random 0', 'random 0.3', 'sharp 0.3', 'flat 0.3')
  ]
  found = found_by(RETURNS, study, tmp_path)
  assert {steps for _, steps in trained_by(RETURNS, study)} == {0}
  assert found['directions'].tolist() == ['random', 'random', 'sharp', 'flat']
  np.testing.assert_allclose(found['norm'], geometry.norm(study.member(0)['params']))
  np.testing.assert_allclose(found['distance/before'], found['radii'] * found['norm'], rtol=1e-5)
  np.testing.assert_allclose(found['along/before'], found['distance/before'], rtol=1e-5, atol=1e-6)
  assert found['num_steps'] == 2  # half an epoch of 200 examples, 48 a batch
  # Row 0 is the unperturbed control: it starts with the teacher's values and ends near the teacher.
  key = 'test/predictive_kl'
  np.testing.assert_allclose(found[f'before/{key}'][0], found[f'teacher/{key}'], rtol=1e-4)
  assert 0 < found['distance/after'][0] < 0.1 * found['distance/before'][1]
  sharp, flat = found['curvatures'][2:]
  assert sharp > abs(flat)


def test_a_diverged_fork_is_reported(study, tmp_path, monkeypatch):
  """One of two continuations diverges; the other is still compared with the student."""
  monkeypatch.setattr(basins, 'distiller', lambda run: DIVERGING)
  monkeypatch.setattr(basins, 'order_seed', lambda run, index: index)

  def continued(run, distil, folder, step, seed, name):
    if (step, seed) == (0, 1):
      return right(run, distil, folder, step, seed, name)
    return study.student(study.steps[1])

  right = basins.continued
  monkeypatch.setattr(basins, 'continued', continued)
  found, figure = computed(FORKS, study, tmp_path, fork_seeds=2)
  np.testing.assert_array_equal(found['diverged'], [[False, True], [False, False]])
  pairs_KP = found['barrier/test/loss/pairs']  # the student and 1, the student and 2, 1 and 2
  np.testing.assert_array_equal(np.isnan(pairs_KP), [[False, True, True], [False] * 3])
  assert found['barrier/test/loss'][0] == pairs_KP[0, 0]
  assert found['agreement'][0] == found['agreement/pairs'][0, 0]
  for key in ('agreement/pairs', 'distances'):
    np.testing.assert_array_equal(np.isnan(found[key]), np.isnan(pairs_KP))
  np.testing.assert_array_equal(
    np.isnan(found['ends/test/loss']), [[False, False, True], [False] * 3]
  )
  marks = [line for line in figure.axes[0].lines if line.get_label() == 'diverged']
  assert [list(line.get_xdata()) for line in marks] == [[0]]
  assert [row[6] for row in FORKS.table(found)[1:3]] == ['1 of 2', '0 of 2']


def test_a_diverged_return_is_reported(study, tmp_path, monkeypatch):
  monkeypatch.setattr(basins, 'distiller', lambda run: DIVERGING)
  found, _ = computed(RETURNS, study, tmp_path, return_epochs=1.0)
  assert np.isnan(found['after/test/predictive_kl']).all()
  assert np.isnan(found['distance/after']).all()
  assert np.isfinite(found['before/test/predictive_kl']).all()
  assert [row[3] for row in RETURNS.table(found)[1:]] == ['diverged'] * 4


def test_too_few_steps_for_the_sharpest_direction_are_refused(study, tmp_path, monkeypatch):
  monkeypatch.setattr(basins, 'distiller', lambda run: DIVERGING)
  with pytest.raises(UserError, match=r'--lanczos_steps = 2: too few .* such as 4. Nothing was'):
    computed(RETURNS, study, tmp_path, lanczos_steps=2)


def test_several_students_of_one_lambda_have_an_interval_over_seeds(study, tmp_path, monkeypatch):
  """The workdir has two more students of λ = 0, both with the weights of a middle checkpoint."""
  own, middle = study.student(), study.student(study.steps[1])
  others = {
    name: SimpleNamespace(folders=SimpleNamespace(student=epath.Path(name))) for name in 'ab'
  }
  monkeypatch.setattr(
    runs.Study,
    'reseeded',
    lambda self, run: (
      list(others.values()) if run.config.student.init_lambda == 0 else [others['a']]
    ),
  )
  load = student.load
  monkeypatch.setattr(
    student, 'load', lambda run, step=None: middle if run in others.values() else load(run, step)
  )
  assert LAMBDAS.depends(study, settings_of(LAMBDAS)) == {'0.0': ['a', 'b']}
  found, _ = computed(LAMBDAS, study, tmp_path)
  assert found['num_students'].tolist() == [
    3,
    1,
  ]  # two students of λ = 1 are too few for an interval
  measured = measure.Measure(study, SMALL['num_examples'])
  key = 'test/predictive_kl'
  a, b = (measured.variables(x)[key].mean() for x in (own, middle))
  np.testing.assert_allclose(found[f'students/{key}'][0], [a, b, b], rtol=1e-5)
  assert np.isnan(found[f'students/{key}'][1, 1:]).all()
  np.testing.assert_allclose(found[f'final/{key}'][0], (a + 2 * b) / 3, rtol=1e-5)
  half = 4.30265 * np.std([a, b, b], ddof=1) / np.sqrt(3)  # Student's t with two degrees of freedom
  np.testing.assert_allclose(
    found[f'final/{key}/high'][0] - found[f'final/{key}'][0], half, rtol=1e-4
  )
  assert [row[1] for row in LAMBDAS.table(found)[1:]] == ['3', '1']
  assert "Student's t over students" in LAMBDAS.caption(found)


def test_parts_say_what_they_lack(study, tmp_path):
  other = runs.Study(tiny_run(tmp_path, student__model__options={'width': 8}))
  for part in (LAMBDAS, RETURNS):
    assert 'another architecture' in part.unavailable(other)
  assert FORKS.unavailable(study) is LAMBDAS.unavailable(study) is None
  assert 'keep_checkpoints' in FORKS.unavailable(SimpleNamespace(steps=[34]))
