import json
import shutil

import jax
import numpy as np
import pytest
from conftest import copied, tiny_run

from kdjax import teachers
from kdjax.checkpoint import digest
from kdjax.errors import MissingInputError


def test_members_are_independent(finished):
  """In their initial weights, and in the order and the views of the data."""
  first, second = (teachers.load(finished, i)['params'] for i in range(2))
  differences = jax.tree.map(lambda a, b: float(np.abs(a - b).max()), first, second)
  kernels = [d for d in jax.tree.leaves(differences) if d > 0.05]
  assert len(kernels) > 10
  seeds = [(finished.member_folder(i) / 'metrics.jsonl').read_text() for i in range(2)]
  assert json.loads(seeds[0].splitlines()[0]) != json.loads(seeds[1].splitlines()[0])


def test_a_member_does_not_depend_on_the_others(finished, tmp_path):
  run = copied(finished, tmp_path)
  expected = digest(teachers.load(run, 1))
  shutil.rmtree(run.member_folder(0))
  shutil.rmtree(run.member_folder(1))
  teachers._trainer(run)(1)
  assert digest(teachers.load(run, 1)) == expected
  with pytest.raises(MissingInputError, match='member 0 is not trained'):
    teachers.load(run, 0)


def test_only_missing_members_are_trained(finished, tmp_path):
  run = copied(finished, tmp_path)
  assert not teachers.run(run)
  shutil.rmtree(run.member_folder(0))
  kept = (run.member_folder(1) / 'metrics.jsonl').stat().mtime
  assert teachers.run(run)
  assert (run.member_folder(1) / 'metrics.jsonl').stat().mtime == kept
  assert digest(teachers.load(run, 0)) == digest(teachers.load(finished, 0))


def test_another_seed_is_another_ensemble(finished, tmp_path):
  run = tiny_run(tmp_path, seed=1)
  assert run.member_folder(0).parent.name != finished.member_folder(0).parent.name
  teachers._trainer(run)(0)
  assert digest(teachers.load(run, 0)) != digest(teachers.load(finished, 0))
