"""Small files on local disks and gs://, written whole or not at all. All paths are `epath.Path`.

With several hosts, the main host writes and the others return at once. Call `hosts.barrier` before another
host reads the file.
"""

import contextlib
import functools
import hashlib
import importlib.util
import io
import json
import os
import uuid
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import filelock
import numpy as np
from etils import epath

from kdjax.errors import ConfigError, DamageError, StorageError
from kdjax.runtime import hosts

CHECKSUM = 'sha256'  # the key under which a JSON object holds its own checksum
CLOUD = 'gs://'
# TensorStore's errors begin so if data could not be read but may be whole: no permission, too many open
# files, or a server that did not answer.
REFUSALS = ('PERMISSION_DENIED', 'RESOURCE_EXHAUSTED', 'UNAVAILABLE', 'DEADLINE_EXCEEDED')
NEEDS_CLOUD = f"{CLOUD} needs a package: pip install 'etils[epath-gcs]'; allowed are paths on local disks and on {CLOUD}"


def is_reachable(path: str) -> bool:
  """Whether the path is local, or on gs:// with the package for it installed."""
  scheme, separator, _ = path.partition('://')
  return not separator or (
    f'{scheme}{separator}' == CLOUD and importlib.util.find_spec('gcsfs') is not None
  )


def is_refused(error: Exception) -> bool:
  """Whether the error means that data could not be read, but may be whole."""
  if isinstance(error, OSError):
    return not isinstance(error, FileNotFoundError | IsADirectoryError | NotADirectoryError)
  return str(error).startswith(REFUSALS)


def refusal(place: epath.Path, error: Exception) -> StorageError:
  """The error for data that could not be read; it says that the run can be resumed."""
  text = ' '.join(str(error).split())
  return StorageError(
    f'{place} could not be read ({text}). Fix that and run the same command again: it resumes.'
  )


def write_bytes(path: epath.Path, content: bytes) -> None:
  """Writes a file atomically; creates its folder.

  Raises:
    StorageError: the disk is full or cannot be written.
  """
  if not hosts.is_main():
    return
  path.parent.mkdir(parents=True, exist_ok=True)
  # A random name: another machine may have a process with the same number.
  temporary = path.parent / f'{path.name}.{uuid.uuid4().hex}.tmp'
  try:
    temporary.write_bytes(content)
    temporary.replace(path)
  except OSError as error:
    # On a full disk the temporary file takes room; on a read-only one it does not exist.
    with contextlib.suppress(OSError):
      temporary.unlink(missing_ok=True)
    raise StorageError(
      f'{path} could not be written ({error}). Make room or fix the disk, and run the same command '
      'again: it resumes.'
    ) from error


def write_text(path: epath.Path, text: str) -> None:
  write_bytes(path, text.encode())


def write_arrays(path: epath.Path, arrays: dict[str, np.ndarray]) -> None:
  """Writes arrays as an .npz, as `write_bytes` does."""
  buffer = io.BytesIO()
  np.savez(buffer, **arrays)
  write_bytes(path, buffer.getvalue())


def read_arrays(path: epath.Path) -> dict[str, np.ndarray]:
  """The arrays of an .npz by name.

  Raises:
    DamageError: the file is no .npz, or its checksum does not match.
  """
  try:
    with np.load(io.BytesIO(path.read_bytes())) as arrays:
      return dict(arrays)
  except OSError:
    raise
  except Exception as error:  # zipfile raises many types of errors for a damaged file
    raise DamageError(f'{path} is damaged ({error}). Delete it and run again.') from error


def checksum(content: bytes) -> str:
  return hashlib.sha256(content).hexdigest()


def tree_checksum(path: str | os.PathLike) -> str | None:
  """The checksum of a file, or of all files of a folder with their names; None if the path does not exist."""
  place = epath.Path(path).expanduser()
  if not place.exists():
    return None
  paths = sorted(x for x in place.rglob('*') if not x.is_dir()) if place.is_dir() else [place]
  return _tree_checksum(place, tuple((x.as_posix(), *_stamp(x)) for x in paths))


def _stamp(path: epath.Path) -> tuple[int, float]:
  """The length and modification time of a file. A change of the file changes them."""
  if path.as_posix().startswith(CLOUD):
    return path.stat().length, path.stat().mtime
  stat = os.stat(path)
  return stat.st_size, stat.st_mtime_ns


@functools.lru_cache(16)
def _tree_checksum(place: epath.Path, stamps: tuple[tuple[str, int, float], ...]) -> str:
  sha = hashlib.sha256()
  for name, length, _ in stamps:
    sha.update(f'{name.removeprefix(place.as_posix())} {length}'.encode())
    with epath.Path(name).open('rb') as file:
      while block := file.read(2**24):
        sha.update(block)
  return sha.hexdigest()


def write_json(path: epath.Path, value: Any) -> None:
  write_text(path, json_text(value))


def json_text(value: Any) -> str:
  """A value as JSON text. An object also gets a checksum, since a flipped digit is still valid JSON."""
  if isinstance(value, dict):
    value = value | {CHECKSUM: checksum(json.dumps(value).encode())}
  return json.dumps(value, indent=2) + '\n'


def read_json(path: epath.Path) -> Any:
  """The value of a file that `write_json` or a person wrote; only the former has a checksum.

  Raises:
    DamageError: the file is no JSON, or its checksum does not match.
  """
  value = _decode(path, json.loads)
  if isinstance(value, dict) and CHECKSUM in value:
    expected = value.pop(CHECKSUM)
    if checksum(json.dumps(value).encode()) != expected:
      raise DamageError(f'{path} is damaged: its checksum does not match. Delete it and run again.')
  return value


def read_json_lines(path: epath.Path) -> list[dict[str, Any]]:
  """The rows of a log with one JSON object per line; [] if the file does not exist."""
  if not path.exists():
    return []
  return _decode(path, lambda text: [json.loads(line) for line in text.splitlines()])


def json_lines(rows: Iterable[dict[str, Any]]) -> bytes:
  """The content of a log with one JSON object per line."""
  return ''.join(json.dumps(row) + '\n' for row in rows).encode()


def _decode(path: epath.Path, decode: Callable[[str], Any]) -> Any:
  try:
    return decode(path.read_text())
  except ValueError as error:
    raise DamageError(f'{path} is damaged ({error}). Delete it and run again.') from error


@contextlib.contextmanager
def lock(folder: epath.Path, wait: bool = True) -> Iterator[bool]:
  """A context that keeps other processes out of a folder while its content is made.

  The lock file is FOLDER.lock; the operating system releases it when the process ends. gs:// has no locks:
  run one process at a time there. With several hosts, all must call this; the main host holds the lock for
  all.

  Args:
    wait: whether to wait until another process releases the lock.

  Yields: whether this process holds the lock.
  """
  with contextlib.ExitStack() as held:
    yield hosts.decide(lambda: _take(folder, wait, held))


def _take(folder: epath.Path, wait: bool, held: contextlib.ExitStack) -> bool:
  if folder.as_posix().startswith(CLOUD):
    return True
  folder.parent.mkdir(parents=True, exist_ok=True)
  try:
    held.enter_context(filelock.FileLock(f'{folder.as_posix()}.lock', timeout=-1 if wait else 0))
  except filelock.Timeout:
    return False
  return True


def require_shared(folder: epath.Path) -> None:
  """Raises ConfigError if some host does not see the files that the main host writes in the folder."""
  if hosts.count() == 1:
    return
  probe = folder / f'.seen_by_all.{hosts.gather(os.getpid())[0]}'
  write_text(probe, '')
  hosts.barrier()
  blind = np.flatnonzero(~hosts.gather(probe.exists()))
  if hosts.is_main():
    probe.unlink()
  if len(blind):
    numbers = ', '.join(map(str, blind))
    raise ConfigError(
      f'--workdir = {folder}: process {numbers} does not see what process 0 writes there; allowed: a '
      'folder that all hosts share, or gs://'
    )
