"""Tiny data sets on disk: folders of images, and sets in the layout of TFDS."""

import io
import json
import pathlib

import numpy as np
import PIL.Image
from array_record.python.array_record_module import ArrayRecordWriter
from ml_collections import ConfigDict
from tensorflow_datasets.proto import tf_example_pb2

FEATURES = 'tensorflow_datasets.core.features.'
TEXT = {'pythonClassName': f'{FEATURES}text_feature.Text', 'text': {}}
NUMBER = {'pythonClassName': f'{FEATURES}scalar.Scalar', 'tensor': {'dtype': 'int64', 'shape': {}}}


def section(**fields) -> ConfigDict:
  """A `dataset` section."""
  everything = {
    'name': 'digits',
    'data_dir': None,
    'num_train': None,
    'num_val': 0,
    'num_test': None,
    'image_size': None,
    'streaming': False,
    'num_workers': 0,
    'max_tokens': 100,
    'min_count': 10,
    'path': None,
  }
  return ConfigDict(everything | fields)


def image_feature(*shape, dtype='uint8'):
  """−1 is a size that varies."""
  image = {'dtype': dtype, 'shape': {'dimensions': [str(size) for size in shape]}}
  return {'pythonClassName': f'{FEATURES}image_feature.Image', 'image': image}


def label_feature(num_classes):
  return {
    'pythonClassName': f'{FEATURES}class_label_feature.ClassLabel',
    'classLabel': {'numClasses': str(num_classes)},
  }


def random_images(num, *shape, seed=0):
  return np.random.default_rng(seed).integers(0, 256, (num, *shape), dtype=np.uint8)


def encoded(image: np.ndarray, kind: str = 'PNG', **options) -> bytes:
  content = io.BytesIO()
  grey = image.ndim == 3 and image.shape[-1] == 1
  PIL.Image.fromarray(image[..., 0] if grey else image).save(content, kind, **options)
  return content.getvalue()


def write_tfds(
  data_dir: pathlib.Path,
  features: dict[str, dict],
  splits: dict[str, list[dict] | int],
  name: str = 'tiny',
  version: str = '1.0.0',
  class_names: str | None = 'cat dog owl',
) -> None:
  """Writes a set in the layout of TFDS, which itself can do so only with TensorFlow.

  Args:
    features: their JSON.
    splits: their records: feature → bytes (an encoded image, a text) or integer. A number stands for
      that many records, which can be described but not read.
    name: of the set, or 'name/config'.
    class_names: of the feature 'label'; None for numbers.
  """
  place = data_dir / name / version
  place.mkdir(parents=True)
  set_name, _, config = name.partition('/')
  info = {
    'name': set_name,
    'version': version,
    'fileFormat': 'array_record',
    'splits': [
      {
        'name': split,
        'shardLengths': [str(records if isinstance(records, int) else len(records))],
        'filepathTemplate': '{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}',
      }
      for split, records in splits.items()
    ],
  }
  if config:
    info['configName'] = config
  features_dict = {
    'pythonClassName': f'{FEATURES}features_dict.FeaturesDict',
    'featuresDict': {'features': features},
  }
  (place / 'features.json').write_text(json.dumps(features_dict))
  if class_names is not None:
    (place / 'label.labels.txt').write_text('\n'.join(class_names.split()) + '\n')
  (place / 'dataset_info.json').write_text(json.dumps(info))
  for split, records in splits.items():
    writer = ArrayRecordWriter(str(place / f'{set_name}-{split}.array_record-00000-of-00001'))
    for record in records if isinstance(records, list) else ():
      example = tf_example_pb2.Example()
      for feature, value in record.items():
        values = example.features.feature[feature]
        kind = values.bytes_list if isinstance(value, bytes) else values.int64_list
        kind.value.append(value)
      writer.write(example.SerializeToString())
    writer.close()


def write_files(root: pathlib.Path, images: dict[str, np.ndarray | bytes]) -> None:
  """Writes images, or other content, at paths below `root`."""
  for path, image in images.items():
    file = root / path
    file.parent.mkdir(parents=True, exist_ok=True)
    kind = {'jpg': 'JPEG', 'jpeg': 'JPEG'}.get(file.suffix[1:].lower(), 'PNG')
    file.write_bytes(image if isinstance(image, bytes) else encoded(image, kind))
