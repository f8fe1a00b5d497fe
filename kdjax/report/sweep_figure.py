"""Draws a sweep: measures against x, beside the paper's values and the independent student's.

Functions import matplotlib when they draw.
"""

import math
import string
import textwrap
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from kdjax.config import sweep as sweep_lib
from kdjax.config.sweep import Cell, Row, Sweep
from kdjax.report import figures

if TYPE_CHECKING:
  from matplotlib.axes import Axes
  from matplotlib.figure import Figure

# The colours of series, by their names in the page (Okabe & Ito, which differ for any colour vision), and their
# markers, which differ in print.
COLORS = {
  'series-1': '#0072b2',
  'series-2': '#d55e00',
  'series-3': '#009e73',
  'series-4': '#cc79a7',
  'series-5': '#e69f00',
  'series-6': '#56b4e9',
}
MARKERS = 'os^vDP'
PAPER_MARKER = 'D'  # of the paper's values at named x
BARS = {'linewidth': 1.8, 'elinewidth': 1.4, 'capsize': 3}
PAPER_BARS = {'linewidth': 1.2, 'elinewidth': 0.8, 'capsize': 5}

LETTERS = string.ascii_lowercase  # of the panels
MAX_COLUMNS = 3  # of panels
PANEL_INCHES = (3.7, 3.1)
LABEL_LETTERS = 30  # in a line of an axis label
PAPER_POINTS = 8  # size of the text in a figure for a paper
MIN_LINES = 2.4  # height of a panel with names on its axis, in lines, so that labels fit
PAPER_SCALE, PAPER_COLUMNS = 0.7, 2  # scale and columns of its panels: 5.2 inches in all
MARGIN = 0.06  # beside the first and the last x, as a fraction of their distance
WIDE = 12  # the ratio of largest to smallest positive x above which the x axis is logarithmic


def draw(sweep: Sweep, rows: Sequence[Row], for_paper: bool = False) -> 'Figure':
  """Draws a panel for each measure, then one for each difference from the independent student.

  Shaded bands, or bars if x are names, are means ± one standard deviation over trials. The bars of a
  difference are its 95 % interval. A line below the panels says so, with the number of trials. Call it in
  `figures.style`.

  Args:
    for_paper: whether the figure is for a column of a paper. The caller sets text of PAPER_POINTS.
  """
  from matplotlib.ticker import MaxNLocator

  named = sweep_lib.is_categorical(sweep)
  differing = sweep_lib.has_difference(rows)
  panels = [(panel.label, i, _draw_measure) for i, panel in enumerate(sweep.panels)]
  panels += [
    (f'student − independent:\n{label.replace("(%)", "(points)")}', i, _draw_difference)
    for label, i, _ in panels
    if differing[i]
  ]
  num_rows = math.ceil(len(panels) / (PAPER_COLUMNS if for_paper else MAX_COLUMNS))
  num_columns = math.ceil(len(panels) / num_rows)
  scale = PAPER_SCALE if for_paper else 1
  width, height = _size_inches(sweep, num_rows, num_columns)
  figure = figures.blank((scale * width, scale * height))
  figure.get_layout_engine().set(w_pad=0.12 * scale)
  grid = figure.subplots(num_rows, num_columns, squeeze=False, sharex=not named, sharey=named)
  for axes in grid.flat[len(panels) :]:
    axes.remove()
  for letter, axes, (label, i, draw_panel) in zip(LETTERS, grid.flat, panels, strict=False):
    draw_panel(axes, sweep, rows, i)
    label = '\n'.join(_wrapped(line) for line in label.splitlines())
    if len(panels) > 1:
      axes.set_title(letter, loc='left', fontweight='bold', fontsize='medium')
    if named:
      axes.set_xlabel(label)
      axes.xaxis.set_major_locator(MaxNLocator(4))
      axes.tick_params(axis='y', which='both', length=0)
      axes.grid(axis='y', visible=False)
      axes.grid(axis='y', which='minor')  # between the names
    else:
      axes.set_ylabel(label)
      axes.tick_params(labelbottom=True)
      axes.set_xlabel(sweep.x_label)
    if not any(row.cells[i].count for row in rows):
      axes.set_title('no result yet', fontsize='medium')
  if named:
    _label_names(figure, grid[:, 0], sweep)
  else:
    _scale_x(grid[0, 0], sweep)
  _add_legend(figure, sweep, rows)
  if text := spread_text(sweep, rows):
    figure.supxlabel(text, wrap=True, size='small', x=0.01, ha='left')
  return figure


def spread_text(sweep: Sweep, rows: Sequence[Row]) -> str:
  """A sentence on the meaning of bands and bars and the number of trials; '' for fewer than two trials."""
  counts = sorted({cell.count for row in rows for cell in row.cells if cell.count})
  if not counts or counts[-1] < 2:
    return ''
  n = f'n = {counts[0]}' if len(counts) == 1 else f'n = {counts[0]} to {counts[-1]}'
  what = 'Bars' if sweep_lib.is_categorical(sweep) else 'Bands'
  text = f'{what}: mean ± one standard deviation over {n} trials.'
  if any(sweep_lib.has_difference(rows)):
    text += ' Student − independent: mean and 95 % interval over trials, paired.'
  return text


def has_paper(rows: Sequence[Row]) -> list[bool]:
  """Whether the paper gives a value for any point, for each panel."""
  columns = zip(*(row.cells for row in rows), strict=True)
  return [any(cell.paper_mean is not None for cell in cells) for cells in columns]


def x_text(x: float | str) -> str:
  return x if isinstance(x, str) else f'{x:.12g}'


def _draw_measure(axes: 'Axes', sweep: Sweep, rows: Sequence[Row], i: int) -> None:
  """Draws panel i: filled markers are measured, hollow ones the paper's, crosses the independent student's."""
  named = sweep_lib.is_categorical(sweep)
  for series, look in _looks(sweep).items():
    own = [row for row in rows if row.point.series == series]
    places = _places(sweep, series, own)
    known = list(zip(places, (row.cells[i] for row in own), strict=True))
    paper = [(x, Cell(cell.paper_mean, cell.paper_std)) for x, cell in known]
    independent = [(x, cell.independent or Cell()) for x, cell in known]
    papers = {**look, 'marker': PAPER_MARKER} if named else look
    _draw_series(axes, named, paper, _hollow(papers), PAPER_BARS, '--')
    _draw_series(axes, named, independent, _crossed(look), PAPER_BARS, ':')
    _draw_series(axes, named, known, _filled(look), BARS, '-')


def _draw_series(
  axes: 'Axes',
  named: bool,
  points: Sequence[tuple[float, Cell]],
  look: Mapping[str, Any],
  bars: Mapping[str, float],
  line: str,
) -> None:
  """Draws means ± std: markers with bars if x are names, else a line, with a band for measured values."""
  points = sorted(((x, cell) for x, cell in points if cell.mean is not None), key=lambda of: of[0])
  if not points:
    return
  places, cells = zip(*points, strict=True)
  means, stds = [cell.mean for cell in cells], [_length(cell.std) for cell in cells]
  if named:
    axes.errorbar(means, places, xerr=stds, **look, **bars, linestyle='none')
    return
  if line == '-' and len(places) > 1:
    low, high = ([m + sign * s for m, s in zip(means, stds, strict=True)] for sign in (-1, 1))
    axes.fill_between(places, low, high, color=look['color'], alpha=0.2, linewidth=0)
    stds = None
  axes.errorbar(places, means, yerr=stds, **look, **bars, linestyle=line)


def _draw_difference(axes: 'Axes', sweep: Sweep, rows: Sequence[Row], i: int) -> None:
  """Draws the differences of panel i with their 95 % intervals, and a line at 0."""
  from matplotlib.transforms import offset_copy

  named = sweep_lib.is_categorical(sweep)
  zero = axes.axvline if named else axes.axhline
  zero(0, color=figures.COLORS['ink'], linewidth=1)
  looks = _looks(sweep)
  for j, (series, look) in enumerate(looks.items()):
    own = [row for row in rows if row.point.series == series and row.cells[i].num_pairs]
    places = _places(sweep, series, own)
    differences = [row.cells[i].difference for row in own]
    means = [of.mean for of in differences]
    half = [of.high - of.mean for of in differences]  # NaN draws no bar
    bars = {**_filled(look), **BARS, 'linestyle': 'none'}
    if named:
      axes.errorbar(means, places, xerr=half, **bars)
    else:  # the series side by side
      shift = 6 * (j - (len(looks) - 1) / 2)
      moved = offset_copy(axes.transData, axes.figure, x=shift, units='points')
      axes.errorbar(places, means, yerr=half, transform=moved, **bars)
      reach = [0 if math.isnan(length) else length for length in half]
      for sign in (-1, 1):  # matplotlib's limits ignore points with a transform
        ends = [mean + sign * length for mean, length in zip(means, reach, strict=True)]
        axes.update_datalim(list(zip(places, ends, strict=True)))


def _places(sweep: Sweep, series: str, rows: Sequence[Row]) -> list[float]:
  """The places of points: x, or the number of the name's line, with one series below the other."""
  if not sweep_lib.is_categorical(sweep):
    return [row.point.x for row in rows]
  lines = sweep_lib.x_values(sweep)
  names = sweep_lib.series_names(sweep)
  offset = 0.7 * ((names.index(series) + 0.5) / len(names) - 0.5)
  return [lines.index(row.point.x) + offset for row in rows]


def _looks(sweep: Sweep) -> dict[str, dict[str, str]]:
  names = sweep_lib.series_names(sweep)
  return {
    name: {'color': color, 'marker': marker}
    for name, color, marker in zip(names, COLORS.values(), MARKERS, strict=False)
  }


def _filled(look: Mapping[str, str]) -> dict[str, Any]:
  return {**look, 'markersize': 5, 'zorder': 3}


def _hollow(look: Mapping[str, str]) -> dict[str, Any]:
  """A hollow marker, larger than a filled one, so equal values hide nothing."""
  edge = {'markerfacecolor': 'none', 'markersize': 9, 'markeredgewidth': 1.2}
  return {**look, **edge, 'alpha': 0.75, 'zorder': 2}


def _crossed(look: Mapping[str, str]) -> dict[str, Any]:
  return {**look, 'marker': 'x', 'markersize': 5, 'alpha': 0.75, 'zorder': 2}


def _length(std: float | None) -> float:
  return math.nan if std is None else std  # NaN draws no bar


def _size_inches(sweep: Sweep, num_rows: int, num_columns: int) -> tuple[float, float]:
  width, height = PANEL_INCHES
  if not sweep_lib.is_categorical(sweep):
    return width * num_columns, height * num_rows + 0.3
  names = sweep_lib.x_values(sweep)
  lines = max(MIN_LINES, len(names) * max(1, 0.6 * len(sweep_lib.series_names(sweep))))
  return (
    0.8 * width * num_columns + 0.09 * max(map(len, names)),
    max(2.4, 0.36 * lines * num_rows + 0.7 * num_rows + 0.5),
  )


def _wrapped(label: str) -> str:
  """A label in the fewest lines of at most LABEL_LETTERS, all of about the same length."""
  num_lines = len(textwrap.wrap(label, LABEL_LETTERS))
  for width in range(-(-len(label) // max(1, num_lines)), LABEL_LETTERS):
    if len(lines := textwrap.wrap(label, width, break_long_words=False)) == num_lines:
      return '\n'.join(lines)
  return textwrap.fill(label, LABEL_LETTERS)


def _label_names(figure: 'Figure', first_column: Sequence['Axes'], sweep: Sweep) -> None:
  names = sweep_lib.x_values(sweep)
  num_letters = int(10 * figure.get_figheight())  # as many as fit
  figure.supylabel(textwrap.fill(sweep.x_label, num_letters), size='medium')
  for axes in first_column:
    axes.set_yticks(range(len(names)), names)
    axes.set_yticks([j + 0.5 for j in range(len(names))], minor=True)
    axes.set_ylim(len(names) - 0.5, -0.5)


def _scale_x(axes: 'Axes', sweep: Sweep) -> None:
  """Sets a log scale if x spans more than a decade, and ticks at the sweep's x, with labels where they fit.

  All points of the sweep are in view, with or without results.
  """
  xs = sorted(sweep_lib.x_values(sweep))
  place, back = float, float
  if 0 < WIDE * xs[0] < xs[-1]:
    axes.set_xscale('log')
    place, back = math.log, math.exp
  span = place(xs[-1]) - place(xs[0])
  room = 0.04 + 0.03 * max(len(x_text(x)) for x in xs)  # of a label, as a fraction of the panel
  shown = xs[:1]
  for x in xs[1:]:
    if place(x) - place(shown[-1]) >= room * span:
      shown.append(x)
  axes.set_xticks(shown, [x_text(x) for x in shown])
  axes.set_xticks(xs, [''] * len(xs), minor=True)
  if span:
    axes.set_xlim(back(place(xs[0]) - MARGIN * span), back(place(xs[-1]) + MARGIN * span))


def _add_legend(figure: 'Figure', sweep: Sweep, rows: Sequence[Row]) -> None:
  """Adds the legend above the panels, where it hides nothing."""
  from matplotlib.lines import Line2D

  named = sweep_lib.is_categorical(sweep)
  looks = _looks(sweep)
  handles = [
    Line2D([], [], **_filled(look), linestyle='none' if named else '-', label=series or 'measured')
    for series, look in looks.items()
  ]
  ink = {'color': figures.COLORS['ink'], 'marker': PAPER_MARKER if named else MARKERS[0]}
  for label, is_there, look, line in (
    ('paper', any(has_paper(rows)), _hollow(ink), '--'),
    ('independent student', any(sweep_lib.has_difference(rows)), _crossed(ink), ':'),
  ):
    if is_there:
      handles.append(Line2D([], [], **look, linestyle='none' if named else line, label=label))
  if len(handles) == 1 and list(looks) == ['']:
    return
  widest = max(len(handle.get_label()) for handle in handles)
  num_columns = max(1, int(figure.get_figwidth() / (0.7 + 0.09 * widest)))
  figure.legend(handles=handles, loc='outside upper left', ncols=min(len(handles), num_columns))
