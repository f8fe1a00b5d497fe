"""Losses of each example. Logits are unnormalised; log_probs sum to one after exp.

`LOSSES` has the distillation losses by name, and `find` also takes a user's 'module:attribute'. All of
them are functions (student_logits_BC, teacher_log_probs_BC, temperature) → losses_B. A keyword-only
argument whose name is in `AVAILABLE` is what the loss needs besides; any other, with a default, is an
option. Cross-entropies and divergences are in nats (times τ²). Axes: M member, B batch, C class. Any
leading axes work in place of B, but in `dist` and `cka`.
"""

from kdjax.losses.basic import (
  cross_entropy,
  ensemble_log_probs,
  kl_divergence,
  temperature_at,
  with_labels,
)
from kdjax.losses.on_features import cka
from kdjax.losses.on_logits import (
  brier,
  decoupled,
  dist,
  distillation,
  hard_labels,
  logit_mse,
  reverse_kl,
  standardised_kl,
  symmetric_kl,
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
