"""Stage 'independent': the baseline of fidelity, a student of another teacher.

Two accurate models agree by accuracy alone. So every student is compared with a student of the same recipe
whose teacher has other seeds (paper, Section 3). It is an ordinary student of the same workdir, with a
fingerprint of its own.
"""

import dataclasses
from collections.abc import Sequence

from kdjax import config as config_lib
from kdjax.runtime import progress
from kdjax.stages import predictions, student, teachers
from kdjax.stages.experiment import Experiment
from kdjax.stages.stage import Job, Stage
from kdjax.train import loop


def _jobs(experiment: Experiment) -> Sequence[Job]:
  """The job of the counterpart's student, unless the config excludes it or it has diverged."""
  if experiment.config.evaluation.independent_seed is None:
    return []
  other = counterpart(experiment)
  (job,) = student.jobs(other, f'{other.label}student')
  if not job.is_complete() and has_diverged(experiment):
    progress.logger.warning(
      'the independent student, or a teacher of it, has diverged; continuing without it: %s',
      job.folder,
    )
    return []
  missing = (
    'the independent student, the baseline of fidelity, is not trained '
    '(--config.evaluation.independent_seed=None goes without it).'
  )
  return [dataclasses.replace(job, missing=missing)]


def _prepares(experiment: Experiment) -> list[tuple[Stage, Experiment]]:
  other = counterpart(experiment)
  needs_teachers = other.config.student.init_lambda > 0 or other.config.predictions.mode == 'online'
  if needs_teachers or not predictions.STAGE.is_complete(other):
    return [(teachers.STAGE, other), (predictions.STAGE, other)]
  return [(predictions.STAGE, other)]


STAGE = Stage(
  'independent',
  _jobs,
  prepares=_prepares,
  on_divergence=(
    'This was the independent student. Run the same command again: it continues without that baseline'
  ),
)


def is_wanted(experiment: Experiment) -> bool:
  """Whether results have the baseline: the config says so, and its training has not diverged."""
  return experiment.config.evaluation.independent_seed is not None and not has_diverged(experiment)


def has_diverged(experiment: Experiment) -> bool:
  """Whether the independent student, or a teacher of it, was found to diverge."""
  folders = counterpart(experiment).folders
  return any(map(loop.has_diverged, [folders.student, *folders.members]))


def counterpart(experiment: Experiment) -> Experiment:
  config = config_lib.independent(experiment.config)
  title = experiment.title and f'{experiment.title}, independent student'
  return Experiment(config, experiment.workdir, 'independent ', experiment.tracked_by, title)
