"""A user's project: a module beside a config file, with everything that a config can name.

Each project has names of its own, since a process imports a module once.
"""

import itertools
import pathlib
import textwrap

from kdjax import config as config_lib

ROOT = pathlib.Path(__file__).parents[1]
_COUNT = itertools.count()

LAYERS = """
import flax.linen as nn

def activation(x):
  return nn.relu(x)
"""
MODULE = """
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

import {name}_layers as layers


class Net(nn.Module):
  num_classes: int
  width: int = 4
  sizes: tuple = ()

  @nn.compact
  def __call__(self, x, train):
    for size in (self.width, *self.sizes):
      x = layers.activation(nn.Dense(size)(x.reshape(len(x), -1)))
    return nn.Dense(self.num_classes)(x)


class Featured(Net):
  @nn.compact
  def __call__(self, x, train):
    x = nn.Dropout(0.1, deterministic=not train)(x)
    x = nn.BatchNorm(use_running_average=not train, axis_name='device', momentum=0.9)(x)
    hidden = nn.Dense(self.width)(x.reshape(len(x), -1))
    return nn.Dense(self.num_classes)(hidden), {{'hidden': hidden}}


def load():
  rng = np.random.default_rng(0)
  labels = np.arange(96) % 3
  images = rng.uniform(-0.5, 0.5, (96, 4, 5, 2)) + labels[:, None, None, None] / 10
  return {{
    'train': (images[:64], labels[:64]),
    'test': (images[64:80], labels[64:80]),
    'val': (images[80:], labels[80:]),
    'class_names': ['a', 'b', 'c'],
  }}


def loss(student_logits, teacher_log_probs, temperature, *, labels_B, weight=1.0):
  squares = (jax.nn.softmax(student_logits) - jnp.exp(teacher_log_probs)) ** 2
  return weight * squares.sum(-1) + 0.1 * (labels_B == student_logits.argmax(-1))


def darken(key, image):
  return image * jax.random.uniform(key) - (1 - jax.random.uniform(key))


def lion(config, rate):
  return optax.lion(rate, weight_decay=config.weight_decay)
"""
CONFIG = """
from tests import tiny_config

def get_config():
  config = tiny_config.get_config()
  config.dataset.image_size = None
  config.dataset.num_train = None
  config.dataset.num_val = 0
  config.dataset.name = '{name}:load'
  config.model.name = '{name}:Net'
  config.model.options.width = 5
  config.teacher.optimizer = config.student.optimizer = '{name}:lion'
  config.teacher.learning_rate = config.student.learning_rate = 0.01
  config.teacher.augmentation = ('flip', '{name}:darken')
  config.predictions.augmentation = ('{name}:darken',)
  config.student.loss = '{name}:loss'
  config.student.loss_options.weight = 2.0
  config.teacher.num_epochs, config.student.num_epochs = 2, 3
  config.teacher.batch_size = config.student.batch_size = 16
  return config
"""


class Project:
  """A folder with NAME.py, NAME_layers.py and NAME_config.py."""

  def __init__(self, folder: pathlib.Path, more: str = ''):
    self.folder, self.name = folder, f'users_{next(_COUNT)}'
    self.write(f'{self.name}.py', MODULE.format(name=self.name) + textwrap.dedent(more))
    self.write(f'{self.name}_layers.py', LAYERS)
    self.spec = self.write(f'{self.name}_config.py', CONFIG.format(name=self.name))

  def write(self, file: str, text: str) -> str:
    (self.folder / file).write_text(text)
    return str(self.folder / file)

  def edit(self, old: str, new: str, suffix: str = '') -> None:
    path = self.folder / f'{self.name}{suffix}.py'
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new))

  def config(self, **overrides):
    """The config, with overrides in which @ stands for the module and __ for a dot."""
    pairs = [
      (field.replace('__', '.'), str(value).replace('@', f'{self.name}:'))
      for field, value in overrides.items()
    ]
    config, problems = config_lib.load(self.spec, pairs)
    assert problems == []
    return config
