"""Measures of a finished student, against the pipeline's own metrics and by hand."""

import copy
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import tiny_run
from scipy.special import log_softmax, rel_entr, softmax

from analysis import measure, runs, surface
from kdjax import losses, metrics
from kdjax.predictions.teachers import ensemble
from kdjax.stages import predictions

NUM_EXAMPLES = 100  # of 200; two batches of 50, since one has 64 at most


@pytest.fixture(scope='module')
def study(finished):
  return runs.Study(finished)


@pytest.fixture(scope='module')
def measured(study):
  return measure.Measure(study, NUM_EXAMPLES)


def test_examples_are_distinct_and_in_two_batches(measured):
  inputs = [batch['inputs'] for batch in measured.batches('distillation')]
  assert [len(x) for x in inputs] == [50, 50]
  assert measured.num_examples('distillation') == NUM_EXAMPLES
  flat_NX = np.concatenate(inputs).reshape(NUM_EXAMPLES, -1)
  assert len(np.unique(flat_NX, axis=0)) == NUM_EXAMPLES


def test_a_point_gives_what_the_evaluation_gives(study):
  """All examples of the test set, so that the means are those of result.json."""
  run = study.experiment
  everything = measure.Measure(study, len(run.data.splits['test']))
  values = {k: v.mean() for k, v in everything.variables(study.student()).items()}
  logits_NC = run.predictor.logits(run.student.model, study.student(), run.data.inputs['test'])
  teacher_NC = ensemble(predictions.open_teacher(run), 'test')
  expected = metrics.fidelity(logits_NC, teacher_NC)
  expected |= metrics.generalization(logits_NC, run.data.splits['test'].labels_N)
  for name in ('predictive_kl', 'top1_agreement', 'accuracy', 'nll'):
    assert values[f'test/{name}'] == pytest.approx(expected[name], abs=2e-3), name  # float16 store


def test_the_loss_is_the_students_minus_the_teachers(study, measured):
  """The train step calls the same function; the teacher's own cross-entropy is τ² H(p)."""
  batch, section = measured.batches('distillation')[1], study.experiment.config.student
  logits_BC = surface.logits(study.student(), batch['inputs'], model=measured.model)
  teacher_BC, tau = batch['teacher_log_probs'], section.temperature
  loss_B = jax.jit(losses.LOSSES[section.loss])(logits_BC, teacher_BC, tau)
  p_BC = softmax(np.float64(teacher_BC) / tau, axis=-1)
  expected_B = loss_B + tau**2 * np.sum(p_BC * np.log(p_BC), axis=-1)
  found_N = measured.variables(study.student())['distillation/loss'][0]
  np.testing.assert_allclose(found_N[50:], expected_B, rtol=1e-3, atol=1e-3)
  found_B = jax.jit(measured.objective('distillation'))(logits_BC, batch)
  np.testing.assert_allclose(found_B, expected_B, rtol=1e-3, atol=1e-4)
  found_B = jax.jit(measured.objective('cross_entropy'))(logits_BC, batch)
  nll_B = -log_softmax(logits_BC, axis=-1)[np.arange(50), batch['labels']]
  np.testing.assert_allclose(found_B, nll_B, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize('name', [name for name in losses.LOSSES if name != 'cka'])
def test_the_teacher_is_the_zero_of_every_loss(name):
  """The gradient is that of the plain loss: the subtracted term does not depend on the student."""
  logits_BC, other_BC = (3 * jax.random.normal(jax.random.key(i), (4, 5)) for i in range(2))
  batch = {'teacher_log_probs': jax.nn.log_softmax(logits_BC), 'labels': jnp.array([0, 1, 2, -1])}
  settings = {'loss': losses.LOSSES[name], 'temperature': 4.0, 'alpha': 0.0}

  @jax.jit
  def values(logits_BC):
    loss = lambda x: measure.example_losses(x, batch, **settings)['loss'].sum()
    plain = lambda x: losses.apply(
      losses.LOSSES[name], x, batch['teacher_log_probs'], 4.0, labels_B=batch['labels']
    ).sum()
    return jax.value_and_grad(loss)(logits_BC), jax.grad(plain)(logits_BC)

  (at_teacher, _), _ = values(logits_BC)
  np.testing.assert_allclose(at_teacher, 0, atol=1e-4)
  (value, gradient), expected = values(other_BC)
  np.testing.assert_allclose(gradient, expected, rtol=1e-5)
  assert value != 0


def test_the_teacher_is_at_distance_zero_from_itself(study):
  """The KL of one member is 0 up to float32 rounding; from stored float16 predictions it would not be."""
  alone = runs.Study(tiny_run(study.experiment.workdir, teacher__num_members=1))
  values = measure.Measure(alone, 50).variables(study.member(0))
  assert np.abs(values['distillation/predictive_kl']).max() < 1e-6
  assert np.abs(values['distillation/loss']).max() < 1e-4  # of τ² times nats
  assert values['test/top1_agreement'].min() == 1


def test_with_reestimated_statistics_the_test_set_has_those_of_the_distillation_data(
  study, measured
):
  given = surface.reestimated(study.student(), measured.batches('distillation'), measured.model)
  found = measured.variables(study.student(), reestimate=True)
  for key, expected in measured.variables(given).items():
    if key.startswith('test/'):
      np.testing.assert_allclose(found[key], expected, rtol=1e-3, atol=1e-3, err_msg=key)
  assert not np.allclose(found['test/loss'], measured.variables(study.student())['test/loss'])


def values_of(logits_BC, batch, alpha=0.0, of=measure.example_losses):
  settings = {'loss': losses.distillation, 'temperature': 1.0, 'alpha': alpha}
  return jax.jit(partial(of, **settings))(logits_BC, batch)


def test_measures_of_nan_outputs_are_nan():
  """argmax would return the first NaN as a class."""
  batch = {'teacher_log_probs': np.log([[0.9, 0.1]] * 2), 'labels': np.array([0, 0])}
  for name, values_B in values_of(np.array([[np.nan, 1.0], [2.0, 1.0]]), batch).items():
    assert np.isnan(values_B).tolist() == [True, False], name


def test_only_measures_of_labels_leave_out_unlabelled_examples(study):
  measured, student = measure.Measure(study, 20), study.student()
  whole = measured.variables(student)
  kept_N = np.arange(20) % 3 > 0
  examples = measured._examples['distillation']
  examples['labels'] = np.where(kept_N, examples['labels'], -1)
  measured._placed.clear()
  for name, fraction in (('distillation', kept_N.mean()), ('test', 1)):
    np.testing.assert_allclose(measured.batches(name)[0]['labelled'], fraction, rtol=1e-6)
  found = measured.variables(student)
  for name in measure.OF_LABELS:
    key = f'distillation/{name}'
    np.testing.assert_array_equal(found[key], whole[key][:, kept_N])
    assert found[f'test/{name}'].shape == (1, 20)
  np.testing.assert_array_equal(found['distillation/loss'], whole['distillation/loss'])


def test_the_temperature_is_that_of_the_schedule(study, measured):
  fields = {'student__temperature': 8.0, 'student__final_temperature': 2.0}
  run = tiny_run(study.experiment.workdir, **fields)
  scheduled = copy.copy(measured)
  scheduled._run = run
  num_steps = run.student.plan.num_steps
  found = [scheduled.temperature(step) for step in (0, num_steps // 2, num_steps)]
  np.testing.assert_allclose(found, [8, 4, 2], rtol=1e-6)
  rng = np.random.default_rng(0)
  logits_BC, teacher_BC = rng.normal(size=(2, 3, 5)).astype(np.float32)
  batch = {'teacher_log_probs': log_softmax(teacher_BC, axis=-1), 'labels': np.zeros(3, int)}
  found_B = jax.jit(partial(measured.objective('distillation'), temperature=4.0))(logits_BC, batch)
  p_BC, q_BC = (softmax(x / 4, axis=-1) for x in (teacher_BC, logits_BC))
  np.testing.assert_allclose(found_B, 16 * rel_entr(p_BC, q_BC).sum(axis=-1), rtol=1e-4)


def test_measures_without_a_label():
  batch = {
    'teacher_log_probs': np.log([[0.9, 0.1], [0.2, 0.8]]),
    'labels': np.array([0, -1]),
    'labelled': np.array([0.5, 0.5]),
  }
  logits_BC = np.log([[0.5, 0.5], [0.2, 0.8]])
  found = values_of(logits_BC, batch, alpha=0.5)
  assert found['accuracy'][0] == 1
  np.testing.assert_allclose(found['nll'][0], np.log(2), rtol=1e-5)
  objective = partial(measure._objective, name='cross_entropy')
  nll_B = values_of(logits_BC, batch, alpha=0.5, of=objective)
  np.testing.assert_allclose(nll_B, [2 * np.log(2), 0], rtol=1e-5)  # the mean is that of one label
  kl = 0.9 * np.log(0.9 / 0.5) + 0.1 * np.log(0.1 / 0.5)
  np.testing.assert_allclose(found['predictive_kl'], [kl, 0], rtol=1e-5, atol=1e-6)
  # α = 1/2 weights the mean over the one labelled example, which is half of all examples.
  expected = [np.log(2) + 0.5 * kl, 0]
  np.testing.assert_allclose(found['loss'], expected, rtol=1e-5, atol=1e-6)


def test_without_teachers_their_stored_predictions_are_used(study, measured, monkeypatch):
  monkeypatch.setattr(runs.Study, 'has_teachers', property(lambda self: False))
  stored = measure.Measure(study, NUM_EXAMPLES).batches('test')[0]
  fresh = measured.batches('test')[0]
  np.testing.assert_array_equal(stored['inputs'], fresh['inputs'])
  np.testing.assert_allclose(stored['teacher_log_probs'], fresh['teacher_log_probs'], atol=2e-2)
  assert (stored['teacher_log_probs'] != fresh['teacher_log_probs']).any()
