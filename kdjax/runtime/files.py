"""Small files on local disks and gs://, never half-written. All paths are `epath.Path`.

Of several hosts the main one writes; the others go on at once. Let them wait (`hosts.barrier`) before
they read what was written.
"""

import contextlib
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

CHECKSUM = 'sha256'  # the key of an object's checksum
CLOUD = 'gs://'
# How TensorStore's errors begin of what it could not get: without the right to it, or with a full table of
# open files, or from a server that did not answer.
REFUSALS = ('PERMISSION_DENIED', 'RESOURCE_EXHAUSTED', 'UNAVAILABLE', 'DEADLINE_EXCEEDED')
NEEDS_CLOUD = (
  f"{CLOUD} needs a package: pip install 'etils[epath-gcs]', and other places than it and local disks "
  'cannot be reached'
)


def is_reachable(path: str) -> bool:
  """Whether it can be a path here: a local one, or on gs:// where its package is installed."""
  scheme, separator, _ = path.partition('://')
  return not separator or (
    f'{scheme}{separator}' == CLOUD and importlib.util.find_spec('gcsfs') is not None
  )


def is_refused(error: Exception) -> bool:
  """Whether something was not read though it may be there and whole: that is no damage."""
  if isinstance(error, OSError):
    return not isinstance(error, FileNotFoundError | IsADirectoryError | NotADirectoryError)
  return str(error).startswith(REFUSALS)


def refusal(place: epath.Path, error: Exception) -> StorageError:
  text = ' '.join(str(error).split())
  return StorageError(
    f'{place} could not be read ({text}). Mend that, and run the same command: it goes on where it was.'
  )


def write_bytes(path: epath.Path, content: bytes) -> None:
  """Writes the whole file or none of it."""
  if not hosts.is_main():
    return
  path.parent.mkdir(parents=True, exist_ok=True)
  # Named anew: another machine may have a process of the same number.
  temporary = path.parent / f'{path.name}.{uuid.uuid4().hex}.tmp'
  try:
    temporary.write_bytes(content)
    temporary.replace(path)
  except OSError as error:
    # On a full disk it takes room; on a read-only one it is not there.
    with contextlib.suppress(OSError):
      temporary.unlink(missing_ok=True)
    raise StorageError(
      f'{path} could not be written ({error}). Make room, or mend what else is wrong there, and run the '
      'same command: it goes on where it was.'
    ) from error


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
  except OSError:
    raise
  except Exception as error:  # a flipped bit of a zip file makes it raise nearly anything
    raise DamageError(f'{path} is damaged ({error}). Delete it and run again.') from error


def checksum(content: bytes) -> str:
  return hashlib.sha256(content).hexdigest()


def write_json(path: epath.Path, value: Any) -> None:
  write_text(path, json_text(value))


def json_text(value: Any) -> str:
  """An object gets the checksum of the others as its last value, since a flipped digit is valid JSON."""
  if isinstance(value, dict):
    value = value | {CHECKSUM: checksum(json.dumps(value).encode())}
  return json.dumps(value, indent=2) + '\n'


def read_json(path: epath.Path) -> Any:
  """What was written with `write_json`, or by hand and without a checksum.

  Raises:
    DamageError: it is not what was written.
  """
  value = _decode(path, json.loads)
  if isinstance(value, dict) and CHECKSUM in value:
    expected = value.pop(CHECKSUM)
    if checksum(json.dumps(value).encode()) != expected:
      raise DamageError(
        f'{path} is damaged: it has not the checksum that it names. Delete it and run again.'
      )
  return value


def read_json_lines(path: epath.Path) -> list[dict[str, Any]]:
  """The rows of a log, as `json_lines` has them; [] if there is none."""
  if not path.exists():
    return []
  return _decode(path, lambda text: [json.loads(line) for line in text.splitlines()])


def json_lines(rows: Iterable[dict[str, Any]]) -> bytes:
  """The content of a log, a line for each row."""
  return ''.join(json.dumps(row) + '\n' for row in rows).encode()


def _decode(path: epath.Path, decode: Callable[[str], Any]) -> Any:
  try:
    return decode(path.read_text())
  except ValueError as error:
    raise DamageError(f'{path} is damaged ({error}). Delete it and run again.') from error


@contextlib.contextmanager
def lock(folder: epath.Path, wait: bool = True) -> Iterator[bool]:
  """Keeps other processes away from a folder while its content is made.

  The lock ends with the process, however that ends. It lies beside the folder. On gs:// there are no
  locks: launch one process at a time there. Of several hosts the main one has it for all, and all must
  call this.

  Args:
    wait: for a process that has it, without an end; otherwise give up at once.

  Yields: whether the lock was had.
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
  """Raises ConfigError if there is a host that does not see what the main one writes in a folder."""
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
      [
        f'--workdir = {folder}: process {numbers} does not see what process 0 writes there; allowed: a '
        'folder that all hosts share, or gs://'
      ]
    )
