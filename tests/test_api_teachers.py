"""`kdjax.distil` with teachers that kdjax does not train: functions and logits."""

import jax
import numpy as np
import pytest
from test_api import CONFIG, Mlp, distil, quiet, splits, state_of  # noqa: F401 (quiet is a fixture)

import kdjax
from kdjax.errors import ConfigError

WEIGHTS = np.random.default_rng(0).normal(size=(2, 64, 10)) / 8


def linear(weights):
  """A teacher that cannot be imported."""

  def predict(images):
    return images.reshape(len(images), 64) @ weights

  return predict


def unit(images):
  return images / np.float32(127.5) - 1


@pytest.fixture(scope='module')
def taught(tmp_path_factory):
  """The workdir and the result of a function's student."""
  workdir = tmp_path_factory.mktemp('taught')
  return workdir, distil(workdir, teacher=linear(WEIGHTS[0]))


def test_functions_teach(taught, tmp_path):
  several = list(map(linear, WEIGHTS))
  for members, result in (
    (several[:1], taught[1]),
    (several, distil(tmp_path, teacher=several)),
  ):
    images, test = unit(splits()['test'][0]), result['splits']['test']
    probs = np.mean([jax.nn.softmax(member(images)) for member in members], axis=0)
    found = result.student.logits['test']['teacher']
    np.testing.assert_allclose(np.exp(found), probs, atol=2e-3)
    assert len(test['members']) == len(members)
    assert 'independent' not in test


def test_a_function_of_other_content_is_another_teacher(taught):
  workdir, result = taught
  before = state_of(workdir)
  assert distil(workdir, teacher=linear(WEIGHTS[0].copy())) == result
  assert state_of(workdir) == before
  assert distil(workdir, teacher=linear(WEIGHTS[1])) != result
  assert len(kdjax.open(workdir)) == 2


def test_logits_are_the_same_teacher_as_their_function(taught, tmp_path):
  teacher, data = linear(WEIGHTS[0]), splits()
  logits = {split: teacher(unit(pair[0])) for split, pair in data.items()}
  found = distil(tmp_path, teacher=logits)['splits']
  assert found == taught[1]['splits']
  members = {split: np.stack([values, values]) for split, values in logits.items()}
  assert distil(tmp_path, teacher=members)['splits'].keys() == found.keys()


def test_logits_of_views(tmp_path):
  """The logits are those of the images of `kdjax.views`."""
  teacher, data = linear(WEIGHTS[0]), splits()
  fields = {
    'predictions.augmentation': ('flip',),
    'predictions.num_views': 2,
    'evaluation.independent_seed': None,
  }
  expected = distil(tmp_path / 'function', teacher=teacher, config=fields)
  of_views = [[], []]
  for view, _, images, _ in kdjax.views(expected.student.config):
    of_views[view].append(teacher(images))
  logits = {split: teacher(unit(pair[0])) for split, pair in data.items()}
  logits['distillation'] = np.stack([np.concatenate(of_views[view]) for view in range(2)])[None]
  found = distil(tmp_path / 'logits', teacher=logits, config=fields)
  assert found['splits'] == expected['splits']


def test_what_does_not_fit_is_refused(tmp_path):
  logits = {'train': np.zeros((60, 10)), 'test': np.zeros((20, 10))}
  for teacher, told in (
    (
      {'train': logits['train']},
      'teacher: has logits of distillation, train; needed: distillation, train, test',
    ),
    (logits | {'test': np.zeros(20)}, r"teacher\['test'\]: has the shape \(20,\)"),
    (logits | {'test': np.zeros((20, 9))}, 'test has 20 examples and 9 classes'),
    (lambda images: images, r'gives \(4, 8, 8, 1\)'),
  ):
    with pytest.raises(ConfigError, match=told):
      distil(tmp_path, teacher=teacher)


def test_a_trained_model_is_a_function(taught, tmp_path):
  first = taught[1].student
  teacher = lambda images: first.model.apply(first.variables, images, train=False)
  student = distil(tmp_path, teacher=teacher, student=Mlp(10, width=4)).student
  expected = jax.nn.log_softmax(first.logits['test']['student'])
  np.testing.assert_allclose(student.logits['test']['teacher'], expected, atol=5e-3)
  assert student.config.teacher.source == 'kdjax.runtime.given:lambda'


def softmax(images):
  return np.asarray(jax.nn.softmax(linear(WEIGHTS[0])(images)))


def centred(images):
  logits_BC = linear(WEIGHTS[0])(images)
  return logits_BC - logits_BC.mean(axis=0)


@pytest.mark.parametrize(
  ('function', 'told'),
  [
    (softmax, 'member 0 returns probabilities; needed: logits'),
    (centred, 'member 0 gives other logits for the same inputs in another batch'),
  ],
)
def test_a_function_that_is_no_function_of_each_input_to_logits_is_refused(
  tmp_path, function, told
):
  with pytest.raises(ConfigError, match=told):
    distil(tmp_path, teacher=function)


@pytest.mark.parametrize(
  ('changes', 'fields', 'told'),
  [
    ({'test': np.zeros((3, 20, 10))}, {}, 'logits of 1 and 3 members; needed: one number'),
    ({}, {'dataset.num_test': 20}, 'dataset.num_test: allowed with logits: none'),
  ],
)
def test_logits_that_do_not_fit_are_refused(tmp_path, changes, fields, told):
  logits = {split: linear(WEIGHTS[0])(unit(pair[0])) for split, pair in splits().items()}
  with pytest.raises(ConfigError, match=told):
    distil(tmp_path, teacher=logits | changes, config=CONFIG | fields)


def test_a_bound_module_is_refused_as_its_weights_would_be_lost(tmp_path):
  model = Mlp(10)
  variables = model.init(jax.random.key(0), np.zeros((1, 8, 8, 1)), train=False)
  with pytest.raises(ConfigError, match='teacher: a bound module, whose weights would not be used'):
    distil(tmp_path, teacher=model.bind(variables))
