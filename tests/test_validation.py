"""Validation: every rule with a value that breaks it, and that nothing valid is refused."""

import pathlib

import jax
import numpy as np
import pytest

from kdjax import config as config_lib
from kdjax import data, models, validation
from kdjax.errors import ConfigError, UserError

ROOT = pathlib.Path(__file__).parents[1]

# A value that breaks each rule of validation.RULES.
BROKEN = {
  'seed': -1,
  'dataset.num_train': 0,
  'dataset.num_val': -1,
  'dataset.num_test': 0,
  'model.name': 'vgg',
  'model.depth': 21,
  'model.width': 0,
  'model.norm': 'group',
  'teacher.num_members': 0,
  'teacher.num_epochs': 0,
  'teacher.num_steps': -5,
  'teacher.num_examples': 0,
  'teacher.batch_size': 0,
  'teacher.learning_rate': 0.0,
  'teacher.final_learning_rate': -0.1,
  'teacher.momentum': 1.0,
  'teacher.weight_decay': -1e-4,
  'teacher.augmentation': ('crop', 'rotate'),
  'teacher.keep_checkpoints': (0.5, 1.0),
  'predictions.mode': 'saved',
  'predictions.num_views': 0,
  'predictions.dtype': 'float64',
  'predictions.augmentation': ('shear',),
  'student.seed': 2**31,
  'student.num_epochs': 0,
  'student.num_steps': 0,
  'student.num_examples': 0,
  'student.batch_size': -128,
  'student.learning_rate': float('inf'),
  'student.final_learning_rate': float('nan'),
  'student.momentum': -0.1,
  'student.weight_decay': float('inf'),
  'student.keep_checkpoints': ('half',),
  'student.temperature': 0.0,
  'student.alpha': 1.0,
  'student.init_lambda': 1.5,
  'student.model.name': 'ResNet',
  'student.model.depth': 2,
  'student.model.width': 0,
  'student.model.norm': 'none',
  'augmentation.crop_padding': -1,
  'training.num_logs': 0,
  'training.num_evals': 0,
  'training.num_checkpoints': 0,
  'evaluation.batch_size': 0,
  'evaluation.num_views': 0,
}


# Data sets are like these, whether they are there or not.
DESCRIPTIONS = {
  'digits': data.Description((8, 8, 1), tuple('0123456789'), num_train=1437, num_test=360),
  'cifar10': data.Description((32, 32, 3), tuple('abcdefghij'), num_train=50_000, num_test=10_000),
}


@pytest.fixture(autouse=True)
def prepare_arguments(monkeypatch):
  """What `data.describe`, which is replaced, was told about preparing the data set."""
  arguments = []

  def describe(config, prepare=True):
    arguments.append(prepare)
    if config.name not in DESCRIPTIONS:
      raise UserError(f'dataset.name = {config.name!r}: not there')
    return DESCRIPTIONS[config.name]

  monkeypatch.setattr(data, 'describe', describe)
  return arguments


def load(spec='cifar_resnet.py', fields=()):
  config, problems = config_lib.load(str(ROOT / 'configs' / spec))
  assert problems == []
  config.update_from_flattened_dict(dict(fields))
  return config


def problems_of(config, num_devices=1, problems=()):
  with pytest.raises(ConfigError) as error:
    validation.check(config, num_devices, problems)
  return error.value.problems


# One rule at a time.


ANY_OF_THEIR_TYPE = {'dataset.name', 'dataset.data_dir', 'teacher.nesterov', 'student.nesterov'}


def test_every_rule_is_broken_once():
  assert set(BROKEN) | ANY_OF_THEIR_TYPE == set(validation.RULES), (
    'Give every rule a value that breaks it, in BROKEN.'
  )


def test_every_field_has_a_rule():
  assert set(validation.RULES) == set(config_lib.leaves(load()))


def test_a_config_that_lacks_or_adds_fields_is_told():
  config = load()
  with config.unlocked():
    del config.student['momentum']
    config.student.temprature = 1.0
  problems = problems_of(config)
  assert len(problems) == 2
  assert problems[0].startswith('student.momentum: missing')
  assert problems[1].startswith('student.temprature = 1.0: no such field')


def test_an_augmentation_comes_once():
  fields = {'teacher.augmentation': ('crop', 'crop')}
  (problem,) = problems_of(load(fields=fields))
  assert problem.startswith("teacher.augmentation = ('crop', 'crop'): ")


def test_a_crop_must_show_some_of_the_image():
  (problem,) = problems_of(load('digits_resnet.py', {'augmentation.crop_padding': 8}))
  assert problem.startswith('augmentation.crop_padding = 8: allowed: less than the 8 pixels')
  validation.check(load('digits_resnet.py', {'augmentation.crop_padding': 7}), num_devices=1)


@pytest.mark.parametrize('field', BROKEN)
def test_a_broken_rule_is_told_with_field_value_and_what_is_allowed(field):
  problems = problems_of(load(fields={field: BROKEN[field]}))
  start = f'{field} = {BROKEN[field]!r}: allowed: {validation.RULES[field][1]}'
  assert start in problems
  # Others may follow from it, such as that two durations are set.
  assert not [p for p in problems if p.startswith(field + ' ') and p != start]


@pytest.mark.parametrize(
  ('field', 'value'),
  [
    ('seed', 0),
    ('seed', 2**31 - 1),
    ('student.alpha', 0.0),
    ('student.alpha', 0.99),
    ('student.init_lambda', 1.0),
    ('student.final_learning_rate', 0.0),
    ('student.keep_checkpoints', ()),
    ('student.keep_checkpoints', (0.0, 0.999)),
    ('teacher.momentum', 0.0),
    ('teacher.augmentation', ()),
    ('teacher.augmentation', ('flip', 'crop')),
    ('model.depth', 110),
    ('model.name', 'lenet'),
    ('augmentation.crop_padding', 0),
    ('dataset.num_train', 50_000),
    ('dataset.num_test', 10_000),
    ('dataset.num_val', 49_999),
    ('predictions.dtype', 'bfloat16'),
  ],
)
def test_the_last_value_that_a_rule_allows_is_valid(field, value):
  validation.check(load(fields={field: value}), num_devices=1)


def test_none_is_told_for_every_field_that_is_not_optional():
  for field in config_lib.leaves(load()):
    config = load(fields={field: None})
    if not config_lib.is_optional(config, field):
      assert any(p.startswith(f'{field} = None: ') for p in problems_of(config)), field


def test_none_is_valid_for_optional_fields_beside_a_duration():
  optional = [f for f in config_lib.leaves(load()) if config_lib.is_optional(load(), f)]
  fields = dict.fromkeys(optional) | {'teacher.num_steps': 10, 'student.num_examples': 10_000}
  validation.check(load(fields=fields), num_devices=1)


# All at once.


def test_all_problems_come_in_one_message():
  config = load(fields=BROKEN)
  problems = problems_of(config, problems=['student.tau = 1: no such field'])
  fields = [problem.partition(' = ')[0] for problem in problems]
  assert fields[0] == 'student.tau'
  assert set(BROKEN) <= set(fields)
  with pytest.raises(ConfigError) as error:
    validation.check(config, 1)
  assert all(f'\n  {field} = ' in str(error.value) for field in BROKEN)


def test_problems_of_the_overrides_are_raised_for_a_valid_config():
  assert problems_of(load(), problems=['x = 1: no such field']) == ['x = 1: no such field']


def test_the_message_counts_the_problems():
  with pytest.raises(ConfigError, match='has 1 problem;'):
    validation.check(load(fields={'seed': -1}), 1)
  with pytest.raises(ConfigError, match='has 2 problems;'):
    validation.check(load(fields={'seed': -1, 'model.width': 0}), 1)


def test_a_data_set_is_prepared_only_if_all_else_is_right(prepare_arguments):
  validation.check(load(), 1)
  problems_of(load(fields={'seed': -1}))
  problems_of(load(), problems=['x = 1: no such field'])
  assert prepare_arguments == [True, False, False]


def test_a_missing_data_set_is_one_problem_among_the_others():
  problems = problems_of(load(fields={'dataset.name': 'cifar100', 'seed': -1}))
  assert [p.partition(':')[0] for p in problems] == ['seed = -1', "dataset.name = 'cifar100'"]


# Fields that are tied to one another, to the data or to the devices.


@pytest.mark.parametrize('section', ['teacher', 'student'])
@pytest.mark.parametrize(
  ('values', 'shown'),
  [
    ((None, None, None), 'none of them'),
    ((2, 3, None), 'num_epochs = 2, num_steps = 3'),
    ((2, 3, 4), 'num_epochs = 2, num_steps = 3, num_examples = 4'),
  ],
)
def test_exactly_one_duration_is_set(section, values, shown):
  fields = {f'{section}.{d}': v for d, v in zip(config_lib.DURATIONS, values, strict=True)}
  (problem,) = problems_of(load(fields=fields))
  assert problem.startswith(f'{section}.num_epochs/num_steps/num_examples: {shown}; allowed: ')


@pytest.mark.parametrize(
  ('num_train', 'num_val'), [(50_001, 0), (None, 50_000), (49_000, 1001), (1, 60_000)]
)
def test_training_and_validation_examples_fit_the_set(num_train, num_val):
  fields = {'dataset.num_train': num_train, 'dataset.num_val': num_val}
  (problem,) = problems_of(load(fields=fields))
  assert problem.startswith(f'dataset.num_train = {num_train}, dataset.num_val = {num_val}: ')
  assert '50000' in problem


def test_test_examples_fit_the_set():
  (problem,) = problems_of(load(fields={'dataset.num_test': 10_001}))
  assert problem.startswith('dataset.num_test = 10001: ') and '10000' in problem


@pytest.mark.parametrize('field', ['model.name', 'student.model.name'])
def test_lenet_needs_larger_images_than_the_digits(field):
  (problem,) = problems_of(load('digits_resnet.py', {field: 'lenet'}))
  assert problem.startswith(f"{field} = 'lenet': ") and '12' in problem and '8' in problem


def test_lenet_has_pixels_left_on_the_smallest_images_that_it_is_allowed():
  def features():
    model, images = models.LeNet5(10), np.zeros((1, smallest, smallest, 1))
    variables = models.init(model, jax.random.key(0), images.shape[1:])
    return model.apply(variables, images, train=False)[1]

  def pixels(size):  # halved, cut by the 5x5 convolution, and halved
    return (size // 2 - 4) // 2

  smallest = validation.LENET_SMALLEST
  assert jax.eval_shape(features)['conv2'].shape == (1, pixels(smallest), pixels(smallest), 16)
  assert pixels(smallest) > 0 and pixels(smallest - 1) == 0


def test_batches_are_split_evenly_over_the_devices():
  problems = problems_of(load(), num_devices=3)
  assert [p.partition(':')[0] for p in problems] == [
    'teacher.batch_size = 256',
    'student.batch_size = 128',
    'evaluation.batch_size = 512',
  ]
  assert all('3 devices' in problem for problem in problems)


@pytest.mark.parametrize('other', [('depth', 56), ('width', 8), ('norm', 'layer')])
def test_a_student_of_another_kind_cannot_start_from_the_teacher(other):
  field = f'student.model.{other[0]}'
  (problem,) = problems_of(load(fields={field: other[1], 'student.init_lambda': 0.5}))
  assert problem.startswith('student.init_lambda = 0.5: ')
  validation.check(load(fields={field: other[1]}), 1)  # from random weights it can


def test_a_student_model_that_is_spelt_out_may_start_from_the_teacher():
  validation.check(load(fields={'student.model.depth': 20, 'student.init_lambda': 0.5}), 1)


# What is shipped.

ARGUMENTS = {'base': [''], 'cifar_resnet': ['', ':smoke'], 'digits_resnet': ['']}
SPECS = [f'{name}.py{argument}' for name in ARGUMENTS for argument in ARGUMENTS[name]]


def test_every_shipped_config_is_checked():
  names = {path.stem for path in (ROOT / 'configs').glob('*.py')} - {'__init__'}
  assert names == set(ARGUMENTS), 'Put a new config and its arguments into ARGUMENTS.'


@pytest.mark.parametrize('spec', SPECS)
@pytest.mark.parametrize('num_devices', [1, 2, 8])
def test_shipped_configs_are_valid(spec, num_devices):
  validation.check(load(spec), num_devices)
