"""Writes the index of all students of a workdir: `report.html` and `results.csv`."""

import csv
import dataclasses
import io
import re
from collections.abc import Sequence
from typing import Any

from etils import epath
from flax.traverse_util import flatten_dict

from kdjax.report import page, rendering, tables
from kdjax.report.formats import NOTHING
from kdjax.report.page import Student
from kdjax.runtime import files

TEMPLATE = 'index.html.j2'
NAME, TABLE = 'report.html', 'results.csv'
MAX_NAMED = 3  # config fields in the name of a student
HEADINGS = ('independent student', 'difference', 'verdict')  # follow that of a measure of fidelity


@dataclasses.dataclass(frozen=True)
class Cell:
  """A cell of the index, and the key by which its column is sorted. None, a missing value, comes last."""

  text: str
  key: float | str | None


def write(workdir: epath.Path) -> bool:
  """Writes report.html and results.csv, with a row for every student that has a result.

  If there is one student, report.html is a copy of its page.

  Returns: False if both were up to date and nothing was written.

  Raises:
    DamageError: a file of a student is damaged.
  """
  folders = sorted(path.parent for path in (workdir / 'students').glob('*/result.json'))
  pages = [folder / page.NAME for folder in folders if (folder / page.NAME).exists()]
  is_single = len(folders) == 1 and pages
  made_from = [folder / name for folder in folders for name in ('config.json', 'result.json')]
  inputs = rendering.digest(TEMPLATE, [*made_from, *pages * bool(is_single)])
  inputs = ' '.join([inputs, *(path.parent.name for path in pages)])
  if rendering.is_sealed(workdir / NAME, inputs, workdir / TABLE):
    return False
  students = [page.read_student(folder) for folder in folders]
  if is_single:  # the copy has no index to link to
    html = re.sub(r'<nav>.*?</nav>\n', '', pages[0].read_text(), count=1, flags=re.DOTALL)
  else:
    html = rendering.render(TEMPLATE, **_table(students, {path.parent.name for path in pages}))
  rows = _csv(students)
  files.write_text(workdir / TABLE, rows)
  # The page comes last: its seal says that both files are complete and up to date.
  seal = rendering.seal(inputs, html.encode(), rows.encode())
  files.write_text(workdir / NAME, html + seal)
  return True


def _table(students: Sequence[Student], with_page: set[str]) -> dict[str, Any]:
  """The values for the template. Rows are sorted by the config fields in which the students differ."""
  names = dict.fromkeys(name for student in students for name in student.config)
  values = {name: [student.config.get(name) for student in students] for name in names}
  differing = [name for name, of in values.items() if any(value != of[0] for value in of)]
  short = {name: _short(name, differing) for name in differing}

  def order(student: Student) -> list[tuple[str, Any]]:
    fields = [student.config.get(name) for name in differing]
    return [
      (type(value).__name__, value if isinstance(value, int | float | str) else repr(value))
      for value in fields  # only values of one type compare
    ]

  def row(student: Student) -> dict[str, Any]:
    fields = [_field(student.config.get(name)) for name in differing]
    named = [
      f'{short[name]}\u00a0= {cell.text}' for name, cell in zip(differing, fields, strict=True)
    ]
    has_page = student.fingerprint in with_page
    return {
      'title': ', '.join(named[:MAX_NAMED]),
      'fingerprint': student.fingerprint,
      'page': f'students/{student.fingerprint}/{page.NAME}' if has_page else None,
      'cells': [*_measured(student.result['splits']['test']), *fields],
    }

  headings = []
  for key in tables.FIDELITY:
    headings += [tables.MEASURES[key], *HEADINGS]
  headings.append(tables.MEASURES['accuracy'])
  rows = [row(student) for student in sorted(students, key=order)]
  columns = [[of['cells'][len(headings) + i] for of in rows] for i in range(len(differing))]
  return {
    'datasets': sorted({student.config['dataset.name'] for student in students}),
    'question': tables.QUESTION,
    'answers': tables.answers(student.result['splits']['test'] for student in students),
    'headings': headings,
    'differing': differing,
    # The values of each field as text, in their order, to choose from.
    'choices': [[cell.text for cell in sorted(set(of), key=_place)] for of in columns],
    'students': rows,
  }


def _short(name: str, names: Sequence[str]) -> str:
  """The last part of a field's name, or all of it if another of the names has the same last part."""
  last = name.rpartition('.')[2]
  return last if all(other == name or other.rpartition('.')[2] != last for other in names) else name


def _measured(test: dict[str, Any]) -> list[Cell]:
  """Cells of the measures on the test split, fidelity first."""
  cells = []
  for key in tables.FIDELITY:
    for who in ('fidelity', 'independent'):
      cells.append(_cell(test.get(who, {}), key))
    difference, verdict = tables.difference_cells(test, key)
    mean = test.get('difference', {}).get(key, {}).get('mean')
    cells += [Cell(difference, mean), Cell(verdict, None if verdict == NOTHING else verdict)]
  return [*cells, _cell(test['student'], 'accuracy')]


def _cell(values: dict[str, float], key: str) -> Cell:
  return Cell(*tables.cells(values, [key]), values.get(key))


def _field(value: Any) -> Cell:
  """The cell of a config field. Numbers are sorted by value, other values by their text."""
  if value is None:
    return Cell(NOTHING, None)
  text = repr(value) if value == '' else str(_plain(value))
  is_number = isinstance(value, int | float) and not isinstance(value, bool)
  return Cell(text, value if is_number else text)


def _place(cell: Cell) -> tuple[bool, bool, Any]:
  """A sort key: numbers, then texts, then missing values."""
  return cell.key is None, isinstance(cell.key, str), cell.key or 0


def _csv(students: Sequence[Student]) -> str:
  """A row for each student: config fields, then all measures in the order of SPLITS.

  A measure that a student does not have is empty.
  """
  configs = [{name: _plain(x) for name, x in student.config.items()} for student in students]
  results = [_measures(student) for student in students]
  names = dict.fromkeys(name for of_student in (*configs, *results) for name in of_student)
  buffer = io.StringIO()
  writer = csv.DictWriter(buffer, ['fingerprint', *names], lineterminator='\n')
  writer.writeheader()
  for student, config, result in zip(students, configs, results, strict=True):
    writer.writerow({'fingerprint': student.fingerprint} | config | result)
  return buffer.getvalue()


def _measures(student: Student) -> dict[str, Any]:
  """Numbers and words of result.json by dotted name. The ends of an interval are NAME.low and NAME.high."""
  splits = student.result['splits']
  splits = {name: splits[name] for name in tables.SPLITS if name in splits}
  flat = {}
  for name, value in flatten_dict(splits, sep='.').items():
    if not isinstance(value, list):
      flat[name] = value
    elif not name.endswith('.members'):
      flat |= {f'{name}.low': value[0], f'{name}.high': value[1]}
  return flat


def _plain(value: Any) -> Any:
  """['crop', 'flip'] → '(crop, flip)'; any other value as it is."""
  return f'({", ".join(map(str, value))})' if isinstance(value, list) else value
