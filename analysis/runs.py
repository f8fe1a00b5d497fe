"""A finished student with its teachers and the students it is compared with, found from a folder.

    study = runs.load('runs/digits_resnet')  # or gs://..., or one student's folder
    study.student(), study.member(0)

The config is that in the student's folder.
"""

import dataclasses
import json
from collections.abc import Callable
from functools import cached_property, partial

import numpy as np
from etils import epath
from ml_collections import ConfigDict

from kdjax import config as config_lib
from kdjax import losses
from kdjax.errors import DamageError, MissingInputError
from kdjax.runtime import progress
from kdjax.stages import finished, independent, student, teachers
from kdjax.stages.experiment import Experiment
from kdjax.train import loop
from kdjax.train.checkpoint import Checkpoints
from kdjax.train.steps import Variables


def load(path: epath.PathLike) -> 'Study':
  """The student in a folder, or the newest one of a workdir.

  The newest is the one that was evaluated last. If none was evaluated, there must be exactly one.

  Raises:
    MissingInputError: there is no folder, or no finished student in it.
    DamageError: the folder's config.json is damaged, or of another version of kdjax.
  """
  return Study(finished.experiment(finished.find(path)))


@dataclasses.dataclass(frozen=True)
class Study:
  """One finished student; everything is read when it is first used."""

  experiment: Experiment

  @property
  def folder(self) -> epath.Path:
    """The folder of its analyses."""
    return self.experiment.workdir / 'analysis' / self.experiment.folders.student.name

  @property
  def seed(self) -> int:
    return self.experiment.config.seed

  @property
  def num_members(self) -> int:
    return self.experiment.config.teacher.num_members

  @property
  def fingerprints(self) -> dict[str, str]:
    config = self.experiment.config
    return {
      'teacher': config_lib.teacher_fingerprint(config),
      'predictions': config_lib.predictions_fingerprint(config),
      'student': config_lib.student_fingerprint(config),
    }

  @property
  def same_architecture(self) -> bool:
    """Whether teacher and student live in the same weight space."""
    return config_lib.shares_weight_space(self.experiment.config)

  @property
  def has_teachers(self) -> bool:
    """Whether the weights of all members exist, and not only their predictions."""
    return all(teachers.is_trained(self.experiment, i) for i in range(self.num_members))

  @property
  def lacks_teacher(self) -> str | None:
    """Why no teacher can be a point of the student's weight space; None if one can."""
    source = self.experiment.config.teacher.source
    if not config_lib.has_weights(source):
      return f"needs a teacher's weights: teacher.source = {source!r} has only predictions"
    if not self.same_architecture:
      return 'the teacher has another architecture than the student: they share no weight space'
    if not self.has_teachers:
      return "the teacher's checkpoints are gone; only its predictions are left"
    return None

  @property
  def lacks_loss(self) -> str | None:
    """Why the student's objective cannot be measured; None if it can."""
    name = self.experiment.config.student.loss
    if {'student_features', 'teacher_features'} & set(losses.needs(losses.find(name))):
      return f'student.loss = {name!r} needs features, and the analysis has only logits'
    return None

  def member(self, member: int = 0) -> Variables:
    """A teacher's final variables; raises MissingInputError if its folder is gone."""
    return teachers.load(self.experiment, member)

  def unrelated_teachers(self) -> dict[str, Callable[[], Variables]]:
    """The independent student's teachers in the workdir, by a name of fingerprint and member.

    They were trained by the same recipe with other seeds, and the student never saw them. Each function
    returns a member's final variables.
    """
    if self.experiment.config.evaluation.independent_seed is None:
      return {}
    other = independent.counterpart(self.experiment)
    found = {}
    for member in range(other.config.teacher.num_members):
      if teachers.is_trained(other, member):
        name = f'{config_lib.teacher_fingerprint(other.config)}/{member}'
        found[name] = partial(teachers.load, other, member)
    return found

  @cached_property
  def steps(self) -> list[int]:
    """The student's kept checkpoints in order; the last is the final one."""
    folder = self.experiment.folders.student / 'checkpoints'
    with Checkpoints(folder, create=False) as checkpoints:
      return checkpoints.steps

  def student(self, step: int | None = None) -> Variables:
    """The student's variables, final or after a kept step."""
    return student.load(self.experiment, step)

  @cached_property
  def siblings(self) -> list[Experiment]:
    """Finished students of the workdir that differ from this one in their seed alone."""
    return self.reseeded(self.experiment)

  def reseeded(self, experiment: Experiment) -> list[Experiment]:
    """Finished students of the workdir that differ from that of `experiment` in their seed alone.

    Damaged ones are left out with a warning.
    """
    found, name = [], experiment.folders.student.name
    for other in self._neighbours:
      alike = _with_seed(other.config, config_lib.student_seed(experiment.config))
      is_itself = other.folders.student.name == name
      if config_lib.student_fingerprint(alike) == name and not is_itself:
        found.append(other)
    return [other for other in found if _is_sound(other)]

  def alike(self, experiment: Experiment) -> list[Experiment]:
    """The student of `experiment`, if it is finished and sound, and those of `reseeded`."""
    return [experiment] * _is_sound(experiment) + self.reseeded(experiment)

  @cached_property
  def _neighbours(self) -> list[Experiment]:
    """All finished students of the workdir whose config can be read."""
    found = []
    for path in sorted(self.experiment.folders.student.parent.glob('*/complete.json')):
      try:
        if loop.is_complete(path.parent):
          found.append(Experiment(finished.read_config(path.parent), self.experiment.workdir))
      except DamageError as error:
        _leave_out(path.parent, error)
    return found

  @cached_property
  def independent(self) -> Experiment | None:
    """The independent student's experiment (another teacher, the same recipe), if it was trained.

    If it is damaged, it is left out with a warning.
    """
    if self.experiment.config.evaluation.independent_seed is None:
      return None
    other = independent.counterpart(self.experiment)
    return other if _is_sound(other) else None

  @property
  def others(self) -> dict[str, list[str]]:
    """Fingerprints of the students that it is compared with."""
    others = {
      'siblings': self.siblings,
      'independent': [] if self.independent is None else [self.independent],
    }
    return {key: [other.folders.student.name for other in of] for key, of in others.items()}

  @property
  def steps_per_second(self) -> float | None:
    """The median speed of the student's own training; None if it was not logged."""
    path = self.experiment.folders.student / 'metrics.jsonl'
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    speeds = [row['examples_per_second'] for row in rows if row.get('examples_per_second')]
    if not speeds:
      return None
    return float(np.median(speeds)) / self.experiment.config.student.batch_size

  @property
  def initial_is_kept(self) -> bool:
    return 0 in self.steps

  @property
  def names(self) -> list[str]:
    """The names of the existing networks of the student's architecture, in the order of drawing.

    They are 'initial' (if it was kept), 'student', 'teacher 0', ..., 'sibling' and 'independent'.
    """
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
SIBLING = 1  # added to the student's seed


def train_sibling(study: Study) -> None:
  """Trains a student that differs in its seed alone, if the workdir has none."""
  if not study.siblings:
    own = study.experiment
    config = _with_seed(own.config, config_lib.student_seed(own.config) + SIBLING)
    try:
      student.named(SIBLING_NAME).run(Experiment(config, own.workdir))
    except MissingInputError as error:
      raise MissingInputError(
        f'no sibling can be trained ({error}); use --train=none to do without'
      ) from error
    for found in ('siblings', '_neighbours'):
      study.__dict__.pop(found, None)


def _with_seed(config: ConfigDict, seed: int) -> ConfigDict:
  other = config.copy_and_resolve_references()
  other.student.seed = seed
  return other


def _is_sound(experiment: Experiment) -> bool:
  """Whether a student is trained, and its weights can be read."""
  try:
    if not student.STAGE.is_complete(experiment):
      return False
    student.load(experiment)
  except DamageError as error:
    _leave_out(experiment.folders.student, error)
    return False
  return True


def _leave_out(folder: epath.Path, error: DamageError) -> None:
  progress.logger.warning('%s: this other student is left out: %s', folder, error)
