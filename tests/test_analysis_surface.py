"""Surfaces of networks that are known functions, and the one loss of all analyses."""

import inspect
import re
import textwrap
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import measure_on_devices
import numpy as np
import pytest
from conftest import compilations
from jax.flatten_util import ravel_pytree

from analysis import curvature, geometry, lanczos, paths, surface
from kdjax import intervals, models
from kdjax.models import layers
from tests import launched


def test_the_example_of_the_docstring_studies_any_loss():
  """The network b is a with all signs changed, which is the same function; halfway the output is 0."""
  rng = np.random.default_rng(0)
  normal = lambda *shape: rng.normal(size=shape).astype(np.float32)
  a, c = ({'w': normal(3, 4), 'v': normal(4)} for _ in range(2))
  b, x = jax.tree.map(np.negative, a), normal(20, 3)
  y = np.tanh(x @ a['w']) @ a['v'] + 0.1 * normal(20)
  found = {'a': a, 'b': b, 'c': c, 'x': x, 'y': y, 'start_P': rng.normal(size=16)} | vars(surface)
  found |= {'geometry': geometry, 'paths': paths, 'curvature': curvature, 'lanczos': lanczos}
  blocks = re.findall(r'(?:^    .*\n|^\n)+', inspect.getdoc(surface) + '\n', flags=re.MULTILINE)
  exec(textwrap.dedent(max(blocks, key=len)), found)

  def mean(flat_P):
    params = ravel_pytree(b)[1](flat_P)
    return jnp.mean((jnp.tanh(x @ params['w']) @ params['v'] - y) ** 2)

  at_b = float(mean(ravel_pytree(b)[0]))
  np.testing.assert_allclose(found['values_TN'][-1].mean(), at_b, rtol=1e-5)
  assert found['barrier'] == pytest.approx(np.mean(y**2) - at_b, rel=1e-5)
  assert found['low'] < found['barrier'] < found['high']
  assert found['values_PN'].shape == (len(found['xs']) * len(found['ys']), 20)
  hessian = jax.jit(jax.hessian(mean))(ravel_pytree(b)[0])
  expected = np.linalg.eigvalsh(hessian)[::-1][:3]
  np.testing.assert_allclose(found['eigenvalues_K'], expected, rtol=1e-4)


# One loss.


@pytest.fixture(scope='module')
def normed():
  """A network with BatchNorm, its surface on eleven examples in one batch, and its weights."""
  model = measure_on_devices.Network()
  variables = models.init(model, jax.random.key(0), (measure_on_devices.NUM_INPUTS,))
  return model, measure_on_devices.surface(batch_size=16), variables


def along(shared, t_1):
  return jax.tree.map(lambda x, u: x + t_1[0] * u, shared['variables'], shared['direction'])


def test_the_curvature_of_a_plane_is_the_top_eigenvalue(normed):
  """The second difference of a plane's values, along the sharpest direction of `curvature`."""
  model, of, variables = normed
  forward = surface.of_params(model, variables)
  mean_loss = curvature.MeanLoss(
    forward, of.objective('distillation'), variables['params'], of.batches('distillation'), True
  )
  krylov = lanczos.lanczos(
    mean_loss.hvp, np.random.default_rng(0).normal(size=mean_loss.num_parameters), 60
  )
  (eigenvalue,), _, (vector_P,) = krylov.largest(1)
  zeros = jax.tree.map(jnp.zeros_like, variables['batch_stats'])
  shared = {
    'variables': variables,
    'direction': {'params': mean_loss.tree(vector_P), 'batch_stats': zeros},
  }
  step = 0.05
  values = of.at(along, shared, step * np.array([[-1.0], [0], [1]]), reestimate=True)
  left, middle, right = values['distillation/loss'].astype(np.float64).mean(axis=1)
  assert eigenvalue > 0.5
  assert (left - 2 * middle + right) / step**2 == pytest.approx(eigenvalue, rel=0.02)
  slope = vector_P @ mean_loss.gradient()[1]
  assert (right - left) / (2 * step) == pytest.approx(slope, rel=0.02, abs=1e-3)
  # Fixed statistics give another curvature, so the test depends on the choice.
  fixed = of.at(along, shared, step * np.array([[-1.0], [0], [1]]))['distillation/loss']
  left, middle, right = fixed.astype(np.float64).mean(axis=1)
  assert abs((left - 2 * middle + right) / step**2 - eigenvalue) > 0.1 * eigenvalue


def test_the_loss_of_training_is_the_same(normed):
  """`surface.batch_loss`, on which curves are trained, has the same value and gradient."""
  model, of, variables = normed
  (batch,), objective = of.batches('distillation'), of.objective('distillation')
  forward = surface.of_params(model, variables)
  mean_loss = curvature.MeanLoss(forward, objective, variables['params'], [batch], True)
  loss = lambda params: surface.batch_loss(
    variables | {'params': params}, batch, model=model, objective=objective
  )
  value, gradient = jax.jit(jax.value_and_grad(loss))(variables['params'])
  found = mean_loss.gradient()
  assert found[0] == pytest.approx(float(value), rel=1e-5)
  np.testing.assert_allclose(found[1], ravel_pytree(gradient)[0], rtol=1e-4, atol=1e-5)
  drawn = of.variables(variables, reestimate=True)['distillation/loss']
  np.testing.assert_allclose(drawn.mean(), value, rtol=1e-5)


# Points.


def test_points_come_in_order_and_nothing_is_compiled_between_them(normed):
  _, of, variables = normed
  ends = variables, jax.tree.map(lambda x: 1.5 * x, variables)
  whole = of.at(paths.line_point, ends, np.array([[0.0], [0.5], [1.0]]), reestimate=True)
  for place, end in ((0, ends[0]), (2, ends[1])):
    for key, value in of.variables(end, reestimate=True).items():
      np.testing.assert_allclose(whole[key][place], value[0], rtol=1e-4, atol=1e-4, err_msg=key)
  assert not np.allclose(whole['test/loss'][1], whole['test/loss'][0])
  only = of.at(paths.line_point, ends, np.array([[0.5]]), reestimate=True, sets=['test'])
  assert only.keys() == {key for key in whole if key.startswith('test/')}
  for key, value in only.items():
    np.testing.assert_allclose(value[0], whole[key][1], rtol=1e-6)
  shown = []
  with compilations() as count:
    ts_P1 = np.linspace(0, 1, 4)[:, None]
    of.at(paths.line_point, ends, ts_P1, reestimate=True, show=lambda n, _: shown.append(n))
  assert count() == 0 and shown == [1, 2, 3, 4]


def test_batches_hold_each_example_once_without_padding():
  of = surface.Surface(None, None, {'a': {'inputs': np.arange(11), 'labels': -np.arange(11)}}, 4)
  batches = of.batches('a')
  assert [len(batch['inputs']) for batch in batches] == [4, 4, 3]
  np.testing.assert_array_equal(np.concatenate([b['inputs'] for b in batches]), np.arange(11))
  np.testing.assert_array_equal(np.concatenate([b['labels'] for b in batches]), -np.arange(11))


def test_three_devices_measure_what_one_does(tmp_path):
  """There are eight points, so the last group of three is padded."""
  out = tmp_path / 'out.npz'
  found = {count: launched.saved_on_devices(measure_on_devices, count, out) for count in (1, 3)}
  assert len(found[1]) == 2 * 5
  for key, values_PN in found[1].items():
    assert values_PN.shape[0] == 8
    assert values_PN.std(axis=0).max() > 0, key  # points differ
    np.testing.assert_allclose(found[3][key], values_PN, rtol=1e-5, atol=1e-5, err_msg=key)


# BatchNorm's statistics.


class DenseThenNorm(nn.Module):
  @nn.compact
  def __call__(self, x, train):
    norm = layers.NORMS['batch'](train)
    return norm(name='norm')(nn.Dense(3, use_bias=False, name='dense')(x)), {}


def test_statistics_at_the_midpoint_of_two_networks():
  """They are diag(W Σ Wᵀ) of the mean weights W, which is not the mean of the ends' statistics.

  Batches of 40, 30 and 20 are pooled. Other sets are normalised by the result.
  """
  rng = np.random.default_rng(0)
  mixing = rng.normal(size=(4, 4)).astype(np.float32)
  inputs = (rng.normal(size=(90, 4)) @ mixing + 1).astype(np.float32)
  kernels = [rng.normal(size=(4, 3)).astype(np.float32) for _ in range(2)]
  norm = {'scale': jnp.ones(3), 'bias': jnp.zeros(3)}
  stats = {'norm': {'mean': jnp.zeros(3), 'var': jnp.ones(3)}}
  ends = [{'params': {'dense': {'kernel': k}, 'norm': norm}, 'batch_stats': stats} for k in kernels]
  midpoint = paths.line_point(ends, 0.5)
  batches = [{'inputs': piece} for piece in np.split(inputs, [40, 70])]
  model = DenseThenNorm()
  found = surface.reestimated(midpoint, batches, model)
  kept = found['batch_stats']['norm']
  weights, covariance = np.mean(kernels, axis=0).T, np.cov(inputs.T, bias=True)
  np.testing.assert_allclose(kept['var'], np.diag(weights @ covariance @ weights.T), rtol=1e-4)
  np.testing.assert_allclose(kept['mean'], weights @ inputs.mean(0), rtol=1e-4, atol=1e-5)
  of_ends = np.mean([np.diag(w.T @ covariance @ w) for w in kernels], axis=0)
  assert np.abs(kept['var'] - of_ends).max() > 0.1
  of = surface.Surface(
    partial(surface.logits, model=model),
    lambda logits_BC, batch: {'first': logits_BC[:, 0]},
    {'own': {'inputs': inputs}, 'other': {'inputs': inputs[:7]}},
    30,
    partial(surface.in_batch, model=model),
  )
  values = of.at(paths.line_point, ends, np.array([[0.5]]), reestimate=True)
  expected = surface.logits(found, inputs[:7], model=model)[:, 0]
  np.testing.assert_allclose(values['other/first'][0], expected, rtol=1e-4, atol=1e-5)
  outputs = (inputs @ weights.T)[:30, 0]  # the first of three batches, by its own statistics
  expected = (outputs - outputs.mean()) / outputs.std()
  np.testing.assert_allclose(values['own/first'][0, :30], expected, rtol=1e-3, atol=1e-4)


class Dropped(nn.Module):
  @nn.compact
  def __call__(self, x, train):
    return nn.Dropout(0.5, deterministic=not train)(nn.Dense(3)(x)), {}


def test_a_model_without_batch_norm_is_applied_in_evaluation_mode():
  model, inputs = Dropped(), np.ones((2, 8), np.float32)
  variables = models.init(model, jax.random.key(0), (8,))
  assert surface.reestimated(variables, [], model) is variables
  found, moments = surface.in_batch(variables, inputs, model=model)
  np.testing.assert_array_equal(found, surface.logits(variables, inputs, model=model))
  assert moments == {}


# Intervals.


def test_summary_of_known_values():
  values_PN = np.stack([np.full(400, 3.0), np.arange(400) % 2])
  found = surface.summary({'a': values_PN}, seed=0)
  np.testing.assert_allclose(found['a'], [3, 0.5])
  assert found['a/low'][0] == found['a/high'][0] == 3
  error = 1.96 * 0.5 / np.sqrt(400)
  np.testing.assert_allclose(found['a/high'][1] - 0.5, error, rtol=0.1)
  np.testing.assert_allclose(0.5 - found['a/low'][1], error, rtol=0.1)


def test_a_nan_or_no_example_gives_nan():
  values_PN = np.array([[1.0, np.nan, 3.0], [1.0, 2.0, 3.0]])
  found = surface.summary({'a': values_PN, 'none': np.zeros((2, 0))}, seed=0)
  for end in intervals.ENDS:
    assert np.isnan(found[f'a{end}']).tolist() == [True, False]
    assert np.isnan(found[f'none{end}']).tolist() == [True, True]
  assert 1 <= found['a/low'][1] < 2 < found['a/high'][1] <= 3
