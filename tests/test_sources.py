"""Data sets of every kind: tiny ones written here, and real ones if they are on this machine."""

import collections
import importlib.util
import io
import itertools
import re

import numpy as np
import PIL.Image
import pytest
import tensorflow_datasets as tfds
from array_record.python.array_record_module import ArrayRecordReader
from conftest import DATA
from tensorflow_datasets.proto import tf_example_pb2
from tiny_data import (
  NUMBER,
  TEXT,
  encoded,
  image_feature,
  label_feature,
  random_images,
  section,
  write_tfds,
)

from kdjax import data
from kdjax.data import sources, tfds_sets
from kdjax.errors import UserError

# TFDS.

SHAPE = (4, 6, 3)
IMAGES = {'image': image_feature(*SHAPE), 'label': label_feature(3)}


def records(images, labels, **more):
  return [
    {'image': encoded(image), 'label': label, **more}
    for image, label in zip(images, labels, strict=True)
  ]


def some_records(num):
  return records(random_images(num, *SHAPE), np.arange(num) % 3)


@pytest.mark.parametrize('held_out', ['test', 'validation'])
def test_a_tfds_set_is_read_in_its_order(tmp_path, held_out):
  images = {'train': random_images(9, *SHAPE), 'test': random_images(5, *SHAPE, seed=1)}
  labels = {'train': [2, 0, 1, 1, 0, 2, 2, 2, 0], 'test': [1, 2, 0, 0, 1]}
  train, test = (records(images[s], labels[s]) for s in ('train', 'test'))
  write_tfds(tmp_path, IMAGES, {'train': train, held_out: test})
  config = section(name='tiny', data_dir=str(tmp_path))
  assert data.describe(config) == data.Description(SHAPE, ('cat', 'dog', 'owl'), 9, 5)
  splits = data.load(config)
  assert list(splits) == ['train', 'test']
  for name, split in splits.items():
    np.testing.assert_array_equal(split.inputs_N, images[name])
    np.testing.assert_array_equal(split.labels_N, labels[name])
    assert split.inputs_N.dtype == np.uint8
    assert split.labels_N.dtype == np.int32


def test_a_subset_is_the_same_whether_all_is_read_or_not(tmp_path, monkeypatch):
  monkeypatch.setattr(sources, 'BLOCK', 4)
  write_tfds(tmp_path, IMAGES, {'train': some_records(10), 'test': some_records(3)})
  config = section(name='tiny', data_dir=str(tmp_path))
  subset = data.load(section(name='tiny', data_dir=str(tmp_path), num_train=6, num_val=3))
  everything = data.load(config)['train']
  for name, part in (('val', (0, 3)), ('train', (3, 9))):
    expected = data.part(everything, part)
    np.testing.assert_array_equal(subset[name].inputs_N, expected.inputs_N)
    np.testing.assert_array_equal(subset[name].labels_N, expected.labels_N)


def test_imagenet_is_resized_and_tested_on_its_validation_split(tmp_path):
  sizes = [(8, 12), (30, 10), (9, 9), (16, 8)]
  images = [random_images(1, *size, 3)[0] for size in sizes]
  written = [
    {'image': encoded(image, 'JPEG'), 'label': 7 * i, 'file_name': b'n0.JPEG'}
    for i, image in enumerate(images)
  ]
  features = {'image': image_feature(-1, -1, 3), 'label': label_feature(1000), 'file_name': TEXT}
  unlabelled = [written[0] | {'label': -1}]
  splits = {'train': written, 'validation': written[:2], 'test': unlabelled}
  write_tfds(tmp_path, features, splits, 'imagenet2012', '5.1.0')
  config = section(name='imagenet2012', data_dir=str(tmp_path), image_size=8)
  description = data.describe(config)
  assert description.input_shape == (8, 8, 3)
  assert (description.num_classes, description.num_train, description.num_test) == (1000, 4, 2)
  splits = data.load(config)
  np.testing.assert_array_equal(splits['train'].labels_N, [0, 7, 14, 21])
  np.testing.assert_array_equal(splits['test'].labels_N, [0, 7])
  decoded = [np.asarray(PIL.Image.open(io.BytesIO(r['image']))) for r in written]
  # The first and the last need no scaling.
  np.testing.assert_array_equal(splits['train'].inputs_N[0], decoded[0][:, 2:10])
  np.testing.assert_array_equal(splits['train'].inputs_N[3], decoded[3][4:12])
  scaled = PIL.Image.fromarray(decoded[2]).resize((8, 8), PIL.Image.Resampling.BILINEAR)
  np.testing.assert_array_equal(splits['train'].inputs_N[2], scaled)


def test_emnist_is_turned_to_stand_as_mnist_does(tmp_path):
  images = random_images(3, 28, 28, 1)
  features = {'image': image_feature(28, 28, 1), 'label': label_feature(62)}
  splits = {'train': records(images, [61, 0, 1]), 'test': records(images[:1], [5])}
  write_tfds(tmp_path, features, splits, 'emnist/byclass', '3.1.0', class_names=None)
  config = section(name='emnist/byclass', data_dir=str(tmp_path))
  assert data.describe(config).num_classes == 62
  train = data.load(config)['train']
  np.testing.assert_array_equal(train.inputs_N, images.transpose(0, 2, 1, 3))
  np.testing.assert_array_equal(train.labels_N, [61, 0, 1])


def test_cifar100_has_its_fine_labels(tmp_path):
  images = random_images(3, 32, 32, 3)
  features = {
    'id': TEXT,
    'image': image_feature(32, 32, 3),
    'coarse_label': label_feature(20),
    'label': label_feature(100),
  }
  written = records(images, [99, 0, 50], coarse_label=3, id=b'train_1')
  names = ' '.join(f'fine_{i}' for i in range(100))
  splits = {'train': written, 'test': written[:1]}
  write_tfds(tmp_path, features, splits, 'cifar100', '3.0.2', names)
  config = section(name='cifar100', data_dir=str(tmp_path))
  description, splits = data.describe(config), data.load(config)
  assert description.class_names == tuple(names.split())
  np.testing.assert_array_equal(splits['train'].labels_N, [99, 0, 50])
  np.testing.assert_array_equal(splits['train'].inputs_N, images)


NO_CLASSIFICATION = r"^dataset\.name = 'tiny': .*one input.*and one class label"
BROKEN = {'image': b'no image', 'label': 0}
# The difference from a set that can be read, and the error.
WRONG = {
  'sizes vary': (
    {'features': {'image': image_feature(-1, -1, 3)}},
    r'^dataset\.image_size = None: the images of tiny vary in size',
  ),
  '16 bits': ({'features': {'image': image_feature(*SHAPE, dtype='uint16')}}, NO_CLASSIFICATION),
  '2 channels': ({'features': {'image': image_feature(4, 6, 2)}}, NO_CLASSIFICATION),
  'no classes': ({'features': {'label': NUMBER}}, NO_CLASSIFICATION),
  'no image': ({'features': {'image': NUMBER}}, NO_CLASSIFICATION),
  'two images': ({'features': {'image2': image_feature(*SHAPE)}}, NO_CLASSIFICATION),
  'no train': (
    {'splits': {'test': some_records(2), 'extra': some_records(2)}},
    r"dataset\.name = 'tiny': has the splits \[",
  ),
  'validation alone': (
    {'splits': {'validation': some_records(2)}},
    r"dataset\.name = 'tiny': has the splits \[",
  ),
  'imagenet without validation': (
    {'name': 'imagenet2012', 'splits': {'train': some_records(2)}},
    r"dataset\.name = 'imagenet2012': has the splits \[.*Needed: 'train' and 'validation'",
  ),
  'no labels': (
    {'splits': {'train': some_records(2), 'test': records(random_images(2, *SHAPE), [-1, -1])}},
    r"^dataset\.name = 'tiny': its split 'test' has no labels",
  ),
  'broken record': (
    {'splits': {'train': [*some_records(2), BROKEN], 'test': some_records(1)}},
    r"^dataset\.name = 'tiny', record 2 of 'train': cannot be dec",
  ),
  'broken record of a set without a test split': (
    {'splits': {'train': [*some_records(13), BROKEN, *some_records(6)]}},
    r"record 13 of 'train': cannot be dec",
  ),
}


@pytest.mark.parametrize('which', WRONG)
def test_a_set_that_cannot_be_read_is_refused(tmp_path, which):
  changes, problem = WRONG[which]
  name = changes.get('name', 'tiny')
  splits = changes.get('splits', {'train': some_records(2), 'test': some_records(2)})
  write_tfds(tmp_path, IMAGES | changes.get('features', {}), splits, name, '5.1.0')
  with pytest.raises(UserError, match=problem):
    data.load(section(name=name, data_dir=str(tmp_path)))


def test_a_missing_set_is_an_error_with_its_place_and_the_command(tmp_path, monkeypatch):
  config = section(name='mnist', data_dir=str(tmp_path))
  for tensorflow in (None, 'installed'):
    monkeypatch.setattr(importlib.util, 'find_spec', lambda name, found=tensorflow: found)
    for ask in (lambda: data.describe(config, prepare=False), lambda: data.load(config)):
      with pytest.raises(UserError) as error:
        ask()
      message = str(error.value)
      assert message.startswith("dataset.name = 'mnist': ")
      for part in (
        str(tmp_path / 'mnist'),
        '--config.dataset.data_dir',
        'TFDS_DATA_DIR',
        'pip install tensorflow && python -c',
        f"tfds.builder('mnist', data_dir='{tmp_path}', file_format='array_record')",
        'download_and_prepare()',
      ):
        assert part in message
      assert ('is not installed' in message) == (tensorflow is None)
  assert not list(tmp_path.iterdir())  # nothing was prepared


def test_a_name_that_tfds_does_not_know_is_refused(tmp_path):
  for name in ('no_such_set', '', 'mnist/no_such_config', 'mnist:9.9.9', '../mnist'):
    with pytest.raises(UserError, match=rf'^dataset\.name = {name!r}: .*digits'):
      data.describe(section(name=name, data_dir=str(tmp_path)), prepare=False)


def test_a_set_whose_builder_needs_a_missing_package_is_refused(monkeypatch):
  def builder(name, data_dir):
    raise ModuleNotFoundError("No module named 'tensorflow'")

  monkeypatch.setattr(tfds, 'builder', builder)
  with pytest.raises(UserError, match=r"dataset\.name = 'coco': .*No module named 'tensorflow'"):
    data.describe(section(name='coco'), prepare=False)


# Sets that have no split but 'train': a tenth is held out.

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


def test_the_held_out_examples_do_not_depend_on_those_that_are_read(tmp_path):
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


def test_held_out_images_do_not_come_back_as_unlabelled_ones(tmp_path):
  """Neither those for testing nor those for validation."""
  config, _ = write_train_alone(tmp_path / 'alone')
  for name, extra in itertools.product(('tiny', 'tiny:1.0.0'), repeat=2):
    config.name = name
    with pytest.raises(
      UserError, match=rf"^predictions\.extra = '{extra}': .* whose test examples"
    ):
      data.extra_size(extra, config)
  digits = section(name='digits', data_dir=config.data_dir, num_val=9)
  assert data.extra_size('tiny', digits) == data.extra_size('tiny:1.0.0', digits) == 60
  write_tfds(tmp_path, IMAGES, {'train': some_records(20), 'test': some_records(4)})
  for name, size in (('digits', 1437), ('tiny', 20)):
    config = section(name=name, data_dir=str(tmp_path), num_val=5)
    with pytest.raises(
      UserError, match=rf"^predictions\.extra = '{name}': .* dataset\.num_val = 0$"
    ):
      data.extra_size(name, config)
    config.num_val = 0
    assert data.extra_size(name, config) == size


def test_unlabelled_images_are_those_of_the_training_split(tmp_path):
  """Extra images, for instance of SVHN beside CIFAR-10; its split 'extra' is not read."""
  images = random_images(6, 32, 32, 3, seed=1)
  features = {'image': image_feature(32, 32, 3), 'label': label_feature(10)}
  beside = records(images, np.arange(6))
  splits = {'train': beside, 'test': beside[:2], 'extra': beside[:1]}
  write_tfds(tmp_path, features, splits, 'svhn_cropped', '3.1.0', class_names=None)
  own = records(random_images(2, 32, 32, 3), [0, 1])
  write_tfds(tmp_path, features, {'train': own, 'test': own}, 'cifar10', '3.0.2', class_names=None)
  config = section(name='cifar10', data_dir=str(tmp_path))
  assert data.extra_size('svhn_cropped', config) == 6
  found = data.load_extra('svhn_cropped', config, (32, 32, 3))
  assert {image.tobytes() for image in found} == {image.tobytes() for image in images}


# Real sets, if they are on this machine.


def real_section(name):
  if DATA is None or not list(DATA.glob(f'{name}/**/*.array_record*')):
    pytest.skip(f'{name} is not in TFDS_DATA_DIR nor beside the repository')
  return section(name=name, data_dir=str(DATA))


@pytest.mark.parametrize(
  ('name', 'shape', 'num_train'), [('cifar10', (32, 32, 3), 50_000), ('mnist', (28, 28, 1), 60_000)]
)
def test_the_first_examples_of_a_real_set_are_those_in_its_file(
  name, shape, num_train, monkeypatch
):
  found = data.describe(real_section(name), prepare=False)
  assert (found.input_shape, found.num_classes) == (shape, 10)
  assert (found.num_train, found.num_test) == (num_train, 10_000)
  config = real_section(name)
  monkeypatch.setattr(
    tfds_sets.Tfds, 'size', lambda self, split: 20 * (split != 'val')
  )  # all take seconds
  splits = data.load(config)
  for split in ('train', 'test'):
    file = min((DATA / name).glob(f'*/{name}-{split}.array_record*'))
    stored = ArrayRecordReader(str(file)).read(0, 20)
    found = zip(splits[split].inputs_N, splits[split].labels_N, stored, strict=True)
    for image, label, record in found:
      feature = tf_example_pb2.Example.FromString(record).features.feature
      expected = PIL.Image.open(io.BytesIO(feature['image'].bytes_list.value[0]))
      np.testing.assert_array_equal(image, np.asarray(expected).reshape(image.shape))
      assert [label] == feature['label'].int64_list.value


def test_the_first_real_reviews(monkeypatch):
  config = real_section('imdb_reviews')
  source = tfds_sets.Tfds('imdb_reviews', str(DATA))
  assert (source.size('train'), source.size('test'), source.size('val')) == (25_000, 25_000, 0)
  assert source.class_names == ('neg', 'pos')
  monkeypatch.setattr(tfds_sets, '_vocabulary', tfds_sets._vocabulary.__wrapped__)
  monkeypatch.setattr(
    tfds_sets.Tfds, 'size', lambda self, split: 300 * (split != 'val')
  )  # all take a minute
  reviews = [text.decode().lower() for text in source.fetch('train', np.arange(300))[0]]
  words = collections.Counter(re.findall(r"[a-z0-9']+", ' '.join(reviews).replace('<br />', ' ')))
  vocabulary = source.vocabulary(10)
  assert list(vocabulary)[:4] == [word for word, _ in words.most_common(4)]
  assert len(vocabulary) == pytest.approx(sum(n >= 10 for n in words.values()), rel=0.02)
  splits = data.load(config)
  assert 100 < splits['train'].labels_N.sum() < 200
  for split in splits.values():
    assert split.inputs_N.shape == (300, 100)
    assert split.inputs_N.max() <= len(vocabulary)
    lengths = np.count_nonzero(split.inputs_N, axis=1)
    padding = np.arange(100)[None] >= lengths[:, None]
    np.testing.assert_array_equal(split.inputs_N == 0, padding)
  word = {i: word for word, i in vocabulary.items()}
  known = [w for w in re.findall(r"[a-z0-9']+", reviews[0]) if w in vocabulary][:20]
  assert [word[i] for i in splits['train'].inputs_N[0, :20]] == known
  assert 'fbi agent' in reviews[0]
