"""A sweep's results in; its figure, tables and page out, beside the paper's values.

The same input gives the same bytes.
"""

import csv
import io
import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import jinja2
from etils import epath
from rich import box
from rich.table import Table
from rich.text import Text

from kdjax.config import sweep as sweep_lib
from kdjax.config.sweep import Cell, Panel, Row, Sweep, SweepRun
from kdjax.report import figures, formats, sweep_figure
from kdjax.report.formats import NOTHING
from kdjax.report.sweep_figure import x_text
from kdjax.runtime import files

if TYPE_CHECKING:
  from matplotlib.figure import Figure

Results = Mapping[int, Mapping[str, Any]]  # the content of result.json by index of the run

TEMPLATE = 'sweep.html.j2'
DOTS_PER_INCH = 200
INDEPENDENT = 'independent student'  # heading of its column
DIFFERENCE_HEADINGS = ('difference', '95 % interval', 'verdict', 'n')
CSV_HEADINGS = (
  *('series', 'x', 'measure', 'label', 'mean', 'std', 'count', 'paper_mean', 'paper_std'),
  *('independent_mean', 'independent_std'),
  *('difference', 'difference_low', 'difference_high', 'num_pairs', 'verdict'),
)


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
    figure = sweep_figure.draw(sweep, rows)
    contents = {
      'png': _bytes(figure, 'png', dpi=DOTS_PER_INCH, metadata={'Software': None}),
      'pdf': _bytes(figure, 'pdf', metadata=dict.fromkeys(('Creator', 'Producer', 'CreationDate'))),
      'csv': _csv(sweep, rows).encode(),
    }
    colors = {'ink': figures.COLORS['ink'], **sweep_figure.COLORS}
    svg = figures.svg(figure, sweep.title, colors)
  contents['html'] = _html(sweep, rows, svg, command).encode()
  paths = []
  for suffix, content in contents.items():
    path = folder / f'{name}.{suffix}'
    files.write_bytes(path, content)
    paths.append(path)
  return paths


def _bytes(figure: 'Figure', kind: str, **options: Any) -> bytes:
  buffer = io.BytesIO()
  figure.savefig(buffer, format=kind, facecolor='white', **options)
  return buffer.getvalue()


# Columns: heading, and the text of a row's cell.
Column = tuple[str, Callable[[Row], str]]


def _columns(sweep: Sweep, i: int, paper: bool, independent: bool) -> list[Column]:
  """Columns of panel i: mean ± standard deviation, and those of the independent student and the paper."""
  panel = sweep.panels[i]
  columns = [(panel.label, lambda row: _plus_minus(panel, row.cells[i]))]
  if independent:
    columns.append(
      (INDEPENDENT, lambda row: _plus_minus(panel, row.cells[i].independent or Cell()))
    )
  if paper:
    columns.append(('paper', lambda row: _of_paper(row.cells[i])))
  return columns


def _all_columns(sweep: Sweep, rows: Sequence[Row]) -> list[Column]:
  there = zip(sweep_figure.has_paper(rows), sweep_lib.has_difference(rows), strict=True)
  columns = [
    column
    for i, (paper, independent) in enumerate(there)
    for column in _columns(sweep, i, paper, independent)
  ]
  return [*columns, ('trials', lambda row: _trials(sweep, row))]


def _differences(
  sweep: Sweep, rows: Sequence[Row]
) -> list[tuple[str, list[tuple[Row, list[str]]]]]:
  """For each measure of fidelity: its label, and rows with cells of DIFFERENCE_HEADINGS."""
  there = sweep_lib.has_difference(rows)
  return [
    (
      panel.label.replace('(%)', '(points)'),
      [(row, _difference_cells(panel, row.cells[i])) for row in rows if row.cells[i].num_pairs],
    )
    for i, panel in enumerate(sweep.panels)
    if there[i]
  ]


def _difference_cells(panel: Panel, cell: Cell) -> list[str]:
  of, percent = cell.difference, panel.scale == 100
  ends = None if math.isnan(of.low) else [of.low, of.high]
  return [
    formats.number(of.mean, percent, sign=True),
    formats.interval(ends, percent, sign=True),
    of.verdict,
    str(cell.num_pairs),
  ]


def _plus_minus(panel: Panel, cell: Cell) -> str:
  percent = panel.scale == 100
  text = formats.number(cell.mean, percent)
  return text if cell.std is None else f'{text} ± {formats.number(cell.std, percent)}'


def _of_paper(cell: Cell) -> str:
  if cell.paper_mean is None:
    return NOTHING
  text = f'{cell.paper_mean:g}'
  return text if cell.paper_std is None else f'{text} ± {cell.paper_std:g}'


def _trials(sweep: Sweep, row: Row) -> str:
  count = sweep.trials - len(row.missing)
  return f'{count} of {sweep.trials}' if row.missing else str(count)


# The terminal.


def terminal_tables(sweep: Sweep, results: Results) -> list[Table]:
  """For every measure a table with the paper's values beside, and one of its difference from the independent
  student's, if there is one; each within 80 columns.
  """
  rows = sweep_lib.summarise(sweep, results)
  there = zip(sweep_figure.has_paper(rows), sweep_lib.has_difference(rows), strict=True)
  tables = []
  for i, (paper, independent) in enumerate(there):
    columns = [*_columns(sweep, i, paper, independent), ('trials', lambda row: _trials(sweep, row))]
    table = _table(sweep, f'{sweep.title}: {sweep.panels[i].label}', [name for name, _ in columns])
    for row in rows:
      table.add_row(_name(row), *[text(row) for _, text in columns])
    tables.append(table)
  for label, own in _differences(sweep, rows):
    title = f'student − independent student: {label}'
    table = _table(sweep, title, DIFFERENCE_HEADINGS)
    for row, cells in own:
      table.add_row(_name(row), *cells)
    tables.append(table)
  return tables


def _table(sweep: Sweep, title: str, headings: Sequence[str]) -> Table:
  table = Table(box=box.SIMPLE, title=Text(title, 'bold'), title_justify='left')
  table.add_column(sweep.x_label, max_width=24)
  for heading in headings:
    table.add_column(heading, justify='right', no_wrap=True)
  return table


# Files.


def _csv(sweep: Sweep, rows: Sequence[Row]) -> str:
  """A line for each point and measure, in the unit of the measure's label.

  'difference' and its 95 % interval are of the student minus the independent student, over 'num_pairs'
  trials.
  """
  buffer = io.StringIO()
  writer = csv.writer(buffer, lineterminator='\n')
  writer.writerow(CSV_HEADINGS)
  for row in rows:
    for panel, cell in zip(sweep.panels, row.cells, strict=True):
      independent, of = cell.independent or Cell(), cell.difference
      difference = [None] * 5
      if of is not None:
        ends = [None if math.isnan(end) else end for end in (of.low, of.high)]
        difference = [of.mean, *ends, cell.num_pairs, of.verdict]
      point = [row.point.series, row.point.x, panel.measure, panel.label]
      measured = [cell.mean, cell.std, cell.count, cell.paper_mean, cell.paper_std]
      writer.writerow([*point, *measured, independent.mean, independent.std, *difference])
  return buffer.getvalue()


def _html(sweep: Sweep, rows: Sequence[Row], svg: str, command: Callable[[SweepRun], str]) -> str:
  columns = _all_columns(sweep, rows)
  missing = sorted((run for row in rows for run in row.missing), key=lambda run: run.index)
  environment = jinja2.Environment(
    loader=jinja2.PackageLoader('kdjax', 'report'),
    autoescape=True,
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
  )
  of_series = {
    series: [
      (x_text(row.point.x), [text(row) for _, text in columns])
      for row in rows
      if row.point.series == series
    ]
    for series in sweep_lib.series_names(sweep)
  }
  of_differences = {
    label: [(_name(row), cells) for row, cells in own] for label, own in _differences(sweep, rows)
  }
  return environment.get_template(TEMPLATE).render(
    sweep=sweep,
    svg=svg,
    headings=[heading for heading, _ in columns],
    groups=of_series,
    difference_headings=DIFFERENCE_HEADINGS,
    differences=of_differences,
    num_runs=len(rows) * sweep.trials,
    missing=[(run, command(run)) for run in missing],
    has_paper=any(sweep_figure.has_paper(rows)),
    named=sweep_lib.is_categorical(sweep),
  )


def _name(row: Row) -> str:
  """'m = 1, 4' of a point."""
  return ', '.join(filter(None, (row.point.series, x_text(row.point.x))))
