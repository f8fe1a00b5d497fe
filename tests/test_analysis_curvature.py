"""Curvature compared with explicit matrices of tiny networks and with known results."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import compilations
from jax.flatten_util import ravel_pytree
from scipy.special import log_softmax

from analysis import curvature
from analysis.curvature import MeanLoss
from analysis.lanczos import rademacher
from kdjax import intervals, losses
from kdjax.losses import on_logits

NUM, INPUTS, HIDDEN, CLASSES, TAU = 12, 4, 3, 5, 2.0


def mlp(params, inputs):
  hidden = jnp.tanh(inputs @ params['hidden']['kernel'] + params['hidden']['bias'][None])
  return hidden @ params['out']['kernel'] + params['out']['bias'][None]


def normed(params, inputs):
  """ReLU and BatchNorm with the statistics of the batch."""
  hidden = inputs @ params['hidden']['kernel']
  hidden = (hidden - hidden.mean(0)[None]) / jnp.sqrt(hidden.var(0)[None] + 1e-5)
  return jax.nn.relu(hidden + params['hidden']['bias'][None]) @ params['out']['kernel']


def frozen(params, inputs):
  """A forward function with fixed statistics, so that logits are piecewise linear in each weight."""
  hidden = (inputs @ params['hidden']['kernel'] - 0.1) / 1.7
  return jax.nn.relu(hidden + params['hidden']['bias'][None]) @ params['out']['kernel']


def distillation(logits, batch):
  return losses.distillation(logits, batch['teacher_log_probs'], TAU)


def brier(logits, batch):
  return on_logits.brier(logits, batch['teacher_log_probs'], TAU)


def squared_length(params):
  """A loss for `of_params`: its Hessian is diagonal."""
  return 0.5 * (jnp.sum(params['a']['x'] ** 2) + 3 * jnp.sum(params['b']['x'] ** 2))


def of_params(loss, a, b):
  """A MeanLoss that is `loss(params)`, with parameters a/x and b/x of sizes 2 and 4."""
  params = {'a': {'x': jnp.asarray(a, jnp.float32)}, 'b': {'x': jnp.asarray(b, jnp.float32)}}
  forward = lambda params, inputs: jnp.broadcast_to(loss(params), (len(inputs), 1))
  batch = {'inputs': np.zeros((2, 1), np.float32)}
  return MeanLoss(forward, lambda logits, batch: logits[:, 0], params, [batch])


def normal(rng, *shape):
  return rng.normal(size=shape).astype(np.float32)


def make_params():
  rng = np.random.default_rng(0)
  return {
    'hidden': {'kernel': normal(rng, INPUTS, HIDDEN), 'bias': normal(rng, HIDDEN)},
    'out': {'kernel': normal(rng, HIDDEN, CLASSES), 'bias': normal(rng, CLASSES)},
  }


def make_examples():
  rng = np.random.default_rng(1)
  teacher_NC = log_softmax(2 * normal(rng, NUM, CLASSES), axis=-1)
  return {'inputs': normal(rng, NUM, INPUTS), 'teacher_log_probs': teacher_NC}


PARAMS, EXAMPLES = make_params(), make_examples()


def in_batches(size):
  return [
    {key: x[begin : begin + size] for key, x in EXAMPLES.items()} for begin in range(0, NUM, size)
  ]


@pytest.fixture(scope='module')
def mean_loss():
  return MeanLoss(mlp, distillation, PARAMS, in_batches(5))


@functools.cache
def explicit(forward, loss):
  """The Hessian of the mean loss of one batch, and mean Jᵀ ∇²_z loss J, both as matrices."""
  theta, unravel = ravel_pytree(PARAMS)
  logits_of = lambda theta: forward(unravel(theta), EXAMPLES['inputs'])
  total = lambda z: loss(z.reshape(NUM, CLASSES), EXAMPLES).mean()

  @jax.jit
  def matrices(theta):
    jacobian = jax.jacobian(logits_of)(theta).reshape(-1, theta.size)
    in_logits = jax.hessian(total)(logits_of(theta).ravel())
    hessian = jax.hessian(lambda theta: total(logits_of(theta)))(theta)
    return hessian, jacobian.T @ in_logits @ jacobian

  return tuple(np.asarray(matrix) for matrix in matrices(theta))


@pytest.fixture(scope='module')
def matrices():
  return explicit(mlp, distillation)


def columns(product, size):
  return np.stack([product(row) for row in np.eye(size, dtype=np.float32)], axis=1)


# Products.


def test_products_are_those_of_explicit_matrices(mean_loss, matrices):
  size = mean_loss.num_parameters
  assert size == INPUTS * HIDDEN + HIDDEN + HIDDEN * CLASSES + CLASSES
  for product, matrix in zip((mean_loss.hvp, mean_loss.gvp), matrices, strict=True):
    np.testing.assert_allclose(columns(product, size), matrix, atol=2e-6)  # symmetric, too
  assert np.abs(matrices[0] - matrices[1]).max() > 0.05


def test_derivatives_go_through_the_statistics_of_the_batch():
  of = MeanLoss(normed, distillation, PARAMS, [EXAMPLES])
  expected = explicit(normed, distillation)
  for product, matrix in zip((of.hvp, of.gvp), expected, strict=True):
    np.testing.assert_allclose(columns(product, of.num_parameters), matrix, atol=5e-6)
  # A kernel's length is normalised away: no slope and no curvature along it.
  along = jax.tree.map(jnp.zeros_like, PARAMS)
  along['hidden']['kernel'] = PARAMS['hidden']['kernel']
  along_P = np.asarray(ravel_pytree(along)[0])
  assert abs(along_P @ of.gradient()[1]) < 1e-4
  assert np.linalg.norm(of.gvp(along_P)) < 1e-3 * np.linalg.norm(of.gvp(np.ones_like(along_P)))


@pytest.mark.parametrize('size', [1, 12])
def test_batches_of_any_size_give_the_values_of_all_examples(size, mean_loss):
  other = MeanLoss(mlp, distillation, PARAMS, in_batches(size))
  assert other.num_examples == NUM
  shift = 0.1 * normal(np.random.default_rng(3), other.num_parameters)
  moved = mean_loss.tree(mean_loss.theta_P + shift)
  of_all = lambda params: distillation(mlp(params, EXAMPLES['inputs']), EXAMPLES).mean()
  value, gradient = jax.value_and_grad(of_all)(moved)
  found = other.gradient(shift)
  assert found[0] == pytest.approx(float(value), rel=1e-6)
  np.testing.assert_allclose(found[1], ravel_pytree(gradient)[0], atol=1e-6)
  expected = distillation(mlp(moved, EXAMPLES['inputs']), EXAMPLES)
  np.testing.assert_allclose(other.losses(shift), expected, rtol=1e-5)
  for name in ('hvp', 'gvp'):
    np.testing.assert_allclose(
      getattr(other, name)(shift), getattr(mean_loss, name)(shift), atol=1e-5
    )


def test_at_the_teacher_kl_and_gradient_are_zero_and_hessian_is_ggn():
  teacher = jax.nn.log_softmax(mlp(PARAMS, EXAMPLES['inputs']))
  same = EXAMPLES | {'teacher_log_probs': np.asarray(teacher)}
  kl = lambda logits, batch: losses.kl_divergence(logits, batch['teacher_log_probs'])
  for loss in (kl, distillation):
    student = MeanLoss(mlp, loss, PARAMS, [same])
    np.testing.assert_allclose(student.gradient()[1], 0, atol=1e-6)
    hessian, ggn = (columns(of, student.num_parameters) for of in (student.hvp, student.gvp))
    np.testing.assert_allclose(hessian, ggn, atol=2e-6)
    assert np.abs(ggn).max() > 0.1
    if loss is kl:
      np.testing.assert_allclose(student.losses(), 0, atol=1e-6)


def test_nothing_is_compiled_from_point_to_point():
  def products(scale):
    of = MeanLoss(mlp, distillation, jax.tree.map(lambda x: scale * x, PARAMS), [EXAMPLES])
    return of.hvp(np.ones(35, np.float32)), of.gvp(np.ones(35, np.float32)), of.gradient()

  first = products(1.0)
  with compilations() as count:
    second = products(2.0)
  assert count() == 0
  assert not np.allclose(first[0], second[0])


# Traces and the mismatch.


@pytest.mark.parametrize('loss', [distillation, brier])
@pytest.mark.parametrize('forward', [mlp, frozen])
def test_the_diagonal_of_the_ggn_is_exact(forward, loss):
  """This also holds for Brier's score, which is not convex in the logits."""
  of = MeanLoss(forward, loss, PARAMS, in_batches(5))
  _, ggn = explicit(forward, loss)
  np.testing.assert_allclose(of.ggn_diagonal(), np.diag(ggn), rtol=1e-4, atol=1e-6)
  layers = curvature.layer_sums(of.tree(of.ggn_diagonal()))
  hidden = HIDDEN + INPUTS * HIDDEN  # 'hidden' comes before 'out' in the flat order
  assert layers == pytest.approx(
    {'hidden': np.trace(ggn[:hidden, :hidden]), 'out': np.trace(ggn[hidden:, hidden:])}, rel=1e-4
  )


def test_with_batch_norm_there_is_no_exact_diagonal():
  with pytest.raises(ValueError, match='BatchNorm'):
    MeanLoss(normed, distillation, PARAMS, [EXAMPLES], normalised=True).ggn_diagonal()


@pytest.mark.parametrize('forward', [frozen, normed])
def test_intervals_contain_the_values_of_explicit_matrices(forward):
  hessian, ggn = explicit(forward, distillation)
  of, rng = MeanLoss(forward, distillation, PARAMS, [EXAMPLES]), np.random.default_rng(4)
  found = curvature.probed(of, [rademacher(rng, of.num_parameters) for _ in range(100)])
  assert found.layers == ['hidden', 'out']
  hidden = HIDDEN + INPUTS * HIDDEN
  for matrix, traces_KL in ((hessian, found.hessian_KL), (ggn, found.ggn_KL)):
    diagonal = np.diag(matrix)
    expected = [diagonal[:hidden].sum(), diagonal[hidden:].sum()]
    mean, low, high = intervals.of_mean(traces_KL)
    assert np.all(np.abs(mean - expected) < 1.7 * (high - low) / 2 + 1e-5)  # 3.4 standard errors
    assert np.all(high - low < 0.5 * np.abs(diagonal).sum())
  value, low, high = curvature.mismatch(found)
  expected = np.linalg.norm(hessian - ggn) / np.linalg.norm(ggn)
  assert abs(value - expected) < 1.7 * (high - low) / 2
  assert 0 < high - low < 0.4 * expected


def test_estimates_are_exact_for_a_diagonal_hessian():
  of, rng = of_params(squared_length, [1, 2], [3, 4, 5, 6]), np.random.default_rng(0)
  found = curvature.probed(of, [rademacher(rng, 6) for _ in range(3)])
  assert found.layers == ['a', 'b']
  np.testing.assert_allclose(found.hessian_KL, [[2, 12]] * 3, rtol=1e-6)
  np.testing.assert_allclose(found.ggn_KL, 0)  # the loss is linear in its one output
  np.testing.assert_allclose(found.rest_squares_K, 3 * [2 * 1 + 4 * 9], rtol=1e-6)


def test_the_mismatch_is_a_ratio_of_norms_over_all_probes():
  squares = np.array([4.0, 16, 4]), np.array([1.0, 1, 4])  # of G and of H − G
  value, low, high = curvature.mismatch(curvature.Probed([], *2 * [np.zeros((3, 0))], *squares))
  without = np.sqrt([5 / 20, 5 / 8, 2 / 20])
  half = 4.3027 * np.sqrt(2 * without.var())  # of a jackknife, by Student's t
  np.testing.assert_allclose([value, low, high], [0.5, max(0.5 - half, 0), 0.5 + half], rtol=1e-4)


def test_layer_sums_name_the_owner_of_the_parameters():
  norm = {'bias': np.ones(2), 'scale': 2 * np.ones(2)}
  tree = {'block': {'Conv_0': {'kernel': np.ones((2, 3))}, 'Norm': norm}, 'w': np.ones(4)}
  assert curvature.layer_sums(tree) == {'block/Conv_0': 6, 'block/Norm': 6, 'w': 4}


# Directions.


def test_without_a_positive_eigenvalue_there_is_no_sharpest_direction():
  of = of_params(lambda params: -squared_length(params), [1, 2], [3, 4, 5, 6])
  with pytest.raises(curvature.NoSharpDirectionError, match='no positive eigenvalue'):
    curvature.top_eigenvector(of, np.random.default_rng(0))


# Sharpness.


def test_sharpness_of_a_linear_loss_is_the_radius_times_the_slope():
  slope = jnp.array([3.0, 4.0])
  of = of_params(lambda params: jnp.sum(params['a']['x'] * slope), [0, 0], [0] * 4)
  increase, shift = curvature.sharpness(of, 0.2)
  assert increase == pytest.approx(0.2 * 5, rel=1e-6)
  np.testing.assert_allclose(shift, [0.12, 0.16, 0, 0, 0, 0], atol=1e-6)


def test_sharpness_at_a_minimum_is_that_of_the_top_eigenvector():
  of = of_params(squared_length, [0, 0], [0, 0, 0, 0])
  assert curvature.sharpness(of, 0.5)[0] == 0  # the gradient is 0
  start = np.array([1, 1, 0.1, 0, 0, 0])
  increase, shift = curvature.sharpness(of, 0.5, [start], num_steps=20)
  assert increase == pytest.approx(0.5 * 3 * 0.25, rel=1e-5)  # λ ρ² / 2
  np.testing.assert_allclose(np.abs(shift), [0, 0, 0.5, 0, 0, 0], atol=1e-4)


def test_sharpness_of_a_quadratic_is_its_maximum_on_a_fine_grid():
  """The worst point of ½ (x² + 3 y²) around (1, 1) is neither along the gradient nor the axis."""
  of = of_params(squared_length, [1, 0], [1, 0, 0, 0])
  increase, shift = curvature.sharpness(of, 1.0, num_steps=30)
  angles = np.linspace(0, 2 * np.pi, 100_001)
  x, y = 1 + np.cos(angles), 1 + np.sin(angles)
  assert increase == pytest.approx((0.5 * (x**2 + 3 * y**2)).max() - 2, rel=1e-5)
  assert np.linalg.norm(shift) == pytest.approx(1, rel=1e-5)
  along_gradient = 0.5 * ((1 + 1 / 10**0.5) ** 2 + 3 * (1 + 3 / 10**0.5) ** 2) - 2
  assert curvature.sharpness(of, 1.0, num_steps=1)[0] == pytest.approx(along_gradient, rel=1e-5)
  assert increase > along_gradient + 0.01
