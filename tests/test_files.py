"""Small files: all or nothing, and damage is told. Locks: one process at a time."""

import json
import os
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
from conftest import ROOT
from etils import epath

from kdjax import files
from kdjax.errors import DamageError


@pytest.fixture
def path(tmp_path):
  return epath.Path(tmp_path) / 'new' / 'folder' / 'file.json'


def test_text_is_written_and_replaced(path):
  for text in ('first: λ\n', 'second\n', ''):
    files.write_text(path, text)
    assert path.read_text() == text
  assert [p.name for p in path.parent.iterdir()] == ['file.json']  # nothing is left over


def test_a_write_that_fails_midway_leaves_the_old_content(path):
  files.write_text(path, 'old')
  with pytest.raises(UnicodeEncodeError):
    files.write_text(path, 'new, but \ud800 cannot be encoded')
  assert path.read_text() == 'old'


def test_a_failed_first_write_leaves_no_file(path):
  with pytest.raises(UnicodeEncodeError):
    files.write_text(path, '\ud800')
  assert not path.exists()
  files.write_text(path, 'new')  # and does not stand in the way of the next
  assert path.read_text() == 'new'


def test_writers_of_one_process_number_do_not_meet(path):
  """Threads have one; processes on two machines may."""
  texts = [letter * 100_000 for letter in 'abcdefgh']
  with ThreadPoolExecutor(len(texts)) as pool:
    for _ in range(20):
      list(pool.map(lambda text: files.write_text(path, text), texts))
      assert path.read_text() in texts
  assert [p.name for p in path.parent.iterdir()] == ['file.json']


@pytest.mark.parametrize(
  'value', [{'a': [1, 2.5, None, True], 'b': {'c': 'λ'}}, [], 0.1 + 0.2, 'text']
)
def test_json_comes_back_as_it_was(path, value):
  files.write_json(path, value)
  assert files.read_json(path) == value
  assert path.read_text().endswith('\n')


@pytest.mark.parametrize('content', [b'', b'{"a": 1', b'{"a": \xff}'])
def test_damaged_json_is_told_with_its_path(path, content):
  path.parent.mkdir(parents=True)
  path.write_bytes(content)
  with pytest.raises(DamageError) as error:
    files.read_json(path)
  assert str(path) in str(error.value)


def test_a_flipped_digit_is_told(path):
  files.write_json(path, {'step': 34, 'name': 'a'})
  assert json.loads(path.read_text())['step'] == 34
  path.write_text(path.read_text().replace('34', '36'))
  with pytest.raises(DamageError, match=f'{path} is damaged.*Delete it'):
    files.read_json(path)


def test_json_by_hand_needs_no_checksum(path):
  files.write_text(path, '{"step": 34}')
  assert files.read_json(path) == {'step': 34}


def test_json_lines_come_back_as_they_were(path):
  rows = [{'step': 1, 'loss': 0.5}, {'step': 2, 'text': 'two\nlines'}]
  files.write_bytes(path, files.json_lines(iter(rows)))
  assert files.read_json_lines(path) == rows
  assert len(path.read_text().splitlines()) == 2


@pytest.mark.parametrize('rows', [None, []])
def test_a_log_that_is_missing_or_empty_has_no_lines(path, rows):
  if rows is not None:
    files.write_bytes(path, files.json_lines(rows))
  assert files.read_json_lines(path) == []


@pytest.mark.parametrize('content', [b'{"step": 1}\n{"step"', b'\xff\n'])
def test_a_damaged_log_is_told_with_its_path(path, content):
  path.parent.mkdir(parents=True)
  path.write_bytes(content)
  with pytest.raises(DamageError) as error:
    files.read_json_lines(path)
  assert str(path) in str(error.value)


# Locks.

HOLD = """
import sys, time
from etils import epath
from kdjax import files
with files.lock(epath.Path(sys.argv[1])) as locked:
  print(locked, flush=True)
  time.sleep(60)
"""
COUNT = """
import sys, time
from etils import epath
from kdjax import files
folder, count = epath.Path(sys.argv[1]), epath.Path(sys.argv[2])
for _ in range(10):
  with files.lock(folder):
    number = int(count.read_text())
    time.sleep(0.01)
    count.write_text(str(number + 1))
"""


def start(program, *arguments) -> subprocess.Popen:
  return subprocess.Popen(
    [sys.executable, '-c', program, *map(str, arguments)],
    env=os.environ | {'PYTHONPATH': str(ROOT)},
    stdout=subprocess.PIPE,
    text=True,
  )


@pytest.fixture
def folder(tmp_path):
  return epath.Path(tmp_path) / 'new' / 'folder'


def test_processes_take_a_lock_one_after_the_other(folder, tmp_path):
  count = tmp_path / 'count'
  count.write_text('0')
  processes = [start(COUNT, folder, count) for _ in range(3)]
  assert [process.wait() for process in processes] == [0, 0, 0]
  assert count.read_text() == '30'


def test_the_lock_of_a_killed_process_is_free(folder):
  holder = start(HOLD, folder)
  assert holder.stdout.readline() == 'True\n'
  with files.lock(folder, wait=False) as locked:
    assert not locked
  with files.lock(folder.parent / 'other', wait=False) as locked:
    assert locked
  holder.send_signal(signal.SIGKILL)
  holder.wait()
  holder.stdout.close()
  with files.lock(folder, wait=False) as locked:
    assert locked


def test_a_lock_is_free_again_after_an_error_and_leaves_the_folder_alone(folder):
  with pytest.raises(DamageError), files.lock(folder):
    raise DamageError('in the middle of the work')
  with files.lock(folder, wait=False) as locked:
    assert locked
  assert not folder.exists()


@pytest.mark.parametrize('wait', [True, False])
def test_there_are_no_locks_in_a_bucket(wait):
  folder = epath.Path('gs://bucket/students/0123')
  with files.lock(folder, wait) as first, files.lock(folder, wait) as second:
    assert first and second


def test_gs_paths_need_a_package(monkeypatch):
  monkeypatch.setattr(files.importlib.util, 'find_spec', lambda name: None)
  assert not files.is_reachable('gs://bucket/x')
  assert files.is_reachable('/some/folder')
  monkeypatch.setattr(files.importlib.util, 'find_spec', lambda name: name == 'gcsfs' or None)
  assert files.is_reachable('gs://bucket/x')
