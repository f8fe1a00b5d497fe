"""Teachers of the user: functions of any framework, and members of another workdir."""

import dataclasses
import importlib
import itertools
import pathlib
import re

import jax
import numpy as np
import pytest
from conftest import ROOT, tiny_run
from tiny_data import section

from analysis.runs import Study
from kdjax import config as config_lib
from kdjax import data
from kdjax.config import validation
from kdjax.errors import ConfigError, DamageError
from kdjax.predictions import functions
from kdjax.predictions.store import PredictionStore
from kdjax.runtime import plugins
from kdjax.stages import evaluation, pipeline, predictions, student, teachers, verification
from kdjax.stages.experiment import Experiment
from kdjax.train.checkpoint import digest

COUNT = itertools.count()
ONE = {'teacher__num_members': 1}


@pytest.fixture
def module(tmp_path):
  """A function that writes a module of the user to a folder on the path, and returns its name."""

  def write(text: str) -> str:
    name = f'teacher_{next(COUNT)}'
    (tmp_path / f'{name}.py').write_text(text)
    plugins.add_folder(tmp_path)
    importlib.invalidate_caches()
    return name

  return write


def checked(run: Experiment) -> Experiment:
  validation.check(run.config, jax.device_count())
  return run


def problem_of(run: Experiment) -> str:
  with pytest.raises(ConfigError) as error:
    checked(run)
  (problem,) = error.value.problems
  return problem


# Functions of this module.

WEIGHTS = np.random.default_rng(0).normal(size=(64, 10)) / 8


def predict(images):
  assert images.dtype == np.float32 and images.shape[1:] == (8, 8, 1) and np.abs(images).max() <= 1
  return flat(images) @ WEIGHTS


def flat(images):
  return images.reshape(len(images), -1)


def uncertain(images):
  return 0.5 * predict(images)


def scaled(path):
  return lambda images: float(np.loadtxt(path)) * predict(images)


both = [predict, uncertain]
three_dimensional = lambda images: predict(images)[None]
half = lambda images: np.where(predict(images) > 0, np.nan, 1.0)
lost = lambda images: 1 / 0
nothing = lambda: None


def fitted(part):
  """A random forest and a support vector machine, fitted to a part of the training set."""
  from sklearn.ensemble import RandomForestClassifier
  from sklearn.svm import SVC

  train = data.load(section())['train']
  images, labels = flat(train.inputs_N[part]) / 127.5 - 1, train.labels_N[part]
  forest = RandomForestClassifier(20, random_state=0).fit(images, labels)
  machine = SVC().fit(images, labels)
  return [
    lambda images: np.log(np.maximum(forest.predict_proba(flat(images)), 1e-4)),
    lambda images: machine.decision_function(flat(images)),
  ]


def first_half():
  return fitted(slice(0, 700))


def second_half():
  return fitted(slice(700, None))


def source(attribute: str) -> str:
  return f'{__name__}:{attribute}'


def test_a_forest_and_a_support_vector_machine_teach_a_student(tmp_path):
  """All stages, with the independent baseline, for teachers without JAX."""
  run = checked(
    tiny_run(
      tmp_path / 'run',
      model__name='test_api:Mlp',
      model__options={'width': 64},
      teacher__source=source('first_half'),
      teacher__independent_source=source('second_half'),
      evaluation__independent_seed=1000,
      student__num_epochs=20,
    )
  )
  pipeline.run(run.config, run.workdir, [stage for stage in pipeline.STAGES if stage != 'report'])
  assert not (run.workdir / 'teachers').exists()
  test = evaluation.result(run)['splits']['test']
  split = data.load(section(num_val=50))['test']
  images = (split.inputs_N / 127.5 - 1).astype(np.float32)
  predicted = [np.float32(f(images)).argmax(-1) for f in first_half()]  # forests have ties
  correct = [np.mean(classes_N == split.labels_N) for classes_N in predicted]
  # A pixel may equal a threshold of a tree, where rounding decides: in up to two of 360 images.
  assert [m['accuracy'] for m in test['members']] == pytest.approx(correct, abs=0.006)
  assert min(correct) > 0.85 and correct[0] != correct[1]
  assert test['student']['accuracy'] > 0.6  # 0.1 by chance: it was distilled
  assert test['independent']['top1_agreement'] > 0.6
  assert not predictions.STAGE.run(run)
  said = verification.verify(run)
  assert '12 views are as they were written' in said
  assert 'equal up to that rounding' in said


def test_stored_and_online_predictions_of_a_function_are_the_same(tmp_path):
  """Both are for the view that a student sees."""
  fields = {'teacher__source': source('both'), 'predictions__dtype': 'float32'}
  run = checked(tiny_run(tmp_path / 'run', **fields))
  predictions.STAGE.run(run)
  stored = predictions.open_teacher(run)
  online = predictions.open_teacher(
    tiny_run(tmp_path / 'run', **fields, predictions__mode='online')
  )
  inputs = run.data.inputs['distillation']
  views_BHWC = np.concatenate([x for _, x, _ in run.predictor.views(inputs, 2)])
  assert (
    np.abs(views_BHWC - np.concatenate([x for _, x, _ in run.predictor.views(inputs, 1)])).max()
    > 0.1
  )
  logits_NC = flat(views_BHWC) @ WEIGHTS
  expected = [jax.nn.log_softmax(scale * logits_NC) for scale in (1, 0.5)]
  for teacher in (stored, online):
    np.testing.assert_allclose(teacher.members('distillation', 2), expected, atol=1e-5)
  for batch in inputs.training(0, 48, 6, start=0):
    found = [teacher.batch('distillation', batch) for teacher in (stored, online)]
    assert found[0].shape == found[1].shape == (*batch['indices'].shape, 10)
    np.testing.assert_allclose(*found, atol=1e-5)


def test_verify_calls_the_function_again(tmp_path, monkeypatch):
  path = tmp_path / 'scale.txt'
  path.write_text('1.0')
  fields = {'teacher__source': source('scaled'), 'teacher__path': str(path)}
  run = checked(tiny_run(tmp_path / 'run', **fields, **ONE))
  predictions.STAGE.run(run)
  assert 'equal up to that rounding' in verification.verify(run)
  monkeypatch.setattr(f'{__name__}.WEIGHTS', 2 * WEIGHTS)
  with pytest.raises(DamageError, match=f'not those of the teacher {source("scaled")}'):
    verification.verify(run)


class Teacher:
  def __call__(self, *args):
    return args[0]


teacher = Teacher()
several = lambda: (predict, teacher)


def from_path(path):
  return [predict] * len(pathlib.Path(path).read_text())


def test_the_kinds_of_functions(tmp_path):
  count = lambda attribute, path=None: len(functions.find(source(attribute), path, 'field'))
  assert [count(x) for x in ('predict', 'Teacher', 'teacher', 'several')] == [1, 1, 1, 2]
  for text in ('abc', 'abcd'):  # the cache does not serve other content
    (tmp_path / 'file').write_text(text)
    assert count('from_path', str(tmp_path / 'file')) == len(text)


def test_fingerprints_cover_the_code_and_the_content_of_a_source(module, tmp_path):
  name = module('def predict(images):\n  return images / 8\nuncertain = predict')
  path = tmp_path / 'weights'
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


IN_FUNCTIONS = {
  'both': (
    {'teacher__num_members': 3},
    'teacher.num_members = 3: teacher.source = .* has 2; allowed: up to 2',
  ),
  'three_dimensional': (ONE, r'gives \(1, 4, 10\) in float64 .* needed: logits \(4, 10\)'),
  'half': (ONE, 'of 40 logits are not finite; needed: finite logits'),
  'lost': (ONE, r'raised ZeroDivisionError: division by zero \(.*\.py:'),
  'nothing': (ONE, 'gives an object of type NoneType; needed: a function'),
  'WEIGHTS': (ONE, 'gives an object of type ndarray; needed: a function'),
  'missing': (ONE, 'defines no missing'),
  'scaled': (ONE, 'takes a path; needed: teacher.path'),
}


@pytest.mark.parametrize('attribute', IN_FUNCTIONS)
def test_a_function_that_does_not_fit_is_refused(tmp_path, attribute):
  fields, told = IN_FUNCTIONS[attribute]
  problem = problem_of(tiny_run(tmp_path / 'run', teacher__source=source(attribute), **fields))
  assert re.search(told, ' '.join(problem.split())), problem
  assert not (tmp_path / 'run').exists()


# Fields that do not go together.
SEED, FUNCTION = 'evaluation__independent_seed', {'teacher__source': 'json:loads'}
TOGETHER = [
  (FUNCTION | {'student__init_lambda': 0.5}, "init_lambda = 0.5: needs a teacher's weights"),
  (FUNCTION | {'evaluation__num_cka_examples': 20}, "examples = 20: needs a teacher's weights"),
  (
    FUNCTION | {'predictions__extra': 'gan', 'predictions__num_extra': 5},
    "extra = 'gan': needs a teacher's weights",
  ),
  (FUNCTION | {SEED: 1}, 'independent_seed = 1: with .* no independent teacher can be trained'),
  (
    FUNCTION | {SEED: 1, 'teacher__independent_source': 'json:loads'},
    'it names the teacher itself; allowed: another teacher',
  ),
  (
    {'teacher__source': 'file'},
    'teacher.path = None: allowed with teacher.source = .file.: a path',
  ),
  (
    {'teacher__source': 'file', 'teacher__path': 'x', 'predictions__mode': 'online'},
    "predictions.mode = 'online': teacher.source = 'file' has the logits of its own views only",
  ),
  ({'teacher__path': 'x'}, "teacher.path = 'x': has no effect"),
  ({'teacher__independent_source': 'file'}, "independent_source = 'file': has no effect"),
  ({'teacher__source': 'files'}, "source = 'files': allowed: '' .trained here., 'file', 'workdir'"),
  (
    {'teacher__source': 'no_such_module:f'},
    "source = 'no_such_module:f': importing no_such_module",
  ),
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
    "needs a teacher's weights: teacher.source = 'a:f' has only predictions"
  )
  assert not study.has_teachers


# Members of another workdir.


def test_members_of_another_workdir_teach_as_they_do_in_their_own(finished, tmp_path):
  """This config has another optimizer and other data. λ and CKA find the weights."""
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
  reseeded = tiny_run(tmp_path, **fields, seed=5)  # members started from the seed of their workdir
  assert teachers.member_seed(reseeded, 1) == teachers.member_seed(finished, 1)
  assert 'equal up to that rounding' in verification.verify(run)
  assert Study(run).lacks_teacher is None
  fewer = tiny_run(tmp_path, **fields, dataset__num_train=100)
  assert digest(teachers.load(fewer, 1)) == digest(teachers.load(finished, 1))


def test_members_that_do_not_fit_are_refused(finished, tmp_path):
  path = str(finished.folders.member(0).parent)
  fields = {'teacher__source': 'workdir', 'teacher__path': path}
  problem = problem_of(tiny_run(tmp_path, **fields, model__options={'width': 8}))
  assert 'was trained with model.options = {}; needed: the same `model` as here' in problem
  problem = problem_of(tiny_run(tmp_path, **fields, teacher__num_members=3))
  assert problem.startswith('teacher.num_members = 3: ')
  assert problem.endswith('has 2; allowed: up to 2')
  fields['teacher__path'] = str(tmp_path)
  assert 'has no member_0/config.json' in problem_of(tiny_run(tmp_path, **fields))


def test_a_teacher_of_other_classes_does_not_fit(finished, tmp_path):
  """Reading the checkpoint, before any training, reports another number of classes."""
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


def of_torch(recipe_module, path):
  import torch

  torch.manual_seed(0)
  network = recipe_module.network()
  torch.save(network.state_dict(), path)
  network.eval()
  as_torch = lambda images: torch.tensor(images.transpose(0, 3, 1, 2))
  return lambda images: network(as_torch(images)).detach().numpy()


def of_keras(_, path):
  import keras

  layers = [keras.layers.Input((8, 8, 1)), keras.layers.Flatten(), keras.layers.Dense(10)]
  network = keras.Sequential(layers)
  network.save(path)
  return network.predict_on_batch


@pytest.mark.parametrize(
  ('framework', 'file', 'save'),
  [('torch', 'network.pt', of_torch), ('keras', 'network.keras', of_keras)],
)
def test_the_recipe_predicts_what_the_network_does(module, tmp_path, framework, file, save):
  name, path = module(recipe(framework)), str(tmp_path / file)
  pytest.importorskip(framework)
  network = save(importlib.import_module(name), path)
  fields = {'teacher__source': f'{name}:load', 'teacher__path': path}
  run = checked(tiny_run(tmp_path / 'run', **fields, **ONE))
  predictions.STAGE.run(run)
  images_BHWC = np.concatenate([x for _, x, _ in run.predictor.views(run.data.inputs['test'])])
  expected = jax.nn.log_softmax(network(images_BHWC))
  found = predictions.open_teacher(run).members('test')[0]
  np.testing.assert_allclose(found, expected, atol=0.02)
