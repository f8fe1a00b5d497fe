"""The figure and caption of barriers, drawn from made-up matrices."""

import re

import numpy as np
import pytest

from analysis.parts import barriers
from kdjax import figures

PARTS = {part.name: part for part in barriers.PARTS}


def texts_of(axes):
  return [text.get_text() for text in axes.texts]


def made_matrix(error, low, high):
  """Three networks, three variants; of student and teacher 0 the second is the lowest."""
  loss = np.array([[9.0, 8.0, 8.5], [7.0, 0.02, 6], [5.0, 4.0, 4.5]])
  errors = np.array([[0.5, 0.4, 0.45], [0.3, error, 0.2], [0.2, 0.1, 0.15]])
  arrays = {
    'names': np.array(['initial', 'student', 'teacher 0']),
    'pairs': np.array([[0, 1], [1, 2], [0, 2]]),
    'variants': np.array(['as they are', 'weights matched', 'activations matched']),
    'loss_unit': np.array('nats'),
    'num_examples': np.array([512, 360]),
  }
  for key, value in (('loss', loss), ('error', errors)):
    arrays |= {key: value, f'{key}/low': value - 0.01, f'{key}/high': value + 0.01}
  arrays['error/low'][1, 1], arrays['error/high'][1, 1] = low, high
  return arrays


def test_the_matrix_shows_each_pair_once_in_its_cell():
  with figures.style('barriers'):
    figure = PARTS['barriers'].draw(made_matrix(0.01, 0, 0.02))
  first, second, _, accuracy = figure.axes[:4]
  assert texts_of(first) == ['9.0', '5.0', '7.0']
  assert texts_of(second) == ['8.0', '4.0', '0.02']
  assert texts_of(accuracy) == ['40.0', '10.0', '1.0']
  assert [(t.get_position()) for t in first.texts] == [(0, 0), (0, 1), (1, 1)]
  assert [t.get_text() for t in first.get_yticklabels()] == ['student', 'teacher 0']
  assert [t.get_text() for t in accuracy.get_xticklabels()] == ['initial', 'student']
  assert first.images[0].get_clim() == second.images[0].get_clim() == (0, 9)


@pytest.mark.parametrize(
  ('error', 'low', 'high', 'verdict'),
  [
    (0.01, 0, 0.02, 'they lie in one basin modulo permutation'),
    (0.05, 0.021, 0.08, 'no permutation that was found'),
    (0.02, 0.01, 0.03, 'cannot be told'),
  ],
)
def test_the_caption_tells_whether_student_and_teacher_share_a_basin(error, low, high, verdict):
  caption = PARTS['barriers'].caption(made_matrix(error, low, high))
  assert verdict in caption
  assert 'student and teacher 0: 7 [6.99, 7.01]' in caption
  assert f'accuracy falls by {100 * error:.3g} [{100 * low:.3g}, {100 * high:.3g}] %' in caption
  assert re.search(r'at most 0\.01 nats of the loss and \S+ points of the accuracy', caption)
