"""ResNet-50: a forward pass in NumPy, initial weights."""

import flax.linen as nn
import jax
import numpy as np
import pytest
from numpy_layers import (
  BATCH,
  LAYER,
  QUICK,
  apply,
  assert_logits,
  conv,
  dense,
  max_pool,
  normalise,
  random_variables,
  relu,
  train_logits,
)

from kdjax import models
from kdjax.models.resnet50 import PostActBottleneckBlock

BLOCKS_PER_STAGE = {1: 3, 2: 4, 3: 6, 4: 3}
IMAGES = np.random.default_rng(0).uniform(-1, 1, (4, 40, 40, 3)).astype(np.float32)


def build(norm='batch'):
  return models.ResNet50(num_classes=7, width=2, norm=norm)


def resnet50_by_hand(variables, x, axes=BATCH, train=False):
  def norm(x, *path):
    params, stats = variables['params'], None if train else variables['batch_stats']
    for name in path:
      params, stats = params[name], stats and stats[name]
    return normalise(x, params, stats, axes)

  params, layer = variables['params'], 'LayerNorm' if axes == LAYER else 'BatchNorm'
  x = conv(x, params['stem']['kernel'], stride=2, padding=3)
  x = max_pool(relu(norm(x, 'stem_norm')), 3, padding=1)
  for stage, num_blocks in BLOCKS_PER_STAGE.items():
    for i in range(num_blocks):
      name = f'stage{stage}_block{i + 1}'
      block, stride = params[name], 2 if stage > 1 and i == 0 else 1
      y = relu(norm(conv(x, block['Conv_0']['kernel'], padding=0), name, f'{layer}_0'))
      y = relu(norm(conv(y, block['Conv_1']['kernel'], stride), name, f'{layer}_1'))
      y = norm(conv(y, block['Conv_2']['kernel'], padding=0), name, f'{layer}_2')
      if i == 0:
        x = norm(conv(x, block['shortcut']['kernel'], stride, padding=0), name, 'shortcut_norm')
      x = relu(x + y)
  return dense(x.mean((1, 2)), params['Dense_0'])


def test_logits_are_those_of_numpy():
  model = build()
  variables = random_variables(model, IMAGES)
  assert_logits(apply(model, variables, IMAGES)[0], resnet50_by_hand, variables, IMAGES)


@pytest.mark.parametrize(
  ('norm', 'axes', 'low'),
  # Of weights that are mostly above 0, LayerNorm would make images that all look alike.
  [('batch', BATCH, -0.5), ('layer', LAYER, -0.7)],
  ids=['batch', 'layer'],
)
def test_logits_in_training_are_those_of_numpy(norm, axes, low):
  """On two devices, for which BatchNorm pools its statistics."""
  model = build(norm)
  variables = random_variables(model, IMAGES, low)
  logits = train_logits(model, variables, IMAGES)
  assert_logits(logits, resnet50_by_hand, variables, IMAGES, axes=axes, train=True)


def test_a_new_block_passes_its_shortcut_on():
  """Its last scale is 0, so that it begins as its shortcut, normalised."""
  block = PostActBottleneckBlock(filters=2, stride=1, norm=nn.LayerNorm)
  x = np.abs(IMAGES[:, :4, :4]).repeat(3, axis=-1)[..., :8]  # as many channels as the block returns
  init = jax.jit(block.init_with_output, compiler_options=QUICK)
  y, variables = init(jax.random.key(0), x)
  np.testing.assert_array_equal(y, x)
  assert np.any(variables['params']['Conv_2']['kernel'])
