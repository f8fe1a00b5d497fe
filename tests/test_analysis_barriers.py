"""Barriers between networks of which some are permuted copies, and so have none once they are matched."""

import re
import types

import flax.linen as nn
import jax
import numpy as np
import pytest
from etils import epath

from analysis import alignment, measure, permutations, runs
from analysis.figures import barriers as drawing
from analysis.part import Blocks, CheckError, Checks, Settings
from analysis.parts import barriers
from kdjax import figures, losses, models

SETTINGS = Settings(num_examples=40, path_points=3, bezier_steps=30, max_members=1)
PARTS = {part.name: part for part in barriers.PARTS}
SHOWN = ('distillation/loss', 'test/predictive_kl', 'test/top1_agreement')


class Small(nn.Module):
  @nn.compact
  def __call__(self, x, train):
    x = nn.relu(models.NORMS['batch'](train)()(nn.Dense(12)(x)))
    return nn.Dense(3)(x), {}


HIDDEN = ('hidden',)
NORM_PATHS = [
  ('params', 'scale'),
  ('params', 'bias'),
  ('batch_stats', 'mean'),
  ('batch_stats', 'var'),
]
SPEC = permutations.Spec(
  axes={
    ('params', 'Dense_0', 'kernel'): (permutations.FIXED, HIDDEN),
    ('params', 'Dense_0', 'bias'): (HIDDEN,),
    ('params', 'Dense_1', 'kernel'): (HIDDEN, permutations.FIXED),
    ('params', 'Dense_1', 'bias'): (permutations.FIXED,),
  }
  | {(kind, 'BatchNorm_0', name): (HIDDEN,) for kind, name in NORM_PATHS},
  sizes={'hidden': 12},
  outputs={'hidden': permutations.Output(('BatchNorm_0',), relu=True)},
)
INPUTS = np.random.default_rng(9).normal(size=(60, 4)).astype(np.float32)


def make_network(seed):
  """Random weights that are large enough for certain predictions, with the statistics of INPUTS."""
  variables = models.init(Small(), jax.random.key(seed), (4,))
  params = jax.tree.map(lambda x: 4 * x, variables['params'])
  variables = {'params': params, 'batch_stats': variables['batch_stats']}
  return jax.device_get(measure.reestimated(variables, [{'inputs': INPUTS[:40]}], Small()))


class SmallMeasure(measure.Distilled):
  """Its teacher predicts what the network 'student' does, so that KL is 0 there."""

  context = measure.Measure.context

  def __init__(self, study, num_examples):
    self._run = study.run
    logits_NC, _ = Small().apply(study.points()['student'], INPUTS, train=False)
    log_probs_NC = np.asarray(jax.nn.log_softmax(logits_NC))
    everything = {
      'inputs': INPUTS,
      'labels': log_probs_NC.argmax(-1).astype(np.int32),
      'teacher_log_probs': log_probs_NC,
    }
    cut = lambda which: {key: x[which] for key, x in everything.items()}
    examples = {'distillation': cut(slice(min(num_examples, 40))), 'test': cut(slice(40, 60))}
    loss = {'loss': losses.distillation, 'temperature': 1.0, 'alpha': 0.0}
    super().__init__(Small(), loss, examples, batch_size=40, has_statistics=True)


@pytest.fixture(scope='module')
def study():
  """Its teacher 0 is the student with its units in another order; teacher 1 is above max_members."""
  points = {name: make_network(seed) for seed, name in enumerate(('initial', 'student'))}
  order = alignment.random_permutations(SPEC, np.random.default_rng(0))
  points['teacher 0'] = alignment.apply(SPEC, order, points['student'])
  points['teacher 1'] = points['initial']
  config = types.SimpleNamespace(
    student=types.SimpleNamespace(loss='kl', batch_size=16),
    teacher=types.SimpleNamespace(num_members=2),
    evaluation=types.SimpleNamespace(batch_size=32),
  )
  run = types.SimpleNamespace(config=config)
  return types.SimpleNamespace(
    run=run,
    seed=0,
    num_members=2,
    names=list(points),
    point=points.__getitem__,
    points=lambda: points,
  )


@pytest.fixture(scope='module', autouse=True)
def small():
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(barriers, 'Measure', SmallMeasure)
    patch.setitem(permutations.SPECS, Small, lambda model, flat: (SPEC.axes, SPEC.outputs))
    yield


def compute(study, name, folder):
  checks = Checks()
  return PARTS[name].compute(study, SETTINGS, Blocks(epath.Path(folder)), checks), checks.values


@pytest.fixture(scope='module')
def matrix(study, tmp_path_factory):
  return compute(study, 'barriers', tmp_path_factory.mktemp('barriers'))


@pytest.fixture(scope='module')
def curves(study, tmp_path_factory):
  return compute(study, 'paths', tmp_path_factory.mktemp('paths'))


@pytest.fixture(scope='module')
def moved(study, tmp_path_factory):
  return compute(study, 'layers', tmp_path_factory.mktemp('layers'))


def test_a_permuted_copy_has_a_barrier_until_it_is_matched(matrix):
  arrays, _ = matrix
  assert arrays['names'].tolist() == ['initial', 'student', 'teacher 0']
  assert arrays['pairs'].tolist() == [[0, 1], [0, 2], [1, 2]]
  loss = dict(zip(arrays['variants'], arrays['loss'][2], strict=True))
  high = dict(zip(arrays['variants'], arrays['loss/high'][2], strict=True))
  assert min(loss['as they are'], loss['re-estimated']) > 0.1
  for variant, value in loss.items():
    if 'matched' in variant:
      assert max(value, high[variant]) < 1e-4, variant


def test_intervals_surround_their_barriers(matrix):
  arrays, _ = matrix
  for key in ('loss', 'error'):
    value, low, high = (arrays[f'{key}{end}'] for end in ('', '/low', '/high'))
    assert value.shape == (3, 5)
    assert (low <= high).all()
    assert (low >= 0).all()
  assert (arrays['loss/low'][2, :2] < arrays['loss'][2, :2]).all()
  assert (arrays['loss'][2, :2] < arrays['loss/high'][2, :2]).all()


def test_a_barrier_is_that_of_its_three_points(matrix, study):
  arrays, _ = matrix
  measured = SmallMeasure(study, SETTINGS.num_examples)
  points = study.points()
  a, b = points['student'], points['teacher 0']
  middle = jax.tree.map(lambda x, y: (np.asarray(x) + np.asarray(y)) / 2, a, b)
  loss_3 = [measured.variables(x)['distillation/loss'].mean() for x in (a, middle, b)]
  expected = loss_3[1] - (loss_3[0] + loss_3[2]) / 2
  assert arrays['loss'][2, 0] == pytest.approx(expected, rel=1e-4)


def test_checks_are_recorded(matrix, curves, moved):
  for _, values in (matrix, curves, moved):
    assert set(values) == {
      'logits unchanged by permutations',
      'ends reproduced: distillation/loss',
      'ends reproduced: test/predictive_kl',
    }
    assert all(value < limit / 10 for value, limit in values.values())


def test_a_permutation_that_changes_the_function_fails_a_check(study, monkeypatch, tmp_path):
  def forgetful(spec, order, variables):
    """Leaves the statistics in the old order."""
    permuted = apply(spec, order, variables)
    return {'params': permuted['params'], 'batch_stats': variables['batch_stats']}

  apply = alignment.apply
  monkeypatch.setattr(alignment, 'apply', forgetful)
  with pytest.raises(CheckError, match='logits unchanged'):
    compute(study, 'layers', tmp_path)


def test_finished_pairs_are_not_computed_again(study, monkeypatch, tmp_path):
  first = barriers._Networks.along
  calls = []

  def along(self, a, b, *args):
    calls.append((a, b))
    if len(calls) > 5:
      raise KeyboardInterrupt
    return first(self, a, b, *args)

  monkeypatch.setattr(barriers._Networks, 'along', along)
  with pytest.raises(KeyboardInterrupt):
    compute(study, 'barriers', tmp_path)
  assert set(calls[:5]) == {('initial', 'student')}
  calls.clear()
  with pytest.raises(KeyboardInterrupt):
    compute(study, 'barriers', tmp_path)
  assert set(calls[:5]) == {('initial', 'teacher 0')}


def test_paths_begin_and_end_at_their_networks(curves, study):
  arrays, _ = curves
  assert arrays['pair_names'].tolist() == [['student', 'teacher 0'], ['initial', 'student']]
  assert len(arrays['variants']) == 4
  measured = SmallMeasure(study, SETTINGS.num_examples)
  points = study.points()
  for q, pair in enumerate(arrays['pair_names']):
    for place, name in ((0, pair[0]), (-1, pair[1])):
      for v, reestimate in enumerate((False, True, True, True)):
        values = measured.variables(points[name], reestimate)
        for key in SHOWN:
          expected = values[key].mean()
          assert arrays[key][q, v, place] == pytest.approx(expected, rel=1e-3, abs=1e-3)


def test_the_matched_path_to_a_permuted_copy_is_flat(curves):
  arrays, _ = curves
  assert arrays['variants'][2] == 'weights matched, re-estimated'
  np.testing.assert_allclose(np.ptp(arrays['distillation/loss'][0, 2]), 0, atol=1e-3)
  assert np.ptp(arrays['distillation/loss'][0, 1]) > 0.1
  assert arrays['distillation/loss'][0, 3, 1] < 0.9 * arrays['distillation/loss'][0, 1, 1]


def test_layers_of_a_permuted_copy_change_nothing_if_they_are_matched(moved):
  arrays, _ = moved
  assert arrays['layers'].tolist() == ['Dense_0', 'BatchNorm_0', 'Dense_1']
  changes = dict(zip(arrays['changes'], arrays['test/predictive_kl'], strict=True))
  for change in ('halfway, matched', 'replaced, matched'):
    np.testing.assert_allclose(changes[change], 0, atol=1e-4)
  # The BatchNorm of every unit is the same here.
  assert (changes['replaced, not matched'] > 0.5).tolist() == [True, False, True]


def test_pairs_that_there_are():
  def chosen(*names, **settings):
    study = types.SimpleNamespace(names=names, num_members=3)
    return barriers._chosen_pairs(study, Settings(**settings))

  expected = [('student', 'teacher 0'), ('student', 'independent')]
  assert chosen('student', 'teacher 0', 'independent') == expected
  everyone = ('initial', 'student', 'teacher 0', 'teacher 1', 'teacher 2', 'sibling', 'independent')
  expected[1] = ('student', 'sibling')
  expected += [('initial', 'student'), ('teacher 0', 'teacher 1')]
  assert chosen(*everyone) == expected
  assert chosen('initial', 'student') == [('initial', 'student')]
  # One that is asked for is there, whatever max_members says; of 'all', one of three members.
  asked = chosen(*everyone, pairs=('teacher 2:student', 'initial : sibling'), max_members=1)
  assert asked == [('teacher 2', 'student'), ('initial', 'sibling')]
  assert len(chosen(*everyone, pairs=('all',), max_members=1)) == 5 * 4 / 2


@pytest.mark.parametrize('pair', ['student', 'student:student', 'student:teacher 7', ':student'])
def test_pairs_that_there_are_not(pair):
  names = ['initial', 'student', 'teacher 0']
  misnamed = PARTS['paths'].misnamed
  (told,) = misnamed(names, Settings(pairs=(pair, 'student:initial')))
  assert told.startswith(f"--pairs: '{pair}': allowed: 'all', or two different ones of initial, ")
  assert misnamed(names, Settings(pairs=('all',))) == misnamed(names, Settings()) == []


def test_many_pairs_are_drawn_in_bands(curves):
  arrays, _ = curves
  num_pairs = drawing.PAIRS_IN_A_BAND + 1
  wide = {
    k: np.repeat(x[:1], num_pairs, axis=0) for k, x in arrays.items() if len(np.shape(x)) == 3
  }
  wide = arrays | wide | {'pair_names': np.array([['student', str(q)] for q in range(num_pairs)])}
  with figures.style('paths'):
    figure = PARTS['paths'].draw(wide)
  drawn = [axes for axes in figure.axes if axes.lines]
  ends = [axes.get_xticklabels()[-1].get_text() for axes in drawn]
  assert [text for text in ends if text] == [str(q) for q in range(num_pairs)]


def test_without_batch_norm_nothing_is_re_estimated():
  found = barriers._of_model(barriers._MATRIX_VARIANTS, has_statistics=False)
  assert [v.name for v in found] == ['as they are', 'weights matched', 'activations matched']
  assert [v.matching for v in found] == ['', 'weights', 'activations']
  assert not any(v.reestimate for v in found)
  assert len(barriers._of_model(barriers._MATRIX_VARIANTS, has_statistics=True)) == 5


def test_layers_are_in_order_of_depth():
  model = models.PreActResNet(3, models.BasicBlock, 2, 4, 'layer')
  order = barriers.depth_order(model, np.zeros((1, 8, 8, 1), np.float32))
  blocks = [f'stage{stage}_block{i}' for stage in (1, 2, 3) for i in (1, 2)]
  assert order == ['Conv_0', *blocks, 'LayerNorm_0', 'Dense_0']


class FakeStudy(types.SimpleNamespace):
  lacks_teacher = runs.Study.lacks_teacher


def make_study(**fields):
  alone = {
    'same_architecture': True,
    'has_teachers': False,
    'initial_is_kept': False,
    'siblings': [],
    'independent': None,
  }
  return FakeStudy(**alone | fields)


def test_parts_say_why_they_cannot_be_computed():
  for name in ('barriers', 'paths'):
    unavailable = PARTS[name].unavailable
    assert 'the student is alone' in unavailable(make_study())
    assert unavailable(make_study(has_teachers=True, same_architecture=False)) is not None
    for other in ({'has_teachers': True}, {'initial_is_kept': True}, {'siblings': ['run']}):
      assert unavailable(make_study(**other)) is None
    assert unavailable(make_study(independent='run')) is None
  assert PARTS['layers'].unavailable(make_study(siblings=['run'])) is not None
  assert PARTS['layers'].unavailable(make_study(has_teachers=True)) is None


# Figures and captions.


def test_columns_of_paths_have_their_own_ends(curves):
  arrays, _ = curves
  with figures.style('paths'):
    figure = PARTS['paths'].draw(arrays)
  labels = [[t.get_text() for t in axes.get_xticklabels()] for axes in figure.axes]
  assert labels[-2:] == [['student', '', 'teacher 0'], ['initial', '', 'student']]
  first = figure.axes[0].lines[1]
  np.testing.assert_array_equal(first.get_ydata(), arrays['distillation/loss'][0, 1])
  np.testing.assert_array_equal(first.get_xdata(), [0, 0.5, 1])
  caption = PARTS['paths'].caption(arrays)
  assert f're-estimated {arrays["loss"][0, 1]:.3g} [' in caption
  assert 'initial to student' in caption
  error = 100 * arrays['error'][0, -1]
  assert re.search(rf'curve.*? \(test accuracy falls by {error:.3g} \[', caption)
  assert caption.count('test accuracy falls') == len(arrays['pair_names'])  # once for each curve


def test_bars_of_layers_go_down_in_depth(moved):
  arrays, _ = moved
  with figures.style('layers'):
    figure = PARTS['layers'].draw(arrays)
  left, right = figure.axes[:2]
  assert left.yaxis_inverted()
  assert [t.get_text() for t in left.get_yticklabels()] == arrays['layers'].tolist()
  widths = [bar.get_width() for bar in right.containers[2]]
  np.testing.assert_allclose(widths, 100 * arrays['test/top1_agreement'][2])
  kl = arrays['student/test/predictive_kl']
  assert f'agreement: {kl:.3g} [' in PARTS['layers'].caption(arrays)


def test_what_changes_least_is_nearest_to_zero(moved):
  arrays, _ = moved
  changes = arrays['test/predictive_kl'].copy()
  changes[1] = [0.5, -2.0, *[0.001] * (changes.shape[1] - 2)]
  caption = PARTS['layers'].caption({**arrays, 'test/predictive_kl': changes})
  most, least = arrays['layers'][1:3]
  assert re.search(rf'changes most by {most} -2 \[.*\] and least by {least} 0\.001 \[', caption)
