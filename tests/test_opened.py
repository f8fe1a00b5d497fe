"""Reading a workdir: the table of its students, exported weights and stored predictions."""

import json
import os
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors
from conftest import copied
from etils import epath
from flax import traverse_util

import kdjax
from kdjax.errors import MissingInputError, UserError
from kdjax.interface import opened
from kdjax.predictions.store import PredictionStore
from kdjax.runtime import files
from kdjax.stages import teachers
from kdjax.train.checkpoint import digest


def test_the_table_has_the_fields_that_differ(finished, tmp_path):
  run = copied(finished, tmp_path)
  other = copied(finished, tmp_path / 'other', student__temperature=1.0)
  target = tmp_path / 'students' / other.folders.student.name
  (tmp_path / 'other' / 'students' / run.folders.student.name).rename(target)
  config = files.read_json(epath.Path(target / 'config.json'))
  config['student']['temperature'] = 1.0
  files.write_json(epath.Path(target / 'config.json'), config)
  os.utime(target / 'result.json', (1, 1))
  rows = kdjax.open(tmp_path).table()
  assert [(row['student'], row['student.temperature']) for row in rows] == [
    (run.folders.student.name, 4.0),
    (target.name, 1.0),
  ]
  assert [name for name in rows[0] if '.' in name] == ['student.temperature']
  test = files.read_json(run.folders.student / 'result.json')['splits']['test']
  assert rows[0]['agreement'] == test['fidelity']['top1_agreement']
  assert rows[0]['accuracy'] == test['student']['accuracy']
  assert 'independent_kl' not in rows[0]
  assert 'student.temperature' in repr(kdjax.open(tmp_path))


def exported(path):
  """Arrays by name, and the metadata, as the package safetensors reads them."""
  with safetensors.safe_open(path, 'numpy') as file:
    names = file.keys()
    return {name: file.get_tensor(name) for name in names}, file.metadata()


def test_an_exported_network_has_every_bit_and_its_config(finished, tmp_path):
  one = kdjax.open(finished.workdir)[0]
  member = jax.device_get(teachers.load(finished, 1))
  folders = finished.folders
  for index, variables, name, folder, fingerprint in (
    (None, one.variables, 'student', folders.student, one.name),
    (1, member, 'teacher member 1', folders.member(1), folders.member(1).parent.name),
  ):
    path = tmp_path / f'{index}.safetensors'
    one.export(path, index)
    arrays, metadata = exported(path)
    assert {'params/Dense_0/kernel', 'batch_stats/Hidden_0/BatchNorm_0/mean'} <= arrays.keys()
    assert digest(traverse_util.unflatten_dict(arrays, sep='/')) == digest(variables)
    assert (metadata['network'], metadata['fingerprint']) == (name, fingerprint)
    assert json.loads(metadata['model'])['name'] == 'tests.small_network:Small'
    assert json.loads(metadata['config']) == json.loads(json.dumps(finished.config.to_dict()))
    assert json.loads(metadata['environment']) == files.read_json(folder / 'environment.json')
  with pytest.raises(UserError, match='member = 2: the teacher has the members 0 to 1'):
    one.export(tmp_path / 'no.safetensors', member=2)
  with one.experiment.config.unlocked():
    one.experiment.config.teacher.source = 'file'
  with pytest.raises(UserError, match=r"teacher\.source = 'file' has only predictions"):
    one.export(tmp_path / 'no.safetensors', member=0)
  assert not (tmp_path / 'no.safetensors').exists()


def test_arrays_of_any_type_and_layout_are_exported(tmp_path, monkeypatch):
  values = jnp.arange(6.0).reshape(2, 3)
  given = {
    'a': {'bf16': np.asarray(values, jnp.bfloat16), 'T': np.asarray(values).T},
    's': values[0, 1],
  }
  (tmp_path / 'x').write_bytes(opened.safetensors_bytes(given, {'k': 'v'}))
  arrays, metadata = exported(tmp_path / 'x')
  assert metadata == {'k': 'v'} and arrays.keys() == {'a/bf16', 'a/T', 's'}
  assert arrays['a/bf16'].dtype == jnp.bfloat16 and arrays['s'].shape == ()
  np.testing.assert_array_equal(arrays['a/bf16'].astype(np.float32), values)
  np.testing.assert_array_equal(arrays['a/T'], values.T)
  monkeypatch.setitem(sys.modules, 'safetensors.numpy', None)
  with pytest.raises(UserError, match=r"pip install 'kdjax\[safetensors\]'"):
    opened.safetensors_bytes(given, {})


def test_what_is_not_there_is_said(tmp_path):
  for function in (kdjax.open, kdjax.open_predictions):
    with pytest.raises(MissingInputError, match='there is no such folder'):
      function(tmp_path / 'nowhere')
    with pytest.raises(MissingInputError, match='no finished student in'):
      function(tmp_path)
  (tmp_path / 'predictions' / 'abc').mkdir(parents=True)
  with pytest.raises(MissingInputError, match='has no complete predictions'):
    kdjax.open_predictions(tmp_path / 'predictions' / 'abc')


def test_predictions_are_those_of_the_store(finished):
  found = kdjax.open_predictions(finished.workdir)
  assert found.folder == finished.folders.predictions
  assert (found.num_members, found.num_views) == (2, 3)
  assert found.shapes['distillation'] == (2, 3, 200, 10) and found.shapes['val'] == (2, 1, 50, 10)
  store = PredictionStore(found.folder)
  members_MNC = found.members('distillation', 2)
  np.testing.assert_array_equal(members_MNC, store.read('distillation', [0, 1], 2))
  ensemble_NC = found.ensemble('distillation', 2)
  np.testing.assert_allclose(ensemble_NC, np.log(np.exp(members_MNC).mean(0)), atol=2e-3)
  np.testing.assert_allclose(np.exp(ensemble_NC).sum(-1), 1, atol=1e-5)
  indices_B, views_B = np.array([7, 3, 199]), np.array([2, 1, 2])
  expected = [found.ensemble('distillation', v)[i] for i, v in zip(indices_B, views_B, strict=True)]
  np.testing.assert_array_equal(found.batch(indices_B, views_B), expected)
  for call, told in (
    (lambda: found.members('tests'), "split = 'tests': allowed: one of distillation"),
    (lambda: found.ensemble('distillation', 3), 'view = 3: distillation has the views 0 to 2'),
    (lambda: found.batch(np.array([200]), np.array([0])), 'has 200; allowed: 0 to 199'),
  ):
    with pytest.raises(UserError, match=told):
      call()


def test_predictions_of_a_workdir_are_those_that_its_newest_student_had(finished, tmp_path):
  """The store may have more members, of another student."""
  run = copied(finished, tmp_path)
  path = run.folders.student / 'config.json'
  files.write_json(
    path, files.read_json(path) | {'teacher': run.config.teacher.to_dict() | {'num_members': 1}}
  )
  found = kdjax.open_predictions(tmp_path)
  assert (found.num_members, found.num_views) == (1, 3)
  np.testing.assert_allclose(found.ensemble('test'), found.members('test')[0], atol=2e-3)
