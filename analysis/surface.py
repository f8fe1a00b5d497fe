"""Per-example values at points of weight space: the one definition of the loss in all analyses.

A point is any tree of arrays. `forward(point, inputs)` returns a network's outputs, and measures map these
to a value for each example. The code does not depend on how the point was trained, so any loss can be
studied. In this example, you provide the data `x` and `y` and the points `a`, `b` and `c`:

    forward = lambda params, inputs: jnp.tanh(inputs @ params['w']) @ params['v']
    loss = lambda outputs, batch: (outputs - batch['targets']) ** 2
    measures = lambda outputs, batch: {'loss': loss(outputs, batch)}
    surface = Surface(forward, measures, {'train': {'inputs': x, 'targets': y}})
    ts_T = np.linspace(0, 1, 9)
    values_TN = surface.at(paths.line_point, (a, b), ts_T[:, None])['train/loss']
    barrier, low, high = paths.barrier_interval(values_TN, ts_T, seed=0)
    plane = geometry.plane_through(a, b, c)
    xs, ys = geometry.grid([geometry.project(plane, p)[:2] for p in (a, b, c)], 11, margin=0.25)
    values_PN = surface.at(geometry.plane_point, plane, geometry.grid_coords(xs, ys))['train/loss']
    mean_loss = curvature.MeanLoss(forward, loss, b, surface.batches('train'))
    eigenvalues_K, bounds_K, vectors_KP = lanczos.lanczos(mean_loss.hvp, start_P, 20).largest(3)

With BatchNorm, the outputs of an example depend on the rest of its batch. All analyses normalise by the
statistics of the batch, as in training, and differentiate through these (`in_batch`, `of_params`). The
batches are fixed and large: a set that fits in one batch is normalised by its own statistics.
Axes: P point, D device, K coordinate, N example, B batch, C class.
"""

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from kdjax import intervals, keys, models
from kdjax.train import batch_norm, devices
from kdjax.train.steps import Variables

from .estimates import named

Point = Any  # a tree of arrays
Batch = dict[str, Any]  # 'inputs', and what the measures read, each with a first axis of examples
Build = Callable[[Any, jax.Array], Point]  # (shared, coordinates_K) → point, traceable
Forward = Callable[[Point, jax.Array], jax.Array]  # (point, inputs) → outputs
InBatch = Callable[[Point, jax.Array], tuple[jax.Array, Any]]  # (point, inputs) → outputs, moments
Measures = Callable[[jax.Array, Batch], dict[str, jax.Array]]  # (outputs, batch) → values_B by name
Values = dict[str, np.ndarray]  # '<set>/<measure>' → values_PN

BATCH_SIZE = 512
GROUPS_AHEAD = 4  # groups of points dispatched while the values of one are fetched


class Surface:
  """Measures on fixed examples, the same at every point of weight space.

  A point is built from a few coordinates inside jit, all measures share one forward pass, and points are
  spread over the devices.
  """

  def __init__(
    self,
    forward: Forward,
    measures: Measures,
    sets: Mapping[str, Batch],
    batch_size: int = BATCH_SIZE,
    in_batch: InBatch | None = None,
  ):
    """Binds a network, its measures and its data.

    Args:
      forward: (point, inputs) → outputs, where each example's output depends on that example alone.
      measures: (outputs, batch) → values_B by name.
      sets: examples by name.
      batch_size: the largest batch.
      in_batch: (point, inputs) → outputs under the batch's BatchNorm statistics, and these statistics. None
        for networks without BatchNorm.
    """
    self.forward, self.in_batch, self.sets = forward, in_batch, tuple(sets)
    self._measures, self._examples, self._batch_size = measures, dict(sets), batch_size
    self._steps: dict[Any, Callable] = {}
    self._placed: dict[str, list[Batch]] = {}

  def num_examples(self, name: str) -> int:
    return len(self._examples[name]['inputs'])

  def batches(self, name: str) -> list[Batch]:
    """A set in batches whose sizes differ by at most one; padding would enter BatchNorm's statistics."""
    count = self.num_examples(name)
    cuts = np.array_split(np.arange(count), -(-count // self._batch_size))
    return [
      {key: x[cut[0] : cut[-1] + 1] for key, x in self._examples[name].items()} for cut in cuts
    ]

  def at(
    self,
    build: Build,
    shared: Any,
    coordinates_PK: np.ndarray,
    reestimate: bool = False,
    show: Callable[[int, str], None] | None = None,
    sets: Sequence[str] = (),
  ) -> Values:
    """Measures the points build(shared, coordinates).

    Args:
      build: a module-level function, so that it is compiled once for all points and calls.
      shared: its first argument, any tree of arrays; it is put on the devices once.
      reestimate: whether BatchNorm uses re-estimated statistics instead of those that `build` returns. The
        first set is then normalised by the statistics of each batch, and other sets by those of the first
        set, pooled. Interpolated statistics fit no point between two networks.
      show: is called as show(points done, '').
      sets: the sets to measure; all by default.

    Returns: values_PN, '<set>/<measure>'.
    """
    shared, sets = devices.replicate(shared), sets or self.sets
    groups = _over_devices(np.asarray(coordinates_PK, np.float32))
    dispatched = (
      (count, self._dispatch(build, shared, coordinates_DK, reestimate, sets))
      for count, coordinates_DK in groups
    )
    collected: dict[str, list[np.ndarray]] = {}
    done = 0
    for count, outputs in devices.ahead(dispatched, GROUPS_AHEAD):
      for name, of_batches in outputs.items():
        for key in of_batches[0]:
          values_DN = np.concatenate([np.asarray(of[key]) for of in of_batches], axis=1)
          collected.setdefault(f'{name}/{key}', []).append(values_DN[:count])
      done += count
      if show is not None:
        show(done, '')
    return {key: np.concatenate(pieces) for key, pieces in collected.items()}

  def variables(self, point: Point, reestimate: bool = False) -> Values:
    """`at` for a single point: values_1N."""
    return self.at(as_given, point, np.zeros((1, 1)), reestimate)

  def _dispatch(
    self,
    build: Build,
    shared: Any,
    coordinates_DK: np.ndarray,
    reestimate: bool,
    sets: Sequence[str],
  ) -> dict[str, list[dict[str, jax.Array]]]:
    """The measures_DB of the batches of each set, for a group of one point per device."""
    found, stats = {}, {}
    if reestimate and self.in_batch is not None:
      first, step = self.sets[0], self._step(_values_in_batch, build)
      batches = self._placed_batches(first)
      outputs = [step(shared, coordinates_DK, batch) for batch in batches]
      found[first] = [values for values, _ in outputs]
      sizes = [len(batch['inputs']) for batch in batches]
      stats = batch_norm.pool([moments for _, moments in outputs], sizes)
    step = self._step(_values, build)
    for name in sets:
      if name not in found:
        batches = self._placed_batches(name)
        found[name] = [step(shared, (coordinates_DK, stats), batch) for batch in batches]
    return {name: found[name] for name in sets}

  def _step(self, step: Callable, build: Build) -> Callable:
    key = step, build
    if key not in self._steps:
      apply = self.forward if step is _values else self.in_batch
      bound = partial(step, build=build, apply=apply, measures=self._measures)
      self._steps[key] = devices.parallel(bound, sharded_output=True)
    return self._steps[key]

  def _placed_batches(self, name: str) -> list[Batch]:
    if name not in self._placed:
      self._placed[name] = [devices.replicate(batch) for batch in self.batches(name)]
    return self._placed[name]


def as_given(point: Point, coordinates_K: jax.Array) -> Point:
  """Returns the point itself; the `build` for a single point."""
  del coordinates_K
  return point


# kdjax models.


@partial(jax.jit, static_argnames='model')
def logits(variables: Variables, inputs_BX: jax.Array, *, model: nn.Module) -> jax.Array:
  """logits_BC with running statistics and without dropout."""
  return model.apply(variables, inputs_BX, train=False)[0]


@partial(jax.jit, static_argnames='model')
def in_batch(
  variables: Variables, inputs_BX: jax.Array, *, model: nn.Module
) -> tuple[jax.Array, Any]:
  """logits_BC normalised by the BatchNorm statistics of this batch, and these statistics.

  Running statistics are not read. Models without BatchNorm are applied in evaluation mode, so that they
  draw no dropout.

  Returns: logits_BC, and the statistics with the structure of `batch_stats`.
  """
  if not variables['batch_stats']:
    return logits(variables, inputs_BX, model=model), {}
  alone = partial(batch_norm.apply_in_batch, model, variables)
  # BatchNorm pools over the axis of devices, which hold different points here. An axis of length one with
  # the same name keeps the points apart.
  outputs = jax.vmap(alone, axis_name=models.AXIS_NAME)(inputs_BX[None])
  return jax.tree.map(lambda x: x[0], outputs)


def of_params(model: nn.Module, variables: Variables) -> Forward:
  """A function (params, inputs) → logits of `in_batch`, for derivatives.

  Args:
    variables: any variables of the model; only their shapes are used.
  """
  shapes = jax.tree.map(jnp.zeros_like, variables['batch_stats'])
  return lambda params, inputs_BX: in_batch(
    {'params': params, 'batch_stats': shapes}, inputs_BX, model=model
  )[0]


def batch_loss(
  variables: Variables,
  batch: Batch,
  *,
  model: nn.Module,
  objective: Callable[[jax.Array, Batch], jax.Array],
) -> jax.Array:
  """The mean of objective(logits_BC, batch), for logits of `in_batch`; traceable."""
  return objective(in_batch(variables, batch['inputs'], model=model)[0], batch).mean()


def reestimated(variables: Variables, batches: list[Batch], model: nn.Module) -> Variables:
  """Replaces BatchNorm statistics by those pooled over `batches`, which have 'inputs'.

  The variance is the mean of the batches' variances plus the variance of their means, weighted by
  their sizes. Variables without BatchNorm are returned unchanged.
  """
  if not variables['batch_stats']:
    return variables
  moments = [in_batch(variables, batch['inputs'], model=model)[1] for batch in batches]
  pooled = batch_norm.pool(moments, [len(batch['inputs']) for batch in batches])
  return {'params': variables['params'], 'batch_stats': pooled}


def layers(model: nn.Module, inputs_BX: np.ndarray) -> list[str]:
  """The top-level modules with parameters, in the order in which the network creates them."""
  order = []

  def init(key):
    variables = model.init({'params': key, 'dropout': key}, inputs_BX, train=False)
    order.extend(variables['params'])  # the output of a traced function is sorted by name
    return variables

  jax.eval_shape(init, jax.random.key(0))
  return order


# Intervals.


def summary(values: Values, seed: int) -> dict[str, np.ndarray]:
  """Means over examples with 95 % percentile bootstrap intervals.

  All points share the resamples, so that their errors are paired. The mean and its interval are NaN if
  any example is NaN or there is no example.

  Returns: `key`, `key/low` and `key/high` for each key, of shape (P,).
  """
  found = {}
  for key, values_PN in values.items():
    values_PN = values_PN.astype(np.float64)
    mean_P, low_P, high_P = np.full((3, len(values_PN)), np.nan)
    if num_examples := values_PN.shape[1]:
      with np.errstate(invalid='ignore'):  # 0 · ∞: an infinite loss that a resample leaves out
        means_RP = _resamples(num_examples, seed) @ values_PN.T / num_examples
      mean_P = values_PN.mean(axis=1)
      low_P, high_P = intervals.percentiles(means_RP)
    found |= named(key, (mean_P, low_P, high_P))
  return found


@functools.lru_cache(4)
def _resamples(num_examples: int, seed: int) -> np.ndarray:
  """counts_RN: how often each example is drawn in each resample."""
  return intervals.resamples(num_examples, keys.numpy_rng(seed, 'analysis/bootstrap'))


# Inside jit.


def _values(
  shared: Any,
  at_point: tuple[jax.Array, Any],
  batch: Batch,
  *,
  build: Build,
  apply: Forward,
  measures: Measures,
) -> dict[str, jax.Array]:
  # One argument holds both: with an empty argument, pmap confuses which ones are sharded (JAX 0.10.1).
  coordinates_K, stats = at_point
  point = build(shared, coordinates_K)
  point = point | {'batch_stats': stats} if stats else point
  return measures(apply(point, batch['inputs']), batch)


def _values_in_batch(
  shared: Any,
  coordinates_K: jax.Array,
  batch: Batch,
  *,
  build: Build,
  apply: InBatch,
  measures: Measures,
) -> tuple[dict[str, jax.Array], Any]:
  outputs, moments = apply(build(shared, coordinates_K), batch['inputs'])
  return measures(outputs, batch), moments


# On the host.


def _over_devices(coordinates_PK: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
  """Yields groups of one point per device, padded, each with its number of real points."""
  num_devices = jax.local_device_count()
  for start in range(0, len(coordinates_PK), num_devices):
    group = coordinates_PK[start : start + num_devices]
    padding = np.repeat(group[:1], num_devices - len(group), axis=0)
    yield len(group), np.concatenate([group, padding])
