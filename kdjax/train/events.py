"""The event file of a training, which TensorBoard reads."""

import contextlib
import socket
import time
from collections.abc import Iterable, Mapping

from etils import epath
from tensorboardX import summary
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.record_writer import RecordWriter

from kdjax.errors import StorageError


class Events:
  """Writes scalars, which are on the disk when the call returns.

  tensorboardX's own `SummaryWriter` writes from a thread and once more at the interpreter's exit, where a
  full disk cannot be reported as one clear error.
  """

  def __init__(self, folder: epath.Path, start: int):
    """Begins a file. TensorBoard then ignores the events of earlier files from step `start` on.

    Raises:
      StorageError: the file cannot be written; `scalars` raises it too.
    """
    self._folder = folder
    folder.mkdir(parents=True, exist_ok=True)
    name = f'events.out.tfevents.{time.time():.6f}.{socket.gethostname()}'
    self._file = RecordWriter(str(folder / name))
    began = Event(step=start, session_log=SessionLog(status=SessionLog.START))
    self._write([Event(file_version='brain.Event:2'), began])

  def scalars(self, step: int, values: Mapping[str, float]) -> None:
    self._write(Event(step=step, summary=summary.scalar(key, x)) for key, x in values.items())

  def finish(self, failed: bool) -> None:
    self._file.close()

  def _write(self, events: Iterable[Event]) -> None:
    try:
      for event in events:
        event.wall_time = time.time()
        self._file.write(event.SerializeToString())
      self._file.flush()
    except OSError as error:
      with contextlib.suppress(OSError):  # closing tries again to write the rest
        self._file.close()
      raise StorageError(
        f'{self._folder}: the events for TensorBoard could not be written ({error}). Make room or fix the '
        'disk, and run the same command again: it resumes.'
      ) from error
