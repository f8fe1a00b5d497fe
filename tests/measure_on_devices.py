"""Measures points on all devices and saves the values.

test_analysis_surface.py runs this on one and on three CPU devices, and uses its network and surface.
"""

import pathlib

import flax.linen as nn
import jax
import numpy as np

from analysis import paths
from analysis.measure import Distilled
from kdjax import losses, models

NUM_POINTS, NUM_INPUTS, CLASSES, COUNTS = 8, 6, 4, {'distillation': 11, 'test': 9}


class Network(nn.Module):
  """A smooth network, so that differences of losses give derivatives."""

  @nn.compact
  def __call__(self, x, train):
    x = nn.gelu(models.NORMS['batch'](train)()(nn.Dense(8)(x)))
    return nn.Dense(CLASSES)(x), {}


def surface(batch_size: int) -> Distilled:
  """Random examples and predictions."""
  rng = np.random.default_rng(0)
  examples = {
    name: {
      'inputs': rng.normal(size=(count, NUM_INPUTS)).astype(np.float32),
      'labels': np.arange(count) % CLASSES,
      'teacher_log_probs': np.asarray(jax.nn.log_softmax(rng.normal(size=(count, CLASSES)))),
    }
    for name, count in COUNTS.items()
  }
  loss = {'loss': losses.distillation, 'temperature': 4.0, 'alpha': 0.3}
  return Distilled(Network(), loss, examples, batch_size, has_statistics=True)


def main(out: str | pathlib.Path) -> None:
  measured, coordinates_P1 = surface(batch_size=4), np.linspace(0, 1, NUM_POINTS)[:, None]
  ends = tuple(models.init(measured.model, jax.random.key(i), (NUM_INPUTS,)) for i in range(2))
  values = measured.at(paths.line_point, ends, coordinates_P1, reestimate=True)
  np.savez(out, num_devices=jax.local_device_count(), **values)
