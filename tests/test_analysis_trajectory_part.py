"""The parts `trajectory` and `gradients`, on a finished tiny run with planted teachers."""

import dataclasses
import functools
import itertools
from functools import partial

import jax
import numpy as np
import optax
import pytest
from conftest import copied, tiny_run
from etils import epath

from analysis import (
  alignment,
  estimates,
  matching,
  measure,
  paths,
  permutations,
  runs,
  surface,
)
from analysis.figures import trajectory as drawing
from analysis.measure import Measure
from analysis.part import Blocks, Checks, Settings
from analysis.parts import trajectory as part
from kdjax import intervals, losses
from kdjax.stages import student
from kdjax.stages.experiment import Experiment
from kdjax.train import devices, steps
from tests import drawn, small_network

SETTINGS = Settings(num_examples=96, gradient_batches=4, alignment_restarts=0, alignment_steps=0)
BATCH_SIZE = 48  # of tiny_config's student
PARTS = {p.name: p for p in part.PARTS}


@dataclasses.dataclass(frozen=True)
class Planted(runs.Study):
  """A study with another first teacher, fewer checkpoints and unrelated teachers."""

  teacher: dict | None = None
  kept: tuple[int, ...] | None = None
  unrelated: tuple[dict, ...] = ()

  def unrelated_teachers(self):
    return {f'other/{i}': lambda i=i: self.unrelated[i] for i in range(len(self.unrelated))}

  def member(self, member: int = 0):
    planted = member == 0 and self.teacher is not None
    return self.teacher if planted else super().member(member)

  @property
  def steps(self):
    return super().steps if self.kept is None else list(self.kept)


@pytest.fixture(scope='module')
def study(finished, tmp_path_factory) -> runs.Study:
  return runs.Study(copied(finished, tmp_path_factory.mktemp('trajectory')))


@pytest.fixture(scope='module', autouse=True)
def compiled_once(study):
  """All parts share the measures of the study with its own teachers, and its model can be aligned."""
  make = functools.cache(partial(Measure, study))
  with pytest.MonkeyPatch.context() as patch:
    patch.setitem(permutations.SPECS, small_network.Small, small_network.spec)
    for module in (matching, measure, part):
      patch.setattr(module, 'Measure', lambda _, *args, **kwargs: make(*args, **kwargs))
    yield


def random_networks(study, seeds):
  return tuple(study.experiment.student.init_variables(seed) for seed in seeds)


@pytest.fixture(scope='module')
def networks(study):
  """The networks of both parts: teacher 0, and two unrelated teachers."""
  planted = Planted(study.experiment, unrelated=random_networks(study, (91, 92)))
  return part._networks(planted, SETTINGS, Checks())


@pytest.fixture(scope='module')
def results(study, networks, tmp_path_factory):
  """The arrays of both parts."""
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(part, '_networks', lambda *_: networks)
    return {name: compute(name, study, tmp_path_factory.mktemp(name)) for name in PARTS}


def last_only(study, teacher, unrelated=()) -> Planted:
  return Planted(study.experiment, teacher, (study.steps[-1],), unrelated)


def compute(name, study, tmp_path, checks=None):
  return PARTS[name].compute(study, SETTINGS, Blocks(epath.Path(tmp_path)), checks or Checks())


def vector(params):
  return np.concatenate([np.ravel(x) for x in jax.tree.leaves(params)]).astype(np.float64)


# trajectory


def test_distances_and_the_path_are_those_of_the_checkpoints(study, results):
  arrays = results['trajectory']
  assert arrays['steps'].tolist() == study.steps and len(study.steps) == 3
  points = [vector(study.student(step)['params']) for step in study.steps]
  teacher = vector(study.member(0)['params'])
  norm = np.linalg.norm
  close = lambda found, expected: np.testing.assert_allclose(found, expected, rtol=1e-9)
  close(arrays['distance/raw'][:, 0], [norm(x - teacher) for x in points])
  close(arrays['cosine/raw'][1, 0], points[1] @ teacher / norm(points[1]) / norm(teacher))
  pieces = [norm(b - a) for a, b in itertools.pairwise(points)]
  close(arrays['length'][:, 0], [0, pieces[0], sum(pieces)])
  close(arrays['displacement'][-1, 0], norm(points[-1] - points[0]))
  dense = [vector(v['params']['Dense_0']) for v in (study.student(), study.member(0))]
  close(arrays['distance/raw'][-1, -1], norm(dense[0] - dense[1]))


def test_layers_stand_in_order_of_depth(results):
  for name in ('trajectory', 'gradients'):
    assert results[name]['layers'].tolist() == ['all', *small_network.LAYERS]


def test_fidelity_is_measured_at_every_checkpoint(study, results):
  measured = measure.Measure(study, SETTINGS.num_examples)
  for place, step in enumerate(study.steps):
    expected = surface.summary(measured.variables(study.student(step)), study.seed)
    for key in ('test/predictive_kl', 'distillation/top1_agreement/low'):
      assert results['trajectory'][key][place] == pytest.approx(expected[key][0], rel=1e-5)
  kl = results['trajectory']['distillation/predictive_kl']
  assert kl[-1] < kl[0]


def test_a_permuted_student_as_teacher_is_far_raw_and_at_zero_aligned(study, tmp_path, monkeypatch):
  for module in (matching, part):
    monkeypatch.setattr(module, 'Measure', Measure)
  # The ensemble is the planted teacher alone, so that the loss is 0 where the networks are aligned.
  monkeypatch.setattr(measure, 'teacher_members', lambda study: [study.member()])
  spec = permutations.spec_for(study.experiment.student.model, study.student()['params'])
  mixed = alignment.random_permutations(spec, np.random.default_rng(0))
  teacher = alignment.apply(spec, mixed, jax.device_get(study.student()))
  checks = Checks()
  arrays = compute('trajectory', last_only(study, teacher), tmp_path, checks)
  assert arrays['distance/raw'][0, 0] > 1
  names = arrays['alignments/names'].tolist()
  assert arrays['alignments/distance'][names.index('weights')] == pytest.approx(0, abs=1e-6)
  # Activations leave dead units where they are, which has the same loss.
  chosen = arrays['alignments/distance'][names.index(str(arrays['alignments/chosen']))]
  assert arrays['distance/aligned'][0, 0] == pytest.approx(chosen, abs=1e-6)
  assert chosen < arrays['distance/raw'][0, 0]
  assert min(arrays['alignments/loss']) == pytest.approx(arrays['alignments/loss'][1], abs=1e-4)
  assert arrays['alignments/loss'][0] > arrays['alignments/loss'][1] + 1e-3
  assert checks.values['logits unchanged by permutations'][0] < 1e-4
  # A permuted copy is as far as any other permuted copy; there is no unrelated teacher.
  low, high = (arrays[f'excess/raw/permuted/{end}'][0, 0] for end in ('low', 'high'))
  assert intervals.verdict(low, high) == intervals.UNDECIDED
  assert 'null/unrelated' not in arrays
  assert 'no unrelated teacher' in PARTS['trajectory'].table(arrays)[-1][0]


def test_distances_are_compared_with_their_nulls(study, results):
  arrays, norm = results['trajectory'], np.linalg.norm
  points = [vector(study.student(step)['params']) for step in study.steps]
  np.testing.assert_allclose(arrays['null/origin'][:, 0], [norm(x) for x in points], rtol=1e-9)
  others = [vector(x['params']) for x in random_networks(study, (91, 92))]
  expected_KT = [[norm(x - other) for x in points] for other in others]
  np.testing.assert_allclose(arrays['null/unrelated'][..., 0], expected_KT, rtol=1e-9)
  # All permutations have the teacher's norm, so only inner products differ.
  assert arrays['null/permuted'].shape == (estimates.NUM_PERMUTATIONS, 3, 4)
  assert len(np.unique(arrays['null/permuted'][:, -1, 0])) == estimates.NUM_PERMUTATIONS
  for null in ('permuted', 'unrelated', 'origin'):
    mean_TL = arrays[f'null/{null}'] if null == 'origin' else arrays[f'null/{null}'].mean(0)
    found = arrays[f'excess/raw/{null}']
    np.testing.assert_allclose(found, arrays['distance/raw'] - mean_TL, atol=1e-9)
  assert (arrays['null/unrelated, aligned'][:, -1, 0] < arrays['null/unrelated'][:, -1, 0]).all()
  rows = PARTS['trajectory'].table(arrays)
  names = [row[0].partition('; null: ')[2] for row in rows[1:6]]
  assert names == [
    'teacher 0, permuted at random (16)',
    'unrelated teachers (2)',
    'origin',
    'unrelated teachers, aligned (2)',
    'origin',
  ]


@pytest.mark.parametrize(
  ('noise', 'verdict'), [(0.01, intervals.LOWER), (None, intervals.UNDECIDED)]
)
def test_a_near_teacher_is_distinguished_from_an_unrelated_network(
  study, tmp_path, monkeypatch, noise, verdict
):
  """Without noise the teacher is a random network, like the unrelated ones. None is aligned."""
  monkeypatch.delitem(permutations.SPECS, small_network.Small)
  final = jax.device_get(study.student())
  rng = np.random.default_rng(0)
  near = jax.tree.map(lambda x: x + (noise or 0) * rng.normal(size=x.shape), final['params'])
  *unrelated, far = random_networks(study, range(60, 69))
  teacher = final | {'params': near} if noise else far
  arrays = compute('trajectory', last_only(study, teacher, tuple(unrelated)), tmp_path)
  ends = [arrays[f'excess/raw/unrelated/{end}'][0, 0] for end in ('low', 'high')]
  assert intervals.verdict(*ends) == verdict
  assert drawing.compared(arrays) == [('raw', 'unrelated'), ('raw', 'origin')]
  drawing.draw_trajectory(arrays)
  rows = PARTS['trajectory'].table(arrays)
  assert rows[1][0].endswith('null: unrelated teachers (8)') and rows[1][-1] == verdict
  assert rows[-1][0].startswith(
    'no alignment: analysis/permutations.py does not say which units of'
  )


# gradients


def step_of(model, objective):
  return devices.parallel(partial(part.gradient_step, model=model, objective=objective))


def test_the_gradient_is_that_of_the_training_step(study):
  """The norm is the one that `steps.student_step` logs on the same batch."""
  measured, run = measure.Measure(study, 4 * BATCH_SIZE), study.experiment
  batch = paths.training_batches(measured.batches('distillation'), BATCH_SIZE)[0]
  step = devices.parallel(
    partial(
      steps.student_step,
      model=run.student.model,
      optimizer=optax.sgd(0.1),
      view=lambda seed, batch: (batch['inputs'], batch['labels']),
      loss=losses.distillation,
      temperature=lambda step: run.config.student.temperature,
      alpha=0.0,
    ),
    num_sharded=2,
  )
  shared = devices.shard(batch)
  state = steps.init_state(study.student(), optax.sgd(0.1))
  after, logged = step(state, shared, shared['teacher_log_probs'], study.seed)
  gradient = step_of(run.student.model, measured.objective('distillation'))(
    (study.student(), run.config.student.temperature), shared, study.seed
  )
  norm, count = logged['gradient_norm']
  assert float(optax.tree.norm(gradient)) == pytest.approx(float(norm / count), rel=1e-5)
  moved = jax.tree.map(lambda a, b: (a - b) / 0.1, state.params, after.params)
  np.testing.assert_allclose(vector(gradient), vector(moved), rtol=0.01, atol=1e-4)


def test_a_teacher_down_the_gradient_has_cosine_one(study, tmp_path):
  """The teacher is planted one step of descent from the final student."""
  measured = measure.Measure(study, 4 * BATCH_SIZE)
  fn = step_of(study.experiment.student.model, measured.objective('distillation'))
  final = jax.device_get(study.student())
  batches = paths.training_batches(measured.batches('distillation'), BATCH_SIZE)
  gradients = [jax.device_get(fn((final, 4.0), devices.shard(b), study.seed)) for b in batches]
  down = jax.tree.map(lambda x, *g: x - 0.5 * sum(g), final['params'], *gradients)
  arrays = compute('gradients', last_only(study, final | {'params': down}), tmp_path)
  np.testing.assert_allclose(arrays['cosine/raw'][0], 1, atol=1e-3)
  norm = np.linalg.norm(vector(jax.tree.map(lambda *g: sum(g) / len(g), *gradients)))
  assert arrays['norm'][0, 0] == pytest.approx(norm, rel=1e-5)
  # The null: a permuted copy of that teacher lies elsewhere, and so does the origin.
  assert np.abs(arrays['null/permuted'][:, 0, 0]).max() < 0.9
  for null in ('permuted', 'origin'):
    low, high = (arrays[f'excess/raw/{null}/{end}'][0, 0] for end in ('low', 'high'))
    assert intervals.verdict(low, high) == intervals.HIGHER
  gradient, weights = (
    vector(x) for x in (jax.tree.map(lambda *g: sum(g), *gradients), final['params'])
  )
  cosine = gradient @ weights / np.linalg.norm(gradient) / np.linalg.norm(weights)  # −g with −θ
  assert arrays['null/origin'][0, 0] == pytest.approx(cosine, abs=1e-4)


def test_at_the_teacher_there_is_no_direction_to_it(study, tmp_path):
  arrays = compute('gradients', last_only(study, study.student()), tmp_path)
  assert np.isnan(arrays['cosine/raw']).all() and not np.isnan(arrays['norm']).any()
  rows = PARTS['gradients'].table(arrays)
  assert (rows[1][3], rows[1][4]) == ('undefined', 'cannot be told')
  drawing.draw_gradients(arrays).canvas.draw()


def test_gradients_belong_to_their_checkpoint_and_have_intervals(
  study, results, networks, tmp_path, monkeypatch
):
  arrays = results['gradients']
  assert (arrays['num_batches'], arrays['batch_size']) == (4, BATCH_SIZE)  # training's
  for key in ('norm', 'snr', 'cosine/raw', 'cosine/aligned'):
    value, low, high = (arrays[key + end] for end in intervals.ENDS)
    assert value.shape == (3, 4)
    assert (low <= value + 1e-12).all() and (value <= high + 1e-12).all() and (low < high).any()
  monkeypatch.setattr(part, '_networks', lambda *_: networks)
  alone = compute('gradients', Planted(study.experiment, kept=(study.steps[1],)), tmp_path)
  np.testing.assert_allclose(alone['norm'][0], arrays['norm'][1], rtol=1e-5)
  assert arrays['null/permuted'].shape == (estimates.NUM_PERMUTATIONS, 3, 4)
  assert arrays['null/unrelated'].shape == (2, 3, 4)


def test_gradients_have_the_temperature_of_their_step(study, networks, tmp_path, monkeypatch):
  """The config claims a schedule from 4 to 1/4."""
  run, alone = study.experiment, {}
  monkeypatch.setattr(part, '_networks', lambda *_: networks)
  monkeypatch.setattr(runs.Study, 'student', lambda self, step=None: student.load(run, step))
  measured = measure.Measure(study, 4 * BATCH_SIZE)
  for name, start, final in (('scheduled', 4.0, 0.25), ('hot', 4.0, None), ('middle', 1.0, None)):
    config = run.config.copy_and_resolve_references()
    config.student.temperature, config.student.final_temperature = start, final
    other = Planted(Experiment(config, run.workdir), kept=(0, study.steps[1]))
    monkeypatch.setattr(measured, '_run', other.experiment)
    alone[name] = compute('gradients', other, tmp_path / name)
  np.testing.assert_allclose(alone['scheduled']['temperature'], [4, 1], rtol=1e-6)
  for place, name in ((0, 'hot'), (1, 'middle')):
    expected = alone[name]['norm'][place]
    np.testing.assert_allclose(alone['scheduled']['norm'][place], expected, rtol=1e-4)
  assert not np.allclose(alone['hot']['norm'][1], alone['middle']['norm'][1], rtol=0.01)
  assert ['τ', '4', '1', '', ''] in PARTS['gradients'].table(alone['scheduled'])
  assert not [row for row in PARTS['gradients'].table(alone['hot']) if row[0] == 'τ']


# Both of them.


@pytest.mark.parametrize('name', list(PARTS))
def test_every_part_draws_and_describes_itself(name, results):
  drawn.check(PARTS[name], results[name])


def test_the_figure_of_gradients_marks_intervals_without_zero(results):
  arrays = dict(results['gradients'])
  for end, value in zip(intervals.ENDS, (0.5, 0.4, 0.6), strict=True):
    arrays[f'excess/raw/permuted{end}'] = np.where(np.eye(3, 4), value, 0.0)
  figure = drawing.draw_gradients(arrays)
  titles = {axes.get_title(loc='left').partition('  ')[2]: axes for axes in figure.axes}
  xy = sorted(zip(*titles['teacher 0 − permuted'].lines[-1].get_data(), strict=True))
  assert xy == [(0, 0), (1, 1), (2, 2)]  # checkpoint, layer
  # Without an alignment another null is the strictest.
  bare = {k: arrays[k] for k in arrays if 'aligned' not in k and 'permuted' not in k}
  assert drawing.compared(bare) == [('raw', 'unrelated'), ('raw', 'origin')]
  drawing.draw_gradients(bare)


def test_parts_say_what_they_lack(study, tmp_path):
  assert all(of.unavailable(study) is None for of in PARTS.values())
  other = runs.Study(tiny_run(tmp_path, student__model__options={'width': 8}))
  for of in PARTS.values():
    assert 'another architecture' in of.unavailable(other)
  other = runs.Study(tiny_run(tmp_path, student__batch_size=80))
  assert PARTS['gradients'].unavailable(other) == (
    'the noise of gradients needs 3 batches of student.batch_size = 80, and the distillation data have '
    'only 200 examples'
  )
