import os
import subprocess
import sys
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import ROOT, compilations
from ml_collections import ConfigDict

from kdjax import models, steps, views

CLEAN = views.make_view((), ConfigDict({'crop_padding': 0}))


class Linear(nn.Module):
  """logits = images · w, small enough to work the update out by hand."""

  @nn.compact
  def __call__(self, x, train):
    return nn.Dense(3, use_bias=False)(x.reshape(len(x), -1)), {}


def optimizer_config(**fields) -> ConfigDict:
  defaults = {
    'learning_rate': 0.5,
    'final_learning_rate': 0.1,
    'momentum': 0.9,
    'nesterov': False,
    'weight_decay': 0.01,
  }
  return ConfigDict(defaults | fields)


def batch(size=6, seed=0):
  rng = np.random.RandomState(seed)
  return {
    'images': rng.randint(0, 256, (size, 2, 2, 1)).astype(np.uint8),
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


@pytest.mark.parametrize('nesterov', [False, True])
def test_teacher_steps_are_sgd_with_momentum_and_coupled_weight_decay(nesterov):
  section = optimizer_config(nesterov=nesterov)
  optimizer = steps.make_optimizer(section, num_steps=3)
  step = steps.parallel(
    partial(steps.teacher_step, model=Linear(), optimizer=optimizer, view=CLEAN)
  )
  state = linear_state(optimizer)
  weights = np.asarray(state.params['Dense_0']['kernel'], np.float64)
  velocity = np.zeros_like(weights)
  for i, rate in enumerate([0.5, 0.4, 0.2]):  # half a cosine from 0.5 to 0.1 in three steps
    x = batch(seed=i)['images'].reshape(6, 4) / 127.5 - 1
    targets = np.eye(3)[batch(seed=i)['labels']]
    gradient = x.T @ (softmax(x @ weights) - targets) / 6
    state, metrics = step(state, steps.shard(batch(seed=i)), 0)
    np.testing.assert_allclose(metrics['gradient_norm'][0], np.linalg.norm(gradient), rtol=1e-5)
    gradient += 0.01 * weights
    velocity = 0.9 * velocity + gradient
    weights -= rate * (gradient + 0.9 * velocity if nesterov else velocity)
    np.testing.assert_allclose(state.params['Dense_0']['kernel'], weights, rtol=2e-5, atol=1e-6)
  assert state.step == 3


def test_the_learning_rate_is_what_the_config_says():
  rate = steps.learning_rate(optimizer_config(learning_rate=5e-2, final_learning_rate=1e-6), 100)
  np.testing.assert_allclose([rate(0), rate(50), rate(100)], [5e-2, (5e-2 + 1e-6) / 2, 1e-6], 1e-5)


@pytest.mark.parametrize('alpha', [0.0, 0.3])
def test_student_step_reports_the_mixed_loss_and_fidelity(alpha):
  optimizer = steps.make_optimizer(optimizer_config(), 10)
  state = linear_state(optimizer)
  inputs = batch()
  teacher = jax.nn.log_softmax(np.random.RandomState(1).randn(6, 3).astype(np.float32))
  step = steps.parallel(
    partial(
      steps.student_step,
      model=Linear(),
      optimizer=optimizer,
      view=CLEAN,
      temperature=4.0,
      alpha=alpha,
    ),
    num_sharded=2,
  )
  _, metrics = step(state, steps.shard(inputs), steps.shard(teacher), 0)
  logits = (inputs['images'].reshape(6, 4) / 127.5 - 1) @ state.params['Dense_0']['kernel']
  nll = -np.log(softmax(logits))[np.arange(6), inputs['labels']]
  kd = -16 * (softmax(teacher / 4) * np.log(softmax(logits / 4))).sum(-1)
  kl = (np.exp(teacher) * (teacher - np.log(softmax(logits)))).sum(-1)
  expected = {
    'loss': alpha * nll + (1 - alpha) * kd,
    'accuracy': logits.argmax(-1) == inputs['labels'],
    'top1_agreement': logits.argmax(-1) == teacher.argmax(-1),
    'predictive_kl': kl,
  }
  for name, values in expected.items():
    total, count = metrics[name]
    assert count == 6
    np.testing.assert_allclose(total, values.sum(), rtol=1e-5)


@pytest.fixture(scope='module')
def on_devices(tmp_path_factory):
  folder = tmp_path_factory.mktemp('devices')
  found = {}
  for count in (1, 2, 8):
    flags = f'--xla_force_host_platform_device_count={count}'
    subprocess.run(
      [sys.executable, 'tests/steps_on_devices.py', str(folder / f'{count}.npz')],
      check=True,
      cwd=ROOT,
      env=os.environ | {'XLA_FLAGS': flags, 'PYTHONPATH': str(ROOT)},
    )
    found[count] = dict(np.load(folder / f'{count}.npz'))
    assert found[count].pop('num_devices') == count
  return found


@pytest.mark.parametrize('count', [2, 8])
def test_many_devices_give_what_one_gives(on_devices, count):
  """Losses, gradients, BatchNorm statistics, momentum and predictions, after mixed steps."""
  assert len(on_devices[1]) > 30
  for name, expected in on_devices[1].items():
    np.testing.assert_allclose(
      on_devices[count][name], expected, rtol=2e-4, atol=2e-5, err_msg=name
    )


def test_the_state_is_donated():
  optimizer = steps.make_optimizer(optimizer_config(), 10)
  step = steps.parallel(
    partial(steps.teacher_step, model=Linear(), optimizer=optimizer, view=CLEAN), donate=True
  )
  state = steps.replicate(linear_state(optimizer))
  step(state, steps.shard(batch()), 0)
  assert state.params['Dense_0']['kernel'].is_deleted()


def test_training_compiles_once():
  optimizer = steps.make_optimizer(optimizer_config(), 10)
  step = steps.parallel(
    partial(steps.teacher_step, model=Linear(), optimizer=optimizer, view=CLEAN), donate=True
  )
  state = steps.replicate(linear_state(optimizer))
  with compilations() as count:
    for seed in range(4):
      state, _ = step(state, steps.shard(batch(seed=seed)), seed)
  assert count() == 1


def test_ensemble_step_combines_in_probability_space():
  members = [models.init(Linear(), jax.random.key(i), (2, 2, 1)) for i in range(3)]
  step = steps.parallel(
    partial(steps.ensemble_step, model=Linear(), view=CLEAN), sharded_output=True
  )
  x = batch()['images'].reshape(6, 4) / 127.5 - 1
  probs = np.mean([softmax(x @ m['params']['Dense_0']['kernel']) for m in members], axis=0)
  log_probs = steps.unshard(step(members, steps.shard(batch()), 0))
  np.testing.assert_allclose(log_probs, np.log(probs), rtol=1e-5, atol=1e-6)


def test_batch_moments_are_those_of_the_batch_alone():
  class Normed(nn.Module):
    @nn.compact
    def __call__(self, x, train):
      x = x.reshape(len(x), -1)
      return models.NORMS['batch'](train)()(x), {}

  variables = models.init(Normed(), jax.random.key(0), (2, 2, 1))
  step = steps.parallel(partial(steps.batch_moments_step, model=Normed(), view=CLEAN))
  moments = step(variables, steps.shard(batch(64)), 0)['BatchNorm_0']
  x = batch(64)['images'].reshape(64, 4) / 127.5 - 1
  np.testing.assert_allclose(moments['mean'], x.mean(0), rtol=1e-4, atol=1e-5)
  np.testing.assert_allclose(moments['var'], x.var(0), rtol=1e-4)


def test_shard_and_unshard_are_inverse():
  x = jnp.arange(24.0).reshape(8, 3)
  np.testing.assert_array_equal(steps.unshard(steps.shard(x)), x)
