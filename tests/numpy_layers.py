"""Layers in NumPy, and variables and logits to compare the models with them."""

import functools
from collections.abc import Callable

import flax.linen as nn
import jax
import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from kdjax import models

BATCH, LAYER = (0, 1, 2), (1, 2, 3)  # the axes that a norm pools over
QUICK = {'xla_backend_optimization_level': 0}  # compiles in a fifth of the time


@functools.cache
def abstract_variables(
  model: nn.Module, shape: tuple[int, ...], dtype: str = 'float32'
) -> dict[str, dict]:
  return jax.eval_shape(lambda: models.init(model, jax.random.key(0), shape, dtype))


def random_variables(model: nn.Module, inputs: np.ndarray, low=-0.5, high=0.7) -> dict[str, dict]:
  """Random variables of a model. Fresh biases and scales are 0 and 1, which would hide errors."""
  rng = np.random.default_rng(1)
  shapes = abstract_variables(model, inputs.shape[1:], inputs.dtype)

  def uniform(low, high, tree):
    return jax.tree.map(lambda x: rng.uniform(low, high, x.shape).astype(np.float32), tree)

  return {
    'params': uniform(low, high, shapes['params']),
    'batch_stats': uniform(0.1, 0.6, shapes['batch_stats']),  # no variance is negative
  }


@functools.partial(jax.jit, static_argnums=0, compiler_options=QUICK)
def apply(model, variables, inputs):
  """(logits, features) with the running statistics."""
  return model.apply(variables, inputs, train=False)


@functools.partial(jax.jit, static_argnums=0, compiler_options=QUICK)
def train_on_devices(model, variables, images_DBHWC):
  """((logits, features), updates) of a training pass, as if over D devices."""
  return jax.vmap(
    lambda x: model.apply(variables, x, train=True, mutable=['batch_stats']),
    axis_name=models.AXIS_NAME,
  )(images_DBHWC)


def train_logits(model, variables, images_BHWC, num_devices=2):
  shape = (num_devices, -1, *images_BHWC.shape[1:])
  (logits_DBC, _), _ = train_on_devices(model, variables, images_BHWC.reshape(shape))
  return np.asarray(logits_DBC).reshape(len(images_BHWC), -1)


def conv(x, kernel, stride=1, padding=1):
  padded = np.pad(x, ((0, 0), (padding, padding), (padding, padding), (0, 0)))
  windows = sliding_window_view(padded, kernel.shape[:2], axis=(1, 2))
  return np.einsum('bijckl,klcf->bijf', windows[:, ::stride, ::stride], kernel, optimize=True)


def max_pool(x, size, padding=0):
  """Maximum over overlapping squares, with stride 2."""
  widths = ((0, 0), (padding, padding), (padding, padding), (0, 0))
  windows = sliding_window_view(
    np.pad(x, widths, constant_values=-np.inf), (size, size), axis=(1, 2)
  )
  return windows[:, ::2, ::2].max((-1, -2))


def relu(x):
  return np.maximum(x, 0)


def dense(x, params):
  return x @ params['kernel'] + params['bias']


def normalise(x, params, stats, axes):
  """Normalises by the given statistics, or by those over `axes` if there are none."""
  if stats is None:
    mean, var = x.mean(axes, keepdims=True), x.var(axes, keepdims=True)
  else:
    mean, var = stats['mean'], stats['var']
  epsilon = 1e-6 if axes == LAYER else 1e-5  # Flax's defaults
  return (x - mean) / np.sqrt(var + epsilon) * params['scale'] + params['bias']


def assert_logits(
  logits: jax.Array, by_hand: Callable, variables: dict, inputs: np.ndarray, **options
) -> None:
  """Asserts that logits equal those of `by_hand` in float64, up to float32 rounding."""
  variables = jax.tree.map(functools.partial(np.asarray, dtype=np.float64), variables)
  inputs = inputs.astype(np.float64) if inputs.dtype.kind == 'f' else inputs
  expected = by_hand(variables, inputs, **options)
  assert np.ptp(expected, axis=0).min() > 1e-3 * np.abs(expected).max()  # else it tells nothing
  np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-5 * np.abs(expected).max())
