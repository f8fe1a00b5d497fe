"""The page about a student, `report.html` in its folder.

The page is self-contained. This module reads the files that stages wrote and imports no stage. Axes: N
example, C class.
"""

import base64
import dataclasses
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
from etils import epath
from scipy.special import softmax

from kdjax import data, losses, metrics
from kdjax.errors import DamageError
from kdjax.report import figures, rendering, tables
from kdjax.runtime import files

NAME = 'report.html'
TEMPLATE = 'report.html.j2'
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
  folder: epath.Path,
  member_folders: Sequence[epath.Path],
  test: Callable[[], data.Split],
  class_names: Sequence[str],
  gan_folder: epath.Path | None = None,
) -> bool:
  """Writes the page of one student into its folder, WORKDIR/students/FINGERPRINT.

  Args:
    folder: of a student with a result.json.
    member_folders: the folders of the teacher's members; missing ones are left out of the page.
    test: loads the test images; it is called only if there is something to write.
    class_names: the names of the classes, by label.
    gan_folder: the folder of the GAN whose images the student was distilled on, if any.

  Returns: False if the page was up to date, so that nothing was done.

  Raises:
    DamageError: a file of the student is damaged.
  """
  logs = [place / 'metrics.jsonl' for place in (folder, *member_folders)]
  gan = (
    [] if gan_folder is None else [gan_folder / name for name in ('samples.png', 'quality.json')]
  )
  analyses = sorted((folder.parents[1] / 'analysis' / folder.name).glob('*.json'))
  analyses = [
    path for path in analyses if _picture(path).exists()
  ]  # one may be drawn at this moment
  own = [folder / name for name in ('config.json', 'result.json', 'environment.json')]
  inputs = rendering.digest(TEMPLATE, [*own, *logs, *gan, *analyses, *map(_picture, analyses)])
  if rendering.is_sealed(folder / NAME, inputs):
    return False
  this, environment = read_student(folder), own[-1]
  student_rows, *member_rows = [files.read_json_lines(path) for path in logs]
  html = rendering.render(
    TEMPLATE,
    digest=inputs,
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
    **_on_test(folder, test(), class_names),
  )
  files.write_text(folder / NAME, html + rendering.seal(inputs, html.encode()))
  return True


# Reading.


def read_student(folder: epath.Path) -> Student:
  """A student with its result; raises DamageError if config.json is missing or either file is damaged."""
  if not (folder / 'config.json').exists():
    raise DamageError(
      f'{folder / "config.json"} is missing. Run the command of that student again, or delete {folder}.'
    )
  config = flatten(files.read_json(folder / 'config.json'))
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


def flatten(nested: dict[str, Any], prefix: str = '') -> dict[str, Any]:
  """{'a': {'b': 1}} → {'a.b': 1}."""
  flat = {}
  for name, value in nested.items():
    if isinstance(value, dict):
      flat |= flatten(value, f'{prefix}{name}.')
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
