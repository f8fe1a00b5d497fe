"""Small files: all or nothing, and damage is told."""

import pytest
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


def test_json_lines_come_back_as_they_were(path):
  rows = [{'step': 1, 'loss': 0.5}, {'step': 2, 'text': 'two\nlines'}]
  files.write_json_lines(path, iter(rows))
  assert files.read_json_lines(path) == rows
  assert len(path.read_text().splitlines()) == 2


@pytest.mark.parametrize('rows', [None, []])
def test_a_log_that_is_missing_or_empty_has_no_lines(path, rows):
  if rows is not None:
    files.write_json_lines(path, rows)
  assert files.read_json_lines(path) == []


@pytest.mark.parametrize('content', [b'{"step": 1}\n{"step"', b'\xff\n'])
def test_a_damaged_log_is_told_with_its_path(path, content):
  path.parent.mkdir(parents=True)
  path.write_bytes(content)
  with pytest.raises(DamageError) as error:
    files.read_json_lines(path)
  assert str(path) in str(error.value)
