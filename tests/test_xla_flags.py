import ast
import pathlib
import subprocess
import sys

import pytest

from kdjax.runtime import xla_flags

ROOT = pathlib.Path(__file__).parents[1]
ONEDNN, YNN = xla_flags.ONEDNN


@pytest.mark.parametrize(
  ('version', 'expected'), [((0, 10, 1), set()), ((0, 12, 0), {ONEDNN, YNN})]
)
def test_a_version_gets_the_cpu_flags_that_make_it_faster(version, expected):
  assert {flag for flag in xla_flags.recommended(version) if '_cpu_' in flag} == expected


def test_programs_from_a_cache_have_no_graphs_and_no_calls_of_onednn():
  """Loading graphs on a GPU fails, and so does writing calls of oneDNN."""
  assert xla_flags.recommended((0, 12, 0), cached=True) == xla_flags.DETERMINISTIC
  environ = {xla_flags.CACHE: '/somewhere'}
  xla_flags.set_flags(environ)
  assert environ['XLA_FLAGS'] == ' '.join(xla_flags.DETERMINISTIC)
  environ = {}
  xla_flags.set_flags(environ)
  assert set(xla_flags.GRAPHS) <= set(environ['XLA_FLAGS'].split())


def test_flags_of_the_user_stay():
  environ = {'XLA_FLAGS': '--xla_gpu_deterministic_ops=false --xla_dump_to=/tmp/x'}
  xla_flags.set_flags(environ)
  flags = environ['XLA_FLAGS'].split()
  assert flags[:2] == ['--xla_gpu_deterministic_ops=false', '--xla_dump_to=/tmp/x']
  assert '--xla_gpu_deterministic_ops=true' not in flags
  before = environ['XLA_FLAGS']
  xla_flags.set_flags(environ)  # as in a process that this one starts
  assert environ['XLA_FLAGS'] == before


def test_this_xla_knows_the_flags():
  """XLA ends a process at a flag that it does not know."""
  environ = {'JAX_PLATFORMS': 'cpu'}
  xla_flags.set_flags(environ)
  code = 'import jax; assert float(jax.numpy.ones(3).sum()) == 3'
  done = subprocess.run([sys.executable, '-c', code], env=environ, capture_output=True, text=True)
  assert done.returncode == 0, done.stderr


@pytest.mark.parametrize('program', ['analysis/__main__.py', 'tests/conftest.py'])
def test_programs_set_flags_before_they_import_jax(program):
  body = ast.parse((ROOT / program).read_text()).body
  texts = [ast.unparse(statement) for statement in body]
  assert texts.index('xla_flags.set_flags()') < texts.index('import jax')
  imports = ' '.join(
    text for text in texts[: texts.index('xla_flags.set_flags()')] if 'import' in text
  )
  assert 'kdjax.' not in imports.replace('from kdjax.runtime import xla_flags', '')
