"""Ratios that a noisy machine leaves standing: what is compared takes turns, and medians are taken."""

import time
from collections.abc import Callable, Mapping

import numpy as np

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
