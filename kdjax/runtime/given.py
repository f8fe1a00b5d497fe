"""Objects passed from Python that no module can be imported for, such as a class of a notebook.

They become attributes of this module, so a config names them as 'kdjax.runtime.given:NAME'. Only the process
that passed them can find them. `kdjax.config.objects` adds them.
"""

from collections.abc import Mapping
from typing import Any

from kdjax.errors import UserError

_digests: dict[str, Mapping[str, str]] = {}


def give(name: str, value: Any, digests: Mapping[str, str]) -> bool:
  """Adds an object under a name. It replaces an earlier object of that name.

  Args:
    digests: the digest of each definition that decides the object, by name. Fingerprints cover them.

  Returns: whether the digests are new for this name.

  Raises:
    UserError: the name belongs to this module.
  """
  if name in globals() and name not in _digests:
    raise UserError(f'{__name__}:{name}: the name is taken; give the object another one')
  is_new = _digests.get(name) != digests
  globals()[name], _digests[name] = value, digests
  return is_new


def digests(root: str) -> Mapping[str, str]:
  """The digests of the object that 'kdjax.runtime.given:NAME' names; {} for any other root."""
  module, _, name = root.partition(':')
  return _digests.get(name, {}) if module == __name__ else {}


def forget() -> None:
  """Removes all objects, so that this process knows none, like a new one."""
  for name in _digests:
    del globals()[name]
  _digests.clear()


def __getattr__(name: str) -> Any:
  if name.startswith('__'):
    raise AttributeError(name)
  raise UserError(
    f'{__name__}:{name}: this object was passed from Python, and no module can be imported for it. Pass it '
    'again, to kdjax.distil or as kdjax.open(workdir, the_object), or move it to a module'
  )
