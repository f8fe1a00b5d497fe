"""What the loop, the store and the planes of the analysis cost: python -m tests.benchmarks

Every number is a ratio or a rate from this one run on this machine, the median of several repeats.
"""

import pathlib
import tempfile
import time
from collections.abc import Callable
from functools import partial

import jax
import numpy as np
from etils import epath
from ml_collections import ConfigDict
from rich.table import Table

from configs import cifar_resnet
from kdjax import data, losses, models, optimizers, progress, steps, training, views
from kdjax.inputs import Inputs
from kdjax.predictions import StoredTeacher
from kdjax.store import PredictionStore
from tests.benchmarks import planes

REPEATS, NUM_EXAMPLES, BATCH, CLASSES = 3, 2000, 128, 10
NUM_STEPS = {'lenet': 300, 'resnet': 12}  # long enough for what a whole training pays once


def seconds(work: Callable[[], None]) -> float:
  start = time.perf_counter()
  work()
  return time.perf_counter() - start


def student_job(config: ConfigDict, num_steps: int, folder: epath.Path):
  """A student of random images and predictions: (its step, its initial state, inputs, teacher)."""
  rng = np.random.RandomState(0)
  images = rng.randint(0, 256, (NUM_EXAMPLES, 32, 32, 3)).astype(np.uint8)
  split = data.Split(images, rng.randint(0, CLASSES, NUM_EXAMPLES).astype(np.int32))
  view = views.make_view(('crop', 'flip'), config.augmentation)
  inputs = Inputs(split, view, seed=0, num_views=2)
  store = PredictionStore(folder)
  store.reserve('distillation', (5, 2, NUM_EXAMPLES, CLASSES), 'float16')
  for member in range(5):
    for number in range(2):
      logits = rng.randn(NUM_EXAMPLES, CLASSES).astype(np.float32)
      store.write('distillation', member, number, logits)
  model = models.build(config.model, CLASSES)
  optimizer = optimizers.make_optimizer(config.student, num_steps)
  step = steps.parallel(
    partial(
      steps.student_step,
      model=model,
      optimizer=optimizer,
      view=view,
      loss=losses.LOSSES['kl'],
      temperature=lambda step: 4.0,
      alpha=0.0,
    ),
    num_sharded=2,
    donate=True,
  )
  variables = models.init(model, jax.random.key(0), (32, 32, 3))

  def init() -> steps.State:
    return steps.init_state(variables, optimizer)

  return step, init, inputs, StoredTeacher(store, 5)


def loop_overhead(name: str, depth: int) -> tuple[str, str, str]:
  """Examples per second of `training.fit` with everything, against the step on one resident batch."""
  config = cifar_resnet.get_config()
  config.model.name = name
  config.model.depth = depth
  num_steps = NUM_STEPS[name]
  with tempfile.TemporaryDirectory() as temporary:
    folder = epath.Path(temporary)
    step, init, inputs, teacher = student_job(config, num_steps, folder / 'store')

    def batches(start: int):
      for batch in inputs.training(0, BATCH, num_steps, start):
        yield batch, teacher.batch('distillation', batch), 0

    resident = jax.device_put(next(batches(0)))

    def bare():
      state = steps.replicate(init())
      for _ in range(num_steps):
        state, metrics = step(state, *resident)
      jax.block_until_ready(metrics)

    def whole(repeat: int):
      plan = training.make_plan(
        num_steps,
        BATCH,
        NUM_EXAMPLES,
        num_logs=4,
        num_evals=1,
        num_checkpoints=1,
        keep_checkpoints=(),
      )
      training.fit(
        folder / f'student_{repeat}',
        name,
        plan,
        like=jax.eval_shape(init),
        init=init,
        step=step,
        inputs=batches,
        evaluate=lambda state: {},
        learning_rate=lambda i: 0.0,
      )

    bare()  # compiles
    whole(0)
    times = [(seconds(bare), seconds(partial(whole, i + 1))) for i in range(REPEATS)]
  ratio = float(np.median([with_everything / alone for alone, with_everything in times]))
  speed = num_steps * BATCH / float(np.median([alone for alone, _ in times]))
  return (f'{name}-{depth}' if name == 'resnet' else name, f'{speed:,.0f}', f'{ratio:.3f}')


def store_throughput() -> tuple[float, float, float]:
  """MB/s written and read, of float32 logits in and out, and bytes per stored prediction."""
  logits = np.random.RandomState(0).randn(50_000, 100).astype(np.float32)
  writes, reads = [], []
  with tempfile.TemporaryDirectory() as temporary:
    store = PredictionStore(epath.Path(temporary))
    store.reserve('distillation', (1, REPEATS, *logits.shape), 'float16')
    for view in range(REPEATS):
      writes.append(seconds(partial(store.write, 'distillation', 0, view, logits)))
    for view in range(REPEATS):
      reads.append(seconds(partial(store.read, 'distillation', [0], view)))
    size = sum(p.stat().st_size for p in pathlib.Path(temporary).rglob('*') if p.is_file())
  megabytes = logits.nbytes / 1e6
  return (
    megabytes / float(np.median(writes)),
    megabytes / float(np.median(reads)),
    size / (REPEATS * len(logits)),
  )


def main() -> None:
  table = Table(title=f'Distillation on {jax.device_count()} x {jax.devices()[0].device_kind}')
  for heading in ('model', 'bare step, examples/s', 'whole loop / bare step, time'):
    table.add_column(heading, justify='right')
  for name, depth in (('lenet', 20), ('resnet', 20)):
    table.add_row(*loop_overhead(name, depth))
  progress.console.print(table)
  written, read, size = store_throughput()
  progress.console.print(
    f'store, float16, 100 classes: writes {written:,.0f} MB/s and reads {read:,.0f} MB/s of float32 '
    f'log-probabilities; {size:.0f} bytes for each prediction'
  )
  for norm in ('layer', 'batch'):
    ratio = planes.overhead_of_resnet20(norm)
    progress.console.print(
      f'plane of {planes.RESOLUTION} x {planes.RESOLUTION} points, ResNet-20 with {norm} norm: '
      f'{ratio:.2f} times its bare forward passes'
    )


if __name__ == '__main__':
  main()
