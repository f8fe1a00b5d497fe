"""Curvature against explicit Hessians of a tiny network, and against what is known of losses."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import compilations
from jax.flatten_util import ravel_pytree

from analysis import curvature
from analysis.lanczos import rademacher
from kdjax import intervals, losses
from kdjax.models import layers

NUM, INPUTS, HIDDEN, CLASSES, TAU = 12, 4, 3, 5, 2.0


def mlp(variables, inputs):
  params = variables['params']
  for name in ('hidden', 'out'):
    bias = jnp.broadcast_to(params[name]['bias'][None], (len(inputs), len(params[name]['bias'])))
    inputs = inputs @ params[name]['kernel'] + bias
    inputs = jnp.tanh(inputs) if name == 'hidden' else inputs
  return inputs


def linear(variables, inputs):
  return inputs @ variables['params']['out']['kernel']


def distillation(logits, batch):
  return losses.distillation(logits, batch['teacher_log_probs'], TAU)


def squared_length(params):
  """A loss for `of_params`: its Hessian is diagonal."""
  return 0.5 * (jnp.sum(params['a']['x'] ** 2) + 3 * jnp.sum(params['b']['x'] ** 2))


def of_params(loss):
  """A MeanLoss that is `loss(params)`, with parameters a/x and b/x of sizes 2 and 4."""

  def make(a, b):
    params = {'a': {'x': jnp.asarray(a, jnp.float32)}, 'b': {'x': jnp.asarray(b, jnp.float32)}}
    forward = lambda variables, inputs: jnp.broadcast_to(
      loss(variables['params']), (len(inputs), 1)
    )
    batch = {'inputs': np.zeros((2, 1), np.float32), 'weights': np.ones(2, np.float32)}
    variables = {'params': params, 'batch_stats': {}}
    return curvature.MeanLoss(forward, lambda logits, batch: logits[:, 0], variables, [batch])

  return make


def normal(rng, *shape):
  return rng.normal(size=shape).astype(np.float32)


@pytest.fixture(scope='module')
def variables():
  rng = np.random.default_rng(0)
  params = {
    'hidden': {'kernel': normal(rng, INPUTS, HIDDEN), 'bias': normal(rng, HIDDEN)},
    'out': {'kernel': normal(rng, HIDDEN, CLASSES), 'bias': normal(rng, CLASSES)},
  }
  return {'params': params, 'batch_stats': {}}


@pytest.fixture(scope='module')
def examples():
  rng = np.random.default_rng(1)
  teacher = jax.nn.log_softmax(2 * normal(rng, NUM, CLASSES))
  return {'inputs': normal(rng, NUM, INPUTS), 'teacher_log_probs': np.asarray(teacher)}


def in_batches(examples, size):
  """Batches of one size; the last is filled up with examples that must not count."""
  batches = []
  for begin in range(0, NUM, size):
    part = {key: x[begin : begin + size] for key, x in examples.items()}
    count = len(part['inputs'])
    filler = {key: np.full((size - count, *x.shape[1:]), 7, x.dtype) for key, x in part.items()}
    batch = {key: np.concatenate([x, filler[key]]) for key, x in part.items()}
    batches.append(batch | {'weights': (np.arange(size) < count).astype(np.float32)})
  return batches


@pytest.fixture(scope='module')
def mean_loss(variables, examples):
  return curvature.MeanLoss(mlp, distillation, variables, in_batches(examples, 5))


def explicit_loss(forward, variables, examples):
  """The mean of all examples at once, as a function of flat parameters."""
  _, unravel = ravel_pytree(variables['params'])

  def loss(theta):
    logits = forward({'params': unravel(theta), 'batch_stats': {}}, examples['inputs'])
    return distillation(logits, examples).mean()

  return loss


@pytest.fixture(scope='module')
def hessian(variables, examples):
  theta, _ = ravel_pytree(variables['params'])
  return np.asarray(jax.jit(jax.hessian(explicit_loss(mlp, variables, examples)))(theta))


@pytest.fixture(scope='module')
def ggn(variables, examples):
  """mean Jᵀ (diag(q) − q qᵀ) J: with its τ² the Hessian in the logits needs no more than q at τ."""
  theta, unravel = ravel_pytree(variables['params'])
  logits = lambda theta: mlp({'params': unravel(theta)}, examples['inputs'])
  jacobians = np.asarray(jax.jit(jax.jacobian(logits))(theta))
  q = np.asarray(jax.nn.softmax(logits(theta) / TAU))
  terms = [j.T @ (np.diag(p) - np.outer(p, p)) @ j for j, p in zip(jacobians, q, strict=True)]
  return np.mean(terms, axis=0)


def columns(product, size):
  return np.stack([product(row) for row in np.eye(size, dtype=np.float32)], axis=1)


def test_products_are_those_of_explicit_matrices(mean_loss, hessian, ggn):
  size = mean_loss.num_parameters
  assert size == INPUTS * HIDDEN + HIDDEN + HIDDEN * CLASSES + CLASSES
  np.testing.assert_allclose(columns(mean_loss.hvp, size), hessian, atol=2e-6)
  np.testing.assert_allclose(columns(mean_loss.gvp, size), ggn, atol=2e-6)
  assert np.abs(hessian - ggn).max() > 0.05


def test_value_and_gradient_are_those_of_all_examples(mean_loss, variables, examples):
  shift = 0.1 * normal(np.random.default_rng(3), mean_loss.num_parameters)
  value, gradient = mean_loss.gradient(shift)
  expected = jax.value_and_grad(explicit_loss(mlp, variables, examples))(mean_loss.theta_P + shift)
  assert value == pytest.approx(float(expected[0]), rel=1e-6)
  np.testing.assert_allclose(gradient, expected[1], atol=1e-6)


@pytest.mark.parametrize('size', [1, 5, 12])
def test_a_ragged_last_batch_gives_the_value_of_all_examples(size, variables, examples, mean_loss):
  other = curvature.MeanLoss(mlp, distillation, variables, in_batches(examples, size))
  assert other.num_examples == NUM
  values = mean_loss.losses()
  expected = distillation(mlp(variables, examples['inputs']), examples)
  np.testing.assert_allclose(other.losses(), expected, rtol=1e-5)
  np.testing.assert_allclose(other.gradient()[0], values.mean(), rtol=1e-5)
  vector = normal(np.random.default_rng(2), other.num_parameters)
  np.testing.assert_allclose(other.hvp(vector), mean_loss.hvp(vector), atol=1e-5)
  np.testing.assert_allclose(other.gvp(vector), mean_loss.gvp(vector), atol=1e-5)


@pytest.mark.parametrize('name', ['hvp', 'gvp'])
def test_operators_are_symmetric(mean_loss, name):
  rng, product = np.random.default_rng(2), getattr(mean_loss, name)
  u, v = normal(rng, mean_loss.num_parameters), normal(rng, mean_loss.num_parameters)
  assert abs(u @ product(v)) > 0.1
  assert u @ product(v) == pytest.approx(v @ product(u), rel=1e-5)


def test_of_a_linear_model_ggn_and_hessian_are_equal(examples):
  params = {'out': {'kernel': normal(np.random.default_rng(0), INPUTS, CLASSES)}}
  linear_loss = curvature.MeanLoss(
    linear, distillation, {'params': params, 'batch_stats': {}}, in_batches(examples, 5)
  )
  size = linear_loss.num_parameters
  hessian = columns(linear_loss.hvp, size)
  np.testing.assert_allclose(hessian, columns(linear_loss.gvp, size), atol=1e-6)
  assert np.abs(hessian).max() > 0.1


def test_at_the_teacher_kl_and_gradient_are_zero_and_hessian_is_ggn(variables, examples):
  teacher = jax.nn.log_softmax(mlp(variables, examples['inputs']))
  same = examples | {'teacher_log_probs': np.asarray(teacher)}
  batches = in_batches(same, 5)
  kl = lambda logits, batch: losses.kl_divergence(batch['teacher_log_probs'], logits)
  np.testing.assert_allclose(curvature.MeanLoss(mlp, kl, variables, batches).losses(), 0, atol=1e-6)
  for loss in (kl, distillation):
    student = curvature.MeanLoss(mlp, loss, variables, batches)
    np.testing.assert_allclose(student.gradient()[1], 0, atol=1e-6)
    hessian = columns(student.hvp, student.num_parameters)
    ggn = columns(student.gvp, student.num_parameters)
    np.testing.assert_allclose(hessian, ggn, atol=2e-6)
    assert np.abs(ggn).max() > 0.1


class Normed(nn.Module):
  """y = x w / σ, as the models of kdjax are called."""

  @nn.compact
  def __call__(self, x, train):
    y = nn.Dense(1, use_bias=False)(x)
    return layers.NORMS['batch'](train)()(y), {}


def test_batch_norm_statistics_are_held_fixed():
  """With a given σ = 2 the Hessian of ½ y² at w is mean x² / 4, whatever the batch's own σ is."""
  x = np.array([[1.0], [3.0], [5.0]], np.float32)
  variables = Normed().init(jax.random.key(0), x, train=False)
  variables['batch_stats'] = jax.tree.map(lambda s: 0 * s, variables['batch_stats'])
  variables['batch_stats']['BatchNorm_0']['var'] = jnp.full(1, 4.0)
  half_square = lambda logits, batch: 0.5 * logits[:, 0] ** 2
  batches = [{'inputs': x, 'weights': np.ones(3, np.float32)}]
  mean_loss = curvature.MeanLoss(curvature.forward(Normed()), half_square, variables, batches)
  along_w = np.array([0, 0, 1], np.float32)  # after BatchNorm's bias and scale
  assert along_w @ mean_loss.hvp(along_w) == pytest.approx((1 + 9 + 25) / 3 / 4, rel=1e-4)


def test_traces_are_exact_for_a_diagonal_hessian():
  rng = np.random.default_rng(0)
  of = of_params(squared_length)([1, 2], [3, 4, 5, 6])
  found = curvature.traces(of, [rademacher(rng, 6) for _ in range(3)])
  assert found.layers == ['a', 'b']
  np.testing.assert_allclose(found.hessian.layers_KL, [[2, 12]] * 3, rtol=1e-6)
  np.testing.assert_allclose(found.hessian.squares_K, 3 * [2 * 1 + 4 * 9], rtol=1e-6)


def test_traces_are_unbiased_within_their_errors(mean_loss, hessian, ggn):
  rng = np.random.default_rng(4)
  probes = [rademacher(rng, mean_loss.num_parameters) for _ in range(200)]
  found = curvature.traces(mean_loss, probes)
  assert found.layers == ['hidden', 'out']
  hidden = HIDDEN + INPUTS * HIDDEN  # 'hidden' comes before 'out' in the flat order
  for matrix, trace in (
    (hessian, found.hessian),
    (ggn, found.ggn),
  ):
    diagonal = np.diag(matrix)
    expected = np.array([diagonal[:hidden].sum(), diagonal[hidden:].sum()])
    error = trace.layers_KL.std(axis=0, ddof=1) / np.sqrt(200)
    assert np.all(np.abs(trace.layers_KL.mean(axis=0) - expected) < 3.5 * error)
    assert np.all(error < 0.1 * np.abs(expected).max())
    assert trace.squares_K.mean() == pytest.approx(np.linalg.norm(matrix) ** 2, rel=0.15)


def test_shared_probes_make_the_difference_more_precise(variables, examples):
  """Near the teacher H ≈ G: the paired error is far below that of either trace."""
  teacher = jax.nn.log_softmax(
    mlp(variables, examples['inputs']) + 0.01 * examples['inputs'][:, :1]
  )
  batches = in_batches(examples | {'teacher_log_probs': np.asarray(teacher)}, 5)
  near = curvature.MeanLoss(mlp, distillation, variables, batches)
  rng = np.random.default_rng(5)
  found = curvature.traces(near, [rademacher(rng, near.num_parameters) for _ in range(20)])
  hessian_K, ggn_K = found.hessian.total_K, found.ggn.total_K
  assert np.std(hessian_K - ggn_K) < 0.05 * np.std(hessian_K)


def test_mean_interval_is_that_of_students_t():
  mean, low, high = intervals.of_mean(np.array([[1.0, 5], [2, 5], [3, 5]]))
  np.testing.assert_allclose(mean, [2, 5])
  np.testing.assert_allclose([low[0], high[0]], [2 - 2.4841, 2 + 2.4841], atol=1e-4)  # 4.3027 / √3
  np.testing.assert_allclose([low[1], high[1]], 5)


def test_layer_sums_name_the_owner_of_the_parameters():
  tree = {
    'block': {
      'Conv_0': {'kernel': np.ones((2, 3))},
      'Norm': {'bias': np.ones(2), 'scale': 2 * np.ones(2)},
    }
  }
  assert curvature.layer_sums(tree) == {'block/Conv_0': 6, 'block/Norm': 6}


def test_the_sharpest_direction_is_the_top_eigenvector(mean_loss, hessian):
  tree = curvature.top_eigenvector(mean_loss, np.random.default_rng(6))
  assert tree['out']['kernel'].shape == (HIDDEN, CLASSES)
  values, vectors = np.linalg.eigh(hessian)
  direction = np.asarray(ravel_pytree(tree)[0])
  assert abs(direction @ vectors[:, -1]) == pytest.approx(1, abs=1e-4)
  assert direction @ mean_loss.hvp(direction) == pytest.approx(values[-1], rel=1e-4)


def test_a_flat_direction_is_orthogonal_to_the_sharp_ones(mean_loss, hessian):
  tree = curvature.flat_direction(mean_loss, np.random.default_rng(6), num_eigenvectors=4)
  _, vectors = np.linalg.eigh(hessian)
  direction = np.asarray(ravel_pytree(tree)[0])
  assert np.linalg.norm(direction) == pytest.approx(1, abs=1e-5)
  np.testing.assert_allclose(direction @ vectors[:, -4:], 0, atol=1e-3)
  assert abs(direction @ vectors[:, -5]) > 0.01  # no more than these is projected out


def test_where_nothing_curves_upwards_no_direction_is_the_sharpest():
  of = of_params(lambda params: -squared_length(params))([1, 2], [3, 4, 5, 6])
  with pytest.raises(curvature.NoSharpDirectionError, match='no positive eigenvalue'):
    curvature.top_eigenvector(of, np.random.default_rng(0))


def test_sharpness_of_a_linear_loss_is_the_radius_times_the_slope():
  of = of_params(lambda params: jnp.sum(params['a']['x'] * jnp.array([3.0, 4.0])))([0, 0], [0] * 4)
  increase, shift = curvature.sharpness(of, 0.2)
  assert increase == pytest.approx(0.2 * 5, rel=1e-6)
  np.testing.assert_allclose(shift, [0.12, 0.16, 0, 0, 0, 0], atol=1e-6)


def test_sharpness_at_a_minimum_is_that_of_the_top_eigenvector():
  of = of_params(squared_length)([0, 0], [0, 0, 0, 0])
  assert curvature.sharpness(of, 0.5)[0] == 0  # the gradient says nothing
  start = np.array([1, 1, 0.1, 0, 0, 0])
  increase, shift = curvature.sharpness(of, 0.5, [start], num_steps=20)
  assert increase == pytest.approx(0.5 * 3 * 0.25, rel=1e-5)  # λ ρ² / 2
  np.testing.assert_allclose(np.abs(shift), [0, 0, 0.5, 0, 0, 0], atol=1e-4)


def test_sharpness_of_a_quadratic_is_its_maximum_on_a_fine_grid():
  """Of ½ (x² + 3 y²) around (1, 1): the worst point is neither along the gradient nor the axis."""
  of = of_params(squared_length)([1, 0], [1, 0, 0, 0])
  increase, shift = curvature.sharpness(of, 1.0, num_steps=30)
  angles = np.linspace(0, 2 * np.pi, 100_001)
  x, y = 1 + np.cos(angles), 1 + np.sin(angles)
  assert increase == pytest.approx((0.5 * (x**2 + 3 * y**2)).max() - 2, rel=1e-5)
  assert np.linalg.norm(shift) == pytest.approx(1, rel=1e-5)
  along_gradient = 0.5 * ((1 + 1 / 10**0.5) ** 2 + 3 * (1 + 3 / 10**0.5) ** 2) - 2
  assert curvature.sharpness(of, 1.0, num_steps=1)[0] == pytest.approx(along_gradient, rel=1e-5)
  assert increase > along_gradient + 0.01


def test_nothing_is_compiled_from_point_to_point(variables, examples):
  batches = in_batches(examples, 6)

  def products(scale):
    point = jax.tree.map(lambda x: scale * x, variables)
    of = curvature.MeanLoss(mlp, distillation, point, batches)
    return of.hvp(np.ones(35, np.float32)), of.gvp(np.ones(35, np.float32)), of.gradient()

  first = products(1.0)
  with compilations() as count:
    second = products(2.0)
  assert count() == 0
  assert not np.allclose(first[0], second[0])
