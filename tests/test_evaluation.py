import json

import numpy as np
import pytest
from conftest import copied
from scipy.special import softmax
from scipy.stats import entropy
from sklearn.metrics import accuracy_score, log_loss

from kdjax import evaluation, predictions, student


@pytest.fixture(scope='module')
def result(finished):
  return json.loads((finished.student_folder / 'result.json').read_text())


@pytest.mark.parametrize('split', ['train', 'val', 'test'])
def test_numbers_are_those_of_independent_code(finished, result, split):
  arrays = np.load(finished.student_folder / 'logits.npz')
  student = softmax(arrays[f'{split}/student_logits_NC'].astype(np.float64), axis=-1)
  teacher = softmax(arrays[f'{split}/teacher_log_probs_NC'].astype(np.float64), axis=-1)
  labels = finished.splits[split].labels_N
  found = result['splits'][split]
  assert found['num_examples'] == len(labels)
  for who, probs in [('student', student), ('teacher', teacher)]:
    assert found[who]['accuracy'] == accuracy_score(labels, probs.argmax(-1))
    np.testing.assert_allclose(found[who]['nll'], log_loss(labels, probs, labels=range(10)))
  agreement = (student.argmax(-1) == teacher.argmax(-1)).mean()
  assert found['fidelity']['top1_agreement'] == agreement
  np.testing.assert_allclose(
    found['fidelity']['predictive_kl'], entropy(teacher.T, student.T).mean()
  )


def test_members_are_compared_with_their_ensemble(finished, result):
  members = result['splits']['test']['members']
  assert len(members) == 2
  log_probs = predictions.open_teacher(finished).members('test')
  for found, probs in zip(members, np.exp(log_probs), strict=True):
    assert found['accuracy'] == (probs.argmax(-1) == finished.splits['test'].labels_N).mean()
  assert members[0]['predictive_kl'] > 0


def test_the_distillation_split_is_of_views_that_the_student_saw(finished, result):
  found = result['splits']['distillation']
  assert found['num_examples'] == 2 * 200  # evaluation.num_views = 2 of the 3
  assert found['fidelity'] != result['splits']['train']['fidelity']


def test_more_views_are_evaluated_without_training_again(finished, tmp_path):
  run = copied(finished, tmp_path, evaluation__num_views=3)
  assert run.student_folder.name == finished.student_folder.name
  assert not student.run(run)
  assert evaluation.run(run)
  assert evaluation.result(run)['splits']['distillation']['num_examples'] == 3 * 200
  assert not evaluation.run(run)


def test_fingerprints_name_the_folders(finished, result):
  assert result['fingerprints'] == {
    'teacher': finished.member_folder(0).parent.name,
    'predictions': finished.predictions_folder.name,
    'student': finished.student_folder.name,
  }
