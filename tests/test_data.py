"""Splits, parts and batches, on the digits; unlabelled inputs from other sets."""

import hashlib

import numpy as np
import PIL.Image
import PIL.ImageOps
import pytest
from sklearn import datasets as sklearn_datasets
from tiny_data import (
  TEXT,
  encoded,
  image_feature,
  label_feature,
  random_images,
  section,
  write_files,
  write_tfds,
)

from kdjax import data
from kdjax.data import splits as splits_lib
from kdjax.errors import UserError


def rows(*splits):
  """Image and label of every example as bytes, which are all different in the digits."""
  return [
    image.tobytes() + bytes([label])
    for split in splits
    for image, label in zip(split.inputs_N, split.labels_N, strict=True)
  ]


# Digits.


def test_digits_are_those_of_scikit_learn_split_in_two():
  description, splits = data.describe(section()), data.load(section())
  assert description == data.Description((8, 8, 1), tuple('0123456789'), 1437, 360)
  assert [(name, len(split)) for name, split in splits.items()] == [('train', 1437), ('test', 360)]
  for split in splits.values():
    assert (split.inputs_N.dtype, split.inputs_N.shape[1:]) == (np.uint8, (8, 8, 1))
    assert (split.labels_N.dtype, split.labels_N.shape) == (np.int32, (len(split),))
  # The source has 17 levels; 8 of 16 is rounded from 127.5 to the even 128.
  levels = np.unique(splits['train'].inputs_N)
  assert len(levels) == 17
  assert (levels[0], levels[1], levels[8], levels[16]) == (0, 16, 128, 255)
  source = sklearn_datasets.load_digits()
  expected = {
    np.rint(image * 255 / 16).astype(np.uint8).tobytes() + bytes([label])
    for image, label in zip(source.images, source.target, strict=True)
  }
  found = rows(*splits.values())
  assert len(found) == len(set(found)) == 1797  # so that train and test share none
  assert set(found) == expected


def test_subsets_hold_each_class_equally_often_and_are_nested():
  splits = data.load(section(num_train=200, num_val=100, num_test=50))
  for name, size in (('train', 200), ('val', 100), ('test', 50)):
    np.testing.assert_array_equal(np.bincount(splits[name].labels_N), np.full(10, size // 10))
  smaller, larger = (rows(data.load(section(num_train=n))['train']) for n in (200, 300))
  assert set(smaller) < set(larger)
  # In the order of the source, so that a subset is not sorted by class.
  assert [row for row in larger if row in set(smaller)] == smaller


@pytest.mark.parametrize('num_train', [200, None])
def test_validation_examples_are_held_out_and_do_not_depend_on_num_train(num_train):
  splits = data.load(section(num_train=num_train, num_val=100))
  train, val, test = (rows(splits[name]) for name in ('train', 'val', 'test'))
  assert len(train) == (1337 if num_train is None else num_train)
  assert not set(val) & (set(train) | set(test))
  assert val == rows(data.load(section(num_val=100))['val'])


def test_split_sizes_are_those_of_the_loaded_splits():
  for fields, sizes in [
    ({'num_val': 37}, {'train': 1400, 'val': 37, 'test': 360}),
    ({'num_train': 5, 'num_val': 1, 'num_test': 7}, {'train': 5, 'val': 1, 'test': 7}),
  ]:
    config = section(**fields)
    assert list(data.split_sizes(config, data.describe(config)).items()) == list(sizes.items())
    assert {name: len(split) for name, split in data.load(config).items()} == sizes


def test_a_checksum_in_memory_is_of_all_bytes():
  splits = data.load(section(num_train=20, num_test=20))
  checksums = [data.checksum(splits)]
  assert data.checksum(data.load(section(num_train=20, num_test=20))) == checksums[0]
  for name in splits:
    for field in ('inputs_N', 'labels_N'):
      changed = {n: data.Split(s.inputs_N.copy(), s.labels_N.copy()) for n, s in splits.items()}
      getattr(changed[name], field).flat[-1] += 1
      checksums.append(data.checksum(changed))
  checksums.append(data.checksum({'val': splits['train'], 'test': splits['test']}))
  assert len(set(checksums)) == 6
  split = data.load(section(num_train=1200))['train']  # more than are read at once
  content = b'train' + split.inputs_N.tobytes() + split.labels_N.tobytes()
  assert data.checksum({'train': split}) == hashlib.sha256(content).hexdigest()[:16]


def test_a_sampled_checksum_notices_labels_shapes_and_the_sample(monkeypatch):
  monkeypatch.setattr(splits_lib, 'NUM_SAMPLED', 15)
  split = data.load(section(num_train=20))['train']
  images_N, labels_N = split.inputs_N, split.labels_N

  def checksum(images_N, labels_N=labels_N, name='train'):
    return data.checksum({name: data.Split(images_N, labels_N)}, sampled=True)

  changed = []
  for index in range(20):
    other_N = images_N.copy()
    other_N[index, 0, 0] += 1
    changed.append(checksum(other_N) != checksum(images_N))
  assert sum(changed) == 15  # of 20: that is what a sample is
  for index in range(20):
    assert checksum(images_N, labels_N + (np.arange(20) == index)) != checksum(images_N)
  assert checksum(images_N.reshape(20, 4, 16, 1)) != checksum(images_N)
  assert checksum(images_N, name='val') != checksum(images_N)


def test_digits_can_be_resized():
  original = data.load(section(num_train=20))['train']
  for size in (4, 8, 16):
    config = section(image_size=size, num_train=20)
    assert data.describe(config).input_shape == (size, size, 1)
    resized = data.load(config)['train']
    np.testing.assert_array_equal(resized.labels_N, original.labels_N)
    for found, image in zip(resized.inputs_N, original.inputs_N, strict=True):
      expected = PIL.Image.fromarray(image[..., 0]).resize(
        (size, size), PIL.Image.Resampling.BILINEAR
      )
      np.testing.assert_array_equal(found[..., 0], expected)


# Parts.


def test_the_first_part_is_the_subset_of_that_size():
  train = data.load(section())['train']
  for size in (200, 300):
    part = data.part(train, (0, size))
    assert rows(part) == rows(data.load(section(num_train=size))['train'])
    assert len(part) == data.part_size(len(train), (0, size)) == size
  assert rows(data.part(train, ())) == rows(train)
  assert data.part_size(len(train), ()) == len(train)


@pytest.mark.parametrize('seed', [0, 1])
def test_halves_are_disjoint_and_balanced(seed):
  """This holds for every seed, which decides which examples a part has."""
  train = data.load(section(num_train=1000))['train']
  small, first, second = (data.part(train, p, seed) for p in ((0, 200), (0, 500), (500, 1000)))
  for part in (small, first, second):
    np.testing.assert_array_equal(np.bincount(part.labels_N), np.full(10, len(part) // 10))
  assert data.part_size(1000, (500, 1000)) == len(second) == 500
  small, first, second = map(rows, (small, first, second))
  assert set(small) < set(first) and not set(first) & set(second)
  assert set(first) | set(second) == set(rows(train))
  # By index, so that a part is not sorted by class.
  assert [row for row in rows(train) if row in set(first)] == first
  other = set(rows(data.part(train, (0, 200), seed + 1)))
  assert 20 < len(other & set(small)) < 60  # 40 are expected


# Unlabelled inputs.


def write_emnist(place, num):
  """EMNIST stores each image transposed, as NIST does."""
  images = random_images(num, 28, 28, 1)
  records = [{'image': encoded(image), 'label': i % 62} for i, image in enumerate(images)]
  features = {'image': image_feature(28, 28, 1), 'label': label_feature(62)}
  write_tfds(place, features, {'train': records, 'test': []}, 'emnist/byclass', '3.1.0')
  return images.transpose(0, 2, 1, 3)


def test_extra_inputs_are_all_of_the_training_split_in_a_fixed_order(tmp_path):
  images = write_emnist(tmp_path, 7)
  config = section(data_dir=str(tmp_path))
  assert data.extra_size('emnist/byclass', config) == 7
  found = data.load_extra('emnist/byclass', config, (28, 28, 1))
  assert found.dtype == np.uint8
  order = [[(image == f).all() for image in images].index(True) for f in found]
  assert sorted(order) == list(range(7)) and order != list(range(7))
  again = data.load_extra('emnist/byclass', config, (28, 28, 1), count=3)
  np.testing.assert_array_equal(again, found[:3])


def test_extra_images_take_the_shape_that_is_asked_for(tmp_path):
  write_files(
    tmp_path, {'b/grey.png': random_images(1, 9, 9, 1)[0], 'a.jpg': random_images(1, 12, 8, 3)[0]}
  )
  found = data.load_extra(str(tmp_path), section(), (6, 6, 3))
  assert data.extra_size(str(tmp_path), section()) == len(found) == 2
  expected = []
  for name in ('b/grey.png', 'a.jpg'):
    image = PIL.Image.open(tmp_path / name).convert('RGB')
    expected.append(
      np.asarray(PIL.ImageOps.fit(image, (6, 6), method=PIL.Image.Resampling.BILINEAR))
    )
  assert {image.tobytes() for image in found} == {image.tobytes() for image in expected}
  grey = data.load_extra(str(tmp_path), section(), (9, 9, 1))
  assert random_images(1, 9, 9, 1)[0].tobytes() in [image.tobytes() for image in grey]


def test_the_digits_are_extra_inputs_too():
  assert data.extra_size('digits', section()) == 1437
  found = data.load_extra('digits', section(), (8, 8, 3), count=5)
  train = {image.tobytes() for image in data.load(section())['train'].inputs_N}
  for image in found:
    np.testing.assert_array_equal(image[..., :1] + np.zeros(3, np.uint8), image)
    assert image[..., 0].tobytes() in train


@pytest.mark.parametrize('unlabelled', [True, False])
def test_an_unlabelled_split_is_preferred(tmp_path, unlabelled):
  train = [{'text': b'a good film', 'label': 1}, {'text': b'a film', 'label': 0}]
  splits = {'train': train, 'test': train}
  if unlabelled:
    splits['unsupervised'] = [{'text': b'film new a', 'label': -1}]
  write_tfds(tmp_path, {'text': TEXT, 'label': label_feature(2)}, splits, class_names='neg pos')
  config = section(name='tiny', data_dir=str(tmp_path), min_count=1)
  found = data.load_extra('tiny', config, (4,))
  expected = [[2, 1, 0, 0]] if unlabelled else [[1, 2, 0, 0], [1, 3, 2, 0]]
  assert sorted(found.tolist()) == expected  # 'a' is 1, 'film' 2, 'good' 3
  assert data.extra_size('tiny', config) == len(expected)


def test_missing_too_few_and_other_extra_inputs_are_refused(tmp_path):
  config = section(data_dir=str(tmp_path))
  write_tfds(tmp_path, {'text': TEXT}, {'train': [{'text': b'a'}]})
  for name, problem in (
    ('svhn_cropped', 'not found in array_record format'),
    ('no_such_set', 'no such data set.*a path that begins with /'),
    (str(tmp_path / 'none'), 'no image in this folder'),
    (str(tmp_path), 'no image in this folder'),
    ('tiny', 'has texts. Needed: images'),
  ):
    for ask in (data.extra_size, lambda *a: data.load_extra(*a, (8, 8, 1))):
      with pytest.raises(UserError, match=rf'^predictions\.extra = {name!r}: .*{problem}'):
        ask(name, config)
  write_files(tmp_path, {'1.png': random_images(1, 8, 8, 1)[0]})
  with pytest.raises(
    UserError, match=r'^predictions\.extra = .*: has 1 inputs, and 2 were asked for'
  ):
    data.load_extra(str(tmp_path), config, (8, 8, 1), count=2)
