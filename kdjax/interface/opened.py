"""Reads a workdir from Python: students with their results, parameters and logits, and stored predictions.

Arrays are NumPy's. Axes: M member, V view, N example, B batch, C class.
"""

import io
import json
from collections.abc import Mapping
from functools import cached_property
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from etils import epath
from flax import traverse_util
from ml_collections import ConfigDict
from rich.console import Console
from rich.table import Table

from kdjax import config as config_lib
from kdjax import models
from kdjax.config.objects import Objects
from kdjax.errors import DamageError, MissingInputError, UserError
from kdjax.predictions.store import PredictionStore
from kdjax.predictions.teachers import StoredTeacher
from kdjax.report import tables
from kdjax.runtime import files
from kdjax.stages import finished, stage, student, teachers
from kdjax.stages.experiment import Experiment
from kdjax.train import loop

WIDTH = 100  # columns of what `repr` draws
# Columns of `Students.table`: name → keys of the value in the split 'test' of result.json.
MEASURES = {
  'accuracy': ('student', 'accuracy'),
  'teacher_accuracy': ('teacher', 'accuracy'),
  'agreement': ('fidelity', 'top1_agreement'),
  'independent_agreement': ('independent', 'top1_agreement'),
  'kl': ('fidelity', 'predictive_kl'),
  'independent_kl': ('independent', 'predictive_kl'),
}


def open(workdir: epath.PathLike, *objects: Any) -> 'Students':
  """The students of a workdir, the newest result first.

  Args:
    workdir: a local folder or gs://.
    objects: the linen modules, classes and functions that `kdjax.distil` got and that cannot be imported,
      such as those of a notebook. Parameters need them; results and logits do not.

  Raises:
    MissingInputError: the folder does not exist, or has no finished student.
  """
  names = Objects()
  for one in objects:
    names.model(one) if isinstance(one, nn.Module) else names.name(one)
  folder = finished.existing(workdir)
  found = [path.parent for path in (folder / 'students').glob('*/complete.json')]
  found = [path for path in found if loop.is_complete(path)]
  if not found:
    raise MissingInputError(
      f'{folder}: no finished student in {folder / "students"}; train one with launch.py '
      f'--workdir={folder} or kdjax.distil'
    )
  return Students(Student(path) for path in sorted(found, key=_age))


def open_predictions(path: epath.PathLike) -> 'Predictions':
  """The stored predictions of a teacher.

  Args:
    path: a folder in WORKDIR/predictions, or the workdir, for the teacher of its newest student.

  Raises:
    MissingInputError: the predictions are missing or incomplete.
  """
  folder, size = finished.existing(path), None
  if folder.parent.name != 'predictions':
    student_folder = finished.find(folder)
    result = student_folder / 'result.json'
    if not result.exists():
      raise MissingInputError(
        f'{folder}: its student is not evaluated. Give a folder of predictions, one in {folder / "predictions"}'
      )
    config = finished.read_config(student_folder)
    size = config.teacher.num_members, config.predictions.num_views  # the store may have more
    folder = folder / 'predictions' / files.read_json(result)['fingerprints']['predictions']
  return Predictions(folder, size)


class Result(dict):
  """The content of result.json; `repr` shows the verdict and tables. docs/operations.md explains the keys."""

  def __init__(self, content: Mapping[str, Any], student: 'Student'):
    super().__init__(content)
    self.student = student

  def __repr__(self) -> str:
    return drawn(
      f'Result of the student {self.student.name}',
      f'{tables.QUESTION}\n{tables.answer(self["splits"]["test"])}\n',
      *tables.terminal(self),
    )


class Student:
  """A finished student. Each attribute is read when it is first used.

  Attributes:
    folder: the folder of its files.
    name: its fingerprint.
  """

  def __init__(self, folder: epath.Path):
    self.folder, self.name = folder, folder.name

  def __getstate__(self) -> dict[str, str]:
    """The student's fingerprint, for the digest of a function that uses the student."""
    return {'name': self.name}

  @property
  def is_evaluated(self) -> bool:
    """Whether the student has a result. Independent students, which only measure a baseline, have none."""
    return (self.folder / 'result.json').exists()

  @cached_property
  def config(self) -> ConfigDict:
    """All fields of the experiment. Raises DamageError if config.json is damaged."""
    return finished.read_config(self.folder)

  @cached_property
  def result(self) -> Result:
    """The content of result.json. Raises MissingInputError if the student is not evaluated."""
    return Result(files.read_json(self._made('result.json')), self)

  @cached_property
  def logits(self) -> dict[str, dict[str, np.ndarray]]:
    """{split: {'student': logits_NC, 'teacher': log_probs_NC, perhaps 'independent': logits_NC}}.

    Raises:
      MissingInputError: the student is not evaluated.
      DamageError: the file is damaged.
    """
    found: dict[str, dict[str, np.ndarray]] = {}
    for key, array in files.read_arrays(self._made('logits.npz')).items():
      split, _, name = key.partition('/')
      found.setdefault(split, {})[name.partition('_')[0]] = array
    return found

  @cached_property
  def experiment(self) -> Experiment:
    """The experiment, for `kdjax.stages` and the analyses.

    Raises:
      MissingInputError: the config names code that is missing.
      DamageError: the code or the config has changed since the training.
    """
    return finished.experiment(self.folder)

  @property
  def model(self) -> nn.Module:
    """The student's linen module. Raises what `experiment` raises."""
    return models.own_module(self.experiment.student.model)

  @cached_property
  def variables(self) -> dict[str, Any]:
    """{'params', 'batch_stats'} of `model`. Raises what `experiment` raises, or DamageError."""
    return jax.tree.map(np.asarray, jax.device_get(student.load(self.experiment)))

  def export(self, path: epath.PathLike, member: int | None = None) -> None:
    """Writes weights to a safetensors file, which can be read without kdjax.

    Arrays are named 'params/Conv_0/kernel', 'batch_stats/BatchNorm_0/mean', ..., in the layout and type of
    Flax. The metadata are texts: 'network' ('student' or 'teacher member 0'), 'fingerprint', and as JSON
    'model' (the section of the config), 'config' and 'environment' (where, when and with which versions the
    network was trained). `flax.traverse_util.unflatten_dict(safetensors.numpy.load_file(path), sep='/')`
    restores `variables`.

    Args:
      path: the file, whose name ends on .safetensors; it is replaced.
      member: if given, this member of the student's teacher is exported instead of the student.

    Raises:
      UserError: the package safetensors is missing, or the teacher has no such member or no weights.
      MissingInputError, DamageError: the weights are missing or damaged, or as `experiment`.
    """
    experiment = self.experiment
    if member is None:
      network, model = 'student', config_lib.student_model(self.config)
      variables, fingerprint, folder = self.variables, self.name, self.folder
    else:
      network, model = f'teacher member {member}', self.config.model
      variables, folder = _member(experiment, member)
      fingerprint = folder.parent.name
    environment = folder / stage.ENVIRONMENT
    metadata = {
      'network': network,
      'fingerprint': fingerprint,
      'model': json.dumps(model.to_dict()),
      'config': json.dumps(self.config.to_dict()),
      'environment': json.dumps(files.read_json(environment) if environment.exists() else {}),
    }
    files.write_bytes(epath.Path(path).expanduser(), safetensors_bytes(variables, metadata))

  def _made(self, name: str) -> epath.Path:
    path = self.folder / name
    if not path.exists():
      raise MissingInputError(
        f'the student is not evaluated: there is no {path}. Run the same command with --stages=evaluation, or '
        'look at another student: the independent one has no result.'
      )
    return path

  def __repr__(self) -> str:
    try:
      model = config_lib.student_model(self.config).name
    except DamageError as error:
      return f'Student({self.name}: {error})'
    if not self.is_evaluated:
      return f'Student({self.name}: {model}, not evaluated)'
    row = _measures(self.result)
    return (
      f'Student({self.name}: {model}, test accuracy {100 * row["accuracy"]:.2f} %, agreement with its '
      f'teacher {100 * row["agreement"]:.2f} %)'
    )


class Students(list[Student]):
  """The students of a workdir; `repr` draws their table."""

  def table(self) -> list[dict[str, Any]]:
    """A row for each evaluated student: its name, the fields in which students differ, and MEASURES on test.

    Accuracies and agreements are fractions, KL is in nats.
    """
    evaluated = [one for one in self if one.is_evaluated]
    fields = [config_lib.leaves(one.config) for one in evaluated]
    names = fields[0] if fields else {}
    differing = [name for name in names if len({repr(of[name]) for of in fields}) > 1]
    return [
      {'student': one.name, **{name: of[name] for name in differing}, **_measures(one.result)}
      for one, of in zip(evaluated, fields, strict=True)
    ]

  def __repr__(self) -> str:
    rows = self.table()
    title = f'{len(self)} students, {len(rows)} of them evaluated'
    if not rows:
      return title
    table = Table(*rows[0], title=title, title_justify='left')
    for row in rows:
      table.add_row(*(f'{x:.4f}' if isinstance(x, float) else str(x) for x in row.values()))
    return drawn(table)


class Predictions:
  """Stored log-probabilities of a teacher's members for every view of every example.

  To train a student outside of kdjax, take the images of a view from `kdjax.views`, and the teacher's
  predictions from `batch`.

  Attributes:
    folder: the folder of the store.
    num_members, num_views: how many are complete, or as many as the student had. Unaugmented splits have one view.
    stored_as: how 'distillation' is stored, such as 'float16', or 'top_k, k = 20, tail', whose
      log-probabilities are estimates.
  """

  def __init__(self, folder: epath.Path, size: tuple[int, int] | None = None):
    self.folder, self._store = folder, PredictionStore(folder)
    complete = self._store.meta.get('complete')
    if not complete:
      raise MissingInputError(
        f'{folder}: has no complete predictions; run launch.py with --stages=teachers,predictions first'
      )
    largest = max(complete, key=lambda pair: pair[0] * pair[1])
    self.num_members, self.num_views = size or largest
    self.stored_as = str(self._store.encoding('distillation'))
    self._teacher = StoredTeacher(self._store, self.num_members, self.num_views)

  @cached_property
  def shapes(self) -> dict[str, tuple[int, int, int, int]]:
    """(members, views, examples, classes) by split: 'distillation', 'train', 'test', perhaps 'val'."""
    names = sorted(path.name for path in (self.folder / 'logits').iterdir())
    return {
      name: (
        self.num_members,
        self.num_views if name == 'distillation' else 1,
        *self._store.read(name, [0], 0).shape[1:],
      )
      for name in names
    }

  def members(self, split: str, view: int = 0) -> np.ndarray:
    """log_probs_MNC in float32 of every member, for one view of every example.

    Raises:
      UserError: the split or view does not exist.
      DamageError: a chunk is missing or damaged.
    """
    self._require(split, view)
    return self._teacher.members(split, view)

  def ensemble(self, split: str, view: int = 0) -> np.ndarray:
    """log_probs_NC in float32 of the ensemble, the mean of the members' probabilities. Raises as `members`."""
    self._require(split, view)
    return self._store.read_ensemble(split, self.num_members, view)

  def batch(self, indices_B: np.ndarray, views_B: np.ndarray) -> np.ndarray:
    """log_probs_BC of the ensemble for a batch of the distillation data.

    A view is read whole, and the next one ahead of time, so take all batches of a view before the next.

    Args:
      indices_B: the numbers of the examples.
      views_B: the view of each example, below `num_views`.
    """
    indices_B, views_B = np.asarray(indices_B), np.asarray(views_B)
    num_examples = self.shapes['distillation'][2]
    wrong = indices_B[(indices_B < 0) | (indices_B >= num_examples)]
    if len(wrong):
      raise UserError(f'indices_B: has {wrong[0]}; allowed: 0 to {num_examples - 1}')
    for view in (views_B.min(), views_B.max()):
      self._require('distillation', int(view))
    return self._teacher.batch('distillation', {'indices': indices_B, 'views': views_B})

  def _require(self, split: str, view: int) -> None:
    if split not in self.shapes:
      raise UserError(f'split = {split!r}: allowed: one of {", ".join(self.shapes)}')
    if not 0 <= view < self.shapes[split][1]:
      raise UserError(f'view = {view}: {split} has the views 0 to {self.shapes[split][1] - 1}')

  def __repr__(self) -> str:
    sizes = ', '.join(f'{name} {shape}' for name, shape in self.shapes.items())
    return f'Predictions({self.folder}: (member, view, example, class) of {sizes}; distillation as {self.stored_as})'


def safetensors_bytes(variables: Mapping[str, Any], metadata: Mapping[str, str]) -> bytes:
  """The content of a safetensors file with the leaves of nested dicts, named by their keys, joined by '/'.

  Raises:
    UserError: the package safetensors is missing.
  """
  try:
    from safetensors.numpy import save
  except ImportError as error:
    raise UserError("export needs a package: pip install 'kdjax[safetensors]'") from error
  # The package writes the memory of an array as it is, which would be wrong for a transposed one.
  flat = traverse_util.flatten_dict(dict(variables), sep='/')
  return save({name: np.asarray(array, order='C') for name, array in flat.items()}, dict(metadata))


def _member(experiment: Experiment, member: int) -> tuple[dict[str, Any], epath.Path]:
  """The variables and the folder of a teacher's member."""
  section = experiment.config.teacher
  if not config_lib.has_weights(section.source):
    raise UserError(
      f'member = {member}: teacher.source = {section.source!r} has only predictions; there are no weights'
    )
  if not 0 <= member < section.num_members:
    raise UserError(
      f'member = {member}: the teacher has the members 0 to {section.num_members - 1}'
    )
  return jax.device_get(teachers.load(experiment, member)), experiment.folders.member(member)


def drawn(*parts: Any) -> str:
  """Texts and tables as one text."""
  text = io.StringIO()
  # By default, rich would display the text in a notebook and add colours.
  options = ('markup', 'highlight', 'force_jupyter', 'force_terminal')
  console = Console(file=text, width=WIDTH, **dict.fromkeys(options, False))
  console.print(*parts, sep='\n')
  return text.getvalue().rstrip()


def _measures(result: Mapping[str, Any]) -> dict[str, float]:
  test = result['splits']['test']
  return {name: test[who][key] for name, (who, key) in MEASURES.items() if who in test}


def _age(folder: epath.Path) -> tuple[float, str]:
  """A sort key: the newest result first, students without a result last."""
  path = folder / 'result.json'
  return (-path.stat().mtime if path.exists() else 0.0), folder.name
