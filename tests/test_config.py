"""Configs: loading, overrides, durations, and the configs of a sweep."""

import pytest
from conftest import ROOT
from ml_collections import ConfigDict

from kdjax import config as config_lib
from kdjax.errors import ConfigError

DIGITS = str(ROOT / 'configs' / 'digits_resnet.py')
CIFAR = str(ROOT / 'configs' / 'cifar_resnet.py')


def load(*overrides, spec=CIFAR):
  config, problems = config_lib.load(spec, overrides)
  assert problems == []
  return config


# Overrides.


VALUES = [
  ('seed', '7', 7),
  ('student.temperature', '1', 1.0),
  ('student.weight_decay', '1e-3', 1e-3),
  ('teacher.nesterov', 'True', True),
  ('dataset.name', 'cifar100', 'cifar100'),
  ('dataset.name', "'cifar100'", 'cifar100'),
  ('dataset.data_dir', '~/sets/v-1.0', '~/sets/v-1.0'),
  ('dataset.data_dir', 'gs://bucket/sets', 'gs://bucket/sets'),
  ('dataset.num_train', 'None', None),
  ('teacher.augmentation', "['flip', 'crop']", ('flip', 'crop')),
  ('teacher.augmentation', '()', ()),
  ('predictions.examples', '[100, 200]', (100, 200)),
  ('predictions.extra', 'emnist/byclass', 'emnist/byclass'),
  ('evaluation.independent_seed', 'None', None),
]


def test_an_override_sets_its_field_and_no_other():
  before = config_lib.leaves(load())
  for field, text, value in VALUES:
    after = config_lib.leaves(load((field, text)))
    assert after == before | {field: value}
    assert type(after[field]) is type(value)


WRONG_TYPES = [
  ('seed', '1.0', 'an integer'),
  ('seed', 'True', 'an integer'),
  ('teacher.nesterov', '1', 'True or False'),
  ('student.temperature', 'warm', 'a number'),
  ('student.temperature', '{[1]: 2}', 'a number'),
  ('dataset.name', '10', 'a string'),
  ('dataset.num_train', 'all', 'an integer or None'),
  ('dataset.data_dir', '(1, 2)', 'a string or None'),
  ('teacher.augmentation', 'flip', "a tuple such as ('crop', 'flip') or ()"),
  ('student.model', '56', 'no value: it is a section, set its fields'),
]
UNKNOWN = [
  ('student.temprature', 'did you mean student.temperature?'),
  ('temperature', 'did you mean student.temperature?'),
  ('teacher.temperature', 'did you mean student.temperature?'),
  ('datset.name', 'did you mean dataset.name?'),
  ('seed.x', 'did you mean seed?'),
  ('student.zzz', 'alpha, batch_size, beta2'),  # all fields
  ('zzz.zzz.zzz', 'sections: augmentation, dataset,'),
  ('', 'fields of the top level: seed'),
]


def test_a_wrong_override_is_reported_and_not_applied():
  """The message on an unknown field names the closest one."""
  overrides = [(field, text) for field, text, _ in WRONG_TYPES] + [(f, '1') for f, _ in UNKNOWN]
  config, problems = config_lib.load(CIFAR, overrides)
  assert config == load()
  count = len(WRONG_TYPES)
  assert problems[:count] == [
    f'{field} = {text}: wrong type; allowed: {allowed}' for field, text, allowed in WRONG_TYPES
  ]
  for problem, (field, hint) in zip(problems[count:], UNKNOWN, strict=True):
    assert problem.startswith(f'{field} = 1: no such field')
    assert hint in problem


def test_right_overrides_apply_beside_wrong_ones_and_the_last_wins():
  overrides = [('student.tau', '1'), ('seed', '2'), ('seed', '3'), ('seed', 'x')]
  config, problems = config_lib.load(CIFAR, overrides)
  assert [problem.partition(' = ')[0] for problem in problems] == ['student.tau', 'seed']
  assert config.seed == 3


# Loading.


def test_the_argument_reaches_get_config(tmp_path):
  path = tmp_path / 'mine.py'
  path.write_text("""
from kdjax.config import base

def get_config(arg='small'):
  config = base.get_config()
  config.model.width = {'small': 4, 'large': 64}[arg]
  return config
""")
  assert load(spec=str(path)).model.width == 4
  assert load(spec=f'{path}:large').model.width == 64
  assert load(spec=str(tmp_path / 'mine')).model.width == 4


BASE = 'from kdjax.config import base\ndef get_config():\n  config = base.get_config()\n  '


@pytest.mark.parametrize(
  ('text', 'reason'),
  [
    (None, 'there is no file'),
    ('def get_config(:', 'SyntaxError'),
    ('', 'defines no get_config'),
    ('get_config = 3', 'TypeError'),
    ('import sys; sys.exit(0)', 'SystemExit'),
    ('import no_such_module', 'no_such_module'),
    ('def get_config(): return 3', 'returns no ConfigDict'),
    (f'{BASE}config.student.tau = 1', 'tau'),
    (f"{BASE}config.seed = 'one'", 'seed'),
    ("def get_config(): raise ValueError('not like this')", 'not like this'),
  ],
)
def test_a_file_that_cannot_be_loaded_is_reported_by_name(tmp_path, text, reason):
  path = tmp_path / 'mine.py'
  if text is not None:
    path.write_text(text)
  with pytest.raises(ConfigError) as error:
    config_lib.load(str(path))
  (problem,) = error.value.problems
  assert problem.startswith(f'--config = {str(path)!r}: ')
  assert reason in problem


def test_a_package_that_cannot_be_imported_is_reported_each_time(tmp_path):
  (tmp_path / '__init__.py').write_text('import no_such_module')
  (tmp_path / 'mine.py').write_text(f'{BASE}return config')
  for _ in range(2):
    with pytest.raises(ConfigError, match=r'mine\.py.*No module named .no_such_module'):
      config_lib.load(str(tmp_path / 'mine.py'))


def test_an_argument_that_a_file_does_not_know_is_reported():
  for spec in (f'{CIFAR}:tiny', f'{DIGITS}:smoke'):
    with pytest.raises(ConfigError) as error:
      config_lib.load(spec)
    assert error.value.problems[0].startswith(f'--config = {spec!r}: ')


def test_config_name():
  for spec, name in {
    'configs/cifar_resnet.py': 'cifar_resnet',
    'configs/cifar_resnet': 'cifar_resnet',
    'configs/cifar_resnet.py:smoke': 'cifar_resnet_smoke',
    '/elsewhere/my.exp.py': 'my.exp',
  }.items():
    assert config_lib.config_name(spec) == name


def test_optional_fields_are_those_that_base_makes_references():
  config = load()
  optional = {name for name in config_lib.leaves(config) if config_lib.is_optional(config, name)}
  durations = {f'{s}.{d}' for s in ('teacher', 'student') for d in config_lib.DURATIONS}
  model = {f'student.model.{name}' for name in config.model if name != 'options'}
  dataset = {
    f'dataset.{name}' for name in ('data_dir', 'path', 'num_train', 'num_test', 'image_size')
  }
  others = {
    'dataset.subset_seed',
    'predictions.num_extra',
    'predictions.top_k',
    'teacher.path',
    'teacher.independent_path',
    'student.seed',
    'student.final_temperature',
    'training.steps_per_dispatch',
    'evaluation.independent_seed',
  }
  assert optional == durations | model | dataset | others


# Values that follow from fields.


def test_durations_in_steps_epochs_and_examples_agree():
  nothing = dict.fromkeys(config_lib.DURATIONS)
  for duration, steps in [
    # 1,000 examples in batches of 128.
    ({'num_steps': 125}, 125),
    ({'num_epochs': 16}, 125),
    ({'num_examples': 16_000}, 125),
    ({'num_epochs': 1}, 8),  # 7.8 rounded up
    ({'num_examples': 1}, 1),
    ({'num_examples': 128}, 1),
    ({'num_examples': 129}, 2),
  ]:
    section = ConfigDict({'batch_size': 128} | nothing | duration)
    assert config_lib.num_steps(section, 1000) == steps


def test_the_student_model_is_the_teachers_but_for_what_is_set():
  config = load(('student.model.depth', '56'), ('student.model.norm', 'layer'))
  expected = {
    'name': 'resnet',
    'depth': 56,
    'width': 16,
    'norm': 'layer',
    'shortcut': 'activated',
    'dtype': 'float32',
    'options': {},
  }
  assert config_lib.student_model(config).to_dict() == expected
  assert config.model.depth == 20
  assert config_lib.student_model(load()) == load().model


def test_extra_images_are_counted_where_there_are_any():
  number = 'predictions.num_extra', '7'
  for extra, count, needs_gan in (('', 0, False), ('gan', 7, True), ('svhn_cropped', 7, False)):
    config = load(number, ('predictions.extra', extra))
    assert config_lib.num_extra(config) == count
    assert config_lib.needs_gan(config) == needs_gan


def test_the_independent_experiment_differs_in_its_seeds_alone():
  config = load(('student.seed', '5'), ('evaluation.independent_seed', '3'))
  before = config_lib.leaves(config)
  other = config_lib.independent(config)
  changed = {'seed': 3, 'student.seed': None, 'evaluation.independent_seed': None}
  assert config_lib.leaves(other) == before | changed
  assert config_lib.leaves(config) == before


# Sweeps.

SWEEP = """
from kdjax.config import base
from kdjax.config.sweep import Panel, Point, Sweep

def get_config(arg=''):
  config = base.get_config()
  config.model.depth = {'': 20, 'small': 8}[arg]
  return config

def get_sweep(arg=''):
  temperatures = {'': (1, 4), 'small': (2,)}[arg]
  return Sweep(
    'Temperatures',
    'temperature',
    [Point({'student.temperature': t}, t) for t in temperatures],
    [Panel('splits.test.fidelity.top1_agreement', 'agreement (%)', 100)],
    trials=2,
  )
"""


def sweep_file(tmp_path, *changes):
  text = SWEEP
  for old, new in changes:
    assert text.count(old) == 1
    text = text.replace(old, new)
  path = tmp_path / 'mine.py'
  path.write_text(text)
  return str(path)


def sweep_configs(spec, *overrides):
  return config_lib.sweep_configs(spec, config_lib.load_sweep(spec), overrides)


def test_a_sweep_is_the_file_with_overrides_and_the_fields_of_each_run(tmp_path):
  path = sweep_file(tmp_path)
  configs, problems = sweep_configs(path, ('model.width', '8'))
  assert problems == []
  plain = config_lib.leaves(load(spec=path))
  for config, (temperature, seed) in zip(configs, [(1, 0), (4, 0), (1, 1), (4, 1)], strict=True):
    assert config_lib.leaves(config) == plain | {
      'model.width': 8,
      'student.temperature': temperature,
      'seed': seed,
      'evaluation.independent_seed': 1 - seed,
    }
    assert type(config.student.temperature) is float


def test_the_argument_reaches_get_sweep(tmp_path):
  configs, problems = sweep_configs(f'{sweep_file(tmp_path)}:small')
  assert problems == []
  assert [(c.student.temperature, c.model.depth) for c in configs] == [(2.0, 8)] * 2


def test_wrong_fields_of_points_and_overrides_are_reported_once(tmp_path):
  path = sweep_file(tmp_path, ("{'student.temperature': t}", "{'student.tau': t, 'seed.x': t}"))
  configs, problems = sweep_configs(path, ('model.width', 'wide'))
  assert len(configs) == 4
  starts = [
    'model.width = wide: ',
    *(f'{f} = {t}: ' for t in (1, 4) for f in ('student.tau', 'seed.x')),
  ]
  assert len(problems) == len(starts)
  for problem, start in zip(problems, starts, strict=True):
    assert problem.startswith(start)


def test_a_wrong_type_in_a_point_is_reported_and_not_applied(tmp_path):
  configs, problems = sweep_configs(sweep_file(tmp_path, ('(1, 4)', "('warm',)")))
  assert problems == ["student.temperature = 'warm': wrong type; allowed: a number"]
  assert configs[0].student.temperature == 4.0


def test_an_override_of_what_the_sweep_sets_is_reported(tmp_path):
  overrides = [('student.temperature', '2'), ('seed', '3')]
  _, problems = sweep_configs(sweep_file(tmp_path), *overrides)
  assert problems == [f'{field} = {x}: the sweep sets it; leave it out' for field, x in overrides]


def test_a_file_without_a_sweep_is_reported():
  with pytest.raises(ConfigError) as error:
    config_lib.load_sweep(DIGITS)
  (problem,) = error.value.problems
  assert problem.startswith(f'--config = {DIGITS!r}: ') and 'get_sweep' in problem


@pytest.mark.parametrize(
  ('change', 'reasons'),
  [
    (('return Sweep(', 'return dict('), ['TypeError']),
    (
      ("return Sweep(\n    'Temperatures'", "return 1\n  Sweep(\n    'Temperatures'"),
      ['returns no'],
    ),
    (('trials=2', 'trials=0'), ['trials = 0']),
    (('(1, 4)', '(1, 1)'), ['2 points']),
    (('(1, 4)', '()'), ['points of the sweep is empty']),
    (("{'student.temperature': t}", "{'seed': t}"), ["('', 1) sets seed", "('', 4) sets seed"]),
  ],
)
def test_a_sweep_that_is_none_is_reported(tmp_path, change, reasons):
  path = sweep_file(tmp_path, change)
  with pytest.raises(ConfigError) as error:
    config_lib.load_sweep(path)
  for problem, reason in zip(error.value.problems, reasons, strict=True):
    assert problem.startswith(f'--config = {path!r}: ') and reason in problem
