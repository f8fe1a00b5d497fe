"""Programs in processes of their own, which start in milliseconds and may be killed."""

import gc
import multiprocessing
import os
import pathlib
import resource
import subprocess
import sys
import tempfile
from collections.abc import Callable
from types import ModuleType
from typing import Any

import jax
import numpy as np
from absl import app, flags

from kdjax import cli
from kdjax.runtime import progress

ROOT = pathlib.Path(__file__).parents[1]
TINY = ROOT / 'tests' / 'tiny_config.py'
COLUMNS = 200  # of the terminal that it writes to

# A server that has imported JAX, and used it for nothing, forks: its children need not. Its only threads
# are those of OpenBLAS, which can be forked.
CONTEXT = multiprocessing.get_context('forkserver')
CONTEXT.set_forkserver_preload(['kdjax.cli', 'analysis.runner'])


class Launch:
  """A program at work."""

  def __init__(self, process: multiprocessing.Process, outputs: tempfile.TemporaryDirectory):
    self._process, self._outputs = process, outputs

  def is_alive(self) -> bool:
    return self._process.is_alive()

  def kill(self) -> bool:
    """SIGKILL. Returns False if it had ended before."""
    alive = self.is_alive()
    self._process.kill()
    self.wait()
    return alive

  def wait(self, seconds: float | None = None) -> int | None:
    """Returns its exit status, −N if signal N ended it; None if it goes on for longer than that."""
    self._process.join(seconds)
    return self._process.exitcode

  def communicate(self) -> tuple[str, str]:
    """Waits for its end. Returns what it wrote to stdout and to stderr."""
    self.wait()
    return self._told('stdout'), self._told('stderr')

  def _told(self, stream: str) -> str:
    path = pathlib.Path(self._outputs.name) / stream
    return path.read_text() if path.exists() else ''  # it has hardly begun

  @property
  def told(self) -> str:
    """All that it wrote so far."""
    return self._told('stdout') + self._told('stderr')

  @property
  def error(self) -> str | None:
    """Its one clear error; None if there is none, or something else beside it."""
    lines = self.told.splitlines()
    errors = [line for line in lines if line.startswith('error: ')]
    clear = len(errors) == 1 and 'Traceback' not in self.told and lines[-1] == errors[0]
    return errors[0] if clear else None


def call(
  function: Callable, *arguments: Any, num_devices: int = 1, file_size: int | None = None
) -> Launch:
  """Starts a function of a module.

  Args:
    num_devices: CPU devices that it has.
    file_size: bytes that no file that it writes may exceed, as by `ulimit -f`.
  """
  outputs = tempfile.TemporaryDirectory()
  process = CONTEXT.Process(
    target=_main, args=(function, arguments, outputs.name, num_devices, file_size)
  )
  process.start()
  return Launch(process, outputs)


def start(
  workdir: pathlib.Path, *arguments: Any, config: pathlib.Path | str = TINY, **how: Any
) -> Launch:
  """Starts launch.py; `how` as for `call`."""
  given = [f'--config={config}', f'--workdir={workdir}', *map(str, arguments)]
  return call(_launch, given, **how)


def run(workdir: pathlib.Path, *arguments: Any, **how: Any) -> subprocess.CompletedProcess:
  """As `start`, to its end."""
  return _completed(start(workdir, *arguments, **how))


def analyse(*arguments: str) -> subprocess.CompletedProcess:
  """Runs `python -m analysis` to its end."""
  return _completed(call(_analyse, arguments))


def saved_on_devices(
  program: ModuleType, num_devices: int, out: pathlib.Path
) -> dict[str, np.ndarray]:
  """What a program saves on so many CPU devices; on one it runs in this process, which has one."""
  if num_devices == jax.local_device_count():
    program.main(out)
  else:
    started = call(program.main, out, num_devices=num_devices)
    assert started.wait() == 0, started.told
  found = dict(np.load(out))
  assert found.pop('num_devices') == num_devices
  return found


def _completed(launched: Launch) -> subprocess.CompletedProcess:
  out, err = launched.communicate()
  return subprocess.CompletedProcess((), launched.wait(), out, err)


def _launch(arguments: list[str]) -> None:
  app.run(cli.main, argv=['launch.py', *arguments], flags_parser=cli._parse_flags)


def _analyse(arguments: tuple[str, ...]) -> None:
  for flag in list(flags.FLAGS.flags_by_module_dict()['kdjax.cli']):
    delattr(flags.FLAGS, flag.name)  # it does not know them
  from analysis import __main__ as analysis

  app.run(analysis.main, argv=['analysis', *arguments])


def _main(
  function: Callable, arguments: tuple, outputs: str, num_devices: int, file_size: int | None
) -> None:
  os.chdir(ROOT)
  gc.set_threshold(50_000)  # as in conftest.py
  for stream in ('stdout', 'stderr'):
    with (pathlib.Path(outputs) / stream).open('w') as file:
      os.dup2(file.fileno(), getattr(sys, stream).fileno())
  progress.console.width = COLUMNS
  os.environ['XLA_FLAGS'] += f' --xla_force_host_platform_device_count={num_devices}'
  if file_size is not None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (file_size, file_size))
    jax.config.update('jax_compilation_cache_dir', None)  # others would read what is cut off
  function(*arguments)
