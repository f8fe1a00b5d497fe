"""Writes the figure, tables, claims and page of a sweep, with the paper's values beside the measured ones.

The same input gives the same bytes.
"""

import collections
import csv
import dataclasses
import io
import math
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from etils import epath
from rich import box
from rich.table import Table
from rich.text import Text

from kdjax.config import claims as claims_lib
from kdjax.config import sweep as sweep_lib
from kdjax.config.sweep import Cell, Panel, Row, Sweep, SweepRun
from kdjax.report import figures, formats, page, rendering, sweep_figure
from kdjax.report.formats import NOTHING
from kdjax.report.sweep_figure import x_text
from kdjax.runtime import files

if TYPE_CHECKING:
  from matplotlib.figure import Figure

Results = Mapping[int, Mapping[str, Any]]  # the content of result.json by index of the run

TEMPLATE = 'sweep.html.j2'
KINDS = ('png', 'pdf', 'csv', 'json', 'html')  # the files of a sweep, NAME.KIND
INDEPENDENT = 'independent student'  # heading of its column
DIFFERENCE_HEADINGS = ('difference', '95 % interval', 'verdict', 'n')
CLAIM_HEADINGS = ('effect', '95 % interval', 'paper', 'n', 'verdict')


def write(
  folder: epath.Path,
  name: str,
  sweep: Sweep,
  results: Results,
  command: Callable[[SweepRun], str],
  notes: Mapping[int, Mapping[str, Any]] = MappingProxyType({}),
  kinds: Sequence[str] = KINDS,
) -> list[epath.Path]:
  """Writes the results of a sweep.

  - NAME.png: the figure. NAME.pdf: the same for a paper, 5.2 inches wide with 8 pt text.
  - NAME.csv: a row for each finished run; see `_csv`.
  - NAME.json: the summary of each point and the verdicts on the claims; see `summary`.
  - NAME.html: a self-contained page of figure, values and claims. It links to the pages of the students in
    the folder.

  Args:
    folder: where to write; it is created.
    sweep: a sweep without `sweep.problems`.
    results: the content of result.json by index of the run. Any run can be missing.
    command: the shell command of a run, for the page and the csv.
    notes: {index of the run: {column: value}} of more columns of the csv.
    kinds: the files to write, of KINDS.

  Returns: the paths of the files.
  """
  rows = sweep_lib.summarise(sweep, results)
  with figures.style(sweep.title):
    figure = sweep_figure.draw(sweep, rows)
    content = {
      'png': lambda: figures.image(figure, 'png'),
      'pdf': lambda: _paper_pdf(sweep, rows),
      'csv': lambda: _csv(sweep, results, command, notes).encode(),
      'json': lambda: files.json_text(summary(sweep, results)).encode(),
      'html': lambda: _html(
        sweep, rows, results, figure, command, _pages(folder, results)
      ).encode(),
    }
    contents = {folder / f'{name}.{kind}': content[kind]() for kind in kinds}
  for path, made in contents.items():
    files.write_bytes(path, made)
  return list(contents)


def _paper_pdf(sweep: Sweep, rows: Sequence[Row]) -> bytes:
  import matplotlib.style

  with matplotlib.style.context({'font.size': sweep_figure.PAPER_POINTS}):
    return figures.image(sweep_figure.draw(sweep, rows, for_paper=True), 'pdf')


# Columns: heading, and the text of a row's cell.
Column = tuple[str, Callable[[Row], str]]


def _columns(sweep: Sweep, rows: Sequence[Row], panels: Sequence[int]) -> list[Column]:
  """Columns of panels: mean ± standard deviation, of the independent student and the paper, too; then trials."""
  has_paper, has_difference = sweep_figure.has_paper(rows), sweep_lib.has_difference(rows)
  columns: list[Column] = []
  for i in panels:
    panel = sweep.panels[i]
    columns.append((panel.label, lambda row, p=panel, i=i: _plus_minus(p, row.cells[i])))
    if has_difference[i]:
      columns.append(
        (INDEPENDENT, lambda row, p=panel, i=i: _plus_minus(p, row.cells[i].independent or Cell()))
      )
    if has_paper[i]:
      columns.append(('paper', lambda row, i=i: _of_paper(row.cells[i])))
  return [*columns, ('trials', lambda row: _trials(sweep, row))]


def _differences(sweep: Sweep, rows: Sequence[Row]) -> dict[str, list[tuple[Row, list[str]]]]:
  """{label: rows with cells of DIFFERENCE_HEADINGS} of each measure of fidelity."""
  found = {
    panel.label.replace('(%)', '(points)'): [
      (row, _difference_cells(panel, row.cells[i])) for row in rows if row.cells[i].num_pairs
    ]
    for i, panel in enumerate(sweep.panels)
  }
  return {label: own for label, own in found.items() if own}


def _claims(sweep: Sweep, results: Results) -> list[dict[str, Any]]:
  """The claims with their findings, as NAME.json has them."""
  return [
    dataclasses.asdict(of.claim)
    | {'label': of.panel.label, 'scale': of.panel.scale}
    | {'effect': of.effect and _known(of.effect), 'n': of.count, 'verdict': of.verdict}
    | {'num_needed': of.num_needed}
    for of in claims_lib.findings(sweep, results)
  ]


def claim_cells(claim: Mapping[str, Any]) -> list[str]:
  """Cells of CLAIM_HEADINGS for a claim of NAME.json. Effects on percentages are in points.

  A verdict 'not decided (n = 7)' says that 7 trials would decide the claim.
  """
  percent, effect = claim['scale'] == 100, claim['effect'] or {'mean': None, 'low': None}
  ends = None if effect['low'] is None else [effect['low'], effect['high']]
  verdict = claim['verdict']
  if claim['num_needed'] is not None:
    verdict = f'{verdict} (n = {claim["num_needed"]})'
  mean = formats.number(effect['mean'], percent, sign=True)
  paper = NOTHING if claim['paper'] is None else f'{claim["paper"]:+g}'.replace('-', '−')
  return [mean, formats.interval(ends, percent, sign=True), paper, str(claim['n']), verdict]


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
  """Tables for the terminal, each within 80 columns.

  A table for each measure with the paper's values, one for each difference from the independent student,
  and one of the claims.
  """
  rows = sweep_lib.summarise(sweep, results)
  tables = []
  for i, panel in enumerate(sweep.panels):
    columns = _columns(sweep, rows, [i])
    headings = [name for name, _ in columns]
    table = _table(sweep.x_label, f'{sweep.title}: {panel.label}', headings)
    for row in rows:
      table.add_row(_name(row), *[text(row) for _, text in columns])
    tables.append(table)
  for label, own in _differences(sweep, rows).items():
    title = f'student − independent student: {label}'
    table = _table(sweep.x_label, title, DIFFERENCE_HEADINGS)
    for row, cells in own:
      table.add_row(_name(row), *cells)
    tables.append(table)
  if sweep.claims:
    headings = ['effect (95 % interval), paper, n, verdict']
    table = _table('claim', f'{sweep.title}: claims', headings, width=38)
    for claim in _claims(sweep, results):
      effect, interval, paper, count, verdict = claim_cells(claim)
      table.add_row(claim['text'], f'{effect} ({interval})\npaper {paper}, n = {count}\n{verdict}')
    tables.append(table)
  return tables


def _table(first: str, title: str, headings: Sequence[str], width: int = 24) -> Table:
  table = Table(box=box.SIMPLE, title=Text(title, 'bold'), title_justify='left')
  table.add_column(first, max_width=width)
  for heading in headings:
    table.add_column(heading, justify='right', no_wrap=True)
  return table


# Files.


def _csv(
  sweep: Sweep,
  results: Results,
  command: Callable[[SweepRun], str],
  notes: Mapping[int, Mapping[str, Any]],
) -> str:
  """A row for each finished run: its seeds, measures, fingerprints, notes and command.

  Measures are in the unit of result.json: agreement and accuracy are fractions.
  """
  measures = []
  for panel in sweep.panels:
    measures += filter(None, (panel.measure, sweep_lib.independent_measure(panel.measure)))
  runs = [run for run in sweep_lib.expand(sweep) if run.index in results]
  seeds = list(sweep_lib.added_fields(sweep, 0))
  known = list(dict.fromkeys(name for index in notes for name in notes[index]))
  prints = ('teacher', 'predictions', 'student')
  buffer = io.StringIO()
  writer = csv.writer(buffer, lineterminator='\n')
  headings = [f'fingerprint.{name}' for name in prints]
  writer.writerow(['run', 'series', 'x', 'trial', *seeds, *measures, *headings, *known, 'command'])
  for run in runs:
    result = results[run.index]
    row = [run.index, run.point.series, run.point.x, run.trial, *(run.fields[s] for s in seeds)]
    row += [sweep_lib.look_up(result, measure) for measure in measures]
    row += [sweep_lib.look_up(result, f'fingerprints.{name}') for name in prints]
    row += [notes.get(run.index, {}).get(name) for name in known]
    writer.writerow([*row, command(run)])
  return buffer.getvalue()


def summary(sweep: Sweep, results: Results) -> dict[str, Any]:
  """The content of NAME.json: all measures of all points, and the findings, in the units of the labels.

  'difference' is student minus independent student with its 95 % interval.
  """
  rows = sweep_lib.summarise(sweep, results)
  points = [
    {
      'series': row.point.series,
      'x': row.point.x,
      'measure': panel.measure,
      'label': panel.label,
      **_known(cell),
    }
    for row in rows
    for panel, cell in zip(sweep.panels, row.cells, strict=True)
  ]
  return {
    'title': sweep.title,
    'num_runs': len(rows) * sweep.trials,
    'num_finished': len(rows) * sweep.trials - sum(len(row.missing) for row in rows),
    'points': points,
    'claims': _claims(sweep, results),
  }


def _known(values: Any) -> Any:
  """A dataclass as a dict for JSON, with None in place of NaN."""
  if dataclasses.is_dataclass(values):
    return {name: _known(value) for name, value in vars(values).items()}
  return None if isinstance(values, float) and math.isnan(values) else values


def _pages(folder: epath.Path, results: Results) -> dict[int, str]:
  """Links from the folder to the students' pages, by index of the run."""
  found = {}
  for index, result in results.items():
    path = f'students/{sweep_lib.look_up(result, "fingerprints.student")}/{page.NAME}'
    if (folder / path).exists():
      found[index] = path
  return found


def _html(
  sweep: Sweep,
  rows: Sequence[Row],
  results: Results,
  figure: 'Figure',
  command: Callable[[SweepRun], str],
  pages: Mapping[int, str],
) -> str:
  columns = _columns(sweep, rows, range(len(sweep.panels)))
  colors = {'ink': figures.COLORS['ink'], **sweep_figure.COLORS}
  missing = sorted((run for row in rows for run in row.missing), key=lambda run: run.index)
  links = collections.defaultdict(list)
  for run in sweep_lib.expand(sweep):
    if run.index in pages:
      text = f'trial {run.trial}' if sweep.trials > 1 else 'report'
      links[run.point.key].append((text, pages[run.index]))
  of_series = {
    series: [
      (x_text(row.point.x), [text(row) for _, text in columns], links[row.point.key])
      for row in rows
      if row.point.series == series
    ]
    for series in sweep_lib.series_names(sweep)
  }
  of_differences = {
    label: [(_name(row), cells, ()) for row, cells in own]
    for label, own in _differences(sweep, rows).items()
  }
  of_claims = [(claim['text'], claim_cells(claim), ()) for claim in _claims(sweep, results)]
  return rendering.render(
    TEMPLATE,
    sweep=sweep,
    svg=figures.svg(figure, sweep.title, colors),
    headings=[heading for heading, _ in columns],
    groups=of_series,
    has_pages=bool(pages),
    difference_headings=DIFFERENCE_HEADINGS,
    differences=of_differences,
    claim_headings=CLAIM_HEADINGS,
    claims={'': of_claims} if of_claims else {},
    num_runs=len(rows) * sweep.trials,
    missing=[(run, command(run)) for run in missing],
    has_paper=any(sweep_figure.has_paper(rows)),
    named=sweep_lib.is_categorical(sweep),
  )


def _name(row: Row) -> str:
  """The series and x of a point, such as 'm = 1, 4'."""
  return ', '.join(filter(None, (row.point.series, x_text(row.point.x))))
