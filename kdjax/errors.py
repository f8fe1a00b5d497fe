"""Errors that a user can fix. Each message says what is wrong, where, and what to do."""


class UserError(Exception):
  """An error that `launch.py` prints without a traceback before it exits with status 1."""

  known_to_all = False  # whether all hosts raise this error; if so, none waits for another


class ConfigError(UserError):
  """Wrong config fields or flags, all in one message."""

  known_to_all = True

  def __init__(self, *problems: str):
    self.problems = list(problems)
    count = '1 problem' if len(problems) == 1 else f'{len(problems)} problems'
    super().__init__('\n  '.join([f'the configuration has {count}; nothing was run:', *problems]))


class MissingInputError(UserError):
  """The input of a stage is missing; the message gives the command that makes it."""

  known_to_all = True


class DamageError(UserError):
  """A file on disk differs from what was written."""


class StorageError(UserError):
  """A file could not be written or read, for example on a full disk. Finished artefacts are kept."""


class DivergedError(UserError):
  """The loss became NaN or infinite."""

  known_to_all = True
