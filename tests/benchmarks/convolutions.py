"""The 3x3 convolutions of a ResNet-20 in XLA and in PyTorch: python -m tests.benchmarks.convolutions

    pip install -r tests/benchmarks/requirements.txt

Nearly all of a step's time goes into them, so that this is why the steps of `against_torch` take what they
take. XLA's gradient of the kernel comes twice: as JAX has it, and in parts, as the models do (`convolve`).
"""

import os
from collections.abc import Callable
from functools import partial

import jax
import numpy as np
import torch
from rich.table import Table

from kdjax.models.convolution import convolve
from kdjax.runtime import progress
from tests.benchmarks import timing

BATCH = 128
STAGES = ((32, 16), (16, 32), (8, 64))  # pixels a side, filters
CALLS = 5  # in each time that is taken
OPTIONS = {'dimension_numbers': ('NHWC', 'HWIO', 'NHWC')}


def works(side: int, filters: int) -> dict[str, Callable[[], object]]:
  """'<pass>, <library>' of one stage's convolution, CALLS times."""
  rng = np.random.default_rng(0)
  x_BHWC, cotangent_BHWC = rng.standard_normal((2, BATCH, side, side, filters), np.float32)
  kernel = rng.standard_normal((3, 3, filters, filters), np.float32)
  plain = lambda x, k: jax.lax.conv_general_dilated(x, k, (1, 1), 'SAME', **OPTIONS)
  ours = lambda x, k: convolve(x, k, (1, 1), 'SAME', **OPTIONS)

  def transposed(convolved: Callable, x, k, cotangent):
    _, transpose = jax.vjp(convolved, x, k)
    return transpose(cotangent)

  of_x = lambda convolved: lambda *primals: transposed(convolved, *primals)[0]
  of_kernel = lambda convolved: lambda *primals: transposed(convolved, *primals)[1]
  arrays = jax.device_put((x_BHWC, kernel, cotangent_BHWC))
  found = {
    'forward, XLA': partial(jax.jit(plain), *arrays[:2]),
    'gradient of the input, XLA': partial(jax.jit(of_x(plain)), *arrays),
    'gradient of the kernel, XLA': partial(jax.jit(of_kernel(plain)), *arrays),
    'gradient of the kernel, in parts, XLA': partial(jax.jit(of_kernel(ours)), *arrays),
  }
  x, cotangent = (torch.tensor(a.transpose(0, 3, 1, 2).copy()) for a in (x_BHWC, cotangent_BHWC))
  weight = torch.tensor(kernel.transpose(3, 2, 0, 1).copy())
  grad = partial(torch.ops.aten.convolution_backward, cotangent, x, weight, None, [1, 1], [1, 1])
  grad = partial(grad, [1, 1], False, [0, 0], 1)
  found |= {
    'forward, PyTorch': lambda: torch.nn.functional.conv2d(x, weight, padding=1),
    'gradient of the input, PyTorch': lambda: grad([True, False, False]),
    'gradient of the kernel, PyTorch': lambda: grad([False, True, False]),
  }
  return {name: partial(_repeated, work) for name, work in found.items()}


def _repeated(work: Callable[[], object]) -> list:
  return jax.block_until_ready([work() for _ in range(CALLS)])


def measure(repeats: int) -> dict[str, dict[int, float]]:
  """GFLOP/s of each work, by the number of filters."""
  found: dict[str, dict[int, float]] = {}
  for side, filters in STAGES:
    operations = CALLS * 2 * BATCH * side**2 * 9 * filters**2
    for name, times in timing.in_turn(works(side, filters), repeats).items():
      found.setdefault(name, {})[filters] = operations / float(np.median(times)) / 1e9
  return found


def main() -> None:
  torch.set_num_threads(len(os.sched_getaffinity(0)))
  progress.setup_logging()
  table = Table(title=f'GFLOP/s of 3x3 convolutions, batch {BATCH}, float32')
  table.add_column('')
  for side, filters in STAGES:
    table.add_column(f'{filters} filters, {side} x {side}', justify='right')
  for name, speeds in measure(timing.REPEATS).items():
    table.add_row(name, *(f'{speeds[filters]:.0f}' for _, filters in STAGES))
  progress.console.print(table)


if __name__ == '__main__':
  main()
