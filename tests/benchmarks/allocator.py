"""How the C library keeps memory, and the speed of training: python -m tests.benchmarks.allocator

On a CPU, XLA takes the buffers of a step from the C library and gives them back. By default the kernel hands large
ones out again in pages of 4 kB, which it clears one by one. Variables of glibc change that, and no result: with huge
pages they are of 2 MB (glibc 2.35 or later, transparent huge pages not set to 'never'); with kept memory they stay
with the process. Then all threads share one arena and wait for each other, which costs more than it saves in steps
of a few milliseconds. The variables are read before a program starts: so there are several programs, which take turns.
"""

import contextlib
import dataclasses
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

HUGE = {'GLIBC_TUNABLES': 'glibc.malloc.hugetlb=1'}
KEPT = {'MALLOC_ARENA_MAX': '1', 'MALLOC_MMAP_MAX_': '0', 'MALLOC_TRIM_THRESHOLD_': '9000000000'}
SETTINGS = {'default': {}, 'huge pages': HUGE, 'kept': KEPT, 'kept, huge pages': KEPT | HUGE}
NUM_STEPS = {'LeNet-5': 400, 'ResNet-20': 16}  # of a training
TRAIN = 'train'


def measure(name: str, repeats: int) -> dict[str, tuple[float, float]]:
  """Examples per second by setting, and the ratio of the times, of the default over the setting."""
  num_examples = NUM_STEPS[name] * loop.BATCH
  with contextlib.ExitStack() as started:
    works = {
      setting: started.enter_context(_trainer(name, variables))
      for setting, variables in SETTINGS.items()
    }
    times = timing.in_turn(works, repeats)
  return {
    setting: (num_examples / float(np.median(of)), timing.ratio(times, 'default', setting))
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
    size = dataclasses.replace(loop.SIZES[name], steps_on_cpu=NUM_STEPS[name])
    run = loop.prepared(size, epath.Path(temporary) / 'prepared')
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
  for name in NUM_STEPS:
    for setting, (speed, ratio) in measure(name, timing.REPEATS).items():
      table.add_row(name, setting, f'{speed:,.0f}', f'{ratio:.2f}')
  progress.console.print(table)


if __name__ == '__main__':
  main()
