"""What all stages of one run share: its config, its folders, and things made when first needed."""

import collections
from functools import cached_property, partial

import flax.linen as nn
import jax
import numpy as np
from etils import epath
from ml_collections import ConfigDict

from kdjax import config as config_lib
from kdjax import data, files, keys, models, steps, training, views
from kdjax.checkpoint import Checkpoints
from kdjax.errors import DamageError
from kdjax.inputs import Inputs


class Run:
  """One config in one workdir. Nothing is loaded or compiled before a stage asks for it."""

  def __init__(self, config: ConfigDict, workdir: epath.Path):
    self.config = config
    workdir = workdir.expanduser()
    # Orbax wants absolute paths; `absolute` would mangle those on gs://, which are.
    self.workdir = workdir if workdir.is_absolute() else workdir.absolute()
    self._predict_steps = {}

  # Folders.

  def member_folder(self, member: int) -> epath.Path:
    fingerprint = config_lib.teacher_fingerprint(self.config)
    return self.workdir / 'teachers' / fingerprint / f'member_{member}'

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

  @property
  def held_out(self) -> list[str]:
    return [name for name in self.sizes if name != 'train']

  @cached_property
  def splits(self) -> dict[str, data.Split]:
    return data.load(self.config.dataset)

  def check_data(self, checksum: str, folder: epath.Path) -> None:
    """Raises DamageError if what is in `folder` was made from other images or labels than these."""
    if checksum != self.checksum:
      raise DamageError(
        f'{folder} was made from other data: its data set has the checksum {checksum}, the one that '
        f'was read now {self.checksum}. Use a new --workdir, or the data set that it was made from.'
      )

  @cached_property
  def checksum(self) -> str:
    return data.checksum(self.splits)

  @cached_property
  def inputs(self) -> dict[str, Inputs]:
    """'distillation', the views of the training set, and every split as it is."""
    predictions = self.config.predictions
    clean = views.make_view((), self.config.augmentation)
    augmented = views.make_view(predictions.augmentation, self.config.augmentation)
    train, seed = self.splits['train'], self.config.seed
    return {
      'distillation': Inputs(train, augmented, seed, predictions.num_views),
      **{name: Inputs(split, clean, seed, 1) for name, split in self.splits.items()},
    }

  # Models.

  @cached_property
  def teacher_model(self) -> nn.Module:
    return models.build(self.config.model, self.description.num_classes)

  @cached_property
  def student_model(self) -> nn.Module:
    config = config_lib.student_model(self.config)
    return models.build(config, self.description.num_classes)

  def init_variables(self, model: nn.Module, seed: int) -> steps.Variables:
    """Fresh weights; the seed alone decides them."""
    return models.init(model, keys.stream(seed, 'init'), self.description.image_shape_HWC)

  def abstract_state(self, section: ConfigDict, model: nn.Module) -> steps.State:
    """Shapes and dtypes of the state that the `teacher` or `student` section trains."""
    optimizer = steps.make_optimizer(section, self.plan(section).num_steps)
    return jax.eval_shape(lambda: steps.init_state(self.init_variables(model, 0), optimizer))

  def predict(
    self,
    model: nn.Module,
    variables: steps.Variables,
    inputs: Inputs,
    view: int = 0,
    indices_N: np.ndarray | None = None,
  ) -> np.ndarray:
    """logits_NC of one view of the given examples, by default all, in order."""
    if (model, inputs.view) not in self._predict_steps:
      step = partial(steps.predict_step, model=model, view=inputs.view)
      self._predict_steps[model, inputs.view] = steps.parallel(step, sharded_output=True)
    step = self._predict_steps[model, inputs.view]
    indices_N = np.arange(len(inputs.split)) if indices_N is None else indices_N
    batches = inputs.evaluation(indices_N, view, self.config.evaluation.batch_size)
    fetched, waiting = [], collections.deque()
    for batch, count in batches:
      waiting.append((step(variables, batch, inputs.seed), count))
      if len(waiting) > training.STEPS_IN_FLIGHT:
        logits, of_batch = waiting.popleft()
        fetched.append(steps.unshard(logits)[:of_batch])
    fetched += [steps.unshard(logits)[:of_batch] for logits, of_batch in waiting]
    return np.concatenate(fetched)

  def load_variables(
    self, folder: epath.Path, section: ConfigDict, model: nn.Module, step: int | None = None
  ) -> steps.Variables:
    """What a complete training left in its folder, after its last or another kept step.

    Raises:
      DamageError: the checkpoint is damaged or missing, or other data was trained on.
    """
    self.check_data(files.read_json(folder / 'data.json')['checksum'], folder)
    step = files.read_json(folder / 'complete.json')['step'] if step is None else step
    with Checkpoints(folder / 'checkpoints', read_only=True) as checkpoints:
      state = checkpoints.restore(self.abstract_state(section, model), step)
    return steps.replicate(state.variables)

  # Training.

  def begin(self, folder: epath.Path) -> None:
    """Writes config.json and data.json before a training. One under way must go on with its data.

    Raises:
      DamageError: what is in the folder was trained on other data.
    """
    record = folder / 'data.json'
    if record.exists():
      self.check_data(files.read_json(record)['checksum'], folder)
    else:
      files.write_json(record, {'checksum': self.checksum})
    self.write_config(folder)

  def write_config(self, folder: epath.Path) -> None:
    if not (folder / 'config.json').exists():
      files.write_json(folder / 'config.json', self.config.to_dict())

  def plan(self, section: ConfigDict) -> training.Plan:
    """How long and how often, for the `teacher` or `student` section."""
    num_train = self.sizes['train']
    return training.make_plan(
      config_lib.num_steps(section, num_train),
      section.batch_size,
      num_train,
      keep_checkpoints=section.keep_checkpoints,
      **self.config.training,
    )
