"""Figures of the analysis on a screen and in a paper."""

import numpy as np
import pytest
from etils import epath
from matplotlib import image
from matplotlib.text import Text

from analysis import runner, runs
from analysis.figures import style
from analysis.part import Part, Settings

NUMBERS = {'xs': np.arange(3.0)}


def draw(arrays: style.Arrays) -> style.Figure:
  figure = style.blank(3.5)
  left, right = figure.subplots(1, 2)
  for axes in (left, right):
    axes.plot(arrays['xs'], label='line')
    axes.set(xlabel='x', ylabel='y')
    axes.text(0, 0, 'text')
  style.title(left, 'a', 'title with a legend')
  style.title(right, 'b', 'title', ncols=0)
  style.legend(figure, left, ncols=1)
  figure.supxlabel('x of all')
  return figure


@pytest.mark.parametrize(
  ('name', 'inches', 'points'), [('screen', 7, {9, 11}), ('paper', 5.5, {8})]
)
def test_width_and_size_of_all_text(name, inches, points):
  with style.drawing('any', name):
    figure = draw(NUMBERS)
    figure.canvas.draw()
  np.testing.assert_allclose(figure.get_size_inches(), [inches, inches / 2])
  assert {text.get_fontsize() for text in figure.findobj(Text) if text.get_text()} == points


def test_another_style_is_drawn_from_the_same_numbers(finished, tmp_path, monkeypatch):
  computed = []

  def compute(*_):
    computed.append('once')
    return NUMBERS

  monkeypatch.setattr(runs.Study, 'folder', epath.Path(tmp_path))
  part = Part('made', 'Title', (), compute, draw, lambda arrays: 'A caption.')
  monkeypatch.setattr(runner, 'PARTS', {'made': part})
  study, settings, widths = runs.Study(finished), Settings(), []
  for names in ((), ('paper',), ('paper',), ('screen',)):
    runner.run(study, settings, ['made'], *names)
    widths.append(image.imread(tmp_path / 'made.png').shape[1] / runner.PIXELS_PER_INCH)
  assert widths == [7, 5.5, 5.5, 7]
  assert computed == ['once']
