"""A finished run like that of the tiny config, with a network that is traced in a fraction of a ResNet's time."""

import pathlib
import shutil
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
import pytest
from etils import epath
from ml_collections import ConfigDict

from analysis import permutations
from kdjax import models
from kdjax.stages.experiment import Experiment
from tests import tiny_config

LAYERS = ('Hidden_0', 'Hidden_1', 'Dense_0')  # in order of depth, which is not that of the alphabet


class Hidden(nn.Module):
  width: int
  dtype: Any

  @nn.compact
  def __call__(self, x, train):
    x = nn.Dense(self.width, dtype=self.dtype)(x)
    return nn.relu(models.NORMS['batch'](train, self.dtype)()(x))


class Small(nn.Module):
  """Two hidden layers with BatchNorm."""

  num_classes: int
  width: int = 12
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x, train):
    x = x.reshape(len(x), -1)
    for _ in range(2):
      x = Hidden(self.width, self.dtype)(x, train)
    return nn.Dense(self.num_classes, dtype=jnp.float32)(x)


def spec(_: Small, flat: Mapping) -> tuple[permutations.Axes, permutations.Outputs]:
  """The entry of `permutations.SPECS`."""
  axes, outputs, inputs = {}, {}, permutations.FIXED
  for name in LAYERS[:2]:
    axes |= permutations._affine(flat, (name, 'Dense_0'), inputs, (name,))
    axes |= permutations._norm((name, 'BatchNorm_0'), name, 'batch')
    outputs[name] = permutations.Output((name, 'BatchNorm_0'), relu=True)
    inputs = (name,)
  return axes | permutations._affine(flat, LAYERS[2:], inputs, permutations.FIXED), outputs


def get_config() -> ConfigDict:
  config = tiny_config.get_config()
  config.model.name = 'tests.small_run:Small'
  return config


def run(workdir: pathlib.Path, **fields: Any) -> Experiment:
  """A run of this config; `student__temperature=1.0` sets config.student.temperature."""
  config = get_config()
  config.update_from_flattened_dict({k.replace('__', '.'): v for k, v in fields.items()})
  return Experiment(config, epath.Path(workdir))


def finished(tmp_path_factory: pytest.TempPathFactory) -> Experiment:
  """The finished run of this config."""
  from conftest import made_once  # a program that loads `Small` has no conftest

  return made_once(tmp_path_factory, 'small', run)


def copied(made: Experiment, workdir: pathlib.Path, **fields: Any) -> Experiment:
  """A copy of a finished run, with other fields, which a test may change."""
  shutil.copytree(made.workdir, workdir, dirs_exist_ok=True)
  return run(workdir, **fields)
