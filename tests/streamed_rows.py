"""Rows that processes of test_streaming.py fetch; they import this file alone, which takes no time."""

import os
import signal

import numpy as np


def rows_of(number: int, rows: slice) -> dict[str, np.ndarray]:
  return {'row': 1000 * number + np.arange(rows.start, rows.stop)}


def killed_at(number: int, rows: slice) -> dict[str, np.ndarray]:
  if number == 2:
    os.kill(os.getpid(), signal.SIGKILL)
  return rows_of(number, rows)
