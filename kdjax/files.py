"""Small files on local disks and gs://, never half-written. All paths are `epath.Path`."""

import json
import os
from collections.abc import Callable, Iterable
from typing import Any

from etils import epath

from kdjax.errors import DamageError


def write_text(path: epath.Path, text: str) -> None:
  """Writes the whole file or none of it."""
  path.parent.mkdir(parents=True, exist_ok=True)
  temporary = path.parent / f'{path.name}.{os.getpid()}.tmp'
  temporary.write_text(text)
  temporary.replace(path)


def write_json(path: epath.Path, value: Any) -> None:
  write_text(path, json.dumps(value, indent=2) + '\n')


def read_json(path: epath.Path) -> Any:
  return _decode(path, json.loads)


def read_json_lines(path: epath.Path) -> list[dict[str, Any]]:
  """The lines of a log that was written with `write_json_lines`; [] if there is none."""
  if not path.exists():
    return []
  return _decode(path, lambda text: [json.loads(line) for line in text.splitlines()])


def write_json_lines(path: epath.Path, rows: Iterable[dict[str, Any]]) -> None:
  write_text(path, ''.join(json.dumps(row) + '\n' for row in rows))


def _decode(path: epath.Path, decode: Callable[[str], Any]) -> Any:
  try:
    return decode(path.read_text())
  except ValueError as error:
    raise DamageError(f'{path} is damaged ({error}). Delete it and run again.') from error
