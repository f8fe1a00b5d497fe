"""A run on random images of any number and size, to be timed: the real stages without a data set."""

import numpy as np
from etils import epath
from ml_collections import ConfigDict

from configs import cifar_resnet
from kdjax import data
from kdjax.stages.experiment import Experiment


def config_of(model: str, depth: int = 20, **fields) -> ConfigDict:
  """The config of CIFAR-10 for a model; `student__num_steps=3` sets student.num_steps."""
  config = cifar_resnet.get_config()
  config.model.name, config.model.depth = model, depth
  config.evaluation.independent_seed = None
  config.update_from_flattened_dict({k.replace('__', '.'): v for k, v in fields.items()})
  return config


def run_of(
  config: ConfigDict, workdir: epath.Path, num_train: int, num_test: int = 512
) -> Experiment:
  """A run whose data set is `num_train` random images_NHWC of 32 x 32 pixels in ten classes."""
  run, rng = Experiment(config, workdir), np.random.RandomState(0)
  sizes = {'train': num_train, 'test': num_test}
  # A run would read these from disk.
  run.data.description = data.Description(
    (32, 32, 3), tuple('0123456789'), sizes['train'], sizes['test']
  )
  run.data.sizes = sizes
  run.data.splits = {
    name: data.Split(
      rng.randint(0, 256, (size, 32, 32, 3)).astype(np.uint8),
      rng.randint(0, 10, size).astype(np.int32),
    )
    for name, size in sizes.items()
  }
  return run


def batch(size: int, side: int = 32) -> dict[str, np.ndarray]:
  """A batch of random RGB images in ten classes, as views take it."""
  rng = np.random.RandomState(0)
  return {
    'inputs': rng.randint(0, 256, (size, side, side, 3)).astype(np.uint8),
    'labels': rng.randint(0, 10, size).astype(np.int32),
    'indices': np.arange(size, dtype=np.int32),
    'views': np.zeros(size, np.int32),
  }
