"""Starts programs in new processes, in milliseconds; a test may kill them."""

import contextlib
import gc
import io
import json
import multiprocessing
import os
import pathlib
import resource
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any

import jax
import numpy as np
from absl import app, flags

from kdjax.interface import command_line
from kdjax.interface import flags as kdjax_flags
from kdjax.runtime import progress

ROOT = pathlib.Path(__file__).parents[1]
TINY = ROOT / 'tests' / 'tiny_config.py'
COLUMNS = 200  # width of the terminal that a program writes to

# The server imports JAX and matplotlib without using them. It forks for each program, which need not import them then.
# Its only threads are those of OpenBLAS, which allow a fork.
CONTEXT = multiprocessing.get_context('forkserver')
CONTEXT.set_forkserver_preload(
  [
    'kdjax.interface.commands',
    'analysis.runner',
    'matplotlib.figure',
    'matplotlib.style',
    'matplotlib.backends.backend_svg',
  ]
)


class Launch:
  """A started program."""

  def __init__(self, process: multiprocessing.Process, outputs: tempfile.TemporaryDirectory):
    self._process, self._outputs = process, outputs

  def is_alive(self) -> bool:
    return self._process.is_alive()

  def kill(self) -> bool:
    """Sends SIGKILL. Returns False if the program had already ended."""
    alive = self.is_alive()
    self._process.kill()
    self.wait()
    return alive

  def interrupt(self) -> None:
    """Sends SIGINT, as Ctrl-C does."""
    os.kill(self._process.pid, signal.SIGINT)

  def wait(self, seconds: float | None = None) -> int | None:
    """Returns its exit status, −N if signal N ended it, or None if it still runs after `seconds`."""
    self._process.join(seconds)
    return self._process.exitcode

  def communicate(self) -> tuple[str, str]:
    """Waits for its end. Returns its stdout and its stderr."""
    self.wait()
    return self._told('stdout'), self._told('stderr')

  def _told(self, stream: str) -> str:
    path = pathlib.Path(self._outputs.name) / stream
    return path.read_text() if path.exists() else ''  # it has only just started

  @property
  def told(self) -> str:
    """Its stdout and stderr so far."""
    return self._told('stdout') + self._told('stderr')

  @property
  def error(self) -> str | None:
    """Its error, if this is one clear line at the end without a traceback, else None."""
    lines = self.told.splitlines()
    errors = [line for line in lines if line.startswith('error: ')]
    clear = len(errors) == 1 and 'Traceback' not in self.told and lines[-1] == errors[0]
    return errors[0] if clear else None


def call(
  function: Callable, *arguments: Any, num_devices: int = 1, file_size: int | None = None
) -> Launch:
  """Starts a function of a module in a new process.

  Args:
    num_devices: number of its CPU devices.
    file_size: limit in bytes for each file that it writes, as `ulimit -f` sets it.
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
  """Starts launch.py. `how` is passed on to `call`."""
  given = [f'--config={config}', f'--workdir={workdir}', *map(str, arguments)]
  return call(_launch, given, **how)


def run(workdir: pathlib.Path, *arguments: Any, **how: Any) -> subprocess.CompletedProcess:
  """Runs launch.py to its end."""
  return _completed(start(workdir, *arguments, **how))


def run_each(*commands: Sequence[Any]) -> list[subprocess.CompletedProcess]:
  """Runs launch.py with each list of flags, one after the other in one new process."""
  done = call(_launch_each, [[str(argument) for argument in command] for command in commands])
  out, err = done.communicate()
  assert done.wait() == 0, err
  return [subprocess.CompletedProcess(*each) for each in json.loads(out)]


def analyse(*arguments: str) -> subprocess.CompletedProcess:
  """Runs `python -m analysis` to its end."""
  return _completed(call(_analyse, arguments))


def saved_on_devices(
  program: ModuleType, num_devices: int, out: pathlib.Path
) -> dict[str, np.ndarray]:
  """The arrays that a program saves on `num_devices` CPU devices; it runs here if this process has as many."""
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
  app.run(command_line.main, argv=['launch.py', *arguments], flags_parser=kdjax_flags.parse_flags)


def _launch_each(commands: list[list[str]]) -> None:
  """Prints the command, the exit status, stdout and stderr of each."""
  found = []
  for command in commands:
    flags.FLAGS.unparse_flags()
    kdjax_flags.OVERRIDES.clear()
    kdjax_flags.SWEPT.clear()
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
      try:
        _launch(command)
        status = 0
      except SystemExit as end:  # as the interpreter does: with a status, or a message and 1
        status = end.code or 0
        if isinstance(status, str):
          print(status, file=err)
          status = 1
    found.append((command, status, out.getvalue(), err.getvalue()))
  print(json.dumps(found))


def _analyse(arguments: tuple[str, ...]) -> None:
  for flag in list(flags.FLAGS.flags_by_module_dict()['kdjax.interface.flags']):
    delattr(flags.FLAGS, flag.name)  # the analysis has its own
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
    jax.config.update('jax_compilation_cache_dir', None)  # truncated entries would break others
  function(*arguments)
