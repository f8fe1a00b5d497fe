"""What several models are made of."""

from collections.abc import Callable
from functools import partial

import flax.linen as nn
import jax

AXIS_NAME = 'device'  # the pmapped axis, over which BatchNorm pools its statistics
BATCH_NORM_MOMENTUM = 0.9  # weight of the old running statistics in the new

Features = dict[str, jax.Array]
Norm = Callable[..., nn.Module]  # a norm's constructor, bound to training or not
he_normal = nn.initializers.variance_scaling(2.0, 'fan_out', 'normal')  # He et al. 2015
Conv3x3 = partial(nn.Conv, kernel_size=(3, 3), padding=1, use_bias=False, kernel_init=he_normal)
Conv1x1 = partial(nn.Conv, kernel_size=(1, 1), use_bias=False, kernel_init=he_normal)


def _batch_norm(train: bool) -> Norm:
  return partial(
    nn.BatchNorm,
    use_running_average=not train,
    momentum=BATCH_NORM_MOMENTUM,
    axis_name=AXIS_NAME if train else None,
  )


def _layer_norm(train: bool) -> Norm:
  """Over height, width and channels of each example; scale and bias by channel."""
  del train
  return partial(nn.LayerNorm, reduction_axes=(-3, -2, -1), feature_axes=-1)


NORMS = {'batch': _batch_norm, 'layer': _layer_norm}
