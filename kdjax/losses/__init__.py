"""Losses of each example. Logits are unnormalised; log_probs sum to one after exp.

`LOSSES` has the distillation losses by name; `find` also takes a user's 'module:attribute'. A distillation
loss is a function (student_logits_BC, teacher_log_probs_BC, temperature, *, ...) → losses_B. Its
keyword-only arguments are further inputs, if their names are in `AVAILABLE`, or else options, which have
defaults. Cross-entropies and divergences are in nats (times τ²). Axes: M member, B batch, C class. B may be
any number of leading axes, except in `dist` and `cka`.
"""

from kdjax.losses.on_features import cka
from kdjax.losses.on_logits import (
  brier,
  cross_entropy,
  decoupled,
  dist,
  distillation,
  ensemble_log_probs,
  hard_labels,
  kl_divergence,
  logit_mse,
  reverse_kl,
  standardised_kl,
  symmetric_kl,
  temperature_at,
  with_labels,
)
from kdjax.losses.registry import AVAILABLE, LOSSES, Loss, apply, find, make, needs, unit

__all__ = [
  'AVAILABLE',
  'LOSSES',
  'Loss',
  'apply',
  'brier',
  'cka',
  'cross_entropy',
  'decoupled',
  'dist',
  'distillation',
  'ensemble_log_probs',
  'find',
  'hard_labels',
  'kl_divergence',
  'logit_mse',
  'make',
  'needs',
  'reverse_kl',
  'standardised_kl',
  'symmetric_kl',
  'temperature_at',
  'unit',
  'with_labels',
]
