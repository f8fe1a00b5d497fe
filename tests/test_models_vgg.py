"""VGG-16: a forward pass in NumPy, dropout, initial weights, gradients."""

import functools

import flax.linen as nn
import jax
import numpy as np
import pytest
from numpy_layers import (
  QUICK,
  apply,
  assert_logits,
  conv,
  dense,
  max_pool,
  random_variables,
  relu,
)

from kdjax import models

MODEL = models.VGG16(num_classes=10, width=2)
CONVS_PER_STAGE = {1: 2, 2: 2, 3: 3, 4: 3, 5: 3}


def random_images(side):
  return np.random.default_rng(0).uniform(-1, 1, (6, side, side, 3)).astype(np.float32)


def vgg_by_hand(variables, x):
  params = variables['params']
  for stage, num_convs in CONVS_PER_STAGE.items():
    for i in range(num_convs):
      layer = params[f'stage{stage}_conv{i + 1}']
      x = relu(conv(x, layer['kernel']) + layer['bias'])
    x = max_pool(x, 2)
  x = x.reshape(len(x), -1)
  x = relu(dense(x, params['dense1']))
  x = relu(dense(x, params['dense2']))
  return dense(x, params['Dense_0'])


@pytest.mark.parametrize('side', [32, 35])  # 35: each pool but one leaves an odd row and column out
def test_logits_are_those_of_numpy(side):
  images = random_images(side)
  variables = random_variables(MODEL, images)
  assert variables['batch_stats'] == {}
  assert_logits(apply(MODEL, variables, images)[0], vgg_by_hand, variables, images)


def test_weights_start_with_the_he_fan_in_deviation():
  init = jax.jit(models.init, static_argnums=(0, 2), compiler_options=QUICK)
  params = init(models.VGG16(10, 4), jax.random.key(0), (32, 32, 3))['params']
  kernels = {name: np.asarray(params[name]['kernel']) for name in params if name != 'Dense_0'}
  assert len(kernels) == 15  # 13 convolutions and 2 hidden layers
  for name, kernel in kernels.items():
    deviation = kernel.std() / np.sqrt(2 / np.prod(kernel.shape[:-1]))
    # The standard error of a deviation is 1 / √2n of it.
    assert abs(deviation - 1) < 4 / np.sqrt(2 * kernel.size), name


@functools.partial(jax.jit, compiler_options=QUICK)
def train(variables, images_BHWC, key):
  """((logits, features), updates) in training; updates hold the outputs of the dropouts."""
  return MODEL.apply(
    variables,
    images_BHWC,
    train=True,
    rngs={'dropout': key},
    mutable=['intermediates'],
    capture_intermediates=lambda module, _: isinstance(module, nn.Dropout),
  )


def test_dropout_comes_before_both_hidden_layers_and_drops_half():
  images = np.repeat(random_images(32), 20, axis=0)
  # All positive, so that a zero is one that was dropped.
  variables = random_variables(MODEL, images, low=0.01, high=0.1)
  (_, features), updated = train(variables, images, jax.random.key(0))
  dropped = [updated['intermediates'][f'Dropout_{i}']['__call__'][0] for i in (0, 1)]
  inputs = [features['stage5'].reshape(len(images), -1), features['dense1']]
  for x, y in zip(inputs, map(np.asarray, dropped), strict=True):
    assert np.all(np.asarray(x) > 0)
    is_kept = y > 0
    np.testing.assert_allclose(y[is_kept], 2 * np.asarray(x)[is_kept], rtol=1e-6)
    assert abs(is_kept.mean() - 0.5) < 4 * 0.5 / np.sqrt(y.size)  # four standard errors
    assert is_kept.mean(axis=0).min() > 0 and is_kept.mean(axis=0).max() < 1  # anew for each image
  assert not np.array_equal(dropped[0] > 0, dropped[1] > 0)


def test_dropout_follows_from_the_key():
  images = random_images(32)
  variables = random_variables(MODEL, images)
  first, again, other = (
    np.asarray(train(variables, images, jax.random.key(seed))[0][0]) for seed in (0, 0, 1)
  )
  np.testing.assert_array_equal(first, again)
  assert not np.allclose(first, other, rtol=0.01)


def test_every_weight_has_a_gradient():
  images = random_images(32)
  variables = random_variables(MODEL, images)

  def loss(params):
    logits_BC, _ = MODEL.apply(
      {'params': params}, images, train=True, rngs={'dropout': jax.random.key(0)}
    )
    return -jax.nn.log_softmax(logits_BC)[:, 0].mean()

  gradient = jax.jit(jax.grad(loss), compiler_options=QUICK)(variables['params'])
  for path, leaf in jax.tree_util.tree_leaves_with_path(gradient):
    assert np.all(np.isfinite(leaf)) and np.any(leaf), path
