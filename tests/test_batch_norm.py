"""BatchNorm's statistics of a batch, and the pooling of those of several batches."""

import flax.linen as nn
import jax
import numpy as np
import pytest

from kdjax import models
from kdjax.train import batch_norm

X_BD = np.random.default_rng(0).normal(2, 3, (64, 5)).astype(np.float32)


class Norms(nn.Module):
  """BatchNorm of flax with any momentum, and that of kdjax."""

  momentum: float

  @nn.compact
  def __call__(self, x, train):
    axis = models.AXIS_NAME if train else None
    x = nn.BatchNorm(not train, momentum=self.momentum, axis_name=axis, epsilon=0)(x)
    return models.NORMS['batch'](train, np.float32)()(x), {}


def of_batch(model, variables, x_BD):
  apply = lambda x_BD: batch_norm.apply_in_batch(model, variables, x_BD)
  logits_DBC, statistics = jax.jit(jax.vmap(apply, axis_name=models.AXIS_NAME))(x_BD[None])
  return logits_DBC[0], jax.tree.map(lambda x: x[0], statistics)


@pytest.mark.parametrize('momentum', [0.0, 0.5, 0.9, 0.99, 0.999])
def test_statistics_of_a_batch_do_not_depend_on_the_momentum(momentum):
  """The second norm gets what the first has normalised: a mean of 0 and a variance of 1."""
  model = Norms(momentum)
  variables = models.init(model, jax.random.key(0), X_BD.shape[1:])
  variables['batch_stats'] = jax.tree.map(lambda x: x + 7, variables['batch_stats'])  # not read
  logits_BC, statistics = of_batch(model, variables, X_BD)
  first, second = statistics['BatchNorm_0'], statistics['BatchNorm_1']
  np.testing.assert_allclose(first['mean'], X_BD.mean(0), rtol=1e-4)
  np.testing.assert_allclose(first['var'], X_BD.var(0), rtol=1e-4)
  np.testing.assert_allclose(second['mean'], 0, atol=1e-5)
  np.testing.assert_allclose(second['var'], 1, rtol=1e-4)
  np.testing.assert_allclose(logits_BC, (X_BD - X_BD.mean(0)) / X_BD.std(0), rtol=1e-3, atol=1e-4)


def test_dropout_does_not_hinder_statistics():
  """A model may drop units before a norm and after it."""

  class Net(nn.Module):
    @nn.compact
    def __call__(self, x, train):
      x = nn.BatchNorm(not train, axis_name=models.AXIS_NAME if train else None)(x)
      return nn.Dropout(0.5, deterministic=not train)(x), {}

  variables = models.init(Net(), jax.random.key(0), X_BD.shape[1:])
  logits_BC, statistics = of_batch(Net(), variables, X_BD)
  np.testing.assert_allclose(statistics['BatchNorm_0']['mean'], X_BD.mean(0), rtol=1e-4)
  assert 0.3 < (np.asarray(logits_BC) == 0).mean() < 0.7


def test_pooled_statistics_are_those_of_all_examples():
  model = Norms(0.9)
  variables = models.init(model, jax.random.key(0), X_BD.shape[1:])
  parts = [X_BD[:16], X_BD[16:]]
  found = [of_batch(model, variables, x_BD)[1]['BatchNorm_0'] for x_BD in parts]
  pooled = batch_norm.pool(found, [len(x_BD) for x_BD in parts])
  np.testing.assert_allclose(pooled['mean'], X_BD.mean(0), rtol=1e-4)
  np.testing.assert_allclose(pooled['var'], X_BD.var(0), rtol=1e-4)
