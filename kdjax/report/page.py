"""The page about a student, `report.html`, and the table of all students, `results.csv`.

The page is self-contained. This module reads the files that stages wrote and imports no stage. Axes: N
example, C class.
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
from scipy.special import softmax

from kdjax import data, losses, metrics
from kdjax.errors import DamageError
from kdjax.report import figures, formats, tables
from kdjax.report.formats import NOTHING
from kdjax.runtime import files

TEMPLATE = epath.Path(__file__).parent / 'report.html.j2'
STYLE = TEMPLATE.parent / 'page.css'
NUM_EXAMPLES = 12  # the number of test images shown on which teacher and student disagree


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
  image: str | None  # a data URI; None for a text
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
    student_folder: the folder of the student that the page is about.
    member_folders: the folders of the teacher's members; missing ones are left out of the page.
    test: loads the test images; it is called only if there is something to write.
    class_names: the names of the classes, by label.
    gan_folder: the folder of the GAN whose images the student was distilled on, if any.

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
  analyses = [
    path for path in analyses if _picture(path).exists()
  ]  # one may be drawn at this moment
  environment = student_folder / 'environment.json'
  made_from = [*inputs, environment, *logs, *gan, *analyses, *map(_picture, analyses)]
  digest = _digest([TEMPLATE, STYLE, *made_from])
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
    measures=tables.MEASURES,
    splits=tables.headline(this.result, tables.SPLITS),
    controls=tables.controls(this.result),
    finer=tables.finer(this.result),
    question=tables.QUESTION,
    answer=tables.answer(this.result['splits']['test']),
    cka=this.result.get('cka', {}),
    gan=_gan(*gan) if gan else None,
    analyses=_analyses(analyses),
    environment=files.read_json(environment) if environment.exists() else None,
    figures=_curves(this, student_rows, [rows for rows in member_rows if rows]),
    **_on_test(student_folder, test(), class_names),
    **_comparison(students),
  )
  rows = _csv(students)
  files.write_text(table, rows)
  # The page is written last: its seal says that both files are complete and up to date.
  files.write_text(page, html + _seal(html.encode(), rows.encode(), digest))
  return True


# Reading.


def _digest(paths: Iterable[epath.Path]) -> str:
  """A checksum of the files' names and contents. A missing file counts as empty."""
  digest = hashlib.sha256()
  for path in paths:
    content = path.read_bytes() if path.exists() else b''
    digest.update(f'{path.parent.name}/{path.name} {len(content)}\n'.encode())
    digest.update(content)
  return f'sha256-{digest.hexdigest()}'


def _seal(html: bytes, rows: bytes, digest: str) -> str:
  return f'\n<!-- {files.checksum(html + rows + digest.encode())} -->\n'


def _is_sealed(page: epath.Path, table: epath.Path, digest: str) -> bool:
  """Whether both files are undamaged and up to date."""
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


def _gan(samples: epath.Path, quality: epath.Path) -> dict[str, Any]:
  return files.read_json(quality) | {'image': _png_uri(samples)}


def _analyses(paths: Iterable[epath.Path]) -> list[dict[str, Any]]:
  """The parts of the analysis of this student, each with 'title', 'caption' and 'image', in their order."""
  found = [files.read_json(path) | {'image': _png_uri(_picture(path))} for path in paths]
  return sorted(found, key=lambda of: of['place'])


def _picture(about: epath.Path) -> epath.Path:
  return about.parent / f'{about.stem}.png'


def _png_uri(path: epath.Path) -> str:
  return f'data:image/png;base64,{base64.b64encode(path.read_bytes()).decode()}'


def _curves(
  this: Student, student_rows: figures.Rows, member_rows: list[figures.Rows]
) -> dict[str, str | None]:
  unit = losses.unit(this.config['student.loss'], this.config['student.alpha'])
  baseline = this.result['splits']['test'].get('independent', {})
  return {
    'student_loss': figures.loss([student_rows], 'student', 'Training loss of the student', unit),
    'member_loss': figures.loss(member_rows, 'teacher', 'Training loss of the members', 'nats'),
    'error': figures.error(student_rows, member_rows),
    'agreement': figures.agreement(student_rows, baseline.get('top1_agreement')),
    'kl': figures.kl(student_rows, baseline.get('predictive_kl')),
  }


def _on_test(folder: epath.Path, test: data.Split, class_names: Sequence[str]) -> dict[str, Any]:
  """The reliability diagram, the number of disagreements, and the examples."""
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
      image=figures.image_uri(test.inputs_N[i]) if figures.are_images(test.inputs_N) else None,
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
  """A table of all students with the config fields in which they differ, sorted by these fields."""
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
    cells += tables.cells(test['student'], ['accuracy'])
    for key in tables.FIDELITY:
      cells += tables.cells(test['fidelity'], [key]) + tables.cells(
        test.get('independent', {}), [key]
      )
      cells += tables.difference_cells(test, key)
    return {'fingerprint': student.fingerprint, 'cells': cells}

  headings = [f'test {tables.MEASURES["accuracy"]}']
  for key in tables.FIDELITY:
    label = tables.MEASURES[key]
    headings += [f'test {label}', 'independent student', 'difference', 'verdict']
  return {
    'students': [row(student) for student in sorted(students, key=order)],
    'differing': differing,
    'compared': headings,
  }


def _csv(students: Sequence[Student]) -> str:
  """A row for each student: config fields, then all measures in the order of SPLITS.

  A measure that a student does not have is empty.
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


def _measures(student: Student) -> dict[str, Any]:
  """Numbers and words of result.json by dotted name; an interval's ends are NAME.low and NAME.high."""
  splits = student.result['splits']
  flat = {}
  for name, value in _flatten(
    {name: splits[name] for name in tables.SPLITS if name in splits}
  ).items():
    if not isinstance(value, list):
      flat[name] = value
    elif not name.endswith('.members'):
      flat |= {f'{name}.low': value[0], f'{name}.high': value[1]}
  return flat


def _plain(value: Any) -> Any:
  """['crop', 'flip'] → '(crop, flip)'. None stays, which CSV writes as nothing."""
  return f'({", ".join(map(str, value))})' if isinstance(value, list) else value


def _environment() -> jinja2.Environment:
  environment = jinja2.Environment(
    loader=jinja2.PackageLoader('kdjax', 'report'),
    autoescape=True,
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
  )
  environment.filters['percent'] = formats.percent
  return environment
