"""A user's model, data, loss, augmentation and optimizer, named as 'module:attribute'."""

import logging
import re
from types import SimpleNamespace

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from etils import epath
from users_code import ROOT, Project

from analysis import permutations
from kdjax import config as config_lib
from kdjax import data, losses, models
from kdjax.config import code, fingerprints, loss_checks, validation
from kdjax.data import views
from kdjax.errors import ConfigError, UserError
from kdjax.models import user
from kdjax.runtime import plugins
from kdjax.stages import evaluation, pipeline, teachers
from kdjax.stages.experiment import Experiment
from kdjax.train import optimizers


@pytest.fixture(scope='module')
def project(tmp_path_factory):
  return Project(tmp_path_factory.mktemp('project'), BROKEN)


def module_of(project):
  return __import__(project.name)


def test_all_stages_run_with_a_users_code(project, tmp_path):
  config = project.config(student__num_epochs=2)
  validation.check(config, jax.device_count())
  stages = ('teachers', 'predictions', 'student', 'evaluation', 'report')
  run = pipeline.run(config, epath.Path(tmp_path), stages)
  result = evaluation.result(run)
  assert result['splits'].keys() == {'train', 'test', 'val', 'distillation'}
  assert 0 < result['splits']['val']['fidelity']['predictive_kl'] < 5
  assert run.data.sizes == {'train': 64, 'val': 16, 'test': 16}
  assert run.data.description.class_names == ('a', 'b', 'c')


def test_a_model_is_the_users_own_module(project):
  config = project.config(model__options="{'width': 3, 'sizes': [2]}").model
  model, own = models.build(config, 7), module_of(project).Net(num_classes=7, width=3, sizes=(2,))
  hash(model)
  assert models.own_module(model) == own
  x = jnp.ones((4, 2, 2, 1))
  variables = models.init(model, jax.random.key(0), x.shape[1:])
  expected = own.init(jax.random.key(1), x, train=False)
  assert jax.tree.map(jnp.shape, variables['params']) == jax.tree.map(jnp.shape, expected['params'])
  logits, features = model.apply(variables, x, train=False)
  np.testing.assert_array_equal(logits, own.apply(variables, x, train=False))
  assert features == {}


def test_features_and_statistics_of_a_users_model(project):
  model = models.build(project.config(model__name='@Featured').model, 7)
  variables = models.init(model, jax.random.key(0), (2, 2, 1))
  assert variables['batch_stats']['BatchNorm_0']['mean'].shape == (1,)
  assert models.feature_shapes(model, (2, 2, 1))['hidden'].shape == (2, 5)


@pytest.mark.parametrize('axis', ['device', None])
def test_statistics_that_would_differ_on_devices_are_refused(axis):
  class Net(nn.Module):
    @nn.compact
    def __call__(self, x, train):
      x = nn.BatchNorm(not train, axis_name=axis if train else None)(x.reshape(len(x), -1))
      return nn.Dense(3)(x), {}

  assert user.problem(Net(), 3, (4,)) is None
  reason = user.problem(Net(), 3, (4,), num_devices=2)
  assert reason is None if axis else 'would differ on 2 devices' in reason


def test_options_of_the_students_model(project):
  """The same model inherits the teacher's options; another model does not."""
  config = project.config(student__model__options__sizes='(2,)')
  assert config_lib.student_model(config).options.to_dict() == {'width': 5, 'sizes': (2,)}
  config = project.config(student__model__name='@Featured', student__model__options__sizes='(2,)')
  assert config_lib.student_model(config).options.to_dict() == {'sizes': (2,)}


def test_a_loss_gets_what_it_needs_and_its_options(project):
  student, teacher = jnp.log(jnp.array([[0.5, 0.5]])), jnp.log(jnp.array([[0.25, 0.75]]))
  made = losses.make(f'{project.name}:loss', {'weight': 2.0})
  value = losses.apply(made, student, teacher, 4.0, labels_B=jnp.array([0]), batch_mean=None)
  np.testing.assert_allclose(value, [2 * 2 / 16 + 0.1], rtol=1e-6)
  assert losses.find(f'{project.name}:loss').options == {'weight': 1.0}
  assert losses.unit(f'{project.name}:loss', 0.0) == ''


def test_an_augmentation_is_the_users_function_with_a_key_of_its_own(project):
  name = f'{project.name}:darken'
  images = np.random.default_rng(0).uniform(-1, 1, (3, 4, 5, 2)).astype(np.float32)
  batch = {
    'inputs': images,
    'labels': np.arange(3),
    'indices': np.arange(3),
    'views': np.array([0, 0, 1]),
  }
  config = project.config().augmentation
  views_BHWC, labels_B = views.make_view((name,), config)(0, batch)
  np.testing.assert_array_equal(labels_B, np.arange(3))
  keys = views._keys(name, 0, batch)
  expected = [
    module_of(project).darken(key, image) for key, image in zip(keys, images, strict=True)
  ]
  np.testing.assert_allclose(views_BHWC, expected, rtol=1e-6)
  assert len({float(x.mean()) for x in views_BHWC}) == 3


def test_an_optimizer_is_what_the_users_function_returns(project):
  section = project.config().teacher
  params, gradient = {'w': jnp.ones(3)}, {'w': jnp.array([1.0, -2.0, 0.0])}
  made = optimizers.make_optimizer(section, 10)
  own = optax.lion(optimizers.learning_rate(section, 10), weight_decay=section.weight_decay)
  found, expected = (o.update(gradient, o.init(params), params)[0] for o in (made, own))
  np.testing.assert_array_equal(found['w'], expected['w'])


def test_alignment_says_what_a_users_model_lacks(project, monkeypatch):
  model = models.build(project.config().model, 3)
  assert 'which units of Net may be permuted' in permutations.lacks_spec(model)
  monkeypatch.setitem(permutations.SPECS, module_of(project).Net, None)
  assert permutations.lacks_spec(model) is None


def test_the_examples_of_the_documentation_fit(tmp_path):
  text = (ROOT / 'docs' / 'extending.md').read_text()
  for name, content in re.findall(r'```python\n# (\w+\.py)\n(.*?)```', text, re.DOTALL):
    (tmp_path / name).write_text(content)
  config, problems = config_lib.load(str(tmp_path / 'mine_config.py'))
  assert problems == []
  validation.check(config, 1)
  config.student.loss, config.student.loss_options = 'hints:cosine', {'weight': 3.0}
  config.predictions.mode, config.evaluation.independent_seed = 'online', None
  config.teacher.num_epochs = config.student.num_epochs = 1
  config.training.num_evals = config.training.num_checkpoints = 1
  validation.check(config, 1)
  run = pipeline.run(config, epath.Path(tmp_path), ['teachers', 'student', 'evaluation'])
  assert 0 < evaluation.result(run)['splits']['test']['fidelity']['predictive_kl'] < 5


# Refused configs, with one error each.

BROKEN = """
CONSTANT = 3

def not_a_module(num_classes):
  return num_classes

def takes_nothing():
  return 3

class WrongShape(nn.Module):
  num_classes: int

  @nn.compact
  def __call__(self, x, train):
    return nn.Dense(3)(x)

class Half(nn.Module):
  num_classes: int

  @nn.compact
  def __call__(self, x, train):
    return nn.Dense(self.num_classes, dtype=jnp.bfloat16)(x.reshape(len(x), -1))

class HalfInTraining(nn.Module):
  num_classes: int

  @nn.compact
  def __call__(self, x, train):
    logits = nn.Dense(self.num_classes)(x.reshape(len(x), -1))
    return logits.astype(jnp.bfloat16) if train else logits

class Cached(Half):
  @nn.compact
  def __call__(self, x, train):
    self.variable('cache', 'x', jnp.zeros, ())
    return nn.Dense(self.num_classes)(x.reshape(len(x), -1))

class Noisy(Half):
  @nn.compact
  def __call__(self, x, train):
    x = x + (jax.random.normal(self.make_rng('noise')) if train else 0)
    return nn.Dense(self.num_classes)(x.reshape(len(x), -1))

def scalar(student, teacher, temperature):
  return (student - teacher).sum()

def nan(student, teacher, temperature):
  return student.sum(-1) + jnp.nan

def nan_gradient(student, teacher, temperature):
  return jnp.sqrt(0 * student).sum(-1)

def branches(student, teacher, temperature):
  return student.sum(-1) if student[0, 0] > 0 else teacher.sum(-1)

def by_class(student, teacher, temperature):
  return ((student - teacher) ** 2).mean(0)

def smaller(key, image):
  return image[1:]

def fails(*_):
  raise KeyError('no such thing')

def other_layers(section, learning_rate):
  rates = {'Dense_0': optax.sgd(1.0), 'Dense_7': optax.sgd(0.1)}
  return optax.multi_transform(rates, lambda params: {name: name for name in params})

def transposed(section, learning_rate):
  return optax.stateless(lambda updates, params: jax.tree.map(jnp.transpose, updates))

def counts_in_float(section, learning_rate):
  start = lambda params: jnp.zeros((), jnp.int32)
  return optax.GradientTransformation(start, lambda updates, count, _: (updates, count + 0.5))

def list_of_pairs():
  return [(1, 2), (3, 4)]

def large():
  found = load()
  return found | {'train': (100 * found['train'][0], found['train'][1])}
"""
CASES = [
  ({'model__name': 'no_such_module:Net'}, 'importing no_such_module raised ModuleNotFoundError'),
  ({'model__name': '@Missing'}, 'defines no Missing'),
  ({'model__name': '@CONSTANT'}, 'is 3; needed: a function or a class'),
  ({'model__name': '@not_a_module'}, 'got an unexpected keyword argument'),
  (
    {'model__name': '@not_a_module', 'model__options': {}},
    'returns 3; needed: a flax.linen.Module',
  ),
  ({'model__options__depth': 3}, "unexpected keyword argument 'depth'"),
  (
    {'model__name': '@WrongShape', 'model__options': {}},
    'maps (2, 4, 5, 2) to (2, 4, 5, 3); needed: logits of shape (2, 3)',
  ),
  ({'model__name': '@Half', 'model__options': {}}, 'logits of dtype bfloat16; needed: float32'),
  ({'model__name': '@HalfInTraining', 'model__options': {}}, 'needed: float32, in training too'),
  ({'model__name': '@Cached', 'model__options': {}}, "has the variables ['cache']"),
  ({'model__name': '@Noisy', 'model__options': {}}, 'needs PRNG for "noise"'),
  ({'student__model__name': '@WrongShape'}, 'student.model.name'),
  ({'model__name': 'resnet', 'model__options': {'a': 1}}, 'resnet has no options'),
  ({'student__loss': '@scalar', 'student__loss_options': {}}, 'returns the shape ()'),
  ({'student__loss': '@nan', 'student__loss_options': {}}, 'gives [nan nan nan nan]'),
  (
    {'student__loss': '@nan_gradient', 'student__loss_options': {}},
    'gives [0. 0. 0. 0.] for random logits of 4 examples, and 12 values of its gradient are not',
  ),
  ({'student__loss': '@branches', 'student__loss_options': {}}, 'raised TracerBoolConversionError'),
  ({'student__loss': '@fails', 'student__loss_options': {}}, "raised KeyError: 'no such thing' ("),
  ({'student__loss_options__beta': 1}, 'has no beta; allowed: weight'),
  ({'student__loss': 'brier'}, 'has no weight; allowed: {}'),
  (
    {'student__loss': '@loss', 'predictions__augmentation': "('noise',)"},
    'needs the label of every example, but noise',
  ),
  (
    {'teacher__augmentation': "('@smaller',)"},
    'returns (3, 5, 2) in float32 for an image of (4, 5, 2)',
  ),
  ({'teacher__augmentation': "('@fails',)"}, 'teacher.augmentation: users_'),
  ({'student__optimizer': '@not_a_module'}, 'raised TypeError'),
  ({'student__optimizer': '@fails'}, 'raised KeyError'),
  ({'teacher__optimizer': '@other_layers'}, "teacher.optimizer = '"),
  ({'student__optimizer': '@transposed'}, "student.optimizer = '"),
  ({'student__optimizer': '@counts_in_float'}, 'changes the shapes or dtypes of its state'),
  ({'dataset__name': '@list_of_pairs'}, "gives list. Needed: {'train': (x, y)"),
  ({'dataset__name': '@fails'}, 'raised KeyError'),
  ({'dataset__num_val': 3}, 'has a validation split of its own, of 16 examples'),
  ({'dataset__image_size': 12}, 'the inputs of users_'),
  ({'dataset__path': 'x.npz'}, "is for dataset.name = 'arrays'"),
  ({'predictions__extra': 'digits', 'predictions__num_extra': 3}, 'in floating point'),
  ({'evaluation__num_cka_examples': 8}, 'none in common; allowed: 0'),
]


@pytest.mark.parametrize(('overrides', 'expected'), CASES)
def test_what_does_not_fit_is_refused(project, overrides, expected):
  if not any('loss' in field for field in overrides):  # a built-in one needs no evaluation
    overrides = overrides | {'student__loss': 'brier', 'student__loss_options': {}}
  with pytest.raises(ConfigError) as error:
    validation.check(project.config(**overrides), 1)
  assert any(expected in problem for problem in error.value.problems), error.value.problems
  if 'extra' not in str(overrides):
    assert len(error.value.problems) == 1


@pytest.mark.parametrize('num_classes', [3, 4, 5])
def test_no_axis_of_a_loss_is_taken_for_the_other(project, num_classes):
  config = project.config(student__loss='@by_class', student__loss_options={})
  (line,) = loss_checks._computed(config, SimpleNamespace(num_classes=num_classes))
  assert f'returns the shape ({num_classes},)' in line


def test_a_loss_is_evaluated_with_its_options(project):
  config = project.config(
    student__loss='decoupled', student__loss_options="{'target_weight': 1e999}"
  )
  with pytest.raises(ConfigError, match='are not finite; needed: finite values'):
    validation.check(config, 1)


def test_a_module_that_ends_the_program_is_an_error(tmp_path):
  (tmp_path / 'ends_the_program.py').write_text('raise SystemExit(3)')
  plugins.add_folder(tmp_path)
  with pytest.raises(UserError, match='importing ends_the_program raised SystemExit: 3'):
    plugins.find('ends_the_program:x', 'model.name')


def test_a_module_is_found_in_the_folder_added_last(tmp_path):
  for name in ('older', 'newer'):
    (tmp_path / name).mkdir()
    (tmp_path / name / 'in_two_folders.py').write_text(f'PLACE = {name!r}')
    plugins.add_folder(tmp_path / name)
  assert plugins.attribute('in_two_folders:PLACE', 'model.name') == 'newer'


def test_values_are_checked_as_they_are_read(project):
  with pytest.raises(UserError, match=r'has values in \[-.*; allowed in floating point: \[-1, 1\]'):
    data.load(project.config(dataset__name='@large').dataset)


# Fingerprints cover the code.


def edited(project, *edits):
  """The artefacts whose fingerprints an edit changes, and the names in their records."""
  config = project.config()

  def seen():
    code.forget()
    names = ('teacher', 'predictions', 'student')
    return {
      name: (fingerprints.FINGERPRINTS[name](config), fingerprints.code_record(config, name))
      for name in names
    }

  before = seen()
  for edit in edits:
    project.edit(*edit)
  after = seen()
  changed = {name: fingerprints.changed(before[name][1], after[name][1]) for name in before}
  for name in before:
    assert (before[name][0] != after[name][0]) == bool(changed[name])
  return {name: names for name, names in changed.items() if names}


ALL = ('teacher', 'predictions', 'student')
EDITS = [
  ('nn.relu(x)', 'nn.tanh(x)', '_layers', ALL, '{}_layers.activation'),
  ('nn.relu(x)', 'nn.relu(x)  # a comment', '_layers', (), ''),
  ('  return nn.relu(x)', '  """Text."""\n\n  return (\n    nn.relu(x)\n  )', '_layers', (), ''),
  ('activation(x):', 'activation(x: object) -> object:', '_layers', (), ''),
  ('nn.Dense(self.num_classes)(x)', 'nn.Dense(self.num_classes)(x + 1)', '', ALL, '{}.Net'),
  ('0.1 *', '0.2 *', '', ('student',), '{}.loss'),
  ('jax.random.uniform(key) -', '2 -', '', ALL, '{}.darken'),
  ('/ 10', '/ 11', '', ALL, '{}.load'),
  ('optax.lion', 'optax.adamw', '', ALL, '{}.lion'),
  ('Dropout(0.1', 'Dropout(0.2', '', (), ''),  # of a model that is not used
]


@pytest.mark.parametrize(('old', 'new', 'suffix', 'artefacts', 'name'), EDITS)
def test_an_edit_changes_the_artefacts_that_it_decides(tmp_path, old, new, suffix, artefacts, name):
  project = Project(tmp_path)
  found = edited(project, (old, new, suffix))
  assert tuple(found) == artefacts
  assert all(names == [name.format(project.name)] for names in found.values())


def test_a_changed_model_is_trained_again_and_the_reason_is_reported(tmp_path, caplog):
  project = Project(tmp_path)
  run = Experiment(project.config(teacher__num_members=1), epath.Path(tmp_path))
  assert teachers.STAGE.run(run)
  assert not teachers.STAGE.run(run)
  trained = run.folders.member(0).parent
  assert fingerprints.changes(trained, run.config, 'teacher') == []
  project.edit('nn.relu', 'nn.tanh', '_layers')
  code.forget()
  activation = f'{project.name}_layers.activation'
  assert fingerprints.changes(trained, run.config, 'teacher') == [activation]
  assert not teachers.is_trained(run, 0)
  with caplog.at_level(logging.WARNING):
    teachers.STAGE.run(run)
  (message,) = [r.getMessage() for r in caplog.records if 'made again' in r.getMessage()]
  assert message == (f'teacher: made again, since this has changed: {activation}')
