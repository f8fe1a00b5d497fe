"""The parts `pca` and `predictions`, which draw the checkpoints as maps, on a finished tiny run."""

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import numpy as np
import pytest
from conftest import copied, tiny_run
from etils import epath

from analysis import runs, trajectory
from analysis.figures import maps as drawing
from analysis.measure import Measure
from analysis.part import Blocks, CheckError, Checks, Settings
from analysis.parts import maps
from kdjax import metrics, models
from kdjax.predictions.teachers import ensemble
from kdjax.stages import predictions, student
from kdjax.stages.experiment import Experiment
from tests import drawn

PARTS = {part.name: part for part in maps.PARTS}


class Linear(nn.Module):
  dtype: Any = None  # every model has one

  @nn.compact
  def __call__(self, x, train):
    return nn.Dense(10)(x.reshape(len(x), -1)), {}


@pytest.fixture(scope='module')
def study(finished, tmp_path_factory) -> runs.Study:
  return runs.Study(copied(finished, tmp_path_factory.mktemp('maps')))


def compute(name, study, tmp_path, num_examples=96):
  settings = Settings(num_examples=num_examples)
  return PARTS[name].compute(study, settings, Blocks(epath.Path(tmp_path)), Checks())


@pytest.fixture(scope='module')
def results(study, tmp_path_factory):
  """The arrays of both parts."""
  return {name: compute(name, study, tmp_path_factory.mktemp(name)) for name in PARTS}


def vector(params):
  return np.concatenate([np.ravel(x) for x in jax.tree.leaves(params)]).astype(np.float64)


# pca


def test_pca_is_of_the_checkpoints_with_the_null_of_their_steps(study, results):
  arrays = results['pca']
  x = np.stack([vector(study.student(step)['params']) for step in study.steps])
  squared = np.linalg.svd(x - x.mean(0, keepdims=True), compute_uv=False)[:2] ** 2
  np.testing.assert_allclose(arrays['explained'], squared / squared.sum(), rtol=1e-6)
  expected = trajectory.random_walk_explained(np.array(study.steps))
  np.testing.assert_array_equal(arrays['null'], expected)
  first = [f'{100 * arrays[key][0]:.1f}' for key in ('explained', 'null')]
  assert drawing.table_pca(arrays)[1] == ['1', *first]


# predictions


def test_distances_are_the_pipelines_disagreement_with_the_ensemble(study, tmp_path):
  finished = study.experiment
  arrays = compute('predictions', study, tmp_path, num_examples=10_000)  # all of the test set
  names = arrays['names'].tolist()
  assert names == [*(f'step {s}' for s in study.steps), 'teacher 0', 'teacher 1', 'ensemble']
  ensemble_NC = ensemble(predictions.open_teacher(finished), 'test')
  wrong_TN = []
  for name, step in zip(names, study.steps, strict=False):
    logits_NC = finished.predictor.logits(
      finished.student.model, student.load(finished, step), finished.data.inputs['test']
    )
    expected = metrics.fidelity(logits_NC, ensemble_NC)
    found = arrays['disagreement'][names.index(name), -1]
    assert found == pytest.approx(1 - expected['top1_agreement'], abs=0.01)  # float16 store
    wrong_TN.append(logits_NC.argmax(-1) != ensemble_NC.argmax(-1))
  assert arrays['num_examples'] == len(finished.data.splits['test'])
  *before, student_N = wrong_TN
  expected = [(wrong_N & student_N).sum() / student_N.sum() for wrong_N in before]
  np.testing.assert_allclose(arrays['repeated'][: len(before)], expected, atol=0.02)
  assert arrays['repeated'][[len(before), -1]].tolist() == [1, 0]  # the student and the ensemble


def test_the_random_start_is_measured_but_not_mapped(results):
  arrays = results['predictions']
  for name in drawing.MAPS:
    assert np.isnan(arrays[f'{name}/coords'][:, 0]).tolist() == [True] + [False] * 5
    assert (arrays[name][0, 1:] > 0).all()
    assert 0 < arrays[f'{name}/kept'] <= 1
  assert 'without the distant random initial' in drawing.caption_predictions(arrays)


def test_the_map_of_disagreement_is_of_its_root(results):
  """√ is the Euclidean distance; its squares, of which the plane keeps a part, are disagreements."""
  arrays = results['predictions']
  xy = arrays['disagreement/coords'][1:]
  squares = ((xy[:, None] - xy[None]) ** 2).sum()
  kept = squares / arrays['disagreement'][1:, 1:].sum()
  assert kept == pytest.approx(arrays['disagreement/kept'], rel=1e-6)


def test_members_of_another_ensemble_fail_a_check(study, tmp_path, monkeypatch):
  initial, measured = study.student(0), Measure(study, 96)
  monkeypatch.setattr(maps, 'Measure', lambda *_: measured)
  monkeypatch.setattr(runs.Study, 'member', lambda study, member=0: initial)
  with pytest.raises(CheckError, match="members' mean against the ensemble"):
    compute('predictions', study, tmp_path)


@pytest.mark.parametrize('name', list(PARTS))
def test_every_part_draws_and_describes_itself(name, results):
  drawn.check(PARTS[name], results[name])


def test_parts_say_what_they_lack(study, tmp_path, monkeypatch):
  assert all(of.unavailable(study) is None for of in PARTS.values())
  other = runs.Study(tiny_run(tmp_path, student__model__options={'width': 8}))
  assert PARTS['predictions'].unavailable(other) is None
  monkeypatch.setattr(runs.Study, 'steps', [0, 40])
  assert 'keep_checkpoints' in PARTS['pca'].unavailable(runs.Study(study.experiment))


def test_predictors_of_another_architecture_are_compared(study, tmp_path):
  """The checkpoints are of one model, the members of another."""
  run = Experiment(study.experiment.config, study.experiment.workdir)
  run.teacher = dataclasses.replace(run.teacher, model=Linear())
  weights = [models.init(run.teacher.model, jax.random.key(i), (8, 8, 1)) for i in range(2)]

  class Foreign(runs.Study):
    def member(self, member: int = 0):
      return weights[member]

  arrays = compute('predictions', Foreign(run), tmp_path, num_examples=50)
  (batch,) = Measure(study, 50).batches('test')
  classes = [
    run.teacher.model.apply(w, batch['inputs'], train=False)[0].argmax(-1) for w in weights
  ]
  i, j = (arrays['names'].tolist().index(f'teacher {k}') for k in range(2))
  assert arrays['disagreement'][i, j] == pytest.approx(np.mean(classes[0] != classes[1]))
