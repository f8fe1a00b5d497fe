"""Harms runs of the tiny configs in every way there is, and shows what came of it.

    python -m tests.faults [NAME]      # of one fault: killed, damaged, ...; by default all

Exits with status 1 if a result is not the undisturbed one, or an error is not clear. What is random
follows from one seed. A full disk and a read-only folder need the right to mount a file system.
"""

import atexit
import collections
import os
import pathlib
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence

if 'JAX_COMPILATION_CACHE_DIR' not in os.environ:
  os.environ['JAX_COMPILATION_CACHE_DIR'] = tempfile.mkdtemp(prefix='kdjax_compiled_')
  atexit.register(shutil.rmtree, os.environ['JAX_COMPILATION_CACHE_DIR'])
os.environ.setdefault('JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS', '0')

import numpy as np
from rich.table import Table

from kdjax.runtime import progress
from tests.faults import processes, trials, workdirs
from tests.faults.workdirs import ALL_STAGES, BAD, CLEAR_ERROR, IDENTICAL, TINY, Outcome

SEED = 0
KILLS_IN_A_ROW = 4  # of one workdir, before it may end
LONGEST_DELAY = 1.5  # seconds
KILOBYTES = (64, 300, 600, 900)  # a whole run takes about 1.5 MB
FILE_SIZES = (8_000, 15_000, 50_000)  # bytes; the largest file has about 150,000
Trials = Iterator[tuple[str, Outcome | None]]


def _places(scratch: pathlib.Path) -> Iterator[pathlib.Path]:
  while True:
    yield pathlib.Path(tempfile.mkdtemp(dir=scratch))


def _killed(places: Iterator, expected: dict, finished: pathlib.Path) -> Trials:
  yield from _killed_at(trials.MOMENTS, places, expected, TINY)


def _killed_elsewhere(places: Iterator, expected: dict, finished: pathlib.Path) -> Trials:
  undisturbed = next(places) / 'run'
  workdirs.attempt(undisturbed, ALL_STAGES)
  expected = workdirs.results(undisturbed, ALL_STAGES)
  yield from _killed_at(trials.OF_THE_OTHERS, places, expected, ALL_STAGES)


def _killed_at(
  moments: Sequence[str], places: Iterator, expected: dict, config: pathlib.Path
) -> Trials:
  rng = np.random.default_rng(SEED)
  for start in range(0, len(moments), KILLS_IN_A_ROW):
    row = moments[start : start + KILLS_IN_A_ROW]
    delays = rng.uniform(0, LONGEST_DELAY, len(row)) * rng.integers(2, size=len(row))
    num_killed, outcome = trials.killed(next(places), expected, row, delays, config)
    for _ in range(num_killed):
      yield f'SIGKILL, and start again: {config.stem}', outcome


def _full_disk(places: Iterator, expected: dict, finished: pathlib.Path) -> Trials:
  for size in FILE_SIZES:
    yield 'no file may be so large', trials.file_too_large(next(places), expected, size)
  for size in KILOBYTES if processes.can_mount() else ():
    yield 'full disk', trials.full_disk(next(places), expected, size)


def _read_only(places: Iterator, expected: dict, finished: pathlib.Path) -> Trials:
  for stage in workdirs.STAGES if processes.can_mount() else ():
    yield 'read-only folder', trials.read_only(next(places), expected, finished, stage)


def _at_once(places: Iterator, expected: dict, finished: pathlib.Path) -> Trials:
  for count in (2, 3):
    yield f'{count} launches at once', trials.at_once(next(places), expected, count)


def _damaged(places: Iterator, expected: dict, finished: pathlib.Path) -> Trials:
  damages = list(workdirs.damages(finished, np.random.default_rng(SEED)))
  with processes.pool() as pool:
    waiting = [
      pool.apply_async(trials.damaged, (next(places), expected, finished, damage, (SEED, number)))
      for number, damage in enumerate(damages)
    ]
    for (stage, how, kind, _), trial in zip(damages, waiting, strict=True):
      outcome = trial.get()
      if outcome and outcome.kind == BAD:
        progress.console.print(f'{stage}: {kind} {how}', style='red', highlight=False)
      yield f'{stage}: {how}', outcome


FAULTS: dict[str, Callable] = {
  'killed': _killed,
  'killed_elsewhere': _killed_elsewhere,
  'full_disk': _full_disk,
  'read_only': _read_only,
  'at_once': _at_once,
  'damaged': _damaged,
}


def main(names: list[str]) -> int:
  progress.setup_logging()
  progress.logger.setLevel('ERROR')
  counts: dict[str, collections.Counter] = {}
  with tempfile.TemporaryDirectory(prefix='kdjax_faults_') as scratch:
    places = _places(pathlib.Path(scratch))
    finished = next(places) / 'run'
    workdirs.attempt(finished)
    expected = workdirs.results(finished)
    for name in names or FAULTS:
      for fault, outcome in FAULTS[name](places, expected, finished):
        if outcome is not None:
          counts.setdefault(fault, collections.Counter())[outcome.kind] += 1
          if outcome.kind == BAD:
            progress.console.print(f'{fault}: {outcome.detail}', highlight=False, markup=False)
  table = Table('fault', title='What came of it')
  for heading in ('repeats', IDENTICAL, CLEAR_ERROR, BAD):
    table.add_column(heading, justify='right')
  for fault, of in counts.items():
    table.add_row(fault, *(str(n) for n in (of.total(), of[IDENTICAL], of[CLEAR_ERROR], of[BAD])))
  progress.console.print(table)
  if not processes.can_mount():
    progress.console.print('full disk, read-only folder: left out, this user may not mount')
  return int(any(of[BAD] for of in counts.values()))


if __name__ == '__main__':
  sys.exit(main(sys.argv[1:]))
