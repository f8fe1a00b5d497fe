"""Configs: their fields, loading, overrides and fingerprints.

A config is an `ml_collections.ConfigDict` with the fields of `kdjax/config/base.py`, which explains them.
`config/rules.py` and `config/validation.py` say which values are allowed.
"""

from kdjax.config.fields import (
  DURATIONS,
  has_weights,
  independent,
  is_optional,
  is_top_k,
  leaves,
  needs_gan,
  num_extra,
  num_steps,
  shares_weight_space,
  sources,
  student_model,
  student_seed,
  subset_seed,
)
from kdjax.config.fingerprints import (
  gan_fingerprint,
  predictions_fingerprint,
  student_fingerprint,
  teacher_fingerprint,
)
from kdjax.config.loading import (
  config_name,
  from_values,
  load,
  load_sweep,
  sweep_configs,
)

__all__ = [
  'DURATIONS',
  'config_name',
  'from_values',
  'gan_fingerprint',
  'has_weights',
  'independent',
  'is_optional',
  'is_top_k',
  'leaves',
  'load',
  'load_sweep',
  'needs_gan',
  'num_extra',
  'num_steps',
  'predictions_fingerprint',
  'shares_weight_space',
  'sources',
  'student_fingerprint',
  'student_model',
  'student_seed',
  'subset_seed',
  'sweep_configs',
  'teacher_fingerprint',
]
