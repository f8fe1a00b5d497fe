"""Teachers that were not trained here: functions of any framework, logits in a file, another workdir's members."""

import dataclasses
import importlib
import itertools
import json
import pathlib
import re
import zlib

import jax
import numpy as np
import pytest
import tensorstore as ts
from conftest import tiny_run
from etils import epath
from scipy.special import log_softmax
from tiny_data import section

from analysis.runs import Study
from kdjax import config as config_lib
from kdjax import data
from kdjax.config import validation
from kdjax.errors import ConfigError, DamageError, UserError
from kdjax.predictions import functions, imported
from kdjax.predictions.imported import LogitsFile
from kdjax.predictions.store import PredictionStore
from kdjax.runtime import plugins
from kdjax.stages import evaluation, pipeline, predictions, student, teachers, verification
from kdjax.stages.experiment import Experiment
from kdjax.train.checkpoint import digest

ROOT = pathlib.Path(__file__).parents[1]
COUNT = itertools.count()
# A random forest and a support vector machine; `others` are the same, trained on other examples.
SKLEARN = """
import numpy as np
from sklearn.calibration import CalibratedClassifierCV
from sklearn.ensemble import RandomForestClassifier
from sklearn.svm import SVC

from kdjax import data
from tests.tiny_data import section


def flat(images):
  return images.reshape(len(images), -1)


def fitted(part):
  train = data.load(section(image_size=12))['train']
  images, labels = flat(train.inputs_N[part]) / 127.5 - 1, train.labels_N[part]
  forest = RandomForestClassifier(20, random_state=0).fit(images, labels)
  machine = CalibratedClassifierCV(SVC(), ensemble=False).fit(images, labels)
  return [
    lambda images, model=model: np.log(np.maximum(model.predict_proba(flat(images)), 1e-4))
    for model in (forest, machine)
  ]


def members():
  return fitted(slice(0, 700))


def others():
  return fitted(slice(700, None))
"""


@pytest.fixture
def module(tmp_path):
  """Writes a module of the user into a folder where it is found; returns its name."""

  def write(text: str) -> str:
    name = f'teacher_{next(COUNT)}'
    (tmp_path / f'{name}.py').write_text(text)
    plugins.add_folder(tmp_path)
    importlib.invalidate_caches()
    return name

  return write


def quick_run(workdir, **fields) -> Experiment:
  config, _ = config_lib.load(str(ROOT / 'tests' / 'quick_config.py'))
  config.update_from_flattened_dict({k.replace('__', '.'): v for k, v in fields.items()})
  return Experiment(config, epath.Path(workdir))


def checked(run: Experiment) -> Experiment:
  validation.check(run.config, jax.device_count())
  return run


def problem_of(run: Experiment) -> str:
  with pytest.raises(ConfigError) as error:
    checked(run)
  (problem,) = error.value.problems
  return problem


# Functions.


def test_a_forest_and_a_support_vector_machine_teach_a_student(module, tmp_path):
  """All stages, with the independent baseline, from teachers that no JAX made."""
  name = module(SKLEARN)
  run = checked(
    quick_run(
      tmp_path / 'run',
      teacher__source=f'{name}:members',
      teacher__independent_source=f'{name}:others',
      evaluation__independent_seed=1000,
      student__num_epochs=20,
    )
  )
  pipeline.run(run.config, run.workdir, list(pipeline.STAGES))
  assert (run.workdir / 'report.html').exists()
  assert not (run.workdir / 'teachers').exists()
  test = evaluation.result(run)['splits']['test']
  split = data.load(section(image_size=12, num_val=50))['test']
  images = (split.inputs_N / 127.5 - 1).astype(np.float32)
  logits_MNC = [f(images) for f in importlib.import_module(name).members()]
  predicted = [np.float32(logits_NC).argmax(-1) for logits_NC in logits_MNC]  # a forest has ties
  correct = [np.mean(classes_N == split.labels_N) for classes_N in predicted]
  # A pixel may lie on a threshold of a tree, where rounding decides: up to two of 360 images.
  accuracies = [member['accuracy'] for member in test['members']]
  assert accuracies == pytest.approx(correct, abs=0.006)
  assert min(correct) > 0.85
  assert correct[0] != correct[1]
  assert test['student']['accuracy'] > 0.6  # 0.1 by chance: it was distilled
  assert test['independent']['top1_agreement'] > 0.6
  assert not predictions.STAGE.run(run)
  said = verification.verify(run)
  assert '12 views are as they were written' in said
  assert 'equal up to that rounding' in said


LINEAR = """
import numpy as np

WEIGHTS = np.random.default_rng({seed}).normal(size=(64, 10)) / 8

def predict(images):
  assert images.dtype == np.float32 and images.shape[1:] == (8, 8, 1) and np.abs(images).max() <= 1
  return images.reshape(len(images), 64) @ WEIGHTS

def uncertain(images):
  return 0.5 * predict(images)

both = [predict, uncertain]
three_dimensional = lambda images: predict(images)[None]
half = lambda images: np.where(predict(images) > 0, np.nan, 1.0)
lost = lambda images: 1 / 0
nothing = lambda: None

def scaled(path):
  return lambda images: float(np.loadtxt(path)) * predict(images)
"""


def test_stored_and_online_predictions_of_a_function_are_the_same(module, tmp_path):
  """And each is of the view that a student sees."""
  source = f'{module(LINEAR.format(seed=0))}:both'
  fields = {'teacher__source': source, 'predictions__dtype': 'float32'}
  run = checked(tiny_run(tmp_path / 'run', **fields))
  predictions.STAGE.run(run)
  stored = predictions.open_teacher(run)
  online = predictions.open_teacher(
    tiny_run(tmp_path / 'run', **fields, predictions__mode='online')
  )
  inputs = run.data.inputs['distillation']
  views_BHWC = np.concatenate(list(run.predictor.views(inputs, 2)))
  assert np.abs(views_BHWC - np.concatenate(list(run.predictor.views(inputs, 1)))).max() > 0.1
  logits_NC = views_BHWC.reshape(200, 64) @ importlib.import_module(source[:-5]).WEIGHTS
  expected = [jax.nn.log_softmax(scale * logits_NC) for scale in (1, 0.5)]
  for teacher in (stored, online):
    np.testing.assert_allclose(teacher.members('distillation', 2), expected, atol=1e-5)
  for batch in inputs.training(0, 48, 6, start=0):
    found = [teacher.batch('distillation', batch) for teacher in (stored, online)]
    assert found[0].shape == found[1].shape == (*batch['indices'].shape, 10)
    np.testing.assert_allclose(*found, atol=1e-5)


def test_verify_calls_the_function_again(module, tmp_path):
  path = tmp_path / 'scale.txt'
  name = module(LINEAR.format(seed=0))
  path.write_text('1.0')
  fields = {'teacher__source': f'{name}:scaled', 'teacher__path': str(path)}
  run = checked(tiny_run(tmp_path / 'run', **fields, teacher__num_members=1))
  predictions.STAGE.run(run)
  assert 'equal up to that rounding' in verification.verify(run)
  importlib.import_module(name).WEIGHTS[:] *= 2
  with pytest.raises(DamageError, match=f'not those of the teacher {name}:scaled'):
    verification.verify(run)


def test_the_kinds_of_functions(module, tmp_path):
  name = module(
    'import pathlib\n'
    'f = lambda images: images\n'
    'class Teacher:\n'
    '  def __init__(self): pass\n'
    '  def __call__(self, *args): return args[0]\n'
    'teacher = Teacher()\n'
    'def several(): return (f, teacher)\n'
    'def from_path(path): return [f] * len(pathlib.Path(path).read_text())\n'
  )
  (tmp_path / 'file').write_text('abc')
  count = lambda attribute, path=None: len(functions.find(f'{name}:{attribute}', path, 'field'))
  assert [count(x) for x in ('f', 'Teacher', 'teacher', 'several')] == [1, 1, 1, 2]
  assert count('from_path', str(tmp_path / 'file')) == 3
  (tmp_path / 'file').write_text('abcd')
  assert count('from_path', str(tmp_path / 'file')) == 4  # other content is not taken from a cache


def test_fingerprints_cover_the_code_and_the_content_of_a_source(module, tmp_path):
  name, path = module(LINEAR.format(seed=0)), tmp_path / 'weights'
  path.write_text('1')

  def fingerprint(**fields):
    config_lib.fingerprints.code.forget()
    fields = {'teacher__source': f'{name}:predict'} | fields
    return config_lib.teacher_fingerprint(tiny_run(tmp_path, **fields).config)

  before, with_file = fingerprint(), fingerprint(teacher__path=str(path))
  assert fingerprint(teacher__learning_rate=1.0, model__width=8, teacher__num_members=1) == before
  assert fingerprint(teacher__source=f'{name}:uncertain') != before
  path.write_text('2')
  assert fingerprint(teacher__path=str(path)) != with_file
  module_path = tmp_path / f'{name}.py'
  module_path.write_text(module_path.read_text() + '# a comment')
  assert fingerprint() == before
  module_path.write_text(module_path.read_text().replace('/ 8', '/ 9'))
  assert fingerprint() != before


ONE = {'teacher__num_members': 1}
IN_FUNCTIONS = {
  'predict': ({}, 'teacher.num_members = 2: teacher.source = .* has 1; allowed: up to 1'),
  'three_dimensional': (ONE, r'gives \(1, 4, 10\) in float64 .* needed: logits \(4, 10\)'),
  'half': (ONE, 'of 40 logits are not finite; needed: finite ones'),
  'lost': (ONE, r'raised ZeroDivisionError: division by zero \(.*\.py:'),
  'nothing': (ONE, 'gives an object of type NoneType; needed: a function'),
  'WEIGHTS': (ONE, 'gives an object of type ndarray; needed: a function'),
  'missing': (ONE, 'defines no missing'),
  'scaled': (ONE, 'takes a path; needed: teacher.path'),
}


@pytest.mark.parametrize('attribute', IN_FUNCTIONS)
def test_a_function_that_does_not_fit_is_refused(module, tmp_path, attribute):
  fields, told = IN_FUNCTIONS[attribute]
  source = f'{module(LINEAR.format(seed=0))}:{attribute}'
  problem = problem_of(tiny_run(tmp_path / 'run', teacher__source=source, **fields))
  assert re.search(told, ' '.join(problem.split())), problem
  assert not (tmp_path / 'run').exists()


def test_a_module_that_cannot_be_imported_is_refused(tmp_path):
  problem = problem_of(tiny_run(tmp_path, teacher__source='no_such_module:predict'))
  assert problem.startswith("teacher.source = 'no_such_module:predict': importing no_such_module")


# Fields that do not go together.
SEED, FUNCTION = 'evaluation__independent_seed', {'teacher__source': 'json:loads'}
TOGETHER = [
  (FUNCTION | {'student__init_lambda': 0.5}, "init_lambda = 0.5: needs a teacher's weights"),
  (FUNCTION | {'evaluation__num_cka_examples': 20}, "examples = 20: needs a teacher's weights"),
  (
    FUNCTION | {'predictions__extra': 'gan', 'predictions__num_extra': 5},
    "extra = 'gan': needs a teacher's weights",
  ),
  (FUNCTION | {SEED: 1}, 'independent_seed = 1: the independent teacher of .* cannot be trained'),
  (
    FUNCTION | {SEED: 1, 'teacher__independent_source': 'json:loads'},
    'it is the teacher itself, so not independent',
  ),
  (
    {'teacher__source': 'file'},
    'teacher.path = None: allowed with teacher.source = .file.: a path',
  ),
  (
    {'teacher__source': 'file', 'teacher__path': 'x', 'predictions__mode': 'online'},
    "predictions.mode = 'online': a file has the logits of its views alone",
  ),
  ({'teacher__path': 'x'}, "teacher.path = 'x': is not read"),
  ({'teacher__independent_source': 'file'}, "independent_source = 'file': is not read"),
  ({'teacher__source': 'files'}, "source = 'files': allowed: '' .trained here., 'file', 'workdir'"),
]


@pytest.mark.parametrize(('fields', 'told'), TOGETHER)
def test_fields_that_do_not_fit_the_source_are_refused(tmp_path, monkeypatch, fields, told):
  monkeypatch.setattr(validation.teacher_source, 'content_problems', lambda *_: [])
  with pytest.raises(ConfigError) as error:
    checked(tiny_run(tmp_path, **fields))
  assert any(re.search(told, problem) for problem in error.value.problems), error.value.problems


def test_the_independent_teacher_is_the_other_source():
  fields = {'teacher__source': 'a:f', 'teacher__independent_source': 'b:g'}
  run = tiny_run('/tmp', **fields, teacher__independent_path='p', evaluation__independent_seed=7)
  other = config_lib.independent(run.config)
  assert (other.teacher.source, other.teacher.path, other.seed) == ('b:g', 'p', 7)
  assert config_lib.sources(other) == {'teacher.': ('b:g', 'p')}


def test_analyses_say_that_they_need_weights(tmp_path):
  study = Study(tiny_run(tmp_path, teacher__source='a:f'))
  assert study.lacks_teacher == (
    "needs a teacher's weights: teacher.source = 'a:f' gives predictions alone"
  )
  assert not study.has_teachers


# Logits in a file.


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
  """Normalising what was rounded would change some of it."""
  rounded_NC = log_softmax(np.random.default_rng(0).normal(size=(500, 10)) * 3, axis=-1).astype(
    np.float16
  )
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


SHAPES = {
  'members': ('train', lambda x: x[:1], 'train has 1 members; needed: the teacher.num_members = 2'),
  'views': ('distillation', lambda x: x[:, :2], 'has 2 views; needed: 3, .*predictions.num_views'),
  'examples': ('val', lambda x: x[:, :, 1:], 'val has 49 examples and 10 classes; needed: 50'),
  'classes': ('val', lambda x: x[..., 1:], 'val has 50 examples and 9 classes; needed: 50'),
  'axes': ('test', lambda x: x[0], r'test has the shape \(1, 256, 10\)|\(1, 360, 10\); needed'),
  'ids': ('test_ids', lambda x: x[1:], r'test_ids has the shape .*; needed: .* an id for each'),
  'space': ('space', lambda x: np.array('probs'), "space is 'probs'; allowed: logits or log_probs"),
}
CONTENTS = {
  'order': (
    'train_ids',
    swapped,
    'train has the examples in another order: 2 of 200 ids differ, .* 0',
  ),
  'others': ('train_ids', lambda x: x + 1, 'train has other examples: 200 of 200 ids differ'),
  'nan': ('test', with_nan, 'test, member 1, view 0: 1 of .* values are not finite'),
  'not normalised': (
    'test',
    lambda x: x + 1,
    "sum to 1 only up to 1 nats; allowed with space = 'log",
  ),
  'records': ('records', lambda x: np.array(''), 'has no records'),
}


def changed(file, tmp_path, name, change) -> dict[str, str]:
  """The fields of a source, a copy of the file with one array changed."""
  with np.load(file) as arrays:
    content = dict(arrays)
  content[name] = change(content[name])
  np.savez(tmp_path / 'changed.npz', **content)
  return {'teacher__source': 'file', 'teacher__path': str(tmp_path / 'changed.npz')}


@pytest.mark.parametrize('case', SHAPES)
def test_a_file_of_another_shape_is_refused(file, tmp_path, case):
  name, change, told = SHAPES[case]
  problem = problem_of(tiny_run(tmp_path / 'run', **changed(file, tmp_path, name, change)))
  assert problem.startswith("teacher.path = '")
  assert re.search(told, problem), problem


@pytest.mark.parametrize('case', CONTENTS)
def test_a_file_of_other_examples_or_values_is_refused(file, tmp_path, case):
  name, change, told = CONTENTS[case]
  run = checked(tiny_run(tmp_path / 'run', **changed(file, tmp_path, name, change)))
  with pytest.raises(UserError, match=told):
    predictions.STAGE.run(run)
  assert not (run.folders.predictions / 'meta.json').exists()


def test_a_file_of_the_views_of_another_seed_is_refused(file, tmp_path):
  """Unless they are not augmented, and so the same for every seed."""
  fields = {'teacher__source': 'file', 'teacher__path': str(file), 'dataset__subset_seed': 0}
  run = tiny_run(tmp_path / 'run', **fields, seed=1)
  with pytest.raises(UserError, match='view 0 of distillation is another than is rendered now'):
    teachers.open_source(run)
  teachers.open_source(tiny_run(tmp_path / 'run', **fields, seed=1, predictions__augmentation=()))


def test_a_file_that_is_no_file_or_no_npz_is_refused(tmp_path):
  fields = {'teacher__source': 'file', 'teacher__path': str(tmp_path / 'x')}
  assert 'no such file or folder' in problem_of(tiny_run(tmp_path / 'run', **fields))
  (tmp_path / 'x').write_text('no zip')
  assert 'cannot be read as an .npz file' in problem_of(tiny_run(tmp_path / 'run', **fields))


# Members of another workdir.


def test_members_of_another_workdir_teach_as_they_do_in_their_own(finished, tmp_path):
  """The optimizer and the data of this config are others; λ and CKA find the weights."""
  path = str(finished.folders.member(0).parent)
  fields = {'teacher__source': 'workdir', 'teacher__path': path, 'teacher__optimizer': 'adam'}
  run = checked(tiny_run(tmp_path, **fields, student__init_lambda=1.0))
  predictions.STAGE.run(run)
  for name in finished.data.inputs:
    found, expected = (
      PredictionStore(x.folders.predictions).digest(name, 1, 0) for x in (run, finished)
    )
    assert found == expected
  assert not (tmp_path / 'teachers').exists()
  assert digest(student.initial_variables(run)) == digest(teachers.load(finished, 0))
  reseeded = tiny_run(
    tmp_path, **fields, seed=5
  )  # the members started from the seed of their workdir
  assert teachers.member_seed(reseeded, 1) == teachers.member_seed(finished, 1)
  assert 'equal up to that rounding' in verification.verify(run)
  assert Study(run).lacks_teacher is None
  fewer = tiny_run(tmp_path, **fields, dataset__num_train=100)
  assert digest(teachers.load(fewer, 1)) == digest(teachers.load(finished, 1))


def test_members_that_do_not_fit_are_refused(finished, tmp_path):
  path = str(finished.folders.member(0).parent)
  fields = {'teacher__source': 'workdir', 'teacher__path': path}
  problem = problem_of(tiny_run(tmp_path, **fields, model__width=8))
  assert 'was trained with model.width = 4; needed: the same `model` as here' in problem
  problem = problem_of(tiny_run(tmp_path, **fields, teacher__num_members=3))
  assert problem.startswith('teacher.num_members = 3: ')
  assert problem.endswith('has 2; allowed: up to 2')
  fields['teacher__path'] = str(tmp_path)
  assert 'has no member_0/config.json' in problem_of(tiny_run(tmp_path, **fields))


def test_a_teacher_of_other_classes_does_not_fit(finished, tmp_path):
  """A different number of classes shows when the checkpoint is read, before any training."""
  path = str(finished.folders.member(0).parent)
  run = tiny_run(tmp_path, teacher__source='workdir', teacher__path=path)
  description = dataclasses.replace(run.data.description, class_names=tuple('abc'))
  run.data.__dict__['description'] = description
  with pytest.raises(DamageError, match=r'member_0 cannot be used.*as many classes') as error:
    teachers.load(run, 0)
  assert 'Delete' not in str(error.value)


# Recipes of the documentation.


def recipe(framework: str) -> str:
  """The code of docs/extending.md that begins with the comment `# <framework>_teacher.py`."""
  text = (ROOT / 'docs' / 'extending.md').read_text()
  return re.search(rf'```python\n(# {framework}_teacher\.py\n.*?)```', text, re.DOTALL)[1]


def run_recipe(module, tmp_path, framework: str, file: str, save) -> None:
  """Checks that the recipe's predictions on the test set are those of the network that `save` returns."""
  name, path = module(recipe(framework)), str(tmp_path / file)
  network = save(importlib.import_module(name), path)
  fields = {'teacher__source': f'{name}:load', 'teacher__path': path}
  run = checked(tiny_run(tmp_path / 'run', **fields, **ONE))
  predictions.STAGE.run(run)
  images_BHWC = np.concatenate(list(run.predictor.views(run.data.inputs['test'])))
  expected = jax.nn.log_softmax(network(images_BHWC))
  found = predictions.open_teacher(run).members('test')[0]
  np.testing.assert_allclose(found, expected, atol=0.02)


def test_the_recipe_for_pytorch(module, tmp_path):
  torch = pytest.importorskip('torch')

  def save(teacher, path):
    torch.manual_seed(0)
    network = teacher.network()
    torch.save(network.state_dict(), path)
    network.eval()
    as_torch = lambda images: torch.tensor(images.transpose(0, 3, 1, 2))
    return lambda images: network(as_torch(images)).detach().numpy()

  run_recipe(module, tmp_path, 'torch', 'network.pt', save)


def test_the_recipe_for_keras(module, tmp_path):
  keras = pytest.importorskip('keras')

  def save(teacher, path):
    del teacher
    layers = [keras.layers.Input((8, 8, 1)), keras.layers.Flatten(), keras.layers.Dense(10)]
    network = keras.Sequential(layers)
    network.save(path)
    return network.predict_on_batch

  run_recipe(module, tmp_path, 'keras', 'network.keras', save)
