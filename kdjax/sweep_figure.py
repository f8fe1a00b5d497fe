"""A sweep's results in; its figure, table and page out, beside the paper's values.

matplotlib is imported when a figure is drawn. The same input gives the same bytes.
"""

import csv
import functools
import io
import math
import textwrap
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import jinja2
from etils import epath
from rich import box
from rich.table import Table

from kdjax import figures, files
from kdjax import sweep as sweep_lib
from kdjax.sweep import Cell, Panel, Row, Sweep, SweepRun

if TYPE_CHECKING:
  from matplotlib.axes import Axes
  from matplotlib.figure import Figure

Results = Mapping[int, Mapping[str, Any]]  # the content of result.json by index of the run

TEMPLATE = 'sweep.html.j2'
NOTHING = '–'  # in the place of a value that is not there

# By series: colours of Okabe & Ito, which any colour vision can tell apart, by the page's names of
# them, and markers, which tell them apart in print.
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

MAX_COLUMNS = 3  # of panels side by side
PANEL_INCHES = (3.7, 3.1)
DOTS_PER_INCH = 200
WIDE = 12  # positive x whose largest is more than this many times the smallest get a log scale


def write(
  folder: epath.Path,
  name: str,
  sweep: Sweep,
  results: Results,
  command: Callable[[SweepRun], str] = sweep_lib.command,
) -> list[epath.Path]:
  """Writes NAME.png, NAME.pdf, NAME.csv and NAME.html, a self-contained page of all three.

  Args:
    folder: where; it is made if it is not there.
    sweep: one in which `sweep.problems` finds nothing.
    results: the content of result.json by index of the run. Any can be missing.
    command: what runs a missing run, as text for the page.

  Returns: the paths of the files.
  """
  rows = sweep_lib.summarise(sweep, results)
  with figures.style(sweep.title):
    figure = _draw(sweep, rows)
    contents = {
      'png': _bytes(figure, 'png', dpi=DOTS_PER_INCH, metadata={'Software': None}),
      'pdf': _bytes(figure, 'pdf', metadata=dict.fromkeys(('Creator', 'Producer', 'CreationDate'))),
      'csv': _csv(sweep, rows).encode(),
    }
    svg = figures.svg(figure, sweep.title, {'ink': figures.COLORS['ink'], **COLORS})
  contents['html'] = _html(sweep, rows, svg, command).encode()
  paths = []
  for suffix, content in contents.items():
    path = folder / f'{name}.{suffix}'
    files.write_bytes(path, content)
    paths.append(path)
  return paths


def terminal_table(sweep: Sweep, results: Results) -> Table:
  """Mean ± standard deviation of every measure at every point, with the paper's beside.

  Many measures stand one below the other, so that they fit into 80 columns.
  """
  rows = sweep_lib.summarise(sweep, results)
  has_paper = _has_paper(rows)
  if len(sweep.panels) > MAX_COLUMNS:
    return _long_table(sweep, rows, any(has_paper))
  table = Table(box=box.SIMPLE, title=sweep.title)
  if any(sweep_lib.series_names(sweep)):
    table.add_column('')
  table.add_column(sweep.x_label)
  for panel, paper in zip(sweep.panels, has_paper, strict=True):
    table.add_column(panel.label, justify='right')
    if paper:
      table.add_column('paper', justify='right')
  table.add_column('trials', justify='right')
  previous = None
  for row in rows:
    if previous is not None and row.point.series != previous:
      table.add_section()
    cells = [_x_text(row.point.x), *_texts(sweep, row, has_paper), _trials(sweep, row)]
    if any(sweep_lib.series_names(sweep)):
      cells.insert(0, '' if row.point.series == previous else row.point.series)
    table.add_row(*cells)
    previous = row.point.series
  return table


def _long_table(sweep: Sweep, rows: Sequence[Row], has_paper: bool) -> Table:
  table = Table(box=box.SIMPLE, title=sweep.title)
  for heading in ('', sweep.x_label, 'measured', *['paper'] * has_paper, 'trials'):
    table.add_column(heading, justify='left' if heading in ('', sweep.x_label) else 'right')
  for i, panel in enumerate(sweep.panels):
    table.add_section()
    table.add_row(panel.label, style='bold')
    for row in rows:
      texts = _texts(sweep, row, [has_paper] * len(sweep.panels))
      width = 1 + has_paper
      measured = texts[i * width : (i + 1) * width]
      table.add_row(f'  {row.point.series}', _x_text(row.point.x), *measured, _trials(sweep, row))
  return table


# The figure.


def _draw(sweep: Sweep, rows: Sequence[Row]) -> 'Figure':
  """One panel for each measure. To be called in `figures.style`."""
  from matplotlib.ticker import MaxNLocator

  named = sweep_lib.is_categorical(sweep)
  num_panels = len(sweep.panels)
  num_rows = math.ceil(num_panels / MAX_COLUMNS)
  num_columns = math.ceil(num_panels / num_rows)
  figure = figures.blank(_size_inches(sweep, num_rows, num_columns))
  figure.get_layout_engine().set(w_pad=0.12)
  grid = figure.subplots(num_rows, num_columns, squeeze=False, sharex=not named, sharey=named)
  for i, axes in enumerate(grid.flat):
    if i >= num_panels:
      axes.remove()
      continue
    panel = sweep.panels[i]
    draw = _draw_names if named else _draw_numbers
    draw(axes, sweep, rows, i)
    if named:
      axes.set_xlabel(panel.label)
      axes.xaxis.set_major_locator(MaxNLocator(4))
      axes.tick_params(axis='y', which='both', length=0)
      axes.grid(axis='y', visible=False)
      axes.grid(axis='y', which='minor')  # between the names
    else:
      axes.set_ylabel(panel.label)
      axes.tick_params(labelbottom=True)
      axes.set_xlabel(sweep.x_label)
    if not any(row.cells[i].count for row in rows):
      axes.set_title('no result yet', fontsize='medium', loc='left')
  if named:
    _label_names(figure, grid[:, 0], sweep)
  else:
    _scale_x(grid[0, 0], sweep)
  _add_legend(figure, sweep, rows)
  return figure


def _draw_numbers(axes: 'Axes', sweep: Sweep, rows: Sequence[Row], i: int) -> None:
  """Panel i: a line for each series and, dashed with hollow markers, for the paper's."""
  for series, look in _looks(sweep).items():
    own = sorted((row for row in rows if row.point.series == series), key=lambda row: row.point.x)
    measured = [(row.point.x, row.cells[i]) for row in own if row.cells[i].count]
    paper = [(row.point.x, row.cells[i]) for row in own if row.cells[i].paper_mean is not None]
    if paper:
      xs, cells = zip(*paper, strict=True)
      axes.errorbar(xs, **_paper_y(cells), **_hollow(look), **PAPER_BARS, linestyle='--')
    if measured:
      xs, cells = zip(*measured, strict=True)
      axes.errorbar(xs, **_measured_y(cells), **_filled(look), **BARS, linestyle='-')


def _draw_names(axes: 'Axes', sweep: Sweep, rows: Sequence[Row], i: int) -> None:
  """Panel i: a line of the panel for each x, from above, in it a dot for each series."""
  place = {x: j for j, x in enumerate(sweep_lib.x_values(sweep))}
  looks = _looks(sweep)
  for j, (series, look) in enumerate(looks.items()):
    offset = 0.7 * ((j + 0.5) / len(looks) - 0.5)
    for row in rows:
      cell, y = row.cells[i], [place[row.point.x] + offset]
      if row.point.series != series:
        continue
      if cell.paper_mean is not None:
        hollow = _hollow({**look, 'marker': PAPER_MARKER})
        axes.errorbar(
          y=y, **_horizontal(_paper_y([cell])), **hollow, **PAPER_BARS, linestyle='none'
        )
      if cell.count:
        axes.errorbar(
          y=y, **_horizontal(_measured_y([cell])), **_filled(look), **BARS, linestyle='none'
        )


def _looks(sweep: Sweep) -> dict[str, dict[str, str]]:
  names = sweep_lib.series_names(sweep)
  return {
    name: {'color': color, 'marker': marker}
    for name, color, marker in zip(names, COLORS.values(), MARKERS, strict=False)
  }


def _filled(look: Mapping[str, str]) -> dict[str, Any]:
  return {**look, 'markersize': 5, 'zorder': 3}


def _hollow(look: Mapping[str, str]) -> dict[str, Any]:
  """Larger than a filled marker, so that a value that is the paper's hides nothing."""
  edge = {'markerfacecolor': 'none', 'markersize': 9, 'markeredgewidth': 1.2}
  return {**look, **edge, 'alpha': 0.75, 'zorder': 2}


def _measured_y(cells: Sequence[Cell]) -> dict[str, list[float]]:
  return {'y': [cell.mean for cell in cells], 'yerr': [_length(cell.std) for cell in cells]}


def _paper_y(cells: Sequence[Cell]) -> dict[str, list[float]]:
  return {
    'y': [cell.paper_mean for cell in cells],
    'yerr': [_length(cell.paper_std) for cell in cells],
  }


def _length(std: float | None) -> float:
  return math.nan if std is None else std  # draws no bar


def _horizontal(vertical: Mapping[str, list[float]]) -> dict[str, list[float]]:
  return {'x': vertical['y'], 'xerr': vertical['yerr']}


def _size_inches(sweep: Sweep, num_rows: int, num_columns: int) -> tuple[float, float]:
  width, height = PANEL_INCHES
  if not sweep_lib.is_categorical(sweep):
    return width * num_columns, height * num_rows + 0.3
  names = sweep_lib.x_values(sweep)
  lines = len(names) * max(1, 0.6 * len(sweep_lib.series_names(sweep)))
  return (
    0.8 * width * num_columns + 0.09 * max(map(len, names)),
    max(2.4, 0.36 * lines * num_rows + 0.7 * num_rows + 0.5),
  )


def _label_names(figure: 'Figure', first_column: Sequence['Axes'], sweep: Sweep) -> None:
  names = sweep_lib.x_values(sweep)
  num_letters = int(10 * figure.get_figheight())  # as many as there is room for, once
  figure.supylabel(textwrap.fill(sweep.x_label, num_letters), size='medium')
  for axes in first_column:
    axes.set_yticks(range(len(names)), names)
    axes.set_yticks([j + 0.5 for j in range(len(names))], minor=True)
    axes.set_ylim(len(names) - 0.5, -0.5)


def _scale_x(axes: 'Axes', sweep: Sweep) -> None:
  """A log scale for x that span more than a decade; labels at the sweep's own x, if they fit."""
  from matplotlib.ticker import NullLocator

  xs = sorted(sweep_lib.x_values(sweep))
  place = float
  if 0 < WIDE * xs[0] < xs[-1]:
    axes.set_xscale('log')
    axes.xaxis.set_minor_locator(NullLocator())
    place = math.log
  span = place(xs[-1]) - place(xs[0])
  room = 0.04 + 0.03 * max(len(_x_text(x)) for x in xs)  # of a label, in widths of the panel
  shown = xs[:1]
  for x in xs[1:]:
    if place(x) - place(shown[-1]) >= room * span:
      shown.append(x)
  axes.set_xticks(shown, [_x_text(x) for x in shown])


def _add_legend(figure: 'Figure', sweep: Sweep, rows: Sequence[Row]) -> None:
  """Above the panels, where it hides nothing."""
  from matplotlib.lines import Line2D

  named = sweep_lib.is_categorical(sweep)
  looks = _looks(sweep)
  handles = [
    Line2D([], [], **_filled(look), linestyle='none' if named else '-', label=series or 'measured')
    for series, look in looks.items()
  ]
  if any(_has_paper(rows)):
    look = _hollow(
      {'color': figures.COLORS['ink'], 'marker': PAPER_MARKER if named else MARKERS[0]}
    )
    handles.append(Line2D([], [], **look, linestyle='none' if named else '--', label='paper'))
  if len(handles) == 1 and list(looks) == ['']:
    return
  widest = max(len(handle.get_label()) for handle in handles)
  num_columns = max(1, int(figure.get_figwidth() / (0.7 + 0.09 * widest)))
  figure.legend(handles=handles, loc='outside upper left', ncols=min(len(handles), num_columns))


def _bytes(figure: 'Figure', kind: str, **options: Any) -> bytes:
  buffer = io.BytesIO()
  figure.savefig(buffer, format=kind, facecolor='white', **options)
  return buffer.getvalue()


# The tables.


def _has_paper(rows: Sequence[Row]) -> list[bool]:
  """For each panel, whether the paper gives a value for any point."""
  columns = zip(*(row.cells for row in rows), strict=True)
  return [any(cell.paper_mean is not None for cell in cells) for cells in columns]


def _texts(sweep: Sweep, row: Row, has_paper: Sequence[bool]) -> list[str]:
  """The cells of a row of a table: measured and, where the column is there, the paper's."""
  texts = []
  for panel, cell, paper in zip(sweep.panels, row.cells, has_paper, strict=True):
    digits = functools.partial(_with_digits, panel)
    texts.append(_plus_minus(cell.mean, cell.std, digits))
    if paper:
      texts.append(_plus_minus(cell.paper_mean, cell.paper_std, '{:g}'.format))
  return texts


def _plus_minus(mean: float | None, std: float | None, text: Callable[[float], str]) -> str:
  if mean is None:
    return NOTHING
  return text(mean) if std is None else f'{text(mean)} ± {text(std)}'


def _with_digits(panel: Panel, value: float) -> str:
  return f'{value:.2f}' if panel.scale == 100 else f'{value:.4f}'


def _x_text(x: float | str) -> str:
  return x if isinstance(x, str) else f'{x:.12g}'


def _trials(sweep: Sweep, row: Row) -> str:
  count = sweep.trials - len(row.missing)
  return f'{count} of {sweep.trials}' if row.missing else str(count)


def _csv(sweep: Sweep, rows: Sequence[Row]) -> str:
  """A line for each point and measure, in the unit of the measure's label."""
  buffer = io.StringIO()
  writer = csv.writer(buffer, lineterminator='\n')
  values = ('mean', 'std', 'count', 'paper_mean', 'paper_std')
  writer.writerow(['series', 'x', 'measure', 'label', *values])
  for row in rows:
    for panel, cell in zip(sweep.panels, row.cells, strict=True):
      writer.writerow(
        [row.point.series, row.point.x, panel.measure, panel.label]
        + [getattr(cell, value) for value in values]
      )
  return buffer.getvalue()


def _html(sweep: Sweep, rows: Sequence[Row], svg: str, command: Callable[[SweepRun], str]) -> str:
  has_paper = _has_paper(rows)
  missing = sorted((run for row in rows for run in row.missing), key=lambda run: run.index)
  groups = [
    (series, [row for row in rows if row.point.series == series])
    for series in sweep_lib.series_names(sweep)
  ]
  environment = jinja2.Environment(
    loader=jinja2.PackageLoader('kdjax', ''),
    autoescape=True,
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
  )
  return environment.get_template(TEMPLATE).render(
    sweep=sweep,
    svg=svg,
    headings=list(zip(sweep.panels, has_paper, strict=True)),
    groups=[
      (
        series,
        [
          (_x_text(row.point.x), [*_texts(sweep, row, has_paper), _trials(sweep, row)])
          for row in own
        ],
      )
      for series, own in groups
    ],
    num_runs=len(rows) * sweep.trials,
    missing=[(run, command(run)) for run in missing],
    has_paper=any(has_paper),
  )
