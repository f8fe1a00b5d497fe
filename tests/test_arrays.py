"""Data sets of arrays: .npz files, and results of functions, in memory and streamed."""

import numpy as np
import pytest
from tiny_data import section

from kdjax import data
from kdjax.data.arrays import Arrays
from kdjax.errors import UserError

IMAGES = np.random.default_rng(0).integers(0, 256, (12, 5, 4, 2), dtype=np.uint8)
LABELS = np.arange(12) % 3


def content(**changes):
  return {'train': (IMAGES[:8], LABELS[:8]), 'test': (IMAGES[8:], LABELS[8:])} | changes


class Stored:
  """Inputs that can only be read one by one."""

  def __init__(self, images):
    self._images = images

  def __len__(self):
    return len(self._images)

  def __getitem__(self, i):
    assert type(i) is int
    return self._images[i]


def npz(path, **changes):
  arrays = {
    'x_train': IMAGES[:8],
    'y_train': LABELS[:8],
    'x_test': IMAGES[8:],
    'y_test': LABELS[8:],
  }
  arrays |= changes
  np.savez(path, **{name: array for name, array in arrays.items() if array is not None})
  return section(name='arrays', path=str(path))


def test_an_npz_file(tmp_path):
  config = npz(tmp_path / 'a.npz', class_names=np.array(['a', 'b', 'c']))
  assert data.describe(config) == data.Description((5, 4, 2), ('a', 'b', 'c'), 8, 4)
  splits = data.load(config)
  assert list(splits) == ['train', 'test']
  np.testing.assert_array_equal(splits['train'].inputs_N, IMAGES[:8])
  np.testing.assert_array_equal(splits['test'].labels_N, LABELS[8:])
  splits = data.load(npz(tmp_path / 'b.npz', x_val=IMAGES[:2], y_val=LABELS[:2]))
  assert {name: len(split) for name, split in splits.items()} == {'train': 8, 'val': 2, 'test': 4}
  np.testing.assert_array_equal(splits['val'].inputs_N, IMAGES[:2])


@pytest.mark.parametrize(
  ('dtype', 'shape'), [(np.float64, (7,)), (np.float32, (2, 3)), (np.float16, (2, 2, 2, 2))]
)
def test_floats_of_any_shape_stay_as_they_are(tmp_path, dtype, shape):
  inputs = np.random.default_rng(1).uniform(-1, 1, (12, *shape)).astype(dtype)
  config = npz(tmp_path / 'a.npz', x_train=inputs[:8], x_test=inputs[8:])
  description = data.describe(config)
  assert (description.dtype, description.input_shape) == ('float32', shape)
  found = data.load(config)['test'].inputs_N
  assert found.dtype == np.float32
  np.testing.assert_array_equal(found, inputs[8:].astype(np.float32))


def changed(inputs, place, value):
  found = inputs.copy()
  found[place] = value
  return found


@pytest.mark.parametrize(
  ('changes', 'splits'),
  [
    ({}, []),
    ({'x_train': np.asfortranarray(IMAGES[:8])}, []),
    ({'y_train': LABELS[:8].astype(np.uint8)}, []),
    ({'class_names': np.array(['a', 'b', 'c'])}, []),  # names decide nothing, their number does
    ({'class_names': np.array(['a', 'b', 'c', 'd'])}, ['test', 'train']),
    ({'x_train': changed(IMAGES[:8], (7, 4, 3, 1), 255 - IMAGES[7, 4, 3, 1])}, ['train']),
    ({'x_test': changed(IMAGES[8:], (0, 0, 0, 0), 255 - IMAGES[8, 0, 0, 0])}, ['test']),
    ({'y_test': changed(LABELS[8:], 0, 0)}, ['test']),
    ({'x_train': IMAGES[:8, ::-1]}, ['train']),
    ({'x_train': IMAGES[[1, 0, *range(2, 8)]]}, ['train']),
    (
      {'x_train': IMAGES[:8].reshape(8, 4, 5, 2), 'x_test': IMAGES[8:].reshape(4, 4, 5, 2)},
      ['test', 'train'],
    ),
  ],
)
def test_content_is_known_by_split(tmp_path, changes, splits):
  before, after = (
    data.content(npz(tmp_path / 'a.npz')),
    data.content(npz(tmp_path / 'b.npz', **changes)),
  )
  assert sorted(split for split in before if before[split] != after[split]) == splits


def test_content_is_read_once_until_it_is_forgotten(tmp_path):
  config = npz(tmp_path / 'a.npz')
  before = data.content(config)
  npz(tmp_path / 'a.npz', x_test=IMAGES[:4])
  assert data.content(config) == before
  data.forget()
  after = data.content(config)
  assert (after['train'], after['test'] != before['test']) == (before['train'], True)
  assert data.content(section(name='digits')) == {}


def test_inputs_that_are_read_one_by_one_have_a_digest_of_a_sample():
  class Counted(Stored):
    num_read = 0

    def __getitem__(self, i):
      Counted.num_read += 1
      return super().__getitem__(i)

  many = np.repeat(IMAGES, 100, axis=0)

  def digest(images):
    pair = Counted(images), np.arange(len(images)) % 3
    source = Arrays('many', {'train': pair, 'test': pair}, 'many')
    Counted.num_read = 0
    return source.digests['train']

  before = digest(many)
  assert Counted.num_read == 2 * 64  # of both splits; 1,200 / 64 is 18.75
  assert digest(many) == before
  assert digest(many[::-1]) != before
  assert digest(many[:-1]) != before


@pytest.mark.parametrize('dtype', [np.uint8, np.float32])
def test_streamed_objects_give_what_arrays_do(tmp_path, monkeypatch, dtype):
  images = IMAGES if dtype == np.uint8 else (IMAGES / 255).astype(np.float32)
  stored = content(train=(Stored(images[:8]), LABELS[:8]), test=(Stored(images[8:]), LABELS[8:]))
  (tmp_path / 'streamed_set.py').write_text('def load():\n  raise AssertionError\n')
  monkeypatch.syspath_prepend(tmp_path)
  import streamed_set

  name = f'streamed_set:load_{np.dtype(dtype).name}'
  setattr(streamed_set, name.partition(':')[2], lambda: stored)
  streamed = data.load(section(name=name, streaming=True))['train']
  loaded = data.load(section(name=name))['train']
  assert streamed.is_streamed and not loaded.is_streamed
  assert streamed.inputs_N.dtype == loaded.inputs_N.dtype == dtype
  np.testing.assert_array_equal(streamed.inputs_N[np.arange(8)], loaded.inputs_N)
  np.testing.assert_array_equal(loaded.inputs_N, images[:8])


@pytest.mark.parametrize(
  ('changes', 'expected'),
  [
    ({'y_test': None}, 'has the arrays x_test, x_train, y_train; allowed'),
    ({'x_val': IMAGES}, 'has the arrays x_test, x_train, x_val'),
    ({'more': IMAGES}, 'has the arrays more'),
    ({'y_train': LABELS}, "'train' has 8 inputs and 12 labels"),
    ({'y_train': LABELS[:8] - 1}, "y of 'train' has the label -1"),
    ({'y_train': LABELS[:8] / 2}, "y of 'train' has the shape (8,) and dtype float64"),
    ({'y_train': LABELS[:8, None]}, "y of 'train' has the shape (8, 1)"),
    ({'x_train': IMAGES[:8].astype(int), 'x_test': IMAGES[8:].astype(int)}, 'dtype int64'),
    ({'x_test': IMAGES[8:, :3]}, 'test holds ((3, 4, 2)'),
    ({'x_train': IMAGES[:8, 0, 0, 0], 'x_test': IMAGES[8:, 0, 0, 0]}, 'is a single number'),
    ({'class_names': np.array(['a'])}, 'class_names has 1 names'),
    (
      {'y_train': np.zeros(8, int), 'y_test': np.zeros(4, int)},
      'needed: a name for each label, and two',
    ),
    ({'x_train': IMAGES[:0], 'y_train': LABELS[:0]}, 'has 0 inputs'),
    ({'x_train': np.array([None] * 8)}, 'cannot be read as an .npz file'),
  ],
)
def test_a_wrong_file_is_refused(tmp_path, changes, expected):
  config = npz(tmp_path / 'a.npz', **changes)
  with pytest.raises(UserError) as error:
    data.describe(config)
  assert expected in str(error.value)
  assert 'dataset.path' in str(error.value)


def test_a_file_of_another_kind_is_refused(tmp_path):
  place = tmp_path / 'a.npz'
  for text in (None, b'', b'no zip', b'PK\x03\x04'):
    if text is not None:
      place.write_bytes(text)
    data.forget()
    with pytest.raises(UserError, match='allowed with dataset'):
      data.describe(section(name='arrays', path=str(place)))


def test_values_outside_of_the_range_are_refused():
  for bad in (2.0, -1.5, np.nan, np.inf):
    images = np.zeros((8, 2, 2, 1), np.float32)
    images[5, 0, 0, 0] = bad
    source = Arrays('a', content(train=(images, LABELS[:8]), test=(images, LABELS[:8])), 'x = y')
    source.fetch('train', np.arange(5))
    with pytest.raises(UserError, match='x = y: train has values in'):
      source.fetch('train', np.arange(8))


@pytest.mark.parametrize(
  ('given', 'expected'),
  [
    ([1, 2], 'gives list'),
    ({'train': (IMAGES, LABELS)}, "gives ['train']"),
    (content(more=3), "'more'"),
    (content(test=IMAGES), "'test' is not a pair"),
    (content(test=(3, LABELS)), 'is a int'),
    (content(train=(Stored(IMAGES[:8, :2]), LABELS[:8])), 'test holds'),
  ],
)
def test_what_a_function_returns_is_checked(given, expected):
  with pytest.raises(UserError) as error:
    Arrays('a', given, 'dataset.name = x')
  assert expected in str(error.value)
  assert str(error.value).startswith('dataset.name = x: ')
