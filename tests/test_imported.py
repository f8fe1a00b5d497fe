"""Teachers whose logits lie in a file: an .npz file or a zarr folder."""

import json
import pathlib
import re
import zlib

import numpy as np
import pytest
import tensorstore as ts
from conftest import tiny_run
from etils import epath
from scipy.special import log_softmax
from test_teacher_sources import checked, problem_of

from kdjax.errors import UserError
from kdjax.predictions import imported
from kdjax.predictions.imported import LogitsFile
from kdjax.predictions.store import PredictionStore
from kdjax.stages import evaluation, pipeline, predictions, student, teachers, verification
from kdjax.stages.experiment import Experiment
from kdjax.train.checkpoint import digest


def stored(finished: Experiment) -> dict[str, np.ndarray]:
  """log_probs_MVNC of all that the store has."""
  store = PredictionStore(finished.folders.predictions)
  return {
    name: np.stack([store.read(name, [0, 1], view) for view in range(count)], axis=1)
    for name, count in predictions.views_of(finished).items()
  }


@pytest.fixture(scope='module')
def file(finished, tmp_path_factory) -> pathlib.Path:
  path = tmp_path_factory.mktemp('logits') / 'logits.npz'
  imported.write(epath.Path(path), stored(finished), finished.data.inputs, space='log_probs')
  return path


def test_the_student_of_a_file_is_that_of_the_store_to_the_bit(finished, file, tmp_path):
  run = checked(tiny_run(tmp_path, teacher__source='file', teacher__path=str(file)))
  for name in ('predictions', 'student', 'evaluation'):
    pipeline.STAGES[name].run(run)
  for name in finished.data.inputs:
    found, expected = (
      PredictionStore(x.folders.predictions).digest(name, 1, 0) for x in (run, finished)
    )
    assert found == expected
  assert digest(student.load(run)) == digest(student.load(finished))
  assert evaluation.result(run)['splits'] == evaluation.result(finished)['splits']
  assert 'equal up to that rounding' in verification.verify(run)


def test_logits_become_log_probabilities(finished, tmp_path):
  """The first of 3 members and 2 views are taken; logits are the log-probabilities plus a constant."""
  log_probs = stored(finished)
  logits = {name: np.concatenate([x, x[:1]]) + 3 for name, x in log_probs.items()}
  imported.write(epath.Path(tmp_path / 'x.npz'), logits, finished.data.inputs)
  fields = {'teacher__path': str(tmp_path / 'x.npz'), 'predictions__num_views': 2}
  run = checked(tiny_run(tmp_path / 'run', teacher__source='file', **fields))
  predictions.STAGE.run(run)
  members_MNC = predictions.open_teacher(run).members('distillation', 1)
  assert members_MNC.shape == (2, 200, 10)
  np.testing.assert_allclose(members_MNC, log_probs['distillation'][:, 1], atol=0.02)


def test_log_probabilities_are_stored_as_they_are(tmp_path):
  """Normalising rounded values would change some of them."""
  logits_NC = 3 * np.random.default_rng(0).normal(size=(500, 10))
  rounded_NC = log_softmax(logits_NC, axis=-1).astype(np.float16)
  store = PredictionStore(epath.Path(tmp_path))
  store.reserve('test', (2, 1, *rounded_NC.shape), 'float16')
  for member, as_they_are in enumerate((True, False)):
    store.write('test', member, 0, rounded_NC, as_they_are)
  exact_NC, normalised_NC = store.read('test', [0, 1], 0)
  np.testing.assert_array_equal(exact_NC, rounded_NC)
  assert (normalised_NC != rounded_NC).any()


@pytest.mark.parametrize('driver', ['zarr', 'zarr3'])
def test_a_zarr_folder_is_read_as_an_npz_is(file, tmp_path, driver):
  with np.load(file) as arrays:
    content = dict(arrays)
  attributes = {name: str(content.pop(name)) for name in ('space', 'records')}
  attributes['records'] = json.loads(attributes['records'])
  place = {'zarr': ('.zattrs', attributes), 'zarr3': ('zarr.json', {'attributes': attributes})}
  name, text = place[driver]
  (tmp_path / name).write_text(json.dumps(text))
  for key, array in content.items():
    spec = {'driver': driver, 'kvstore': {'driver': 'file', 'path': f'{tmp_path / key}/'}}
    opened = ts.open(spec, create=True, dtype=array.dtype.name, shape=array.shape).result()
    opened.write(array).result()
  npz, zarr = LogitsFile(str(file), 'field'), LogitsFile(str(tmp_path), 'field')
  assert npz.space == zarr.space == 'log_probs'
  assert npz._records == zarr._records != {}
  for name in ('distillation', 'test'):
    zarr.require_shape(name, npz._shape(name))
    np.testing.assert_array_equal(zarr.logits(name, 1, 0), npz.logits(name, 1, 0))


def test_an_id_is_the_crc_of_an_example():
  images = np.arange(2 * 1500, dtype=np.uint8).reshape(1500, 1, 2, 1)
  found = imported.ids(images)
  assert found.dtype == np.uint32
  assert found.tolist() == [zlib.crc32(image.tobytes()) for image in images]


def swapped(x):
  return x[[1, 0, *range(2, len(x))]]


def with_nan(x):
  x = x.copy()
  x[1, 0, 3, 4] = np.nan
  return x


# (array of the file, what is done to it, the problem)
SHAPES = [
  ('train', lambda x: x[:1], 'train has 1 members; needed: the teacher.num_members = 2'),
  ('distillation', lambda x: x[:, :2], 'has 2 views; needed: 3, .*predictions.num_views'),
  ('val', lambda x: x[:, :, 1:], 'val has 49 examples and 10 classes; needed: 50'),
  ('val', lambda x: x[..., 1:], 'val has 50 examples and 9 classes; needed: 50'),
  ('test', lambda x: x[0], r'test has the shape \(1, 256, 10\)|\(1, 360, 10\); needed'),
  ('test_ids', lambda x: x[1:], r'test_ids has the shape .*; needed: .* an id for each'),
  ('space', lambda x: np.array('probs'), "space is 'probs'; allowed: logits or log_probs"),
]
CONTENTS = [
  ('train_ids', swapped, 'train has the examples in another order: 2 of 200 ids differ, .* 0'),
  ('train_ids', lambda x: x + 1, 'train has other examples: 200 of 200 ids differ'),
  ('test', with_nan, 'test, member 1, view 0: 1 of .* values are not finite'),
  ('test', lambda x: x + 1, "sum to 1 only up to 1 nats; allowed with space = 'log"),
  ('records', lambda x: np.array(''), 'has no records'),
]


def changed(file, tmp_path, name, change) -> dict[str, str]:
  """The fields of a source, a copy of the file with one array changed."""
  with np.load(file) as arrays:
    content = dict(arrays)
  content[name] = change(content[name])
  np.savez(tmp_path / 'changed.npz', **content)
  return {'teacher__source': 'file', 'teacher__path': str(tmp_path / 'changed.npz')}


def test_a_file_of_another_shape_is_refused_before_a_run(file, tmp_path):
  for name, change, told in SHAPES:
    problem = problem_of(tiny_run(tmp_path / 'run', **changed(file, tmp_path, name, change)))
    assert problem.startswith("teacher.path = '")
    assert re.search(told, problem), problem


def test_a_file_of_other_examples_or_values_is_refused_as_it_is_read(file, tmp_path):
  for name, change, told in CONTENTS:
    run = checked(tiny_run(tmp_path / 'run', **changed(file, tmp_path, name, change)))
    with pytest.raises(UserError, match=told):
      predictions.STAGE.run(run)
    assert not (run.folders.predictions / 'meta.json').exists()


def test_a_file_of_the_views_of_another_seed_is_refused(file, tmp_path):
  """Views that are not augmented are the same for every seed, and pass."""
  fields = {'teacher__source': 'file', 'teacher__path': str(file), 'dataset__subset_seed': 0}
  run = tiny_run(tmp_path / 'run', **fields, seed=1)
  with pytest.raises(UserError, match='view 0 of distillation is not the one that is rendered now'):
    teachers.open_source(run)
  teachers.open_source(tiny_run(tmp_path / 'run', **fields, seed=1, predictions__augmentation=()))


def test_a_missing_file_and_a_file_of_another_kind_are_refused(tmp_path):
  fields = {'teacher__source': 'file', 'teacher__path': str(tmp_path / 'x')}
  assert 'no such file or folder' in problem_of(tiny_run(tmp_path / 'run', **fields))
  (tmp_path / 'x').write_text('no zip')
  assert 'cannot be read as an .npz file' in problem_of(tiny_run(tmp_path / 'run', **fields))
