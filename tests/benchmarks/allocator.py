"""How the C library keeps memory, and the speed of training: python -m tests.benchmarks.allocator

Three programs take turns: with glibc as it is, with the memory kept that is freed
(`startup.keep_freed_memory`, as launch.py does), and besides with huge pages, which only a variable can ask for
before the program starts (glibc 2.35 or later, transparent huge pages not set to 'never'). Nothing else
changes, and no result.
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

SETTINGS = {
  'as it is': {'MALLOC_ARENA_MAX': '0'},
  'kept': {},
  'kept, huge pages': {'GLIBC_TUNABLES': 'glibc.malloc.hugetlb=1'},
}
MODELS = ('LeNet-5', 'ResNet-20')
TRAIN = 'train'


def measure(name: str, repeats: int) -> dict[str, tuple[float, float]]:
  """Examples per second by setting, and the ratio of the times, of glibc as it is over the setting."""
  num_examples = loop.SIZES[name].num_steps * loop.BATCH
  with contextlib.ExitStack() as started:
    works = {
      setting: started.enter_context(_trainer(name, variables))
      for setting, variables in SETTINGS.items()
    }
    times = timing.in_turn(works, repeats)
  return {
    setting: (num_examples / float(np.median(of)), timing.ratio(times, 'as it is', setting))
    for setting, of in times.items()
  }


@contextlib.contextmanager
def _trainer(name: str, variables: dict[str, str]) -> Iterator[Callable[[], None]]:
  """Starts a program that trains for so many steps each time that the function is called."""
  program = subprocess.Popen(
    [sys.executable, '-m', 'tests.benchmarks.allocator', TRAIN, name],
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
  table = Table('model', 'memory', 'images/s', 'ratio of times')
  for name in MODELS:
    for setting, (speed, ratio) in measure(name, timing.REPEATS).items():
      table.add_row(name, setting, f'{speed:,.0f}', f'{ratio:.2f}')
  progress.console.print(table)


if __name__ == '__main__':
  main()
