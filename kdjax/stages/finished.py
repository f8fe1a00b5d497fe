"""The experiment of a finished student, found from the student's folder."""

from etils import epath
from ml_collections import ConfigDict

from kdjax import config as config_lib
from kdjax.config import fingerprints, user_code
from kdjax.errors import DamageError, MissingInputError
from kdjax.runtime import files, plugins
from kdjax.stages.experiment import Experiment
from kdjax.train import loop


def find(path: epath.PathLike) -> epath.Path:
  """The folder of a student: `path` itself, or the newest student of the workdir `path`.

  The newest student is the one that was evaluated last. If none was evaluated, there must be only one.

  Raises:
    MissingInputError: there is no folder, or no finished student in it.
  """
  path = existing(path)
  folder = path if path.parent.name == 'students' else _newest(path)
  if not loop.is_complete(folder):
    raise MissingInputError(
      f'{folder}: the student is not finished; run the command that trains it again'
    )
  return folder


def existing(path: epath.PathLike) -> epath.Path:
  """The absolute path of a folder; raises MissingInputError if there is none."""
  if not files.is_reachable(str(path)):
    raise MissingInputError(f'{path}: {files.NEEDS_CLOUD}')
  path = epath.Path(path).expanduser()
  path = path if path.is_absolute() else path.absolute()
  if not path.is_dir():
    raise MissingInputError(f'{path}: there is no such folder; give a workdir or a student in it')
  return path


def _newest(workdir: epath.Path) -> epath.Path:
  evaluated = list((workdir / 'students').glob('*/result.json'))
  if evaluated:
    return max(evaluated, key=lambda path: (path.stat().mtime, path.as_posix())).parent
  trained = list((workdir / 'students').glob('*/complete.json'))
  if len(trained) == 1:
    return trained[0].parent
  if trained:  # some may be independent students, or siblings
    raise MissingInputError(
      f'{workdir}: none of its {len(trained)} students is evaluated. Give the folder of one, such as '
      f'{trained[0].parent}, or run launch.py with --stages=evaluation'
    )
  raise MissingInputError(
    f'{workdir}: no finished student in {workdir / "students"}; train one with launch.py '
    f'--workdir={workdir}'
  )


def experiment(folder: epath.Path) -> Experiment:
  """The experiment of a student, whose config lies in its folder.

  Raises:
    MissingInputError: the config names code that is missing.
    DamageError: config.json is damaged, or of another version of kdjax; or code or data have changed.
  """
  found = Experiment(read_config(folder), folder.parents[1])
  plugins.add_folder('.')
  if missing := [*user_code.missing(found.config)]:
    raise MissingInputError('\n  '.join([f'{folder}: it needs code that is missing:', *missing]))
  if names := fingerprints.changes(folder, found.config, 'student'):
    raise DamageError(
      f'{folder}: it was made with other code or data: {", ".join(names)}. Train the student again, or '
      'restore the old version.'
    )
  if found.folders.student != folder:
    raise DamageError(
      f'{folder / "config.json"} gives the student {found.folders.student.name}, not {folder.name}: it '
      'was changed, or was written by another version of kdjax. Train the student again.'
    )
  return found


def read_config(folder: epath.Path) -> ConfigDict:
  """The config that a student or teacher was trained with, with the types of kdjax/config/base.py.

  Raises:
    DamageError: config.json is missing or damaged, or of another version of kdjax.
  """
  path = folder / 'config.json'
  if not path.exists():
    raise DamageError(f'{path} is missing. Run the command of that student again.')
  saved, (config, _) = (
    config_lib.leaves(ConfigDict(files.read_json(path))),
    config_lib.from_values({}),
  )
  if unknown := sorted(saved.keys() - config_lib.leaves(config).keys()):
    raise DamageError(
      f'{path} has fields that this version of kdjax does not know: {", ".join(unknown)}. Use the '
      'version that wrote it.'
    )
  values = {k: tuple(v) if isinstance(v, (list, tuple)) else v for k, v in saved.items()}
  config.update_from_flattened_dict(values)
  return config
