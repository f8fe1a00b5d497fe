"""The cost of a plane of the landscape over the bare forward passes that it needs.

python -m tests.benchmarks.planes --points=25 --norms=layer,batch
"""

import tempfile
from functools import partial

import jax
import numpy as np
from absl import app, flags
from etils import epath

from analysis import geometry, measure, runs
from analysis.parts import planes
from configs import digits_resnet
from kdjax import keys
from kdjax.runtime import progress
from kdjax.stages import pipeline
from kdjax.train import devices, steps
from tests.benchmarks import timing

REPEATS, RESOLUTION, NUM_EXAMPLES = 3, 25, 128

_POINTS = flags.DEFINE_integer('points', RESOLUTION, 'Points along a side of the plane.', 2)
_REPEATS = flags.DEFINE_integer('repeats', REPEATS, 'Planes, of which the median is taken.', 1)
_EXAMPLES = flags.DEFINE_integer('examples', NUM_EXAMPLES, 'Of either set, at each point.', 2)
_NORMS = flags.DEFINE_list('norms', ['layer', 'batch'], 'Of the ResNet-20: layer, batch.')


def overhead_of_resnet20(norm: str, **sizes: int) -> float:
  """The overhead for a ResNet-20 after one step: its weights cost what any others do."""
  with tempfile.TemporaryDirectory() as temporary:
    return plane_overhead(_barely_trained(norm, epath.Path(temporary)), **sizes)


def plane_overhead(
  study: runs.Study,
  resolution: int = RESOLUTION,
  repeats: int = REPEATS,
  num_examples: int = NUM_EXAMPLES,
) -> float:
  """Time of a plane of resolution² points over that of as many forward passes over the same examples.

  With BatchNorm the pass over the distillation examples gives its statistics, too. Both sides run on one
  device, and take turns row by row, so that a busy machine slows both.
  """
  axis = np.linspace(-1, 1, resolution)
  row_works = works(study, axis, num_examples)
  for work in row_works.values():
    work(axis[0])  # compiles
  ratios = []
  with progress.bar('plane', repeats * resolution, 'rows') as show:
    for repeat in range(repeats):
      times_Y2 = []
      for y in axis:
        times_Y2.append([timing.seconds(partial(row_works[side], y)) for side in ('whole', 'bare')])
        show(repeat * resolution + len(times_Y2), '')
      of_plane, of_passes = np.sum(times_Y2, axis=0)
      ratios.append(of_plane / of_passes)
  return float(np.median(ratios))


def works(study: runs.Study, axis_P: np.ndarray, num_examples: int) -> dict:
  """The works to be timed, as functions of y: the row of points (axis, y) and as many forward passes."""
  measured, variables = measure.Measure(study, num_examples), study.student()
  directions = geometry.random_directions(variables['params'], keys.numpy_rng(0, 'benchmark'))
  plane = geometry.Plane(variables['params'], *directions)
  shared = {'plane': plane, 'batch_stats': variables['batch_stats']}
  passes = _bare_passes(measured, devices.replicate(variables))

  def whole(y: float) -> None:  # a block, as in the part
    coordinates_P2 = geometry.grid_coords(axis_P, np.array([y]))
    values = measured.at(planes.build_point, shared, coordinates_P2, reestimate=True)
    measure.summary(values, seed=0)

  return {'whole': whole, 'bare': lambda y: passes(len(axis_P))}


def _barely_trained(norm: str, workdir: epath.Path) -> runs.Study:
  config = digits_resnet.get_config()
  config.model.depth, config.model.width, config.model.norm = 20, 16, norm
  config.teacher.examples = config.predictions.examples = ()
  config.teacher.num_members = config.predictions.num_views = 1
  config.evaluation.independent_seed = None
  for section in (config.teacher, config.student):
    section.num_epochs, section.num_steps = None, 1
  pipeline.run(config, workdir, ['teachers', 'predictions', 'student'])
  return runs.load(workdir)


def _bare_passes(measured: measure.Measure, variables: steps.Variables):
  """count → that many passes over all examples, which lie on the device."""
  with_statistics = measured.sets[:1] if measured.in_batch is not None else ()
  works = [
    (
      jax.jit(measured.in_batch if name in with_statistics else measured.forward),
      devices.replicate(b),
    )
    for name in measured.sets
    for b in measured.batches(name)
  ]

  def bare(count: int) -> None:
    for _ in range(count):
      jax.block_until_ready([forward(variables, batch['inputs']) for forward, batch in works])

  return bare


def main(argv: list[str]) -> None:
  del argv
  progress.setup_logging()
  sizes = {
    'resolution': _POINTS.value,
    'repeats': _REPEATS.value,
    'num_examples': _EXAMPLES.value,
  }
  for norm in _NORMS.value:
    ratio = overhead_of_resnet20(norm, **sizes)
    progress.console.print(
      f'plane of {_POINTS.value} x {_POINTS.value} points, 2 x {_EXAMPLES.value} examples, ResNet-20 '
      f'with {norm} norm: {ratio:.3f} times its bare forward passes'
    )


if __name__ == '__main__':
  app.run(main)
