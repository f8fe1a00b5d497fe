"""Objects that Python code gave and that belong to no importable module, such as a class of a notebook.

A config names them as 'kdjax.runtime.given:NAME', since they become attributes of this module. They are found in the
process that gave them, and in no other. `kdjax.config.objects` gives them.
"""

from collections.abc import Mapping
from typing import Any

from kdjax.errors import UserError

_digests: dict[str, Mapping[str, str]] = {}


def give(name: str, value: Any, digests: Mapping[str, str]) -> bool:
  """Gives an object a name, in place of an earlier object of that name.

  Args:
    digests: of the definitions that decide the object, by name; a fingerprint covers them.

  Returns: whether the digests are new for this name.

  Raises:
    UserError: this module has such a name of its own.
  """
  if name in globals() and name not in _digests:
    raise UserError(f'{__name__}:{name}: the name is taken; give the object another one')
  is_new = _digests.get(name) != digests
  globals()[name], _digests[name] = value, digests
  return is_new


def digests(root: str) -> Mapping[str, str]:
  """The digests of the object 'kdjax.runtime.given:NAME'; {} for any other name."""
  module, _, name = root.partition(':')
  return _digests.get(name, {}) if module == __name__ else {}


def forget() -> None:
  """Forgets all objects, as another process does not know them."""
  for name in _digests:
    del globals()[name]
  _digests.clear()


def __getattr__(name: str) -> Any:
  if name.startswith('__'):
    raise AttributeError(name)
  raise UserError(
    f'{__name__}:{name}: is an object that Python code gave, and that belongs to no importable module. Give it '
    'again, by kdjax.distil or as kdjax.open(workdir, the_object); or put it into a module'
  )
