"""Runs whose members are untrained, for tests of stored predictions."""

import pathlib
import shutil

from conftest import tiny_run
from etils import epath

from kdjax.stages import predictions, teachers
from kdjax.stages.experiment import Experiment

SMALL = {
  'teacher__num_epochs': 0,
  'student__num_epochs': 1,
  'student__keep_checkpoints': (),
  'training__num_evals': 1,
  'evaluation__num_views': 1,
}


def predicted_run(workdir: pathlib.Path) -> Experiment:
  """A run of two members with their predictions of 3 views of 200 examples, in float16."""
  run = tiny_run(workdir, **SMALL)
  for stage in (teachers.STAGE, predictions.STAGE):
    assert stage.run(run)
  return run


def changed(run: Experiment, **fields) -> Experiment:
  """The run with other fields, in the same workdir."""
  config = run.config.copy_and_resolve_references()
  config.update_from_flattened_dict({k.replace('__', '.'): v for k, v in fields.items()})
  return Experiment(config, run.workdir)


def copy_of(run: Experiment, workdir: pathlib.Path, **fields) -> Experiment:
  """A copy of the run with other fields, which a test may change."""
  shutil.copytree(run.workdir, workdir, dirs_exist_ok=True)
  return Experiment(changed(run, **fields).config, epath.Path(workdir))
