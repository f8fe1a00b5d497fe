"""Data sets of TFDS that have no test split, and those whose images stand beside another set's."""

import numpy as np
import pytest
from test_sources import IMAGES, SHAPE, records, some_records
from tiny_data import TEXT, image_feature, label_feature, random_images, section, write_tfds

from kdjax import data
from kdjax.data import sources
from kdjax.errors import UserError

# Those that have no split but 'train'.

LABELS = np.repeat([0, 1, 2], [30, 20, 10])[np.random.default_rng(5).permutation(60)]


def write_train_alone(place):
  images = random_images(60, *SHAPE)
  write_tfds(place, IMAGES, {'train': records(images, LABELS), 'extra': some_records(2)})
  return section(name='tiny', data_dir=str(place)), images


def test_a_tenth_of_a_set_without_a_test_split_is_held_out(tmp_path, monkeypatch):
  monkeypatch.setattr(sources, 'BLOCK', 7)
  config, images = write_train_alone(tmp_path)
  assert data.describe(config) == data.Description(SHAPE, ('cat', 'dog', 'owl'), 54, 6)
  splits = data.load(config)
  np.testing.assert_array_equal(np.bincount(splits['test'].labels_N), [2, 2, 2])
  np.testing.assert_array_equal(np.bincount(splits['train'].labels_N), [28, 18, 8])
  place = {image.tobytes(): row for row, image in enumerate(images)}
  rows = {name: [place[x.tobytes()] for x in split.inputs_N] for name, split in splits.items()}
  assert sorted(rows['train'] + rows['test']) == list(range(60))  # each in one of the two
  for name, split in splits.items():
    assert rows[name] == sorted(rows[name])
    np.testing.assert_array_equal(split.labels_N, LABELS[rows[name]])


def test_what_is_held_out_does_not_depend_on_what_is_read(tmp_path):
  config, _ = write_train_alone(tmp_path)
  everything = data.load(config)
  config.num_train, config.num_val, config.num_test = 12, 6, 3
  some = data.load(config)
  for name, whole, part in (
    ('val', 'train', (0, 6)),
    ('train', 'train', (6, 18)),
    ('test', 'test', (0, 3)),
  ):
    expected = data.part(everything[whole], part)
    np.testing.assert_array_equal(some[name].inputs_N, expected.inputs_N)
    np.testing.assert_array_equal(np.bincount(some[name].labels_N), [len(expected) // 3] * 3)


def test_a_broken_record_is_told_by_its_place_in_the_stored_split(tmp_path):
  written = some_records(20)
  written[13]['image'] = b'no image'
  write_tfds(tmp_path, IMAGES, {'train': written})
  with pytest.raises(UserError, match="record 13 of 'train'"):
    data.load(section(name='tiny', data_dir=str(tmp_path)))


@pytest.mark.parametrize('extra', ['tiny', 'tiny:1.0.0'])
@pytest.mark.parametrize('name', ['tiny', 'tiny:1.0.0'])
def test_test_images_do_not_come_back_as_unlabelled_ones(tmp_path, name, extra):
  config, _ = write_train_alone(tmp_path)
  config.name = name
  with pytest.raises(UserError, match=rf"^predictions\.extra = '{extra}': .* whose test examples"):
    data.extra_size(extra, config)
  assert data.extra_size(extra, section(name='digits', data_dir=str(tmp_path), num_val=9)) == 60


@pytest.mark.parametrize('name', ['digits', 'tiny'])
def test_neither_do_those_for_validation(tmp_path, name):
  write_tfds(tmp_path, IMAGES, {'train': some_records(20), 'test': some_records(4)})
  config = section(name=name, data_dir=str(tmp_path), num_val=5)
  with pytest.raises(UserError, match=rf"^predictions\.extra = '{name}': .* dataset\.num_val = 0$"):
    data.extra_size(name, config)
  config.num_val = 0
  assert data.extra_size(name, config) == {'digits': 1437, 'tiny': 20}[name]


def test_held_out_texts_give_no_words(tmp_path):
  written = [{'text': f'all word{i}'.encode(), 'label': i % 2} for i in range(20)]
  features = {'text': TEXT, 'label': label_feature(2)}
  write_tfds(tmp_path, features, {'train': written}, class_names='neg pos')
  config = section(name='tiny', data_dir=str(tmp_path), min_count=1, max_tokens=2)
  assert data.describe(config).vocabulary_size == 1 + 1 + 18  # padding, 'all', one of each text
  splits = data.load(config)
  assert splits['train'].inputs_N.min() > 0
  np.testing.assert_array_equal(splits['test'].inputs_N > 0, [[True, False], [True, False]])


# Unlabelled images beside a set: out of its domain, and more of it.


def write_svhn(place, num=6):
  images = random_images(num, 32, 32, 3, seed=1)
  features = {'image': image_feature(32, 32, 3), 'label': label_feature(10)}
  written = records(images, np.arange(num) % 10)
  splits = {'train': written, 'test': written[:2], 'extra': written[:1]}
  write_tfds(place, features, splits, 'svhn_cropped', '3.1.0', class_names=None)
  return images


def in_any_order(images):
  return sorted(image.tobytes() for image in images)


def test_svhn_is_a_set_of_its_own(tmp_path):
  images = write_svhn(tmp_path)
  config = section(name='svhn_cropped', data_dir=str(tmp_path))
  assert data.describe(config) == data.Description((32, 32, 3), tuple('0123456789'), 6, 2)
  np.testing.assert_array_equal(data.load(config)['train'].inputs_N, images)


def test_svhn_takes_the_place_of_images_of_cifar(tmp_path):
  images = write_svhn(tmp_path)
  features = {'image': image_feature(32, 32, 3), 'label': label_feature(10)}
  own = records(random_images(2, 32, 32, 3), [0, 1])
  write_tfds(tmp_path, features, {'train': own, 'test': own}, 'cifar10', '3.0.2', class_names=None)
  config, field = section(name='cifar10', data_dir=str(tmp_path)), 'predictions.replacement'
  assert data.extra_size('svhn_cropped', config, field) == 6  # of 'train' alone
  found = data.load_extra('svhn_cropped', config, (32, 32, 3), field=field)
  assert in_any_order(found) == in_any_order(images)


def test_emnist_stands_beside_mnist_as_it_does(tmp_path):
  images = random_images(5, 28, 28, 1, seed=2)
  features = {'image': image_feature(28, 28, 1), 'label': label_feature(62)}
  splits = {'train': records(images, [61, 0, 1, 35, 36]), 'test': records(images[:1], [5])}
  write_tfds(tmp_path, features, splits, 'emnist/byclass', '3.1.0', class_names=None)
  own = records(random_images(2, 28, 28, 1), [0, 1])
  features = features | {'label': label_feature(10)}
  write_tfds(tmp_path, features, {'train': own, 'test': own}, 'mnist', '3.0.1', class_names=None)
  config = section(name='mnist', data_dir=str(tmp_path))
  assert data.extra_size('emnist/byclass', config) == 5
  found = data.load_extra('emnist/byclass', config, (28, 28, 1))
  assert in_any_order(found) == in_any_order(images.transpose(0, 2, 1, 3))
