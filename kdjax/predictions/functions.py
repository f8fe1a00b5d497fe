"""Teachers that are functions of the user, in any framework, from images to logits.

Axes: B batch, C class, X the axes of one input.
"""

import functools
import inspect
from collections.abc import Callable
from typing import Any

import numpy as np

from kdjax.errors import UserError
from kdjax.runtime import files, plugins

# inputs_BX → logits_BC, as anything that `np.asarray` takes.
Function = Callable[[np.ndarray], Any]
NEEDED = (
  'needed: a function (images) -> logits, a list of such functions, or a function without arguments, or '
  'with the one argument `path`, that returns either'
)


def find(source: str, path: str | None, field: str) -> tuple[Function, ...]:
  """The members that 'module:attribute' names.

  The attribute is a function, a list of functions, or a factory: a function or class that takes no argument,
  or only one that is called `path`. A factory is called once in a process for each content of `path`.

  Args:
    path: `teacher.path`, for a factory with that argument.
    field: the config field of the source, for errors.

  Raises:
    UserError: there is no such attribute, it is of another kind, or it raises an error.
  """
  found = plugins.attribute(source, field)
  if callable(found):
    arguments = _factory_arguments(found)
    if arguments == ['path'] and path is None:
      raise UserError(
        f'{field} = {source!r}: takes a path; needed: {field.replace("source", "path")}'
      )
    if arguments is not None:
      content = files.tree_checksum(path) if path is not None else None
      found = _made(found, source, field, path if arguments else None, content)
  members = tuple(found) if isinstance(found, list | tuple) else (found,)
  if not members or not all(map(callable, members)):
    raise UserError(f'{field} = {source!r}: gives {_shown(found)}; {NEEDED}')
  return members


def logits(
  function: Function, inputs_BX: np.ndarray, num_classes: int, source: str, field: str
) -> np.ndarray:
  """logits_BC in float32 that a function of the user returns.

  Raises:
    UserError: it raises an error, or returns another shape or values that are not finite.
  """
  result = plugins.call(source, field, lambda x: np.asarray(function(x)), np.array(inputs_BX))
  wanted = len(inputs_BX), num_classes
  if result.shape != wanted or result.dtype.kind not in 'fiu':
    raise UserError(
      f'{field} = {source!r}: gives {result.shape} in {result.dtype} for inputs of the shape '
      f'{inputs_BX.shape}; needed: logits {wanted}, one row an example and one column a class'
    )
  logits_BC = result.astype(np.float32)
  if wrong := np.sum(~np.isfinite(logits_BC)):
    raise UserError(
      f'{field} = {source!r}: {wrong} of {logits_BC.size} logits are not finite; needed: finite logits. '
      'For probabilities p, return log(max(p, 1e-7))'
    )
  return logits_BC


def _shown(found: Any) -> str:
  if not isinstance(found, list | tuple):
    return f'an object of type {type(found).__name__}'
  types = sorted({type(item).__name__ for item in found})
  return f'a {type(found).__name__} of {len(found)} objects of type {", ".join(types) or "none"}'


def _factory_arguments(found: Callable) -> list[str] | None:
  """The names of a factory's arguments, [] or ['path']; None if `found` is not a factory."""
  try:
    names = list(inspect.signature(found).parameters)
  except (ValueError, TypeError):  # some built-in functions have no signature
    return None
  return names if names in ([], ['path']) else None


@functools.lru_cache(8)
def _made(factory: Callable, source: str, field: str, path: str | None, content: str | None) -> Any:
  """The result of a factory, cached. A new `content` calls it again."""
  del content
  return plugins.call(source, field, factory, *[] if path is None else [path])
