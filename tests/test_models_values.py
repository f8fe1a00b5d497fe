"""Forward passes of all models, compared with NumPy; dropout and padding.

A model has one or two of the blocks that it repeats when it is deep.
"""

import functools

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
from kdjax.models import resnet50

RESNETS = {
  'basic': (models.PreActResNet(10, models.BasicBlock, 1, 4, 'batch'), (3, 3)),
  'bottleneck': (models.PreActResNet(10, models.BottleneckBlock, 1, 4, 'batch'), (1, 3, 1)),
}
VGG = models.VGG16(num_classes=10, width=2)
RESNET50_BLOCKS = (2, 1)
AXES = {'batch': BATCH, 'layer': LAYER}
LAYERS = {BATCH: 'BatchNorm', LAYER: 'LayerNorm'}


@pytest.fixture(autouse=True)
def fewer_blocks(monkeypatch):
  monkeypatch.setattr(resnet50, 'BLOCKS_PER_STAGE', RESNET50_BLOCKS)


def images(num, side, channels=3):
  return np.random.default_rng(0).uniform(-1, 1, (num, side, side, channels)).astype(np.float32)


def norm_by_hand(variables, axes, train):
  """A function of (x, path of a norm)."""

  def norm(x, *path):
    params, stats = variables['params'], None if train else variables['batch_stats']
    for name in path:
      params, stats = params[name], stats and stats[name]
    return normalise(x, params, stats, axes)

  return norm


# Networks of images.


def resnet_by_hand(variables, x, sizes=(3, 3), axes=BATCH, train=False, raw=False):
  """A pre-activation ResNet with one block a stage, whose kernels have the given sizes."""
  params, norm = variables['params'], norm_by_hand(variables, axes, train)
  layer = LAYERS[axes]
  x = conv(x, params['Conv_0']['kernel'])
  for stage in (1, 2, 3):
    name = f'stage{stage}_block1'
    y = relu(norm(x, name, f'{layer}_0'))
    stride = 1 if stage == 1 else 2
    if 'shortcut' in params[name]:
      x = conv(x if raw else y, params[name]['shortcut']['kernel'], stride, padding=0)
    for i, size in enumerate(sizes):
      y = y if i == 0 else relu(norm(y, name, f'{layer}_{i}'))
      strides = stride if i == sizes.index(3) else 1
      y = conv(y, params[name][f'Conv_{i}']['kernel'], strides, padding=size // 2)
    x = x + y
  x = relu(norm(x, f'{layer}_0')).mean((1, 2))
  return dense(x, params['Dense_0'])


def lenet_by_hand(variables, x):
  params = variables['params']
  for name, padding in (('Conv_0', 2), ('Conv_1', 0)):
    x = relu(conv(x, params[name]['kernel'], padding=padding) + params[name]['bias'])
    x = (x[:, ::2, ::2] + x[:, 1::2, ::2] + x[:, ::2, 1::2] + x[:, 1::2, 1::2]) / 4
  x = x.reshape(len(x), -1)
  for name in ('Dense_0', 'Dense_1', 'Dense_2'):
    x = dense(x, params[name])
    x = relu(x) if name != 'Dense_2' else x
  return x


def vgg_by_hand(variables, x):
  params = variables['params']
  for stage, num_convs in enumerate((2, 2, 3, 3, 3), start=1):
    for i in range(num_convs):
      layer = params[f'stage{stage}_conv{i + 1}']
      x = relu(conv(x, layer['kernel']) + layer['bias'])
    x = max_pool(x, 2)
  x = x.reshape(len(x), -1)
  x = relu(dense(x, params['dense1']))
  x = relu(dense(x, params['dense2']))
  return dense(x, params['Dense_0'])


def resnet50_by_hand(variables, x, axes=BATCH, train=False):
  params, norm = variables['params'], norm_by_hand(variables, axes, train)
  layer = LAYERS[axes]
  x = conv(x, params['stem']['kernel'], stride=2, padding=3)
  x = max_pool(relu(norm(x, 'stem_norm')), 3, padding=1)
  for stage, num_blocks in enumerate(RESNET50_BLOCKS, start=1):
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


FORWARD = {
  **{
    f'{name}, {shortcut}': (
      model.clone(shortcut=shortcut),
      functools.partial(resnet_by_hand, sizes=sizes, raw=shortcut == 'raw'),
      images(4, 12, 2),
    )
    for name, (model, sizes) in RESNETS.items()
    for shortcut in models.SHORTCUTS
  },
  'lenet': (models.LeNet5(10), lenet_by_hand, images(4, 12, 2)),
  'vgg': (VGG, vgg_by_hand, images(6, 35)),  # each pool but one leaves an odd row and column out
  'resnet50': (models.ResNet50(7, 2, 'batch'), resnet50_by_hand, images(4, 40)),
}


@pytest.mark.parametrize(('model', 'by_hand', 'inputs'), FORWARD.values(), ids=FORWARD)
def test_logits_are_those_of_numpy(model, by_hand, inputs):
  variables = random_variables(model, inputs)
  assert_logits(apply(model, variables, inputs)[0], by_hand, variables, inputs)


@pytest.mark.parametrize('norm', models.NORMS)
@pytest.mark.parametrize('name', ['resnet', 'resnet50'])
def test_logits_in_training_are_those_of_numpy(name, norm):
  """On two devices, for which BatchNorm pools its statistics."""
  if name == 'resnet':
    model, by_hand = RESNETS['basic'][0].clone(norm=norm), resnet_by_hand
    inputs, low = images(4, 12, 2), -0.5
  else:
    model, by_hand, inputs = models.ResNet50(7, 2, norm), resnet50_by_hand, images(4, 40)
    # LayerNorm would make all images look alike if the weights were mostly above 0.
    low = {'batch': -0.5, 'layer': -0.7}[norm]
  variables = random_variables(model, inputs, low)
  logits = train_logits(model, variables, inputs)
  assert_logits(logits, by_hand, variables, inputs, axes=AXES[norm], train=True)


def test_a_new_block_of_resnet50_passes_its_shortcut_on():
  """Its last scale is 0, so that it begins as its shortcut, normalised."""
  block = resnet50.PostActBottleneckBlock(filters=2, stride=1, norm=nn.LayerNorm)
  x = np.abs(images(4, 4)).repeat(3, axis=-1)[..., :8]  # as many channels as the block returns
  init = jax.jit(block.init_with_output, compiler_options=QUICK)
  y, variables = init(jax.random.key(0), x)
  np.testing.assert_array_equal(y, x)
  assert np.any(variables['params']['Conv_2']['kernel'])


# Dropout of VGG-16.


@functools.partial(jax.jit, compiler_options=QUICK)
def train_vgg(variables, images_BHWC, key):
  """((logits, features), updates) in training; updates hold the outputs of the dropouts."""
  return VGG.apply(
    variables,
    images_BHWC,
    train=True,
    rngs={'dropout': key},
    mutable=['intermediates'],
    capture_intermediates=lambda module, _: isinstance(module, nn.Dropout),
  )


def test_dropout_comes_before_both_hidden_layers_and_drops_half():
  inputs = np.repeat(images(6, 32), 20, axis=0)
  # All positive, so that a zero is one that was dropped.
  variables = random_variables(VGG, inputs, low=0.01, high=0.1)
  (logits, features), updated = train_vgg(variables, inputs, jax.random.key(0))
  dropped = [updated['intermediates'][f'Dropout_{i}']['__call__'][0] for i in (0, 1)]
  before = [features['stage5'].reshape(len(inputs), -1), features['dense1']]
  for x, y in zip(before, map(np.asarray, dropped), strict=True):
    assert np.all(np.asarray(x) > 0)
    is_kept = y > 0
    np.testing.assert_allclose(y[is_kept], 2 * np.asarray(x)[is_kept], rtol=1e-6)
    assert abs(is_kept.mean() - 0.5) < 4 * 0.5 / np.sqrt(y.size)  # four standard errors
    assert is_kept.mean(axis=0).min() > 0 and is_kept.mean(axis=0).max() < 1  # anew for each image
  assert not np.array_equal(dropped[0] > 0, dropped[1] > 0)
  again, other = (train_vgg(variables, inputs, jax.random.key(seed))[0][0] for seed in (0, 1))
  np.testing.assert_array_equal(logits, again)
  assert not np.allclose(logits, other, rtol=0.01)


# Texts.

VOCABULARY_SIZE, MAX_TOKENS = 30, 12
BILSTM = models.BiLSTM(num_classes=3, vocabulary_size=VOCABULARY_SIZE, width=4)
LENGTHS = (1, 2, 5, 12, 9, 0)  # the longest has no padding; an empty text is one token of it


def texts():
  rng = np.random.default_rng(0)
  tokens_BT = np.zeros((len(LENGTHS), MAX_TOKENS), np.int32)
  for row, length in zip(tokens_BT, LENGTHS, strict=True):
    row[:length] = rng.integers(1, VOCABULARY_SIZE, length)
  return tokens_BT


def bilstm_variables():
  return random_variables(BILSTM, texts(), low=-0.4, high=0.5)


def sigmoid(x):
  return 1 / (1 + np.exp(-x))


def lstm(x_TC, params):
  """The states h after each token (Hochreiter & Schmidhuber 1997, with Gers' forget gate)."""
  c = h = np.zeros(4)
  states = []
  for x in x_TC:
    i, f, g, o = (
      x @ params[f'i{gate}']['kernel'] + dense(h, params[f'h{gate}']) for gate in 'ifgo'
    )
    c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
    h = sigmoid(o) * np.tanh(c)
    states.append(h)
  return np.array(states)


def features_by_hand(variables, tokens_T):
  """For one text without padding: its mean embedding, and the final states of both layers."""
  params = variables['params']
  x_TC = params['Embed_0']['embedding'][tokens_T]
  features = {'embedding': x_TC.mean(0)}
  for layer in ('layer1', 'layer2'):
    forward_TC = lstm(x_TC, params[f'{layer}_forward'])
    backward_TC = lstm(x_TC[::-1], params[f'{layer}_backward'])
    features[layer] = np.concatenate([forward_TC[-1], backward_TC[-1]])
    x_TC = np.concatenate([forward_TC, backward_TC[::-1]], axis=1)
  return features


def test_logits_and_features_of_texts_are_those_of_numpy():
  """Padding changes nothing."""
  variables, tokens_BT = bilstm_variables(), texts()
  logits_BC, found = apply(BILSTM, variables, tokens_BT)
  exact = jax.tree.map(functools.partial(np.asarray, dtype=np.float64), variables)
  by_text = [
    features_by_hand(exact, tokens_T[: length or 1])
    for tokens_T, length in zip(tokens_BT, LENGTHS, strict=True)
  ]
  for name in by_text[0]:
    expected = np.stack([features[name] for features in by_text])
    np.testing.assert_allclose(found[name], expected, rtol=1e-4, atol=1e-6)

  def logits_by_hand(variables, _):
    final_BC = np.stack([features['layer2'] for features in by_text])
    return dense(final_BC, variables['params']['Dense_0'])

  assert_logits(logits_BC, logits_by_hand, variables, tokens_BT)


def test_every_weight_of_the_lstm_has_a_gradient_but_the_padding_has_none():
  tokens_BT = texts()[:5]  # but for the empty one

  def loss(params):
    logits_BC, _ = BILSTM.apply({'params': params}, tokens_BT, train=True)
    return -jax.nn.log_softmax(logits_BC)[:, 0].mean()

  gradient = jax.jit(jax.grad(loss), compiler_options=QUICK)(bilstm_variables()['params'])
  for path, leaf in jax.tree_util.tree_leaves_with_path(gradient):
    assert np.all(np.isfinite(leaf)) and np.any(leaf), path
  is_changed = np.any(gradient['Embed_0']['embedding'], axis=1)
  assert set(np.flatnonzero(is_changed)) == set(tokens_BT[tokens_BT > 0])
