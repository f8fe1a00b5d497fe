"""Configs: loading, overrides, durations, and what each field means to the fingerprints."""

import os
import pathlib
import subprocess
import sys

import pytest
from ml_collections import ConfigDict

from kdjax import config as config_lib
from kdjax.errors import ConfigError

ROOT = pathlib.Path(__file__).parents[1]
DIGITS = str(ROOT / 'configs' / 'digits_resnet.py')
CIFAR = str(ROOT / 'configs' / 'cifar_resnet.py')


def load(*overrides, spec=CIFAR):
  config, problems = config_lib.load(spec, overrides)
  assert problems == []
  return config


# Overrides.


@pytest.mark.parametrize(
  ('field', 'text', 'value'),
  [
    ('seed', '7', 7),
    ('student.temperature', '1.5', 1.5),
    ('student.temperature', '1', 1.0),
    ('student.weight_decay', '1e-3', 1e-3),
    ('teacher.nesterov', 'True', True),
    ('dataset.name', 'cifar100', 'cifar100'),
    ('dataset.name', "'cifar100'", 'cifar100'),
    ('dataset.data_dir', '~/sets/v-1.0', '~/sets/v-1.0'),
    ('dataset.data_dir', 'gs://bucket/sets', 'gs://bucket/sets'),
    ('dataset.num_train', '100', 100),
    ('dataset.num_train', 'None', None),
    ('student.num_epochs', 'None', None),
    ('student.model.depth', '56', 56),
    ('teacher.augmentation', "('flip',)", ('flip',)),
    ('teacher.augmentation', "['flip', 'crop']", ('flip', 'crop')),
    ('teacher.augmentation', '()', ()),
    ('student.keep_checkpoints', '(0.0, 0.5)', (0.0, 0.5)),
  ],
)
def test_an_override_sets_its_field_and_no_other(field, text, value):
  before = config_lib.leaves(load())
  after = config_lib.leaves(load((field, text)))
  assert after == before | {field: value}
  assert type(after[field]) is type(value)


@pytest.mark.parametrize(
  ('field', 'text', 'allowed'),
  [
    ('seed', '1.0', 'an integer'),
    ('seed', 'True', 'an integer'),
    ('seed', 'None', 'an integer'),
    ('teacher.nesterov', '1', 'True or False'),
    ('student.temperature', 'warm', 'a number'),
    ('student.temperature', 'True', 'a number'),
    ('student.temperature', '{[1]: 2}', 'a number'),
    ('dataset.name', '10', 'a string'),
    ('dataset.num_train', 'all', 'an integer or None'),
    ('dataset.data_dir', '(1, 2)', 'a string or None'),
    ('teacher.augmentation', 'flip', "a tuple such as ('crop', 'flip') or ()"),
    ('student.model', '56', 'no value: it is a section, set its fields'),
  ],
)
def test_a_wrong_type_is_told_and_not_applied(field, text, allowed):
  config, problems = config_lib.load(CIFAR, [(field, text)])
  assert problems == [f'{field} = {text}: wrong type; allowed: {allowed}']
  assert config == load()


@pytest.mark.parametrize(
  ('field', 'hint'),
  [
    ('student.temprature', 'did you mean student.temperature?'),
    ('temperature', 'did you mean student.temperature?'),
    ('teacher.temperature', 'did you mean student.temperature?'),
    ('datset.name', 'did you mean dataset.name?'),
    ('seed.x', 'did you mean seed?'),
    ('student.zzz', 'alpha, batch_size'),  # what there is
    ('zzz.zzz.zzz', 'sections: augmentation, dataset,'),
    ('', 'fields of the top level: seed'),
  ],
)
def test_an_unknown_field_is_told_with_the_closest_one(field, hint):
  config, (problem,) = config_lib.load(CIFAR, [(field, '1')])
  assert problem.startswith(f'{field} = 1: no such field')
  assert hint in problem
  assert config == load()


def test_good_overrides_apply_beside_wrong_ones():
  overrides = [('student.tau', '1'), ('seed', '3'), ('seed', 'x'), ('student.alpha', '0.5')]
  config, problems = config_lib.load(CIFAR, overrides)
  assert [problem.partition(' = ')[0] for problem in problems] == ['student.tau', 'seed']
  assert (config.seed, config.student.alpha) == (3, 0.5)


def test_the_last_of_two_overrides_counts():
  assert load(('seed', '1'), ('seed', '2')).seed == 2


# Loading.


def test_the_argument_reaches_get_config(tmp_path):
  path = tmp_path / 'mine.py'
  path.write_text("""
from configs import base

def get_config(arg='small'):
  config = base.get_config()
  config.model.width = {'small': 4, 'large': 64}[arg]
  return config
""")
  assert load(spec=str(path)).model.width == 4
  assert load(spec=f'{path}:large').model.width == 64
  assert load(spec=str(tmp_path / 'mine')).model.width == 4


@pytest.mark.parametrize(
  ('text', 'reason'),
  [
    (None, 'there is no file'),
    ('config.student.tau = 1', 'tau'),
    ("config.seed = 'one'", 'seed'),
    ("raise ValueError('not like this')", 'not like this'),
  ],
)
def test_a_file_that_cannot_be_loaded_is_told_by_name(tmp_path, text, reason):
  path = tmp_path / 'mine.py'
  if text:
    path.write_text(
      f'from configs import base\n\ndef get_config():\n  config = base.get_config()\n  {text}\n'
    )
  with pytest.raises(ConfigError) as error:
    config_lib.load(str(path))
  (problem,) = error.value.problems
  assert problem.startswith(f'--config = {str(path)!r}: ')
  assert reason in problem


@pytest.mark.parametrize('spec', [f'{CIFAR}:tiny', f'{DIGITS}:smoke'])
def test_an_argument_that_a_file_does_not_know_is_told(spec):
  with pytest.raises(ConfigError) as error:
    config_lib.load(spec)
  assert error.value.problems[0].startswith(f'--config = {spec!r}: ')


@pytest.mark.parametrize(
  ('spec', 'name'),
  [
    ('configs/cifar_resnet.py', 'cifar_resnet'),
    ('configs/cifar_resnet', 'cifar_resnet'),
    ('configs/cifar_resnet.py:smoke', 'cifar_resnet_smoke'),
    ('/elsewhere/my.exp.py', 'my.exp'),
  ],
)
def test_config_name(spec, name):
  assert config_lib.config_name(spec) == name


def test_optional_fields_are_those_that_base_makes_references():
  config = load()
  optional = {name for name in config_lib.leaves(config) if config_lib.is_optional(config, name)}
  durations = {f'{s}.{d}' for s in ('teacher', 'student') for d in config_lib.DURATIONS}
  model = {f'student.model.{name}' for name in ('name', 'depth', 'width', 'norm')}
  dataset = {f'dataset.{name}' for name in ('data_dir', 'num_train', 'num_test')}
  assert optional == durations | model | dataset | {'student.seed'}


# Durations.


@pytest.mark.parametrize(
  ('duration', 'steps'),
  [
    # Of 1,000 examples in batches of 128.
    ({'num_steps': 125}, 125),
    ({'num_epochs': 16}, 125),
    ({'num_examples': 16_000}, 125),
    ({'num_epochs': 1}, 8),  # 7.8 rounded up
    ({'num_examples': 1}, 1),
    ({'num_examples': 128}, 1),
    ({'num_examples': 129}, 2),
  ],
)
def test_durations_in_steps_epochs_and_examples_agree(duration, steps):
  nothing = dict.fromkeys(config_lib.DURATIONS)
  section = ConfigDict({'batch_size': 128} | nothing | duration)
  assert config_lib.num_steps(section, 1000) == steps


# The student's model.


def test_the_student_model_is_the_teachers_but_for_what_is_set():
  config = load(('student.model.depth', '56'), ('student.model.norm', 'layer'))
  expected = {'name': 'resnet', 'depth': 56, 'width': 16, 'norm': 'layer'}
  assert config_lib.student_model(config).to_dict() == expected
  assert config.model.depth == 20
  assert config_lib.student_model(load()) == load().model


# Fingerprints.

NONE = ()
STUDENT = ('student',)
PREDICTIONS = ('predictions', 'student')
ALL = ('teacher', 'predictions', 'student')
# Each field: another value for it, and the artefacts that it can change.
FIELDS = {
  'seed': (1, ALL),
  'dataset.name': ('cifar100', ALL),
  'dataset.data_dir': ('elsewhere', NONE),
  'dataset.num_train': (1000, ALL),
  'dataset.num_val': (1000, ALL),
  'dataset.num_test': (1000, PREDICTIONS),
  'model.name': ('lenet', ALL),
  'model.depth': (56, ALL),
  'model.width': (8, ALL),
  'model.norm': ('layer', ALL),
  'teacher.num_members': (6, STUDENT),  # members can be added to an ensemble
  'teacher.num_epochs': (201, ALL),
  'teacher.num_steps': (10, ALL),
  'teacher.num_examples': (10, ALL),
  'teacher.batch_size': (128, ALL),
  'teacher.learning_rate': (0.2, ALL),
  'teacher.final_learning_rate': (0.01, ALL),
  'teacher.momentum': (0.8, ALL),
  'teacher.nesterov': (True, ALL),
  'teacher.weight_decay': (1e-3, ALL),
  'teacher.augmentation': (('flip', 'crop'), ALL),
  'teacher.keep_checkpoints': ((0.5,), ALL),
  'predictions.mode': ('online', STUDENT),
  'predictions.num_views': (200, STUDENT),  # views can be added to a store
  'predictions.dtype': ('float32', PREDICTIONS),
  'predictions.augmentation': ((), PREDICTIONS),
  'student.seed': (1, STUDENT),
  'student.num_epochs': (301, STUDENT),
  'student.num_steps': (10, STUDENT),
  'student.num_examples': (10, STUDENT),
  'student.batch_size': (256, STUDENT),
  'student.learning_rate': (0.1, STUDENT),
  'student.final_learning_rate': (1e-5, STUDENT),
  'student.momentum': (0.8, STUDENT),
  'student.nesterov': (False, STUDENT),
  'student.weight_decay': (1e-3, STUDENT),
  'student.temperature': (1.0, STUDENT),
  'student.alpha': (0.1, STUDENT),
  'student.init_lambda': (0.5, STUDENT),
  'student.keep_checkpoints': ((), STUDENT),
  'student.model.name': ('lenet', STUDENT),
  'student.model.depth': (56, STUDENT),
  'student.model.width': (8, STUDENT),
  'student.model.norm': ('layer', STUDENT),
  'augmentation.crop_padding': (2, ALL),
  'training.num_logs': (50, NONE),
  'training.num_evals': (50, NONE),
  'training.num_checkpoints': (50, NONE),
  'evaluation.batch_size': (256, NONE),
  'evaluation.num_views': (4, NONE),  # result.json says how many it has
}


def fingerprints(config):
  return {name: getattr(config_lib, f'{name}_fingerprint')(config) for name in ALL}


def test_every_field_has_a_decision():
  assert set(FIELDS) == set(config_lib.leaves(load())), (
    'Say in FIELDS which artefacts a new field can change, and see that kdjax.config agrees.'
  )


@pytest.mark.parametrize('field', FIELDS)
def test_a_field_changes_the_fingerprints_of_the_artefacts_that_it_can_change(field):
  value, artefacts = FIELDS[field]
  config, before = load(), fingerprints(load())
  assert config_lib.leaves(config)[field] != value
  config.update_from_flattened_dict({field: value})
  after = fingerprints(config)
  assert tuple(name for name in ALL if after[name] != before[name]) == artefacts


def test_what_a_student_model_spells_out_is_not_what_it_is():
  spelt_out = load(('student.model.depth', '20'), ('student.model.name', 'resnet'))
  assert fingerprints(spelt_out) == fingerprints(load())


def test_a_fingerprint_does_not_depend_on_how_a_value_is_written():
  one, other = load(('student.temperature', '1')), load(('student.temperature', '1.0'))
  assert fingerprints(one) == fingerprints(other)


def test_a_higher_artefact_version_changes_every_fingerprint(monkeypatch):
  before = fingerprints(load())
  monkeypatch.setattr(config_lib, 'ARTEFACT_VERSION', config_lib.ARTEFACT_VERSION + 1)
  after = fingerprints(load())
  assert not set(before.values()) & set(after.values())


def test_fingerprints_are_the_same_in_another_process():
  script = (
    'from kdjax import config\n'
    f'this, _ = config.load({DIGITS!r})\n'
    'print(config.teacher_fingerprint(this), config.predictions_fingerprint(this), '
    'config.student_fingerprint(this))'
  )
  for salt in ('1', '2'):
    printed = subprocess.run(
      [sys.executable, '-c', script],
      env=os.environ | {'PYTHONHASHSEED': salt, 'PYTHONPATH': str(ROOT)},
      capture_output=True,
      text=True,
      check=True,
    ).stdout
    assert printed.split() == list(fingerprints(load(spec=DIGITS)).values())
