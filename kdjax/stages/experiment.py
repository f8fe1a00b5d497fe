"""An experiment: a config in a workdir."""

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import flax.linen as nn
import numpy as np
from etils import epath
from ml_collections import ConfigDict

from kdjax import config as config_lib
from kdjax import metrics, models
from kdjax.config import teacher_source
from kdjax.config.fields import WORKDIR
from kdjax.stages.datasets import Data
from kdjax.stages.folders import Folders
from kdjax.stages.provenance import Provenance
from kdjax.stages.role import Role
from kdjax.train import trackers
from kdjax.train.predictor import Predictor
from kdjax.train.steps import Variables


class Experiment:
  """A config in a workdir, and the folders, data, roles and predictor that follow from them.

  Each attribute is made when it is first used. Nothing here writes.
  """

  def __init__(
    self,
    config: ConfigDict,
    workdir: epath.Path,
    label: str = '',
    tracked_by: Sequence[str] = (),
    title: str = '',
  ):
    """An experiment.

    Args:
      label: a prefix in progress bars and messages, which distinguishes an experiment from its counterpart.
      tracked_by: names of trackers that its trainings are sent to.
      title: the name of its student in trackers.
    """
    self.config, self.label, self.tracked_by, self.title = config, label, tracked_by, title
    workdir = workdir.expanduser()
    # Orbax needs absolute paths. Paths on gs:// are absolute, and `absolute` would break them.
    self.workdir = workdir if workdir.is_absolute() else workdir.absolute()

  @cached_property
  def folders(self) -> Folders:
    return Folders(self.workdir, self.config)

  @cached_property
  def data(self) -> Data:
    return Data(self.config, self.folders)

  @cached_property
  def teacher(self) -> Role:
    section, num_examples = self.config.teacher, self.data.num_teacher_examples
    if section.source == WORKDIR:  # its checkpoints hold the state of its own optimizer
      section = teacher_source.recorded(section.path).teacher
      return self._role(section, self.config.model, num_examples, None)
    return self._role(section, self.config.model, num_examples, self.data.training)

  @cached_property
  def student(self) -> Role:
    model, num_examples = config_lib.student_model(self.config), self.data.num_distillation_examples
    return self._role(self.config.student, model, num_examples, self.data.everything)

  @cached_property
  def predictor(self) -> Predictor:
    return Predictor(self.config.evaluation.batch_size)

  def evaluate(
    self,
    model: nn.Module,
    variables: Variables,
    teacher_log_probs: Mapping[str, np.ndarray] | None = None,
  ) -> dict[str, float]:
    """Generalization on the held-out splits, for the log of a training.

    Args:
      teacher_log_probs: log_probs_NC of an ensemble by split, to which fidelity is added.
    """
    values = {}
    for name in self.data.held_out:
      inputs = self.data.split_inputs[name]
      logits_NC = self.predictor.logits(model, variables, inputs)
      found = metrics.generalization(logits_NC, inputs.split.labels_N)
      if teacher_log_probs is not None:
        found |= metrics.fidelity(logits_NC, teacher_log_probs[name])
      values |= {f'{name}/{key}': value for key, value in found.items()}
    return values

  def tracked(self, name: str, folder: epath.Path) -> trackers.Run:
    """A training of this experiment for trackers. The workdir's name is their project.

    Args:
      name: the name of the run.
      folder: where the training writes.
    """
    config: dict[str, Any] = {'folder': str(folder)}
    for field, value in config_lib.leaves(self.config).items():
      options = value if isinstance(value, dict) else {}
      config |= {f'{field}.{key}': x for key, x in options.items()} or {field: value}
    return trackers.Run(self.tracked_by, self.workdir.name, name, folder, config)

  def _role(
    self, section: ConfigDict, model: ConfigDict, num_examples: int, provenance: Provenance | None
  ) -> Role:
    description = self.data.description
    return Role(
      section,
      self.config.training,
      models.build(model, description.num_classes, description.vocabulary_size),
      description.input_shape,
      description.input_dtype,
      num_examples,
      provenance,
    )
