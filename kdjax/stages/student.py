"""The third stage: distil a student against the predictions, stored or online."""

from collections.abc import Callable, Iterator
from functools import partial

import jax
import numpy as np
from etils import epath

from kdjax import config as config_lib
from kdjax import losses, metrics
from kdjax.errors import MissingInputError
from kdjax.runtime import files
from kdjax.stages import predictions, teachers
from kdjax.stages.run import Run
from kdjax.train import devices, loop, steps


def run(run: Run, name: str = 'student') -> bool:
  """Trains the student if it is not there. Returns whether it was not.

  Args:
    name: for the progress bar and messages.
  """
  if loop.is_complete(run.student_folder):
    run.write_config(run.student_folder)
    return False
  teacher = predictions.open_teacher(run)  # raises before anything is written
  with files.lock(run.student_folder):
    if loop.is_complete(run.student_folder):  # by another process, while this one waited
      return False
    distil, order_seed = distiller(run, teacher), config_lib.student_seed(run.config)
    init = lambda: steps.init_state(_initial_variables(run), run.optimizer('student'))
    distil(run.student_folder, name, order_seed, init)
  return True


def distiller(
  run: Run, teacher: predictions.Teacher, plan: loop.Plan | None = None
) -> Callable[[epath.Path, str, int, Callable[[], steps.State]], None]:
  """A function that distils students in the way of `run.config.student`, each in its own folder.

  What they share is made, and compiled, once.

  Args:
    plan: by default the run's. Its number of steps is the run's in any case, since learning rate and
      temperature follow that.

  Returns: distil(folder, name, order_seed, init). `order_seed` decides the order of the examples, and
    the rest is as in `training.fit`; so what was interrupted goes on from its newest checkpoint.
    Views and dropout follow from the run's seed, and are the same in all.
  """
  section, model = run.config.student, run.student_model
  optimizer, plan = run.optimizer('student'), plan or run.plan('student')
  inputs = run.inputs['distillation']
  step = partial(
    steps.student_step,
    model=model,
    optimizer=optimizer,
    view=inputs.view,
    loss=losses.LOSSES[section.loss],
    temperature=partial(
      losses.temperature_at,
      num_steps=plan.num_steps,
      start=section.temperature,
      final=section.final_temperature,
    ),
    alpha=section.alpha,
  )
  mapped = partial(devices.parallel, num_sharded=2, donate=True)
  one, several = mapped(step), mapped(partial(steps.several, step=step))
  held_out = {name: predictions.ensemble(teacher, name) for name in run.held_out}

  def distil(
    folder: epath.Path, name: str, order_seed: int, init: Callable[[], steps.State]
  ) -> None:
    def batches(start: int) -> Iterator[tuple]:
      for batch in inputs.training(order_seed, section.batch_size, plan.num_steps, start):
        yield batch, teacher.batch('distillation', batch), inputs.seed

    run.begin(folder, 'student')
    loop.fit(
      folder,
      name,
      plan,
      like=run.abstract_state('student'),
      init=init,
      step=one,
      several=several,
      inputs=batches,
      evaluate=lambda state: _evaluate(run, state.variables, held_out),
      learning_rate=run.learning_rate('student'),
    )

  return distil


def load(run: Run, step: int | None = None) -> steps.Variables:
  """The trained student's variables, after its last step or after one that was kept.

  Raises:
    MissingInputError: it is not trained.
    DamageError: the checkpoint is damaged.
  """
  require(run)
  return run.load_variables(run.student_folder, 'student', step)


def require(run: Run) -> None:
  """Raises MissingInputError if the student is not trained."""
  if not loop.is_complete(run.student_folder):
    raise MissingInputError(
      f'the student is not trained: there is no {run.student_folder / "complete.json"}. '
      'Run the same command with --stages=student first.'
    )


def _initial_variables(run: Run) -> steps.Variables:
  """θ_s = λ θ_t + (1 − λ) θ_r of the first member's and random weights (paper, Section 6).

  θ_t are the member's final weights, or those that it started from (paper, Table 1).
  """
  random = run.init_variables(run.student_model, config_lib.student_seed(run.config))
  weight = run.config.student.init_lambda
  if weight == 0:
    return random
  load_member = {'final': teachers.load, 'initial': teachers.initial}
  teacher = load_member[run.config.student.init_from](run, 0)
  if weight == 1:
    return teacher
  mixed = jax.tree.map(
    lambda t, r: weight * t + (1 - weight) * r, teacher['params'], random['params']
  )
  variables = {'params': mixed, 'batch_stats': random['batch_stats']}
  return _with_own_batch_stats(run, variables) if random['batch_stats'] else variables


def _with_own_batch_stats(run: Run, variables: steps.Variables) -> steps.Variables:
  """BatchNorm statistics re-estimated over an epoch of distillation data.

  Those of neither end fit interpolated weights. The variance is pooled: the mean of the batches'
  variances plus the variance of their means.
  """
  inputs, batch_size = run.inputs['distillation'], run.config.student.batch_size
  step = devices.parallel(
    partial(steps.batch_moments_step, model=run.student_model, view=inputs.view)
  )
  num_batches = -(-len(inputs.split) // batch_size)
  batches = inputs.training(config_lib.student_seed(run.config), batch_size, num_batches, start=0)
  moments = [jax.device_get(step(variables, batch, inputs.seed)) for batch in batches]
  stacked = jax.tree.map(lambda *x: np.stack(x), *moments)
  return {'params': variables['params'], 'batch_stats': _pooled(stacked)}


def _pooled(stats: dict) -> dict:
  """Pools stacked 'mean' and 'var' leaves of the same BatchNorm over their leading axis."""
  if 'mean' in stats and 'var' in stats:
    variance = stats['var'].mean(0) + stats['mean'].var(0)
    return {'mean': stats['mean'].mean(0), 'var': variance}
  return {name: _pooled(inside) for name, inside in stats.items()}


def _evaluate(
  run: Run, variables: steps.Variables, teacher_log_probs: dict[str, np.ndarray]
) -> dict[str, float]:
  """Generalization and fidelity on the held-out splits, for the log."""
  values = {}
  for name, log_probs_NC in teacher_log_probs.items():
    logits_NC = run.predict(run.student_model, variables, run.inputs[name])
    results = metrics.generalization(logits_NC, run.splits[name].labels_N)
    results |= metrics.fidelity(logits_NC, log_probs_NC)
    values |= {f'{name}/{key}': value for key, value in results.items()}
  return values
