"""Settings for all tests, and one finished tiny run, which tests may read and copy but not change."""

import gc
import os
import pathlib
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import jaxlib.version

# Tests run the same programs many times; a cache on disk saves most of the compiling. JAX reads the variable
# when it is imported: here, in the workers of pytest-xdist and in the processes that tests start.
_OWN_CACHE = None
if 'JAX_COMPILATION_CACHE_DIR' not in os.environ:
  _OWN_CACHE = tempfile.mkdtemp(prefix='kdjax_compiled_')
  os.environ['JAX_COMPILATION_CACHE_DIR'] = _OWN_CACHE
os.environ.setdefault('JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS', '0')
# Most of the time goes into compiling. It takes half the time without XLA's optimisations, and half of that
# without its fusion emitters, which only older versions can switch off. Where each core has a worker, a
# fifth more is saved by compiling each program on one thread.
_FLAGS = ['--xla_backend_optimization_level=0', '--xla_cpu_parallel_codegen_split_count=1']
if jaxlib.version.__version_info__ < (0, 11):
  _FLAGS.append('--xla_cpu_use_fusion_emitters=false')
os.environ.setdefault('XLA_FLAGS', ' '.join(_FLAGS))

from kdjax.runtime import xla_flags

xla_flags.set_flags()  # so that tests and the programs that they start get the same numbers

import jax
import pytest
from etils import epath

from kdjax import config as config_lib
from kdjax.runtime import files
from kdjax.stages import pipeline
from kdjax.stages.experiment import Experiment

ROOT = pathlib.Path(__file__).parents[1]
TINY = ROOT / 'tests' / 'tiny_config.py'

_PLACES = (os.environ.get('TFDS_DATA_DIR'), ROOT.parent / 'shared' / 'tensorflow_datasets')
# A folder with real CIFAR-10 and MNIST, or None.
DATA = next((p for p in map(pathlib.Path, filter(None, _PLACES)) if (p / 'cifar10').exists()), None)

# The files that take longest, in the order in which they start.
LONGEST = (
  'faults',
  'gan',
  'notebook',
  'hosts',
  'compiler',
  'stages',
  'benchmarks',
  'models',
  'golden_draws',
  'predictions',
  'feature_losses',
  'views',
  'user_code',
  'devices',
  'analysis_basins',
  'package',
  'top_k',
  'streaming',
  'end_to_end',
  'augmentations',
  'api',
  'student',
  'models_values',
)

jax.config.update('jax_numpy_rank_promotion', 'raise')
# Tracing makes millions of objects; by default a collection starts after every 700.
gc.set_threshold(50_000)


def tiny_run(workdir: pathlib.Path, **fields) -> Experiment:
  """A run of the tiny config; `student__temperature=1.0` sets config.student.temperature."""
  config, problems = config_lib.load(str(TINY))
  assert not problems
  config.update_from_flattened_dict({k.replace('__', '.'): v for k, v in fields.items()})
  return Experiment(config, epath.Path(workdir))


def copied(finished: Experiment, tmp_path: pathlib.Path, **fields) -> Experiment:
  """A copy of the finished run, with other fields, which a test may change."""
  shutil.copytree(finished.workdir, tmp_path, dirs_exist_ok=True)
  return tiny_run(tmp_path, **fields)


def pytest_xdist_auto_num_workers() -> int:
  """One worker more than there are cores, since workers sometimes wait for each other."""
  return 1 + (len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count())


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
  """Starts the files that take longest first, so that all workers end at about the same time."""
  rank = {f'test_{name}.py': place for place, name in enumerate(LONGEST)}
  items.sort(key=lambda item: rank.get(item.path.name, len(rank)))


def pytest_unconfigure():
  if _OWN_CACHE is not None:
    shutil.rmtree(_OWN_CACHE)


@pytest.fixture(scope='module', autouse=True)
def forget_programs() -> Iterator[None]:
  """Frees what one file compiled, which takes gigabytes in all, and may come from code that a test patched."""
  yield
  jax.clear_caches()


@contextmanager
def compilations() -> Iterator[Callable[[], int]]:
  """Yields a function that returns how many programs XLA has compiled since."""
  count = 0

  def listen(event: str, _: float, **__) -> None:
    nonlocal count
    count += event == '/jax/core/compile/backend_compile_duration'

  jax.monitoring.register_event_duration_secs_listener(listen)
  yield lambda: count


def made_once(
  tmp_path_factory: pytest.TempPathFactory, name: str, run: Callable[[pathlib.Path], Experiment]
) -> Experiment:
  """A run after all stages but the report, to read and to copy. One worker makes it for all.

  Args:
    name: of its folder.
    run: makes it for a workdir.
  """
  folder = tmp_path_factory.getbasetemp()
  if 'PYTEST_XDIST_WORKER' in os.environ:  # its folder is in that of the session
    folder = folder.parent
  made = run(folder / name)
  with files.lock(made.workdir):
    for stage in ('teachers', 'predictions', 'student', 'evaluation'):
      pipeline.STAGES[stage].run(made)
  return made


@pytest.fixture(scope='session')
def finished(tmp_path_factory) -> Experiment:
  """The finished run of the tiny config."""
  return made_once(tmp_path_factory, 'finished', tiny_run)
