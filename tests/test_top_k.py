"""Predictions stored as k classes of each example: the stages, and refused configs."""

import json
import shutil

import checked_config
import jax.numpy as jnp
import numpy as np
import pytest
from checked_config import load, problems_of
from untrained import copy_of, predicted_run

import kdjax
from kdjax.config import fingerprints, loss_checks, validation
from kdjax.errors import DamageError
from kdjax.predictions.encodings import ESTIMATORS, TAIL
from kdjax.predictions.store import PredictionStore
from kdjax.report import figures
from kdjax.stages import evaluation, pipeline, predictions, verification

# The stages.


@pytest.fixture(scope='module')
def dense(tmp_path_factory):
  """A run whose predictions are stored in float16."""
  return predicted_run(tmp_path_factory.mktemp('dense'))


def predicted(dense, folder, k, estimator, **fields):
  fields |= {'predictions__dtype': 'top_k', 'predictions__top_k': k}
  run = copy_of(dense, folder, predictions__top_k_estimator=estimator, **fields)
  assert predictions.STAGE.run(run)
  return run


def distil(run):
  for stage in ('student', 'evaluation'):
    assert pipeline.STAGES[stage].run(run)
  return evaluation.result(run)['splits']


def test_all_classes_give_what_float16_gives(dense, tmp_path):
  run = predicted(dense, tmp_path, 10, TAIL)
  for view in range(3):
    found, expected = (
      predictions.open_teacher(of).members('distillation', view) for of in (run, dense)
    )
    np.testing.assert_allclose(found, expected, rtol=2**-10)  # a place of float16
  found, expected = distil(run), distil(dense)
  for split in expected:
    for who in ('student', 'teacher', 'fidelity'):
      for name, value in expected[split][who].items():
        assert found[split][who][name] == pytest.approx(value, rel=2e-3, abs=2e-3), (split, name)


@pytest.mark.parametrize('estimator', ESTIMATORS)
def test_a_store_of_some_classes_is_complete_small_and_verified(dense, tmp_path, estimator):
  run = predicted(dense, tmp_path, 2, estimator)
  found, exact = (predictions.open_teacher(of) for of in (run, dense))
  for name in ('test', 'val', 'train'):
    np.testing.assert_array_equal(found.members(name), exact.members(name))
  probs_MNC, exact_MNC = (np.exp(of.members('distillation', 1)) for of in (found, exact))
  np.testing.assert_allclose(probs_MNC.sum(-1), 1, atol=2e-3)
  if estimator == TAIL:
    first_MN1 = probs_MNC.argmax(-1, keepdims=True)
    largest_MN1 = exact_MNC.max(-1, keepdims=True)
    np.testing.assert_array_equal(np.take_along_axis(exact_MNC, first_MN1, -1), largest_MN1)
    assert (probs_MNC > 0).all()
  else:
    assert ((probs_MNC > 0).sum(-1) <= 2).all()
  assert 0 < np.abs(probs_MNC - exact_MNC).mean() < 0.2  # of nearly uniform predictions
  meta = PredictionStore(run.folders.predictions).meta
  assert meta['dtype'] == 'top_k' and meta['complete'] == [[2, 3]]
  assert f'distillation as top_k, k = 2, {estimator}' in repr(
    kdjax.open_predictions(run.folders.predictions)
  )
  said = verification.verify(run)
  assert '12 views are as they were written' in said and 'explains 100.0 %: equal' in said


@pytest.mark.parametrize('estimator', ['truncated', 'systematic'])
def test_other_teachers_are_found_even_if_one_class_is_stored(dense, tmp_path, estimator):
  run = predicted(dense, tmp_path, 1, estimator)
  shutil.rmtree(run.folders.member(0) / 'checkpoints')
  shutil.copytree(run.folders.member(1) / 'checkpoints', run.folders.member(0) / 'checkpoints')
  store = PredictionStore(run.folders.predictions)
  for name in ('test', 'val', 'train'):  # only the distillation data differ
    log_probs_NC = store.read(name, [1], 0)[0]
    store.write(name, 0, 0, log_probs_NC, are_log_probs=True)
    meta = store.meta
    meta['digests'][name]['0/0'] = store.digest(name, 0, 0)
    store.write_meta(meta)
  with pytest.raises(
    DamageError, match=r'of member 0 for view \d of distillation are not those of'
  ):
    verification.verify(run)


def test_what_is_missing_is_made_again_with_the_same_bits(dense, tmp_path):
  """The teacher makes a missing chunk again; the config gives the metadata, which say how chunks are encoded."""
  run = predicted(dense, tmp_path, 3, 'sampled')
  logits = run.folders.predictions / 'logits' / 'distillation'
  folder, metadata = logits / 'c', logits / 'zarr.json'
  expected = {path: path.read_bytes() for path in folder.glob('*/*/0/0')}
  assert len(expected) == 2 * 3
  shutil.rmtree(folder / '1' / '2')
  store = PredictionStore(run.folders.predictions)
  assert [store.has('distillation', 1, view) for view in range(3)] == [True, True, False]
  with pytest.raises(
    DamageError, match=rf'lacks predictions of view 2 by member 1. Delete {folder}'
  ):
    store.read('distillation', [1], 2)
  text = metadata.read_text()
  assert '"k":3' in text.replace(' ', '')
  metadata.write_text(text.replace('sampled', 'sambled'))
  with pytest.raises(DamageError, match=rf'cannot be opened.*Delete {metadata}'):
    predictions.open_teacher(run)
  metadata.unlink()
  (run.folders.predictions / 'meta.json').unlink()
  assert predictions.STAGE.run(run)
  assert {path: path.read_bytes() for path in expected} == expected
  assert metadata.read_text() == text
  verification.verify(run)


def test_a_student_of_draws_is_evaluated_where_a_label_has_no_probability(
  dense, tmp_path, monkeypatch
):
  run = predicted(dense, tmp_path, 1, 'sampled', student__temperature=1.0)
  splits = distil(run)
  text = (run.folders.student / 'result.json').read_text()
  assert 'Infinity' not in text and 'NaN' not in text
  assert splits == json.loads(text)['splits']
  assert splits['distillation']['teacher']['nll'] is None  # its probability is 0 somewhere
  assert splits['test']['teacher']['nll'] > 0
  assert splits['distillation']['fidelity']['predictive_kl'] > 0
  for name in ('loss', 'error', 'agreement', 'kl', 'reliability'):  # drawing takes seconds
    monkeypatch.setattr(figures, name, lambda *_: '')
  assert pipeline.STAGES['report'].run(run)


# Configs.


@pytest.fixture
def pretended(monkeypatch):
  checked_config.pretend(monkeypatch)


def fields(estimator, k=5, **student):
  found = {'predictions.dtype': 'top_k', 'predictions.top_k': k}
  found |= {'predictions.top_k_estimator': estimator, 'student.temperature': 1.0}
  return found | {f'student.{name}': value for name, value in student.items()}


ZEROS = 'the loss or its gradient is ∞ or NaN where a probability of the teacher is 0, as with'
LINEAR = "its gradient is not linear in the teacher's probabilities."
REFUSED = [
  (
    {'predictions.dtype': 'top_k'},
    "predictions.top_k = None: predictions.dtype = 'top_k' needs it",
  ),
  (
    {'predictions.top_k': 5},
    "predictions.top_k = 5: has no effect with predictions.dtype = 'float16'",
  ),
  (
    fields('tail', k=11),
    "predictions.top_k = 11: allowed: up to the 10 classes of dataset.name = 'cifar10'",
  ),
  (
    fields('sampled', temperature=4.0),
    f"student.loss = 'cross_entropy' with student.temperature = 4.0: {LINEAR} "
    "predictions.top_k_estimator = 'sampled'",
  ),
  (
    fields('systematic', final_temperature=2.0),
    f"student.loss = 'cross_entropy' with student.final_temperature = 2.0: {LINEAR}",
  ),
  (fields('sampled', loss='hard_labels'), f"student.loss = 'hard_labels': {LINEAR}"),
  *(
    (
      fields(estimator, loss=loss),
      f"student.loss = '{loss}' with student.temperature = 1.0: {ZEROS}",
    )
    for estimator in ('truncated', 'sampled')
    for loss in ('reverse_kl', 'symmetric_kl', 'standardised_kl')
  ),
  (fields('truncated', loss='logit_mse'), f"student.loss = 'logit_mse': {ZEROS}"),
  # If only the label is left, there are no other classes to compare.
  (fields('truncated', k=1, loss='decoupled', alpha=0.0), "student.loss = 'decoupled' with"),
]


@pytest.mark.parametrize(('changed', 'start'), REFUSED)
def test_what_cannot_be_learnt_from_is_refused(pretended, changed, start):
  (problem,) = problems_of(load(fields=changed))
  assert problem.startswith(start)


@pytest.mark.parametrize(
  'changed',
  [
    fields('tail', loss='reverse_kl', temperature=4.0),
    fields('tail', loss='logit_mse'),
    fields('tail', k=10),
    fields('truncated', temperature=4.0, final_temperature=1.0),
    fields('truncated', k=10, loss='reverse_kl'),  # no class is left out
    fields('truncated', loss='decoupled'),
    fields('truncated', loss='hard_labels'),
    fields('sampled'),
    fields('sampled', loss='brier', alpha=0.5),  # squared, but linear in p
    fields('systematic', final_temperature=1.0),
    fields('sampled', temperature=4.0) | {'predictions.mode': 'online'},  # stores nothing
  ],
)
def test_what_can_be_learnt_from_is_allowed(pretended, changed):
  validation.check(load(fields=changed), 1)


def test_the_code_of_the_encoding_counts_where_it_is_used():
  compact, dense = (
    set(fingerprints.code_record(load(fields=changed), 'predictions')['code'])
    for changed in (fields('tail'), {})
  )
  found = {f'kdjax.predictions.encodings.{name}' for name in ('TopK', '_most_probable')}
  assert found <= compact
  assert not [name for name in dense if 'encodings' in name]


def linear(student_BC, teacher_BC, temperature):
  return -(jnp.exp(teacher_BC) * student_BC).sum(-1)


def squared(student_BC, teacher_BC, temperature):
  return -(jnp.exp(teacher_BC) ** 2 * student_BC).sum(-1)


def test_a_loss_of_a_user_is_judged_by_its_gradient(pretended):
  name = f'{__name__}:linear'
  validation.check(load(fields=fields('sampled', loss=name, temperature=4.0)), 1)
  (problem,) = problems_of(load(fields=fields('sampled', loss=f'{__name__}:squared')))
  assert problem.startswith(f"student.loss = '{__name__}:squared' with")
  assert LINEAR in problem


def on_features(student_BC, teacher_BC, temperature, *, student_features):
  return -(jnp.exp(teacher_BC) * student_BC).sum(-1) + student_features['pooled'].sum(-1)


def relative(student_BC, teacher_BC, temperature, *, batch_gather):
  return linear(student_BC - batch_gather(student_BC).mean(axis=0)[None], teacher_BC, temperature)


def test_a_loss_with_other_needs_is_judged_or_refused(pretended):
  (problem,) = problems_of(load(fields=fields('sampled', loss=f'{__name__}:on_features')))
  assert problem.startswith(
    f"student.loss = '{__name__}:on_features': needs features of the student"
  )
  (problem,) = problems_of(load(fields=fields('truncated', loss='cka')))
  assert 'top_k' not in problem  # of stored predictions
  validation.check(load(fields=fields('sampled', loss=f'{__name__}:relative')), 1)


@pytest.mark.parametrize(
  ('loss', 'num_classes'), [('cross_entropy', 2), ('cross_entropy', 1000), ('brier', 1000)]
)
def test_what_is_linear_is_found_for_any_number_of_classes(loss, num_classes):
  gradient = loss_checks._gradient(load(fields={'student.loss': loss}).student, num_classes)
  assert loss_checks._is_linear(gradient, num_classes, 1.0)
  assert not loss_checks._is_linear(gradient, num_classes, 1.01)
