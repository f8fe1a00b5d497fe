"""All models: parameter counts, shapes, initial weights. LeNet and the pre-activation ResNet: a forward
pass in NumPy, and what normalisation depends on. The other models have files of their own.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.errors import ScopeParamShapeError
from ml_collections import ConfigDict
from numpy_layers import (
  BATCH,
  LAYER,
  QUICK,
  abstract_variables,
  apply,
  assert_logits,
  conv,
  dense,
  normalise,
  random_variables,
  relu,
  train_logits,
  train_on_devices,
)

from kdjax import keys, models

CIFAR, MNIST, IMAGENET, IMDB = (32, 32, 3), (28, 28, 1), (224, 224, 3), (100,)


def build(
  name='resnet',
  depth=8,
  width=4,
  norm='batch',
  shortcut='activated',
  dtype='float32',
  num_classes=10,
  vocabulary_size=None,
):
  section = {
    'name': name,
    'depth': depth,
    'width': width,
    'norm': norm,
    'shortcut': shortcut,
    'dtype': dtype,
  }
  return models.build(ConfigDict(section), num_classes, vocabulary_size)


def dtype_of(shape):
  return 'int32' if shape == IMDB else 'float32'


BOTTLENECK = models.PreActResNet(10, models.BottleneckBlock, 1, 4, 'batch')
RAW_BOTTLENECK = BOTTLENECK.clone(shortcut='raw')
IMAGES = np.random.default_rng(0).uniform(-1, 1, (4, 12, 12, 2)).astype(np.float32)


# Structure.


@pytest.mark.parametrize(
  ('model', 'shape', 'count'),
  [
    (build(depth=20, width=16), CIFAR, 272_282),
    (build(depth=20, width=16, num_classes=100), CIFAR, 278_132),
    (build(depth=20, width=16, norm='layer'), CIFAR, 272_282),
    (build(depth=20, width=16, shortcut='raw'), CIFAR, 272_282),
    (build(depth=56, width=16), CIFAR, 590_426),
    (build(depth=56, width=16, num_classes=100), CIFAR, 613_556),
    (build('lenet'), MNIST, 61_706),
    # The convolutions, two hidden layers of 512, and the last layer.
    (build('vgg', width=64, num_classes=10), CIFAR, 14_714_688 + 2 * 512 * 513 + 10 * 513),
    (build('vgg', width=64, num_classes=100), CIFAR, 14_714_688 + 2 * 512 * 513 + 100 * 513),
    (build('resnet50', width=64, num_classes=1000), IMAGENET, 25_557_032),
    (build('resnet50', width=64, num_classes=1000, norm='layer'), IMAGENET, 25_557_032),
    # The embedding, the cells of both layers and directions with their four gates, the last layer.
    (
      build('bilstm', width=70, num_classes=2, vocabulary_size=1000),
      IMDB,
      1000 * 128 + 2 * 4 * (70 * (128 + 70 + 1) + 70 * (140 + 70 + 1)) + 2 * 141,
    ),
  ],
  ids=[
    '20',
    '20, 100 classes',
    '20, layer',
    '20, raw',
    '56',
    '56, 100 classes',
    'lenet',
    'vgg',
    'vgg, 100 classes',
    'resnet50',
    'resnet50, layer',
    'bilstm',
  ],
)
def test_number_of_trainable_parameters(model, shape, count):
  params = abstract_variables(model, shape, dtype_of(shape))['params']
  assert sum(leaf.size for leaf in jax.tree.leaves(params)) == count


def resnet_features(width, expansion=1):
  last = [width * 2**stage * expansion for stage in range(3)]
  return {
    'stem': (32, 32, width),
    'stage1': (32, 32, last[0]),
    'stage2': (16, 16, last[1]),
    'stage3': (8, 8, last[2]),
    'pooled': (last[2],),
  }


@pytest.mark.parametrize(
  ('model', 'shape', 'features'),
  [
    (build(width=16), CIFAR, resnet_features(16)),
    (build(width=5, num_classes=7), CIFAR, resnet_features(5)),
    (build(depth=56, width=4), CIFAR, resnet_features(4, expansion=4)),
    (
      build('lenet', num_classes=7),
      MNIST,
      {'conv1': (14, 14, 6), 'conv2': (5, 5, 16), 'dense1': (120,), 'dense2': (84,)},
    ),
    (
      build('vgg', width=64),
      CIFAR,
      {
        'stage1': (16, 16, 64),
        'stage2': (8, 8, 128),
        'stage3': (4, 4, 256),
        'stage4': (2, 2, 512),
        'stage5': (1, 1, 512),
        'dense1': (512,),
        'dense2': (512,),
      },
    ),
    (
      build('resnet50', width=64, num_classes=1000),
      IMAGENET,
      {
        'stem': (56, 56, 64),
        'stage1': (56, 56, 256),
        'stage2': (28, 28, 512),
        'stage3': (14, 14, 1024),
        'stage4': (7, 7, 2048),
        'pooled': (2048,),
      },
    ),
    (
      build('bilstm', width=70, num_classes=2, vocabulary_size=1000),
      IMDB,
      {'embedding': (128,), 'layer1': (140,), 'layer2': (140,)},
    ),
  ],
  ids=['16 wide', '5 wide', 'bottleneck', 'lenet', 'vgg', 'resnet50', 'bilstm'],
)
def test_shapes_of_logits_and_of_features_in_order_of_depth(model, shape, features):
  seen = []

  def logits():
    variables = models.init(model, jax.random.key(0), shape, dtype_of(shape))
    logits, found = model.apply(variables, jnp.zeros((2, *shape), dtype_of(shape)), train=False)
    seen.extend((name, x.shape[1:]) for name, x in found.items())
    return logits

  assert jax.eval_shape(logits).shape == (2, model.num_classes)
  assert seen == list(features.items())


def test_every_model_has_a_smallest_image_or_takes_tokens():
  assert models.SMALLEST_SIDE.keys() | models.TAKES_TOKENS == models.MODELS.keys()
  assert not models.SMALLEST_SIDE.keys() & models.TAKES_TOKENS


def test_the_fields_that_shape_a_model_are_those_that_it_says():
  for name in models.MODELS:
    others = {'depth': 14, 'width': 8, 'norm': 'layer', 'shortcut': 'raw'}
    first = build(name, vocabulary_size=9)
    found = {f for f, v in others.items() if build(name, vocabulary_size=9, **{f: v}) != first}
    assert found == models.SHAPED_BY[name], name


@pytest.mark.parametrize('name', models.SMALLEST_SIDE)
def test_no_feature_is_empty_from_the_smallest_image_on(name):
  """And below it a layer has no inputs."""
  model, side = build(name), models.SMALLEST_SIDE[name]
  images = np.zeros((2, side, side, 1), np.float32)
  variables = abstract_variables(model, images.shape[1:])
  _, features = jax.eval_shape(lambda v: model.apply(v, images, train=False), variables)
  assert all(feature.size for feature in features.values())
  if side > 1:
    smaller = images[:, 1:, 1:]
    # JAX 0.10 fails to scale the weights of such a layer, JAX 0.12 makes a layer without any.
    with pytest.raises(
      (ZeroDivisionError, ScopeParamShapeError), match=r'division by zero|shape \(0,'
    ):
      jax.eval_shape(lambda v: model.apply(v, smaller, train=False), variables)


@pytest.mark.parametrize(
  ('depth', 'expected'),
  [
    (8, (models.BasicBlock, 1)),
    (14, (models.BasicBlock, 2)),
    (20, (models.BasicBlock, 3)),
    (44, (models.BasicBlock, 7)),
    (56, (models.BottleneckBlock, 6)),
    (62, (models.BasicBlock, 10)),
    (65, (models.BottleneckBlock, 7)),
    (110, (models.BottleneckBlock, 12)),
    *[(depth, None) for depth in (-4, 0, 1, 2, 11, 21, 29, 47, 57, 111)],
  ],
)
def test_resnet_block(depth, expected):
  assert models.resnet_block(depth) == expected


# Weights.


@functools.cache
def initial_params(seed):
  init = jax.jit(models.init, static_argnums=(0, 2), compiler_options=QUICK)
  return init(build(width=16), keys.stream(seed, 'init'), (8, 8, 1))['params']


def test_convolutions_start_with_the_he_fan_out_deviation():
  kernels = {
    jax.tree_util.keystr(path): leaf
    for path, leaf in jax.tree_util.tree_leaves_with_path(initial_params(1))
    if leaf.ndim == 4
  }
  assert len(kernels) == 9  # seven of 3x3 and two shortcuts
  for path, kernel in kernels.items():
    fan_out = kernel.shape[0] * kernel.shape[1] * kernel.shape[3]
    deviation = np.std(kernel) / np.sqrt(2 / fan_out)
    # The standard error of a deviation is 1 / √2n of it.
    assert abs(deviation - 1) < 4 / np.sqrt(2 * kernel.size), path


def test_initial_weights_follow_from_the_seed():
  first, other = (jax.tree.leaves(initial_params(seed)) for seed in (1, 2))
  assert not any(np.array_equal(a, b) for a, b in zip(first, other, strict=True) if a.ndim == 4)


# Values.


def resnet_by_hand(variables, x, sizes=(3, 3), axes=BATCH, train=False, raw=False):
  """A pre-activation ResNet with one block a stage, whose kernels have the given sizes."""
  params, all_stats = variables['params'], variables['batch_stats']
  layer = 'LayerNorm' if axes == LAYER else 'BatchNorm'

  def norm_relu(x, i, *path):
    inside, stats = params, None if train else all_stats
    for name in (*path, f'{layer}_{i}'):
      inside, stats = inside[name], stats and stats[name]
    return relu(normalise(x, inside, stats, axes))

  x = conv(x, params['Conv_0']['kernel'])
  for stage in (1, 2, 3):
    name = f'stage{stage}_block1'
    y = norm_relu(x, 0, name)
    stride = 1 if stage == 1 else 2
    if 'shortcut' in params[name]:
      x = conv(x if raw else y, params[name]['shortcut']['kernel'], stride, padding=0)
    for i, size in enumerate(sizes):
      y = y if i == 0 else norm_relu(y, i, name)
      strides = stride if i == sizes.index(3) else 1
      y = conv(y, params[name][f'Conv_{i}']['kernel'], strides, padding=size // 2)
    x = x + y
  x = norm_relu(x, 0).mean((1, 2))
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


@pytest.mark.parametrize(
  ('model', 'by_hand', 'options'),
  [
    (build(), resnet_by_hand, {}),
    (build(shortcut='raw'), resnet_by_hand, {'raw': True}),
    (BOTTLENECK, resnet_by_hand, {'sizes': (1, 3, 1)}),
    (RAW_BOTTLENECK, resnet_by_hand, {'sizes': (1, 3, 1), 'raw': True}),
    (build('lenet'), lenet_by_hand, {}),
  ],
  ids=['basic', 'raw basic', 'bottleneck', 'raw bottleneck', 'lenet'],
)
def test_logits_are_those_of_numpy(model, by_hand, options):
  variables = random_variables(model, IMAGES)
  assert_logits(apply(model, variables, IMAGES)[0], by_hand, variables, IMAGES, **options)


@pytest.mark.parametrize('norm', ['batch', 'layer'])
def test_logits_in_training_are_those_of_numpy(norm):
  """On two devices, for which BatchNorm pools its statistics."""
  model, axes = build(norm=norm), {'batch': BATCH, 'layer': LAYER}[norm]
  variables = random_variables(model, IMAGES)
  logits = train_logits(model, variables, IMAGES)
  assert_logits(logits, resnet_by_hand, variables, IMAGES, axes=axes, train=True)


# Normalisation.


def test_batch_norm_moves_its_running_statistics_by_a_tenth():
  model = build()
  variables = random_variables(model, IMAGES)
  (_, features), updated = train_on_devices(model, variables, IMAGES.reshape(2, 2, 12, 12, 2))
  stem = np.asarray(features['stem'], np.float64)  # what the first norm sees
  for name, of_batch in (('mean', stem.mean((0, 1, 2, 3))), ('var', stem.var((0, 1, 2, 3)))):
    old, new = (x['batch_stats']['stage1_block1']['BatchNorm_0'] for x in (variables, updated))
    expected = 0.9 * old[name] + 0.1 * of_batch
    np.testing.assert_allclose(new[name], [expected, expected], rtol=1e-4)  # on both devices


def with_other_images_beside_the_first():
  return np.concatenate([IMAGES[:1], 0.1 * IMAGES[1:]])


def test_batch_norm_sees_the_batch_in_training_only():
  model = build()
  variables = random_variables(model, IMAGES)
  others = with_other_images_beside_the_first()
  expected = apply(model, variables, IMAGES)[0][0]
  np.testing.assert_allclose(apply(model, variables, others)[0][0], expected, rtol=1e-5)
  in_training = [train_logits(model, variables, x)[0] for x in (IMAGES, others)]
  assert not np.allclose(*in_training, rtol=0.01)


def test_layer_norm_never_sees_the_batch():
  model = build(norm='layer')
  variables = random_variables(model, IMAGES)
  assert variables['batch_stats'] == {}
  expected = train_logits(model, variables, IMAGES)[0]
  logits = train_logits(model, variables, with_other_images_beside_the_first())
  np.testing.assert_allclose(logits[0], expected, rtol=1e-5)
