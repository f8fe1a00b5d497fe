"""The cost of a plane of the landscape over the bare forward passes that it needs.

python -m tests.benchmarks.planes --points=25 --norms layer batch
"""

import argparse
import tempfile
from functools import partial

import jax
import numpy as np
from etils import epath

from analysis import geometry, measure, runs, surface
from analysis.parts import planes
from configs import digits_resnet
from kdjax import keys
from kdjax.runtime import progress
from kdjax.stages import pipeline
from kdjax.train import devices, steps
from tests.benchmarks import timing

NORMS = ('layer', 'batch')


def plane_overhead(study: runs.Study, resolution: int, repeats: int, num_examples: int) -> float:
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
    surface.summary(values, seed=0)

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


def main() -> None:
  parser = argparse.ArgumentParser(prog='python -m tests.benchmarks.planes')
  parser.add_argument('--points', type=int, default=25, help='along a side of the plane')
  parser.add_argument('--repeats', type=int, default=3, help='planes, of which the median is taken')
  parser.add_argument('--examples', type=int, default=128, help='of either set, at each point')
  parser.add_argument('--norms', nargs='+', choices=NORMS, default=NORMS, help='of a ResNet-20')
  given = parser.parse_args()
  progress.setup_logging()
  for norm in given.norms:
    with tempfile.TemporaryDirectory() as temporary:
      study = _barely_trained(norm, epath.Path(temporary))  # its weights cost what any others do
      ratio = plane_overhead(study, given.points, given.repeats, given.examples)
    progress.console.print(
      f'plane of {given.points} x {given.points} points, 2 x {given.examples} examples, ResNet-20 '
      f'with {norm} norm: {ratio:.3f} times its bare forward passes'
    )


if __name__ == '__main__':
  main()
