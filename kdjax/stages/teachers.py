"""The first stage: an ensemble of independently trained members.

Member i's weights, data order and views follow from (seed, i) alone, so an ensemble can grow, and its
members can be trained in any order or place.
"""

import collections
import contextlib
from collections.abc import Callable, Iterator, Sequence
from functools import partial

import jax

from kdjax import keys, metrics
from kdjax.data import views
from kdjax.errors import MissingInputError
from kdjax.runtime import files, progress
from kdjax.stages.run import Run
from kdjax.train import devices, loop, steps
from kdjax.train.inputs import Inputs


def run(run: Run) -> bool:
  """Trains the members that are not there yet. Returns whether there were any."""
  missing = [i for i in range(run.config.teacher.num_members) if not is_trained(run, i)]
  if missing:
    train = _train_in_parallel if run.config.teacher.members_in_parallel else _train_in_turn
    train(run, missing)
  return bool(missing)


def _train_in_turn(run: Run, members: Sequence[int]) -> None:
  train = trainer(run)
  for wait in (False, True):  # first those that no other process is at
    for member in members:
      with files.lock(run.member_folder(member), wait) as locked:
        if locked and not is_trained(run, member):
          train(member)


def _train_in_parallel(run: Run, members: Sequence[int]) -> None:
  """Trains each member on one device, on all devices at once.

  A device trains without the others, even if but one member is missing: so a member's bits depend
  neither on how many others there are nor on how many devices. One loop gives a call to each device
  in turn; a call returns at once, and the device works on.
  """
  num_steps, used = run.plan('teacher').num_steps, jax.local_devices()[: len(members)]
  trainers = {device: trainer(run, device) for device in used}
  done = dict.fromkeys(members, 0)
  with progress.bar('teachers', len(members) * num_steps, 'steps') as show:
    for wait in (False, True):
      with contextlib.ExitStack() as begun:  # if one fails, what the others write is finished first
        waiting, running = collections.deque(members), {}
        while waiting or running:
          for device, train in trainers.items():
            if device not in running and waiting:
              member = waiting.popleft()
              training_of = begun.enter_context(
                contextlib.closing(_claimed(run, train, member, wait))
              )
              running[device] = member, training_of
            if device in running:
              member, training_of = running[device]
              done[member], text = next(training_of, (num_steps, None))
              if text is None:
                del running[device]
          show(sum(done.values()), '')


def _claimed(run: Run, train: Callable, member: int, wait: bool) -> Iterator[tuple[int, str]]:
  """`training.advance` of a member that is not trained, if no other process is at it or we wait."""
  with files.lock(run.member_folder(member), wait) as locked:
    if locked and not is_trained(run, member):
      yield from train(member, loop.advance)


def is_trained(run: Run, member: int) -> bool:
  return loop.is_complete(run.member_folder(member))


def load(run: Run, member: int) -> steps.Variables:
  """A trained member's final variables.

  Raises:
    MissingInputError: it was not trained.
    DamageError: its checkpoint is damaged, or it was trained on other data.
  """
  _require(run, member)
  return run.load_variables(run.member_folder(member), 'teacher')


def require(run: Run) -> None:
  """Raises MissingInputError if a member is not trained."""
  for member in range(run.config.teacher.num_members):
    _require(run, member)


def _require(run: Run, member: int) -> None:
  if not is_trained(run, member):
    raise MissingInputError(
      f'teacher member {member} is not trained: there is no '
      f'{run.member_folder(member) / "complete.json"}. '
      'Run the same command with --stages=teachers first.'
    )


def initial(run: Run, member: int) -> steps.Variables:
  """A member's variables before training. They need no checkpoint."""
  return run.init_variables(run.teacher_model, member_seed(run, member))


def member_seed(run: Run, member: int) -> int:
  return keys.derive_seed(run.config.seed, 'member', member)


def trainer(run: Run, device: jax.Device | None = None) -> Callable:
  """train(member, fit); what all members share is made, and compiled, once.

  Args:
    device: the only one to train on; by default all train together.

  Returns: a function that trains a member with `fit`, `training.fit` or `training.advance`, and
    returns what that does.
  """
  section, model = run.config.teacher, run.teacher_model
  plan, optimizer = run.plan('teacher'), run.optimizer('teacher')
  view = views.make_view(section.augmentation, run.config.augmentation)
  step = partial(steps.teacher_step, model=model, optimizer=optimizer, view=view)
  mapped = partial(devices.parallel, donate=True, device=device)
  one, several = mapped(step), mapped(partial(steps.several, step=step))

  def everywhere(variables: steps.Variables) -> steps.Variables:
    return variables if device is None else devices.replicate(variables)

  def train(member: int, fit: Callable = loop.fit) -> Iterator[tuple[int, str]] | None:
    folder = run.member_folder(member)
    seed = member_seed(run, member)
    inputs = Inputs(run.part('teacher'), view, seed)

    def batches(start: int) -> Iterator[tuple]:
      for batch in inputs.training(seed, section.batch_size, plan.num_steps, start):
        yield batch if device is None else devices.for_one_device(batch), seed

    run.begin(folder, 'teacher')
    return fit(
      folder,
      f'teacher {member}',
      plan,
      like=run.abstract_state('teacher'),
      init=lambda: steps.init_state(initial(run, member), optimizer),
      step=one,
      several=several,
      inputs=batches,
      place=partial(devices.replicate, device=device),
      evaluate=lambda state: evaluate(run, everywhere(state.variables)),
      learning_rate=run.learning_rate('teacher'),
    )

  return train


def evaluate(run: Run, variables: steps.Variables) -> dict[str, float]:
  """Generalization of a member on the held-out splits, for the log."""
  values = {}
  for name in run.held_out:
    logits_NC = run.predict(run.teacher_model, variables, run.split_inputs[name])
    results = metrics.generalization(logits_NC, run.splits[name].labels_N)
    values |= {f'{name}/{key}': value for key, value in results.items()}
  return values
