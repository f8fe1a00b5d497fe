"""Trainings that show which basin a student ends in, and when that is decided.

A continuation resumes the student's training at a kept checkpoint with another order of the examples
(Frankle et al. 2020, "Linear Mode Connectivity and the Lottery Ticket Hypothesis"). A return is a short
distillation from a perturbed teacher. Both use `kdjax.stages.student.Distiller` and have their own folder:
an interrupted training continues, and a complete one is not repeated.
Axes: P path, T position, N example, R resample.
"""

import dataclasses
from collections.abc import Callable, Sequence

import jax
import numpy as np
from etils import epath
from jax.flatten_util import ravel_pytree

from kdjax import config as config_lib
from kdjax import keys
from kdjax.errors import DivergedError
from kdjax.runtime import progress
from kdjax.stages import predictions
from kdjax.stages.experiment import Experiment
from kdjax.stages.student import Distiller
from kdjax.train import loop
from kdjax.train.checkpoint import Checkpoints
from kdjax.train.steps import State, Variables, init_state

from . import curvature, geometry, paths, surface
from .curvature import MeanLoss
from .geometry import Tree
from .part import Settings


def distiller(run: Experiment) -> Distiller:
  """A `student.Distiller` that keeps only the newest checkpoint and evaluates only at the end."""
  plan = run.student.plan
  plan = dataclasses.replace(plan, keeps=frozenset(), evals=frozenset({plan.num_steps}))
  return Distiller(run, predictions.open_teacher(run), plan)


# Continuations.


def fork_steps(kept: Sequence[int], count: int) -> list[int]:
  """Up to `count` evenly chosen kept steps, including the first and never the last."""
  before_the_end = np.asarray(kept[:-1])
  places = np.linspace(0, len(before_the_end) - 1, min(count, len(before_the_end)))
  return before_the_end[places.round().astype(int)].tolist()


def order_seed(run: Experiment, index: int) -> int:
  """The seed of the order of the examples in continuation `index`, the same for every fork."""
  return keys.derive_seed(config_lib.student_seed(run.config), 'analysis/forks', index)


def continued(
  run: Experiment, distiller: Distiller, folder: epath.Path, step: int, seed: int, name: str
) -> Variables | None:
  """Continues the student's training from `step` with another order of the examples.

  It starts from the whole state after that step, including the optimizer, and follows the rest of the
  schedule. The views of an example depend on the epoch and stay the same.

  Args:
    step: a kept checkpoint of the student.
    seed: of the order; the student's own seed reproduces the student.
    name: for the progress bar.

  Returns: the final variables, or None if the training diverges.

  Raises:
    DamageError: the checkpoint is damaged or missing.
  """
  if not loop.is_complete(folder):
    with Checkpoints(run.folders.student / 'checkpoints', create=False) as checkpoints:
      state = checkpoints.restore(run.student.abstract_state, step)
    with Checkpoints(folder / 'checkpoints') as checkpoints:
      if not checkpoints.steps:
        checkpoints.save(step, state)  # training starts from the newest checkpoint
    return _trained(run, distiller, folder, name, seed, lambda: state)
  return run.student.load(folder)


def _trained(
  run: Experiment,
  distiller: Distiller,
  folder: epath.Path,
  name: str,
  seed: int,
  init: Callable[[], State],
) -> Variables | None:
  """Trains, and returns the final variables, or None if the training diverges."""
  try:
    run.data.everything.begin(folder)
    distiller.fit(folder, name, seed, init)
  except DivergedError as error:
    progress.logger.warning('%s', error)
    return None
  return run.student.load(folder)


def is_trained(folder: epath.Path) -> bool:
  """Whether a training is finished, either complete or diverged."""
  return loop.is_complete(folder) or loop.has_diverged(folder)


def barriers_of(values: list[surface.Values], ts_T: np.ndarray, seed: int) -> dict[str, np.ndarray]:
  """`paths.mean_barriers` of each measure along paths.

  For 'accuracy' and 'top1_agreement' the barrier is the drop below the chord.

  Returns: '<set>/<measure>' with the suffixes '', '/low', '/high' and '/pairs'.
  """
  found = {}
  for key in values[0]:
    falls = key.endswith(('accuracy', 'top1_agreement'))
    values_PTN = (-1 if falls else 1) * np.stack([of[key] for of in values])
    for end, value in paths.mean_barriers(values_PTN, ts_T, seed).items():
      found[f'{key}/{end}'.rstrip('/')] = value
  return found


# λ.


def with_lambda(run: Experiment, value: float) -> Experiment:
  """The experiment whose student starts at λ = value between random weights and the final teacher."""
  config = run.config.copy_and_resolve_references()
  config.student.init_lambda = float(value)
  config.student.init_from = 'final'
  return Experiment(config, run.workdir)


# Returns.


def shortened(run: Experiment, num_epochs: float) -> Experiment:
  """The same recipe in fewer epochs, at least one step.

  The schedules of learning rate, warm-up and temperature are shortened in proportion.
  """
  plan = run.student.plan
  num_steps = max(1, round(num_epochs * plan.num_examples / plan.batch_size))
  config = run.config.copy_and_resolve_references()
  section = config.student
  section.num_epochs = section.num_examples = None
  section.num_steps = num_steps
  section.warmup_epochs *= num_steps / plan.num_steps
  return Experiment(config, run.workdir)


def perturbations(
  teacher: Variables, mean_loss: MeanLoss, rng: np.random.Generator, settings: Settings
) -> dict[str, Tree]:
  """Unit directions away from a teacher, by name.

  'random' is filter-normalised (Li et al. 2018), so it leaves biases and norms unchanged. 'sharp' is the
  eigenvector of the Hessian's largest eigenvalue, with its largest entry positive. 'flat' is
  `curvature.flat_direction`.

  Args:
    mean_loss: the distillation loss at the teacher.
  """
  num_steps = settings.lanczos_steps
  random, _ = geometry.random_directions(teacher['params'], rng)
  return {
    'random': jax.tree.map(lambda x: x / np.float32(geometry.norm(random)), random),
    'sharp': _with_sign(curvature.top_eigenvector(mean_loss, rng, num_steps)),
    'flat': curvature.flat_direction(mean_loss, rng, num_steps),
  }


def returned(
  run: Experiment, distiller: Distiller, folder: epath.Path, start: Variables, name: str
) -> Variables | None:
  """Distils from a start, with the student's order of the examples.

  Args:
    name: for the progress bar.

  Returns: the final variables, or None if the training diverges.
  """
  if not loop.is_complete(folder):
    init = lambda: init_state(start, run.student.optimizer)
    return _trained(run, distiller, folder, name, config_lib.student_seed(run.config), init)
  return run.student.load(folder)


def moved(params: Tree, direction: Tree, distance: float) -> Tree:
  """params + distance · direction, in float32."""
  return jax.tree.map(
    lambda x, u: (np.asarray(x, np.float64) + distance * np.asarray(u, np.float64)).astype(
      np.float32
    ),
    params,
    direction,
  )


def _with_sign(tree: Tree) -> Tree:
  """Flips the arbitrary sign of an eigenvector so that its largest entry is positive."""
  flat_P, unravel = ravel_pytree(tree)
  return unravel(flat_P * np.sign(flat_P[np.abs(flat_P).argmax()]))
