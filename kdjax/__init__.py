"""kdjax: knowledge distillation in JAX, with fidelity measured apart from generalization.

    result = kdjax.distil(student=Net(10), teacher='resnet', train=(x, y), test=(x_test, y_test), workdir='runs/mine')

`kdjax.distil`, `make_config`, `open`, `open_predictions`, `fidelity` and `views` are the interface for Python;
see docs/extending.md. Importing kdjax imports no JAX; the first use of one of these sets XLA's flags.
"""

import importlib
from typing import Any

from kdjax import errors as errors

__version__ = '0.1.0'
_HOMES = {
  'distil': 'distillation',
  'make_config': 'distillation',
  'fidelity': 'fidelity',
  'views': 'distillation',
  'open': 'opened',
  'open_predictions': 'opened',
}


def __getattr__(name: str) -> Any:
  if name not in _HOMES:
    raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
  importlib.import_module('kdjax.runtime.xla_flags').set_flags()  # before JAX is imported
  return getattr(importlib.import_module(f'kdjax.interface.{_HOMES[name]}'), name)


def __dir__() -> list[str]:
  return sorted([*globals(), *_HOMES])
