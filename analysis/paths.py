"""Paths in weight space between two networks, and the barriers along them.

All are pure functions of variables, {'params', 'batch_stats'}. Points of a path are traceable, so only a
coordinate is sent to the device. A path also interpolates BatchNorm statistics, which then fit no network;
the caller decides whether to re-estimate them.
Axes: T position, N example, L layer, R resample, X any leading axes.
"""

from collections.abc import Callable, Sequence
from functools import cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from kdjax import intervals, keys
from kdjax.train.steps import Variables

Batch = dict[str, Any]  # 'inputs', and the arrays that the objective reads
Loss = Callable[[Variables, Any], jax.Array]  # (variables, batch) → scalar


# Points. A position is 0 at the first end and 1 at the last, where the ends are reproduced exactly.


def line_point(ends: tuple[Variables, Variables], t: jax.Array) -> Variables:
  """(1 − t) a + t b for the ends (a, b); `t` has one entry, of any shape."""
  t = jnp.reshape(jnp.asarray(t), ())
  return jax.tree.map(lambda a, b: (1 - t) * a + t * b, *ends)


def bezier_point(controls: tuple[Variables, Variables, Variables], t: jax.Array) -> Variables:
  """(1 − t)² a + 2 t (1 − t) m + t² b for the controls (a, m, b) (Garipov et al. 2018, eq. 3).

  The curve begins at a, ends at b and bends towards m. `t` has one entry, of any shape.
  """
  t = jnp.reshape(jnp.asarray(t), ())
  weights = ((1 - t) ** 2, 2 * t * (1 - t), t**2)
  return jax.tree.map(lambda a, m, b: weights[0] * a + weights[1] * m + weights[2] * b, *controls)


def layer_names(variables: Variables) -> list[str]:
  """The top-level modules with parameters, in the order of `layerwise_point`'s positions."""
  return sorted(variables['params'])


def layerwise_point(ends: tuple[Variables, Variables], ts_L: jax.Array) -> Variables:
  """Interpolates each top-level module at its own position.

  Args:
    ts_L: positions in the order of `layer_names`. A one-hot vector gives the first end with one layer of
      the last (Adilova et al. 2024, "Layer-wise linear mode connectivity").
  """
  a, b = ends
  ts = dict(zip(layer_names(a), ts_L, strict=True))
  return {
    kind: {  # a layer without parameters stays that of the first end
      name: line_point((a[kind][name], b[kind][name]), ts.get(name, 0.0)) for name in a[kind]
    }
    for kind in a
  }


# Barriers.


def barrier(values_XT: np.ndarray, ts_T: np.ndarray) -> np.ndarray:
  """max over t of L(t) − ((1 − t) L(0) + t L(1)) (Frankle et al. 2020; Entezari et al. 2022).

  It is at least 0, its value at both ends, and has the unit of the values. It is NaN if any value is.

  Args:
    values_XT: values along paths.
    ts_T: the positions in order, from 0 to 1.

  Raises:
    ValueError: the positions do not begin at 0 or do not end at 1.
  """
  if ts_T[0] != 0 or ts_T[-1] != 1:
    raise ValueError(f'positions go from {ts_T[0]} to {ts_T[-1]}; a barrier is between 0 and 1')
  values_XT = np.asarray(values_XT, np.float64)
  between_XT = (1 - ts_T) * values_XT[..., :1] + ts_T * values_XT[..., -1:]
  above_XT = values_XT - between_XT
  return above_XT.max(axis=-1)


def mean_barriers(values_PTN: np.ndarray, ts_T: np.ndarray, seed: int) -> dict[str, np.ndarray]:
  """Barriers of several paths, with the interval of their mean.

  Intervals are 95 % percentile bootstraps (Efron & Tibshirani 1993, ch. 13). The same resamples of the examples
  serve all positions of all paths; equal seeds give equal ones. The maximum over noisy positions is biased
  upwards, and so are its resamples: the interval of a barrier of 0 can lie above 0.

  Args:
    values_PTN: values along the paths; a path whose values are all NaN is missing.

  Returns: 'pairs', the barriers_P, NaN for missing paths; and '', 'low' and 'high', the mean over the other
    paths with its interval, NaN if there is no path or no example.
  """
  values_PTN = np.asarray(values_PTN, np.float64)
  there_P = ~np.isnan(values_PTN).all(axis=(1, 2))
  if values_PTN.shape[-1] == 0 or not there_P.any():
    nan = np.array(np.nan)
    return {'pairs': np.full(len(values_PTN), nan), '': nan, 'low': nan, 'high': nan}
  num_examples = values_PTN.shape[-1]
  counts_RN = intervals.resamples(num_examples, keys.numpy_rng(seed, 'analysis/barrier'))
  barriers_PR = [barrier(counts_RN @ x_TN.T / num_examples, ts_T) for x_TN in values_PTN[there_P]]
  low, high = intervals.percentiles(np.mean(barriers_PR, axis=0))
  pairs_P = barrier(values_PTN.mean(axis=2), ts_T)
  return {'pairs': pairs_P, '': pairs_P[there_P].mean(), 'low': low, 'high': high}


def barrier_interval(
  values_TN: np.ndarray, ts_T: np.ndarray, seed: int
) -> tuple[float, float, float]:
  """`mean_barriers` of one path: (barrier, low, high)."""
  found = mean_barriers(np.asarray(values_TN)[None], ts_T, seed)
  return float(found['']), float(found['low']), float(found['high'])


# Training a curve.


def train_bezier(
  loss: Loss,
  a: Variables,
  b: Variables,
  batches: Sequence[Any],
  num_steps: int,
  learning_rate: float,
  rng: jax.Array,
  show: Callable[[int, str], None] = lambda done, text: None,
) -> Variables:
  """The middle of a quadratic Bezier curve of low mean loss from a to b (Garipov et al. 2018).

  The middle starts halfway between the ends and minimises the mean of loss(curve(t)) over t uniform on
  [0, 1]. Each step draws one t, takes the next batch, and applies Adam with a cosine learning rate. Only
  parameters are trained. The middle's BatchNorm statistics stay halfway between those of the ends, so the
  loss should use those of the batch.

  Args:
    a, b: the ends.
    loss: a hashable function; curves with an equal one are compiled once.
    batches: cycled through.
    num_steps: number of steps of Adam.
    learning_rate: at the first step.
    rng: a key that draws t. Equal keys give equal curves.
    show: is called as show(steps done, '').

  Returns: the variables of the middle.
  """
  a, b = jax.device_get((a, b))
  middle = line_point((a, b), 0.5)
  params, optimizer = middle['params'], _adam(learning_rate, num_steps)
  opt_state = optimizer.init(params)
  for step in range(num_steps):
    params, opt_state = _bezier_step(
      params,
      opt_state,
      (a, middle['batch_stats'], b),
      batches[step % len(batches)],
      jax.random.fold_in(rng, step),
      loss=loss,
      optimizer=optimizer,
    )
    show(step + 1, '')
  return {'params': params, 'batch_stats': middle['batch_stats']}


@cache
def _adam(learning_rate: float, num_steps: int) -> optax.GradientTransformation:
  """A cached optimizer, so that steps with equal arguments are compiled once."""
  return optax.adam(optax.cosine_decay_schedule(learning_rate, num_steps))


@partial(jax.jit, static_argnames=('loss', 'optimizer'))
def _bezier_step(
  params: Any,
  opt_state: Any,
  fixed: tuple[Variables, Any, Variables],
  batch: Any,
  key: jax.Array,
  *,
  loss: Loss,
  optimizer: optax.GradientTransformation,
) -> tuple[Any, Any]:
  a, middle_stats, b = fixed
  t = jax.random.uniform(key)

  def loss_at_t(params):
    middle = {'params': params, 'batch_stats': middle_stats}
    return loss(bezier_point((a, middle, b), t), batch)

  updates, opt_state = optimizer.update(jax.grad(loss_at_t)(params), opt_state, params)
  return optax.apply_updates(params, updates), opt_state


def training_batches(batches: Sequence[Batch], batch_size: int) -> list[Batch]:
  """The same examples in batches of one size.

  A smaller last batch is left out, since BatchNorm statistics and gradient noise depend on the size.
  """
  examples = {key: np.concatenate([batch[key] for batch in batches]) for key in batches[0]}
  num_examples = len(examples['inputs'])
  size = min(batch_size, num_examples)
  starts = range(0, num_examples - size + 1, size)
  return [{key: x[start : start + size] for key, x in examples.items()} for start in starts]
