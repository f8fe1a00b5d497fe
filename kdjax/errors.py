"""The errors that a user can mend. Each message says what is wrong, where, and what to do."""


class UserError(Exception):
  """`launch.py` prints it without a traceback and exits with status 1."""

  known_to_all = False  # whether all of several hosts raise it, so that none waits for another


class ConfigError(UserError):
  """Wrong fields of a config or wrong flags; all of them in one message."""

  known_to_all = True

  def __init__(self, problems: list[str]):
    self.problems = problems
    count = '1 problem' if len(problems) == 1 else f'{len(problems)} problems'
    super().__init__('\n  '.join([f'the configuration has {count}; nothing was run:', *problems]))


class MissingInputError(UserError):
  """A stage's input is not there; the message gives the command that makes it."""

  known_to_all = True


class DamageError(UserError):
  """A file on disk is not what was written."""


class StorageError(UserError):
  """Something could not be written or read, as on a full disk. What was finished is still there."""


class DivergedError(UserError):
  """The loss became NaN or infinite."""

  known_to_all = True
