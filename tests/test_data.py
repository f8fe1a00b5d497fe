"""Data sets and batches: the digits, a tiny TFDS set written here, and real ones where they are."""

import io
import json
import os
import pathlib

import numpy as np
import PIL.Image
import pytest
import tensorflow_datasets as tfds
from array_record.python.array_record_module import ArrayRecordReader, ArrayRecordWriter
from ml_collections import ConfigDict
from sklearn import datasets as sklearn_datasets
from tensorflow_datasets.proto import tf_example_pb2

from kdjax import data
from kdjax.errors import UserError

ROOT = pathlib.Path(__file__).parents[1]


def section(**fields):
  """A `dataset` section."""
  everything = {
    'name': 'digits',
    'data_dir': None,
    'num_train': None,
    'num_val': 0,
    'num_test': None,
  }
  return ConfigDict(everything | fields)


def rows(*splits):
  """Image and label of every example as bytes, which are all different in the digits."""
  return [
    image.tobytes() + bytes([label])
    for split in splits
    for image, label in zip(split.images_NHWC, split.labels_N, strict=True)
  ]


# Digits.


def test_digits_golden():
  splits = data.load(section())
  assert list(splits) == ['train', 'test']
  for name, size in (('train', 1437), ('test', 360)):
    assert splits[name].images_NHWC.shape == (size, 8, 8, 1)
    assert splits[name].images_NHWC.dtype == np.uint8
    assert splits[name].labels_N.shape == (size,)
    assert splits[name].labels_N.dtype == np.int32
    assert len(splits[name]) == size
  # The source has 17 levels; 8 of 16 is rounded from 127.5 to the even 128.
  levels = np.unique(splits['train'].images_NHWC)
  assert len(levels) == 17
  assert (levels[0], levels[1], levels[8], levels[16]) == (0, 16, 128, 255)


def test_digits_are_those_of_scikit_learn_split_in_two():
  source = sklearn_datasets.load_digits()
  expected = {
    np.rint(image * 255 / 16).astype(np.uint8).tobytes() + bytes([label])
    for image, label in zip(source.images, source.target, strict=True)
  }
  splits = data.load(section())
  found = rows(*splits.values())
  assert len(found) == len(set(found)) == 1797  # so that train and test share none
  assert set(found) == expected


def test_loading_is_deterministic():
  first, again = data.load(section()), data.load(section())
  assert rows(*first.values()) == rows(*again.values())


def test_description_of_the_digits_fits_what_is_loaded():
  description, splits = data.describe(section()), data.load(section())
  assert description.image_shape_HWC == splits['train'].images_NHWC.shape[1:]
  assert (description.num_train, description.num_test) == (1437, 360)
  assert description.class_names == tuple('0123456789')
  assert description.num_classes == 10


def test_subsets_hold_each_class_equally_often():
  splits = data.load(section(num_train=200, num_val=100, num_test=50))
  for name, size in (('train', 200), ('val', 100), ('test', 50)):
    np.testing.assert_array_equal(np.bincount(splits[name].labels_N), np.full(10, size // 10))


def test_a_smaller_subset_is_part_of_a_larger():
  smaller, larger = (rows(data.load(section(num_train=n))['train']) for n in (200, 300))
  assert set(smaller) < set(larger)
  # In the order of the source, so that a subset is not sorted by class.
  assert [row for row in larger if row in set(smaller)] == smaller


@pytest.mark.parametrize('num_train', [200, 700, None])
def test_validation_examples_are_held_out_and_do_not_depend_on_num_train(num_train):
  splits = data.load(section(num_train=num_train, num_val=100))
  train, val, test = (rows(splits[name]) for name in ('train', 'val', 'test'))
  assert len(train) == (1337 if num_train is None else num_train)
  assert not set(val) & (set(train) | set(test))
  assert val == rows(data.load(section(num_val=100))['val'])


@pytest.mark.parametrize(
  ('fields', 'sizes'),
  [
    ({}, {'train': 1437, 'test': 360}),
    ({'num_val': 37}, {'train': 1400, 'val': 37, 'test': 360}),
    ({'num_train': 5, 'num_val': 1, 'num_test': 7}, {'train': 5, 'val': 1, 'test': 7}),
  ],
)
def test_split_sizes_are_those_of_the_loaded_splits(fields, sizes):
  config = section(**fields)
  assert data.split_sizes(config, data.describe(config)) == sizes
  splits = data.load(config)
  assert {name: len(split) for name, split in splits.items()} == sizes
  assert list(splits) == list(sizes)


def test_checksum_notices_any_change():
  splits = data.load(section(num_train=20, num_test=20))
  checksums = [data.checksum(splits)]
  assert data.checksum(data.load(section(num_train=20, num_test=20))) == checksums[0]
  for name in splits:
    for field in ('images_NHWC', 'labels_N'):
      changed = {n: data.Split(s.images_NHWC.copy(), s.labels_N.copy()) for n, s in splits.items()}
      getattr(changed[name], field).flat[-1] += 1
      checksums.append(data.checksum(changed))
  checksums.append(data.checksum({'val': splits['train'], 'test': splits['test']}))
  assert len(set(checksums)) == 6


# Batches.


def batches(num_examples, batch_size, num_steps, seed=0, start=0):
  """'indices' and 'epochs' of shape (steps, batch)."""
  found = list(data.training_batches(seed, num_examples, batch_size, num_steps, start))
  return tuple(np.stack([batch[name] for batch in found]) for name in ('indices', 'epochs'))


@pytest.mark.parametrize(
  ('num_examples', 'batch_size'), [(12, 4), (10, 4), (10, 25), (10, 10), (7, 1), (1, 3)]
)
def test_every_example_comes_once_an_epoch(num_examples, batch_size):
  num_epochs = 5
  num_steps = -(-num_epochs * num_examples // batch_size)
  indices, epochs = batches(num_examples, batch_size, num_steps)
  assert indices.shape == epochs.shape == (num_steps, batch_size)
  assert indices.dtype == epochs.dtype == np.int32
  np.testing.assert_array_equal(epochs.ravel(), np.arange(num_steps * batch_size) // num_examples)
  for epoch in range(num_epochs):
    np.testing.assert_array_equal(np.sort(indices[epochs == epoch]), np.arange(num_examples))


@pytest.mark.parametrize('batch_size', [4, 25])
@pytest.mark.parametrize('start', [1, 2, 7, 11])
def test_a_resumed_stream_is_the_uninterrupted_one(batch_size, start):
  whole, resumed = batches(10, batch_size, 12), batches(10, batch_size, 12, start=start)
  for expected, found in zip(whole, resumed, strict=True):
    np.testing.assert_array_equal(found, expected[start:])


def test_the_order_does_not_depend_on_the_batch_size():
  small, large = batches(10, 4, 15)[0], batches(10, 12, 5)[0]
  np.testing.assert_array_equal(small.ravel(), large.ravel())


def test_orders_differ_between_epochs_and_seeds():
  orders = [batches(50, 50, 3, seed)[0][epoch] for seed in (0, 1) for epoch in range(3)]
  assert len({order.tobytes() for order in orders}) == 6
  assert not any((order == np.arange(50)).all() for order in orders)


# TFDS.

FEATURES = 'tensorflow_datasets.core.features.'
CLASSES = {
  'pythonClassName': f'{FEATURES}class_label_feature.ClassLabel',
  'classLabel': {'numClasses': '3'},
}
NUMBER = {'pythonClassName': f'{FEATURES}scalar.Scalar', 'tensor': {'dtype': 'int64', 'shape': {}}}
SHAPE = (4, 6, 3)


def make_split(num_examples, seed):
  rng = np.random.default_rng(seed)
  images = rng.integers(0, 256, (num_examples, *SHAPE), dtype=np.uint8)
  return data.Split(images, rng.integers(3, size=num_examples, dtype=np.int32))


def write_tfds(data_dir, splits, shape=SHAPE, dtype='uint8', label=CLASSES):
  """Writes the set 'tiny' in the layout of TFDS, which itself can do so only with TensorFlow."""
  place = data_dir / 'tiny' / '1.0.0'
  place.mkdir(parents=True)
  dimensions = [str(size) for size in shape]
  image = {'dtype': dtype, 'shape': {'dimensions': dimensions}, 'encodingFormat': 'png'}
  features = {
    'image': {'pythonClassName': f'{FEATURES}image_feature.Image', 'image': image},
    'label': label,
  }
  features_dict = {
    'pythonClassName': f'{FEATURES}features_dict.FeaturesDict',
    'featuresDict': {'features': features},
  }
  info = {
    'name': 'tiny',
    'version': '1.0.0',
    'fileFormat': 'array_record',
    'splits': [
      {
        'name': name,
        'shardLengths': [str(len(split))],
        'filepathTemplate': '{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}',
      }
      for name, split in splits.items()
    ],
  }
  (place / 'features.json').write_text(json.dumps(features_dict))
  (place / 'label.labels.txt').write_text('cat\ndog\nowl\n')
  (place / 'dataset_info.json').write_text(json.dumps(info))
  for name, split in splits.items():
    writer = ArrayRecordWriter(str(place / f'tiny-{name}.array_record-00000-of-00001'))
    for image, label in zip(split.images_NHWC, split.labels_N, strict=True):
      png, example = io.BytesIO(), tf_example_pb2.Example()
      PIL.Image.fromarray(image).save(png, 'PNG')
      example.features.feature['image'].bytes_list.value.append(png.getvalue())
      example.features.feature['label'].int64_list.value.append(label)
      writer.write(example.SerializeToString())
    writer.close()


@pytest.mark.parametrize('held_out', ['test', 'validation'])
def test_a_tfds_set_is_read_in_its_order(tmp_path, held_out):
  written = {'train': make_split(9, seed=0), held_out: make_split(5, seed=1)}
  write_tfds(tmp_path, written)
  config = section(name='tiny', data_dir=str(tmp_path))
  assert data.describe(config) == data.Description(SHAPE, ('cat', 'dog', 'owl'), 9, 5)
  splits = data.load(config)
  assert list(splits) == ['train', 'test']
  for name, expected in (('train', written['train']), ('test', written[held_out])):
    np.testing.assert_array_equal(splits[name].images_NHWC, expected.images_NHWC)
    np.testing.assert_array_equal(splits[name].labels_N, expected.labels_N)
    assert splits[name].labels_N.dtype == np.int32


@pytest.mark.parametrize(
  'features',
  [{'shape': (-1, -1, 3)}, {'dtype': 'uint16'}, {'label': NUMBER}],
  ids=['shape varies', '16 bits', 'no classes'],
)
def test_a_set_that_is_no_image_classification_is_told(tmp_path, features):
  write_tfds(tmp_path, {'train': make_split(2, 0), 'test': make_split(2, 1)}, **features)
  with pytest.raises(UserError, match=r"dataset\.name = 'tiny': .*fixed size and one class"):
    data.describe(section(name='tiny', data_dir=str(tmp_path)))


@pytest.mark.parametrize('names', [('train', 'extra'), ('test', 'extra')])
def test_a_set_without_the_needed_splits_is_told(tmp_path, names):
  write_tfds(tmp_path, {name: make_split(2, 0) for name in names})
  with pytest.raises(UserError, match=r"dataset\.name = 'tiny': has the splits \["):
    data.describe(section(name='tiny', data_dir=str(tmp_path)))


@pytest.mark.parametrize('tensorflow', [None, 'installed'])
def test_a_missing_set_tells_where_it_was_sought_and_what_to_run(tmp_path, monkeypatch, tensorflow):
  monkeypatch.setattr(data.importlib.util, 'find_spec', lambda name: tensorflow)
  with pytest.raises(UserError) as error:
    data.describe(section(name='mnist', data_dir=str(tmp_path)), prepare=False)
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
  assert not list(tmp_path.iterdir())


def test_loading_a_missing_set_prepares_nothing(tmp_path, monkeypatch):
  monkeypatch.setattr(data.importlib.util, 'find_spec', lambda name: 'installed')
  with pytest.raises(UserError, match=r"dataset\.name = 'mnist'"):
    data.load(section(name='mnist', data_dir=str(tmp_path)))
  assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
  'name', ['no_such_set', '', 'two words', 'mnist/no_such_config', 'mnist:9.9.9', '../mnist']
)
def test_a_name_that_tfds_does_not_know_is_told(tmp_path, name):
  with pytest.raises(UserError) as error:
    data.describe(section(name=name, data_dir=str(tmp_path)), prepare=False)
  assert str(error.value).startswith(f'dataset.name = {name!r}: ')
  assert 'digits' in str(error.value)


def test_a_set_whose_builder_needs_what_is_not_installed_is_told(monkeypatch):
  def builder(name, data_dir):
    raise ModuleNotFoundError("No module named 'tensorflow'")

  monkeypatch.setattr(data.tfds, 'builder', builder)
  with pytest.raises(UserError, match=r"dataset\.name = 'coco': .*No module named 'tensorflow'"):
    data.describe(section(name='coco'), prepare=False)


# Real sets, where they are.


def real_section(name):
  place = pathlib.Path(
    os.environ.get('TFDS_DATA_DIR', ROOT.parent / 'shared' / 'tensorflow_datasets')
  ).expanduser()
  if not list(place.glob(f'{name}/*/*.array_record*')):
    pytest.skip(f'{name} is not in TFDS_DATA_DIR nor beside the repository')
  return section(name=name, data_dir=str(place))


@pytest.mark.parametrize(
  ('name', 'shape', 'num_train', 'num_test'),
  [('cifar10', (32, 32, 3), 50_000, 10_000), ('mnist', (28, 28, 1), 60_000, 10_000)],
)
def test_description_of_a_real_set(name, shape, num_train, num_test):
  description = data.describe(real_section(name), prepare=False)
  assert description.image_shape_HWC == shape
  assert (description.num_train, description.num_test) == (num_train, num_test)
  assert description.num_classes == 10


@pytest.mark.parametrize('name', ['cifar10', 'mnist'])
def test_the_first_examples_of_a_real_set_are_those_in_its_file(name, monkeypatch):
  config = real_section(name)
  whole = tfds.core.DatasetBuilder.as_data_source
  monkeypatch.setattr(  # all of it would take seconds
    tfds.core.DatasetBuilder, 'as_data_source', lambda self, split: whole(self, f'{split}[:20]')
  )
  splits = data.load(config)
  for split in ('train', 'test'):
    file = min(pathlib.Path(config.data_dir).glob(f'{name}/*/{name}-{split}.array_record*'))
    records = ArrayRecordReader(str(file)).read(0, 20)
    found = zip(splits[split].images_NHWC, splits[split].labels_N, records, strict=True)
    for image, label, record in found:
      feature = tf_example_pb2.Example.FromString(record).features.feature
      expected = PIL.Image.open(io.BytesIO(feature['image'].bytes_list.value[0]))
      np.testing.assert_array_equal(image, np.asarray(expected).reshape(image.shape))
      assert [label] == feature['label'].int64_list.value
