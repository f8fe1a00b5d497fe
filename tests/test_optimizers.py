"""Optimizers against updates worked out in NumPy, their schedules, and their states."""

import functools

import jax
import numpy as np
import optax
import pytest
from conftest import compilations
from etils import epath
from ml_collections import ConfigDict

from kdjax.train import devices, optimizers, steps
from kdjax.train.checkpoint import Checkpoints

OPTIMIZERS = tuple(optimizers.OPTIMIZERS)
NUM_STEPS = 3
RATES = [0.5, 0.4, 0.2]  # half a cosine from 0.5 to 0.1 in three steps
DECAY = 0.01


def section(optimizer='sgd', **fields) -> ConfigDict:
  defaults = {
    'optimizer': optimizer,
    'learning_rate': 0.5,
    'final_learning_rate': 0.1,
    'momentum': 0.9,
    'beta2': 0.99,
    'nesterov': False,
    'weight_decay': DECAY,
  }
  return ConfigDict(defaults | fields)


def random_params(seed=0):
  """A convolution (HWIO), a dense layer, a norm and an embedding."""
  shapes = {
    'conv': {'kernel': (3, 3, 2, 5), 'bias': (5,)},
    'dense': {'kernel': (4, 6)},
    'norm': {'scale': (5,)},
    'embed': {'embedding': (7, 4)},
  }
  rng = np.random.default_rng(seed)
  is_shape = lambda x: isinstance(x, tuple)
  return jax.tree.map(lambda s: rng.normal(size=s).astype(np.float32), shapes, is_leaf=is_shape)


@functools.cache
def trajectory(name, nesterov=False, num_steps=NUM_STEPS, warmup_steps=0):
  """The parameters after each step; step i has the gradient `random_params(i + 1)`."""
  config = section(name, nesterov=nesterov)
  optimizer = optimizers.make_optimizer(config, num_steps, warmup_steps)

  @jax.jit
  def step(params, state, gradient):
    updates, state = optimizer.update(gradient, state, params)
    return optax.apply_updates(params, updates), state

  params, found = random_params(), []
  state = jax.jit(optimizer.init)(params)
  for i in range(num_steps):
    params, state = step(params, state, random_params(i + 1))
    found.append(params)
  return found


def assert_trajectory(name, nesterov, update, paths):
  """`update(weights, gradient, rate, memory, i)` → the weights after step i, in float64."""
  found = trajectory(name, nesterov)
  for layer, leaf in paths:
    weights, memory = np.asarray(random_params()[layer][leaf], np.float64), {}
    for i, rate in enumerate(RATES):
      gradient = np.asarray(random_params(i + 1)[layer][leaf], np.float64)
      weights = update(weights, gradient, rate, memory, i)
      np.testing.assert_allclose(found[i][layer][leaf], weights, rtol=2e-5, atol=2e-6)


ALL_PATHS = [(layer, name) for layer, names in random_params().items() for name in names]
KERNELS = [path for path in ALL_PATHS if path[1] == 'kernel']
OTHERS = [path for path in ALL_PATHS if path[1] != 'kernel']


# Updates.


@pytest.mark.parametrize('nesterov', [False, True])
def test_sgd_has_coupled_weight_decay_and_momentum(nesterov):
  def update(weights, gradient, rate, memory, i):
    gradient = gradient + DECAY * weights
    memory['velocity'] = gradient + 0.9 * memory.get('velocity', 0)
    step = gradient + 0.9 * memory['velocity'] if nesterov else memory['velocity']
    return weights - rate * step

  assert_trajectory('sgd', nesterov, update, ALL_PATHS)


def adam_direction(gradient, memory, i):
  """Kingma & Ba 2015, Algorithm 1, with β1 = 0.9 and β2 = 0.99."""
  memory['m'] = 0.9 * memory.get('m', 0) + 0.1 * gradient
  memory['v'] = 0.99 * memory.get('v', 0) + 0.01 * gradient**2
  return memory['m'] / (1 - 0.9 ** (i + 1)) / (np.sqrt(memory['v'] / (1 - 0.99 ** (i + 1))) + 1e-8)


def adamw_update(weights, gradient, rate, memory, i):
  return weights - rate * (adam_direction(gradient, memory, i) + DECAY * weights)


@pytest.mark.parametrize('nesterov', [False, True])
def test_adam_has_coupled_weight_decay_and_no_nesterov_momentum(nesterov):
  def update(weights, gradient, rate, memory, i):
    return weights - rate * adam_direction(gradient + DECAY * weights, memory, i)

  assert_trajectory('adam', nesterov, update, ALL_PATHS)


@pytest.mark.parametrize('nesterov', [False, True])
def test_adamw_has_decoupled_weight_decay_and_no_nesterov_momentum(nesterov):
  assert_trajectory('adamw', nesterov, adamw_update, ALL_PATHS)


def newton_schulz(matrix):
  """Jordan 2024: five quintic iterations from the matrix over its Frobenius norm."""
  x = matrix / np.linalg.norm(matrix)
  for _ in range(5):
    gram = x @ x.T
    x = 3.4445 * x + (-4.775 * gram + 2.0315 * gram @ gram) @ x
  return x


@pytest.mark.parametrize('nesterov', [False, True])
def test_muon_orthogonalizes_the_momentum_of_kernels(nesterov):
  def update(weights, gradient, rate, memory, i):
    memory['m'] = 0.9 * memory.get('m', 0) + 0.1 * gradient
    momentum = memory['m'] / (1 - 0.9 ** (i + 1))
    if nesterov:
      ahead = memory['m'] / (1 - 0.9 ** (i + 2))
      momentum = 0.9 * ahead + 0.1 * gradient / (1 - 0.9 ** (i + 1))
    matrix = momentum.reshape(-1, momentum.shape[-1])
    step = 0.2 * np.sqrt(max(matrix.shape)) * newton_schulz(matrix).reshape(weights.shape)
    return weights - rate * (step + DECAY * weights)

  assert_trajectory('muon', nesterov, update, KERNELS)


def test_muon_gives_adamw_to_all_but_kernels():
  assert_trajectory('muon', False, adamw_update, OTHERS)


# Learning rates.


def test_the_learning_rate_without_warm_up_is_a_cosine(caplog):
  caplog.set_level('INFO', logger='absl')
  rate = optimizers.learning_rate(section(learning_rate=5e-2, final_learning_rate=1e-6), 100)
  at = np.arange(102)
  expected = 1e-6 + (5e-2 - 1e-6) * (1 + np.cos(np.pi * np.minimum(at, 100) / 100)) / 2
  found = np.array([rate(i) for i in at])
  np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-8)
  assert found[0] == np.float32(5e-2)
  # The very bits that runs without a warm-up always had.
  cosine = optax.cosine_decay_schedule(5e-2, 100, alpha=1e-6 / 5e-2)
  np.testing.assert_array_equal(found, [cosine(i) for i in at])
  assert not caplog.records  # as optax has them for an empty warm-up


def test_the_learning_rate_with_warm_up():
  rate = jax.jit(optimizers.learning_rate(section(), 10, warmup_steps=4))
  assert rate(0) == 0 and rate(4) == 0.5
  warm_up = [0, 0.125, 0.25, 0.375]
  cosine = 0.1 + 0.4 * (1 + np.cos(np.pi * np.arange(7) / 6)) / 2
  np.testing.assert_allclose([rate(i) for i in range(11)], [*warm_up, *cosine], rtol=1e-6)
  np.testing.assert_allclose(rate(20), 0.1, rtol=1e-6)


def test_a_warm_up_as_long_as_the_training_is_refused():
  with pytest.raises(ValueError, match='decay_steps'):
    optimizers.learning_rate(section(), 10, warmup_steps=10)


@pytest.mark.parametrize('name', OPTIMIZERS)
def test_the_first_step_of_a_warm_up_moves_nothing_and_the_next_does(name):
  params, (still, moved) = random_params(), trajectory(name, num_steps=2, warmup_steps=1)
  jax.tree.map(np.testing.assert_array_equal, still, params)
  jax.tree.map(lambda x, y: np.testing.assert_(np.any(x != y)), moved, params)


# States.


def test_states_survive_a_checkpoint(tmp_path):
  """States restored in the structure that eval_shape gives are the same bits."""
  made = {name: optimizers.make_optimizer(section(name), NUM_STEPS) for name in OPTIMIZERS}
  params = random_params()

  @jax.jit
  def after_a_step():
    return {name: of.update(params, of.init(params), params)[1] for name, of in made.items()}

  states = after_a_step()
  with Checkpoints(epath.Path(tmp_path) / 'checkpoints') as checkpoints:
    checkpoints.save(1, states)
  with Checkpoints(epath.Path(tmp_path) / 'checkpoints', create=False) as checkpoints:
    restored = checkpoints.restore(
      {name: jax.eval_shape(of.init, params) for name, of in made.items()}
    )
  for name in OPTIMIZERS:
    assert len(jax.tree.leaves(restored[name])) >= len(jax.tree.leaves(params))
  jax.tree.map(np.testing.assert_array_equal, restored, states)


@pytest.mark.parametrize('name', OPTIMIZERS)
def test_an_optimizer_runs_in_the_pmapped_step_and_compiles_once(name):
  optimizer = optimizers.make_optimizer(section(name), NUM_STEPS)

  def step(state, gradient_D, seed):
    del seed
    params, opt_state = state
    gradient = jax.tree.map(lambda x: jax.lax.pmean(x, steps.AXIS_NAME), gradient_D)
    updates, opt_state = optimizer.update(gradient, opt_state, params)
    return optax.apply_updates(params, updates), opt_state

  parallel = devices.parallel(step, donate=True)
  params = random_params()
  state = devices.replicate((params, optimizer.init(params)))
  repeated = lambda x: np.stack([x] * jax.local_device_count())
  with compilations() as count:
    for i in range(NUM_STEPS):
      state = parallel(state, jax.tree.map(repeated, random_params(i + 1)), 0)
  assert count() == 1
  expected = trajectory(name)[-1]
  jax.tree.map(
    lambda x, y: np.testing.assert_allclose(x, y, rtol=2e-5, atol=1e-6), state[0], expected
  )
