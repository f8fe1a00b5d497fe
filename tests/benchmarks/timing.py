"""Ratios that a noisy machine leaves standing: what is compared takes turns, and medians are taken.

And the memory of one piece of work, in a process of its own.
"""

import multiprocessing
import pathlib
import re
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor

import numpy as np

from kdjax.runtime import progress

REPEATS = 5


def seconds(work: Callable[[], object]) -> float:
  start = time.perf_counter()
  work()
  return time.perf_counter() - start


def in_turn(works: Mapping[str, Callable[[], object]], repeats: int) -> dict[str, np.ndarray]:
  """Seconds of each work, by name, shape (repeats,). Each runs once before, for what it compiles."""
  for work in works.values():
    work()
  rounds = [{name: seconds(work) for name, work in works.items()} for _ in range(repeats)]
  return {name: np.array([taken[name] for taken in rounds]) for name in works}


def ratio(times: Mapping[str, np.ndarray], over: str, under: str) -> float:
  """The median over the repeats of one work's time over another's, each taken in the same round."""
  return float(np.median(times[over] / times[under]))


def alone(work: Callable, *arguments):
  """The result of a function in a process of its own."""
  spawn = multiprocessing.get_context('spawn')
  with ProcessPoolExecutor(1, spawn, progress.setup_logging, (True,)) as pool:
    return pool.submit(work, *arguments).result()


def peak_bytes() -> int:
  """The most memory that this process had at once (resident)."""
  status = pathlib.Path('/proc/self/status').read_text()
  return int(re.search(r'VmHWM:\s+(\d+) kB', status)[1]) * 1024
