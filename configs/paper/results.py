"""Keeps the results of sweeps in docs/results/, and writes the tables of the documentation from them.

    python -m configs.paper.results --config=configs/paper/fig6b_lambda.py:small --workdir=DIR
    python -m configs.paper.results

The first command reads the finished runs in DIR; the sweep may still be running. It writes NAME.csv, a row for each
run with the command that repeats it; NAME.json, the summary and the verdicts on the claims; and NAME.png. Both
commands then write every json and png from its csv, and the tables of PAGES. So an edit of a claim, a panel or a
figure needs no workdir. Tables are between lines `<!-- results: KIND -->` and `<!-- end of results -->`. KIND is
'claims' (all claims of each sweep), 'headlines' (the first claim of each sweep), 'times' (the hours of each sweep at
the size `small`) or 'contrast' (docs/basins/measures.csv, which `python -m analysis.contrast` writes).
"""

import argparse
import csv
import platform
import re
import shlex
import sys
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import jax
from etils import epath

from kdjax import config as config_lib
from kdjax import intervals
from kdjax.config import sweep as sweep_lib
from kdjax.errors import MissingInputError, UserError
from kdjax.report import sweep_figure, sweep_page
from kdjax.runtime import files
from kdjax.stages import evaluation
from kdjax.stages.experiment import Experiment

from . import times

ROOT = epath.Path(__file__).parents[2]
KEPT = ('csv', 'json', 'png')
PAGES = ('docs/results.md', 'docs/analysis.md', 'README.md')
MARKED = re.compile(r'(<!-- results: (\w+) -->\n).*?(<!-- end of results -->)', re.DOTALL)
HEADINGS = ('claim', *sweep_page.CLAIM_HEADINGS)


def collect(
  spec: str,
  workdir: epath.Path,
  folder: epath.Path,
  environment: str,
  overrides: Sequence[tuple[str, str]] = (),
) -> list[epath.Path]:
  """Writes the results of a sweep's finished runs into a folder.

  Args:
    spec: FILE.py or FILE.py:ARGUMENT.
    workdir: of the sweep.
    environment: versions and machine of the runs, for the csv.
    overrides: the (field, value) overrides of all runs.

  Returns: the paths of the files.

  Raises:
    MissingInputError: no run is finished.
  """
  sweep = config_lib.load_sweep(spec)
  configs, _ = config_lib.sweep_configs(spec, sweep, overrides)
  results = evaluation.results(configs, workdir)
  if not results:
    raise MissingInputError(
      f'no run of {spec} is finished in {workdir}. Give the --workdir of the sweep.'
    )
  notes = {
    index: {'seconds': _seconds(Experiment(configs[index], workdir)), 'environment': environment}
    for index in results
  }
  name = config_lib.config_name(spec)
  command = partial(_command, spec, overrides)
  return sweep_page.write(folder, name, sweep, results, command, notes, KEPT)


def redraw(path: epath.Path) -> list[epath.Path]:
  """Writes the files of a sweep again from its csv, with the present panels and claims of its config.

  Raises:
    UserError: as `read`.
  """
  rows, spec, sweep, results = read(path)
  notes = {
    index: {name: row[name] for name in ('seconds', 'environment')} for index, row in rows.items()
  }
  # Only the page, which is not kept, has the command of a run without a row.
  commands = defaultdict(str) | {index: row['command'] for index, row in rows.items()}
  name, command = config_lib.config_name(spec), lambda run: commands[run.index]
  return sweep_page.write(path.parent, name, sweep, results, command, notes, KEPT)


def read(
  path: epath.Path,
) -> tuple[dict[int, dict[str, str]], str, sweep_lib.Sweep, dict[int, dict[str, Any]]]:
  """(rows of a csv by run, FILE.py:ARGUMENT of the sweep, the sweep, results by run as in result.json).

  Raises:
    UserError: the config does not have a point of the csv in the same place.
  """
  rows = {int(row['run']): row for row in csv.DictReader(path.read_text().splitlines())}
  (spec,) = re.findall(r'--config=(\S+)', next(iter(rows.values()))['command'])
  sweep = config_lib.load_sweep(str(ROOT / spec))
  places = {
    run.index: (run.point.series, str(run.point.x), str(run.trial))
    for run in sweep_lib.expand(sweep)
  }
  for index, row in rows.items():
    if places.get(index) != (row['series'], row['x'], row['trial']):
      raise UserError(
        f'{path}: run {index} is at {row["series"]!r}, x = {row["x"]}, trial {row["trial"]}; {spec} has no '
        'such run there now. Collect the results again with --config and --workdir.'
      )
  return rows, spec, sweep, {index: result_of(row) for index, row in rows.items()}


def result_of(row: Mapping[str, str]) -> dict[str, Any]:
  """The measures and fingerprints of a row of a csv, nested as in result.json."""
  result: dict[str, Any] = {}
  for name, text in row.items():
    path = name.replace('fingerprint.', 'fingerprints.').split('.')
    if path[0] not in ('splits', 'cka', 'fingerprints') or not text:
      continue
    place = result
    for part in path[:-1]:
      place = place.setdefault(part, {})
    place[path[-1]] = text if path[0] == 'fingerprints' else float(text)
  return result


def update_pages(root: epath.Path) -> None:
  """Writes the tables of PAGES from `root`/docs/results."""
  for name in PAGES:
    path = root / name
    files.write_text(path, updated(path.read_text(), root))


def updated(text: str, root: epath.Path) -> str:
  """The text of a page with its tables written again from `root`/docs/results."""
  kept = sorted((root / 'docs' / 'results').glob('*.json'), key=_figure_number)
  summaries = {path.stem: files.read_json(path) for path in kept}

  def tables(match: re.Match) -> str:
    lines = TABLES[match[2]](summaries, root / 'docs' / 'results')
    return match[1] + ''.join(f'{line}\n' for line in lines) + match[3]

  return MARKED.sub(tables, text)


def _claims(summaries: Mapping[str, Any], folder: epath.Path) -> list[str]:
  """The lines about each sweep: finished runs, figure and claims."""
  lines = []
  for name, summary in summaries.items():
    first = summary['points'][0]['measure']
    hours = _hours(folder / f'{name}.csv')
    missing = [_point(p) for p in summary['points'] if not p['count'] and p['measure'] == first]
    lines += [
      f'### {summary["title"]}',
      '',
      f'{summary["num_finished"]} of {summary["num_runs"]} runs, {hours:.1f} '
      f'hours of training students. [Runs](results/{name}.csv), [summary](results/{name}.json).'
      + (f' Without a result yet: {"; ".join(missing)}.' if missing else ''),
      '',
      f'![{summary["title"]}](results/{name}.png)',
      '',
      *_table(HEADINGS, [[c['text'], *sweep_page.claim_cells(c)] for c in summary['claims']]),
      '',
    ]
  return lines


def _headlines(summaries: Mapping[str, Any], folder: epath.Path) -> list[str]:
  """A table of the first claim of each sweep."""
  del folder
  rows = []
  for summary in summaries.values():
    claim, figure = summary['claims'][0], summary['title'].partition(':')[0]
    rows.append([figure, claim['text'], *sweep_page.claim_cells(claim)])
  return _table(('', *HEADINGS), rows)


def _times(summaries: Mapping[str, Any], folder: epath.Path) -> list[str]:
  """A table of the trainings of each sweep at the size `small`, with the projected hours."""
  del summaries
  rates = times.rates(folder)
  rows = []
  for spec in times.SMALL:
    work = times.work(spec)
    hours = f'{times.hours(work, rates):.1f}'
    rows.append([f'`{spec}`', str(work.num_students), str(work.num_members), hours])
  return _table(('sweep', 'students', 'teachers', 'hours on two cores'), rows)


def _contrast(summaries: Mapping[str, Any], folder: epath.Path) -> list[str]:
  """A table of the measures of two points of a sweep and their difference, paired by trial."""
  del summaries
  rows = list(csv.DictReader((folder.parent / 'basins' / 'measures.csv').read_text().splitlines()))
  first, second = dict.fromkeys(row['point'] for row in rows)
  values: dict[str, dict[str, dict[str, float]]] = {}
  for row in rows:
    name = f'{row["measure"]} ({row["unit"]})' if row['unit'] else row['measure']
    by_point = values.setdefault(name, {first: {}, second: {}})
    by_point[row['point']][row['trial']] = float(row['value'])
  cells = []
  for name, by_point in values.items():
    trials = by_point[first].keys() & by_point[second].keys()
    pairs = [[by_point[point][trial] for trial in sorted(trials)] for point in (first, second)]
    effect = intervals.paired(*pairs)
    means = [f'{sum(of_point) / len(trials):.3g}' for of_point in pairs]
    ends = f'{effect.low:.3g} to {effect.high:.3g}'
    numbers = [*means, f'{effect.mean:+.3g}', ends]
    numbers = [number.replace('-', '−') for number in numbers]
    cells.append([name, *numbers, str(len(trials)), effect.verdict])
  return _table(('measure', first, second, 'difference', '95 % interval', 'n', 'verdict'), cells)


TABLES: dict[str, Callable[[Mapping[str, Any], epath.Path], list[str]]] = {
  'claims': _claims,
  'headlines': _headlines,
  'times': _times,
  'contrast': _contrast,
}


def _table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
  lines = [headings, ['---'] * len(headings), *rows]
  return [f'| {" | ".join(cells)} |' for cells in lines]


def _point(point: Mapping[str, Any]) -> str:
  return ', '.join(filter(None, (point['series'], sweep_figure.x_text(point['x']))))


def _hours(path: epath.Path) -> float:
  """The hours of training of the students of a csv. Runs with equal fields share a student."""
  rows = csv.DictReader(path.read_text().splitlines())
  seconds = {row['fingerprint.student']: float(row['seconds']) for row in rows}
  return sum(seconds.values()) / 3600


def _seconds(run: Experiment) -> int:
  """The seconds of the student's training steps, without evaluation."""
  seconds, before = 0.0, 0
  for row in files.read_json_lines(run.folders.student / 'metrics.jsonl'):
    examples = (row['step'] - before) * run.config.student.batch_size
    seconds, before = seconds + examples / row['examples_per_second'], row['step']
  return round(seconds)


def _command(spec: str, overrides: Sequence[tuple[str, str]], run: sweep_lib.SweepRun) -> str:
  fields = [f'--config.{field}={value}' for field, value in overrides]
  flags = [f'--config={spec}', *fields, f'--sweep_index={run.index}']
  return shlex.join(['python', 'launch.py', *flags])


def environment() -> str:
  return f'JAX {jax.__version__}, Python {platform.python_version()}, {platform.machine()} CPU'


def _figure_number(path: epath.Path) -> tuple[int | str, ...]:
  """A sort key: fig9 before fig10, and figures before tables."""
  return tuple(int(part) if part.isdigit() else part for part in re.split(r'(\d+)', path.stem))


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
  parser.add_argument('--config', help='FILE.py:ARGUMENT, whose finished runs are read')
  parser.add_argument('--workdir', help='where they are', type=epath.Path)
  parser.add_argument(
    '--environment', help='versions and machine of the runs', default=environment()
  )
  parser.add_argument('--root', help='whose docs are written', type=epath.Path, default=ROOT)
  flags = parser.parse_args()
  if (flags.config is None) != (flags.workdir is None):
    parser.error('--config and --workdir go together')
  folder = flags.root / 'docs' / 'results'
  try:
    if flags.config:
      collect(flags.config, flags.workdir, folder, flags.environment)
    for path in sorted(folder.glob('*.csv')):
      print(*redraw(path), sep='\n')
  except UserError as error:
    sys.exit(f'error: {error}')
  update_pages(flags.root)


if __name__ == '__main__':
  main()
