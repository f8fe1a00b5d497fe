"""The cost of one call of a mapped step beside its work: python -m tests.benchmarks.dispatch

The step adds one to each array of its state, which is donated and has as many arrays as a training's, but
one number in each. So nearly all of a call is dispatch: by `jax.jit` on one device, and by each of the ways
to map of `kdjax/train/devices.py`.
"""

from collections.abc import Callable
from functools import partial
from unittest import mock

import jax
import numpy as np
from rich.table import Table

from kdjax import models
from kdjax.runtime import progress
from kdjax.train import devices, optimizers, steps
from tests.benchmarks import synthetic, timing

CALLS, REPEATS = 300, 9
BATCH = 8


def states() -> dict[str, dict]:
  """A small state, and one with the arrays of a ResNet-20 that is trained with momentum, by name."""
  config = synthetic.config_of('resnet', 20)
  model = models.build(config.model, 10)
  optimizer = optimizers.make_optimizer(config.teacher, 1, 0)
  resnet = jax.eval_shape(
    lambda: steps.init_state(models.init(model, jax.random.key(0), (32, 32, 3)), optimizer)
  )
  small = {'weights': resnet.step, 'bias': resnet.step}
  return {
    name: jax.tree.map(lambda _: np.zeros((), np.float32), state)
    for name, state in {'small': small, 'ResNet-20': resnet}.items()
  }


def works(state: dict, calls: int) -> dict[str, Callable[[], object]]:
  """So many calls, each on what the one before gave, by the way to map."""
  jitted = jax.jit(_step, donate_argnums=0)
  found = {'jit': partial(_calls, jitted, jax.device_put, state, calls)}
  for name in devices.MAPS:
    with mock.patch.object(devices, 'MAP', name):
      mapped = devices.parallel(_step, donate=True)
    found[name] = partial(_calls, mapped, devices.replicate, state, calls)
  return found


def _step(state: dict, batch: dict, seed: int) -> dict:
  del batch, seed
  return jax.tree.map(lambda x: x + 1, state)


def _calls(step: Callable, place: Callable, state: dict, calls: int) -> dict:
  placed, batch = place(state), devices.shard({'indices': np.arange(BATCH, dtype=np.int32)})
  for i in range(calls):
    placed = step(placed, batch, i)
  return jax.block_until_ready(placed)


def main() -> None:
  progress.setup_logging()
  device = f'{jax.local_device_count()} x {jax.devices()[0].device_kind}'
  table = Table(title=f'Microseconds a call, JAX {jax.__version__}, on {device}')
  for heading in ('state', 'arrays', 'jit', *devices.MAPS):
    table.add_column(heading, justify='left' if heading == 'state' else 'right')
  for name, state in states().items():
    times = timing.in_turn(works(state, CALLS), REPEATS)
    cells = (f'{1e6 * float(np.median(of)) / CALLS:,.0f}' for of in times.values())
    table.add_row(name, str(len(jax.tree.leaves(state))), *cells)
  progress.console.print(table)


if __name__ == '__main__':
  main()
