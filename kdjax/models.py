"""Classifiers: (images_BHWC, train) → (logits_BC, features), features by name in order of depth.

(Through jit a dict comes back in the order of the alphabet.)

A model is built for its config and the number of classes; it knows no shape of the images.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

AXIS_NAME = 'device'  # the pmapped axis, over which BatchNorm pools its statistics
BATCH_NORM_MOMENTUM = 0.9  # weight of the old running statistics in the new
BOTTLENECK_FROM_DEPTH = (
  56  # 20 is basic and 56 bottleneck in the paper, though both fit 6n+2 and 9n+2
)

Features = dict[str, jax.Array]
he_normal = nn.initializers.variance_scaling(2.0, 'fan_out', 'normal')  # He et al. 2015
Conv3x3 = partial(nn.Conv, kernel_size=(3, 3), use_bias=False, kernel_init=he_normal)
Conv1x1 = partial(nn.Conv, kernel_size=(1, 1), use_bias=False, kernel_init=he_normal)


class LeNet5(nn.Module):
  """LeNet-5 with ReLU and average pooling (LeCun et al. 1998). Needs images of 12x12 or more."""

  num_classes: int

  @nn.compact
  def __call__(self, x: jax.Array, train: bool) -> tuple[jax.Array, Features]:
    features = {}
    x = nn.relu(nn.Conv(6, (5, 5), padding='SAME')(x))
    x = features['conv1'] = nn.avg_pool(x, (2, 2), strides=(2, 2))
    x = nn.relu(nn.Conv(16, (5, 5), padding='VALID')(x))
    x = features['conv2'] = nn.avg_pool(x, (2, 2), strides=(2, 2))
    x = x.reshape(len(x), -1)
    x = features['dense1'] = nn.relu(nn.Dense(120)(x))
    x = features['dense2'] = nn.relu(nn.Dense(84)(x))
    return nn.Dense(self.num_classes)(x), features


class BasicBlock(nn.Module):
  """Two 3x3 convolutions, norm and ReLU before each (He et al. 2016, "Identity mappings")."""

  filters: int
  stride: int
  norm: Callable[[], nn.Module]
  expansion = 1

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    y = nn.relu(self.norm()(x))
    shortcut = _shortcut(self, x, y)
    y = Conv3x3(self.filters, strides=self.stride, padding=1)(y)
    y = nn.relu(self.norm()(y))
    return shortcut + Conv3x3(self.filters, padding=1)(y)


class BottleneckBlock(nn.Module):
  """1x1, 3x3 and 1x1 convolutions; the last one widens by four."""

  filters: int
  stride: int
  norm: Callable[[], nn.Module]
  expansion = 4

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    y = nn.relu(self.norm()(x))
    shortcut = _shortcut(self, x, y)
    y = Conv1x1(self.filters)(y)
    y = nn.relu(self.norm()(y))
    y = Conv3x3(self.filters, strides=self.stride, padding=1)(y)
    y = nn.relu(self.norm()(y))
    return shortcut + Conv1x1(self.filters * self.expansion)(y)


def _shortcut(block: BasicBlock | BottleneckBlock, x: jax.Array, y: jax.Array) -> jax.Array:
  """The identity where shapes allow it, else a projection of the activated input."""
  filters = block.filters * block.expansion
  if x.shape[-1] == filters and block.stride == 1:
    return x
  return Conv1x1(filters, strides=block.stride, name='shortcut')(y)


class PreActResNet(nn.Module):
  """Pre-activation ResNet for small images: three stages, each half the size and twice the width."""

  num_classes: int
  block: Callable[..., nn.Module]
  blocks_per_stage: int
  width: int
  norm: str

  @nn.compact
  def __call__(self, x: jax.Array, train: bool) -> tuple[jax.Array, Features]:
    norm = NORMS[self.norm](train)
    features = {}
    x = features['stem'] = Conv3x3(self.width, padding=1)(x)
    for stage in range(3):
      for i in range(self.blocks_per_stage):
        stride = 2 if stage > 0 and i == 0 else 1
        x = self.block(self.width * 2**stage, stride, norm, name=f'stage{stage + 1}_block{i + 1}')(
          x
        )
      features[f'stage{stage + 1}'] = x
    x = nn.relu(norm()(x))
    x = features['pooled'] = jnp.mean(x, axis=(1, 2))
    return nn.Dense(self.num_classes)(x), features


def _batch_norm(train: bool) -> Callable[[], nn.Module]:
  return partial(
    nn.BatchNorm,
    use_running_average=not train,
    momentum=BATCH_NORM_MOMENTUM,
    axis_name=AXIS_NAME if train else None,
  )


def _layer_norm(train: bool) -> Callable[[], nn.Module]:
  """Over height, width and channels of each example; scale and bias by channel."""
  del train
  return partial(nn.LayerNorm, reduction_axes=(-3, -2, -1), feature_axes=-1)


NORMS = {'batch': _batch_norm, 'layer': _layer_norm}


def resnet_block(depth: int) -> tuple[Callable[..., nn.Module], int] | None:
  """The block class and the number of blocks a stage for a depth, or None if the depth fits neither."""
  if depth >= BOTTLENECK_FROM_DEPTH and (depth - 2) % 9 == 0:
    return BottleneckBlock, (depth - 2) // 9
  if depth >= 8 and (depth - 2) % 6 == 0:
    return BasicBlock, (depth - 2) // 6
  return None


def _lenet(config: ConfigDict, num_classes: int) -> nn.Module:
  del config
  return LeNet5(num_classes)


def _resnet(config: ConfigDict, num_classes: int) -> nn.Module:
  block, blocks_per_stage = resnet_block(config.depth)
  return PreActResNet(num_classes, block, blocks_per_stage, config.width, config.norm)


MODELS = {'lenet': _lenet, 'resnet': _resnet}


def build(config: ConfigDict, num_classes: int) -> nn.Module:
  """The classifier that a `model` section describes."""
  return MODELS[config.name](config, num_classes)


def init(model: nn.Module, key: jax.Array, image_shape_HWC: tuple[int, ...]) -> dict[str, Any]:
  """{'params', 'batch_stats'} of a fresh model; 'batch_stats' is empty without BatchNorm.

  Only the weights are computed, one by one: compiling them as one program takes longer than all else.
  """
  images_BHWC = jax.ShapeDtypeStruct((1, *image_shape_HWC), jnp.float32)
  variables = model.lazy_init(key, images_BHWC, train=True)
  return {'params': variables['params'], 'batch_stats': variables.get('batch_stats', {})}
