"""Barriers between networks; a permuted copy has none once it is aligned."""

import functools
import types

import jax
import numpy as np
import pytest
from etils import epath

from analysis import alignment, matching, measure, permutations, runs, surface
from analysis.figures import barriers as drawing
from analysis.figures import style
from analysis.part import Blocks, CheckError, Checks, Settings
from analysis.parts import barriers
from kdjax import losses, models
from kdjax.models import user
from tests import small_network

SETTINGS = Settings(
  num_examples=40,
  path_points=3,
  bezier_steps=30,
  max_members=1,
  alignment_restarts=1,
  alignment_steps=2,
)
PARTS = {part.name: part for part in barriers.PARTS}


MODEL = user.WithFeatures(small_network.Small(3))
INPUTS = np.random.default_rng(9).normal(size=(100, 4)).astype(np.float32)


def make_network(seed):
  """Random weights that are large enough for certain predictions, with the statistics of INPUTS."""
  variables = models.init(MODEL, jax.random.key(seed), (4,))
  params = jax.tree.map(lambda x: 4 * x, variables['params'])
  variables = {'params': params, 'batch_stats': variables['batch_stats']}
  return jax.device_get(surface.reestimated(variables, [{'inputs': INPUTS[:40]}], MODEL))


class SmallMeasure(measure.Distilled):
  """A measure whose teacher predicts what the student does, so that KL is 0 there."""

  context = measure.Measure.context
  overlap = 0

  def __init__(self, study, num_examples, skip=0):
    self._run = study.experiment
    logits_NC, _ = MODEL.apply(study.points()['student'], INPUTS, train=False)
    log_probs_NC = np.asarray(jax.nn.log_softmax(logits_NC))
    everything = {
      'inputs': INPUTS,
      'labels': log_probs_NC.argmax(-1).astype(np.int32),
      'teacher_log_probs': log_probs_NC,
    }
    cut = lambda which: {key: x[which] for key, x in everything.items()}
    examples = {
      'distillation': cut(slice(skip, skip + min(num_examples, 40))),
      'test': cut(slice(80, 100)),
    }
    if skip:  # alignments are chosen by losses under the batch's statistics, where KL is 0
      inputs = examples['distillation']['inputs']
      logits_NC, _ = surface.in_batch(study.points()['student'], inputs, model=MODEL)
      examples['distillation']['teacher_log_probs'] = np.asarray(jax.nn.log_softmax(logits_NC))
    loss = {'loss': losses.distillation, 'temperature': 1.0, 'alpha': 0.0}
    super().__init__(MODEL, loss, examples, batch_size=40, has_statistics=True)


@pytest.fixture(scope='module', autouse=True)
def aligned():
  with pytest.MonkeyPatch.context() as patch:
    patch.setitem(permutations.SPECS, small_network.Small, small_network.spec)
    yield


@pytest.fixture(scope='module')
def study(tmp_path_factory, aligned):
  """A study whose teacher 0 is the student with permuted units; teacher 1 is above max_members."""
  points = {name: make_network(seed) for seed, name in enumerate(('initial', 'student'))}
  spec = permutations.spec_for(MODEL, points['student']['params'])
  order = alignment.random_permutations(spec, np.random.default_rng(0))
  points['teacher 0'] = alignment.apply(spec, order, points['student'])
  points['teacher 1'] = points['initial']
  config = types.SimpleNamespace(
    student=types.SimpleNamespace(loss='cross_entropy', alpha=0.0, batch_size=16),
    teacher=types.SimpleNamespace(num_members=2, source=''),
    evaluation=types.SimpleNamespace(batch_size=32),
  )
  student = types.SimpleNamespace(model=MODEL)
  return types.SimpleNamespace(
    experiment=types.SimpleNamespace(config=config, student=student),
    folder=epath.Path(tmp_path_factory.mktemp('study')),
    seed=0,
    num_members=2,
    names=list(points),
    point=points.__getitem__,
    points=lambda: points,
  )


@pytest.fixture(scope='module', autouse=True)
def small(study):
  """Parts take small measures, which are compiled once for this file."""
  make = functools.cache(functools.partial(SmallMeasure, study))
  with pytest.MonkeyPatch.context() as patch:
    for module in (barriers, matching):
      patch.setattr(module, 'Measure', lambda _, *args, **kwargs: make(*args, **kwargs))
    yield


def compute(study, name, folder):
  checks = Checks()
  return PARTS[name].compute(study, SETTINGS, Blocks(epath.Path(folder)), checks), checks.values


@pytest.fixture(scope='module')
def folders(tmp_path_factory):
  """The blocks of each part."""
  return {name: tmp_path_factory.mktemp(name) for name in PARTS}


@pytest.fixture(scope='module')
def matrix(study, folders):
  return compute(study, 'barriers', folders['barriers'])


@pytest.fixture(scope='module')
def curves(study, folders):
  return compute(study, 'paths', folders['paths'])


@pytest.fixture(scope='module')
def moved(study, folders):
  return compute(study, 'layers', folders['layers'])


def test_a_permuted_copy_has_a_barrier_until_it_is_aligned(matrix):
  arrays, _ = matrix
  assert arrays['names'].tolist() == ['initial', 'student', 'teacher 0']
  assert arrays['pairs'].tolist() == [[0, 1], [0, 2], [1, 2]]
  loss = dict(zip(arrays['variants'], arrays['loss'][2], strict=True))
  high = dict(zip(arrays['variants'], arrays['loss/high'][2], strict=True))
  assert min(loss['as they are'], loss['re-estimated']) > 0.1
  for variant, value in loss.items():
    if 'aligned' in variant:
      assert max(value, high[variant]) < 1e-4, variant


def test_a_barrier_comes_from_its_three_points_and_lies_in_its_interval(matrix, study):
  arrays, _ = matrix
  for key in ('loss', 'error'):
    value, low, high = (arrays[f'{key}{end}'] for end in ('', '/low', '/high'))
    assert value.shape == (3, 4)
    assert ((low >= 0) & (low <= high)).all()
  low, value, high = (arrays[f'loss{end}'][2, :2] for end in ('/low', '', '/high'))
  assert ((low < value) & (value < high)).all()
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
      'ends reproduced: distillation/predictive_kl',
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
  monkeypatch.setattr(study, 'folder', epath.Path(tmp_path))
  with pytest.raises(CheckError, match='logits unchanged'):
    compute(study, 'layers', tmp_path)


def test_finished_pairs_are_not_computed_again(study, matrix, folders, monkeypatch):
  monkeypatch.setattr(barriers._Networks, 'along', None)
  again, _ = compute(study, 'barriers', folders['barriers'])
  np.testing.assert_array_equal(again['loss'], matrix[0]['loss'])


def test_the_aligned_path_to_a_permuted_copy_is_flat(curves):
  arrays, _ = curves
  assert arrays['pair_names'].tolist() == [['student', 'teacher 0'], ['initial', 'student']]
  assert arrays['variants'].tolist() == [
    'as they are',
    're-estimated',
    'aligned, re-estimated',
    'curve, re-estimated',
  ]
  np.testing.assert_allclose(np.ptp(arrays['distillation/loss'][0, 2]), 0, atol=1e-3)
  assert np.ptp(arrays['distillation/loss'][0, 1]) > 0.1
  assert arrays['distillation/loss'][0, 3, 1] < 0.9 * arrays['distillation/loss'][0, 1, 1]


def test_the_spread_over_alignments_is_measured_on_other_examples(matrix, study):
  """Every method finds the planted order of teacher 0; as they are, the networks are far apart."""
  arrays, _ = matrix
  names = arrays['alignments/names'][2].tolist()
  assert names == ['as they are', 'weights', 'activations', 'weights, restart 1', 'learned']
  assert arrays['alignments/chosen'][2] in names[1:]
  heights = dict(zip(names, arrays['alignments/halfway'][2], strict=True))
  np.testing.assert_allclose([heights['weights'], heights['learned']], 0, atol=1e-4)
  assert heights['as they are'] > 0.1
  # The choice uses the loss of examples 40 to 80; the reported loss is that of the first 40.
  points = [study.points()[name] for name in ('student', 'teacher 0')]
  loss = {}
  for skip in (40, 0):
    measured = SmallMeasure(study, 40, skip)
    middle, *ends = (
      float(of['distillation/loss'].mean())
      for of in (
        matching.halfway(measured, *points),
        *(measured.variables(x, reestimate=True) for x in points),
      )
    )
    loss[skip] = middle, middle - sum(ends) / 2
  assert arrays['alignments/loss'][2, 0] == pytest.approx(loss[40][0], rel=1e-5)
  assert heights['as they are'] == pytest.approx(loss[0][1], rel=1e-3)
  assert loss[0][1] != pytest.approx(loss[40][1], rel=0.01)
  assert arrays['alignment_examples'].tolist() == [40, 0]


def test_an_alignment_is_found_once_for_all_parts(matrix, study, monkeypatch):
  def never(*_, **__):
    raise AssertionError('aligned again')

  monkeypatch.setattr(alignment, 'best_alignment', never)
  aligner = matching.Aligner(study, SETTINGS, Checks())
  points = study.points()
  found = aligner.best(points['teacher 0'], points['student'])
  assert [found.chosen, *found.candidates] == [
    matrix[0]['alignments/chosen'][2],
    *matrix[0]['alignments/names'][2],
  ]
  kernels = [
    x['params']['Hidden_1']['Dense_0']['kernel'] for x in (found.variables, points['student'])
  ]
  np.testing.assert_allclose(*kernels, atol=1e-6)
  with pytest.raises(AssertionError, match='aligned again'):
    aligner.best(points['initial'], points['teacher 1'])
  # Statistics of other batches may change the choice.
  monkeypatch.setattr(study.experiment.config.evaluation, 'batch_size', 16)
  with pytest.raises(AssertionError, match='aligned again'):
    matching.Aligner(study, SETTINGS, Checks()).best(points['teacher 0'], points['student'])


def test_a_model_without_a_spec_is_measured_without_alignment(study, monkeypatch, tmp_path):
  monkeypatch.delitem(permutations.SPECS, small_network.Small)
  message = (
    'no alignment: analysis/permutations.py does not say which units of Small may be permuted'
  )
  expected = {
    'barriers': ['as they are', 're-estimated'],
    'paths': ['as they are', 're-estimated', 'curve, re-estimated'],
  }
  for name, part in PARTS.items():
    arrays, _ = compute(study, name, tmp_path / name)
    assert str(arrays['no_alignment']).startswith(message)
    if name == 'layers':
      assert arrays['changes'].tolist() == ['halfway, as it is', 'replaced, as it is']
    else:
      assert arrays['variants'].tolist() == expected[name]
    with style.drawing(name):
      part.draw(arrays).canvas.draw()
    assert 'No alignment.' in part.caption(arrays)
    assert name != 'barriers' or message in part.table(arrays)[-1][0]


def test_layers_of_a_permuted_copy_change_nothing_if_they_are_aligned(moved):
  arrays, _ = moved
  assert arrays['layers'].tolist() == list(small_network.LAYERS)
  changes = dict(zip(arrays['changes'], arrays['test/predictive_kl'], strict=True))
  for change in ('halfway, aligned', 'replaced, aligned'):
    np.testing.assert_allclose(changes[change], 0, atol=1e-4)
  assert changes['replaced, as it is'].min() > 0.1


def test_default_pairs_are_the_available_ones():
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
  # Named members ignore max_members; 'all' keeps one of the three.
  asked = chosen(*everyone, pairs=('teacher 2:student', 'initial : sibling'), max_members=1)
  assert asked == [('teacher 2', 'student'), ('initial', 'sibling')]
  assert len(chosen(*everyone, pairs=('all',), max_members=1)) == 5 * 4 / 2


@pytest.mark.parametrize('pair', ['student', 'student:student', 'student:teacher 7', ':student'])
def test_unknown_pairs_are_refused(pair):
  names = ['initial', 'student', 'teacher 0']
  misnamed = PARTS['paths'].misnamed
  (message,) = misnamed(names, Settings(pairs=(pair, 'student:initial')))
  assert message.startswith(
    f"--pairs: '{pair}': allowed: 'all', or two different ones of initial, "
  )
  assert misnamed(names, Settings(pairs=('all',))) == misnamed(names, Settings()) == []


def test_many_pairs_are_drawn_in_bands(curves):
  arrays, _ = curves
  num_pairs = drawing.PAIRS_IN_A_BAND + 1
  wide = {
    k: np.repeat(x[:1], num_pairs, axis=0) for k, x in arrays.items() if len(np.shape(x)) == 3
  }
  wide = arrays | wide | {'pair_names': np.array([['student', str(q)] for q in range(num_pairs)])}
  with style.drawing('paths'):
    figure = PARTS['paths'].draw(wide)
  drawn = [axes for axes in figure.axes if axes.lines]
  ends = [axes.get_xticklabels()[-1].get_text() for axes in drawn]
  assert [text for text in ends if text] == [str(q) for q in range(num_pairs)]


def test_without_batch_norm_nothing_is_re_estimated():
  networks = types.SimpleNamespace(
    has_statistics=False, aligner=types.SimpleNamespace(lacking=None)
  )
  found = barriers._Networks.variants(networks, barriers._MATRIX_VARIANTS)
  assert [(v.name, v.aligned) for v in found] == [('as they are', False), ('aligned', True)]
  assert not any(v.reestimate for v in found)


def test_layers_are_in_order_of_depth():
  model = models.PreActResNet(3, models.BasicBlock, 2, 4, 'layer')
  order = surface.layers(model, np.zeros((1, 8, 8, 1), np.float32))
  blocks = [f'stage{stage}_block{i}' for stage in (1, 2, 3) for i in (1, 2)]
  assert order == ['Conv_0', *blocks, 'LayerNorm_0', 'Dense_0']


class FakeStudy(types.SimpleNamespace):
  lacks_teacher = runs.Study.lacks_teacher


def make_study(**fields):
  teacher = types.SimpleNamespace(source='')
  config = types.SimpleNamespace(teacher=teacher)
  alone = {
    'experiment': types.SimpleNamespace(config=config),
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


# Figures, captions and tables.


def test_columns_of_paths_have_their_own_ends(curves):
  arrays, _ = curves
  with style.drawing('paths'):
    figure = PARTS['paths'].draw(arrays)
  labels = [[t.get_text() for t in axes.get_xticklabels()] for axes in figure.axes]
  assert labels[-2:] == [['student', '', 'teacher\n0'], ['initial', '', 'student']]
  first = figure.axes[0].lines[1]
  np.testing.assert_array_equal(first.get_ydata(), arrays['distillation/loss'][0, 1])
  np.testing.assert_array_equal(first.get_xdata(), [0, 0.5, 1])
  rows = PARTS['paths'].table(arrays)
  assert rows[2][:2] == ['student to teacher 0', 're-estimated']
  assert rows[2][2].startswith(f'{arrays["loss"][0, 1]:.3g} [')
  assert len(rows) == 1 + 2 * 4


def test_bars_are_in_order_of_depth(moved):
  arrays, _ = moved
  with style.drawing('layers'):
    figure = PARTS['layers'].draw(arrays)
  left, right = figure.axes[:2]
  assert left.yaxis_inverted()
  assert [t.get_text() for t in left.get_yticklabels()] == arrays['layers'].tolist()
  widths = [bar.get_width() for bar in right.containers[2]]
  np.testing.assert_allclose(widths, 100 * arrays['test/top1_agreement'][2])
  rows = PARTS['layers'].table(arrays)
  assert rows[1][2].startswith(f'{arrays["student/test/predictive_kl"]:.3g} [')
  assert rows[5][:2] == ['Hidden_0', 'replaced, as it is']
  assert rows[5][2].startswith(f'{arrays["test/predictive_kl"][3, 0]:.3g} [')


def texts_of(axes):
  return [text.get_text() for text in axes.texts]


def made_matrix(error, low, high):
  """Three networks, two variants, two alignments; the accuracy of student and teacher 0 is given."""
  loss = np.array([[9.0, 8.0], [7.0, 0.02], [5.0, 4.0]])
  errors = np.array([[0.5, 0.4], [0.3, error], [0.2, 0.1]])
  arrays = {
    'names': np.array(['initial', 'student', 'teacher 0']),
    'pairs': np.array([[0, 1], [1, 2], [0, 2]]),
    'variants': np.array(['as they are', 'aligned']),
    'loss_unit': np.array('nats'),
    'num_examples': np.array([512, 360]),
    'alignment_examples': np.array([512, 10]),
    'alignments/names': np.array([['as they are', 'weights', 'weights, restart 1', 'learned']] * 3),
    'alignments/loss': np.ones((3, 4)),
    'alignments/halfway': np.array([[9, 8, 6, 7.0], [7, 3, 5, 2], [5, 5, 5, 4]]),
    'alignments/chosen': np.array(['weights', 'learned', 'learned']),
  }
  for key, value in (('loss', loss), ('error', errors)):
    arrays |= {key: value, f'{key}/low': value - 0.01, f'{key}/high': value + 0.01}
  arrays['error/low'][1, 1], arrays['error/high'][1, 1] = low, high
  return arrays


def test_the_matrix_shows_each_pair_once_in_its_cell():
  with style.drawing('barriers'):
    figure = PARTS['barriers'].draw(made_matrix(0.01, 0, 0.02))
  first, second, _, accuracy, spread = figure.axes[:5]
  assert texts_of(first) == ['9.0', '5.0', '7.0']
  assert texts_of(second) == ['8.0', '4.0', '0.02']
  assert texts_of(accuracy) == ['40.0', '10.0', '1.0']
  assert [(t.get_position()) for t in first.texts] == [(0, 0), (0, 1), (1, 1)]
  assert [t.get_text() for t in first.get_yticklabels()] == ['student', 'teacher 0']
  assert [t.get_text() for t in accuracy.get_xticklabels()] == ['initial', 'student']
  assert first.images[0].get_clim() == second.images[0].get_clim() == (0, 9)
  rings = [line.get_xdata()[0] for line in spread.lines if line.get_markersize() == 9]
  assert rings == [8, 2, 4]


def test_the_table_says_whether_student_and_teacher_share_a_basin():
  arrays = made_matrix(error=0.0156, low=0.0087, high=0.0263)
  rows = PARTS['barriers'].table(arrays)
  cells = ['student, teacher 0', 'aligned', '0.02 [0.01, 0.03]', '1.56 [0.87, 2.63]']
  assert rows[4] == [*cells, 'cannot be told']
  assert rows[-2] == ['student, teacher 0', 'learned', '2', '3 to 5', '2 to 5']
  caption = PARTS['barriers'].caption(arrays)
  assert 'best of several on 512 other examples (10 of them measured too).' in caption
