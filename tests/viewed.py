"""Batches, and compiled views of them, for the tests of views."""

import functools

import jax
import numpy as np
from ml_collections import ConfigDict

from kdjax.data import views

PADDING = 2
NUM_OFFSETS = 2 * PADDING + 1
CONFIG = ConfigDict(
  {
    'crop_padding': PADDING,
    'rotation_degrees': 20.0,
    'rotation_interpolation': 'bilinear',
    'brightness': 0.2,
    'contrast': 0.3,
    'saturation': 0.4,
    'hue': 0.1,
    'noise_probability': 0.25,
  }
)


@functools.cache
def compiled_view(names, num_augmented=None):
  return jax.jit(views.make_view(names, CONFIG, num_augmented))


@functools.cache
def compiled_labels(names):
  """Without the inputs, which take long to compile."""
  return jax.jit(lambda seed, batch: views.make_view(names, CONFIG)(seed, batch)[1])


def inputs_of(names, batch, seed=0):
  return np.asarray(compiled_view(names)(seed, batch)[0])


def labels_of(names, batch, seed=0):
  return np.asarray(compiled_labels(names)(seed, batch))


def batch_of(inputs, view=0):
  indices = np.arange(len(inputs), dtype=np.int32)
  batch = {
    'inputs': inputs,
    'labels': indices % 10,
    'indices': indices,
    'views': np.full_like(indices, view),
  }
  return batch | {'partners': taken(batch, np.roll(indices, 1))}


def make_batch():
  rng = np.random.default_rng(0)

  def of(*indices):
    return {
      'inputs': rng.integers(0, 256, (6, 6, 8, 3), dtype=np.uint8),
      'labels': np.array([3, 0, 9, 3, 1, 7], np.int32),
      'indices': np.array(indices, np.int32),
      'views': np.array([0, 3, 1, 299, 0, 1], np.int32),
    }

  return of(5, 17, 2, 40_000, 9, 5) | {'partners': of(8, 5, 17, 3, 40_000, 11)}


def taken(batch, where):
  return jax.tree.map(lambda x: x[where], batch)


def in_unit_cube(images):
  return (images.astype(np.float64) / 127.5 - 1).astype(np.float32)


def differs(result, images):
  return np.abs(result - images).max((1, 2, 3)) > 1e-3
