"""The description of the environment of an artefact."""

import pathlib
import subprocess

import jax
import numpy as np
import pytest

import kdjax
from kdjax.runtime import environment

ROOT = pathlib.Path(__file__).parents[1]


def test_versions_and_devices_are_those_of_this_process(monkeypatch):
  monkeypatch.setattr('sys.argv', ['/somewhere/launch.py', '--config=my file.py'])
  jax.devices()  # XLA reads its flags here
  monkeypatch.setenv('XLA_FLAGS', '--one --two')
  found = environment.describe()
  assert found['kdjax'] == kdjax.__version__
  assert found['packages']['jax'] == jax.__version__
  assert found['packages']['numpy'] == np.__version__
  assert found['devices']['number'] == jax.device_count()
  assert found['command'] == "launch.py '--config=my file.py'"
  assert found['xla_flags'] == '--one --two'


@pytest.fixture
def forgotten():
  """Clears the cached commit before and after the test."""
  environment._commit.cache_clear()
  yield
  environment._commit.cache_clear()


@pytest.mark.skipif(not (ROOT / '.git').exists(), reason='kdjax does not run from a clone')
def test_the_commit_is_that_of_the_clone(forgotten, monkeypatch):
  git = ['git', '-C', str(ROOT), 'rev-parse', 'HEAD']
  head = subprocess.run(git, capture_output=True, text=True, check=True).stdout.strip()
  assert environment.describe()['commit'] == head
  environment._commit.cache_clear()
  monkeypatch.setenv('PATH', '')
  assert environment._commit() == {'commit': None, 'dirty': None}


def test_without_a_clone_there_is_no_commit(forgotten, tmp_path, monkeypatch):
  monkeypatch.setattr(environment, '__file__', str(tmp_path / 'kdjax' / 'runtime' / 'file.py'))
  assert environment._commit() == {'commit': None, 'dirty': None}
