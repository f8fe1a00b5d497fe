"""Processes that are killed, and places that fail."""

import contextlib
import functools
import logging
import multiprocessing.pool
import os
import pathlib
import subprocess
import sys
import time
from collections.abc import Iterator

from kdjax.interface import commands
from kdjax.runtime import progress
from tests.launched import CONTEXT, Launch

RUNS_COMPILED = 20  # in a process of the pool: each compiles anew, and only so much can be mapped


def pool() -> multiprocessing.pool.Pool:
  """A process for each core, replaced by a fresh one now and then. They say nothing."""
  return CONTEXT.Pool(os.cpu_count(), _silence, maxtasksperchild=RUNS_COMPILED)


def _silence() -> None:
  progress.setup_logging(errors_only=True)
  progress.logger.setLevel('CRITICAL')
  logging.getLogger('asyncio').setLevel('CRITICAL')  # of reads that ended in the error already told
  commands._quiet_closed_loop()


def reaches(launched: Launch, workdir: pathlib.Path, pattern: str) -> bool:
  """Waits until a path that was not there appears. Returns False if the program ends first."""
  before = set(workdir.glob(pattern))
  while not set(workdir.glob(pattern)) - before:
    if not launched.is_alive():
      return False
    time.sleep(0.001)
  return True


def kill_after(launched: Launch, workdir: pathlib.Path, pattern: str, seconds: float) -> bool:
  """Kills it some time after a path that was not there appears. Returns False if it ended first."""
  if not reaches(launched, workdir, pattern):
    return False
  launched.wait(seconds)
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
  """A file system of that size; `remount` makes it larger or read-only."""
  place.mkdir()
  subprocess.run(['mount', '-t', 'tmpfs', '-o', f'size={kilobytes}k', 'tmpfs', place], check=True)
  try:
    yield place
  finally:
    subprocess.run(['umount', '--lazy', place], check=True)
    place.rmdir()


def remount(place: pathlib.Path, options: str) -> None:
  subprocess.run(['mount', '-o', f'remount,{options}', place], check=True)
