"""The data of an experiment: splits, sizes, unlabelled inputs, and their provenance."""

import functools
import json
from functools import cached_property

import numpy as np
from ml_collections import ConfigDict

from kdjax import config as config_lib
from kdjax import data
from kdjax.data import views
from kdjax.data.streaming import StreamedImages
from kdjax.errors import MissingInputError
from kdjax.runtime import files
from kdjax.stages.folders import Folders
from kdjax.stages.provenance import Provenance
from kdjax.train.inputs import Inputs


class Data:
  """The data for training and evaluation of an experiment, read when they are first needed."""

  def __init__(self, config: ConfigDict, folders: Folders):
    self._config, self._folders = config, folders

  @cached_property
  def description(self) -> data.Description:
    return data.describe(self._config.dataset)

  @cached_property
  def sizes(self) -> dict[str, int]:
    """The number of examples of each split; reads no images."""
    return data.split_sizes(self._config.dataset, self.description)

  @property
  def num_teacher_examples(self) -> int:
    """The number of examples that a teacher is trained on; reads no images."""
    return data.part_size(self.sizes['train'], self._config.teacher.examples)

  @property
  def num_distillation_examples(self) -> int:
    """The number of examples that a student is distilled on; reads no images."""
    examples = self._config.predictions.examples
    return data.part_size(self.sizes['train'], examples) + config_lib.num_extra(self._config)

  @property
  def held_out(self) -> list[str]:
    """The names of the splits that no model is trained on."""
    return [name for name in self.sizes if name != 'train']

  @cached_property
  def splits(self) -> dict[str, data.Split]:
    dataset = self._config.dataset
    return _load_splits(dataset.to_json(), tuple(data.content(dataset).values()))

  def part(self, section: ConfigDict) -> data.Split:
    """The training examples that the section `teacher` or `predictions` of the config takes."""
    seed = config_lib.subset_seed(self._config)
    return data.part(self.splits['train'], section.examples, seed)

  @cached_property
  def extra_inputs(self) -> dict[str, np.ndarray | StreamedImages]:
    """{'extra': the unlabelled inputs that are added to the distillation data}, or {} if there are none."""
    name, count = self._config.predictions.extra, config_lib.num_extra(self._config)
    if not name:
      return {}
    if name == 'gan':
      return {'extra': self.gan_samples(count)}
    shape = self.description.input_shape
    return {'extra': data.load_extra(name, self._config.dataset, shape, count)}

  def gan_samples(self, count: int | None = None) -> np.ndarray:
    """The first samples of the GAN, by default all, as uint8 images_NHWC.

    Raises:
      MissingInputError: the GAN is not trained, or has fewer samples.
      DamageError: the file is damaged, or the GAN was trained on other data.
    """
    folder, count = self._folders.gan, count or self._config.gan.num_samples
    path = folder / 'samples.npz'
    images = files.read_arrays(path)['images_NHWC'] if path.exists() else ()
    if len(images) < count:
      raise MissingInputError(
        f'the GAN is not trained: {path} should have {count} samples, and there are {len(images)}. '
        'Run the same command with --stages=gan first.'
      )
    self.training.check(folder)
    return images[:count]

  # The provenance of folders.

  @cached_property
  def training(self) -> Provenance:
    """The provenance of teachers and GANs, without the test set, which does not affect them."""
    return Provenance(
      self._config,
      lambda: {name: split for name, split in self.splits.items() if name != 'test'},
    )

  @cached_property
  def everything(self) -> Provenance:
    """The provenance of predictions and students: all splits, and the unlabelled inputs."""
    return Provenance(
      self._config,
      lambda: self.splits | {name: _unlabelled(x) for name, x in self.extra_inputs.items()},
    )

  # The inputs of models.

  @cached_property
  def inputs(self) -> dict[str, Inputs]:
    """'distillation', the views of the distillation data, and every split as it is."""
    return {'distillation': self._distillation_inputs(), **self.split_inputs}

  @cached_property
  def split_inputs(self) -> dict[str, Inputs]:
    """Every split as it is. Unlike `inputs`, it does not need the unlabelled inputs."""
    clean = views.make_view((), self._config.augmentation)
    return {name: Inputs(split, clean, self._config.seed, 1) for name, split in self.splits.items()}

  def _distillation_inputs(self) -> Inputs:
    predictions, num_augmented = self._config.predictions, None
    split = self.part(predictions)
    if predictions.extra:
      num_augmented = None if predictions.augment_extra else len(split)
      split = split.joined(_unlabelled(self.extra_inputs['extra']))
    view = views.make_view(predictions.augmentation, self._config.augmentation, num_augmented)
    has_partners = 'mixup' in predictions.augmentation
    return Inputs(split, view, self._config.seed, predictions.num_views, has_partners)


@functools.lru_cache(1)
def _load_splits(dataset: str, content: tuple[str, ...]) -> dict[str, data.Split]:
  """The splits of the section `dataset`, given as JSON. All experiments of a sweep share them.

  Args:
    content: the digests of `data.content`. If they change, the data are read again.
  """
  del content
  splits = data.load(ConfigDict(json.loads(dataset)))
  for split in splits.values():
    for array in (split.inputs_N, split.labels_N):
      if isinstance(array, np.ndarray):
        array.flags.writeable = False
  return splits


def _unlabelled(inputs_N: np.ndarray | StreamedImages) -> data.Split:
  return data.Split(inputs_N, np.full(len(inputs_N), views.NO_LABEL, np.int32))
