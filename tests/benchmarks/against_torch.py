"""Distillation against the same job in eager PyTorch: python -m tests.benchmarks.against_torch

    pip install -r tests/benchmarks/requirements.txt

A ResNet-20 student from a teacher ensemble, CIFAR-shaped random images, a fresh augmentation of every
example in every epoch, SGD with Nesterov momentum, τ² KL at a temperature. PyTorch runs the teachers for
every batch (`torch_online`). kdjax runs them once, for as many views as there are epochs, and stores what
they say; then it trains each student against the store with all that its loop does: views, store, metrics,
logs, checkpoints. So with E epochs of N examples and S students,

    kdjax   = (predict and store E x N, with m members) + S x (distil over E x N)
    PyTorch =  S x (distil over E x N with m members beside it)

All parts are timed in turn, several times over; a ratio is the median over the rounds. Both sides have the
same cores. On a GPU both use it; two runtimes share its memory.
"""

import argparse
import dataclasses
import math
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from functools import partial

os.environ.setdefault(
  'XLA_PYTHON_CLIENT_PREALLOCATE', 'false'
)  # PyTorch needs memory of the GPU too

import jax
import numpy as np
import torch
from etils import epath
from rich.table import Table

from kdjax.runtime import progress
from kdjax.stages import predictions, teachers
from kdjax.stages.experiment import Experiment
from tests.benchmarks import loop, synthetic, timing, torch_online

DEPTH, WIDTH, BATCH, CLASSES, TEMPERATURE = 20, 16, 128, 10, 4.0
STUDENTS = (1, 5)  # of one ensemble, as in a sweep over τ
RECIPE = 300 * 50_000  # examples that the paper's CIFAR student sees


@dataclasses.dataclass(frozen=True)
class Settings:
  """The size of a measurement. The number of examples is a multiple of the batch size."""

  num_members: int = 5
  num_examples: int = 1024 if torch_online.device().type == 'cpu' else 20 * 1024
  num_epochs: int = 2  # and views
  predicted: int = BATCH if torch_online.device().type == 'cpu' else 4 * BATCH  # by kdjax at once
  num_workers: int = 2 if torch_online.device().type == 'cpu' else 8  # of PyTorch's data loader
  num_cores: int = len(os.sched_getaffinity(0))  # that either side may use
  repeats: int = timing.REPEATS
  channels_last: bool = False  # PyTorch's layout; its default is channels first
  dtype: str = 'float32'  # or 'bfloat16', of what layers compute, on both sides

  @property
  def seen(self) -> int:
    """Examples that one student sees."""
    return self.num_epochs * self.num_examples

  @property
  def num_steps(self) -> int:
    return self.seen // BATCH


@dataclasses.dataclass(frozen=True)
class Row:
  """One piece of work on both sides, in examples that a student sees (for predictions: by all members)."""

  work: str
  kdjax_per_second: float
  torch_per_second: float
  ratio: (
    float  # of PyTorch's time to kdjax's, the median over the rounds; NaN if it has no such part
  )


def measure(settings: Settings) -> list[Row]:
  """The bare steps, and one and five students with everything."""
  if torch_online.device().type != {'gpu': 'cuda'}.get(jax.default_backend(), 'cpu'):
    raise RuntimeError(f'JAX has {jax.default_backend()}, PyTorch {torch_online.device().type}')
  torch.set_num_threads(settings.num_cores)
  torch.backends.cudnn.benchmark = True
  with tempfile.TemporaryDirectory() as temporary:
    folder = epath.Path(temporary)
    run = _prepared(settings, folder / 'run')
    times = timing.in_turn(_works(settings, run, folder), settings.repeats)
    times['predictions'] = times['predictions'] * share_of_views(_new_run(settings, folder / 'run'))
  rows = [_row('bare step', times['bare step'], times['torch bare step'], settings.seen)]
  for count in STUDENTS:
    kdjax_times, torch_times = totals(times, count)
    name = 'one student' if count == 1 else f'{count} students'
    rows.append(_row(name, kdjax_times, torch_times, count * settings.seen))
  for work in ('predictions', 'distillation'):
    rows.append(_row(work, times[work], np.full(settings.repeats, np.nan), settings.seen))
  return rows


def totals(times: Mapping[str, np.ndarray], num_students: int) -> tuple[np.ndarray, np.ndarray]:
  """Seconds of kdjax and of PyTorch for so many students, for each round."""
  once, each = times['predictions'], times['distillation']
  return once + num_students * each, num_students * times['torch']


def _row(work: str, kdjax_times: np.ndarray, torch_times: np.ndarray, num_examples: int) -> Row:
  speeds = (num_examples / float(np.median(times)) for times in (kdjax_times, torch_times))
  return Row(work, *speeds, float(np.median(torch_times / kdjax_times)))


def share_of_views(run: Experiment) -> float:
  """The share of the computed predictions that are views to be distilled.

  The rest is of the splits as they are (of 'test' twice: to tell what storing costs), for the evaluation,
  which is no part of the comparison. Among the views of hundreds of epochs it is little.
  """
  times, batch = predictions.views_of(run) | {'test': 2}, run.config.evaluation.batch_size
  computed = {
    name: count * batch * math.ceil(len(run.data.inputs[name].split) / batch)
    for name, count in times.items()
  }
  return computed['distillation'] / sum(computed.values())


def _works(
  settings: Settings, run: Experiment, folder: epath.Path
) -> dict[str, Callable[[], object]]:
  job = torch_online.Distillation(
    run.data.splits['train'].inputs_N,
    CLASSES,
    settings.num_members,
    width=WIDTH,
    batch_size=BATCH,
    num_workers=settings.num_workers,
    memory_format=torch.channels_last if settings.channels_last else torch.contiguous_format,
    dtype=getattr(torch, settings.dtype),
  )
  parameters = jax.tree.leaves(run.student.abstract_state.params)
  assert sum(x.size for x in parameters) == job.num_parameters
  ours = loop.distillation(run)
  return {
    'predictions': _predictions(settings, run, folder / 'predicted'),
    'distillation': ours['whole'],
    'torch': partial(job.train, settings.num_epochs, TEMPERATURE),
    'bare step': ours['bare'],
    'torch bare step': partial(job.steps, settings.num_steps, TEMPERATURE),
  }


def _new_run(settings: Settings, workdir: epath.Path) -> Experiment:
  config = synthetic.config_of(
    'resnet',
    depth=DEPTH,
    model__width=WIDTH,
    model__dtype=settings.dtype,
    teacher__num_members=settings.num_members,
    teacher__batch_size=BATCH,
    predictions__num_views=settings.num_epochs,
    student__num_steps=settings.num_steps,
    student__batch_size=BATCH,
    student__temperature=TEMPERATURE,
    student__keep_checkpoints=(),
    evaluation__batch_size=settings.predicted,
    training__num_logs=2,
    training__num_evals=1,
    training__num_checkpoints=1,
  )
  config.teacher.num_epochs = config.student.num_epochs = None
  config.teacher.num_steps = 1
  # Evaluation is no part of the comparison, so that the test set is as small as can be.
  return synthetic.run_of(config, workdir, settings.num_examples, num_test=16)


def _prepared(settings: Settings, workdir: epath.Path) -> Experiment:
  """A run with teachers, trained for one step, and their predictions."""
  run = _new_run(settings, workdir)
  teachers.STAGE.run(run)
  predictions.STAGE.run(run)
  return run


def _predictions(settings: Settings, run: Experiment, workdir: epath.Path) -> Callable[[], None]:
  """The whole stage, of the same teachers."""
  predicted = _new_run(settings, workdir)
  shutil.copytree(run.workdir / 'teachers', workdir / 'teachers')

  def predict() -> None:
    if predicted.folders.predictions.exists():
      predicted.folders.predictions.rmtree()
    assert predictions.STAGE.run(predicted)

  return predict


def _settings(arguments: Sequence[str] | None = None) -> Settings:
  parser = argparse.ArgumentParser(prog='python -m tests.benchmarks.against_torch')
  for field in dataclasses.fields(Settings):
    if field.type is bool:
      parser.add_argument(f'--{field.name}', action='store_true')
    else:
      parser.add_argument(f'--{field.name}', type=field.type, default=field.default)
  return Settings(**vars(parser.parse_args(arguments)))


def main() -> None:
  settings = _settings()
  # Before XLA makes its threads, which is when JAX is first asked for its devices.
  os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: settings.num_cores])
  progress.setup_logging()
  device = f'{jax.local_device_count()} x {jax.devices()[0].device_kind}'
  table = Table(
    title=f'{settings.num_members} ResNet-20, {settings.dtype}, on {device} ({settings.num_cores} cores)',
    caption=(
      f'{settings.num_epochs} epochs and views of {settings.num_examples} examples, batch {BATCH}; '
      f'median of {settings.repeats}; hours of 300 epochs of 50,000 examples, for each student, computed'
    ),
  )
  headings = ('kdjax, examples/s', 'PyTorch', 'kdjax, hours', 'PyTorch', 'PyTorch / kdjax, time')
  table.add_column('')
  for heading in headings:
    table.add_column(heading, justify='right')
  for row in measure(settings):
    speeds = (row.kdjax_per_second, row.torch_per_second)
    cells = [f'{speed:,.0f}' for speed in speeds]
    cells += [f'{RECIPE / speed / 3600:.1f}' for speed in speeds]
    cells.append(f'{row.ratio:.2f}')
    table.add_row(row.work, *('' if cell == 'nan' else cell for cell in cells))
  progress.console.print(table)


if __name__ == '__main__':
  main()
