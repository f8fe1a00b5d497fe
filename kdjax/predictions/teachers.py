"""Teachers as a student and an evaluation see them, and the sources of their predictions.

`StoredTeacher` reads the prediction store. The others are sources, from which the store is filled:
`OnlineTeacher` runs members of kdjax, `FunctionTeacher` calls functions of the user, and `ImportedTeacher`
reads a file. The first two can also serve a student without a store, with the same numbers up to the dtype
of the store. Axes: M member, N example, B batch, C class, X the axes of one input.
"""

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import Any, Protocol

import flax.linen as nn
import jax
import numpy as np
from scipy.special import log_softmax

from kdjax import losses
from kdjax.predictions import functions
from kdjax.predictions.imported import LogitsFile
from kdjax.predictions.store import PredictionStore
from kdjax.train import devices, steps
from kdjax.train.inputs import Inputs, look_up
from kdjax.train.predictor import Predictor

BLOCK = 10_000  # examples that are combined at once


class Teacher(Protocol):
  """The predictions of an ensemble on named inputs, such as 'distillation' and 'test'."""

  def members(self, name: str, view: int = 0) -> np.ndarray:
    """log_probs_MNC of every member, for one view of every example."""

  def batch(self, name: str, batch: steps.Batch) -> jax.Array:
    """The ensemble's log_probs for a batch, split over the devices as the batch is."""


class Source(Protocol):
  """A source of predictions, from which the store is filled."""

  gives_log_probs: bool  # whether `logits` gives log-probabilities, which are not normalised again

  def logits(
    self, member: int, name: str, view: int = 0, indices_N: np.ndarray | None = None
  ) -> np.ndarray:
    """logits_NC of one member for one view of the given examples, by default all, in order."""


def log_probs(source: Source, member: int, name: str, *which: Any) -> np.ndarray:
  """log_probs_NC of a source, with the arguments of `Source.logits`."""
  logits_NC = source.logits(member, name, *which)
  return logits_NC if source.gives_log_probs else log_softmax(logits_NC, axis=-1)


def ensemble(teacher: Teacher, name: str, view: int = 0) -> np.ndarray:
  """log_probs_NC of the ensemble, for one view of every example."""
  return combine(teacher.members(name, view))


def combine(log_probs_MNC: np.ndarray) -> np.ndarray:
  """log_probs_NC of the ensemble, in blocks of examples to save memory."""
  blocks = np.array_split(log_probs_MNC, -(-log_probs_MNC.shape[1] // BLOCK), axis=1)
  return np.concatenate([losses.ensemble_log_probs(block) for block in blocks])


class StoredTeacher:
  """Reads a whole view of the ensemble at a time, and the next one while this one is trained on.

  At most three views are in memory: two that a batch reaches into, and the next.
  """

  def __init__(self, store: PredictionStore, num_members: int, num_views: int):
    self._store = store
    self._num_members = num_members
    self._num_views = num_views  # view 0 follows the last one
    self._views: dict[tuple[str, int], Future[np.ndarray]] = {}

  def members(self, name: str, view: int = 0) -> np.ndarray:
    return self._store.read(name, range(self._num_members), view)

  def batch(self, name: str, batch: steps.Batch) -> np.ndarray:
    views = batch['views']
    found = look_up(lambda view: self._reading(name, view).result(), views, batch['indices'])
    following = (int(views.flat[-1]) + 1) % self._num_views
    needed = dict.fromkeys([*np.unique(views).tolist(), following])
    self._views = {(name, view): self._reading(name, view) for view in needed}  # drops older ones
    return found

  def _reading(self, name: str, view: int) -> Future[np.ndarray]:
    """The ensemble's log_probs_NC, once they are read. `result` raises what goes wrong."""
    if (name, view) not in self._views:
      executor = ThreadPoolExecutor(1)
      reading = executor.submit(self._store.read_ensemble, name, self._num_members, view)
      executor.shutdown(wait=False)  # its thread ends with the reading
      self._views[name, view] = reading
    return self._views[name, view]


class OnlineTeacher:
  """Runs the members on the devices.

  Attributes:
    model: the members' model.
    variables: the variables of each member.
  """

  gives_log_probs = False

  def __init__(
    self,
    model: nn.Module,
    members: Sequence[steps.Variables],
    inputs: Mapping[str, Inputs],
    predictor: Predictor,
  ):
    self.model, self.variables = model, list(members)
    self._inputs, self._predictor = inputs, predictor

  def logits(
    self, member: int, name: str, view: int = 0, indices_N: np.ndarray | None = None
  ) -> np.ndarray:
    return self._predictor.logits(
      self.model, self.variables[member], self._inputs[name], view, indices_N
    )

  def members(self, name: str, view: int = 0) -> np.ndarray:
    return _members(self, len(self.variables), name, view)

  def batch(self, name: str, batch: steps.Batch) -> jax.Array:
    inputs = self._inputs[name]
    step = partial(steps.ensemble_step, model=self.model, view=inputs.view)
    return devices.parallel(step, sharded_output=True)(self.variables, batch, inputs.seed)


class FunctionTeacher:
  """Calls functions of the user on the views that the student sees."""

  gives_log_probs = False

  def __init__(
    self,
    members: Sequence[functions.Function],
    inputs: Mapping[str, Inputs],
    predictor: Predictor,
    logits: Callable[[functions.Function, np.ndarray], np.ndarray],
  ):
    """Takes the members, and `logits`, which calls one of them and checks its result."""
    self._members, self._inputs, self._predictor = list(members), inputs, predictor
    self._logits = logits

  def logits(
    self, member: int, name: str, view: int = 0, indices_N: np.ndarray | None = None
  ) -> np.ndarray:
    batches = self._predictor.views(self._inputs[name], view, indices_N)
    found = [self._logits(self._members[member], inputs_BX) for _, inputs_BX, _ in batches]
    return np.concatenate(found)

  def members(self, name: str, view: int = 0) -> np.ndarray:
    return _members(self, len(self._members), name, view)

  def batch(self, name: str, batch: steps.Batch) -> np.ndarray:
    inputs = self._inputs[name]
    step = devices.parallel(partial(steps.examples_step, view=inputs.view), sharded_output=True)
    inputs_BX = devices.unshard(step({}, batch, inputs.seed)[1])
    logits_MBC = np.stack([self._logits(member, inputs_BX) for member in self._members])
    return devices.shard(losses.ensemble_log_probs(logits_MBC))


class ImportedTeacher:
  """Reads the logits of a file."""

  def __init__(self, file: LogitsFile):
    self._file = file
    self.gives_log_probs = file.space == 'log_probs'

  def logits(
    self, member: int, name: str, view: int = 0, indices_N: np.ndarray | None = None
  ) -> np.ndarray:
    logits_NC = self._file.logits(name, member, view)
    return logits_NC if indices_N is None else logits_NC[indices_N]


def _members(source: Source, num_members: int, name: str, view: int) -> np.ndarray:
  return np.stack([log_probs(source, member, name, view) for member in range(num_members)])
