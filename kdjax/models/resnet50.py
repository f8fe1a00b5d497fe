"""ResNet-50 for images of ImageNet's size."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from kdjax.models.layers import NORMS, Conv, Conv1x1, Conv3x3, Features, Norm, classify, he_normal

BLOCKS_PER_STAGE = (3, 4, 6, 3)


class PostActBottleneckBlock(nn.Module):
  """1x1, 3x3 and 1x1 convolutions, norm after each; ReLU after the sum too (He et al. 2015).

  The last scale starts at 0, so a new block passes on its shortcut (Goyal et al. 2017).
  """

  filters: int
  stride: int
  norm: Norm
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    filters = 4 * self.filters
    y = nn.relu(self.norm()(Conv1x1(self.filters, dtype=self.dtype)(x)))
    y = nn.relu(self.norm()(Conv3x3(self.filters, strides=self.stride, dtype=self.dtype)(y)))
    y = self.norm(scale_init=nn.initializers.zeros)(Conv1x1(filters, dtype=self.dtype)(y))
    if x.shape != y.shape:
      x = Conv1x1(filters, strides=self.stride, dtype=self.dtype, name='shortcut')(x)
      x = self.norm(name='shortcut_norm')(x)
    return nn.relu(x + y)


class ResNet50(nn.Module):
  """ResNet-50 (He et al. 2015), "v1.5": stages halve in their first 3x3 convolution, not in the 1x1."""

  num_classes: int
  width: int  # filters of the stem; 64 is the ResNet-50 of ImageNet
  norm: str
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: jax.Array, train: bool) -> tuple[jax.Array, Features]:
    norm = NORMS[self.norm](train, self.dtype)
    features = {}
    x = Conv(
      self.width,
      (7, 7),
      strides=2,
      padding=3,
      use_bias=False,
      kernel_init=he_normal,
      dtype=self.dtype,
      name='stem',
    )(x)
    x = nn.relu(norm(name='stem_norm')(x))
    x = nn.max_pool(x, (3, 3), strides=(2, 2), padding=((1, 1), (1, 1)))
    features['stem'] = x
    for stage, num_blocks in enumerate(BLOCKS_PER_STAGE):
      for i in range(num_blocks):
        stride = 2 if stage > 0 and i == 0 else 1
        name = f'stage{stage + 1}_block{i + 1}'
        x = PostActBottleneckBlock(self.width * 2**stage, stride, norm, self.dtype, name=name)(x)
      features[f'stage{stage + 1}'] = x
    x = features['pooled'] = jnp.mean(x, axis=(1, 2))
    return classify(self.num_classes, x, features)
