"""The tiny config with LeNet, which compiles in a fraction of a ResNet's time, and fewer checkpoints.

It is for tests of what the program does, whatever it trains: sweeps, kills, damage, full disks.
"""

from ml_collections import ConfigDict

from tests import tiny_config


def get_config() -> ConfigDict:
  config = tiny_config.get_config()
  config.dataset.image_size = 12
  config.model.name = 'lenet'
  config.training.num_evals = 1
  config.training.num_checkpoints = 2
  return config
