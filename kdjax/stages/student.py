"""Stage 'student': distils a student against the predictions, stored or online."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial

import jax
from etils import epath

from kdjax import config as config_lib
from kdjax import losses
from kdjax.predictions.teachers import Teacher, ensemble
from kdjax.stages import predictions, teachers
from kdjax.stages.experiment import Experiment
from kdjax.stages.stage import Job, Stage
from kdjax.train import batch_norm, devices, loop, steps
from kdjax.train.trackers import Run


def jobs(experiment: Experiment, name: str = 'student') -> Sequence[Job]:
  """The training of the student. The name is for the progress bar and messages."""
  folder = experiment.folders.student
  return [
    Job(
      folder,
      is_complete=partial(loop.is_complete, folder),
      make=partial(_make, experiment, name),
      missing=f'the student is not trained: there is no {folder / "complete.json"}.',
      provenance=experiment.data.everything,
      artefact='student',
    )
  ]


def _requires(experiment: Experiment) -> list[Stage]:
  section = experiment.config.student
  starts_at_teacher = section.init_lambda > 0 and section.init_from == 'final'
  return predictions.sources(experiment) + [teachers.STAGE] * starts_at_teacher


STAGE = Stage('student', jobs, _requires)


def named(name: str) -> Stage:
  """The stage under another name in the progress bar and messages."""
  return Stage(name, partial(jobs, name=name), _requires)


def _make(experiment: Experiment, name: str) -> None:
  distiller = Distiller(experiment, predictions.open_teacher(experiment))

  def init() -> steps.State:
    return steps.init_state(initial_variables(experiment), experiment.student.optimizer)

  distiller.fit(
    experiment.folders.student,
    name,
    config_lib.student_seed(experiment.config),
    init,
    tracked(experiment),
  )


def tracked(experiment: Experiment) -> Run:
  """The training of the student for trackers."""
  folder = experiment.folders.student
  return experiment.tracked(experiment.title or f'{experiment.label}student {folder.name}', folder)


class Distiller:
  """Distils students as `config.student` says; all of them share the compiled steps."""

  def __init__(self, experiment: Experiment, teacher: Teacher, plan: loop.Plan | None = None):
    """Prepares the steps.

    Args:
      plan: by default the experiment's. Another plan must have the same number of steps, which the learning
        rate and the temperature depend on.
    """
    role, section = experiment.student, experiment.config.student
    self._experiment, self._teacher, self._plan = experiment, teacher, plan or role.plan
    self._inputs = experiment.data.inputs['distillation']
    loss = losses.make(section.loss, section.loss_options.to_dict())
    self._runs_members = 'teacher_features' in losses.needs(
      loss
    )  # the teacher is an `OnlineTeacher`
    kind, num_sharded = steps.student_step, 2
    if self._runs_members:
      kind, num_sharded = partial(steps.featured_student_step, teacher=teacher.model), 1
    step = partial(
      kind,
      model=role.model,
      optimizer=role.optimizer,
      view=self._inputs.view,
      loss=loss,
      temperature=partial(
        losses.temperature_at,
        num_steps=self._plan.num_steps,
        start=section.temperature,
        final=section.final_temperature,
      ),
      alpha=section.alpha,
    )
    mapped = partial(devices.parallel, num_sharded=num_sharded, donate=True)
    self._step, self._multi_step = mapped(step), mapped(partial(steps.multi_step, step=step))
    self._held_out = {name: ensemble(teacher, name) for name in experiment.data.held_out}

  def fit(
    self,
    folder: epath.Path,
    name: str,
    order_seed: int,
    init: Callable[[], steps.State],
    run: Run | None = None,
  ) -> None:
    """Trains a student to its end, from its newest checkpoint or from `init()`.

    Args:
      name: for the progress bar and messages.
      order_seed: decides the order of the examples. Their views and the dropout follow from the
        experiment's seed.
      run: the training for trackers.
    """
    role = self._experiment.student
    loop.fit(
      folder,
      name,
      self._plan,
      like=role.abstract_state,
      init=init,
      step=self._step,
      multi_step=self._multi_step,
      inputs=partial(self._batches, order_seed),
      evaluate=lambda state: self._experiment.evaluate(role.model, state.variables, self._held_out),
      learning_rate=role.learning_rate,
      run=run,
    )

  def _batches(self, order_seed: int, start: int) -> Iterator[tuple]:
    plan, inputs = self._plan, self._inputs
    for batch in inputs.training(order_seed, plan.batch_size, plan.num_steps, start):
      if self._runs_members:
        yield batch, (inputs.seed, self._teacher.variables)
      else:
        yield batch, self._teacher.batch('distillation', batch), inputs.seed


def load(experiment: Experiment, step: int | None = None) -> steps.Variables:
  """The trained student's variables, after its last or another kept step.

  Raises:
    MissingInputError: it is not trained.
    DamageError: the checkpoint is damaged.
  """
  STAGE.require(experiment)
  return experiment.student.load(experiment.folders.student, step)


def initial_variables(experiment: Experiment) -> steps.Variables:
  """θ_s = λ θ_t + (1 − λ) θ_r, from weights of the teacher and random weights (paper, Section 6).

  θ_t are the first member's final weights, or its initial ones (paper, Table 1).
  """
  section = experiment.config.student
  random = experiment.student.init_variables(config_lib.student_seed(experiment.config))
  weight = section.init_lambda
  if weight == 0:
    return random
  load_member = {'final': teachers.load, 'initial': teachers.initial}
  teacher = load_member[section.init_from](experiment, 0)
  if weight == 1:
    return teacher
  mixed = jax.tree.map(
    lambda t, r: weight * t + (1 - weight) * r, teacher['params'], random['params']
  )
  variables = {'params': mixed, 'batch_stats': random['batch_stats']}
  return _with_own_batch_stats(experiment, variables) if random['batch_stats'] else variables


def _with_own_batch_stats(experiment: Experiment, variables: steps.Variables) -> steps.Variables:
  """Replaces BatchNorm's statistics by those of an epoch of distillation data.

  Neither the teacher's nor the random network's statistics fit interpolated weights.
  """
  inputs = experiment.data.inputs['distillation']
  batch_size, seed = (
    experiment.config.student.batch_size,
    config_lib.student_seed(experiment.config),
  )
  step = devices.parallel(
    partial(steps.batch_moments_step, model=experiment.student.model, view=inputs.view)
  )
  num_batches = -(-len(inputs.split) // batch_size)
  batches = inputs.training(seed, batch_size, num_batches, start=0)
  moments = [jax.device_get(step(variables, batch, inputs.seed)) for batch in batches]
  return {'params': variables['params'], 'batch_stats': batch_norm.pool(moments)}
