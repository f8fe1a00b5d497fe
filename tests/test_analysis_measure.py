"""Measures of a finished student, against the pipeline's own metrics and by hand."""

import copy

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from analysis import measure, runs
from kdjax import losses, metrics
from kdjax.predictions.teachers import ensemble
from kdjax.stages import predictions
from kdjax.stages.experiment import Experiment

NUM_EXAMPLES = 100  # of 200; two batches of 50, since one has 64 at most


@pytest.fixture(scope='module')
def study(finished):
  return runs.load(finished.workdir)


@pytest.fixture(scope='module')
def measured(study):
  return measure.Measure(study, NUM_EXAMPLES)


def test_examples_are_different_ones_in_two_batches(measured):
  inputs = [batch['inputs'] for batch in measured.batches('distillation')]
  assert [len(x) for x in inputs] == [50, 50]
  assert measured.num_examples('distillation') == NUM_EXAMPLES
  flat_NX = np.concatenate(inputs).reshape(NUM_EXAMPLES, -1)
  assert len(np.unique(flat_NX, axis=0)) == NUM_EXAMPLES


def test_a_point_gives_what_the_evaluation_gives(study, finished):
  """All examples of the test set, so that the means are those of result.json."""
  run = study.experiment
  everything = measure.Measure(study, len(run.data.splits['test']))
  values = {k: v.mean() for k, v in everything.variables(study.student()).items()}
  logits_NC = run.predictor.logits(run.student.model, study.student(), run.data.inputs['test'])
  teacher_NC = ensemble(predictions.open_teacher(finished), 'test')
  expected = metrics.fidelity(logits_NC, teacher_NC)
  expected |= metrics.generalization(logits_NC, run.data.splits['test'].labels_N)
  for name in ('predictive_kl', 'top1_agreement', 'accuracy', 'nll'):
    assert values[f'test/{name}'] == pytest.approx(expected[name], abs=2e-3), name  # float16 store


def test_the_loss_is_the_students_less_the_teachers(study, measured):
  """The train step calls the same function; the teacher's own cross-entropy is τ² H(p)."""
  batch = measured.batches('distillation')[1]
  logits_BC, _ = study.experiment.student.model.apply(study.student(), batch['inputs'], train=False)
  section, teacher_BC = study.experiment.config.student, batch['teacher_log_probs']
  tau = section.temperature
  loss_B = losses.LOSSES[section.loss](logits_BC, teacher_BC, tau)
  p_BC = np.asarray(jax.nn.softmax(teacher_BC / tau), np.float64)
  expected_B = loss_B + tau**2 * np.sum(p_BC * np.log(p_BC), axis=-1)
  found_N = measured.variables(study.student())['distillation/loss'][0]
  np.testing.assert_allclose(found_N[50:], expected_B, rtol=1e-3, atol=1e-3)
  objective = measured.objective('distillation')
  np.testing.assert_allclose(objective(logits_BC, batch), expected_B, rtol=1e-3, atol=1e-4)
  nll_B = losses.cross_entropy(logits_BC, batch['labels'])
  np.testing.assert_allclose(measured.objective('cross_entropy')(logits_BC, batch), nll_B)


@pytest.mark.parametrize('name', [name for name in losses.LOSSES if name != 'cka'])
def test_the_teacher_is_the_zero_of_every_loss(name):
  """The gradient is that of the plain loss: the subtracted term does not depend on the student."""
  logits_BC, other_BC = (3 * jax.random.normal(jax.random.key(i), (4, 5)) for i in range(2))
  batch = {'teacher_log_probs': jax.nn.log_softmax(logits_BC), 'labels': jnp.array([0, 1, 2, -1])}
  settings = {'loss': losses.LOSSES[name], 'temperature': 4.0, 'alpha': 0.0}
  loss = lambda logits_BC: measure.example_losses(logits_BC, batch, **settings)['loss'].sum()
  np.testing.assert_allclose(loss(logits_BC), 0, atol=1e-4)
  plain = lambda logits_BC: losses.apply(
    losses.LOSSES[name], logits_BC, batch['teacher_log_probs'], 4.0, labels_B=batch['labels']
  ).sum()
  np.testing.assert_allclose(jax.grad(loss)(other_BC), jax.grad(plain)(other_BC), rtol=1e-5)
  assert loss(other_BC) != 0


def test_the_teacher_is_at_distance_zero_from_itself(study, finished):
  """KL is 0 up to float32 for one member, which stored float16 predictions do not give."""
  config = finished.config.copy_and_resolve_references()
  config.teacher.num_members = 1
  alone = runs.Study(type(finished)(config, finished.workdir))
  values = measure.Measure(alone, 50).variables(study.member(0))
  assert np.abs(values['distillation/predictive_kl']).max() < 1e-6
  assert np.abs(values['distillation/loss']).max() < 1e-4  # of τ² times nats
  assert values['test/top1_agreement'].min() == 1


def test_with_reestimated_statistics_the_test_set_has_those_of_the_distillation_data(
  study, measured
):
  given = measure.reestimated(study.student(), measured.batches('distillation'), measured.model)
  found = measured.variables(study.student(), reestimate=True)
  for key, expected in measured.variables(given).items():
    if key.startswith('test/'):
      np.testing.assert_allclose(found[key], expected, rtol=1e-3, atol=1e-3, err_msg=key)
  assert not np.allclose(found['test/loss'], measured.variables(study.student())['test/loss'])


def test_a_network_whose_outputs_are_nan_agrees_with_nobody():
  """argmax takes the first NaN for a class."""
  batch = {'teacher_log_probs': jnp.log(jnp.array([[0.9, 0.1]] * 2)), 'labels': jnp.array([0, 0])}
  logits_BC = jnp.array([[jnp.nan, 1.0], [2.0, 1.0]])
  loss = {'loss': losses.distillation, 'temperature': 1.0, 'alpha': 0.0}
  for name, values_B in measure.example_losses(logits_BC, batch, **loss).items():
    assert np.isnan(values_B).tolist() == [True, False], name


def test_examples_without_a_label_count_where_none_is_needed(study):
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


def test_the_temperature_is_that_of_the_schedule(finished, measured):
  run = Experiment(finished.config.copy_and_resolve_references(), finished.workdir)
  run.config.student.temperature, run.config.student.final_temperature = 8.0, 2.0
  scheduled = copy.copy(measured)
  scheduled._run = run
  num_steps = run.student.plan.num_steps
  found = [scheduled.temperature(step) for step in (0, num_steps // 2, num_steps)]
  np.testing.assert_allclose(found, [8, 4, 2], rtol=1e-6)
  logits_BC, log_probs_BC = (jax.random.normal(jax.random.key(i), (3, 5)) for i in range(2))
  batch = {'teacher_log_probs': log_probs_BC, 'labels': jnp.zeros(3, int)}
  kl_B = losses.distillation(logits_BC, log_probs_BC, 4.0)
  kl_B -= losses.distillation(log_probs_BC, log_probs_BC, 4.0)
  found_B = measured.objective('distillation')(logits_BC, batch, temperature=4.0)
  np.testing.assert_allclose(found_B, kl_B, rtol=1e-6)


def test_measures_without_a_label():
  batch = {
    'teacher_log_probs': jnp.log(jnp.array([[0.9, 0.1], [0.2, 0.8]])),
    'labels': jnp.array([0, -1]),
    'labelled': jnp.array([0.5, 0.5]),
  }
  logits_BC = jnp.log(jnp.array([[0.5, 0.5], [0.2, 0.8]]))
  loss = {'loss': losses.distillation, 'temperature': 1.0, 'alpha': 0.5}
  found = measure.example_losses(logits_BC, batch, **loss)
  assert found['accuracy'][0] == 1
  np.testing.assert_allclose(found['nll'][0], np.log(2), rtol=1e-5)
  nll_B = measure._objective(logits_BC, batch, name='cross_entropy', **loss)
  np.testing.assert_allclose(nll_B, [np.log(2), 0], rtol=1e-5)
  kl = 0.9 * np.log(0.9 / 0.5) + 0.1 * np.log(0.1 / 0.5)
  np.testing.assert_allclose(found['predictive_kl'], [kl, 0], rtol=1e-5, atol=1e-6)
  # α is 1/2 of a mean over the one example that has a label, so all of it over both.
  expected = [np.log(2) + 0.5 * kl, 0]
  np.testing.assert_allclose(found['loss'], expected, rtol=1e-5, atol=1e-6)


def test_without_teachers_their_stored_predictions_serve(study, measured, monkeypatch):
  monkeypatch.setattr(runs.Study, 'has_teachers', property(lambda self: False))
  stored = measure.Measure(study, NUM_EXAMPLES).batches('test')[0]
  fresh = measured.batches('test')[0]
  np.testing.assert_array_equal(stored['inputs'], fresh['inputs'])
  np.testing.assert_allclose(stored['teacher_log_probs'], fresh['teacher_log_probs'], atol=2e-2)
  assert (stored['teacher_log_probs'] != fresh['teacher_log_probs']).any()
