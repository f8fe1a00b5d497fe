"""Small files are written whole, and damage is reported. A lock has one process at a time."""

import errno
import pathlib
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from etils import epath

from kdjax.errors import DamageError, StorageError
from kdjax.runtime import files
from tests import launched


@pytest.fixture
def path(tmp_path):
  return epath.Path(tmp_path) / 'new' / 'folder' / 'file.json'


def test_text_is_written_and_replaced(path):
  for text in ('first: λ\n', 'second\n', ''):
    files.write_text(path, text)
    assert path.read_text() == text
  assert [p.name for p in path.parent.iterdir()] == ['file.json']  # nothing is left over


def test_a_write_that_fails_midway_is_reported_and_leaves_the_old_content(path, monkeypatch):
  files.write_text(path, 'old')

  def full_disk(temporary, content):
    with open(temporary, 'wb') as file:
      file.write(content[:2])
    raise OSError(errno.ENOSPC, 'No space left on device')

  with monkeypatch.context() as patch, pytest.raises(StorageError, match=f'{path} could.*No space'):
    patch.setattr(type(path), 'write_bytes', full_disk)
    files.write_text(path, 'new')
  assert [(p.name, p.read_text()) for p in path.parent.iterdir()] == [('file.json', 'old')]


def test_writers_of_one_process_number_do_not_meet(path):
  """Threads share a process number; processes on two machines may."""
  texts = [letter * 100_000 for letter in 'abcdefgh']
  with ThreadPoolExecutor(len(texts)) as pool:
    for _ in range(20):
      list(pool.map(lambda text: files.write_text(path, text), texts))
      assert path.read_text() in texts
  assert [p.name for p in path.parent.iterdir()] == ['file.json']


def test_json_comes_back_as_it_was(path):
  for value in ({'a': [1, 2.5, None, True], 'b': {'c': 'λ'}}, [], 0.1 + 0.2, 'text'):
    files.write_json(path, value)
    assert files.read_json(path) == value
    assert path.read_text().endswith('\n')


@pytest.mark.parametrize('read', [files.read_json, files.read_json_lines])
@pytest.mark.parametrize('content', [b'{"a": 1}\n{"a": 1', b'{"a": \xff}'])
def test_damage_is_reported_with_the_path(path, read, content):
  path.parent.mkdir(parents=True)
  path.write_bytes(content)
  with pytest.raises(DamageError, match=f'{path} is damaged.*Delete it'):
    read(path)


def test_a_flipped_digit_is_reported_and_json_by_hand_needs_no_checksum(path):
  files.write_json(path, {'step': 34, 'name': 'a'})
  path.write_text(path.read_text().replace('34', '36'))
  with pytest.raises(DamageError, match=f'{path} is damaged.*Delete it'):
    files.read_json(path)
  files.write_text(path, '{"step": 34}')
  assert files.read_json(path) == {'step': 34}


def test_json_lines_come_back_as_they_were(path):
  rows = [{'step': 1, 'loss': 0.5}, {'step': 2, 'text': 'two\nlines'}]
  files.write_bytes(path, files.json_lines(iter(rows)))
  assert files.read_json_lines(path) == rows
  assert len(path.read_text().splitlines()) == 2
  files.write_bytes(path, files.json_lines([]))
  assert files.read_json_lines(path) == []
  path.unlink()
  assert files.read_json_lines(path) == []


# Locks.


def hold(folder: epath.Path) -> None:
  with files.lock(folder) as locked:
    print(locked, flush=True)
    time.sleep(60)


def count_to_ten(folder: epath.Path, count: pathlib.Path) -> None:
  for _ in range(10):
    with files.lock(folder):
      number = int(count.read_text())
      time.sleep(0.01)
      count.write_text(str(number + 1))


@pytest.fixture
def folder(tmp_path):
  return epath.Path(tmp_path) / 'new' / 'folder'


def test_processes_take_a_lock_one_after_the_other(folder, tmp_path):
  count = tmp_path / 'count'
  count.write_text('0')
  processes = [launched.call(count_to_ten, folder, count) for _ in range(3)]
  assert [process.wait() for process in processes] == [0, 0, 0]
  assert count.read_text() == '30'


def test_the_lock_of_a_killed_process_is_free(folder):
  holder = launched.call(hold, folder)
  while holder.told != 'True\n':
    assert holder.is_alive(), holder.told
    time.sleep(0.01)
  with files.lock(folder, wait=False) as locked:
    assert not locked
  with files.lock(folder.parent / 'other', wait=False) as locked:
    assert locked
  assert holder.kill()
  with files.lock(folder, wait=False) as locked:
    assert locked


def test_a_lock_is_free_again_after_an_error_and_leaves_the_folder_alone(folder):
  with pytest.raises(DamageError), files.lock(folder):
    raise DamageError('in the middle of the work')
  with files.lock(folder, wait=False) as locked:
    assert locked
  assert not folder.exists()


def test_there_are_no_locks_in_a_bucket():
  folder = epath.Path('gs://bucket/students/0123')
  for wait in (True, False):
    with files.lock(folder, wait) as first, files.lock(folder, wait) as second:
      assert first and second


def test_gs_paths_need_a_package(monkeypatch):
  monkeypatch.setattr(files.importlib.util, 'find_spec', lambda name: None)
  assert not files.is_reachable('gs://bucket/x')
  assert files.is_reachable('/some/folder')
  monkeypatch.setattr(files.importlib.util, 'find_spec', lambda name: name == 'gcsfs' or None)
  assert files.is_reachable('gs://bucket/x')
