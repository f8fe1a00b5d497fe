"""launch.py in processes of its own, which start fast and may be killed, and places that fail."""

import contextlib
import dataclasses
import functools
import logging
import multiprocessing.pool
import os
import pathlib
import resource
import subprocess
import sys
import time
from collections.abc import Iterator

import jax
from absl import app

import launch as program
from kdjax import progress
from tests.faults.workdirs import TINY

# A server that has imported JAX, and used it for nothing, forks: its children start in milliseconds. Its
# only threads are those of OpenBLAS, which can be forked.
_CONTEXT = multiprocessing.get_context('forkserver')
_CONTEXT.set_forkserver_preload(['launch'])


RUNS_COMPILED = 20  # in a process of the pool: each compiles anew, and only so much can be mapped


def pool() -> multiprocessing.pool.Pool:
  """A process for each core, replaced by a fresh one now and then. They say nothing."""
  return _CONTEXT.Pool(os.cpu_count(), _silence, maxtasksperchild=RUNS_COMPILED)


def _silence() -> None:
  progress.setup_logging(errors_only=True)
  progress.logger.setLevel('CRITICAL')
  logging.getLogger('asyncio').setLevel('CRITICAL')  # of reads that ended in the error already told
  program._quiet_closed_loop()


@dataclasses.dataclass
class Launch:
  """launch.py on a workdir, at work."""

  process: multiprocessing.Process
  log: pathlib.Path

  def kill(self) -> bool:
    """SIGKILL. Returns False if it had ended before."""
    alive = self.process.is_alive()
    self.process.kill()
    self.process.join()
    return alive

  def wait(self) -> int:
    """Returns its exit status."""
    self.process.join()
    return self.process.exitcode

  @property
  def told(self) -> str:
    """All that it wrote to the terminal."""
    return self.log.read_text()

  @property
  def error(self) -> str | None:
    """Its one clear error; None if there is none, or something else beside it."""
    lines = self.told.splitlines()
    errors = [line for line in lines if line.startswith('error: ')]
    clear = len(errors) == 1 and 'Traceback' not in self.told and lines[-1] == errors[0]
    return errors[0] if clear else None


def launch(
  workdir: pathlib.Path,
  log: pathlib.Path,
  *,
  file_size: int | None = None,
  config: pathlib.Path = TINY,
) -> Launch:
  """Starts the program.

  Args:
    file_size: bytes that no file that it writes may exceed, as by `ulimit -f`.
  """
  process = _CONTEXT.Process(target=_main, args=(str(workdir), str(log), file_size, str(config)))
  process.start()
  return Launch(process, log)


def _main(workdir: str, log: str, file_size: int | None, config: str) -> None:
  with open(log, 'w') as file:
    os.dup2(file.fileno(), sys.stdout.fileno())
    os.dup2(file.fileno(), sys.stderr.fileno())
  if file_size is not None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (file_size, file_size))
    jax.config.update('jax_compilation_cache_dir', None)  # others would read what is cut off
  arguments = ['launch.py', f'--config={config}', f'--workdir={workdir}']
  app.run(program.main, argv=arguments, flags_parser=program._parse_flags)


def kill_after(launched: Launch, workdir: pathlib.Path, pattern: str, seconds: float) -> bool:
  """Kills it some time after a path that was not there appears. Returns False if it ended first."""
  before = set(workdir.glob(pattern)) if pattern else set()
  while pattern and not set(workdir.glob(pattern)) - before:
    if not launched.process.is_alive():
      return False
    time.sleep(0.001)
  launched.process.join(seconds)
  return launched.kill()


@functools.cache
def can_mount() -> bool:
  """Whether this process may mount a file system of its own, as root may outside of most containers."""
  if os.geteuid() or sys.platform != 'linux':
    return False
  probe = ['unshare', '--mount', 'mount', '-t', 'tmpfs', 'tmpfs', '/mnt']
  return subprocess.run(probe, capture_output=True).returncode == 0


@contextlib.contextmanager
def small_disk(place: pathlib.Path, kilobytes: int) -> Iterator[pathlib.Path]:
  """A file system of that size; `resize` makes it larger or read-only."""
  place.mkdir()
  subprocess.run(['mount', '-t', 'tmpfs', '-o', f'size={kilobytes}k', 'tmpfs', place], check=True)
  try:
    yield place
  finally:
    subprocess.run(['umount', '--lazy', place], check=True)
    place.rmdir()


def remount(place: pathlib.Path, options: str) -> None:
  subprocess.run(['mount', '-o', f'remount,{options}', place], check=True)
