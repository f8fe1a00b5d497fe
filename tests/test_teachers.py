import json
import shutil

import jax
import members_on_devices
import numpy as np
import pytest
from conftest import copied, tiny_run

from kdjax.errors import MissingInputError
from kdjax.runtime import files
from kdjax.stages import teachers
from kdjax.stages.experiment import Experiment
from kdjax.train.checkpoint import Checkpoints, digest
from tests import launched


def test_members_are_independent(finished):
  """Their initial weights differ, and the order and the views of their data."""
  first, second = (teachers.load(finished, i)['params'] for i in range(2))
  differences = jax.tree.map(lambda a, b: float(np.abs(a - b).max()), first, second)
  assert len([d for d in jax.tree.leaves(differences) if d > 0.05]) > 5  # of 10 arrays
  seeds = [(finished.folders.member(i) / 'metrics.jsonl').read_text() for i in range(2)]
  assert json.loads(seeds[0].splitlines()[0]) != json.loads(seeds[1].splitlines()[0])


def test_only_missing_members_are_trained_and_none_depends_on_another(finished, tmp_path):
  run = copied(finished, tmp_path)
  assert not teachers.STAGE.run(run)
  shutil.rmtree(run.folders.member(1))
  with pytest.raises(MissingInputError, match='member 1 is not trained'):
    teachers.load(run, 1)
  kept = (run.folders.member(0) / 'metrics.jsonl').stat().mtime
  assert teachers.STAGE.run(run)
  assert (run.folders.member(0) / 'metrics.jsonl').stat().mtime == kept
  assert digests(run) == digests(finished)


def test_another_seed_is_another_ensemble(finished, tmp_path):
  run = tiny_run(tmp_path, seed=1)
  assert run.folders.member(0).parent.name != finished.folders.member(0).parent.name
  assert digest(teachers.initial(run, 0)) != digest(teachers.initial(finished, 0))
  seeds = {teachers.member_seed(r, i) for r in (run, finished) for i in range(2)}
  assert len(seeds) == 4  # from which the order and the views follow too


# Members in parallel.


def digests(run):
  return [digest(teachers.load(run, i)) for i in range(run.config.teacher.num_members)]


def test_members_on_a_device_each_are_those_of_a_single_device(tmp_path):
  """Their folder differs, since several devices give other bits."""
  process = launched.call(members_on_devices.main, tmp_path, num_devices=2)
  single = tiny_run(tmp_path, **members_on_devices.FIELDS)
  teachers.STAGE.run(single)
  printed, errors = process.communicate()
  assert process.wait() == 0, errors
  found = json.loads(printed.splitlines()[-1])
  assert (found['devices'], sorted(found['used'])) == (2, [0, 1])
  assert found['digests'] == digests(single)
  run = tiny_run(tmp_path, **members_on_devices.FIELDS, teacher__members_in_parallel=True)
  assert run.folders.member(0).parent.name != single.folders.member(0).parent.name
  assert not teachers.STAGE.run(run)


def test_interrupted_members_go_on_and_an_ensemble_can_grow(finished, tmp_path, monkeypatch):
  """The first is killed when it is evaluated for the third time of four."""
  run = tiny_run(tmp_path, teacher__members_in_parallel=True, teacher__num_members=1)
  evaluate, calls = Experiment.evaluate, []

  def failing(*arguments):
    calls.append(arguments)
    if len(calls) == 3:
      raise KeyboardInterrupt
    return evaluate(*arguments)

  monkeypatch.setattr(Experiment, 'evaluate', failing)
  with pytest.raises(KeyboardInterrupt):
    teachers.STAGE.run(run)
  assert not teachers.is_trained(run, 0)
  with Checkpoints(run.folders.member(0) / 'checkpoints', create=False) as checkpoints:
    assert 0 < checkpoints.steps[-1] < run.teacher.plan.num_steps
  grown = tiny_run(tmp_path, teacher__members_in_parallel=True)
  assert teachers.STAGE.run(grown)
  assert digests(grown) == digests(finished)
  steps_logged = [
    row['step'] for row in files.read_json_lines(run.folders.member(0) / 'metrics.jsonl')
  ]
  assert steps_logged == sorted(grown.teacher.plan.stops)
