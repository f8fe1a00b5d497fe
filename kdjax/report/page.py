"""Writes the page about a student, `report.html` in its folder.

The page is self-contained. This module reads the files of the stages and imports no stage. Axes: N example,
C class.
"""

import base64
import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from etils import epath
from flax.traverse_util import flatten_dict
from scipy.special import softmax

from kdjax import data, losses, metrics
from kdjax.errors import DamageError
from kdjax.report import figures, rendering, tables
from kdjax.runtime import files

NAME = 'report.html'
TEMPLATE = 'report.html.j2'
NUM_EXAMPLES = 12  # the most test images shown on which teacher and student disagree


@dataclasses.dataclass(frozen=True)
class Student:
  """A student of the workdir that has a result."""

  fingerprint: str
  config: dict[str, Any]  # fields by dotted name
  result: dict[str, Any]  # result.json


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
    member_folders: the folders of the teacher's members. The page leaves out missing ones.
    test: loads the test images; called only if there is something to write.
    class_names: the names of the classes, by label.
    gan_folder: the folder of the GAN whose images the student was distilled on, if any.

  Returns: False if the page was up to date and nothing was written.

  Raises:
    DamageError: a file of the student is damaged.
  """
  logs = [place / 'metrics.jsonl' for place in (folder, *member_folders)]
  gan = [gan_folder / name for name in ('samples.png', 'quality.json')] if gan_folder else []
  analyses = sorted((folder.parents[1] / 'analysis' / folder.name).glob('*.json'))
  analyses = [path for path in analyses if _picture(path).exists()]  # an analysis may be running
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
    gan=_with_image(gan[1], gan[0]) if gan else None,
    analyses=sorted(
      (_with_image(path, _picture(path)) for path in analyses), key=lambda part: part['place']
    ),
    environment=files.read_json(environment) if environment.exists() else None,
    figures=_curves(this, student_rows, [rows for rows in member_rows if rows]),
    **_on_test(folder, test(), class_names),
  )
  files.write_text(folder / NAME, html + rendering.seal(inputs, html.encode()))
  return True


# Reading.


def read_student(folder: epath.Path) -> Student:
  """A student with its result. Raises DamageError if config.json is missing or either file is damaged."""
  if not (folder / 'config.json').exists():
    raise DamageError(
      f'{folder / "config.json"} is missing. Run the command of that student again, or delete {folder}.'
    )
  config = flatten_dict(files.read_json(folder / 'config.json'), sep='.')
  return Student(folder.name, config, files.read_json(folder / 'result.json'))


def _read_test_logits(folder: epath.Path) -> tuple[np.ndarray, np.ndarray]:
  """The student's logits_NC and the ensemble's log_probs_NC on the test set."""
  path = folder / 'logits.npz'
  arrays = files.read_arrays(path)
  try:
    return arrays['test/student_logits_NC'], arrays['test/teacher_log_probs_NC']
  except KeyError as error:
    raise DamageError(
      f'{path} is damaged ({error}). Delete it and result.json beside it, and run again.'
    ) from error


# The parts of the page.


def _with_image(about: epath.Path, picture: epath.Path) -> dict[str, Any]:
  """The content of a JSON file, and 'image': the PNG as a data URI."""
  image = f'data:image/png;base64,{base64.b64encode(picture.read_bytes()).decode()}'
  return files.read_json(about) | {'image': image}


def _picture(about: epath.Path) -> epath.Path:
  """The PNG beside the JSON file of a part of the analysis."""
  return about.parent / f'{about.stem}.png'


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
  """The values for the template that need the test images.

  They are the reliability diagram, the number of disagreements, and the examples with the largest KL. In an
  example, 'teacher' and 'student' are (predicted class, its probability); 'image' is a data URI, None for text.
  """
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
    {
      'index': i,
      'image': figures.image_uri(test.inputs_N[i]) if figures.are_images(test.inputs_N) else None,
      'label': class_names[test.labels_N[i]],
      'teacher': top(teacher_NC[i]),
      'student': top(student_NC[i]),
      'kl': values['predictive_kl'][i],
    }
    for i in chosen[:NUM_EXAMPLES]
  ]
  return {
    'reliability': figures.reliability(bins),
    'num_disagreements': int(differs_N.sum()),
    'examples': examples,
  }
