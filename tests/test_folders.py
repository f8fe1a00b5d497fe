"""A user's own images, in one folder for each class."""

import numpy as np
import pytest
from tiny_data import TEXT, random_images, section, write_files, write_tfds

from kdjax import data
from kdjax.errors import UserError

SHAPE = (4, 6, 3)


def folder(place, **fields):
  return section(name='folder', data_dir=str(place), **fields)


def write_animals(place, shape=SHAPE):
  images = random_images(5, *shape)
  paths = ('train/dog/b.png', 'train/cat/2.PNG', 'train/cat/10.png', 'train/dog/a.png')
  write_files(place, {**dict(zip(paths, images, strict=False)), 'test/dog/x.png': images[4]})
  write_files(place, {'train/cat/.hidden.png': b'', 'train/cat/notes.txt': b'', 'test/cat/x': b''})
  return images[[2, 1, 3, 0]], images[[4]]


@pytest.mark.parametrize('shape', [SHAPE, (4, 6, 1)])
def test_a_folder_is_read_in_alphabetical_order(tmp_path, shape):
  train, test = write_animals(tmp_path, shape)
  config = folder(tmp_path)
  assert data.describe(config) == data.Description(shape, ('cat', 'dog'), 4, 1)
  splits = data.load(config)
  np.testing.assert_array_equal(splits['train'].inputs_N, train)
  np.testing.assert_array_equal(splits['train'].labels_N, [0, 0, 1, 1])
  np.testing.assert_array_equal(splits['test'].inputs_N, test)
  np.testing.assert_array_equal(splits['test'].labels_N, [1])


def test_images_of_a_folder_are_resized(tmp_path):
  train, _ = write_animals(tmp_path)
  write_files(tmp_path, {'train/dog/c.jpg': np.full((9, 5, 3), 77, np.uint8)})
  config = folder(tmp_path, image_size=4)
  assert data.describe(config).input_shape == (4, 4, 3)
  found = data.load(config)['train'].inputs_N
  np.testing.assert_array_equal(found[:4], train[:, :, 1:5])
  np.testing.assert_array_equal(found[4], np.full((4, 4, 3), 77))


@pytest.mark.parametrize(
  ('content', 'problem'),
  [
    (b'no image', 'cannot be decoded'),
    (
      np.zeros((5, 6, 3), np.uint8),
      r'has 5x6 pixels, the first image 4x6. Set dataset\.image_size',
    ),
  ],
)
def test_a_wrong_image_is_found_when_it_is_read(tmp_path, content, problem):
  write_animals(tmp_path)
  write_files(tmp_path, {'train/dog/c.png': content})
  assert data.describe(folder(tmp_path)).num_train == 5  # which decodes the first alone
  with pytest.raises(UserError, match=f'^{tmp_path}/train/dog/c.png: {problem}'):
    data.load(folder(tmp_path))
  write_files(tmp_path, {'train/cat/1.png': b'no image'})  # now the first
  with pytest.raises(UserError, match=f'^{tmp_path}/train/cat/1.png: cannot be decoded'):
    data.describe(folder(tmp_path))


def test_colour_among_grey_is_refused(tmp_path):
  write_animals(tmp_path, (4, 6, 1))
  write_files(tmp_path, {'train/dog/c.png': np.zeros(SHAPE, np.uint8)})
  for fields in ({}, {'image_size': 4}):
    with pytest.raises(UserError, match=f'^{tmp_path}/train/dog/c.png: is in colour'):
      data.load(folder(tmp_path, **fields))


@pytest.mark.parametrize(
  ('paths', 'problem'),
  [
    ([], 'has another layout'),
    (['cat/1.png', 'dog/1.png'], 'has another layout'),
    (['train/cat/1.png'], 'has another layout'),
    (['train/cat/1.png', 'test/cat/1.png'], r"has the classes \['cat'\]; needed: two"),
    (['train/cat/1.png', 'train/dog/1.png', 'test/1.png'], 'no image in .*test'),
    (
      ['train/cat/1.png', 'train/dog/1.png', 'test/fox/1.png'],
      r"train/ lacks the classes \['fox'\]",
    ),
    (['train/cat/1.png', 'train/dog/1.txt', 'test/cat/1.png'], 'no image in .*dog'),
    (['train/1.png', 'test/1.png'], r'has the classes \[\]; needed: two'),
  ],
)
def test_a_folder_with_another_layout_is_refused(tmp_path, paths, problem):
  write_files(tmp_path, {path: random_images(1, 2, 2, 1)[0] for path in paths})
  with pytest.raises(UserError, match=rf"^dataset\.data_dir = '.*' of dataset\.name = .*{problem}"):
    data.describe(folder(tmp_path))


def test_a_folder_needs_its_path():
  with pytest.raises(UserError, match=r'^dataset\.data_dir = None .*train/cat/1\.png'):
    data.describe(section(name='folder'))


def test_the_folder_is_not_where_sets_of_tfds_lie(tmp_path):
  write_animals(tmp_path)
  write_tfds(tmp_path, {'text': TEXT}, {'train': [{'text': b'a'}]})
  with pytest.raises(UserError, match=r"^predictions\.extra = 'tiny': no such data set"):
    data.extra_size('tiny', folder(tmp_path))
