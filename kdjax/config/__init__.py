"""Configs: their fields, loading, overrides and fingerprints.

A config is an `ml_collections.ConfigDict` with the fields of `base.py`, which explains each. The modules:

- `base`, `fields`, `loading`: the defaults, values that follow from several fields, config files and overrides.
- `rules`, `validation`: the allowed values of each field, and all checks in their order.
- `data_checks`, `loss_checks`, `user_code`, `teacher_source`: the checks that need the data, a loss, or code.
- `fingerprints`, `code`, `objects`: the names of artefacts, digests of code, names of objects of a notebook.
- `sweep`, `claims`: the runs of a figure, and the verdicts on the paper's claims.
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
  short_name,
  sweep_configs,
  sweep_from_flags,
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
  'short_name',
  'sources',
  'student_fingerprint',
  'student_model',
  'student_seed',
  'subset_seed',
  'sweep_configs',
  'sweep_from_flags',
  'teacher_fingerprint',
]
