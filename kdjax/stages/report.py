"""Stage 'report': the page of the student, and the index and results.csv of all students of the workdir."""

from collections.abc import Sequence
from functools import partial

from etils import epath

from kdjax import config as config_lib
from kdjax.report import index, page
from kdjax.runtime import hosts
from kdjax.stages import evaluation
from kdjax.stages.experiment import Experiment
from kdjax.stages.stage import Job, Stage


def _jobs(experiment: Experiment) -> Sequence[Job]:
  # `page.write` checks whether a page is up to date. Its files are written whole, so it needs no lock.
  return [Job(None, is_complete=lambda: False, make=partial(_make, experiment))]


STAGE = Stage('report', _jobs, requires=lambda experiment: [evaluation.ANY_RESULT])


def path(experiment: Experiment) -> epath.Path:
  """The page of the student."""
  return experiment.folders.student / page.NAME


def _make(experiment: Experiment) -> bool:
  if not hosts.is_main():
    return False
  has_page = page.write(
    experiment.folders.student,
    experiment.folders.members,
    test=lambda: experiment.data.splits['test'],
    class_names=experiment.data.description.class_names,
    gan_folder=experiment.folders.gan if config_lib.needs_gan(experiment.config) else None,
  )
  return index.write(experiment.workdir) or has_page
