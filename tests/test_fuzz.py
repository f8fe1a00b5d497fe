"""Random configs and flags: what is wrong is told in one error, and what is accepted can be built.

Nothing here knows the rules. Of a config with random values in place of some, either the validation
names what is wrong, or every step of its stages can be traced. The draws are the same every time;
KDJAX_FUZZ=5000 draws so many of each kind, and others each time.
"""

import collections
import os
import shutil
from collections.abc import Iterable

import fuzzed
import jax
import pytest
from absl import flags
from absl.testing import flagsaver
from conftest import ROOT
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_experiments import SPECS

import launch
from kdjax import config as config_lib
from kdjax import progress, stages, validation
from kdjax.errors import ConfigError
from kdjax.sweep import Panel, Point, Sweep

LONG = int(os.environ.get('KDJAX_FUZZ', 0))
NUM_DRAWS = LONG or 320  # of each of three kinds


def drawn(strategy):
  """Calls a function with each draw."""

  def decorate(function):
    run = given(strategy)(function)
    return settings(
      max_examples=NUM_DRAWS,
      derandomize=not LONG,
      database=None,
      deadline=None,
      suppress_health_check=list(HealthCheck),
    )(run)

  return decorate


@pytest.fixture(autouse=True)
def data_sets(monkeypatch, tmp_path):
  monkeypatch.chdir(ROOT)
  monkeypatch.setenv('TFDS_DATA_DIR', '')  # not the real ones
  fuzzed.write_sets(tmp_path / 'sets')
  monkeypatch.setattr('tensorflow_datasets.core.constants.DATA_DIR', str(tmp_path / 'sets'))
  fuzzed.patch(monkeypatch)


def configs():
  found = {spec: config_lib.load(spec)[0] for spec in SPECS}
  for config in found.values():
    validation.check(config, jax.local_device_count())
  return found


def check_told(error: ConfigError, fields: Iterable[str], changed: dict) -> None:
  """Each line begins with a field that there is or that was given, and one is of what was changed."""
  known = {*fields, *changed}
  for problem in error.problems:
    assert any(problem.startswith((f'{f} ', f'{f}:', f'{f},', f'{f}/')) for f in known), problem
  text = str(error)
  told = [f for f, value in changed.items() if f in text or str(value) in text]
  told += [
    f for f in changed if f.rpartition('.')[2] in text
  ]  # of teacher.num_epochs/num_steps/...
  assert told, f'names none of {changed}: {text}'


def load_values(spec, changed):
  """Python values, as a sweep sets them."""
  trials = 'gan.seed' if 'seed' in changed else 'seed'  # gets a 0
  sweep = Sweep('', '', [Point(changed, 0)], [Panel('', '')], trial_field=trials)
  (config,), problems = config_lib.sweep_configs(spec, sweep, [])
  return config, problems


def load_texts(spec, changed):
  """What a shell passes."""
  return config_lib.load(spec, list(changed.items()))


@pytest.mark.parametrize(
  ('draws', 'load'),
  [(fuzzed.changes, load_values), (fuzzed.overrides, load_texts)],
  ids=['values', 'texts'],
)
def test_a_random_config_is_refused_by_name_or_can_be_built(tmp_path, draws, load):
  outcomes, shipped = collections.Counter(), configs()
  values = fuzzed.values_of(shipped)
  # Only what a change can affect is traced.
  traced = {f for config in shipped.values() for f in fuzzed.folders(config, tmp_path / 'run')}

  @drawn(draws(shipped, values))
  def check(draw):
    spec, changed = draw
    try:
      config, problems = load(spec, changed)
      validation.check(config, jax.local_device_count(), problems)
    except ConfigError as error:
      check_told(error, values, changed)
      outcomes['refused'] += 1
    else:
      fuzzed.build(config, tmp_path / 'run', traced)
      outcomes['built'] += 1

  check()
  assert outcomes['refused'] >= 0.8 * NUM_DRAWS  # over 500 in both
  assert outcomes['built'] >= 0.03 * NUM_DRAWS


# Flags.

# Files that --config may name, and what they hold.
FILES = {
  'good.py': 'from configs.digits_resnet import get_config',
  'syntax.py': 'def get_config(:',
  'nothing.py': '',
  'not_called.py': 'get_config = 3',
  'raises.py': 'def get_config(): raise KeyError(1)',
  'exits.py': 'import sys; sys.exit(0)',
  'number.py': 'def get_config(): return 3',
  'wants.py': 'def get_config(arg): return arg',
  'imports.py': 'import no_such_module',
  'type.py': 'from configs import base\ndef get_config():\n  c = base.get_config(); c.seed = "x"; return c',
  'adds.py': 'from configs import base\ndef get_config():\n  c = base.get_config(); c.x = 1; return c',
  'empty.py': 'from ml_collections import ConfigDict as get_config',
  'sweeps.py': 'from configs.digits_resnet import get_config\nget_sweep = lambda: 1',
  'null.py': '\0',
  'text.txt': 'seed: 0',
}
_PATHS = [
  'no/such',
  '/dev/null',
  '.',
  '',
  's3://no/such',
  'gs://no/such',
  'x\0y',
  'file:///no',
  '~nobody/x',
]
_WORDS = [
  '',
  'maybe',
  '-1',
  '1.5',
  '1e3',
  '9' * 30,
  ' ',
  'τ',
  'teachers,,student',
  'Teachers',
  '--sweep',
]

_OTHER_FLAGS = [
  *('--sweep', '--sweep_index=0', '--verify', '--config.seed', '--config.seed=x', '--config.=1'),
  *('--config.seed=1', '--config.x.y=1', '--config.model=1', 'student', '-s', '--', '='),
]


def arguments():
  """One to three flags, of which few are right."""
  words = st.sampled_from(_WORDS)
  own = [f.name for f in flags.FLAGS.flags_by_module_dict()['launch'] if f.name != 'coordinator']
  typed = [f for f in own if flags.FLAGS[f].flag_type() in ('int', 'bool')]
  paths = st.sampled_from([*FILES, 'good.py:smoke', 'text', *_PATHS])
  one = st.one_of(
    paths.map('--config={}'.format),
    st.sampled_from(_PATHS).map('--workdir={}'.format),
    words.map('--stages={}'.format),
    st.tuples(st.sampled_from(typed), words).map('--{0[0]}={0[1]}'.format),
    st.sampled_from(own).map('--{}'.format),
    st.sampled_from(own).map('--{}x=1'.format),
    st.sampled_from(_OTHER_FLAGS),
  )
  return st.lists(one, min_size=1, max_size=3)


def launched(arguments, capsys):
  """What is said before the exit; None where the stages are reached."""
  launch._overrides.clear()
  with flagsaver.flagsaver():
    flags.FLAGS.unparse_flags()
    try:
      launch.main(launch._parse_flags(['launch.py', *arguments]))
    except SystemExit as error:
      assert error.code not in (0, None), arguments
      return f'{error.code}\n{capsys.readouterr().err}'
    except launch.app.UsageError as error:  # which app.run shows
      return str(error)


def test_random_flags_are_refused_by_name_before_anything_is_written(tmp_path, monkeypatch, capsys):
  place = tmp_path / 'here'
  place.mkdir()
  monkeypatch.syspath_prepend(ROOT)
  monkeypatch.chdir(place)
  for name, text in FILES.items():
    (place / name).write_text(text)
  monkeypatch.setattr(stages, 'STAGES', dict.fromkeys(stages.STAGES, lambda run: False))
  monkeypatch.setattr(progress, 'setup_logging', lambda **_: None)
  monkeypatch.setattr(launch, '_quiet_closed_loop', lambda: None)
  before, outcomes = sorted(place.iterdir()), collections.Counter()

  @drawn(arguments())
  def check(drawn_flags):
    told = launched(['--stages=teachers', '--config=good.py', *drawn_flags], capsys)
    if told is None:
      outcomes['reached'] += 1
      for path in set(place.iterdir()) - set(before):
        shutil.rmtree(path)
      return
    outcomes['refused'] += 1
    parts = [(flag, *flag.lstrip('-').split('=', 1)) for flag in drawn_flags]
    assert any(part and part in told for names in parts for part in names), (drawn_flags, told)
    assert 'Traceback' not in told
    assert sorted(place.iterdir()) == before

  check()
  assert outcomes['refused'] >= 0.85 * NUM_DRAWS
  assert outcomes['reached'] >= 0.01 * NUM_DRAWS
