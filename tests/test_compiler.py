"""The results of XLA with its optimisations, as users run it. All other tests run without them.

By default some results of a ResNet and LeNet are compared (`compiled.QUICK`). KDJAX_COMPILER=all compares all
of every model, norm and dtype, and compiles for minutes.

For each set of flags, a process runs `tests/compiled.py`: a training step (loss, gradient, statistics),
predictions and their ensemble, products with the Hessian and the generalised Gauss-Newton matrix, and the
activations for matching permutations. The reference is the same in float64 without optimisations.

The tolerance is FACTOR, which is a choice, times a measured floor of rounding. The reference is computed a few
times, with weights and inputs moved at random by one unit in the last place of the dtype: a rounded result is
exact for operands that are a few units away. The floor of an array is its largest change, relative to its
largest entry, and at least one unit. It covers rectifiers so near 0 that rounding flips them, which may move an
entry of a gradient by 1e-2. FACTOR covers sums of some thousand terms, which are rounded more than once.
"""

import os
import pathlib
import subprocess
import sys

import jax
import numpy as np
import pytest

from kdjax.errors import UserError
from kdjax.runtime import compiler, xla_flags

ROOT = pathlib.Path(__file__).parents[1]
UNOPTIMISED = '--xla_backend_optimization_level=0'
if jax.__version_info__ < (0, 11):
  UNOPTIMISED += ' --xla_cpu_use_fusion_emitters=false'  # halves the time of compilation
FACTOR = 16
SMALLEST = np.finfo(np.float32).eps
# The XLA_FLAGS under which results are compared, by name.
FLAGS = ' '.join(flag for flag in xla_flags.recommended() if flag.startswith('--xla_cpu'))
FLAG_SETS = {'default': ''} | ({'set by launch.py': FLAGS} if FLAGS else {})


def start(out: pathlib.Path, flags: str, kind: str) -> subprocess.Popen:
  environment = {k: v for k, v in os.environ.items() if k != 'JAX_COMPILATION_CACHE_DIR'}
  return subprocess.Popen(
    [sys.executable, '-m', 'tests.compiled', str(out), kind],
    cwd=ROOT,
    env=environment | {'XLA_FLAGS': flags, 'JAX_PLATFORMS': 'cpu'},
    stderr=subprocess.PIPE,
    text=True,
  )


def results(process: subprocess.Popen, out: pathlib.Path) -> dict[str, np.ndarray]:
  _, told = process.communicate()
  assert process.returncode == 0, told
  return dict(np.load(out))


@pytest.fixture(scope='module')
def reference(tmp_path_factory) -> dict[str, np.ndarray]:
  out = tmp_path_factory.mktemp('compiler') / 'reference.npz'
  return results(start(out, UNOPTIMISED, 'reference'), out)


@pytest.fixture(scope='module', params=FLAG_SETS)
def found(request, tmp_path_factory) -> dict[str, np.ndarray]:
  out = tmp_path_factory.mktemp('compiler') / 'found.npz'
  return results(start(out, FLAG_SETS[request.param], 'found'), out)


def error(values: np.ndarray, right: np.ndarray) -> float:
  """The largest error, relative to the largest entry; NaN where one is NaN."""
  assert np.isfinite(right).all() and np.any(right)
  return float(np.abs(values - right).max() / np.abs(right).max())


def test_every_result_is_that_of_float64(found, reference):
  """All kept or returned arrays are float32, and no gradient is 0 everywhere."""
  arrays = {key: array for key, array in found.items() if not key.startswith('program/')}
  assert arrays.keys() == reference.keys()
  wrong = []
  for key, (values,) in arrays.items():
    exact, *moved = reference[key]
    assert (values.dtype, exact.dtype) == (np.float32, np.float64), key
    floor = max(SMALLEST, *(error(x, exact) for x in moved))
    if not (away := error(values, exact)) <= FACTOR * floor:
      wrong.append(f'{key}: {away:.1e} away, allowed {FACTOR * floor:.1e}')
  assert not wrong, '\n'.join(wrong)


def test_the_probe_finds_nothing_wrong(found):
  assert found['program/probe'].tolist() == []


def test_holes_between_windows_of_one_are_known_to_be_wrong(found):
  """kdjax has no such program: its only window with holes is that of the probe, of two pixels."""
  if num_wrong := int(found['program/holes']):
    pytest.xfail(f'openxla/xla#48714: {num_wrong} numbers of reduce_window are wrong')


@pytest.mark.parametrize(
  ('program', 'wrong', 'said'),
  [
    ('_row_sums', np.full(32_769, 7.0), 'in the last of 32,769 rows as 7, right is 1073741824'),
    ('_broadcast_sum', 524_290.0, 'a sum of 524,288 ones as 524290, right is 524288'),
    ('_pool_gradient', np.full((16, 16, 16, 8), 2.5), 'average pooling as 2.5, right is '),
  ],
)
def test_a_wrong_result_is_an_error_unless_allowed(monkeypatch, program, wrong, said):
  monkeypatch.setattr(compiler, program, lambda *_: wrong)
  (line,) = compiler.probe()
  assert said in line
  with pytest.raises(UserError) as error:
    compiler.require_right(insist=False)
  message = str(error.value)
  assert line in message and '\n' not in message
  assert f"pip install 'jax!={jax.__version__}'" in message and '--allow_wrong_xla' in message
  compiler.require_right(insist=True)


def test_a_sum_that_is_sometimes_wrong_is_found(monkeypatch):
  values = iter([524_288.0] * 19 + [524_289.0])
  monkeypatch.setattr(compiler, '_broadcast_sum', lambda _: next(values))
  assert len(compiler.probe()) == 1
