"""Members trained on a device each, against one after the other on all: python -m tests.benchmarks.members

On eight CPU devices, in a process of its own, since they are made before JAX starts. They share the cores,
so that what is compared is the cost of small batches and of waiting for each other, not of the devices.
"""

import json
import os
import subprocess
import sys
from functools import partial

import jax
import numpy as np
from rich.table import Table

from kdjax import models
from kdjax.data import views
from kdjax.runtime import progress
from kdjax.train import devices, optimizers, steps
from tests.benchmarks import synthetic, timing

NUM_DEVICES, BATCH, REPEATS = 8, 128, 3
CASES = {'lenet': (20, 10), 'resnet': (8, 2)}  # depth, steps of each member
MEASURE = 'measure'


def rows() -> list[tuple[str, float, float, float]]:
  """(model, examples per second in turn, in parallel, and the ratio of the times) for each case."""
  flags = {'XLA_FLAGS': f'--xla_force_host_platform_device_count={NUM_DEVICES}'}
  printed = subprocess.run(
    [sys.executable, '-m', 'tests.benchmarks.members', MEASURE],
    env=os.environ | flags | {'JAX_PLATFORMS': 'cpu'},
    stdout=subprocess.PIPE,
    text=True,
    check=True,
  ).stdout
  return [tuple(row) for row in json.loads(printed)]


def measure(name: str, depth: int, num_steps: int) -> tuple[str, float, float, float]:
  """One row, on the devices of this process: as many members as there are devices."""
  config = synthetic.config_of(name, depth)
  model, members = models.build(config.model, 10), jax.local_devices()  # one on each
  optimizer = optimizers.make_optimizer(config.teacher, num_steps, 0)
  view = views.make_view(config.teacher.augmentation, config.augmentation)
  step = partial(steps.teacher_step, model=model, optimizer=optimizer, view=view)
  on_all = devices.parallel(step, donate=True)
  on_one = [devices.parallel(step, donate=True, device=device) for device in members]
  batch = devices.shard(synthetic.batch(BATCH))
  init = jax.device_get(
    steps.init_state(models.init(model, jax.random.key(0), (32, 32, 3)), optimizer)
  )

  def in_turn() -> None:
    for _ in members:
      state = devices.replicate(init)
      for _ in range(num_steps):
        state, metrics = on_all(state, batch, 0)
      jax.block_until_ready(metrics)

  def in_parallel() -> None:
    states = [devices.replicate(init, device) for device in members]
    for _ in range(num_steps):
      dispatched = [
        one(state, devices.for_one_device(batch), 0)
        for one, state in zip(on_one, states, strict=True)
      ]
      states = [state for state, _ in dispatched]
    jax.block_until_ready(dispatched)

  times = timing.in_turn({'in turn': in_turn, 'in parallel': in_parallel}, REPEATS)
  num_examples = len(members) * num_steps * BATCH
  speeds = {key: num_examples / float(np.median(of)) for key, of in times.items()}
  ratio = timing.ratio(times, 'in turn', 'in parallel')
  label = f'{name}-{depth}' if name == 'resnet' else name
  return label, speeds['in turn'], speeds['in parallel'], ratio


def main() -> None:
  if sys.argv[1:] == [MEASURE]:
    print(json.dumps([measure(name, *of) for name, of in CASES.items()]))
    return
  table = Table(title=f'{NUM_DEVICES} members on {NUM_DEVICES} CPU devices, {os.cpu_count()} cores')
  for heading in ('model', 'in turn, examples/s', 'in parallel, examples/s', 'times as fast'):
    table.add_column(heading, justify='right')
  for label, *speeds, ratio in rows():
    table.add_row(label, *[f'{speed:,.0f}' for speed in speeds], f'{ratio:.2f}')
  progress.console.print(table)


if __name__ == '__main__':
  main()
