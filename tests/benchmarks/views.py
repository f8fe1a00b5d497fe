"""Views of a batch, against the same augmentations in one expression: python -m tests.benchmarks.views

XLA merges a chain of augmentations into one expression. Where an augmentation reads pixels more than once,
as rotation and colours do, the chain before it is computed as often, and the factors multiply. A view has a
loop for each such augmentation, which no compiler merges with what follows; those that only move pixels have
none, and move them as bytes (`views.make_view`).
"""

import jax
import numpy as np
from rich.table import Table

from configs.paper import recipes
from kdjax.config import base
from kdjax.data import augmentations, views
from kdjax.runtime import progress
from tests.benchmarks import synthetic, timing

BATCH, SIDE = 128, 32
CALLS = 5  # that are timed together
CHAINS = ('baseline', 'rotation', 'vertical flip', 'colour jitter', 'combined')


def works(names: tuple[str, ...]) -> dict:
  """The images of a batch by the view of these names, and by one expression, as functions."""
  config = base.get_config().augmentation
  batch = jax.device_put(synthetic.batch(BATCH, SIDE))

  def merged(seed, example):
    image_HWC, label = augmentations.unit_cube(example['inputs']), example['labels']
    for name in names:
      image_HWC, label = views.augmented(
        name, config, seed, image_HWC, label, example['indices'], example['views']
      )
    return image_HWC, label

  sides = {
    'loops': views.make_view(names, config),
    'merged': jax.vmap(merged, in_axes=(None, 0)),
  }
  compiled = {side: jax.jit(view) for side, view in sides.items()}
  return {side: lambda view=view: view(0, batch)[0] for side, view in compiled.items()}


def measure(names: tuple[str, ...], repeats: int) -> dict[str, float]:
  """Milliseconds for a batch, by 'loops' and 'merged', and the 'ratio', merged over loops."""
  calls = {
    side: lambda work=work: jax.block_until_ready([work() for _ in range(CALLS)])
    for side, work in works(names).items()
  }
  times = timing.in_turn(calls, repeats)
  found = {side: 1e3 * float(np.median(of)) / CALLS for side, of in times.items()}
  return found | {'ratio': timing.ratio(times, 'merged', 'loops')}


def main() -> None:
  progress.setup_logging()
  table = Table(title=f'{BATCH} images of {SIDE} x {SIDE}, on {jax.devices()[0].device_kind}')
  table.add_column('distillation data')
  for heading in ('ms', 'ms, merged', 'merged over loops'):
    table.add_column(heading, justify='right')
  for chain in CHAINS:
    names = recipes.DISTILLATION_DATA[chain].get('predictions.augmentation', ('crop', 'flip'))
    found = measure(names, timing.REPEATS)
    table.add_row(chain, *(f'{found[key]:.1f}' for key in ('loops', 'merged', 'ratio')))
  progress.console.print(table)


if __name__ == '__main__':
  main()
