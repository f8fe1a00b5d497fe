"""Records of the code and data behind artefacts, which tell why an artefact is made anew."""

from typing import Any

from etils import epath
from ml_collections import ConfigDict

from kdjax.config import fingerprints
from kdjax.runtime import files, progress

RECORD = 'code.json'


def record(folder: epath.Path, config: ConfigDict, artefact: str) -> None:
  """Writes the record of an artefact that is about to be made, unless it is there.

  If the workdir has an artefact of the same fields and other code or data, a warning names these.

  Args:
    folder: the artefact's folder. The members of a teacher share a record in the folder above theirs.
    artefact: of `fingerprints.FINGERPRINTS`.
  """
  folder = folder.parent if artefact == 'teacher' else folder
  if (folder / RECORD).exists():
    return
  new = fingerprints.code_record(config, artefact)
  others = sorted(folder.parent.glob(f'*/{RECORD}')) if folder.parent.exists() else []
  found = [names for path in others if (names := _changes(path, new))]
  if found:  # of several, the most similar one
    names = ', '.join(min(found, key=len))
    progress.logger.warning('%s: made anew, since what decides it has changed: %s', artefact, names)
  files.write_json(folder / RECORD, new)


def changes(folder: epath.Path, config: ConfigDict, artefact: str) -> list[str]:
  """The definitions and data that have changed since an artefact of these fields was made; [] without a record."""
  path = folder / RECORD
  return _changes(path, fingerprints.code_record(config, artefact)) if path.exists() else []


def _changes(path: epath.Path, new: dict[str, Any]) -> list[str]:
  return fingerprints.changed(files.read_json(path), new) or []
