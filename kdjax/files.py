"""Small files on local disks and gs://, never half-written. All paths are `epath.Path`."""

import importlib.util
import io
import json
import os
import zipfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import filelock
import numpy as np
from etils import epath

from kdjax.errors import DamageError

CLOUD = 'gs://'
NEEDS_CLOUD = f"{CLOUD} needs a package: pip install 'etils[epath-gcs]'"


def is_reachable(path: str) -> bool:
  """Whether what reads and writes such a path is installed; only gs:// needs more than Python."""
  return not path.startswith(CLOUD) or importlib.util.find_spec('gcsfs') is not None


def write_bytes(path: epath.Path, content: bytes) -> None:
  """Writes the whole file or none of it."""
  path.parent.mkdir(parents=True, exist_ok=True)
  temporary = path.parent / f'{path.name}.{os.getpid()}.tmp'
  temporary.write_bytes(content)
  temporary.replace(path)


def write_text(path: epath.Path, text: str) -> None:
  write_bytes(path, text.encode())


def write_arrays(path: epath.Path, arrays: dict[str, np.ndarray]) -> None:
  """As an .npz."""
  buffer = io.BytesIO()
  np.savez(buffer, **arrays)
  write_bytes(path, buffer.getvalue())


def read_arrays(path: epath.Path) -> dict[str, np.ndarray]:
  try:
    with np.load(io.BytesIO(path.read_bytes())) as arrays:
      return dict(arrays)
  except (ValueError, EOFError, zipfile.BadZipFile) as error:
    raise DamageError(f'{path} is damaged ({error}). Delete it and run again.') from error


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


@contextmanager
def lock(folder: epath.Path, wait: bool = True) -> Iterator[bool]:
  """Keeps other processes away from a folder while its content is made.

  The lock ends with the process, however that ends. It lies beside the folder. On gs:// there are no
  locks: launch one process at a time there.

  Args:
    wait: for a process that has it, without an end; otherwise give up at once.

  Yields: whether the lock was had.
  """
  if folder.as_posix().startswith(CLOUD):
    yield True
    return
  folder.parent.mkdir(parents=True, exist_ok=True)
  try:
    with filelock.FileLock(f'{folder.as_posix()}.lock', timeout=-1 if wait else 0):
      yield True
      return
  except filelock.Timeout:
    pass
  yield False
