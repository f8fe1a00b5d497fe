"""The progress of long work: bars on a terminal, plain log lines elsewhere."""

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
  TimeRemainingColumn,
)
from rich.table import Column

SECONDS_BETWEEN_LINES = 15.0

console = Console()
logger = logging.getLogger('kdjax')


def setup_logging(errors_only: bool = False) -> None:
  """Sends kdjax's log lines above the bars on a terminal, and to stderr with the time elsewhere.

  Args:
    errors_only: whether to show no bars, tables or information. All processes but the main one set it.
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
  # Libraries also raise what they log as errors, and the program prints that in one line.
  absl_logging.set_verbosity(absl_logging.FATAL)


@contextmanager
def bar(name: str, total: int, unit: str) -> Iterator[Callable[[int, str], None]]:
  """Yields show(done, text), which reports progress; `text` holds the latest metrics."""
  if console.is_terminal:
    with _terminal_bar(name, total, unit) as show:
      yield show
  else:
    yield _line_printer(name, total, unit)


@contextmanager
def _terminal_bar(name: str, total: int, unit: str) -> Iterator[Callable[[int, str], None]]:
  # On 80 columns the metrics are cut; the count and the remaining time are not.
  rest = Column(ratio=1, no_wrap=True, overflow='ellipsis')
  columns = (
    TextColumn('{task.description:<15}', table_column=Column(no_wrap=True)),
    BarColumn(bar_width=10),
    MofNCompleteColumn(table_column=Column(no_wrap=True)),
    TextColumn(unit, table_column=Column(no_wrap=True)),
    TimeRemainingColumn(elapsed_when_finished=True, table_column=Column(no_wrap=True)),
    TextColumn('{task.fields[text]}', table_column=rest),
  )
  with Progress(*columns, console=console, expand=True) as progress:
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
