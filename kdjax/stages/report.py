"""Stage 'report': report.html for the student, and results.csv for all students of the workdir."""

from collections.abc import Sequence
from functools import partial

from kdjax import config as config_lib
from kdjax.report import page
from kdjax.runtime import hosts
from kdjax.stages import evaluation
from kdjax.stages.experiment import Experiment
from kdjax.stages.stage import Job, Stage


def _jobs(experiment: Experiment) -> Sequence[Job]:
  # The page itself knows whether it is up to date. Its files are written whole, so it needs no lock.
  return [Job(None, is_complete=lambda: False, make=partial(_make, experiment))]


STAGE = Stage('report', _jobs, requires=lambda experiment: [evaluation.ANY_RESULT])


def _make(experiment: Experiment) -> bool:
  if not hosts.is_main():
    return False
  return page.write(
    experiment.workdir,
    experiment.folders.student,
    experiment.folders.members,
    test=lambda: experiment.data.splits['test'],
    class_names=experiment.data.description.class_names,
    gan_folder=experiment.folders.gan if config_lib.needs_gan(experiment.config) else None,
  )
