"""Random configs: the validation refuses a config with one error, or all of its steps can be traced.

The test knows no rule. It replaces some values of a config by random ones. The draws are the same for the
same code; KDJAX_FUZZ=5000 draws 5000 configs, different ones each time.
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


def check_lines(error: ConfigError, fields: list[str], changed: dict) -> None:
  """Each line begins with a known or given field, and one line names a changed field or its value."""
  known = {*fields, *changed}
  for problem in error.problems:
    assert any(problem.startswith((f'{f} ', f'{f}:', f'{f},', f'{f}/')) for f in known), problem
  text = str(error)
  # The last part of a name is enough: teacher.num_epochs/num_steps/...
  named = [f for f, value in changed.items() if f.rpartition('.')[2] in text or str(value) in text]
  assert named, f'names none of {changed}: {text}'


def test_a_random_config_is_refused_by_name_or_can_be_built(tmp_path, monkeypatch):
  monkeypatch.chdir(ROOT)
  monkeypatch.setenv('TFDS_DATA_DIR', '')  # not the real data sets
  fuzzed.write_sets(tmp_path / 'sets')
  monkeypatch.setattr('tensorflow_datasets.core.constants.DATA_DIR', str(tmp_path / 'sets'))
  fuzzed.patch(monkeypatch)
  num_devices = jax.local_device_count()
  # Without arguments, which would change what is drawn.
  shipped = {spec: config_lib.load(spec)[0] for spec in FILES.values()}
  for config in shipped.values():
    validation.check(config, num_devices)
  values, outcomes = fuzzed.values_of(shipped), collections.Counter()
  # The unchanged configs are not traced.
  traced = {f for config in shipped.values() for f in fuzzed.folders(config, tmp_path / 'run')}

  @PROFILE
  @given(fuzzed.overrides(shipped, values))
  def check(draw):
    spec, changed = draw
    try:
      config, problems = config_lib.load(spec, list(changed.items()))
      validation.check(config, num_devices, problems)
    except ConfigError as error:
      check_lines(error, values, changed)
      outcomes['refused'] += 1
    else:
      fuzzed.build(config, tmp_path / 'run', traced)
      outcomes['built'] += 1

  check()
  assert outcomes['refused'] >= 0.7 * NUM_DRAWS
  assert outcomes['built'] >= 0.03 * NUM_DRAWS
