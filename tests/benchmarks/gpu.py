"""The measurements on a GPU that the README reports, in one command: python -m tests.benchmarks.gpu

Parts run one after the other, each in a process of its own, since XLA reads its flags once:

    device      what there is
    stages      the stages' loops over the bare step and forward pass
    torch       one and five students against eager PyTorch (tests/benchmarks/requirements.txt)
    steps       a student's step, one and ten a call, in each of SETTINGS
    bfloat16    the same in bfloat16
    students    several students at once
    larger      the same of a ResNet-20

Each row is printed, and appended to --out, as soon as it is known: what was measured is there whenever the
program is stopped. After --minutes the part at work is ended, and the table says which parts are missing.
Without a GPU it says what it would do; with --tiny it does all of it at the smallest size, on a CPU too.
"""

import argparse
import csv
import dataclasses
import importlib.util
import itertools
import json
import os
import pathlib
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial

import jax
from rich.table import Table

from kdjax.runtime import progress
from tests.benchmarks import loop, students

_BUFFERS = '--xla_gpu_enable_command_buffer=+CONVOLUTION,+WHILE,+CONDITIONAL'
_CONCURRENT = '--xla_gpu_command_buffer_scheduling_mode=CONCURRENT'
# XLA_FLAGS by name.
SETTINGS = {
  'XLA as it is': '',
  'graphs': _BUFFERS,
  'concurrent graphs': f'{_BUFFERS} {_CONCURRENT}',
  # launch.py sets the same flags.
  'concurrent, deterministic': f'{_BUFFERS} {_CONCURRENT} --xla_gpu_deterministic_ops=true',
}
MINUTES, REPEATS = 10, 3
NO_TORCH = 'PyTorch is not installed'
STOPPED = 'the time was over'
PROGRAM = ('-m', 'tests.benchmarks.gpu')


@dataclasses.dataclass(frozen=True)
class Row:
  """One number. What is missing has none, and `work` says why."""

  part: str
  setting: str
  model: str = ''
  work: str = ''
  images_per_second: float | None = None
  ratio: float | None = None  # of times
  over: str = ''  # what the ratio is of


FIELDS = tuple(field.name for field in dataclasses.fields(Row))


@dataclasses.dataclass(frozen=True)
class Part:
  """The measurements of one process."""

  name: str
  setting: str
  rows: Callable[['Part', bool], Iterator[Row]]  # (part, tiny) → its rows

  def row(self, *fields) -> Row:
    return Row(self.name, self.setting, *fields)


def _device(part: Part, tiny: bool) -> Iterator[Row]:
  del tiny
  yield part.row(jax.devices()[0].device_kind, f'JAX {jax.__version__}, {jax.default_backend()}')


def _stages(part: Part, tiny: bool) -> Iterator[Row]:
  if tiny:
    loop.NUM_MEMBERS, loop.PREDICTED = 1, 64
    small = {'steps_on_cpu': 4, 'steps_elsewhere': 20, 'num_points': 2, 'num_examples': 256}
    loop.SIZES = {'LeNet-5': dataclasses.replace(loop.SIZES['LeNet-5'], **small)}
  else:
    loop.SIZES = {name: loop.SIZES[name] for name in ('ResNet-20', 'LeNet-5')}
  for name in loop.SIZES:
    for work in ('distillation', 'prediction'):
      row = loop.measured(name, work, 1 if tiny else REPEATS)
      over = 'the loop / the bare step'
      yield part.row(name, work, row.examples_per_second, row.ratio, over)


def _torch(part: Part, tiny: bool) -> Iterator[Row]:
  if importlib.util.find_spec('torch') is None:
    yield part.row('', NO_TORCH)
    return
  from tests.benchmarks import against_torch, torch_online

  settings = against_torch.Settings(repeats=REPEATS)
  if tiny:
    torch_online.BLOCKS_PER_STAGE = 1
    against_torch.DEPTH, against_torch.WIDTH, against_torch.BATCH = 8, 2, 8
    settings = against_torch.Settings(
      num_members=1, num_examples=16, num_epochs=1, num_workers=0, repeats=1
    )
  for row in against_torch.measure(settings):
    ratio = row.ratio if row.ratio == row.ratio else None  # NaN: PyTorch has no such part
    model = f'ResNet-{against_torch.DEPTH}'
    over = '' if ratio is None else 'PyTorch / kdjax'
    yield part.row(model, row.work, row.kdjax_per_second, ratio, over)


def _steps(part: Part, tiny: bool, dtype: str = 'float32') -> Iterator[Row]:
  for name in ('LeNet-5',) if tiny else ('ResNet-20', 'LeNet-5'):
    for per_call in (1, _per_call(tiny)):
      settings = _settings(tiny, num_students=1, per_call=per_call, dtype=dtype)
      for row in students.measure(name, settings, ('loop',), 1 if tiny else REPEATS):
        yield part.row(name, f'student, {per_call} a call', row.images_per_second)


def _students(
  part: Part, tiny: bool, names: tuple[str, ...] = ('LeNet-5', 'ResNet-8')
) -> Iterator[Row]:
  settings = _settings(tiny, num_students=2 if tiny else 5, per_call=_per_call(tiny))
  for name in ('LeNet-5',) if tiny else names:
    for row in students.measure(name, settings, repeats=1 if tiny else REPEATS):
      work = f'{settings.num_students} students, {row.way}'
      yield part.row(name, work, row.images_per_second, row.ratio, 'a loop / this')


def _per_call(tiny: bool) -> int:
  return 2 if tiny else 10


def _settings(tiny: bool, **fields) -> students.Settings:
  small = {'num_steps': 2, 'batch_size': 8} if tiny else {'num_steps': 100}
  return students.Settings(**small, **fields)


DEVICE = Part('device', 'XLA as it is', _device)
# The most important parts come first.
PARTS = (
  Part('stages', 'graphs', _stages),
  Part('torch', 'graphs', _torch),
  *(Part('steps', setting, _steps) for setting in SETTINGS),
  Part('students', 'concurrent graphs', _students),
  Part('bfloat16', 'graphs', partial(_steps, dtype='bfloat16')),
  Part('students', 'graphs', _students),
  Part('larger', 'concurrent graphs', partial(_students, names=('ResNet-20',))),
)


def run(part: Part, tiny: bool, seconds: float, program: Sequence[str] = PROGRAM) -> Iterator[Row]:
  """The rows of a part, as its process prints them; a last one says what went wrong.

  Args:
    seconds: after which the process is ended.
    program: what Python runs, with the part's number.
  """
  if seconds <= 0:
    yield part.row('', STOPPED)
    return
  number = (DEVICE, *PARTS).index(part)
  process = subprocess.Popen(
    [sys.executable, *program, f'--part={number}', *['--tiny'] * tiny],
    # Programs that are loaded from a cache do not run as graphs.
    env={name: value for name, value in os.environ.items() if name != 'JAX_COMPILATION_CACHE_DIR'}
    | {'XLA_FLAGS': SETTINGS[part.setting]},
    stdout=subprocess.PIPE,
    stderr=subprocess.STDOUT,
    text=True,
  )
  is_over, last = threading.Event(), ''
  clock = threading.Timer(seconds, lambda: (is_over.set(), process.kill()))
  clock.start()
  try:
    for line in process.stdout:
      if line.startswith('{'):
        yield Row(**json.loads(line))
      elif line.strip():
        last = line.strip()
    status = process.wait()
  finally:
    clock.cancel()
    process.kill()
    process.wait()
  if status:
    yield part.row('', STOPPED if is_over.is_set() else f'failed: {last}')


def measure(
  first: Iterable[Row], parts: Sequence[Part], out: pathlib.Path, tiny: bool, end: float
) -> Iterator[Row]:
  """Yields each row when it is in the file: the first ones, and those of the parts.

  Args:
    end: of `time.monotonic`, when the part at work is ended.
  """
  of_parts = (run(part, tiny, end - time.monotonic()) for part in parts)
  rows = itertools.chain(
    first, itertools.chain.from_iterable(of_parts)
  )  # a part starts when it is due
  with out.open('w', newline='') as file:
    writer = csv.DictWriter(file, FIELDS)
    writer.writeheader()
    for row in rows:
      writer.writerow(dataclasses.asdict(row))
      file.flush()
      yield row


def _cells(row: Row) -> list[str]:
  speed = '' if row.images_per_second is None else f'{row.images_per_second:,.0f}'
  ratio = '' if row.ratio is None else f'{row.ratio:.2f}'
  return [row.part, row.setting, row.model, row.work, speed, ratio, row.over]


def _print(rows: list[Row]) -> None:
  table = Table(title=f'{rows[0].model}, {rows[0].work}')
  for heading in ('part', 'setting', 'model', 'work', 'images/s', 'ratio', 'of times'):
    table.add_column(heading, justify='right' if heading in ('images/s', 'ratio') else 'left')
  for row in rows[1:]:
    table.add_row(*_cells(row))
  progress.console.print(table)


def _plan() -> None:
  print('There is no GPU here. On one, this command would measure:')
  for part in PARTS:
    print(f'  {part.name}, {part.setting}')
  print('The settings are these XLA_FLAGS:')
  for name, flags in SETTINGS.items():
    print(f'  {name}: {flags or "none"}')
  print('--tiny runs all of it at the smallest size, on a CPU too.')


def main() -> None:
  parser = argparse.ArgumentParser(prog='python -m tests.benchmarks.gpu')
  parser.add_argument('--minutes', type=float, default=MINUTES)
  parser.add_argument('--out', type=pathlib.Path, default=pathlib.Path('gpu_benchmark.csv'))
  parser.add_argument('--tiny', action='store_true')
  parser.add_argument(
    '--part', type=int, help=argparse.SUPPRESS
  )  # for the processes that it starts
  arguments = parser.parse_args()
  if arguments.part is not None:
    part = (DEVICE, *PARTS)[arguments.part]
    for row in part.rows(part, arguments.tiny):
      print(json.dumps(dataclasses.asdict(row)), flush=True)
    return
  signal.signal(signal.SIGTERM, lambda *_: sys.exit('stopped'))  # and what is known is shown
  end = time.monotonic() + 60 * arguments.minutes
  first = list(run(DEVICE, arguments.tiny, end - time.monotonic()))
  if first[0].work.endswith('cpu') and not arguments.tiny:
    _plan()
    return
  rows = []
  try:
    for row in measure(first, PARTS, arguments.out, arguments.tiny, end):
      rows.append(row)
      print(*filter(None, _cells(row)), sep=' | ', flush=True)
  finally:
    _print(rows)
    print(f'The same rows are in {arguments.out}.')
  if any(row.work.startswith('failed') for row in rows):
    sys.exit(1)


if __name__ == '__main__':
  main()
