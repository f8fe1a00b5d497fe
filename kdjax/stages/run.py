"""What all stages of one run share: its config, its folders, and things made when first needed."""

import collections
import functools
import json
from functools import cached_property, partial
from typing import Any

import flax.linen as nn
import jax
import numpy as np
import optax
from etils import epath
from ml_collections import ConfigDict

from kdjax import config as config_lib
from kdjax import data, keys, models
from kdjax.data import views
from kdjax.data.streaming import StreamedImages
from kdjax.errors import DamageError, MissingInputError
from kdjax.runtime import files, prefetch, progress
from kdjax.train import devices, loop, optimizers, steps
from kdjax.train.checkpoint import Checkpoints
from kdjax.train.inputs import Inputs


class Run:
  """One config in one workdir. Nothing is loaded or compiled before a stage asks for it."""

  def __init__(self, config: ConfigDict, workdir: epath.Path):
    self.config = config
    workdir = workdir.expanduser()
    # Orbax wants absolute paths; `absolute` would mangle those on gs://, which are.
    self.workdir = workdir if workdir.is_absolute() else workdir.absolute()
    self._steps = {}

  # Folders.

  def member_folder(self, member: int) -> epath.Path:
    fingerprint = config_lib.teacher_fingerprint(self.config)
    return self.workdir / 'teachers' / fingerprint / f'member_{member}'

  @property
  def gan_folder(self) -> epath.Path:
    return self.workdir / 'gans' / config_lib.gan_fingerprint(self.config)

  @property
  def predictions_folder(self) -> epath.Path:
    return self.workdir / 'predictions' / config_lib.predictions_fingerprint(self.config)

  @property
  def student_folder(self) -> epath.Path:
    return self.workdir / 'students' / config_lib.student_fingerprint(self.config)

  # Data.

  @cached_property
  def description(self) -> data.Description:
    return data.describe(self.config.dataset)

  @cached_property
  def sizes(self) -> dict[str, int]:
    """Examples of each split; needs no images."""
    return data.split_sizes(self.config.dataset, self.description)

  @cached_property
  def num_examples(self) -> dict[str, int]:
    """Of what the 'teacher' learns and of what the 'student' is distilled on; needs no images."""
    config, num_train = self.config, self.sizes['train']
    return {
      'teacher': data.part_size(num_train, config.teacher.examples),
      'student': data.part_size(num_train, config.predictions.examples)
      + config_lib.num_extra(config),
    }

  @property
  def held_out(self) -> list[str]:
    return [name for name in self.sizes if name != 'train']

  @cached_property
  def splits(self) -> dict[str, data.Split]:
    return _load_splits(self.config.dataset.to_json())

  @cached_property
  def extra_inputs(self) -> dict[str, np.ndarray | StreamedImages]:
    """{'extra': the unlabelled inputs that are added to the data set's}, or {} if there are none."""
    name, count = self.config.predictions.extra, config_lib.num_extra(self.config)
    if not name:
      return {}
    if name == 'gan':
      return {'extra': self.gan_samples(count)}
    shape = self.description.input_shape
    return {'extra': data.load_extra(name, self.config.dataset, shape, count)}

  def gan_samples(self, count: int | None = None) -> np.ndarray:
    """The first samples of the GAN, by default all, as uint8 images_NHWC.

    Raises:
      MissingInputError: it was not trained, or has fewer samples.
      DamageError: the file is damaged, or the GAN was trained on other data.
    """
    folder, count = self.gan_folder, count or self.config.gan.num_samples
    path = folder / 'samples.npz'
    images = files.read_arrays(path)['images_NHWC'] if path.exists() else ()
    if len(images) < count:
      raise MissingInputError(
        f'the GAN is not trained: {path} should have {count} samples, and there are {len(images)}. '
        'Run the same command with --stages=gan first.'
      )
    self.begin(folder, 'teacher')
    return images[:count]

  def check_data(self, checksum: str, folder: epath.Path, of: str) -> None:
    """Raises DamageError if what is in `folder` was made from other inputs or labels than these.

    Streamed or not, the data are the same: checksums of one kind are compared.

    Args:
      of: 'teacher' or 'student', for what their folders depend on.
    """
    sampled, now = checksum.startswith(data.SAMPLED), self.checksum(of)
    if sampled != now.startswith(data.SAMPLED):
      now = data.checksum(self._checksummed(of), sampled)
    if checksum != now:
      raise DamageError(
        f'{folder} was made from other data: its data set has the checksum {checksum}, the one that '
        f'was read now {now}. Use a new --workdir, or the data set that it was made from.'
      )

  def checksum(self, of: str) -> str:
    """Of the data set, for the 'teacher'; for the 'student' also of what comes beside it."""
    return self._data_checksum if of == 'teacher' else self._all_checksum

  @cached_property
  def _data_checksum(self) -> str:
    return data.checksum(self._checksummed('teacher'))

  @cached_property
  def _all_checksum(self) -> str:
    return data.checksum(self._checksummed('student'))

  def _checksummed(self, of: str) -> dict[str, data.Split]:
    if of == 'teacher':
      # As the fingerprint, it leaves the test set out: another `num_test` is no other teacher.
      return {name: split for name, split in self.splits.items() if name != 'test'}
    extra = {name: _unlabelled_split(inputs) for name, inputs in self.extra_inputs.items()}
    return self.splits | extra

  @cached_property
  def inputs(self) -> dict[str, Inputs]:
    """'distillation', the views of the distillation data, and every split as it is."""
    return {'distillation': self._distillation_inputs(), **self.split_inputs}

  @cached_property
  def split_inputs(self) -> dict[str, Inputs]:
    """The splits as they are, which are there before there is any distillation data."""
    clean = views.make_view((), self.config.augmentation)
    return {name: Inputs(split, clean, self.config.seed, 1) for name, split in self.splits.items()}

  def _distillation_inputs(self) -> Inputs:
    predictions, num_augmented = self.config.predictions, None
    split = self.part('predictions')
    if predictions.extra:
      num_augmented = None if predictions.augment_extra else len(split)
      split = split.joined(_unlabelled_split(self.extra_inputs['extra']))
    view = views.make_view(predictions.augmentation, self.config.augmentation, num_augmented)
    has_partners = 'mixup' in predictions.augmentation
    return Inputs(split, view, self.config.seed, predictions.num_views, has_partners)

  def part(self, section: str) -> data.Split:
    """The training examples that the section 'teacher' or 'predictions' takes."""
    examples = self.config[section].examples
    return data.part(self.splits['train'], examples, config_lib.subset_seed(self.config))

  # Models.

  @cached_property
  def teacher_model(self) -> nn.Module:
    return self._build(self.config.model)

  @cached_property
  def student_model(self) -> nn.Module:
    return self._build(config_lib.student_model(self.config))

  def _build(self, config: ConfigDict) -> nn.Module:
    return models.build(config, self.description.num_classes, self.description.vocabulary_size)

  def init_variables(self, model: nn.Module, seed: int) -> steps.Variables:
    """Fresh weights; the seed alone decides them."""
    return models.init(model, keys.stream(seed, 'init'), *self._example)

  @property
  def _example(self) -> tuple[tuple[int, ...], type]:
    """Shape and dtype of a model's input."""
    is_text = self.description.vocabulary_size is not None
    return self.description.input_shape, np.int32 if is_text else np.float32

  def predict(
    self,
    model: nn.Module,
    variables: steps.Variables,
    inputs: Inputs,
    view: int = 0,
    indices_N: np.ndarray | None = None,
  ) -> np.ndarray:
    """logits_NC of one view of the given examples, by default all, in order."""
    step = partial(steps.predict_step, model=model, view=inputs.view)
    return self._map(step, variables, inputs, view, indices_N)

  def features(
    self, model: nn.Module, variables: steps.Variables, inputs: Inputs, indices_N: np.ndarray
  ) -> dict[str, np.ndarray]:
    """The named features of the given examples, in order; the first axis is the example."""
    step = partial(steps.features_step, model=model, view=inputs.view)
    return self._map(step, variables, inputs, 0, indices_N, in_flight=1)

  def labels(self, inputs: Inputs, view: int) -> np.ndarray:
    """labels_N of one view of all examples: −1 where there is none, or the view leaves none."""
    return self._map(partial(steps.labels_step, view=inputs.view), {}, inputs, view)

  def _map(
    self,
    step: partial,
    variables: steps.Variables,
    inputs: Inputs,
    view: int,
    indices_N: np.ndarray | None = None,
    in_flight: int = loop.STEPS_IN_FLIGHT,
  ) -> Any:
    """A step's outputs over examples, by default all. Arrays of the host, joined along examples."""
    key = (step.func, *sorted(step.keywords.items()))
    if key not in self._steps:
      self._steps[key] = devices.parallel(step, gathered_output=True)
    indices_N = np.arange(len(inputs.split)) if indices_N is None else indices_N
    batches = inputs.evaluation(indices_N, view, self.config.evaluation.batch_size)
    fetched, waiting = [], collections.deque()

    def fetch() -> None:
      outputs, count = waiting.popleft()
      fetched.append(jax.tree.map(lambda x: devices.unshard(x)[:count], outputs))

    for batch, count in prefetch.ahead(batches, loop.BLOCKS_AHEAD):
      waiting.append((self._steps[key](variables, batch, inputs.seed), count))
      if len(waiting) > in_flight:
        fetch()
    while waiting:
      fetch()
    return jax.tree.map(lambda *x: np.concatenate(x), *fetched)

  def model(self, of: str) -> nn.Module:
    return {'teacher': self.teacher_model, 'student': self.student_model}[of]

  def load_variables(self, folder: epath.Path, of: str, step: int | None = None) -> steps.Variables:
    """What a complete training left in its folder, after its last or another kept step.

    Args:
      of: 'teacher' or 'student'.

    Raises:
      DamageError: the checkpoint is damaged or missing, or other data was trained on.
    """
    self.begin(folder, of)
    step = files.read_json(folder / 'complete.json')['step'] if step is None else step
    with Checkpoints(folder / 'checkpoints', read_only=True) as checkpoints:
      state = checkpoints.restore(self.abstract_state(of), step)
    return devices.replicate(state.variables)

  # Training.

  def begin(self, folder: epath.Path, of: str) -> None:
    """Writes config.json and data.json before a training, and checks them later.

    One under way must go on with its data, and what is complete is used with them alone.

    Raises:
      DamageError: what is in the folder was trained on other data.
    """
    record = folder / 'data.json'
    if record.exists():
      self.check_data(files.read_json(record)['checksum'], folder, of)
    else:
      if (folder / 'complete.json').exists():
        progress.logger.warning(
          '%s is missing: the data set that is here now is taken for the one of then', record
        )
      files.write_json(record, {'checksum': self.checksum(of)})
    self.write_config(folder)

  def write_config(self, folder: epath.Path, replace: bool = False) -> None:
    """Writes config.json, or in place of one that differs, in fields of no fingerprint of the folder."""
    path, text = folder / 'config.json', files.json_text(self.config.to_dict())
    if not path.exists() or (replace and path.read_bytes() != text.encode()):
      files.write_text(path, text)

  def plan(self, of: str) -> loop.Plan:
    """How long and how often, for the 'teacher' or the 'student'."""
    section = self.config[of]
    return loop.make_plan(
      config_lib.num_steps(section, self.num_examples[of]),
      section.batch_size,
      self.num_examples[of],
      keep_checkpoints=section.keep_checkpoints,
      **self.config.training,
    )

  def learning_rate(self, of: str) -> optax.Schedule:
    return optimizers.learning_rate(self.config[of], *self._num_steps(of))

  def optimizer(self, of: str) -> optax.GradientTransformation:
    return optimizers.make_optimizer(self.config[of], *self._num_steps(of))

  def _num_steps(self, of: str) -> tuple[int, int]:
    """In all, and of the warm-up."""
    section, plan = self.config[of], self.plan(of)
    return plan.num_steps, round(section.warmup_epochs * plan.num_examples / plan.batch_size)

  def abstract_state(self, of: str) -> steps.State:
    """Shapes and dtypes of the state that is trained."""
    variables = _abstract_variables(self.model(of), *self._example)
    return jax.eval_shape(partial(steps.init_state, optimizer=self.optimizer(of)), variables)


@functools.lru_cache(4)
def _abstract_variables(
  model: nn.Module, input_shape: tuple[int, ...], dtype: type
) -> steps.Variables:
  return models.shapes(model, keys.stream(0, 'init'), input_shape, dtype)


@functools.lru_cache(1)
def _load_splits(dataset: str) -> dict[str, data.Split]:
  """Of the `dataset` section as JSON. A run and its counterpart, and the runs of a sweep, share it."""
  splits = data.load(ConfigDict(json.loads(dataset)))
  for split in splits.values():
    for array in (split.inputs_N, split.labels_N):
      if isinstance(array, np.ndarray):
        array.flags.writeable = False
  return splits


def _unlabelled_split(inputs_N: np.ndarray | StreamedImages) -> data.Split:
  return data.Split(inputs_N, np.full(len(inputs_N), views.NO_LABEL, np.int32))
