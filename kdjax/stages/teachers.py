"""Stage 'teachers': trains an ensemble of independent members, or opens one that the user brings.

Member i's weights, data order and views follow from (seed, i) alone. So an ensemble can grow, and its
members can be trained in any order and place. With a `teacher.source` there is nothing to train.
"""

import functools
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from kdjax import config as config_lib
from kdjax import keys
from kdjax.config import teacher_source
from kdjax.config.fields import FILE, TRAINED, WORKDIR
from kdjax.data import views
from kdjax.errors import DamageError, MissingInputError
from kdjax.predictions import functions
from kdjax.predictions.imported import LogitsFile
from kdjax.predictions.teachers import FunctionTeacher, ImportedTeacher, OnlineTeacher, Source
from kdjax.stages.experiment import Experiment
from kdjax.stages.stage import Job, Stage
from kdjax.train import devices, loop, steps
from kdjax.train.inputs import Inputs


def _jobs(experiment: Experiment) -> Sequence[Job]:
  if experiment.config.teacher.source != TRAINED:
    return []
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
      bar=f'{experiment.label}teachers',
      advance=(lambda device, member=member: trainer(device).advance(member))
      if in_parallel
      else None,
    )
    for member, folder in enumerate(experiment.folders.members)
  ]


STAGE = Stage('teachers', _jobs)


def is_trained(experiment: Experiment, member: int) -> bool:
  """Whether a member's final weights exist."""
  source, folder = experiment.config.teacher.source, experiment.folders.member(member)
  return config_lib.has_weights(source) and loop.is_complete(folder)


def load(experiment: Experiment, member: int) -> steps.Variables:
  """A trained member's final variables.

  Raises:
    MissingInputError: it is not trained.
    DamageError: its checkpoint is damaged, or it was trained on other data.
  """
  section, folder = experiment.config.teacher, experiment.folders.member(member)
  if section.source == TRAINED:
    STAGE.require(experiment, member)
    return experiment.teacher.load(folder)
  if not is_trained(experiment, member):
    raise MissingInputError(f'teacher.path = {section.path!r}: {folder} is not a trained member.')
  try:
    variables = experiment.teacher.load(folder)
    found, wanted = (
      jax.tree.map(jnp.shape, tree)
      for tree in (variables, experiment.teacher.abstract_state.variables)
    )
    if found != wanted:
      raise DamageError('its parameters have other shapes.')
  except DamageError as error:
    reason = str(error).partition(' Delete ')[0]  # the folder belongs to another run
    raise DamageError(
      f'teacher.path = {section.path!r}: {folder.name} cannot be used: {reason} Needed: intact members of '
      'the same model, for inputs of the same shape and as many classes.'
    ) from error
  return variables


def load_all(experiment: Experiment) -> list[steps.Variables]:
  """The final variables of every member; raises what `load` raises."""
  return [load(experiment, member) for member in range(experiment.config.teacher.num_members)]


def initial(experiment: Experiment, member: int) -> steps.Variables:
  """A member's variables before training. They need no checkpoint."""
  return experiment.teacher.init_variables(member_seed(experiment, member))


def member_seed(experiment: Experiment, member: int) -> int:
  config = experiment.config
  if config.teacher.source == WORKDIR:
    config = teacher_source.recorded(config.teacher.path)
  return keys.derive_seed(config.seed, 'member', member)


def open_source(experiment: Experiment) -> Source:
  """The teacher that `teacher.source` names. It predicts again; the store is not read.

  Raises:
    MissingInputError: a member is not trained.
    UserError: what the config names is missing, or does not fit the data.
  """
  section, data = experiment.config.teacher, experiment.data
  if config_lib.has_weights(section.source):
    members, model = load_all(experiment), experiment.teacher.model
    return OnlineTeacher(model, members, data.inputs, experiment.predictor)
  if section.source == FILE:
    file = LogitsFile(section.path, 'teacher.path')
    for name, inputs in data.inputs.items():
      is_augmented = name == 'distillation' and experiment.config.predictions.augmentation
      file.require_inputs(name, inputs, bool(is_augmented))
    return ImportedTeacher(file)
  field = 'teacher.source'
  return FunctionTeacher(
    functions.find(section.source, section.path, field)[: section.num_members],
    data.inputs,
    experiment.predictor,
    partial(
      functions.logits, num_classes=data.description.num_classes, source=section.source, field=field
    ),
  )


def place(experiment: Experiment, member: int) -> str:
  """The place of a member, for messages."""
  section = experiment.config.teacher
  if config_lib.has_weights(section.source):
    return f'in {experiment.folders.member(member)}'
  return f'in {section.path}' if section.source == FILE else section.source


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
      return experiment.evaluate(experiment.teacher.model, variables)

    folder, name = experiment.folders.member(member), f'{experiment.label}teacher {member}'
    return {
      'folder': folder,
      'name': name,
      'plan': self._plan,
      'like': experiment.teacher.abstract_state,
      'init': lambda: steps.init_state(initial(experiment, member), self._optimizer),
      'step': self._step,
      'multi_step': self._multi_step,
      'inputs': batches,
      'place': partial(devices.replicate, device=device),
      'evaluate': evaluated,
      'learning_rate': experiment.teacher.learning_rate,
      'run': experiment.tracked(f'{name} {folder.parent.name}', folder),
    }
