"""The registry of distillation losses, and `apply`, which calls a loss with the arguments that it needs."""

import dataclasses
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import jax

from kdjax.losses import on_features, on_logits
from kdjax.runtime import plugins

# The further inputs that a loss may take, by argument name:
# 'labels_B': (B,) int32, the true labels.
# 'batch_mean': a function x_BX → x_X, the mean over the examples of the whole batch, on all devices.
# 'batch_gather': a function x_BX → x_NX, all examples of the whole batch, on all devices.
# 'student_features': {name: (B, ...)} in training mode, as the student's model returns them.
# 'teacher_features': {name: (B, M, ...)} of M members. Only predictions.mode = 'online' has them.
AVAILABLE = ('labels_B', 'batch_mean', 'batch_gather', 'student_features', 'teacher_features')


@dataclasses.dataclass(frozen=True)
class Loss:
  """A distillation loss and its properties. Calling it calls the function.

  Attributes:
    function: (student_logits_BC, teacher_log_probs_BC, temperature, *, ...) → losses_B.
    unit: the unit of the value; '' for none.
    uses_temperature: whether the value depends on the temperature.
  """

  function: Callable[..., jax.Array]
  unit: str = 'nats'
  uses_temperature: bool = True

  def __call__(self, *args: Any, **kwargs: Any) -> jax.Array:
    return self.function(*args, **kwargs)

  @property
  def options(self) -> dict[str, Any]:
    """The options, which are fields of `student.loss_options`, with their defaults."""
    parameters = plugins.parameters(self.function).values()
    return {
      p.name: p.default
      for p in parameters
      if p.kind == p.KEYWORD_ONLY and p.name not in AVAILABLE and p.default is not p.empty
    }


LOSSES = {
  'cross_entropy': Loss(on_logits.distillation),
  'reverse_kl': Loss(on_logits.reverse_kl),
  'symmetric_kl': Loss(on_logits.symmetric_kl),
  'standardised_kl': Loss(on_logits.standardised_kl),
  'decoupled': Loss(on_logits.decoupled),
  'dist': Loss(on_logits.dist, unit=''),
  'hard_labels': Loss(on_logits.hard_labels, uses_temperature=False),
  'brier': Loss(on_logits.brier, unit=''),
  'logit_mse': Loss(on_logits.logit_mse, unit='squared logits', uses_temperature=False),
  'cka': Loss(on_features.cka, unit=''),
}


def find(name: str) -> Loss:
  """The loss of a name in LOSSES, or the function or `Loss` of a user that 'module:attribute' names.

  Raises:
    UserError: there is no loss of this name.
  """
  found = plugins.look_up(LOSSES, name, 'student.loss')
  return found if isinstance(found, Loss) else Loss(found, unit='')


def make(name: str, options: Mapping[str, Any]) -> Callable[..., jax.Array]:
  """The function of a loss with its options set."""
  function = find(name).function
  return partial(function, **options) if options else function


def needs(loss: Callable[..., jax.Array]) -> tuple[str, ...]:
  """The arguments of AVAILABLE that a loss takes."""
  parameters = plugins.parameters(getattr(loss, 'function', loss))
  return tuple(name for name in AVAILABLE if name in parameters)


def apply(
  loss: Callable[..., jax.Array],
  student_logits_BC: jax.Array,
  teacher_log_probs_BC: jax.Array,
  temperature: float | jax.Array,
  **available: Any,
) -> jax.Array:
  """losses_B of a loss. It gets the available arguments that it takes."""
  needed = {name: available[name] for name in needs(loss) if name in available}
  return loss(student_logits_BC, teacher_log_probs_BC, temperature, **needed)


def unit(name: str, alpha: float) -> str:
  """The unit of a loss, '' for none. With α > 0, the cross-entropy with the labels, in nats, is added to it."""
  own = find(name).unit
  return '' if alpha > 0 and own != 'nats' else own
