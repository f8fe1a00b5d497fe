"""Random configs: what is wrong is told in one error, and what is accepted can be built.

Nothing here knows the rules. Of a config with random values in place of some, either the validation
names what is wrong, or every step of its stages can be traced. The draws are the same every time;
KDJAX_FUZZ=5000 draws so many, and others each time.
"""

import collections
import os

import fuzzed
import jax
from conftest import ROOT
from hypothesis import HealthCheck, given, settings
from test_experiments import FILES

from kdjax import config as config_lib
from kdjax.config import validation
from kdjax.errors import ConfigError

LONG = int(os.environ.get('KDJAX_FUZZ', 0))
NUM_DRAWS = LONG or 100
PROFILE = settings(
  max_examples=NUM_DRAWS,
  derandomize=not LONG,
  database=None,
  deadline=None,
  suppress_health_check=list(HealthCheck),
)


def check_told(error: ConfigError, fields: list[str], changed: dict) -> None:
  """Each line begins with a field that there is or that was given, and one is of what was changed."""
  known = {*fields, *changed}
  for problem in error.problems:
    assert any(problem.startswith((f'{f} ', f'{f}:', f'{f},', f'{f}/')) for f in known), problem
  text = str(error)
  # The last part of its name will do: teacher.num_epochs/num_steps/...
  told = [f for f, value in changed.items() if f.rpartition('.')[2] in text or str(value) in text]
  assert told, f'names none of {changed}: {text}'


def test_a_random_config_is_refused_by_name_or_can_be_built(tmp_path, monkeypatch):
  monkeypatch.chdir(ROOT)
  monkeypatch.setenv('TFDS_DATA_DIR', '')  # not the real ones
  fuzzed.write_sets(tmp_path / 'sets')
  monkeypatch.setattr('tensorflow_datasets.core.constants.DATA_DIR', str(tmp_path / 'sets'))
  fuzzed.patch(monkeypatch)
  num_devices = jax.local_device_count()
  shipped = {
    spec: config_lib.load(spec)[0] for spec in FILES.values()
  }  # arguments change what is drawn
  for config in shipped.values():
    validation.check(config, num_devices)
  values, outcomes = fuzzed.values_of(shipped), collections.Counter()
  # Only what a change can affect is traced.
  traced = {f for config in shipped.values() for f in fuzzed.folders(config, tmp_path / 'run')}

  @PROFILE
  @given(fuzzed.overrides(shipped, values))
  def check(draw):
    spec, changed = draw
    try:
      config, problems = config_lib.load(spec, list(changed.items()))
      validation.check(config, num_devices, problems)
    except ConfigError as error:
      check_told(error, values, changed)
      outcomes['refused'] += 1
    else:
      fuzzed.build(config, tmp_path / 'run', traced)
      outcomes['built'] += 1

  check()
  assert outcomes['refused'] >= 0.7 * NUM_DRAWS
  assert outcomes['built'] >= 0.03 * NUM_DRAWS
