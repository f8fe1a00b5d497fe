from functools import partial

import flax.linen as nn
import jax
import numpy as np
import optax
import pytest
from ml_collections import ConfigDict

from kdjax import losses, models
from kdjax.data import views
from kdjax.train import devices, optimizers, steps

CLEAN = views.make_view((), ConfigDict({'crop_padding': 0}))


class Linear(nn.Module):
  """logits = images · w, small enough to work the update out by hand."""

  @nn.compact
  def __call__(self, x, train):
    x = x.reshape(len(x), -1)
    return nn.Dense(3, use_bias=False)(x), {'pixels': x, 'last_first': x[:, ::-1]}


SGD = ConfigDict(
  {
    'optimizer': 'sgd',
    'learning_rate': 0.5,
    'final_learning_rate': 0.1,
    'momentum': 0.9,
    'nesterov': False,
    'weight_decay': 0.01,
  }
)


def batch(size=6, seed=0):
  rng = np.random.RandomState(seed)
  return {
    'inputs': rng.randint(0, 256, (size, 2, 2, 1)).astype(np.uint8),
    'labels': rng.randint(0, 3, size).astype(np.int32),
    'indices': np.arange(size, dtype=np.int32),
    'views': np.zeros(size, np.int32),
  }


def linear_state(optimizer, seed=0):
  variables = models.init(Linear(), jax.random.key(seed), (2, 2, 1))
  return steps.init_state(variables, optimizer)


def softmax(x):
  e = np.exp(x - x.max(-1, keepdims=True))
  return e / e.sum(-1, keepdims=True)


def test_teacher_steps_are_sgd_with_momentum_and_coupled_weight_decay():
  """Without Nesterov's momentum, which test_optimizers.py has."""
  optimizer = optimizers.make_optimizer(SGD, num_steps=3)
  step = devices.parallel(
    partial(steps.teacher_step, model=Linear(), optimizer=optimizer, view=CLEAN)
  )
  state = linear_state(optimizer)
  weights = np.asarray(state.params['Dense_0']['kernel'], np.float64)
  velocity = np.zeros_like(weights)
  for i, rate in enumerate([0.5, 0.4, 0.2]):  # half a cosine from 0.5 to 0.1 in three steps
    x = batch(seed=i)['inputs'].reshape(6, 4) / 127.5 - 1
    targets = np.eye(3)[batch(seed=i)['labels']]
    gradient = x.T @ (softmax(x @ weights) - targets) / 6
    state, metrics = step(state, devices.shard(batch(seed=i)), 0)
    np.testing.assert_allclose(metrics['gradient_norm'][0], np.linalg.norm(gradient), rtol=1e-5)
    gradient += 0.01 * weights
    velocity = 0.9 * velocity + gradient
    weights -= rate * velocity
    np.testing.assert_allclose(state.params['Dense_0']['kernel'], weights, rtol=2e-5, atol=1e-6)
  assert state.step == 3


def student_step(optimizer, view=CLEAN, **fields):
  fields = {
    'loss': losses.LOSSES['cross_entropy'],
    'temperature': lambda step: 4.0,
    'alpha': 0.0,
  } | fields
  step = partial(steps.student_step, model=Linear(), optimizer=optimizer, view=view, **fields)
  return devices.parallel(step, num_sharded=2)


def random_log_probs(size=6):
  return jax.nn.log_softmax(np.random.RandomState(1).randn(size, 3).astype(np.float32))


def logits_of(inputs, state):
  flat = inputs['inputs'].reshape(len(inputs['inputs']), 4)
  return (flat / 127.5 - 1) @ state.params['Dense_0']['kernel']


def test_student_step_reports_the_mixed_loss_and_fidelity():
  """The accuracy and the loss on labels are means over the examples that have one."""
  alpha = 0.3
  optimizer = optimizers.make_optimizer(SGD, 10)
  state, inputs, teacher = linear_state(optimizer), batch(), random_log_probs()
  inputs['labels'][[1, 4]] = -1
  step = student_step(optimizer, alpha=alpha)
  _, metrics = step(state, devices.shard(inputs), devices.shard(teacher), 0)
  logits, labelled = logits_of(inputs, state), inputs['labels'] >= 0
  nll = np.where(labelled, -np.log(softmax(logits))[np.arange(6), inputs['labels']], 0)
  kd = -16 * (softmax(teacher / 4) * np.log(softmax(logits / 4))).sum(-1)
  kl = (np.exp(teacher) * (teacher - np.log(softmax(logits)))).sum(-1)
  expected = {
    'loss': (alpha * nll * 6 / 4 + (1 - alpha) * kd, 6),
    'accuracy': (logits.argmax(-1) == inputs['labels'], 4),
    'top1_agreement': (logits.argmax(-1) == teacher.argmax(-1), 6),
    'predictive_kl': (kl, 6),
  }
  for name, (values, num_examples) in expected.items():
    total, count = metrics[name]
    assert count == num_examples, name
    np.testing.assert_allclose(total, values.sum(), rtol=1e-5)


def test_the_labels_of_the_view_count_not_those_of_the_data():
  """In a student's step, and in what predictions are compared with."""
  optimizer = optimizers.make_optimizer(SGD, 10)
  state, inputs = linear_state(optimizer), batch(64)
  noise = views.make_view(('noise',), ConfigDict({'noise_probability': 0.5}))
  images, labels = jax.jit(noise)(0, inputs)
  num_labelled = int((labels >= 0).sum())
  assert 16 < num_labelled < 48
  step = student_step(optimizer, noise, alpha=0.3)
  _, metrics = step(state, devices.shard(inputs), devices.shard(random_log_probs(64)), 0)
  assert metrics['accuracy'][1] == num_labelled
  logits = images.reshape(64, 4) @ state.params['Dense_0']['kernel']
  kd = losses.distillation(logits, random_log_probs(64), 4.0)
  expected = losses.with_labels(kd, logits, labels, 0.3, num_labelled / 64).sum()
  np.testing.assert_allclose(metrics['loss'][0], expected, rtol=1e-5)
  step = devices.parallel(partial(steps.labels_step, view=noise), sharded_output=True)
  found = devices.unshard(step({}, devices.shard(inputs), 0))
  np.testing.assert_array_equal(found, labels)


@pytest.mark.parametrize('name', ['logit_mse', 'decoupled', 'dist'])
def test_the_student_descends_the_loss_that_it_is_given(name):
  """The loss gets the labels, and the mean over the batch, if it needs them."""
  optimizer = optax.sgd(0.5)
  state, inputs, teacher = linear_state(optimizer), batch(), random_log_probs()

  def mean_loss(weights):
    logits = logits_of(inputs, state.replace(params=weights))
    loss = losses.LOSSES[name]
    return losses.apply(loss, logits, teacher, 4.0, labels_B=inputs['labels']).mean()

  loss, gradient = jax.value_and_grad(mean_loss)(state.params)
  step = student_step(optimizer, loss=losses.LOSSES[name])
  after, metrics = step(state, devices.shard(inputs), devices.shard(teacher), 0)
  np.testing.assert_allclose(metrics['loss'][0] / 6, loss, rtol=1e-5)
  expected = state.params['Dense_0']['kernel'] - 0.5 * gradient['Dense_0']['kernel']
  np.testing.assert_allclose(after.params['Dense_0']['kernel'], expected, rtol=1e-5, atol=1e-6)


def test_the_temperature_is_that_of_the_step():
  optimizer = optax.sgd(0.0)
  state, inputs, teacher = linear_state(optimizer), batch(), random_log_probs()
  step = student_step(optimizer, temperature=lambda step: 8.0 * 0.5**step)
  for temperature in (8.0, 4.0, 2.0):
    expected = losses.distillation(logits_of(inputs, state), teacher, temperature).sum()
    state, metrics = step(state, devices.shard(inputs), devices.shard(teacher), 0)
    np.testing.assert_allclose(metrics['loss'][0], expected, rtol=1e-5)


def test_ensemble_step_combines_in_probability_space():
  members = [models.init(Linear(), jax.random.key(i), (2, 2, 1)) for i in range(3)]
  step = devices.parallel(
    partial(steps.ensemble_step, model=Linear(), view=CLEAN), sharded_output=True
  )
  x = batch()['inputs'].reshape(6, 4) / 127.5 - 1
  probs = np.mean([softmax(x @ m['params']['Dense_0']['kernel']) for m in members], axis=0)
  log_probs = devices.unshard(step(members, devices.shard(batch()), 0))
  np.testing.assert_allclose(log_probs, np.log(probs), rtol=1e-5, atol=1e-6)


def test_features_come_by_name():
  variables = models.init(Linear(), jax.random.key(0), (2, 2, 1))
  step = devices.parallel(
    partial(steps.features_step, model=Linear(), view=CLEAN), sharded_output=True
  )
  features = step(variables, devices.shard(batch()), 0)
  pixels = batch()['inputs'].reshape(6, 4) / 127.5 - 1
  assert set(features) == {'pixels', 'last_first'}
  np.testing.assert_allclose(devices.unshard(features['pixels']), pixels, atol=1e-6)
  np.testing.assert_allclose(devices.unshard(features['last_first']), pixels[:, ::-1], atol=1e-6)


def test_batch_moments_are_those_of_the_batch_alone():
  class Normed(nn.Module):
    @nn.compact
    def __call__(self, x, train):
      x = x.reshape(len(x), -1)
      return models.NORMS['batch'](train)()(x), {}

  variables = models.init(Normed(), jax.random.key(0), (2, 2, 1))
  step = devices.parallel(partial(steps.batch_moments_step, model=Normed(), view=CLEAN))
  moments = step(variables, devices.shard(batch(64)), 0)['BatchNorm_0']
  x = batch(64)['inputs'].reshape(64, 4) / 127.5 - 1
  np.testing.assert_allclose(moments['mean'], x.mean(0), rtol=1e-4, atol=1e-5)
  np.testing.assert_allclose(moments['var'], x.var(0), rtol=1e-4)
