"""The stage that trains the independent baseline: another teacher, and the student that it taught.

Whoever agrees with a teacher just because both are right has learnt nothing from it. So every student
is measured beside a student of the same recipe whose teacher has other seeds (paper, Section 3). It is
an ordinary student of the same workdir, found again by its own fingerprint.
"""

from kdjax import config as config_lib
from kdjax import predictions, student, teachers, training
from kdjax.run import Run


def run(run: Run) -> bool:
  """Trains what is missing, if the config wants the baseline. Returns whether anything was."""
  if run.config.evaluation.independent_seed is None:
    return False
  other = counterpart(run)
  if training.is_complete(other.student_folder):
    return False
  needs_teachers = other.config.student.init_lambda > 0 or other.config.predictions.mode == 'online'
  if needs_teachers or not predictions.is_stored(other):
    teachers.run(other)
  predictions.run(other)
  return student.run(other)


def counterpart(run: Run) -> Run:
  return Run(config_lib.independent(run.config), run.workdir)
