"""Teachers as a student and an evaluation see them.

`StoredTeacher` reads the prediction store and needs no teacher's weights. `OnlineTeacher` runs the members
and needs no store. Both give the same numbers, up to the dtype of the store. Another source of predictions
is another class with the methods of `Teacher`. Axes: M member, N example, B batch, C class.
"""

from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import Protocol

import flax.linen as nn
import jax
import numpy as np
from scipy.special import log_softmax

from kdjax import losses
from kdjax.data import order
from kdjax.predictions.store import PredictionStore
from kdjax.train import devices, steps
from kdjax.train.inputs import Inputs
from kdjax.train.predictor import Predictor

BLOCK = 10_000  # examples that are combined at once

_ensemble_log_probs = jax.jit(losses.ensemble_log_probs)


class Teacher(Protocol):
  """The ensemble's predictions on inputs that have names, such as 'distillation' and 'test'."""

  def members(self, name: str, view: int = 0) -> np.ndarray:
    """log_probs_MNC of every member, for one view of every example."""

  def batch(self, name: str, batch: steps.Batch) -> jax.Array:
    """The ensemble's log_probs for a batch, split over the devices as the batch is."""


def ensemble(teacher: Teacher, name: str, view: int = 0) -> np.ndarray:
  """log_probs_NC of the ensemble, for one view of every example."""
  return combine(teacher.members(name, view))


def combine(log_probs_MNC: np.ndarray) -> np.ndarray:
  """log_probs_NC of the ensemble, in blocks of examples that fit on any device."""
  blocks = np.array_split(log_probs_MNC, -(-log_probs_MNC.shape[1] // BLOCK), axis=1)
  return np.concatenate([np.asarray(_ensemble_log_probs(block)) for block in blocks])


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
    found = order.look_up(lambda view: self._reading(name, view).result(), views, batch['indices'])
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
  """Runs the members on the devices."""

  def __init__(
    self,
    model: nn.Module,
    members: Sequence[steps.Variables],
    inputs: Mapping[str, Inputs],
    predictor: Predictor,
  ):
    self._model, self._members = model, list(members)
    self._inputs, self._predictor = inputs, predictor

  def members(self, name: str, view: int = 0) -> np.ndarray:
    logits_MNC = [
      self._predictor.logits(self._model, variables, self._inputs[name], view)
      for variables in self._members
    ]
    return log_softmax(np.stack(logits_MNC), axis=-1)

  def batch(self, name: str, batch: steps.Batch) -> jax.Array:
    inputs = self._inputs[name]
    step = partial(steps.ensemble_step, model=self._model, view=inputs.view)
    return devices.parallel(step, sharded_output=True)(self._members, batch, inputs.seed)
