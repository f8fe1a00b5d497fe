"""Classifiers: (inputs, train) → (logits_BC, features), a dict by name in order of depth, all in float32.

A config names one of `MODELS`, or a user's model as 'module:attribute'; `build` makes both. jit returns
dicts in alphabetical order.

Inputs are images_BHWC float32, or tokens_BT int32 for the models in `TAKES_TOKENS`. A model is built
for its config and the number of classes; the size of the images does not matter. A model with dropout needs
`rngs={'dropout': key}` in training.
"""

import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from kdjax.models import user
from kdjax.models.bilstm import BiLSTM
from kdjax.models.layers import AXIS_NAME, DTYPES, NORMS, Features
from kdjax.models.lenet import LeNet5
from kdjax.models.resnet import SHORTCUTS, BasicBlock, BottleneckBlock, PreActResNet, resnet_block
from kdjax.models.resnet50 import ResNet50
from kdjax.models.vgg import VGG16
from kdjax.runtime import plugins

__all__ = [
  'AXIS_NAME',
  'DTYPES',
  'MODELS',
  'NORMS',
  'SHAPED_BY',
  'SHORTCUTS',
  'SMALLEST_SIDE',
  'TAKES_TOKENS',
  'VGG16',
  'BasicBlock',
  'BiLSTM',
  'BottleneckBlock',
  'Features',
  'LeNet5',
  'PreActResNet',
  'ResNet50',
  'build',
  'feature_shapes',
  'fields_read',
  'in_float32',
  'init',
  'own_module',
  'resnet_block',
  'shapes',
]


def _resnet(num_classes: int, depth: int, **fields: Any) -> nn.Module:
  block, blocks_per_stage = resnet_block(depth)
  return PreActResNet(num_classes, block, blocks_per_stage, **fields)


# Name → (num_classes, dtype=, and keyword arguments: the fields of SHAPED_BY) → module.
MODELS: dict[str, Callable[..., nn.Module]] = {
  'resnet': _resnet,
  'lenet': LeNet5,
  'vgg': VGG16,
  'resnet50': ResNet50,
  'bilstm': BiLSTM,
}
# The fields of a `model` section that each of MODELS reads, besides 'name' and 'dtype'.
SHAPED_BY = {
  'resnet': {'depth', 'width', 'norm', 'shortcut'},
  'lenet': set(),
  'vgg': {'width'},
  'resnet50': {'width', 'norm'},
  'bilstm': {'width'},
}
TAKES_TOKENS = {'bilstm'}  # these also get `vocabulary_size`; all others take images
# Pixels of height and width. Smaller images leave no pixel after the last pool of LeNet or VGG.
SMALLEST_SIDE = {'resnet': 1, 'lenet': 12, 'vgg': 32, 'resnet50': 1}


def is_miscomputed(config: ConfigDict) -> bool:
  """Whether XLA computes the model of a `model` section wrongly on this machine.

  From JAX 0.11 on, VGG-16 in bfloat16 gives infinities on a CPU, at some widths.
  """
  affected = config.name == 'vgg' and config.dtype == 'bfloat16' and jax.default_backend() == 'cpu'
  return affected and jax.__version_info__ >= (0, 11)


def fields_read(name: str) -> set[str] | None:
  """The fields of a `model` section that a model reads; None for an unknown name."""
  return {'options'} if plugins.is_dotted(name) else SHAPED_BY.get(name)


def build(
  config: ConfigDict, num_classes: int, vocabulary_size: int | None = None, field: str = 'model'
) -> nn.Module:
  """The classifier that a `model` section describes.

  Args:
    vocabulary_size: of texts; token ids are below it.
    field: the section's name, for errors.

  Raises:
    UserError: the name is unknown, or a user's model cannot be made.
  """
  make = plugins.look_up(MODELS, config.name, f'{field}.name')
  if config.name not in MODELS:
    return user.build(make, config, num_classes, vocabulary_size, field)
  arguments = {name: config[name] for name in SHAPED_BY[config.name]}
  if config.name in TAKES_TOKENS:
    arguments['vocabulary_size'] = vocabulary_size
  return make(num_classes, dtype=DTYPES[config.dtype], **arguments)


def in_float32(model: nn.Module) -> nn.Module:
  """The same model with layers that compute in float32. A user's model without `dtype` stays as it is."""
  if not isinstance(model, user.WithFeatures):
    return model.clone(dtype=jnp.float32)
  own = model.module
  return user.WithFeatures(own.clone(dtype=jnp.float32)) if hasattr(own, 'dtype') else model


def own_module(model: nn.Module) -> nn.Module:
  """The module that the user wrote, or the model itself if it is of `MODELS`."""
  return model.module if isinstance(model, user.WithFeatures) else model


def init(
  model: nn.Module, key: jax.Array, input_shape: tuple[int, ...], dtype: Any = jnp.float32
) -> dict[str, Any]:
  """{'params', 'batch_stats'} of a fresh model; 'batch_stats' is empty without BatchNorm.

  Args:
    input_shape: of one example: (H, W, C) or (T,).
    dtype: of the inputs: float32 for images, int32 for tokens.
  """
  init = _init if isinstance(key, jax.core.Tracer) else _compiled_init()
  return init(model, key, input_shape, jnp.dtype(dtype))


def shapes(
  model: nn.Module, key: jax.Array, input_shape: tuple[int, ...], dtype: Any = jnp.float32
) -> dict[str, Any]:
  """The shapes and dtypes of the result of `init`. Both share one trace of the model."""
  return _compiled_init().eval_shape(model, key, input_shape, jnp.dtype(dtype))


def feature_shapes(
  model: nn.Module, input_shape: tuple[int, ...], dtype: Any = jnp.float32
) -> dict[str, jax.ShapeDtypeStruct]:
  """The shapes of a model's features for a batch of two examples, by name."""

  def features(key: jax.Array) -> Features:
    inputs = jnp.zeros((2, *input_shape), dtype)
    return model.apply(init(model, key, input_shape, dtype), inputs, train=False)[1]

  return jax.eval_shape(features, jax.random.key(0))


def _init(
  model: nn.Module, key: jax.Array, input_shape: tuple[int, ...], dtype: Any
) -> dict[str, Any]:
  inputs = jax.ShapeDtypeStruct((1, *input_shape), dtype)  # only weights are computed
  variables = model.lazy_init({'params': key, 'dropout': key}, inputs, train=True)
  return {'params': variables['params'], 'batch_stats': variables.get('batch_stats', {})}


@functools.cache
def _compiled_init() -> Callable[..., dict[str, Any]]:
  """`_init` compiled, one program for all members.

  It runs once for each member, so it is not optimised on a CPU: that takes three times as long. A program for
  each weight takes five times as long (ResNet-8).
  """
  options = {'xla_backend_optimization_level': 0} if jax.default_backend() == 'cpu' else {}
  return jax.jit(_init, static_argnums=(0, 2, 3), compiler_options=options)
