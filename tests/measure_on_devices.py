"""Measures points on all devices there are, and saves what comes out.

test_analysis_measure.py does it on one CPU device and on three.
"""

import pathlib
import types

import flax.linen as nn
import jax
import numpy as np

from analysis import measure, paths
from kdjax import losses, models

NUM_POINTS, NUM_INPUTS, CLASSES, COUNTS = 8, 6, 4, {'distillation': 11, 'test': 5}


class Network(nn.Module):
  @nn.compact
  def __call__(self, x, train):
    x = nn.relu(models.NORMS['batch'](train)()(nn.Dense(8)(x)))
    return nn.Dense(CLASSES)(x), {}


class Small(measure.Measure):
  """Random examples, in batches of four."""

  def __init__(self):
    evaluation = types.SimpleNamespace(batch_size=4)
    self._run = types.SimpleNamespace(config=types.SimpleNamespace(evaluation=evaluation))
    self._steps, self._placed = {}, {}
    self.model = Network()
    self.sets, self._has_statistics = measure.SETS, True
    self._loss = {'loss': losses.distillation, 'temperature': 4.0, 'alpha': 0.3}
    rng = np.random.default_rng(0)
    self._examples = {
      name: {
        'inputs': rng.normal(size=(count, NUM_INPUTS)).astype(np.float32),
        'labels': np.arange(count) % CLASSES,
        'teacher_log_probs': np.asarray(jax.nn.log_softmax(rng.normal(size=(count, CLASSES)))),
      }
      for name, count in COUNTS.items()
    }


def main(out: str | pathlib.Path) -> None:
  measured, coordinates_P1 = Small(), np.linspace(0, 1, NUM_POINTS)[:, None]
  ends = tuple(models.init(measured.model, jax.random.key(i), (NUM_INPUTS,)) for i in range(2))
  values = measured.at(paths.line_point, ends, coordinates_P1, reestimate=True)
  np.savez(out, num_devices=jax.local_device_count(), **values)
