"""Optimizers and learning rates of a section `teacher` or `student` of a config.

A section names one of `OPTIMIZERS`, or a function of a user as 'module:attribute'. Both map (section,
schedule) to an optax transformation.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import optax
import optax.contrib
from ml_collections import ConfigDict, FrozenConfigDict

from kdjax.errors import UserError
from kdjax.runtime import plugins

# The root mean square of Muon's updates, equal to that of AdamW (Liu et al. 2025, "Muon is Scalable for LLM
# Training", Section 2.2), so that one learning rate and weight decay serve both.
MUON_UPDATE_RMS = 0.2
# The fields of a section that the built-in optimizers read.
FIELDS = (
  'optimizer',
  'learning_rate',
  'final_learning_rate',
  'momentum',
  'beta2',
  'nesterov',
  'weight_decay',
)


def learning_rate(config: ConfigDict, num_steps: int, warmup_steps: int = 0) -> optax.Schedule:
  """Linear warm-up from 0, then cosine from `learning_rate` to `final_learning_rate`.

  `learning_rate` is reached at step `warmup_steps` (Goyal et al. 2017) and `final_learning_rate` at
  step `num_steps`, one after the last. Step 0 of a warm-up changes no parameter.

  Returns: step → learning rate. The step may be traced.

  Raises:
    ValueError: the warm-up leaves no step for the cosine.
  """
  num_steps = max(num_steps, 1)  # an untrained network has no steps
  if warmup_steps == 0:  # optax warns about a warm-up of no steps
    final = config.final_learning_rate / config.learning_rate
    return optax.cosine_decay_schedule(config.learning_rate, num_steps, alpha=final)
  return optax.warmup_cosine_decay_schedule(
    0.0, config.learning_rate, warmup_steps, num_steps, config.final_learning_rate
  )


def make_optimizer(
  config: ConfigDict, num_steps: int, warmup_steps: int = 0
) -> optax.GradientTransformation:
  """The optimizer `config.optimizer`, with the schedule of `learning_rate`.

  Weight decay applies to all parameters, including those of norms and biases. Equal arguments give the same
  object, so equal steps are compiled once (`devices.parallel`).

  Args:
    config: a section `teacher` or `student`. The built-in optimizers read its FIELDS only.

  Raises:
    UserError: a user's optimizer cannot be made.
  """
  if plugins.is_dotted(config.optimizer):  # it may read any field
    return _make_optimizer.__wrapped__(config, num_steps, warmup_steps)
  read = FrozenConfigDict({name: config[name] for name in FIELDS if name in config})
  return _make_optimizer(read, num_steps, warmup_steps)


@functools.lru_cache
def _make_optimizer(
  config: FrozenConfigDict, num_steps: int, warmup_steps: int
) -> optax.GradientTransformation:
  rate = learning_rate(config, num_steps, warmup_steps)
  function = plugins.look_up(OPTIMIZERS, config.optimizer, 'optimizer')
  made = plugins.call(config.optimizer, 'optimizer', function, config, rate)
  if not isinstance(made, optax.GradientTransformation):
    raise UserError(
      f'optimizer = {config.optimizer!r}: returns {made!r}; needed: an optax.GradientTransformation'
    )
  return made


def _sgd(config: ConfigDict, rate: optax.Schedule) -> optax.GradientTransformation:
  """SGD with momentum; weight decay is coupled, an L2 term of the loss (paper, Appendix A)."""
  sgd = optax.sgd(rate, config.momentum, config.nesterov)
  return optax.chain(optax.add_decayed_weights(config.weight_decay), sgd)


def _adam(config: ConfigDict, rate: optax.Schedule) -> optax.GradientTransformation:
  """Adam (Kingma & Ba 2015). Weight decay is coupled: its gradient passes through both moments.

  β1 is `momentum` and β2 `beta2`. `nesterov` has no effect.
  """
  adam = optax.adam(rate, config.momentum, config.beta2)
  return optax.chain(optax.add_decayed_weights(config.weight_decay), adam)


def _adamw(config: ConfigDict, rate: optax.Schedule) -> optax.GradientTransformation:
  """Adam with decoupled weight decay, −rate · decay · θ (Loshchilov & Hutter 2019)."""
  return optax.adamw(rate, config.momentum, config.beta2, weight_decay=config.weight_decay)


def _muon(config: ConfigDict, rate: optax.Schedule) -> optax.GradientTransformation:
  """Muon for kernels (Jordan 2024): Newton–Schulz iterations make the momentum nearly orthogonal.

  All other parameters (biases, norms, embeddings) get AdamW, with `momentum` for β1. Both have Nesterov
  momentum if `nesterov` is set, and decoupled weight decay.
  """
  return optax.contrib.muon(
    rate,
    beta=config.momentum,
    weight_decay=config.weight_decay,
    nesterov=config.nesterov,
    adam_b1=config.momentum,
    adam_b2=config.beta2,
    adam_weight_decay=config.weight_decay,
    muon_weight_dimension_numbers=_kernels_as_matrices,
    consistent_rms=MUON_UPDATE_RMS,
  )


def _kernels_as_matrices(params: Any) -> Any:
  """The dimensions of each parameter for Muon: kernels (..., O) are matrices (fan-in, O), others None."""

  def matrix(path: tuple, x: jax.Array) -> optax.contrib.MuonDimensionNumbers | None:
    if path[-1].key != 'kernel':
      return None
    return optax.contrib.MuonDimensionNumbers(tuple(range(x.ndim - 1)), x.ndim - 1)

  return jax.tree.map_with_path(matrix, params)


# Name → (config section, schedule) → optimizer.
OPTIMIZERS: dict[str, Callable[[ConfigDict, optax.Schedule], optax.GradientTransformation]] = {
  'sgd': _sgd,
  'adam': _adam,
  'adamw': _adamw,
  'muon': _muon,
}
