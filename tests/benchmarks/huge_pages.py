"""Training with buffers in huge pages, against without: python -m tests.benchmarks.huge_pages

On a CPU, XLA takes the buffers of a step from the C library and gives them back. The kernel hands each
out again in pages of 4 kB, which it clears one by one. With GLIBC_TUNABLES=glibc.malloc.hugetlb=1 (glibc
2.35 or later, transparent huge pages not set to 'never') they are of 2 MB. The variable is read before a
program starts: so there are two programs, which take turns. Nothing else changes, and no result.
"""

import contextlib
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator

import numpy as np
from etils import epath
from rich.table import Table

from kdjax.runtime import progress
from tests.benchmarks import loop, timing

TUNABLE = {'GLIBC_TUNABLES': 'glibc.malloc.hugetlb=1'}
MODELS = ('LeNet-5', 'ResNet-20')
TRAIN = 'train'


def measure(name: str, repeats: int) -> tuple[float, float, float]:
  """Examples per second without and with huge pages, and the ratio of the times, without over with."""
  num_examples = loop.SIZES[name].num_steps * loop.BATCH
  with contextlib.ExitStack() as started:
    works = {
      'without': started.enter_context(_trainer(name, {})),
      'with': started.enter_context(_trainer(name, TUNABLE)),
    }
    times = timing.in_turn(works, repeats)
  speeds = {key: num_examples / float(np.median(of)) for key, of in times.items()}
  return speeds['without'], speeds['with'], timing.ratio(times, 'without', 'with')


@contextlib.contextmanager
def _trainer(name: str, variables: dict[str, str]) -> Iterator[Callable[[], None]]:
  """Starts a program that trains for so many steps each time that the function is called."""
  program = subprocess.Popen(
    [sys.executable, '-m', 'tests.benchmarks.huge_pages', TRAIN, name],
    env=os.environ | variables | {'JAX_PLATFORMS': 'cpu'},
    stdin=subprocess.PIPE,
    stdout=subprocess.PIPE,
    text=True,
  )

  def train() -> None:
    print(TRAIN, file=program.stdin, flush=True)
    if not program.stdout.readline():
      raise RuntimeError(f'the program that trains {name} ended')

  with program:
    yield train
    program.stdin.close()


def _train_when_told(name: str) -> None:
  with tempfile.TemporaryDirectory() as temporary:
    run = loop.prepared(loop.SIZES[name], epath.Path(temporary) / 'prepared')
    loop.predict(run)
    train = loop.distillation(run)['bare']
    for _ in sys.stdin:
      train()
      print('done', flush=True)


def main() -> None:
  if sys.argv[1:2] == [TRAIN]:
    _train_when_told(sys.argv[2])
    return
  table = Table('model', 'images/s', 'with huge pages', 'ratio of times')
  for name in MODELS:
    without, with_pages, ratio = measure(name, timing.REPEATS)
    table.add_row(name, f'{without:,.0f}', f'{with_pages:,.0f}', f'{ratio:.2f}')
  progress.console.print(table)


if __name__ == '__main__':
  main()
