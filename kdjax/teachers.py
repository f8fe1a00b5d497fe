"""The first stage: an ensemble of independently trained members.

Member i's weights, data order and views follow from (seed, i) alone, so an ensemble can grow, and its
members can be trained in any order or place.
"""

from collections.abc import Iterator
from functools import partial

from kdjax import data, files, keys, metrics, steps, training, views
from kdjax.errors import MissingInputError
from kdjax.inputs import Inputs
from kdjax.run import Run


def run(run: Run) -> bool:
  """Trains the members that are not there yet. Returns whether there were any."""
  missing = [i for i in range(run.config.teacher.num_members) if not is_trained(run, i)]
  if missing:
    train = _trainer(run)
    for wait in (False, True):  # first those that no other process is at
      for member in missing:
        with files.lock(run.member_folder(member), wait) as locked:
          if locked and not is_trained(run, member):
            train(member)
  return bool(missing)


def is_trained(run: Run, member: int) -> bool:
  return training.is_complete(run.member_folder(member))


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


def _trainer(run: Run):
  """train(member); what all members share is made, and compiled, once."""
  section, model = run.config.teacher, run.teacher_model
  plan, optimizer = run.plan('teacher'), run.optimizer('teacher')
  view = views.make_view(section.augmentation, run.config.augmentation)
  step = steps.parallel(
    partial(steps.teacher_step, model=model, optimizer=optimizer, view=view), donate=True
  )

  def train(member: int) -> None:
    folder = run.member_folder(member)
    seed = member_seed(run, member)
    inputs = Inputs(data.part(run.splits['train'], section.examples), view, seed)

    def batches(start: int) -> Iterator[tuple]:
      for batch in inputs.training(seed, section.batch_size, plan.num_steps, start):
        yield batch, seed

    run.begin(folder, 'teacher')
    training.fit(
      folder,
      f'teacher {member}',
      plan,
      like=run.abstract_state('teacher'),
      init=lambda: steps.init_state(initial(run, member), optimizer),
      step=step,
      inputs=batches,
      evaluate=lambda state: evaluate(run, state.variables),
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
