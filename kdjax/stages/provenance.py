"""Records of the config and the data that a folder was made from: config.json and data.json."""

import dataclasses
import functools
from collections.abc import Callable

from etils import epath
from ml_collections import ConfigDict

from kdjax import data
from kdjax.errors import DamageError
from kdjax.runtime import files, progress

CONFIG, DATA = 'config.json', 'data.json'


@dataclasses.dataclass(frozen=True)
class Provenance:
  """The config and the data that a folder is made from."""

  config: ConfigDict
  splits: Callable[[], dict[str, data.Split]]  # nothing is read before a checksum is needed

  @functools.cached_property
  def checksum(self) -> str:
    return data.checksum(self.splits())

  def require(self, checksum: str, folder: epath.Path) -> None:
    """Raises DamageError unless `checksum`, which `folder` records, is that of these data.

    Streamed data have checksums of a sample, so the checksum of the same kind is compared.
    """
    sampled, now = checksum.startswith(data.SAMPLED), self.checksum
    if sampled != now.startswith(data.SAMPLED):
      now = data.checksum(self.splits(), sampled)
    if checksum != now:
      raise DamageError(
        f'{folder} was made from other data: its data set has the checksum {checksum}, and the one '
        f'that was read now has {now}. Use a new --workdir, or the data set that it was made from.'
      )

  def begin(self, folder: epath.Path, replaces_config: bool = False) -> None:
    """Records both before work in the folder begins or resumes.

    Args:
      replaces_config: whether config.json is replaced by that of a later run.

    Raises:
      DamageError: the content of the folder was made from other data.
    """
    if not self.check(folder):
      files.write_json(folder / DATA, {'checksum': self.checksum})
    self._write_config(folder, replaces_config)

  def restore(self, folder: epath.Path, replaces_config: bool = False) -> None:
    """Writes the records that a complete folder has lost."""
    if not (folder / DATA).exists():
      progress.logger.warning(
        '%s is missing: the present data set is recorded in its place', folder / DATA
      )
      files.write_json(folder / DATA, {'checksum': self.checksum})
    self._write_config(folder, replaces_config)

  def check(self, folder: epath.Path) -> bool:
    """Compares the data with the record, if there is one. Writes nothing.

    Returns: whether there is a record.

    Raises:
      DamageError: the content of the folder was made from other data.
    """
    path = folder / DATA
    if not path.exists():
      return False
    self.require(files.read_json(path)['checksum'], folder)
    return True

  def _write_config(self, folder: epath.Path, replaces: bool) -> None:
    path, text = folder / CONFIG, files.json_text(self.config.to_dict())
    if not path.exists() or (replaces and path.read_bytes() != text.encode()):
      files.write_text(path, text)
