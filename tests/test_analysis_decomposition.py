"""The decomposition of a KL, against identities, a linear model and counts by hand."""

import types
from functools import partial

import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath
from scipy.special import log_softmax, softmax

from analysis import decomposition, runs
from analysis.figures import style
from analysis.part import Blocks, Checks, Settings
from analysis.parts import decomposition as part
from kdjax import config as config_lib
from kdjax import intervals, keys, metrics


def log_probs(*shape, seed=0, scale=3.0):
  return log_softmax(scale * np.random.default_rng(seed).normal(size=shape), axis=-1)


# Bias and variance.


@pytest.mark.parametrize('num_students', [1, 2, 5])
def test_the_mean_kl_is_the_kl_of_the_mean_and_the_variance(num_students):
  teacher_NC, students_KNC = log_probs(40, 7), log_probs(num_students, 40, 7, seed=1)
  terms = decomposition.heskes(teacher_NC, students_KNC)
  np.testing.assert_allclose(terms['mean'], terms['of_mean'] + terms['variance'], atol=1e-12)
  mean_NC = np.exp(students_KNC).prod(axis=0) ** (1 / num_students)
  mean_NC /= mean_NC.sum(axis=-1, keepdims=True)
  expected = (mean_NC * (np.log(mean_NC) - students_KNC)).sum(axis=-1).mean(axis=0)
  np.testing.assert_allclose(terms['variance'], expected, atol=1e-12)
  probs_NC = np.exp(teacher_NC)
  expected = (probs_NC * np.log(probs_NC / mean_NC)).sum(axis=-1)
  np.testing.assert_allclose(terms['of_mean'], expected, atol=1e-12)
  assert (terms['variance'] > 0.01).all() or num_students == 1
  same = decomposition.heskes(teacher_NC, np.stack([students_KNC[0]] * 3))
  np.testing.assert_allclose(same['variance'], 0, atol=1e-12)


def test_opposite_students_of_a_uniform_teacher_are_all_variance():
  """log s = (±a, 0) − const: the mean is the teacher, and −log Z is log cosh(a / 2)."""
  a = np.array([0.5, 2.0])
  students = log_softmax(np.stack([np.stack([x, 0 * x], -1) for x in (a, -a)]), axis=-1)
  terms = decomposition.heskes(np.log(np.full((2, 2), 0.5)), students)
  np.testing.assert_allclose(terms['of_mean'], 0, atol=1e-12)
  np.testing.assert_allclose(terms['variance'], np.log(np.cosh(a / 2)), atol=1e-12)


def test_the_jackknife_finds_the_variance_of_infinitely_many_students():
  """Logits (x, 0) of x ~ N(0, σ²): −log Z → E log(1 + eˣ) − log 2, while the plain one of 3 is too small."""
  rng = np.random.default_rng(0)
  logits_KN = 0.5 * rng.normal(size=(3, 40_000))
  students_KNC = log_softmax(np.stack([logits_KN, 0 * logits_KN], axis=-1), axis=-1)
  teacher_NC = np.log(np.full((40_000, 2), 0.5))
  pseudo = decomposition.heskes_jackknife(teacher_NC, students_KNC)
  np.testing.assert_allclose(pseudo['mean'], pseudo['of_mean'] + pseudo['variance'], atol=1e-12)
  nodes, weights = np.polynomial.hermite_e.hermegauss(40)
  expected = np.log1p(np.exp(0.5 * nodes)) @ weights / weights.sum() - np.log(2)
  plain = decomposition.heskes(teacher_NC, students_KNC)
  assert plain['variance'].mean() == pytest.approx(expected * 2 / 3, rel=0.02)
  assert pseudo['variance'].mean() == pytest.approx(expected, rel=0.02)
  assert pseudo['of_mean'].mean() == pytest.approx(0, abs=0.02 * expected)


def test_intervals_are_over_three_or_more_students_else_over_examples():
  rng = lambda: keys.numpy_rng(0, 'test')
  # Three students that differ by a constant: the t interval of 1, 2, 3 (4.303 / √3).
  values_KN = np.arange(1.0, 4)[:, None] + np.tile([-1.0, 1.0], 50)
  value, low, high = decomposition.over_students(values_KN, rng())
  np.testing.assert_allclose([low, value, high], [2 - 2.484, 2, 2 + 2.484], atol=1e-3)
  value, low, high = decomposition.over_students(values_KN[:2], rng())
  half = 1.96 / 10  # 100 examples of standard deviation 1
  np.testing.assert_allclose([low, value, high], [1.5 - half, 1.5, 1.5 + half], atol=0.04)


# The residual.


def linear(params, inputs_NF):
  return inputs_NF @ params['w']


def test_the_kernel_of_a_linear_model_is_that_of_its_inputs():
  rng = np.random.default_rng(0)
  inputs_NF, w = rng.normal(size=(5, 4)).astype(np.float32), jnp.zeros((4, 3))
  kernel_RR = decomposition.tangent_kernel(linear, {'w': w}, inputs_NF)
  expected = np.kron(inputs_NF @ inputs_NF.T, np.eye(3))
  np.testing.assert_allclose(kernel_RR, expected, atol=1e-5)


def test_a_residual_is_split_into_learned_not_yet_and_unreachable_directions():
  """Orthogonal inputs of norms 2, 0.1 and 0: eigenvalues of the mean loss of 3 are 4/3, 1/300 and 0."""
  kernel_RR = np.kron(np.diag([4.0, 0.01, 0.0]), np.eye(3))
  residual_NC = np.array([[1, -1, 0], [2, 0, -2], [3, -2, -1]]) / 10  # squared: 2, 8 and 14
  shares = lambda rate_sum: decomposition.residual_groups(kernel_RR, residual_NC, rate_sum)
  for rate_sum, expected, directions in (
    (0.7, [0, 10, 14], [0, 4, 2]),
    (0.8, [2, 8, 14], [2, 2, 2]),
    (299, [2, 8, 14], [2, 2, 2]),
    (301, [10, 0, 14], [4, 0, 2]),
  ):
    found, found_directions = shares(rate_sum)
    np.testing.assert_allclose(found, np.array(expected) / 24, atol=1e-12)
    np.testing.assert_allclose(found_directions, np.array(directions) / 6)
  nothing, _ = decomposition.residual_groups(kernel_RR, 0 * residual_NC, 1.0)
  assert np.isnan(nothing).all()


def test_a_shift_of_all_logits_is_no_direction():
  """A model that shifts all logits of an example equally cannot reduce a residual."""
  kernel_RR = np.kron(np.eye(2), np.ones((3, 3))) + 1e-3 * np.kron(np.diag([1, 0]), np.eye(3))
  residual_NC = np.array([[1, -1, 0], [1, 0, -1]])
  shares, directions = decomposition.residual_groups(kernel_RR, residual_NC, rate_sum=1e6)
  np.testing.assert_allclose(shares, [0.5, 0, 0.5], atol=1e-9)
  np.testing.assert_allclose(directions, [0.5, 0, 0.5])


# Disagreement.


def test_margins_and_their_bins():
  probs_NC = np.array([[0.5, 0.3, 0.2], [0.1, 0.1, 0.8], [0.4, 0.4, 0.2], [0, 1, 0]])
  with np.errstate(divide='ignore'):
    margins_N = decomposition.margins(np.log(probs_NC))
  np.testing.assert_allclose(margins_N, [0.2, 0.7, 0, 1], atol=1e-12)
  edges, disagrees_N = np.array([0, 0.1, 0.2, 0.9, 1]), np.array([True, False, True, False])
  counts, (fraction, low, high) = decomposition.by_margin(
    np.array([0.2, 0.7, 0, 1]), disagrees_N, edges
  )
  np.testing.assert_array_equal(counts, [1, 0, 2, 1])
  np.testing.assert_array_equal(fraction, [1, np.nan, 0.5, 0])
  assert np.isnan(low[1]) and np.isnan(high[1])


def test_wilson_intervals_are_those_of_the_literature():
  """10 of 100 and 0 of 10: (0.0552, 0.1744) and (0, 0.2775), z = 1.96."""
  fraction, low, high = decomposition.wilson([10, 0], [100, 10])
  np.testing.assert_allclose(fraction, [0.1, 0])
  np.testing.assert_allclose(low, [0.0552, 0], atol=5e-5)
  np.testing.assert_allclose(high, [0.1744, 0.2775], atol=5e-5)


# The part.

SETTINGS = Settings(num_examples=48, kernel_examples=2)


@pytest.fixture(scope='module')
def computed(finished, tmp_path_factory):
  """The part on a tiny run whose two siblings are its kept checkpoints: study, arrays, values of checks."""
  study, checks = runs.Study(finished), Checks()
  steps = dict(zip(('one', 'two'), study.steps, strict=False))
  load = lambda run: states[run.folders.student.name]
  others = [
    types.SimpleNamespace(
      student=finished.student, folders=types.SimpleNamespace(student=epath.Path(name))
    )
    for name in ('one', 'two')
  ]
  states = {name: study.student(step) for name, step in steps.items()}
  states[finished.folders.student.name] = study.student()
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(part, '_groups', lambda _: {'student': [finished, *others], 'λ = 1': [others[0]]})
    patch.setattr(part.student, 'load', load)
    patch.setattr(runs.Study, 'student', lambda _: states[finished.folders.student.name])
    blocks = Blocks(epath.Path(tmp_path_factory.mktemp('blocks')), checks)
    arrays = part.compute_decomposition(study, SETTINGS, blocks, checks)
  return study, arrays, checks.values


def test_kl_of_each_set_is_that_of_the_students_on_its_views(computed):
  study, arrays, checks = computed
  assert arrays['sets'].tolist() == ['seen', 'fresh', 'test']
  assert arrays['num_views'].tolist() == [3, 3, 1]
  run, variables = study.experiment, [study.student(step) for step in (None, *study.steps[:2])]
  expected = []
  for name, views in (('distillation', (0, 1, 2)), ('distillation', (3, 4, 5)), ('test', (0,))):
    size = len(run.data.inputs[name].split)
    order_N = keys.numpy_rng(study.seed, f'analysis/{name}').permutation(size)[:48]
    of_views = []
    for view in views:
      predict = lambda model, v, name=name, view=view, order_N=order_N: run.predictor.logits(
        model, v, run.data.inputs[name], view, order_N
      )
      members = np.stack([predict(run.teacher.model, study.member(i)) for i in range(2)])
      teacher_NC = np.log(softmax(members.astype(np.float64), axis=-1).mean(axis=0))
      fidelity = [metrics.fidelity(predict(run.student.model, v), teacher_NC) for v in variables]
      of_views.append([of['predictive_kl'] for of in fidelity])
    expected.append(np.mean(of_views, axis=0))
  expected_SK = np.array(expected)
  np.testing.assert_allclose(arrays['kl'][0], expected_SK.mean(axis=1), rtol=1e-4)
  np.testing.assert_allclose(arrays['kl'][1], expected_SK[:, 1], rtol=1e-4)
  np.testing.assert_allclose(arrays['plain/mean'], arrays['kl'][0], rtol=1e-9)
  np.testing.assert_allclose(
    arrays['fresh_less_seen'][0], arrays['kl'][0, 1] - arrays['kl'][0, 0], atol=1e-9
  )
  _, low, _ = intervals.of_mean(expected_SK[2])
  assert arrays['kl/low'][0, 2] == pytest.approx(low, rel=1e-3)  # over three students
  assert arrays['group_sizes'].tolist() == [3, 1]
  assert checks['KL of the mean and variance add up'][0] < 1e-12


def test_terms_add_up_and_shares_are_whole(computed):
  _, arrays, _ = computed
  for prefix in ('plain', 'heskes'):
    total = arrays[f'{prefix}/of_mean'] + arrays[f'{prefix}/variance']
    np.testing.assert_allclose(arrays[f'{prefix}/mean'], total, atol=1e-9)
  for name in ('shares', 'directions'):
    assert arrays[f'residual/{name}'].sum() == pytest.approx(1)
  assert arrays['margin/counts'].sum() == 48


def test_the_sum_of_learning_rates_counts_momentum(finished):
  """Cosine from 0.05 to nearly 0 over T steps sums to 0.05 T / 2, and momentum 0.9 makes that ten times."""
  num_steps = finished.student.plan.num_steps
  assert part._rate_sum(finished) == pytest.approx(10 * 0.05 * num_steps / 2, rel=0.05)


def test_the_students_to_compare_are_found_in_the_workdir(finished, monkeypatch):
  study, asked = runs.Study(finished), []
  assert study.alike(finished) == [finished]
  assert list(part._groups(study)) == ['student']  # no other student is trained
  monkeypatch.setattr(runs.Study, 'alike', lambda _, run: asked.append(run) or [run])
  groups = part._groups(study)
  assert list(groups) == ['student', 'λ = 1', 'twice the width']
  assert [run.config.student.init_lambda for run in asked] == [1, 0]
  wide, own = (config_lib.student_model(run.config).width for run in (asked[1], finished))
  assert wide == 2 * own
  others = [run.folders.student.name for run in asked]
  expected = {'λ = 1': others[:1], 'twice the width': others[1:]}
  assert part._fingerprints(study, SETTINGS) == expected


def test_the_figure_and_the_table_show_the_results(computed):
  (found,), (_, whole, _) = part.PARTS, computed
  lacking = ('heskes/', 'residual/', 'fresh_less_seen')
  alone = {key: x for key, x in whole.items() if not key.startswith(lacking)}
  for arrays, count in ((whole, 3), (alone | {'num_students': np.array(1)}, 1)):
    is_whole, text = arrays is whole, partial(intervals.text, arrays)
    with style.drawing(found.name):
      figure = found.draw(arrays)
      figure.canvas.draw()
    bias, _, residual, _ = figure.axes
    expected = [*arrays['heskes/of_mean'], *arrays['heskes/variance']] if is_whole else []
    assert [bar.get_height() for bar in bias.patches] == pytest.approx(expected)
    assert len(residual.patches) == 6 * is_whole
    caption = found.caption(arrays)
    assert f'({count} here)' in caption
    assert ('c: residual' in caption) == is_whole
    rows = found.table(arrays)
    value_of = {tuple(row[:3]): row[3] for row in rows}
    assert len(value_of) == len(rows)
    mean = value_of['mean KL (nats)', 'test', str(count)]
    assert mean == f'{arrays["plain/mean"][2]:.3g}'
    assert value_of['KL, student (nats)', 'seen views', '3'] == text('kl', (0, 0))
    assert value_of['KL, twice the width (nats)', '', '0'] == 'not in the workdir'
    place = np.flatnonzero(arrays['margin/counts'])[-1]
    low, high = part.EDGES[place : place + 2]
    where = f'{low:g}–{high:g}, n = {arrays["margin/counts"][place]}'
    expected = text('margin/student', place, 100)
    assert value_of['disagreement, student (%)', where, '1'] == expected
    assert (('variance over seeds (nats)', 'test', '∞') in value_of) == is_whole
    if is_whole:
      assert value_of['‖p − q‖² (%)', 'not yet', '3'] == text('residual/shares', 1, 100)
      assert value_of['KL, λ = 1 (nats)', 'fresh − seen', '1'] == text('fresh_less_seen', 1)
