"""Results in; `report.html`, one self-contained page, `results.csv` and a terminal table out.

It reads what the other stages wrote and imports none of them. Axes: N example, C class.
"""

import base64
import csv
import dataclasses
import hashlib
import io
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jinja2
import numpy as np
from etils import epath
from rich import box
from rich.table import Table
from scipy.special import softmax

from kdjax import data, figures, files, metrics
from kdjax.errors import DamageError

TEMPLATE = epath.Path(__file__).parent / 'report.html.j2'
STYLE = TEMPLATE.parent / 'page.css'
NUM_EXAMPLES = 12  # of test images on which teacher and student disagree

SPLITS = {  # in the order of the tables
  'train': 'train',
  'val': 'validation',
  'test': 'test',
  'distillation': 'distillation views',
}
MEASURES = {  # as result.json names them: as the tables do
  'accuracy': 'accuracy (%)',
  'nll': 'NLL (nats)',
  'ece': 'ECE (%)',
  'top1_agreement': 'agreement (%)',
  'predictive_kl': 'KL (nats)',
}
COMPARED = ('accuracy', 'top1_agreement', 'predictive_kl')  # between students
NOTHING = '–'  # in the place of a value that is not there


@dataclasses.dataclass(frozen=True)
class Student:
  """One finished student of the workdir."""

  fingerprint: str
  config: dict[str, Any]  # fields by dotted name
  result: dict[str, Any]  # result.json


@dataclasses.dataclass(frozen=True)
class Example:
  """A test image with both predictions and their probabilities."""

  index: int
  image: str | None  # data URI; None of a text
  label: str
  teacher: tuple[str, float]
  student: tuple[str, float]
  kl: float


def write(
  workdir: epath.Path,
  student_folder: epath.Path,
  member_folders: Sequence[epath.Path],
  test: Callable[[], data.Split],
  class_names: Sequence[str],
  gan_folder: epath.Path | None = None,
) -> bool:
  """Writes report.html for one student, and results.csv with a row for every finished one.

  Args:
    workdir: where both are written; every `students/*/result.json` in it counts as finished.
    student_folder: of the student that the page is about.
    member_folders: of the teacher's members. The page goes without those that are not there.
    test: loads the test images; called only if there is something to write.
    class_names: by label.
    gan_folder: of the GAN whose images the student was distilled on, if any.

  Returns: False if both were up to date, so that nothing was done.

  Raises:
    DamageError: a file of the student is damaged.
  """
  folders = sorted(path.parent for path in (workdir / 'students').glob('*/result.json'))
  logs = [folder / 'metrics.jsonl' for folder in (student_folder, *member_folders)]
  inputs = [folder / name for folder in folders for name in ('config.json', 'result.json')]
  gan = (
    [] if gan_folder is None else [gan_folder / name for name in ('samples.png', 'quality.json')]
  )
  analyses = sorted((workdir / 'analysis' / student_folder.name).glob('*.json'))
  analyses = [path for path in analyses if _picture(path).exists()]  # one may be drawn right now
  digest = _digest([TEMPLATE, STYLE, *inputs, *logs, *gan, *analyses, *map(_picture, analyses)])
  page, table = workdir / 'report.html', workdir / 'results.csv'
  if table.exists() and page.exists() and _is_sealed(page, table, digest):
    return False
  students = [_read_student(folder) for folder in folders]
  this = next(student for student in students if student.fingerprint == student_folder.name)
  student_rows, *member_rows = [files.read_json_lines(path) for path in logs]
  template = _environment().get_template(TEMPLATE.name)
  html = template.render(
    digest=digest,
    nothing=NOTHING,
    this=this,
    measures=MEASURES,
    splits=_headline(this.result, SPLITS),
    controls=_controls(this.result),
    cka=this.result.get('cka', {}),
    gan=_gan(*gan) if gan else None,
    analyses=_analyses(analyses),
    figures=_curves(student_rows, [rows for rows in member_rows if rows]),
    **_on_test(student_folder, test(), class_names),
    **_comparison(students),
  )
  rows = _csv(students)
  files.write_text(table, rows)
  # Last: its seal says that both are written, from the files that are there.
  files.write_text(page, html + _seal(html.encode(), rows.encode(), digest))
  return True


def terminal_table(result: dict[str, Any]) -> Table:
  """The headline table: teacher's members, ensemble and student, on train and on test.

  Args:
    result: the content of result.json.
  """
  table = Table(box=box.SIMPLE)  # fits into 80 columns
  table.add_column('split (images)', no_wrap=True)
  for heading in MEASURES.values():
    table.add_column(heading, justify='right')
  for split in _headline(result, ('train', 'test')):
    table.add_section()
    table.add_row(f'{split["name"]} ({split["num_examples"]:,})', style='bold')
    for name, cells in split['rows']:
      table.add_row(f'  {name}', *cells)
  return table


# Reading.


def _digest(paths: Iterable[epath.Path]) -> str:
  """Of the files' names and bytes. One that is not there counts as empty."""
  digest = hashlib.sha256()
  for path in paths:
    content = path.read_bytes() if path.exists() else b''
    digest.update(f'{path.parent.name}/{path.name} {len(content)}\n'.encode())
    digest.update(content)
  return f'sha256-{digest.hexdigest()}'


def _seal(html: bytes, rows: bytes, digest: str) -> str:
  return f'\n<!-- {files.checksum(html + rows + digest.encode())} -->\n'


def _is_sealed(page: epath.Path, table: epath.Path, digest: str) -> bool:
  """Whether both are what was written, and what would be written now."""
  content, size = page.read_bytes(), len(_seal(b'', b'', ''))
  return content[-size:] == _seal(content[:-size], table.read_bytes(), digest).encode()


def _read_student(folder: epath.Path) -> Student:
  if not (folder / 'config.json').exists():
    raise DamageError(
      f'{folder / "config.json"} is missing. Run the command of that student again, or delete {folder}.'
    )
  config = _flatten(files.read_json(folder / 'config.json'))
  return Student(folder.name, config, files.read_json(folder / 'result.json'))


def _read_test_logits(folder: epath.Path) -> tuple[np.ndarray, np.ndarray]:
  """Returns the student's logits_NC and the ensemble's log_probs_NC on the test set."""
  path = folder / 'logits.npz'
  arrays = files.read_arrays(path)
  try:
    return arrays['test/student_logits_NC'], arrays['test/teacher_log_probs_NC']
  except KeyError as error:
    raise DamageError(
      f'{path} is damaged ({error}). Delete it and result.json beside it, and run again.'
    ) from error


def _flatten(nested: dict[str, Any], prefix: str = '') -> dict[str, Any]:
  """{'a': {'b': 1}} → {'a.b': 1}."""
  flat = {}
  for name, value in nested.items():
    if isinstance(value, dict):
      flat |= _flatten(value, f'{prefix}{name}.')
    else:
      flat[f'{prefix}{name}'] = value
  return flat


# The parts of the page.


def _headline(result: dict[str, Any], names: Iterable[str]) -> list[dict[str, Any]]:
  """For each split: its name, 'num_examples', and 'rows' of (who, cells in the order of MEASURES)."""
  splits = []
  for name in names:
    if name in result['splits']:
      values = result['splits'][name]
      rows = [(f'member {i}', _cells(m)) for i, m in enumerate(values.get('members', []))]
      rows.append(('ensemble', _cells(values['teacher'])))
      rows.append(('student', _cells(values['student'] | values['fidelity'])))
      if 'independent' in values:
        rows.append(('independent student', _cells(values['independent'])))
      num_examples = values['num_examples']
      splits.append({'name': SPLITS[name], 'num_examples': num_examples, 'rows': rows})
  return splits


def _cells(values: dict[str, float], keys: Iterable[str] = tuple(MEASURES)) -> list[str]:
  def text(key: str) -> str:
    if key not in values:
      return NOTHING
    return f'{100 * values[key]:.2f}' if '%' in MEASURES[key] else f'{values[key]:.4f}'

  return [text(key) for key in keys]


def _controls(result: dict[str, Any]) -> list[tuple[str, list[tuple[str, list[str]]]]]:
  """Fidelity on the test set beside its controls: (which examples, rows of (who, cells))."""
  test = result['splits']['test']
  groups = []
  for title, values in (
    ('all', test),
    ('those that the teacher gets wrong', test.get('teacher_wrong', {})),
  ):
    rows = [
      (name, [_with_interval(values, who, key) for key in ('top1_agreement', 'predictive_kl')])
      for who, name in (('fidelity', 'student'), ('independent', 'independent student'))
      if who in values
    ]
    if rows:
      groups.append((f'{title} ({values["num_examples"]:,})', rows))
  return groups


def _with_interval(values: dict[str, Any], who: str, key: str) -> str:
  """'97.1 (96.4 to 97.8)'."""
  mean, (low, high) = values[who][key], values['intervals'][who][key]
  mean, low, high = (_cells({key: value}, [key])[0] for value in (mean, low, high))
  return f'{mean} ({low} to {high})'


def _gan(samples: epath.Path, quality: epath.Path) -> dict[str, Any]:
  return files.read_json(quality) | {'image': _png_uri(samples)}


def _analyses(paths: Iterable[epath.Path]) -> list[dict[str, Any]]:
  """What was found out about the student: 'title', 'caption' and 'image' of each, in their order."""
  found = [files.read_json(path) | {'image': _png_uri(_picture(path))} for path in paths]
  return sorted(found, key=lambda of: of['place'])


def _picture(about: epath.Path) -> epath.Path:
  return about.parent / f'{about.stem}.png'


def _png_uri(path: epath.Path) -> str:
  return f'data:image/png;base64,{base64.b64encode(path.read_bytes()).decode()}'


def _curves(student_rows: figures.Rows, member_rows: list[figures.Rows]) -> dict[str, str | None]:
  return {
    'student_loss': figures.loss([student_rows], 'student', 'Training loss of the student'),
    'member_loss': figures.loss(member_rows, 'teacher', 'Training loss of the members'),
    'accuracy': figures.accuracy(student_rows, member_rows),
    'agreement': figures.agreement(student_rows),
    'kl': figures.kl(student_rows),
  }


def _on_test(folder: epath.Path, test: data.Split, class_names: Sequence[str]) -> dict[str, Any]:
  """The reliability diagram, how many predictions differ, and the examples."""
  logits_NC, log_probs_NC = _read_test_logits(folder)
  bins = {
    'teacher': metrics.reliability(log_probs_NC, test.labels_N),
    'student': metrics.reliability(logits_NC, test.labels_N),
  }
  values = metrics.fidelity_values(logits_NC, log_probs_NC)
  differs_N = values['top1_agreement'] == 0
  by_kl = np.argsort(-values['predictive_kl'], kind='stable')
  chosen = by_kl[differs_N[by_kl]] if differs_N.any() else by_kl
  student_NC = softmax(logits_NC.astype(np.float64), axis=-1)
  teacher_NC = softmax(log_probs_NC.astype(np.float64), axis=-1)

  def top(probs_C: np.ndarray) -> tuple[str, float]:
    return class_names[probs_C.argmax()], float(probs_C.max())

  examples = [
    Example(
      index=int(i),
      image=figures.image_uri(test.inputs_N[i]) if test.inputs_N.ndim == 4 else None,
      label=class_names[test.labels_N[i]],
      teacher=top(teacher_NC[i]),
      student=top(student_NC[i]),
      kl=float(values['predictive_kl'][i]),
    )
    for i in chosen[:NUM_EXAMPLES]
  ]
  return {
    'reliability': figures.reliability(bins),
    'num_disagreements': int(differs_N.sum()),
    'examples': examples,
  }


def _comparison(students: list[Student]) -> dict[str, Any]:
  """A table of all students by the config fields in which they differ, in the order of these."""
  names = dict.fromkeys(name for student in students for name in student.config)
  values = {name: [student.config.get(name) for student in students] for name in names}
  differing = [name for name, of in values.items() if any(value != of[0] for value in of)]

  def order(student: Student) -> list[tuple[str, Any]]:
    fields = [student.config.get(name) for name in differing]
    return [(type(value).__name__, value) for value in fields]  # values of one type compare

  def row(student: Student) -> dict[str, Any]:
    fields = [_plain(student.config.get(name)) for name in differing]
    test = student.result['splits']['test']
    cells = [NOTHING if field is None else field for field in fields]
    cells += _cells(test['student'] | test['fidelity'], COMPARED)
    return {'fingerprint': student.fingerprint, 'cells': cells}

  return {
    'students': [row(student) for student in sorted(students, key=order)],
    'differing': differing,
    'compared': [MEASURES[key] for key in COMPARED],
  }


def _csv(students: Sequence[Student]) -> str:
  """Config fields, then the student's, ensemble's and both's measures in the order of SPLITS.

  A column that a student lacks is empty.
  """
  configs = {}
  results = {}
  for student in students:
    configs |= dict.fromkeys(student.config)
    results |= dict.fromkeys(_measures(student))
  buffer = io.StringIO()
  writer = csv.DictWriter(buffer, ['fingerprint', *configs, *results], lineterminator='\n')
  writer.writeheader()
  for student in students:
    config = {name: _plain(value) for name, value in student.config.items()}
    writer.writerow({'fingerprint': student.fingerprint} | config | _measures(student))
  return buffer.getvalue()


def _measures(student: Student) -> dict[str, float]:
  splits = student.result['splits']
  flat = _flatten({name: splits[name] for name in SPLITS if name in splits})
  return {name: value for name, value in flat.items() if not isinstance(value, list)}


def _plain(value: Any) -> Any:
  """['crop', 'flip'] → '(crop, flip)'. None stays, which CSV writes as nothing."""
  return f'({", ".join(map(str, value))})' if isinstance(value, list) else value


def _environment() -> jinja2.Environment:
  environment = jinja2.Environment(
    loader=jinja2.PackageLoader('kdjax', ''),
    autoescape=True,
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
  )
  environment.filters['percent'] = lambda fraction: f'{100 * fraction:.1f} %'
  return environment
