"""Measures at points of weight space, against the pipeline's own metrics and by hand."""

import copy

import flax.linen as nn
import jax
import jax.numpy as jnp
import measure_on_devices
import numpy as np
import pytest
from conftest import compilations

from analysis import measure, runs
from kdjax import intervals, losses, metrics, models, predictions
from kdjax.models import layers
from kdjax.run import Run
from tests import launched

NUM_EXAMPLES = 100  # of 200; two batches of 64, the last of 36


@pytest.fixture(scope='module')
def study(finished):
  return runs.load(finished.workdir)


@pytest.fixture(scope='module')
def measured(study):
  return measure.Measure(study, NUM_EXAMPLES)


def on_a_line(ends, coordinates_K):
  return jax.tree.map(lambda a, b: a + coordinates_K[0] * (b - a), *ends)


def test_batches_hold_each_example_once(measured):
  batches = measured.batches('distillation')
  assert [len(batch['inputs']) for batch in batches] == [64, 64]
  weights = np.concatenate([batch['weights'] for batch in batches])
  assert weights.sum() == NUM_EXAMPLES == measured.num_examples('distillation')
  inputs = np.concatenate([batch['inputs'] for batch in batches])[weights > 0]
  assert len(np.unique(inputs.reshape(NUM_EXAMPLES, -1), axis=0)) == NUM_EXAMPLES


def test_a_point_gives_what_the_evaluation_gives(study, finished):
  """All examples of the test set, so that the means are those of result.json."""
  run = study.run
  everything = measure.Measure(study, len(run.splits['test']))
  values = {k: v.mean() for k, v in everything.variables(study.student()).items()}
  logits_NC = run.predict(run.student_model, study.student(), run.inputs['test'])
  teacher_NC = predictions.ensemble(predictions.open_teacher(finished), 'test')
  expected = metrics.fidelity(logits_NC, teacher_NC)
  expected |= metrics.generalization(logits_NC, run.splits['test'].labels_N)
  for name in ('predictive_kl', 'top1_agreement', 'accuracy', 'nll'):
    assert values[f'test/{name}'] == pytest.approx(expected[name], abs=2e-3), name  # float16 store


def test_the_loss_is_the_students(study, measured):
  """By the very function that the train step calls, on the first example of the second batch."""
  batch = measured.batches('distillation')[1]
  logits_BC, _ = study.run.student_model.apply(study.student(), batch['inputs'], train=False)
  config = study.run.config.student
  loss_B = losses.LOSSES[config.loss](logits_BC, batch['teacher_log_probs'], config.temperature)
  values_PN = measured.variables(study.student())['distillation/loss']
  np.testing.assert_allclose(values_PN[0, 64:], loss_B[: NUM_EXAMPLES - 64], rtol=1e-4, atol=1e-4)
  objective = measured.objective('distillation')
  np.testing.assert_allclose(objective(logits_BC, batch), loss_B, rtol=1e-6)
  nll_B = losses.cross_entropy(logits_BC, batch['labels'])
  np.testing.assert_allclose(measured.objective('cross_entropy')(logits_BC, batch), nll_B)


def test_the_teacher_is_at_distance_zero_from_itself(study, finished, tmp_path):
  """With one member, KL is 0 but for float32, which no stored float16 prediction gives."""
  config = finished.config.copy_and_resolve_references()
  config.teacher.num_members = 1
  alone = runs.Study(type(finished)(config, finished.workdir))
  values = measure.Measure(alone, 50).variables(study.member(0))
  assert np.abs(values['distillation/predictive_kl']).max() < 1e-6
  assert values['test/top1_agreement'].min() == 1


def test_points_in_order_and_their_ends(study, measured):
  ends = study.student(), study.member(0)
  values = measured.at(on_a_line, ends, np.array([[0.0], [0.5], [1.0]]))
  for place, end in ((0, ends[0]), (2, ends[1])):
    for key, value in measured.variables(end).items():
      np.testing.assert_allclose(values[key][place], value[0], rtol=1e-4, atol=1e-4, err_msg=key)
  assert not np.allclose(values['test/loss'][1], values['test/loss'][0])


def test_nothing_is_compiled_from_point_to_point(study, measured):
  ends = study.student(), study.member(0)
  measured.at(on_a_line, ends, np.zeros((1, 1)), reestimate=True)
  with compilations() as count:
    shown = []
    coordinates = np.linspace(0, 1, 4)[:, None]
    measured.at(on_a_line, ends, coordinates, reestimate=True, show=lambda n, _: shown.append(n))
    assert count() == 0
  assert shown == [1, 2, 3, 4]


def test_reestimated_statistics_are_those_of_all_examples(study, measured):
  """At the first BatchNorm, whose input does not depend on other statistics."""
  batches = [
    {'inputs': batch['inputs'][batch['weights'] > 0]} for batch in measured.batches('distillation')
  ]
  variables = measure.reestimated(study.student(), batches, measured.model)
  inputs = np.concatenate([batch['inputs'] for batch in batches])
  kernel = study.student()['params']['Conv_0']['kernel']
  stem = np.asarray(
    nn.Conv(4, (3, 3), padding=1, use_bias=False).apply({'params': {'kernel': kernel}}, inputs)
  )
  stats = variables['batch_stats']['stage1_block1']['BatchNorm_0']
  np.testing.assert_allclose(stats['mean'], stem.mean((0, 1, 2)), rtol=1e-4, atol=1e-5)
  np.testing.assert_allclose(stats['var'], stem.var((0, 1, 2)), rtol=1e-4, atol=1e-5)
  values = measured.variables(study.student(), reestimate=True)
  given = measured.variables(variables)
  for key, of in values.items():
    np.testing.assert_allclose(of, given[key], rtol=1e-3, atol=1e-3, err_msg=key)
  assert not np.allclose(values['test/loss'], measured.variables(study.student())['test/loss'])


class DenseThenNorm(nn.Module):
  @nn.compact
  def __call__(self, x, train):
    norm = layers.NORMS['batch'](train)
    return norm(name='norm')(nn.Dense(3, use_bias=False, name='dense')(x)), {}


def test_statistics_at_the_midpoint_of_two_networks():
  """They are diag(W Σ Wᵀ) of the mean weights W, which is not the mean of the ends' statistics."""
  rng = np.random.default_rng(0)
  mixing = rng.normal(size=(4, 4)).astype(np.float32)
  inputs = (rng.normal(size=(90, 4)) @ mixing + 1).astype(np.float32)
  ends = [rng.normal(size=(4, 3)).astype(np.float32) for _ in range(2)]
  stats = {'norm': {'mean': jnp.zeros(3), 'var': jnp.ones(3)}}
  midpoint = {
    'params': {'dense': {'kernel': (ends[0] + ends[1]) / 2}, 'norm': {}},
    'batch_stats': stats,
  }
  midpoint['params']['norm'] = {'scale': jnp.ones(3), 'bias': jnp.zeros(3)}
  batches = [{'inputs': piece} for piece in np.split(inputs, [40, 70])]  # of 40, 30 and 20
  found = measure.reestimated(midpoint, batches, DenseThenNorm())['batch_stats']['norm']
  weights = midpoint['params']['dense']['kernel'].T
  covariance = np.cov(inputs.T, bias=True)
  np.testing.assert_allclose(found['var'], np.diag(weights @ covariance @ weights.T), rtol=1e-4)
  np.testing.assert_allclose(found['mean'], weights @ inputs.mean(0), rtol=1e-4, atol=1e-5)
  of_ends = np.mean([np.diag(w.T @ covariance @ w) for w in ends], axis=0)
  assert np.abs(found['var'] - of_ends).max() > 0.1


def test_a_model_without_batch_norm_stays_as_it_is():
  variables = {'params': {'w': np.ones(2)}, 'batch_stats': {}}
  assert measure.reestimated(variables, [], models.LeNet5(2)) is variables


def test_summary_of_known_values():
  values_PN = np.stack([np.full(400, 3.0), np.arange(400) % 2])
  found = measure.summary({'a': values_PN}, seed=0)
  np.testing.assert_allclose(found['a'], [3, 0.5])
  assert found['a/low'][0] == found['a/high'][0] == 3
  error = 1.96 * 0.5 / np.sqrt(400)
  np.testing.assert_allclose(found['a/high'][1] - 0.5, error, rtol=0.1)
  np.testing.assert_allclose(0.5 - found['a/low'][1], error, rtol=0.1)


def test_a_nan_is_seen_and_so_is_that_there_is_no_example():
  values_PN = np.array([[1.0, np.nan, 3.0], [1.0, 2.0, 3.0]])
  found = measure.summary({'a': values_PN, 'none': np.zeros((2, 0))}, seed=0)
  for end in intervals.ENDS:
    assert np.isnan(found[f'a{end}']).tolist() == [True, False]
    assert np.isnan(found[f'none{end}']).tolist() == [True, True]
  assert 1 <= found['a/low'][1] < 2 < found['a/high'][1] <= 3


def test_a_network_whose_outputs_are_nan_agrees_with_nobody():
  """argmax takes the first NaN for a class."""
  batch = {'teacher_log_probs': jnp.log(jnp.array([[0.9, 0.1]] * 2)), 'labels': jnp.array([0, 0])}
  logits_BC = jnp.array([[jnp.nan, 1.0], [2.0, 1.0]])
  loss = {'loss': losses.distillation, 'temperature': 1.0, 'alpha': 0.0}
  for name, values_B in measure.example_losses(logits_BC, batch, **loss).items():
    assert np.isnan(values_B).tolist() == [True, False], name


def test_examples_without_a_label_count_where_none_is_needed(study):
  measured = measure.Measure(study, 20)
  whole = measured.variables(study.student())
  kept_N = np.arange(20) % 3 > 0
  examples = measured._examples['distillation']
  examples['labels'] = np.where(kept_N, examples['labels'], -1)
  measured._placed.clear()
  for name, fraction in (('distillation', kept_N.mean()), ('test', 1)):
    np.testing.assert_allclose(measured.batches(name)[0]['labelled'], fraction, rtol=1e-6)
  found = measured.variables(study.student())
  for name in measure.OF_LABELS:
    key = f'distillation/{name}'
    np.testing.assert_array_equal(found[key], whole[key][:, kept_N])
    assert found[f'test/{name}'].shape == (1, 20)
  np.testing.assert_array_equal(found['distillation/loss'], whole['distillation/loss'])


def test_the_temperature_is_that_of_the_schedule(finished, measured):
  run = Run(finished.config.copy_and_resolve_references(), finished.workdir)
  run.config.student.temperature, run.config.student.final_temperature = 8.0, 2.0
  scheduled = copy.copy(measured)
  scheduled._run = run
  num_steps = run.plan('student').num_steps
  found = [scheduled.temperature(step) for step in (0, num_steps // 2, num_steps)]
  np.testing.assert_allclose(found, [8, 4, 2], rtol=1e-6)
  logits_BC, log_probs_BC = (jax.random.normal(jax.random.key(i), (3, 5)) for i in range(2))
  batch = {'teacher_log_probs': log_probs_BC, 'labels': jnp.zeros(3, int)}
  objective = measured.objective('distillation')
  np.testing.assert_allclose(
    objective(logits_BC, batch, temperature=4.0),
    losses.distillation(logits_BC, log_probs_BC, 4.0),
    rtol=1e-6,
  )


def test_three_devices_measure_what_one_does(tmp_path):
  """Eight points: the last group of three is filled up."""
  out = tmp_path / 'out.npz'
  found = {count: launched.saved_on_devices(measure_on_devices, count, out) for count in (1, 3)}
  assert len(found[1]) == 2 * 5
  for key, values_PN in found[1].items():
    assert values_PN.shape[0] == 8
    assert values_PN.std(axis=0).max() > 0, key  # or it could be any point's
    np.testing.assert_allclose(found[3][key], values_PN, rtol=1e-5, atol=1e-5, err_msg=key)


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
  np.testing.assert_allclose(found['predictive_kl'][1], 0, atol=1e-6)
  kl = 0.9 * np.log(0.9 / 0.5) + 0.1 * np.log(0.1 / 0.5)
  np.testing.assert_allclose(found['predictive_kl'][0], kl, rtol=1e-5)
  entropy = -(0.2 * np.log(0.2) + 0.8 * np.log(0.8))
  # α is 1/2 of a mean over the one example that has a label, so all of it over both.
  np.testing.assert_allclose(found['loss'], [1.5 * np.log(2), 0.5 * entropy], rtol=1e-5)


def test_without_teachers_their_stored_predictions_serve(study, measured, monkeypatch):
  monkeypatch.setattr(runs.Study, 'has_teachers', property(lambda self: False))
  stored = measure.Measure(study, NUM_EXAMPLES).batches('test')[0]
  fresh = measured.batches('test')[0]
  np.testing.assert_array_equal(stored['inputs'], fresh['inputs'])
  np.testing.assert_allclose(stored['teacher_log_probs'], fresh['teacher_log_probs'], atol=2e-2)
  assert (stored['teacher_log_probs'] != fresh['teacher_log_probs']).any()
