"""What the user sees while work is going on: bars on a terminal, plain log lines elsewhere."""

import logging
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from absl import logging as absl_logging
from rich.console import Console
from rich.logging import RichHandler
from rich.progress import (
  BarColumn,
  MofNCompleteColumn,
  Progress,
  TextColumn,
  TimeElapsedColumn,
  TimeRemainingColumn,
)

SECONDS_BETWEEN_LINES = 15.0

console = Console()
logger = logging.getLogger('kdjax')


def setup_logging(errors_only: bool = False) -> None:
  """Sends kdjax's log lines past the bars on a terminal, and to stderr with the time elsewhere.

  Args:
    errors_only: no bars and tables either, as in all but one of several processes.
  """
  console.quiet = errors_only
  if console.is_terminal:
    handler = RichHandler(
      console=console,
      show_path=False,
      show_level=False,
      omit_repeated_times=False,
      log_time_format='%H:%M:%S',
    )
  else:
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter('%(asctime)s %(message)s', datefmt='%H:%M:%S'))
  logger.handlers = [handler]
  logger.setLevel(logging.ERROR if errors_only else logging.INFO)
  logger.propagate = False
  # What goes wrong in a library is raised too, and told in one line.
  absl_logging.set_verbosity(absl_logging.FATAL)


@contextmanager
def bar(name: str, total: int, unit: str) -> Iterator[Callable[[int, str], None]]:
  """Yields show(done, text), to be called as work goes on; `text` says how well it goes."""
  if console.is_terminal:
    with _terminal_bar(name, total, unit) as show:
      yield show
  else:
    yield _line_printer(name, total, unit)


@contextmanager
def _terminal_bar(name: str, total: int, unit: str) -> Iterator[Callable[[int, str], None]]:
  columns = (
    TextColumn('{task.description:<15}'),
    BarColumn(bar_width=30),
    MofNCompleteColumn(),
    TextColumn(unit),
    TimeElapsedColumn(),
    TextColumn('/'),
    TimeRemainingColumn(),
    TextColumn('{task.fields[text]}'),
  )
  with Progress(*columns, console=console) as progress:
    task = progress.add_task(name, total=total, text='')
    yield lambda done, text='': progress.update(task, completed=done, text=text)


def _line_printer(name: str, total: int, unit: str) -> Callable[[int, str], None]:
  last = time.monotonic()

  def show(done: int, text: str = '') -> None:
    nonlocal last
    if done == total or time.monotonic() - last >= SECONDS_BETWEEN_LINES:
      last = time.monotonic()
      logger.info('%s: %d/%d %s %s', name, done, total, unit, text)

  return show
