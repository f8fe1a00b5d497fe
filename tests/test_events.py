"""The event file holds the written scalars, and a full disk is reported at once."""

import struct

import pytest
from etils import epath
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.record_writer import RecordWriter

from kdjax.errors import StorageError
from kdjax.train import events
from kdjax.train.events import Events


def read(folder):
  """The events of the one file. Each has its length in 8 bytes and a checksum of 4 before it, and another behind it."""
  (path,) = folder.iterdir()
  assert path.name.startswith('events.out.tfevents.')
  content, found = path.read_bytes(), []
  while content:
    (size,) = struct.unpack('<Q', content[:8])
    found.append(Event.FromString(content[12 : 12 + size]))
    content = content[12 + size + 4 :]
  return found


def test_scalars_are_on_the_disk_as_soon_as_they_are_written(tmp_path):
  written = Events(epath.Path(tmp_path / 'tensorboard'), start=7)
  written.scalars(8, {'train/loss': 0.5, 'epoch': 2})
  version, began, *scalars = read(tmp_path / 'tensorboard')
  assert version.file_version == 'brain.Event:2'
  assert (began.step, began.session_log.status) == (7, SessionLog.START)
  found = [(e.step, e.summary.value[0].tag, e.summary.value[0].simple_value) for e in scalars]
  assert found == [(8, 'train/loss', 0.5), (8, 'epoch', 2.0)]
  assert all(event.wall_time > 0 for event in scalars)
  written.finish(failed=False)


def test_a_full_disk_is_reported_in_one_error(tmp_path, monkeypatch):
  monkeypatch.setattr(events, 'RecordWriter', lambda path: RecordWriter('/dev/full'))
  with pytest.raises(
    StorageError, match=rf'^{tmp_path}: the events .* could not be .*No space left'
  ):
    Events(epath.Path(tmp_path), start=0)
