"""Stage 'teachers': an ensemble of independently trained members.

Member i's weights, data order and views follow from (seed, i) alone. So an ensemble can grow, and its
members can be trained in any order and place.
"""

import functools
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import jax

from kdjax import keys, metrics
from kdjax.data import views
from kdjax.stages.experiment import Experiment
from kdjax.stages.stage import Job, Stage
from kdjax.train import devices, loop, steps
from kdjax.train.inputs import Inputs


def _jobs(experiment: Experiment) -> Sequence[Job]:
  trainer = functools.cache(partial(Trainer, experiment))  # members share the compiled steps
  in_parallel = experiment.config.teacher.members_in_parallel
  return [
    Job(
      folder,
      is_complete=partial(loop.is_complete, folder),
      make=lambda member=member: trainer().fit(member),
      missing=f'teacher member {member} is not trained: there is no {folder / "complete.json"}.',
      provenance=experiment.data.training,
      artefact='teacher',
      num_steps=lambda: experiment.teacher.plan.num_steps,
      advance=(lambda device, member=member: trainer(device).advance(member))
      if in_parallel
      else None,
    )
    for member, folder in enumerate(experiment.folders.members)
  ]


STAGE = Stage('teachers', _jobs)


def is_trained(experiment: Experiment, member: int) -> bool:
  return loop.is_complete(experiment.folders.member(member))


def load(experiment: Experiment, member: int) -> steps.Variables:
  """A trained member's final variables.

  Raises:
    MissingInputError: it was not trained.
    DamageError: its checkpoint is damaged, or it was trained on other data.
  """
  STAGE.require(experiment, member)
  return experiment.teacher.load(experiment.folders.member(member))


def load_all(experiment: Experiment) -> list[steps.Variables]:
  """The final variables of every member; raises what `load` raises."""
  return [load(experiment, member) for member in range(experiment.config.teacher.num_members)]


def initial(experiment: Experiment, member: int) -> steps.Variables:
  """A member's variables before training. They need no checkpoint."""
  return experiment.teacher.init_variables(member_seed(experiment, member))


def member_seed(experiment: Experiment, member: int) -> int:
  return keys.derive_seed(experiment.config.seed, 'member', member)


class Trainer:
  """Trains members; all of them share the compiled steps."""

  def __init__(self, experiment: Experiment, device: jax.Device | None = None):
    """Takes the only device to train on; by default all devices train together."""
    config, role = experiment.config, experiment.teacher
    self._experiment, self._device = experiment, device
    self._plan, self._optimizer = role.plan, role.optimizer
    self._view = views.make_view(config.teacher.augmentation, config.augmentation)
    step = partial(steps.teacher_step, model=role.model, optimizer=self._optimizer, view=self._view)
    mapped = partial(devices.parallel, donate=True, device=device)
    self._step, self._multi_step = mapped(step), mapped(partial(steps.multi_step, step=step))

  def fit(self, member: int) -> None:
    """Trains a member to its end, in its folder."""
    loop.fit(**self._arguments(member))

  def advance(self, member: int) -> Iterator[tuple[int, str]]:
    """Trains a member step by step, as `loop.advance` does."""
    return loop.advance(**self._arguments(member))

  def _arguments(self, member: int) -> dict[str, Any]:
    experiment, device = self._experiment, self._device
    section, seed = experiment.config.teacher, member_seed(experiment, member)
    inputs = Inputs(experiment.data.part(section), self._view, seed)

    def batches(start: int) -> Iterator[tuple]:
      for batch in inputs.training(seed, section.batch_size, self._plan.num_steps, start):
        yield batch if device is None else devices.for_one_device(batch), seed

    def evaluated(state: steps.State) -> dict[str, float]:
      variables = state.variables if device is None else devices.replicate(state.variables)
      return evaluate(experiment, variables)

    return {
      'folder': experiment.folders.member(member),
      'name': f'teacher {member}',
      'plan': self._plan,
      'like': experiment.teacher.abstract_state,
      'init': lambda: steps.init_state(initial(experiment, member), self._optimizer),
      'step': self._step,
      'multi_step': self._multi_step,
      'inputs': batches,
      'place': partial(devices.replicate, device=device),
      'evaluate': evaluated,
      'learning_rate': experiment.teacher.learning_rate,
    }


def evaluate(experiment: Experiment, variables: steps.Variables) -> dict[str, float]:
  """Generalization of a member on the held-out splits, for the log."""
  values = {}
  for name in experiment.data.held_out:
    inputs = experiment.data.split_inputs[name]
    logits_NC = experiment.predictor.logits(experiment.teacher.model, variables, inputs)
    results = metrics.generalization(logits_NC, inputs.split.labels_N)
    values |= {f'{name}/{key}': value for key, value in results.items()}
  return values
