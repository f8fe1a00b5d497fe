"""Losses of each example. Logits are unnormalised; log_probs sum to one after exp.

`LOSSES` has the distillation losses by name; `find` also takes a user's 'module:attribute'. A distillation
loss is a function (student_logits_BC, teacher_log_probs_BC, temperature, *, ...) → losses_B. Its
keyword-only arguments are further inputs, if their names are in `registry.AVAILABLE`, or else options, which have
defaults. Cross-entropies and divergences are in nats (times τ²). Axes: M member, B batch, C class. B may be
any number of leading axes, except in `dist` and `cka`.
"""

from kdjax.losses.on_logits import (
  cross_entropy,
  distillation,
  ensemble_log_probs,
  kl_divergence,
  temperature_at,
  with_labels,
)
from kdjax.losses.registry import LOSSES, Loss, apply, find, make, needs, unit

__all__ = [
  'LOSSES',
  'Loss',
  'apply',
  'cross_entropy',
  'distillation',
  'ensemble_log_probs',
  'find',
  'kl_divergence',
  'make',
  'needs',
  'temperature_at',
  'unit',
  'with_labels',
]
