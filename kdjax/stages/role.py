"""The roles of an experiment, teacher and student, which differ only in the values of a `Role`."""

import dataclasses
import functools
from functools import partial

import flax.linen as nn
import jax
import optax
from etils import epath
from ml_collections import ConfigDict

from kdjax import config as config_lib
from kdjax import keys, models
from kdjax.stages.provenance import Provenance
from kdjax.train import devices, loop, optimizers, steps


@dataclasses.dataclass(frozen=True)
class Role:
  """A model and how it is trained."""

  section: ConfigDict  # `teacher` or `student` of the config
  training: ConfigDict  # the section of that name
  model: nn.Module
  input_shape: tuple[int, ...]
  input_dtype: type
  num_examples: int  # in an epoch
  provenance: Provenance | None  # of a folder in which such a model is trained; None: not checked

  @property
  def plan(self) -> loop.Plan:
    """The length of the training, and the steps after which to log, evaluate and save."""
    return loop.make_plan(
      config_lib.num_steps(self.section, self.num_examples),
      self.section.batch_size,
      self.num_examples,
      keep_checkpoints=self.section.keep_checkpoints,
      **self.training,
    )

  @property
  def learning_rate(self) -> optax.Schedule:
    return optimizers.learning_rate(self.section, *self._durations)

  @property
  def optimizer(self) -> optax.GradientTransformation:
    return optimizers.make_optimizer(self.section, *self._durations)

  @property
  def _durations(self) -> tuple[int, int]:
    """The number of steps of the whole training, and of its warm-up."""
    plan = self.plan
    warmup = round(self.section.warmup_epochs * plan.num_examples / plan.batch_size)
    return plan.num_steps, warmup

  @property
  def abstract_state(self) -> steps.State:
    """Shapes and dtypes of the state that is trained."""
    variables = _abstract_variables(self.model, self.input_shape, self.input_dtype)
    return jax.eval_shape(partial(steps.init_state, optimizer=self.optimizer), variables)

  def init_variables(self, seed: int) -> steps.Variables:
    """Fresh weights; the seed alone decides them."""
    return models.init(self.model, keys.stream(seed, 'init'), self.input_shape, self.input_dtype)

  def load(self, folder: epath.Path, step: int | None = None) -> steps.Variables:
    """The variables of a complete training in `folder`, after its last or another kept step.

    Raises:
      DamageError: the checkpoint is damaged or missing, or the data were others.
    """
    if self.provenance is not None:
      self.provenance.check(folder)
    return devices.replicate(loop.restore(folder, self.abstract_state, step).variables)


@functools.lru_cache(4)
def _abstract_variables(
  model: nn.Module, input_shape: tuple[int, ...], dtype: type
) -> steps.Variables:
  return models.shapes(model, keys.stream(0, 'init'), input_shape, dtype)
