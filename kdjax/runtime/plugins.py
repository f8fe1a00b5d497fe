"""Functions and classes that a config names as 'module:attribute', such as 'my_pkg.nets:ConvMixer'.

Python finds modules among the installed packages first, then beside the config file and in the working
directory. So a user's module cannot hide one that a library imports.
"""

import importlib
import inspect
import os
import pathlib
import re
import sys
from collections.abc import Callable, Mapping
from typing import Any

from kdjax.errors import UserError

PACKAGE = pathlib.Path(__file__).parents[1]
# The built-in experiments: `configs/` in a clone, `kdjax/experiments/` in an installed wheel.
EXPERIMENTS = next(
  folder
  for folder in (PACKAGE.parent / 'configs', PACKAGE / 'experiments')
  if (folder / 'digits_resnet.py').exists()
)
_DOTTED = re.compile(r'[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*')
_folders: list[str] = []  # added to sys.path, the newest first
FORM = "'module:attribute' of your own code"


def is_dotted(name: Any) -> bool:
  """Whether a name has the form 'module:attribute'."""
  return isinstance(name, str) and _DOTTED.fullmatch(name) is not None


def add_folder(folder: str | os.PathLike) -> None:
  """Makes the modules of a folder importable, after installed packages and before folders added earlier."""
  path = str(pathlib.Path(folder).absolute())
  if path in _folders:
    sys.path.remove(path)
    _folders.remove(path)
  if path not in sys.path:
    first = sys.path.index(_folders[0]) if _folders else len(sys.path)
    sys.path.insert(first, path)
    _folders.insert(0, path)


def find(name: str, field: str) -> Callable[..., Any]:
  """The function or class that 'module:attribute' names.

  Args:
    field: the config field that holds the name, for errors.

  Raises:
    UserError: the module cannot be imported, has no such attribute, or the attribute is not callable.
  """
  found = attribute(name, field)
  if not callable(found):
    raise UserError(f'{field} = {name!r}: is {found!r}; needed: a function or a class')
  return found


def attribute(name: str, field: str) -> Any:
  """The object that 'module:attribute' names, callable or not. Raises what `find` raises."""
  module_name, _, variable = name.partition(':')
  try:
    module = importlib.import_module(module_name)
  except (Exception, SystemExit) as error:
    reason = str(error).partition('\n')[0]
    raise UserError(
      f'{field} = {name!r}: importing {module_name} raised {type(error).__name__}: {reason}. Modules are '
      'looked for among the installed packages and those of PYTHONPATH, in the folder of the config file '
      'and in the working directory'
    ) from error
  if not hasattr(module, variable):
    raise UserError(f'{field} = {name!r}: {_place(module)} defines no {variable}')
  return getattr(module, variable)


def look_up(registry: Mapping[str, Any], name: str, field: str) -> Any:
  """The entry of a registry, or what 'module:attribute' names.

  Raises:
    UserError: as `find`, or the name is neither in the registry nor of the form 'module:attribute'.
  """
  if name in registry:
    return registry[name]
  if not is_dotted(name):
    raise UserError(f'{field} = {name!r}: allowed: one of {", ".join(registry)}, or {FORM}')
  return find(name, field)


def call(name: str, field: str, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
  """The result of the function that a config names.

  Raises:
    UserError: a function of the user raised an error, or does not take these arguments.
  """
  if not is_dotted(name):
    return function(*args, **kwargs)
  try:
    return function(*args, **kwargs)
  except UserError:
    raise
  except Exception as error:
    raise UserError(f'{field} = {name!r}: {describe(error)}') from error


def parameters(function: Callable[..., Any]) -> Mapping[str, inspect.Parameter]:
  """The parameters of a function or class by name; {} where Python knows none, as for some C code."""
  try:
    return inspect.signature(function).parameters
  except (TypeError, ValueError):
    return {}


def describe(error: BaseException) -> str:
  """One line about an error of a user's code, with the place in that code."""
  reason = str(error).strip().partition('\n')[0]
  trace, place = error.__traceback__, ''
  while trace is not None:
    file = trace.tb_frame.f_code.co_filename
    if 'site-packages' not in file and f'{os.sep}kdjax{os.sep}' not in file:
      place = f' ({file}:{trace.tb_lineno})'
    trace = trace.tb_next
  return f'raised {type(error).__name__}: {reason}{place}'


def _place(module: Any) -> str:
  return getattr(module, '__file__', None) or module.__name__
