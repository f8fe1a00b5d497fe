"""The definition of a part of the analysis, and what it receives: settings, saved blocks and checks."""

import dataclasses
import hashlib
import json
import math
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
from etils import epath

from kdjax.errors import DamageError, UserError
from kdjax.runtime import files

from .runs import Study

if TYPE_CHECKING:
  from matplotlib.figure import Figure

Arrays = dict[str, np.ndarray]
Table = list[list[str]]  # rows of cells; the first row is the heading
CHECKS = 'checks'  # in an .npz, as JSON


def _names(text: str) -> Any:
  """A setting that names networks; which names exist depends on the student."""
  return dataclasses.field(default=(), metadata={'help': text})


def _field(default: Any, smallest: float, text: str, largest: float = math.inf) -> Any:
  metadata = {'smallest': smallest, 'largest': largest, 'help': text}
  return dataclasses.field(default=default, metadata=metadata)


@dataclasses.dataclass(frozen=True)
class Settings:
  """How much is computed. The defaults take minutes on two cores for configs/digits_resnet.py."""

  num_examples: int = _field(512, 2, 'Examples of the distillation data, and of the test set.')
  resolution: int = _field(25, 3, 'Points along the longer side of a plane.')
  random_resolution: int = _field(11, 3, 'Points along a side of the random plane.')
  corners: tuple[str, ...] = _names(
    "Three networks that ensemble_plane goes through, such as 'teacher 2,student,sibling'. Default: "
    'the first three that exist of teacher 0, student, teacher 1, sibling, independent, initial.'
  )
  max_members: int = _field(2, 1, 'Most members of the teacher in the matrices of barriers.')
  path_points: int = _field(9, 3, 'Points along a path.')
  alignment_restarts: int = _field(3, 0, 'Random starts of weight matching, for each alignment.')
  alignment_steps: int = _field(30, 0, 'Gradient steps of the learned alignment.')
  bezier_steps: int = _field(200, 1, 'Training steps of a Bezier curve.')
  pairs: tuple[str, ...] = _names(
    "Pairs of networks whose paths are shown, such as 'teacher 0:student,initial:sibling'; or 'all'. "
    'Default: student with teacher 0, student with sibling or independent, initial with student, and '
    'teacher 0 with teacher 1.'
  )
  gradient_batches: int = _field(
    8, 3, "Most batches of the training's size for the gradient at a checkpoint."
  )
  curvature_examples: int = _field(256, 2, 'Examples of the distillation data for curvature.')
  num_eigenpairs: int = _field(10, 1, 'Largest eigenvalues that are computed.')
  lanczos_steps: int = _field(25, 2, 'Products with the Hessian for each probe.')
  kernel_examples: int = _field(
    64, 2, 'Examples of the distillation data for a neural tangent kernel.'
  )
  num_probes: int = _field(2, 2, 'Random vectors for densities and traces.')

  num_forks: int = _field(3, 1, 'Kept checkpoints at which training is forked.')
  fork_seeds: int = _field(2, 1, 'Continuations of each fork, in addition to the student.')
  lambdas: tuple[float, ...] = _field(
    (0.0, 0.25, 0.5, 1.0), 0.0, 'Values of λ at which students start.', 1.0
  )
  lambda_resolution: int = _field(11, 3, 'Points along the longer side of the plane of each λ.')
  return_radii: tuple[float, ...] = _field(
    (0.1, 0.3, 1.0), 1e-6, "Distances from the teacher, relative to its weights' norm."
  )
  return_epochs: float = _field(10.0, 0.01, 'Epochs of distillation from around the teacher.', 1e6)

  def problems(self) -> list[str]:
    """The problems of the numeric settings, one line each, for a ConfigError."""
    numbers = [field for field in dataclasses.fields(self) if 'smallest' in field.metadata]
    wrong = [problem for field in numbers for problem in self._problems(field)]
    if self.lanczos_steps < self.num_eigenpairs:
      wrong.append(
        f'--lanczos_steps = {self.lanczos_steps}: allowed: --num_eigenpairs = {self.num_eigenpairs} or '
        'more; each product with the Hessian finds at most one eigenvalue'
      )
    return wrong

  def _problems(self, field: dataclasses.Field) -> Iterator[str]:
    value = getattr(self, field.name)
    smallest, largest = field.metadata['smallest'], field.metadata['largest']
    values = value if isinstance(value, tuple) else (value,)
    if not values or not all(math.isfinite(x) and smallest <= x <= largest for x in values):
      allowed = f'{smallest} or more' if largest == math.inf else f'{smallest} to {largest}'
      each = ', for each of one or more' if isinstance(value, tuple) else ''
      yield f'--{field.name} = {value}: allowed: {allowed}{each}'


def stacked(pieces: list[Arrays]) -> Arrays:
  """Stacks pieces with the same keys along a new first axis."""
  return {key: np.stack([piece[key] for piece in pieces]) for key in pieces[0]}


class CheckError(UserError):
  """A self-check of an analysis failed, so its numbers cannot be trusted."""


class Checks:
  """Self-checks of a part; their values are saved with its results."""

  def __init__(self):
    self.values: dict[str, list[float]] = {}

  def at_most(self, name: str, value: float, limit: float) -> None:
    """Records a deviation; if it is recorded several times, the largest is kept.

    Raises:
      CheckError: it is above the limit, or NaN.
    """
    value = float(value)
    if not value <= limit:
      raise CheckError(
        f'the self-check {name!r} failed: {value:.3g} is not at most {limit:.3g}. The numbers of this '
        'part would be wrong, and were not written; please report it with the config.'
      )
    largest = max(value, self.values.get(name, [-math.inf])[0])
    self.values[name] = [largest, float(limit)]

  def same_mean(self, name: str, found_N: np.ndarray, expected_N: np.ndarray, limit: float) -> None:
    """Records how far two means are apart, relative to the expected mean where that is above 1."""
    found, expected = float(np.mean(found_N)), float(np.mean(expected_N))
    self.at_most(name, abs(found - expected) / max(1, abs(expected)), limit)


class Blocks:
  """Finished pieces of an unfinished part on disk, so that a killed run continues.

  Pieces of other settings are in another folder beside it.
  """

  def __init__(self, folder: epath.Path, checks: Checks | None = None):
    """Saves each piece with those of the part's `checks` that were made for it."""
    self._folder, self._checks = folder, checks or Checks()

  def get(self, key: str, compute: Callable[[], Arrays]) -> Arrays:
    """The arrays of a piece, from disk or else from `compute()`."""
    path = self._folder / f'{key.replace(" ", "_")}.npz'
    if not path.exists():
      before, self._checks.values = self._checks.values, {}
      try:
        arrays, made = compute(), self._checks.values
      finally:
        self._checks.values = before
      files.write_arrays(path, arrays | {CHECKS: np.array(json.dumps(made))})
    arrays = files.read_arrays(path)
    for name, (value, limit) in json.loads(str(arrays.pop(CHECKS))).items():
      self._checks.at_most(name, value, limit)
    return arrays

  def delete(self) -> None:
    """Deletes the blocks of a finished part, including those of other settings."""
    if self._folder.parent.exists():
      self._folder.parent.rmtree()


@dataclasses.dataclass(frozen=True)
class Training:
  """A student that a part trains; `num_steps` is 0 if it is already trained."""

  name: str
  num_steps: int


@dataclasses.dataclass(frozen=True)
class Part:
  """One analysis: its numbers, figure, caption and table."""

  name: str  # of its files, and in --parts
  title: str
  reads: tuple[str, ...]  # the settings that its numbers depend on
  compute: Callable[[Study, Settings, Blocks, Checks], Arrays]
  draw: Callable[[Arrays], 'Figure']
  caption: Callable[[Arrays], str]
  answers: str = ''  # the question, for --help; by default the title
  training: str = ''  # the students that it trains in words, for --help
  table: Callable[[Arrays], Table] = lambda arrays: []  # the numbers that the figure shows
  # The students that it trains when it computes.
  trains: Callable[[Study, Settings], list[Training]] = lambda study, settings: []
  unavailable: Callable[[Study], str | None] = lambda study: None  # why it cannot be computed
  # (names of existing networks, settings) → the problems of settings that name networks.
  misnamed: Callable[[list[str], Settings], list[str]] = lambda names, settings: []
  # Further values that its numbers depend on, as JSON.
  depends: Callable[[Study, Settings], Any] = lambda study, settings: None
  compares_others: bool = False  # whether it uses siblings and the independent student
  measures_loss: bool = True  # whether it needs the student's objective, as a function of logits
  version: int = 1  # raise it when a change of the code makes old numbers wrong

  def lacks(self, study: Study, trains_sibling: bool = False) -> str | None:
    """Why it cannot be computed for a study; None if it can.

    Args:
      trains_sibling: whether a sibling will be trained, which may be the network that the part lacks.
    """
    reason = None if trains_sibling and self.compares_others else self.unavailable(study)
    return reason or (study.lacks_loss if self.measures_loss else None)

  def record(self, study: Study, settings: Settings) -> dict[str, Any]:
    """The settings and fingerprints that its numbers depend on, as JSON values."""
    record = {
      'part': self.name,
      'version': self.version,
      'has_teachers': study.has_teachers,  # otherwise their stored predictions are used
      'fingerprints': study.fingerprints,
      'batch_size': study.experiment.config.evaluation.batch_size,  # of BatchNorm's statistics
      'settings': {name: getattr(settings, name) for name in self.reads},
    }
    if self.compares_others:
      record['others'] = study.others
    if found := self.depends(study, settings):
      record['depends'] = found
    return json.loads(json.dumps(record))


def read_record(path: epath.Path) -> dict[str, Any]:
  """The record that a part's .npz holds beside its numbers."""
  arrays = files.read_arrays(path)
  if 'record' not in arrays:
    raise DamageError(f'{path} has no record; delete it and run again')
  return json.loads(str(arrays['record']))


def digest(record: dict[str, Any]) -> str:
  """A short name for a record."""
  return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()[:12]
