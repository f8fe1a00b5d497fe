"""Rows that processes of test_streaming.py fetch; they import this file alone, which takes no time."""

import multiprocessing
import os
import signal
import time

import numpy as np


def rows_of(number: int, rows: slice) -> dict[str, np.ndarray]:
  return {'row': 1000 * number + np.arange(rows.start, rows.stop)}


def killed_at(number: int, rows: slice) -> dict[str, np.ndarray]:
  if number == 30:
    os.kill(os.getpid(), signal.SIGKILL)
  return rows_of(number, rows)


def load_forever() -> None:
  """Fetches rows in a process, and prints its number."""
  from kdjax.data import streaming  # which takes time

  streaming.MIN_ROWS_FOR_WORKERS = 0
  batches = streaming.batches(rows_of, range(1000), range(8), 1)
  next(batches)
  print(multiprocessing.active_children()[0].pid, flush=True)
  time.sleep(600)
