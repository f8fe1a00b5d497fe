"""Pre-activation ResNets for small images (He et al. 2016, "Identity mappings"; paper, Appendix A)."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from kdjax.models.layers import NORMS, Conv1x1, Conv3x3, Features, Norm, classify

SHORTCUTS = ('activated', 'raw')
# In the paper 20 has basic blocks and 56 bottleneck blocks, though both depths fit 6n+2 and 9n+2.
BOTTLENECK_FROM_DEPTH = 56


class BasicBlock(nn.Module):
  """Two 3x3 convolutions, norm and ReLU before each."""

  filters: int
  stride: int
  norm: Norm
  dtype: Any = jnp.float32
  projects_raw: bool = False
  expansion = 1

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    y = nn.relu(self.norm()(x))
    shortcut = _shortcut(self, x, y)
    y = Conv3x3(self.filters, strides=self.stride, dtype=self.dtype)(y)
    y = nn.relu(self.norm()(y))
    return shortcut + Conv3x3(self.filters, dtype=self.dtype)(y)


class BottleneckBlock(nn.Module):
  """1x1, 3x3 and 1x1 convolutions; the last one widens by four."""

  filters: int
  stride: int
  norm: Norm
  dtype: Any = jnp.float32
  projects_raw: bool = False
  expansion = 4

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    y = nn.relu(self.norm()(x))
    shortcut = _shortcut(self, x, y)
    y = Conv1x1(self.filters, dtype=self.dtype)(y)
    y = nn.relu(self.norm()(y))
    y = Conv3x3(self.filters, strides=self.stride, dtype=self.dtype)(y)
    y = nn.relu(self.norm()(y))
    return shortcut + Conv1x1(self.filters * self.expansion, dtype=self.dtype)(y)


def _shortcut(block: BasicBlock | BottleneckBlock, x: jax.Array, y: jax.Array) -> jax.Array:
  """The input `x` where shapes allow it, else a projection.

  The projection reads `y`, the input after norm and ReLU, as in He et al. (2016); with `projects_raw` it
  reads `x`, as in the paper's public code.
  """
  filters = block.filters * block.expansion
  if x.shape[-1] == filters and block.stride == 1:
    return x
  return Conv1x1(filters, strides=block.stride, dtype=block.dtype, name='shortcut')(
    x if block.projects_raw else y
  )


class PreActResNet(nn.Module):
  """Three stages, each half the size and twice the width of the one before."""

  num_classes: int
  block: Callable[..., nn.Module]
  blocks_per_stage: int
  width: int
  norm: str
  dtype: Any = jnp.float32
  shortcut: str = 'activated'  # or 'raw': what projections read

  @nn.compact
  def __call__(self, x: jax.Array, train: bool) -> tuple[jax.Array, Features]:
    norm = NORMS[self.norm](train, self.dtype)
    features = {}
    x = features['stem'] = Conv3x3(self.width, dtype=self.dtype)(x)
    for stage in range(3):
      for i in range(self.blocks_per_stage):
        stride = 2 if stage > 0 and i == 0 else 1
        name = f'stage{stage + 1}_block{i + 1}'
        raw = self.shortcut == 'raw'
        x = self.block(self.width * 2**stage, stride, norm, self.dtype, raw, name=name)(x)
      features[f'stage{stage + 1}'] = x
    x = nn.relu(norm()(x))
    x = features['pooled'] = jnp.mean(x, axis=(1, 2))
    return classify(self.num_classes, x, features)


def resnet_block(depth: int) -> tuple[Callable[..., nn.Module], int] | None:
  """The block class and the number of blocks a stage for a depth, or None if the depth fits neither."""
  if depth >= BOTTLENECK_FROM_DEPTH and (depth - 2) % 9 == 0:
    return BottleneckBlock, (depth - 2) // 9
  if depth >= 8 and (depth - 2) % 6 == 0:
    return BasicBlock, (depth - 2) // 6
  return None
