"""Batched forward passes over examples, on all devices."""

import collections
from collections.abc import Iterable, Iterator
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import numpy as np

from kdjax.train import devices, loop, steps
from kdjax.train.inputs import Inputs


class Predictor:
  """Applies steps to examples in batches of one size."""

  def __init__(self, batch_size: int):
    self.batch_size = batch_size

  def logits(
    self,
    model: nn.Module,
    variables: steps.Variables,
    inputs: Inputs,
    view: int = 0,
    indices_N: np.ndarray | None = None,
  ) -> np.ndarray:
    """logits_NC of one view of the given examples, by default all, in order."""
    step = partial(steps.predict_step, model=model, view=inputs.view)
    return self.outputs(step, variables, self._batches(inputs, view, indices_N), inputs.seed)

  def features(
    self, model: nn.Module, variables: steps.Variables, inputs: Inputs, indices_N: np.ndarray
  ) -> dict[str, np.ndarray]:
    """The named features of the given examples, in order; the first axis is the example."""
    step = partial(steps.features_step, model=model, view=inputs.view)
    batches = self._batches(inputs, indices_N=indices_N)
    return self.outputs(step, variables, batches, inputs.seed, in_flight=1)

  def views(
    self, inputs: Inputs, view: int = 0, indices_N: np.ndarray | None = None
  ) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Batches (indices_B, inputs_BX, labels_B): one view of the given examples, by default all, in order."""
    step = partial(steps.examples_step, view=inputs.view)
    return self._fetched(step, {}, self._batches(inputs, view, indices_N), inputs.seed)

  def labels(self, inputs: Inputs, view: int) -> np.ndarray:
    """labels_N of one view of all examples; −1 where there is no label."""
    step = partial(steps.labels_step, view=inputs.view)
    return self.outputs(step, {}, self._batches(inputs, view), inputs.seed)

  def outputs(
    self,
    step: partial,
    variables: Any,
    batches: Iterable[tuple[steps.Batch, int]],
    seed: int,
    in_flight: int = loop.STEPS_IN_FLIGHT,
  ) -> Any:
    """The outputs of a step over batches, on the host, joined along examples.

    Args:
      step: a partial of a module's function (variables, batch, seed) → arrays of shape (B, ...).
      batches: batches that are split over the devices, and how many examples of each count.
      in_flight: how many batches are dispatched before the first output is fetched.
    """
    fetched = self._fetched(step, variables, batches, seed, in_flight)
    return jax.tree.map(lambda *x: np.concatenate(x), *fetched)

  def _batches(
    self, inputs: Inputs, view: int = 0, indices_N: np.ndarray | None = None
  ) -> Iterator[tuple[steps.Batch, int]]:
    indices_N = np.arange(len(inputs.split)) if indices_N is None else indices_N
    return inputs.evaluation(indices_N, view, self.batch_size)

  def _fetched(
    self,
    step: partial,
    variables: Any,
    batches: Iterable[tuple[steps.Batch, int]],
    seed: int,
    in_flight: int = loop.STEPS_IN_FLIGHT,
  ) -> Iterator[Any]:
    """The outputs of a step for each batch, on the host."""
    mapped = devices.parallel(step, gathered_output=True)
    waiting = collections.deque()

    def fetched() -> Any:
      outputs, count = waiting.popleft()
      return jax.tree.map(lambda x: devices.unshard(x)[:count], outputs)

    for batch, count in devices.ahead(iter(batches), loop.BLOCKS_AHEAD):
      waiting.append((mapped(variables, batch, seed), count))
      if len(waiting) > in_flight:
        yield fetched()
    while waiting:
      yield fetched()
