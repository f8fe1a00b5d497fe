"""The stage that trains the independent baseline: another teacher, and the student that it taught.

Whoever agrees with a teacher just because both are right has learnt nothing from it. So every student
is measured beside a student of the same recipe whose teacher has other seeds (paper, Section 3). It is
an ordinary student of the same workdir, found again by its own fingerprint.
"""

from kdjax import config as config_lib
from kdjax.errors import DivergedError
from kdjax.runtime import progress
from kdjax.stages import predictions, student, teachers
from kdjax.stages.run import Run
from kdjax.train import loop


def run(run: Run) -> bool:
  """Trains what is missing, if the config wants the baseline. Returns whether anything was."""
  if run.config.evaluation.independent_seed is None:
    return False
  other = counterpart(run)
  if loop.is_complete(other.student_folder):
    return False
  if has_diverged(run):
    progress.logger.warning(
      'the independent student, or a teacher of it, has diverged; going on without: %s',
      other.student_folder,
    )
    return False
  try:
    return _train(other)
  except DivergedError as error:
    raise DivergedError(
      f'{error} It was of the independent student: the same command goes on without that baseline'
    ) from error


def _train(other: Run) -> bool:
  needs_teachers = other.config.student.init_lambda > 0 or other.config.predictions.mode == 'online'
  if needs_teachers or not predictions.is_stored(other):
    teachers.run(other)
  predictions.run(other)
  return student.run(other)


def is_wanted(run: Run) -> bool:
  """Whether results have the baseline: the config says so, and its training has not diverged."""
  return run.config.evaluation.independent_seed is not None and not has_diverged(run)


def has_diverged(run: Run) -> bool:
  """Whether the independent student, or a teacher of it, was found to diverge."""
  other = counterpart(run)
  members = map(other.member_folder, range(other.config.teacher.num_members))
  return any(map(loop.has_diverged, [other.student_folder, *members]))


def counterpart(run: Run) -> Run:
  return Run(config_lib.independent(run.config), run.workdir)
