"""The figure of made-up sweeps with known numbers."""

import dataclasses
import functools
import io
import warnings

import matplotlib.style
import numpy as np
import pytest
from made_sweep import (
  AGREEMENT,
  HALF,
  NAMED_RESULTS,
  NAMES,
  NUMBERS,
  PAIRED,
  PANELS,
  RESULTS,
  result,
)
from matplotlib.colors import to_hex

from kdjax.config import sweep as sweep_lib
from kdjax.config.sweep import Panel, Point, Sweep
from kdjax.report import figures, sweep_figure


def drawn(sweep, results):
  with figures.style(sweep.title):
    return sweep_figure.draw(sweep, sweep_lib.summarise(sweep, results))


@functools.cache
def shared(name):
  """A figure that tests only read."""
  return drawn(*{'numbers': (NUMBERS, RESULTS), 'paired': (NUMBERS, PAIRED)}[name])


def points(axes, hollow):
  """{colour: (xs, ys)} of the hollow markers, or of the others."""
  return {
    line.get_color(): tuple(
      np.round(np.asarray(data, float), 6).tolist() for data in line.get_data()
    )
    for line in axes.lines
    if line.get_marker() in sweep_figure.MARKERS
    and (line.get_markerfacecolor() == 'none') == hollow
  }


def bars(axes):
  """The ends of all drawn error bars, sorted."""
  lines = [of for of in axes.collections if hasattr(of, 'get_segments')]
  ends = [segment for bars in lines for segment in bars.get_segments()]
  return sorted(np.round(end, 6).tolist() for end in ends if np.size(end))


def bands(axes):
  """{colour: {x: (low, high)}} of the shaded bands where they have a width."""
  found = {}
  for band in axes.collections:
    if not hasattr(band, 'get_segments'):
      ends = {}
      for x, y in np.round(np.concatenate([path.vertices for path in band.get_paths()]), 6):
        ends.setdefault(x, set()).add(y)
      found[to_hex(band.get_facecolor()[0])] = {
        x: (min(ys), max(ys)) for x, ys in ends.items() if len(ys) > 1
      }
  return found


def test_lines_bands_and_bars_are_the_means_and_deviations():
  results = {**RESULTS, 7: result(0.66)}
  axes = drawn(NUMBERS, results).axes[0]
  blue, red = list(sweep_figure.COLORS.values())[:2]
  assert points(axes, hollow=False) == {blue: ([1, 16], [58, 65]), red: ([1, 16], [64, 72])}
  assert points(axes, hollow=True) == {blue: ([1], [58.04]), red: ([16], [71.56])}
  std = np.sqrt(2)  # of 57 and 59; those of 62 and 66, 70 and 74 are twice as much
  expected = {
    blue: {1: (58 - std, 58 + std), 16: (65 - std, 65 + std)},
    red: {1: (64 - 2 * std, 64 + 2 * std), 16: (72 - 2 * std, 72 + 2 * std)},
  }
  for color, band in bands(axes).items():
    for x, ends in expected[color].items():
      assert band[x] == pytest.approx(ends, abs=1e-5)
  assert bars(axes) == [[[1, 57.54], [1, 58.54]]]  # the paper's


def test_a_single_point_has_bars_in_place_of_a_band():
  sweep = dataclasses.replace(NUMBERS, points=NUMBERS.points[:1], paper={})
  axes = drawn(sweep, {0: result(0.64), 1: result(0.66)}).axes[0]
  std = np.sqrt(2)
  assert bars(axes) == np.round([[[16, 65 - std], [16, 65 + std]]], 6).tolist()
  assert bands(axes) == {}


@pytest.mark.parametrize(
  ('sweep', 'axis'),
  [(NUMBERS, 1), (dataclasses.replace(NUMBERS, points=[Point({}, x) for x in 'ab']), 0)],
  ids=['numbers', 'names'],
)
def test_the_difference_has_a_panel_with_intervals(sweep, axis):
  results = PAIRED if sweep is NUMBERS else {**PAIRED, 2: PAIRED[4], 3: PAIRED[5]}
  figure = drawn(dataclasses.replace(sweep, paper={}), results)
  assert len(figure.axes) == len(sweep.panels) + 1
  axes = figure.axes[2]
  label = (axes.get_xlabel, axes.get_ylabel)[axis]()
  assert label == 'student − independent:\nagreement (points)'
  ends = sorted((low[axis], high[axis]) for low, high in bars(axes))
  assert len(ends) == (3 if sweep is NUMBERS else 2)
  if sweep is NUMBERS:
    assert np.allclose(ends, [(4 - HALF, 4 + HALF)] * 3, atol=1e-3)
  low, high = (axes.get_xlim, axes.get_ylim)[axis]()
  assert low < min(ends)[0] < max(ends)[1] < high
  (legend,) = figure.legends
  assert 'independent student' in [text.get_text() for text in legend.get_texts()]


def test_the_independent_student_is_drawn_for_every_measure_of_fidelity():
  first, second, _ = shared('paired').axes
  crosses = [line for line in first.lines if line.get_marker() == 'x']
  ys = [np.round(line.get_ydata().astype(float), 6).tolist() for line in crosses]
  assert ys == [[54, 61], [59, 68]]
  assert not [line for line in second.lines if line.get_marker() == 'x']


def test_named_points_are_read_from_above():
  axes = drawn(NAMES, NAMED_RESULTS).axes[0]
  blue = sweep_figure.COLORS['series-1']
  assert points(axes, hollow=True) == {blue: ([83.5], [1])}
  assert points(axes, hollow=False) == {blue: ([79.0, 83.5], [0, 1])}
  assert [label.get_text() for label in axes.get_yticklabels()] == ['baseline', 'mixup']
  assert axes.get_ylim() == (1.5, -0.5)
  assert axes.get_xlabel() == 'agreement (%)'


def test_a_measure_without_results_is_a_blank_panel():
  first, second = shared('numbers').axes
  assert (first.get_title(), second.get_title()) == ('', 'no result yet')
  assert [axes.get_title('left') for axes in (first, second)] == ['a', 'b']
  assert points(second, hollow=False) == {}
  assert [axes.get_title() for axes in drawn(NUMBERS, {}).axes] == ['no result yet'] * 2


@pytest.mark.parametrize(
  ('xs', 'scale', 'labels'),
  [
    ((1, 4, 8, 16), 'log', ['1', '4', '8', '16']),
    ((0, 12500, 25000, 37500, 50000), 'linear', ['0', '12500', '25000', '37500', '50000']),
    ((0.0, 0.125, 0.25, 0.375, 0.5, 1.0), 'linear', ['0', '0.25', '0.5', '1']),
    (tuple(range(1, 13)), 'linear', ['1', '3', '5', '7', '9', '11']),
    ((300, 1000, 5000), 'log', ['300', '1000', '5000']),
    ((3,), 'linear', ['3']),
  ],
  ids=str,
)
def test_x_labels_are_the_sweeps_own_where_they_fit(xs, scale, labels):
  sweep = Sweep('x', 'x', [Point({}, x) for x in xs], PANELS[:1])
  axes = drawn(sweep, {i: result(0.5 + 0.01 * i) for i in range(len(xs))}).axes[0]
  assert axes.get_xscale() == scale
  assert [label.get_text() for label in axes.get_xticklabels()] == labels
  assert {*axes.get_xticks(), *axes.get_xticks(minor=True)} == set(xs)  # a tick at every point


def test_the_figure_says_what_its_bands_are_and_of_how_many_trials():
  bands = 'Bands: mean ± one standard deviation over n = {} trials.'
  for sweep, results, text in (
    (NUMBERS, RESULTS, bands.format('1 to 2')),
    (NUMBERS, {**RESULTS, 7: result(0.66)}, bands.format(2)),
    (NAMES, NAMED_RESULTS, ''),  # one trial has no spread
    (NUMBERS, PAIRED, 'independent: mean and 95 % interval over trials, paired.'),
    (dataclasses.replace(NAMES, trials=2), {0: result(0.7), 2: result(0.8)}, 'Bars: mean'),
  ):
    said = sweep_figure.spread_text(sweep, sweep_lib.summarise(sweep, results))
    assert text in said if text else said == ''
  assert bands.format('1 to 2') in ' '.join(shared('numbers')._supxlabel.get_text().split())


@pytest.mark.parametrize('for_paper', [False, True])
@pytest.mark.parametrize('num_panels', [1, 2, 3, 4])
def test_the_sentence_about_bands_is_inside_the_figure(num_panels, for_paper, monkeypatch):
  text = 'mean and standard deviation, n = 4. ' * 10
  monkeypatch.setattr(sweep_figure, 'spread_text', lambda *_: text)
  panels = [Panel(AGREEMENT, f'panel {i}', 100) for i in range(num_panels)]
  sweep = dataclasses.replace(NUMBERS, panels=panels)
  size = {'font.size': sweep_figure.PAPER_POINTS} if for_paper else {}
  with figures.style(sweep.title), matplotlib.style.context(size):
    figure = sweep_figure.draw(sweep, sweep_lib.summarise(sweep, RESULTS), for_paper)
  figure.get_layout_engine().execute(figure)
  box = figure._supxlabel.get_window_extent()
  assert 0 <= box.x0 < box.x1 <= figure.bbox.width
  assert 0 <= box.y0 < box.y1 <= min(axes.get_tightbbox().y0 for axes in figure.axes)


def test_one_series_without_the_papers_values_needs_no_legend():
  sweep = Sweep('x', 'x', [Point({}, 1), Point({}, 2)], PANELS[:1])
  assert drawn(sweep, RESULTS).legends == []


@pytest.mark.parametrize(
  ('sweep', 'labels'),
  [(NUMBERS, ['m = 1', 'm = 3', 'paper']), (NAMES, ['measured', 'paper'])],
  ids=['series', 'names'],
)
def test_panels_and_legend_do_not_overlap(sweep, labels):
  """Four panels, in two rows."""
  panels = [Panel(AGREEMENT, f'measure {i}', 100) for i in range(4)]
  figure = drawn(dataclasses.replace(sweep, panels=panels), RESULTS)
  figure.get_layout_engine().execute(figure)
  assert len(figure.axes) == 4
  (legend,) = figure.legends
  assert [text.get_text() for text in legend.get_texts()] == labels
  boxes = [legend.get_window_extent(), *(axes.get_tightbbox() for axes in figure.axes)]
  pairs = [(a, b) for i, a in enumerate(boxes) for b in boxes[:i]]
  assert not any(a.overlaps(b) for a, b in pairs)


@pytest.mark.parametrize(('x_label', 'num_panels'), [('data', 1), ('data, ' * 20, 4)])
def test_the_x_label_is_once_on_the_left_of_the_names(x_label, num_panels):
  panels = [Panel(AGREEMENT, f'panel {i}', 100) for i in range(num_panels)]
  sweep = dataclasses.replace(NAMES, x_label=x_label, panels=panels)
  figure = drawn(sweep, NAMED_RESULTS)
  figure.get_layout_engine().execute(figure)
  label = figure._supylabel.get_window_extent()
  assert 0 <= label.y0 < label.y1 <= figure.bbox.height
  names = [name for axes in figure.axes for name in axes.get_yticklabels() if name.get_visible()]
  assert {name.get_text() for name in names} == {'baseline', 'mixup'}
  assert 0 <= label.x0 < label.x1 <= min(name.get_window_extent().x0 for name in names)
  assert not any(axes.get_ylabel() for axes in figure.axes)


def test_a_file_is_what_savefig_writes_and_later_files_keep_the_layout():
  buffer = io.BytesIO()
  with figures.style(NAMES.title):
    rows = sweep_lib.summarise(NAMES, NAMED_RESULTS)
    of_matplotlib, ours = (sweep_figure.draw(NAMES, rows) for _ in range(2))
    of_matplotlib.savefig(buffer, facecolor='white', dpi=200, metadata={'Software': None})
    assert figures.image(ours, 'png') == buffer.getvalue()
    place = ours.axes[0].get_position().bounds
    assert place == pytest.approx(of_matplotlib.axes[0].get_position().bounds)
    ours.axes[0].set_xlabel('three\nmore\nlines')
    figures.image(ours, 'svg')
    assert ours.axes[0].get_position().bounds == place


def test_one_name_with_long_labels_has_room():
  """Where panels do not fit, Matplotlib leaves the layout out and warns, which is an error here."""
  panels = [
    Panel(AGREEMENT, 'agreement, last epoch in train mode (%)', 100),
    *(Panel(f'{AGREEMENT}.{i}', 'agreement, distillation data (%)') for i in range(3)),
  ]
  points = [Point({}, 'ResNet-8, width 16', series) for series in ('same', 'larger')]
  sweep = Sweep('Figure 12', 'teacher', points, panels, trials=2)
  rows = sweep_lib.summarise(sweep, {i: PAIRED[i] for i in range(4)})
  with figures.style(sweep.title), warnings.catch_warnings():
    warnings.simplefilter('error')
    figures.image(sweep_figure.draw(sweep, rows), 'png')
