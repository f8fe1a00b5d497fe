"""What a plane of the landscape costs over the bare forward passes that it needs."""

import tempfile
import time
from functools import partial

import jax
import numpy as np
from etils import epath

from analysis import geometry, measure, runs
from analysis.parts import planes
from configs import digits_resnet
from kdjax import keys, stages, steps

REPEATS, RESOLUTION, NUM_EXAMPLES = 3, 25, 512


def overhead_of_resnet20(norm: str) -> float:
  """The overhead for a ResNet-20 after one step: its weights cost what any others do."""
  with tempfile.TemporaryDirectory() as temporary:
    return plane_overhead(_barely_trained(norm, epath.Path(temporary)))


def plane_overhead(study: runs.Study) -> float:
  """Time of a RESOLUTION² plane over that of as many forward passes over the same examples.

  With BatchNorm a pass includes the one over the distillation examples that its statistics take. Both
  sides run on one device.
  """
  measured, variables = measure.Measure(study, NUM_EXAMPLES), study.student()
  directions = geometry.random_directions(variables['params'], keys.numpy_rng(0, 'benchmark'))
  plane = geometry.Plane(variables['params'], *directions)
  shared = {'plane': plane, 'batch_stats': variables['batch_stats']}
  axis = np.linspace(-1, 1, RESOLUTION)

  def whole_plane() -> None:
    for y in axis:  # a row is a block, as in the part
      coordinates_P2 = geometry.grid_coords(axis, np.array([y]))
      values = measured.at(planes.build_point, shared, coordinates_P2, reestimate=True)
      measure.summary(values, seed=0)

  bare = partial(_bare_passes, measured, steps.replicate(variables))
  bare(1)  # compiles
  whole_plane()
  times = [(_seconds(whole_plane), _seconds(partial(bare, RESOLUTION**2))) for _ in range(REPEATS)]
  return float(np.median([of_plane / of_passes for of_plane, of_passes in times]))


def _barely_trained(norm: str, workdir: epath.Path) -> runs.Study:
  config = digits_resnet.get_config()
  config.model.depth, config.model.norm = 20, norm
  config.teacher.num_members = config.predictions.num_views = 1
  config.evaluation.independent_seed = None
  for section in (config.teacher, config.student):
    section.num_epochs, section.num_steps = None, 1
  stages.run(config, workdir, ['teachers', 'predictions', 'student'])
  return runs.load(workdir)


def _bare_passes(measured: measure.Measure, variables: steps.Variables, count: int) -> None:
  batches = [steps.replicate(b) for name in measured.sets for b in measured.batches(name)]
  for_statistics = [steps.replicate(b) for b in measured.batches('distillation')]
  for _ in range(count):
    moments = [_moments(variables, batch, model=measured.model) for batch in for_statistics]
    outputs = [_forward(variables, batch['inputs'], model=measured.model) for batch in batches]
    jax.block_until_ready((moments, outputs))


@partial(jax.jit, static_argnames='model')
def _forward(variables, inputs, *, model):
  return model.apply(variables, inputs, train=False)[0]


@partial(jax.jit, static_argnames='model')
def _moments(variables, batch, *, model):
  if not variables['batch_stats']:
    return {}
  return measure.reestimated(variables, [batch], model)['batch_stats']


def _seconds(work) -> float:
  start = time.perf_counter()
  work()
  return time.perf_counter() - start
