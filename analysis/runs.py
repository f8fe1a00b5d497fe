"""A finished student and what surrounds it, found from a folder alone.

    study = runs.load('runs/digits_resnet')  # or gs://..., or one student's folder
    study.student(), study.member(0)

`Run` (kdjax/stages/run.py) needs a config; here the config is the one that lies in the student's folder.
"""

import dataclasses
import json
from collections.abc import Callable
from functools import cached_property, partial

import numpy as np
from etils import epath
from ml_collections import ConfigDict

from configs import base
from kdjax import config as config_lib
from kdjax.errors import DamageError, MissingInputError
from kdjax.runtime import files, progress
from kdjax.stages import independent, student, teachers
from kdjax.stages.run import Run
from kdjax.train import loop
from kdjax.train.checkpoint import Checkpoints
from kdjax.train.steps import Variables


def load(path: epath.PathLike) -> 'Study':
  """The student in a folder, or the newest one of a workdir.

  The newest is the one that was evaluated last. Where none was, there must be just one.

  Raises:
    MissingInputError: there is no folder, or no finished student in it.
    DamageError: the folder's config.json is damaged, or of another version of kdjax.
  """
  if not files.is_reachable(str(path)):
    raise MissingInputError(f'{path}: {files.NEEDS_CLOUD}')
  path = epath.Path(path).expanduser()
  path = path if path.is_absolute() else path.absolute()
  if not path.is_dir():
    raise MissingInputError(f'{path}: there is no such folder; give a workdir or a student in it')
  folder = path if path.parent.name == 'students' else _newest(path)
  if not loop.is_complete(folder):
    raise MissingInputError(
      f'{folder}: the student is not trained to its end; run the command that began it again'
    )
  run = Run(read_config(folder), folder.parents[1])
  if run.student_folder != folder:
    raise DamageError(
      f'{folder / "config.json"} gives the student {run.student_folder.name}, not {folder.name}: it '
      'was changed, or was written by another version of kdjax. Train the student again.'
    )
  return Study(run)


def _newest(workdir: epath.Path) -> epath.Path:
  evaluated = list((workdir / 'students').glob('*/result.json'))
  if evaluated:
    return max(evaluated, key=lambda path: (path.stat().mtime, path.as_posix())).parent
  trained = list((workdir / 'students').glob('*/complete.json'))
  if len(trained) == 1:
    return trained[0].parent
  if trained:  # some may be independent students, or siblings
    raise MissingInputError(
      f'{workdir}: none of its {len(trained)} students is evaluated. Give the folder of one, such as '
      f'{trained[0].parent}, or run launch.py with --stages=evaluation'
    )
  raise MissingInputError(
    f'{workdir}: no finished student in {workdir / "students"}; train one with launch.py '
    f'--workdir={workdir}'
  )


def read_config(folder: epath.Path) -> ConfigDict:
  """The config that a student or teacher was trained with, with the types of configs/base.py."""
  path = folder / 'config.json'
  if not path.exists():
    raise DamageError(f'{path} is missing. Run the command of that student again.')
  saved, config = config_lib.leaves(ConfigDict(files.read_json(path))), base.get_config()
  known = config_lib.leaves(config)
  if unknown := sorted(saved.keys() - known.keys()):
    raise DamageError(
      f'{path} has fields that this version of kdjax does not know: {", ".join(unknown)}. Use the '
      'version that wrote it.'
    )
  values = {k: tuple(v) if isinstance(v, (list, tuple)) else v for k, v in saved.items()}
  config.update_from_flattened_dict(values)
  return config


@dataclasses.dataclass(frozen=True)
class Study:
  """One finished student. Nothing is read before it is asked for."""

  run: Run

  @property
  def folder(self) -> epath.Path:
    """Where its analyses are written."""
    return self.run.workdir / 'analysis' / self.run.student_folder.name

  @property
  def seed(self) -> int:
    return self.run.config.seed

  @property
  def num_members(self) -> int:
    return self.run.config.teacher.num_members

  @property
  def fingerprints(self) -> dict[str, str]:
    config = self.run.config
    return {
      'teacher': config_lib.teacher_fingerprint(config),
      'predictions': config_lib.predictions_fingerprint(config),
      'student': config_lib.student_fingerprint(config),
    }

  @property
  def same_architecture(self) -> bool:
    """Whether teacher and student live in the same weight space."""
    return config_lib.shares_weight_space(self.run.config)

  @property
  def has_teachers(self) -> bool:
    """Whether all members are there, and not just their predictions."""
    return all(teachers.is_trained(self.run, i) for i in range(self.num_members))

  @property
  def lacks_teacher(self) -> str | None:
    """Why no teacher can be a point of the student's weight space; None if one can."""
    if not self.same_architecture:
      return 'the teacher has another architecture than the student: they share no weight space'
    if not self.has_teachers:
      return "the teacher's checkpoints are gone; only its predictions are left"
    return None

  def member(self, member: int = 0) -> Variables:
    """A teacher's final variables; raises MissingInputError if its folder is gone."""
    return teachers.load(self.run, member)

  def unrelated_teachers(self) -> dict[str, Callable[[], Variables]]:
    """The members behind the independent student, by a name that says whose they are.

    They were trained by the same recipe with other seeds, and the student never saw them. None where they
    are not in the workdir. Each function returns a member's final variables.
    """
    if self.run.config.evaluation.independent_seed is None:
      return {}
    other = independent.counterpart(self.run)
    found = {}
    for member in range(other.config.teacher.num_members):
      if teachers.is_trained(other, member):
        name = f'{config_lib.teacher_fingerprint(other.config)}/{member}'
        found[name] = partial(teachers.load, other, member)
    return found

  @cached_property
  def steps(self) -> list[int]:
    """The student's kept checkpoints in order; the last is the final one."""
    with Checkpoints(self.run.student_folder / 'checkpoints', read_only=True) as checkpoints:
      return checkpoints.steps

  def student(self, step: int | None = None) -> Variables:
    """The student's variables, final or after a kept step."""
    return student.load(self.run, step)

  @cached_property
  def siblings(self) -> list[Run]:
    """Finished students of the workdir that differ from this one in their seed alone."""
    return self.reseeded(self.run)

  def reseeded(self, run: Run) -> list[Run]:
    """Finished students of the workdir that differ from that of `run` in their seed alone.

    One that is damaged is left out, with a warning.
    """
    found = []
    for other in self._neighbours:
      alike = _with_seed(other.config, config_lib.student_seed(run.config))
      is_itself = other.student_folder.name == run.student_folder.name
      if config_lib.student_fingerprint(alike) == run.student_folder.name and not is_itself:
        found.append(other)
    return [other for other in found if _is_sound(other)]

  def alike(self, run: Run) -> list[Run]:
    """The student of `run`, if it is finished and sound, and those of `reseeded`."""
    own = [run] if loop.is_complete(run.student_folder) and _is_sound(run) else []
    return own + self.reseeded(run)

  @cached_property
  def _neighbours(self) -> list[Run]:
    """All finished students of the workdir whose config can be read."""
    found = []
    for path in sorted(self.run.student_folder.parent.glob('*/complete.json')):
      try:
        if loop.is_complete(path.parent):
          found.append(Run(read_config(path.parent), self.run.workdir))
      except DamageError as error:
        _leave_out(path.parent, error)
    return found

  @cached_property
  def independent(self) -> Run | None:
    """The independent student's run (another teacher, the same recipe), if it was trained.

    One that is damaged is left out, with a warning.
    """
    if self.run.config.evaluation.independent_seed is None:
      return None
    other = independent.counterpart(self.run)
    return other if _is_sound(other) else None

  @property
  def others(self) -> dict[str, list[str]]:
    """Fingerprints of the students that it is compared with."""
    independent = [] if self.independent is None else [self.independent]
    return {
      'siblings': [run.student_folder.name for run in self.siblings],
      'independent': [run.student_folder.name for run in independent],
    }

  @property
  def steps_per_second(self) -> float | None:
    """The median speed of the student's own training; None if its log does not tell."""
    path = self.run.student_folder / 'metrics.jsonl'
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    speeds = [row['examples_per_second'] for row in rows if row.get('examples_per_second')]
    if not speeds:
      return None
    return float(np.median(speeds)) / self.run.config.student.batch_size

  @property
  def initial_is_kept(self) -> bool:
    return 0 in self.steps

  @property
  def names(self) -> list[str]:
    """What there is of 'initial' (where it was kept), 'student', 'teacher 0', ..., 'sibling' and
    'independent', all weights of the student's architecture, in the order in which they are drawn."""
    return list(self._loaders)

  def point(self, name: str) -> Variables:
    """The weights of one of `names`."""
    return self._loaders[name]()

  def points(self) -> dict[str, Variables]:
    """All of `names` with their weights."""
    return {name: load() for name, load in self._loaders.items()}

  @property
  def _loaders(self) -> dict[str, Callable[[], Variables]]:
    found = {'initial': partial(self.student, 0)} if self.initial_is_kept else {}
    found['student'] = self.student
    if self.lacks_teacher is None:
      found |= {f'teacher {i}': partial(self.member, i) for i in range(self.num_members)}
    if self.siblings:
      found['sibling'] = partial(student.load, self.siblings[0])
    if self.independent is not None:
      found['independent'] = partial(student.load, self.independent)
    return found


SIBLING_NAME = 'sibling'
SIBLING = 1  # what is added to the seed of the student


def train_sibling(study: Study) -> None:
  """Trains a student that differs in its seed alone, if the workdir has none."""
  if not study.siblings:
    config = _with_seed(study.run.config, config_lib.student_seed(study.run.config) + SIBLING)
    try:
      student.run(Run(config, study.run.workdir), name=SIBLING_NAME)
    except MissingInputError as error:
      raise MissingInputError(
        f'no sibling can be trained ({error}); go without: --train=none'
      ) from error
    for found in ('siblings', '_neighbours'):
      study.__dict__.pop(found, None)


def _with_seed(config: ConfigDict, seed: int) -> ConfigDict:
  other = config.copy_and_resolve_references()
  other.student.seed = seed
  return other


def _is_sound(run: Run) -> bool:
  """Whether a student is trained, and its weights can be read."""
  try:
    if not loop.is_complete(run.student_folder):
      return False
    student.load(run)
  except DamageError as error:
    _leave_out(run.student_folder, error)
    return False
  return True


def _leave_out(folder: epath.Path, error: DamageError) -> None:
  progress.logger.warning('%s: this other student is left out: %s', folder, error)
