"""Captions of all parts have at most 60 words, in the case with the most words."""

import numpy as np
import pytest

from analysis.parts import PARTS

MAX_WORDS = 60
LONGEST = {  # with BatchNorm, several students, an alignment whose examples are measured too, and a path
  'num_examples': np.array([512, 360]),
  'reestimated': np.array(True),
  'variants': np.array(['as they are', 'aligned, re-estimated']),
  'alignment_examples': np.array([512, 10]),
  'bezier_steps': np.array(200),
  'num_continuations': np.array(2),
  'num_epochs': np.array(10.0),
  'num_students': np.array([3, 1]),
  'num_batches': np.array(8),
  'batch_size': np.array(128),
  'steps': np.arange(6),
  'xs': np.arange(25),
  'ys': np.arange(25),
  'corners/names': np.array(['initial', 'student', 'independent']),
  'path/xy': np.zeros((6, 2)),
  'jensen_shannon/coords': np.full((3, 2), np.nan),
}
CURVATURE = {
  'num_examples': np.array(256),
  'points': ['student'],
  'objectives': ['distillation'],
  'student/distillation/hessian/nodes': np.zeros((2, 25)),
}
OWN = {
  'decomposition': {
    'heskes/mean': np.zeros(3),
    'residual/shares': np.zeros(3),
    'residual/over_students': np.array(False),
    'num_students': np.array(3),
  },
  'predictions': {'num_examples': np.array(360)},
  'curvature': CURVATURE,
  'curvature_traces': CURVATURE,
}


@pytest.mark.parametrize('normalised', [False, True])
@pytest.mark.parametrize('name', PARTS)
def test_captions_are_short(name, normalised):
  flags = {'normalised': np.array(normalised), 'exact': np.array(not normalised)}
  arrays = LONGEST | flags | OWN.get(name, {})
  caption = PARTS[name].caption(arrays)
  assert caption.endswith('.')
  assert len(caption.split()) <= MAX_WORDS, caption
