"""The tiny config with LeNet, which compiles in a fraction of a ResNet's time.

It is for tests of what the program does, whatever it trains: sweeps, kills, damage, full disks.
"""

from ml_collections import ConfigDict

from tests import tiny_config


def get_config() -> ConfigDict:
  config = tiny_config.get_config()
  config.dataset.image_size = 12
  config.model.name = 'lenet'
  return config
