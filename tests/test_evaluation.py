"""result.json: its numbers against other code, and against known results."""

import importlib
import json
import pathlib
import shutil

import jax
import numpy as np
import pytest
from conftest import ROOT, copied, tiny_run
from scipy.special import softmax
from scipy.stats import entropy
from sklearn.metrics import accuracy_score, cohen_kappa_score, log_loss

from kdjax import intervals, keys, metrics
from kdjax.config import sweep as sweep_lib
from kdjax.data import augmentations
from kdjax.errors import DivergedError, MissingInputError
from kdjax.runtime import files
from kdjax.stages import evaluation, independent, predictions, student, teachers
from kdjax.train import loop

SPLITS = ['train', 'val', 'test']
INDEPENDENT_SEED, NUM_CKA_EXAMPLES, NUM_RESAMPLES = 7, 40, 50


@pytest.fixture(scope='module')
def compared(finished, tmp_path_factory):
  """A run with an independent student and CKA."""
  run = copied(
    finished,
    tmp_path_factory.mktemp('compared'),
    evaluation__independent_seed=INDEPENDENT_SEED,
    evaluation__num_cka_examples=NUM_CKA_EXAMPLES,
  )
  assert run.folders.student.name == finished.folders.student.name
  assert independent.STAGE.run(run)
  assert evaluation.STAGE.run(run)
  return run


@pytest.fixture(scope='module')
def result(compared):
  return json.loads((compared.folders.student / 'result.json').read_text())


@pytest.fixture(scope='module')
def arrays(compared):
  return np.load(compared.folders.student / 'logits.npz')


def probabilities(arrays, split):
  student = softmax(arrays[f'{split}/student_logits_NC'].astype(np.float64), axis=-1)
  teacher = softmax(arrays[f'{split}/teacher_log_probs_NC'].astype(np.float64), axis=-1)
  return student, teacher


# Against independent code.


def test_numbers_are_those_of_independent_code(compared, result, arrays):
  """Over all examples of a split, and over those where the teacher is wrong, if every image has a label."""
  assert [name for name, of in result['splits'].items() if 'teacher_wrong' in of] == SPLITS
  for split in SPLITS:
    student, teacher = probabilities(arrays, split)
    labels = compared.data.splits[split].labels_N
    found, wrong = result['splits'][split], teacher.argmax(-1) != labels
    for who, probs in [('student', student), ('teacher', teacher)]:
      assert found[who]['accuracy'] == accuracy_score(labels, probs.argmax(-1))
      np.testing.assert_allclose(found[who]['nll'], log_loss(labels, probs, labels=range(10)))
    for part, chosen in ((found, slice(None)), (found['teacher_wrong'], wrong)):
      p, q = teacher[chosen], student[chosen]
      assert part['num_examples'] == len(p) > 0
      of = part['fidelity']
      np.testing.assert_allclose(of['top1_agreement'], (q.argmax(-1) == p.argmax(-1)).mean())
      np.testing.assert_allclose(of['predictive_kl'], entropy(p.T, q.T).mean())


def test_members_are_compared_with_their_ensemble(compared, result):
  members = result['splits']['test']['members']
  assert len(members) == 2
  log_probs = predictions.open_teacher(compared).members('test')
  for found, probs in zip(members, np.exp(log_probs), strict=True):
    assert found['accuracy'] == (probs.argmax(-1) == compared.data.splits['test'].labels_N).mean()
  assert members[0]['predictive_kl'] > 0


def test_the_last_epoch_of_the_training_is_in_the_result(compared, result):
  """In train mode: of the steps 30 to 34, as 200 examples are 4.2 batches of 48."""
  found = result['splits']['distillation']['last_epoch']
  rows = files.read_json_lines(compared.folders.student / 'metrics.jsonl')
  places = [row['step'] for row in rows]
  assert set(found) == {'top1_agreement', 'predictive_kl', 'loss'} and 29 in places
  for name, value in found.items():
    total = sum(
      row[f'train/{name}'] * (row['step'] - before)
      for before, row in zip([0, *places], rows, strict=False)
      if row['step'] > 29
    )
    assert value == pytest.approx(total / 5)


# The independent student.


def test_the_independent_student_is_compared_with_this_teacher(compared, result, arrays):
  other = tiny_run(compared.workdir, seed=INDEPENDENT_SEED)
  variables = student.load(other)
  for split in SPLITS:
    logits = other.predictor.logits(other.student.model, variables, other.data.inputs[split])
    teacher = arrays[f'{split}/teacher_log_probs_NC']
    found = result['splits'][split]
    np.testing.assert_array_equal(arrays[f'{split}/independent_logits_NC'], logits)
    assert found['independent'] == with_all_measures(logits, teacher)
    assert found['independent'] != found['fidelity']
    wrong = teacher.argmax(-1) != compared.data.splits[split].labels_N
    expected = with_all_measures(logits[wrong], teacher[wrong])
    assert found['teacher_wrong']['independent'] == expected


def with_all_measures(logits, teacher):
  """All six measures, by independent code where test_metrics.py has none."""
  values = metrics.finer_fidelity_values(logits, teacher)
  found = metrics.fidelity(logits, teacher) | {name: of.mean() for name, of in values.items()}
  found['cohens_kappa'] = cohen_kappa_score(logits.argmax(-1), teacher.argmax(-1))
  return pytest.approx(found, rel=1e-9)


def test_the_independent_student_sees_the_same_views(compared, result):
  other = tiny_run(compared.workdir, seed=INDEPENDENT_SEED)
  values = distillation_values(compared, other)
  found = result['splits']['distillation']['independent']
  np.testing.assert_allclose(found['top1_agreement'], values['top1_agreement'].mean())
  np.testing.assert_allclose(found['predictive_kl'], values['predictive_kl'].mean(), rtol=1e-4)


def distillation_values(run, of) -> dict[str, np.ndarray]:
  """The mean of each example over the views 0 and 1: fidelity of the student of `of` to `run`'s teacher."""
  teacher, variables = predictions.open_teacher(run), student.load(of)
  by_view = []
  for view in (0, 1):
    logits = run.predictor.logits(
      run.student.model, variables, run.data.inputs['distillation'], view
    )
    probs = np.exp(teacher.members('distillation', view).astype(np.float64)).mean(axis=0)
    by_view.append(metrics.fidelity_values(logits, np.log(probs)))
  return {name: (by_view[0][name] + by_view[1][name]) / 2 for name in by_view[0]}


def test_the_independent_student_is_an_ordinary_one_and_is_trained_once(compared):
  other = independent.counterpart(compared)
  assert other.folders.student == tiny_run(compared.workdir, seed=INDEPENDENT_SEED).folders.student
  assert loop.is_complete(other.folders.student)
  for folder in ('teachers', 'predictions', 'students'):  # this one's and that one's
    assert len([path for path in (compared.workdir / folder).iterdir() if path.is_dir()]) == 2
  before = modified(compared.workdir)
  assert not independent.STAGE.run(compared)
  assert modified(compared.workdir) == before


def modified(workdir) -> dict[pathlib.Path, int]:
  return {p: p.stat().st_mtime_ns for p in pathlib.Path(workdir).rglob('*') if p.is_file()}


def test_an_independent_student_that_diverges_is_reported_and_left_out(
  compared, tmp_path, monkeypatch
):
  run = copied(compared, tmp_path, evaluation__independent_seed=INDEPENDENT_SEED)
  other = independent.counterpart(run)
  shutil.rmtree(other.folders.student)
  (run.folders.student / 'result.json').unlink()

  def diverge(*_):
    files.write_json(other.folders.student / loop.DIVERGED, {'message': 'the loss is nan'})
    raise DivergedError('the loss is nan.')

  with monkeypatch.context() as patched:
    patched.setattr(student.Distiller, 'fit', diverge)
    with pytest.raises(
      DivergedError,
      match=r'the loss is nan\. This was the independent student\. Run the same command',
    ):
      independent.STAGE.run(run)
  assert not independent.STAGE.run(run)  # the same command goes on
  assert evaluation.STAGE.run(run) and not evaluation.STAGE.run(run)
  assert 'independent' not in evaluation.result(run)['splits']['test']


def test_without_an_independent_student_there_is_nothing_to_do(finished):
  assert finished.config.evaluation.independent_seed is None
  assert not independent.STAGE.run(finished)
  splits = evaluation.result(finished)['splits']
  for of in splits.values():
    assert not {'independent', 'difference'} & {*of, *of['intervals']}
  arrays = np.load(finished.folders.student / 'logits.npz')
  assert not [name for name in arrays if 'independent' in name]


def test_a_missing_independent_student_is_reported_with_the_command(finished, tmp_path):
  run = copied(finished, tmp_path, evaluation__independent_seed=INDEPENDENT_SEED)
  before = evaluation.result(run)
  with pytest.raises(MissingInputError, match='--stages=independent'):
    evaluation.STAGE.run(run)
  assert evaluation.result(run) == before


# Intervals.


def test_intervals_hold_the_mean(result):
  splits = result['splits']
  parts = [*splits.values(), *(splits[name]['teacher_wrong'] for name in SPLITS)]
  assert len(parts) == 7
  for part in parts:
    assert part['num_examples'] >= 6  # fewer have no intervals
    for who in ('fidelity', 'independent'):
      for measure, (low, high) in part['intervals'][who].items():
        assert low <= part[who][measure] <= high
        assert low < high
    for measure, of in part['difference'].items():
      low, high = of['interval']
      mean = part['fidelity'][measure] - part['independent'][measure]
      assert low <= of['mean'] == pytest.approx(mean) and mean <= high
      assert of['verdict'] == intervals.verdict(low, high)


def test_intervals_are_of_the_bootstrap_over_examples(compared, result, arrays):
  values = {
    who: metrics.fidelity_values(
      arrays[f'test/{name}_logits_NC'], arrays['test/teacher_log_probs_NC']
    )
    for who, name in (('fidelity', 'student'), ('independent', 'independent'))
  }
  wrong = arrays['test/teacher_log_probs_NC'].argmax(-1) != compared.data.splits['test'].labels_N
  found = result['splits']['test']
  for part, chosen in [(found, slice(None)), (found['teacher_wrong'], wrong)]:
    for measure in ('top1_agreement', 'predictive_kl'):
      of = {who: values[who][measure][chosen] for who in values}
      for who, values_N in of.items():
        np.testing.assert_allclose(part['intervals'][who][measure], interval(values_N))
      # The same resamples for both: the interval is that of the difference of each example.
      difference = interval(of['fidelity'] - of['independent'])
      np.testing.assert_allclose(part['difference'][measure]['interval'], difference, rtol=1e-6)


def test_an_image_counts_once_in_the_interval_however_many_views_it_has(compared, result):
  found = result['splits']['distillation']
  for measure, values in distillation_values(compared, compared).items():
    assert len(values) == 200
    expected = interval(values)
    np.testing.assert_allclose(found['intervals']['fidelity'][measure], expected, rtol=1e-4)


def interval(values):
  return intervals.bootstrap_interval(values, NUM_RESAMPLES, keys.numpy_rng(0, 'bootstrap'))


# Features.


def test_cka_is_of_the_features_on_test_examples_in_any_order(compared, result):
  inputs_N = compared.data.splits['test'].inputs_N
  chosen = keys.numpy_rng(0, 'cka').permutation(len(inputs_N))[:NUM_CKA_EXAMPLES]
  images = augmentations.unit_cube(inputs_N[chosen])

  def features(model, variables):
    return jax.jit(lambda x: model.apply(variables, x, train=False)[1])(images)

  of_student = features(compared.student.model, student.load(compared))
  assert set(result['cka']) == {'first', 'last'}
  for member in range(2):
    of_member = features(compared.teacher.model, teachers.load(compared, member))
    for name, found in result['cka'].items():
      expected = metrics.linear_cka(of_student[name], of_member[name])
      np.testing.assert_allclose(found[f'member_{member}'], expected, rtol=1e-3)
      assert set(found) == {'member_0', 'member_1'}


def test_a_result_answers_the_settings_that_it_covers(compared, finished, monkeypatch):
  """Otherwise two sweeps that share a student, one with CKA, would compute its result in turn."""

  def is_evaluated(workdir, num_cka_examples, seed):
    asked = {'num_cka_examples': num_cka_examples, 'independent_seed': seed}
    return evaluation.is_evaluated(
      tiny_run(workdir, **{f'evaluation__{k}': v for k, v in asked.items()})
    )

  for num_cka_examples, seed, answered in (
    (40, 7, True),
    (0, 7, True),
    (39, 7, False),
    (0, 8, False),
    (40, None, False),
  ):
    assert is_evaluated(compared.workdir, num_cka_examples, seed) == answered
  assert evaluation.is_evaluated(finished)
  assert not is_evaluated(finished.workdir, 40, None)
  monkeypatch.setattr(evaluation, 'VERSION', evaluation.VERSION + 1)
  assert not evaluation.is_evaluated(finished)


# Students with known results.


def test_a_student_that_is_its_teacher_agrees_in_everything(finished, tmp_path):
  run = copied(
    finished,
    tmp_path,
    teacher__num_members=1,
    predictions__mode='online',  # stored ones are rounded
    evaluation__num_cka_examples=NUM_CKA_EXAMPLES,
  )
  shutil.copytree(run.folders.member(0), run.folders.student)
  files.write_json(run.folders.student / 'data.json', {'checksum': run.data.everything.checksum})
  assert evaluation.STAGE.run(run)
  result = evaluation.result(run)
  for name, found in result['splits'].items():
    assert found['fidelity']['top1_agreement'] == 1
    assert abs(found['fidelity']['predictive_kl']) < 1e-6
    assert found['intervals']['fidelity']['top1_agreement'] == [1, 1]
    assert found['student']['accuracy'] == found['teacher']['accuracy']
    if name != 'distillation':
      assert found['teacher_wrong']['fidelity']['top1_agreement'] == 1
      wrong = 1 - found['teacher_wrong']['num_examples'] / found['num_examples']
      assert found['teacher']['accuracy'] == pytest.approx(wrong)
  assert all(cka == {'member_0': pytest.approx(1)} for cka in result['cka'].values())
  assert len(result['cka']) == 2


# The distillation data.


def test_the_distillation_split_is_of_views_that_the_student_saw(result):
  found = result['splits']['distillation']
  assert found['num_examples'] == 2 * 200  # evaluation.num_views = 2 of the 3
  assert found['fidelity'] != result['splits']['train']['fidelity']


def with_other_views(finished, tmp_path, **fields):
  """The same student and teachers, evaluated as if it had seen other views. Nothing is trained."""
  run = copied(finished, tmp_path, predictions__mode='online', **fields)
  shutil.copytree(finished.folders.student, run.folders.student)
  (run.folders.student / 'result.json').unlink()
  assert evaluation.STAGE.run(run)
  return run, evaluation.result(run)['splits']['distillation']


def test_mixtures_have_fidelity_but_no_accuracy(finished, tmp_path):
  names = ('crop', 'mixup')
  run, found = with_other_views(finished, tmp_path, predictions__augmentation=names)
  assert found['student'] == found['teacher'] == {}
  assert found['num_examples'] == 2 * 200
  agreement = distillation_values(run, run)['top1_agreement'].mean()
  np.testing.assert_allclose(found['fidelity']['top1_agreement'], agreement)
  assert found['fidelity'] != evaluation.result(finished)['splits']['distillation']['fidelity']


def test_noise_counts_for_fidelity_but_not_for_accuracy(finished, tmp_path):
  run, found = with_other_views(
    finished,
    tmp_path,
    predictions__augmentation=('noise',),
    augmentation__noise_probability=0.5,
    evaluation__num_views=1,
  )
  inputs = run.data.inputs['distillation']
  logits, labels = (
    run.predictor.logits(run.student.model, student.load(run), inputs),
    run.predictor.labels(inputs, 0),
  )
  is_image = labels >= 0
  assert 60 < is_image.sum() < 140
  np.testing.assert_array_equal(labels[is_image], run.data.splits['train'].labels_N[is_image])
  right = logits.argmax(-1)[is_image] == labels[is_image]
  assert found['student']['accuracy'] == right.mean()
  # So are the images of the training set alone, and they are what it was in 'train', too.
  train = run.predictor.logits(run.student.model, student.load(run), run.data.inputs['train'])
  np.testing.assert_allclose(logits[is_image], train[is_image], rtol=1e-4, atol=1e-5)
  teacher = predictions.open_teacher(run).members('distillation', 0)
  probs = np.exp(teacher.astype(np.float64)).mean(axis=0)
  assert found['fidelity']['top1_agreement'] == (logits.argmax(-1) == probs.argmax(-1)).mean()


# The file.


def test_results_are_of_configs_that_are_evaluated_with_their_settings(compared, finished):
  other_views = tiny_run(compared.workdir, evaluation__num_views=3).config
  not_trained = tiny_run(compared.workdir, student__temperature=2.0).config
  configs = [not_trained, compared.config, other_views, finished.config]
  found = evaluation.results(configs, compared.workdir)
  assert found == {1: evaluation.result(compared)}


def test_a_student_is_evaluated_again_without_training(finished, tmp_path):
  """On more views. The config beside the result is of the last evaluation, for its data may be moved."""
  folder = copied(finished, tmp_path).folders.student
  config = pathlib.Path(folder, 'config.json')
  for num_views in (3, 2):
    run = tiny_run(tmp_path, dataset__data_dir=str(tmp_path), evaluation__num_views=num_views)
    assert run.folders.student == folder
    assert not student.STAGE.run(run)
    assert evaluation.STAGE.run(run)
    found = evaluation.result(run)['splits']['distillation']
    assert found['num_examples'] == num_views * 200
    saved = json.loads(config.read_text())
    assert saved['dataset']['data_dir'] == str(tmp_path)
    assert saved['evaluation']['num_views'] == num_views
    before = config.stat().st_mtime_ns
    assert not evaluation.STAGE.run(run)
    assert config.stat().st_mtime_ns == before


def test_fingerprints_name_the_folders(compared, result):
  assert result['fingerprints'] == {
    'teacher': compared.folders.member(0).parent.name,
    'predictions': compared.folders.predictions.name,
    'student': compared.folders.student.name,
  }


def test_every_measure_of_the_papers_figures_is_there(result):
  features = ('stem', 'stage1', 'stage2', 'stage3', 'pooled')  # of a ResNet
  result = result | {'cka': dict.fromkeys(features, result['cka']['first'])}
  paths = (ROOT / 'configs' / 'paper').glob('[ft]*_*.py')
  modules = [importlib.import_module(f'configs.paper.{path.stem}') for path in paths]
  sweeps = [of.get_sweep() for of in modules if hasattr(of, 'get_sweep')]  # Figure 8 is none
  assert len(sweeps) == 16
  for sweep in sweeps:
    row, *_ = sweep_lib.summarise(sweep, {0: result})
    assert [cell.count for cell in row.cells] == [1] * len(sweep.panels), sweep
