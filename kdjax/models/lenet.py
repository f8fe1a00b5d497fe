"""LeNet-5."""

import flax.linen as nn
import jax

from kdjax.models.layers import Features


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
