"""Names, for a config, of the functions, classes and linen modules that a user passes from Python.

An importable object is named 'module:attribute'. Any other, such as a class of a notebook or a closure, is
registered as 'kdjax.runtime.given:NAME' with digests of its code. The digests cover its definition and all
that the definition uses: other definitions, and the values of global and closure variables. Values count by
their content, so an object has the same digests in every process.
"""

import ast
import builtins
import dataclasses
import dis
import functools
import hashlib
import importlib.util
import inspect
import itertools
import linecache
import pickle
import sys
import types
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from flax.core import unfreeze

from kdjax import models
from kdjax.config import code
from kdjax.config.rules import is_plain
from kdjax.errors import UserError
from kdjax.runtime import given, plugins

_OF_FLAX = ('parent', 'name')  # fields that every linen module has
# The file of methods that a dataclass generates. From Python 3.13 on it is also that of a `python -c` command.
GENERATED = '<string>'


@dataclasses.dataclass(frozen=True)
class Maker:
  """A model that is the same linen module for all data."""

  module: nn.Module

  def __call__(self, num_classes: int) -> nn.Module:
    return self.module


class Objects:
  """Gives names to the objects of one call. Two different objects never share a name."""

  def __init__(self):
    self._digests: dict[str, dict[str, str]] = {}

  def name(self, value: Any) -> str:
    """'module:attribute' for a function, a class or another callable, or for a list of functions.

    Raises:
      UserError: its source or content cannot be read, or another object of this call has the same name.
    """
    if is_importable(value):
      return _dotted(value)
    return self._give(_label(value), value, digests(value))

  def model(self, module: nn.Module) -> dict[str, Any]:
    """The fields of a `model` section for a linen module: 'name', 'options' and perhaps 'dtype'.

    A module whose fields are plain values is named by its class, with the fields as options. Any other is
    registered as it is.
    """
    all_fields = _fields(type(module))
    names = {field.name for field in all_fields}
    values = {
      field.name: unfreeze(getattr(module, field.name))
      for field in all_fields
      if not _is_default(field, getattr(module, field.name))
    }
    dtype = {}
    if 'dtype' in names and (found := _dtype_name(module.dtype)) is not None:
      values.pop('dtype', None)
      dtype = {'dtype': found}
    values.pop('num_classes', None)
    is_built = 'num_classes' in names and is_plain(values) and bool(dtype) == ('dtype' in names)
    if is_built and 'vocabulary_size' not in names:
      return {'name': self.name(type(module)), 'options': values, **dtype}
    found: dict[str, str] = {}
    token = _Reader(found).token(module, type(module).__name__)
    label = f'{type(module).__name__}_{_sha(token)[:8]}'
    return {'name': self._give(label, Maker(module), found), 'options': {}}

  def _give(self, label: str, value: Any, found: dict[str, str]) -> str:
    if self._digests.setdefault(label, found) != found:
      raise UserError(f'two different objects are called {label}; give one of them another name')
    if given.give(label, value, found):
      code.forget()
    return f'{given.__name__}:{label}'


def is_importable(value: Any) -> bool:
  """Whether any process can import the object by its module and name."""
  module, name = getattr(value, '__module__', None), getattr(value, '__qualname__', '')
  if module in (None, '__main__') or not plugins.is_dotted(f'{module}:{name}'):
    return False
  if getattr(sys.modules.get(module), name, None) is not value:
    return False
  try:
    return importlib.util.find_spec(module) is not None
  except ValueError:  # a module without a spec, made by hand
    return False


def digests(value: Any) -> dict[str, str]:
  """The digest of every definition and value that decides an object, by name.

  Raises:
    UserError: the source of a definition or the content of a value cannot be read.
  """
  found: dict[str, str] = {}
  label = _label(value)
  found[f'{given.__name__}.{label}:value'] = _sha(_Reader(found).token(value, label))
  return found


class _Reader:
  """Turns values into text, and adds the digests of the definitions that they use to `found`."""

  def __init__(self, found: dict[str, str]):
    self._found, self._seen, self._objects = found, {}, {}

  def token(self, value: Any, label: str) -> str:
    """A text that stands for a value: its content, or the name of a definition.

    Args:
      label: where the value was found, for errors.
    """
    if callable(value) and not inspect.isfunction(value):
      value = inspect.unwrap(value)  # for example of jax.jit
    token = functools.partial(self.token, label=label)
    if value is None or isinstance(value, bool | int | float | complex | str | bytes):
      return repr(value)
    if isinstance(value, list | tuple):
      return f'{type(value).__name__}({",".join(map(token, value))})'
    if isinstance(value, set | frozenset):
      return f'{{{",".join(sorted(map(token, value)))}}}'
    if isinstance(value, Mapping):
      items = [f'{token(key)}:{self.token(x, f"{label}.{key}")}' for key, x in value.items()]
      return f'{{{",".join(sorted(items))}}}'
    if isinstance(value, nn.Module):
      values = {field.name: getattr(value, field.name) for field in _fields(type(value))}
      return f'{token(type(value))}({token(values)})'
    if isinstance(value, functools.partial):
      return f'partial({token([value.func, value.args, value.keywords])})'
    if inspect.ismethod(value):
      return f'{token(value.__func__)} of {token(value.__self__)}'
    if inspect.isfunction(value) or inspect.isclass(value):
      return self._definition(value)
    if inspect.ismodule(value):
      return value.__name__
    return self._object(value, label)

  def _object(self, value: Any, label: str) -> str:
    """The class of an object and its content: an array's values, `__getstate__()`, or a pickle."""
    if hasattr(value, '__dict__') and _is_own(type(value)):
      if id(value) not in self._objects:
        self._objects[id(value)] = value  # it may refer to itself
        kind = self._definition(type(value))
        return f'{kind}({self.token(value.__getstate__(), label)})'
      return f'{type(value).__qualname__} {list(self._objects).index(id(value))}'
    try:
      if isinstance(value, np.ndarray | np.generic | jax.Array) and value.dtype != object:
        array = np.asarray(value)
        return f'array({array.shape}, {array.dtype}, {_sha(array.tobytes())})'
      content = pickle.dumps(value)
    except Exception as error:
      raise UserError(
        f'{label}: the content of {type(value).__name__} cannot be digested ({error}), so a change would go '
        "unnoticed. Put the code into a module and give its name, 'module:attribute'"
      ) from error
    return f'{self._definition(type(value))}({_sha(content)})'

  def _definition(self, value: Callable) -> str:
    """The name of a function or class. Adds its digest, and the digests of all that it uses, to `found`."""
    if value in self._seen:
      return self._seen[value]
    self._seen[value] = name = f'{_home(value)}:{value.__qualname__}'
    if is_importable(value) and code.is_followed(value.__module__.partition('.')[0]):
      self._seen[value] = name = _dotted(value)
      self._found.update(code.digests((name,)))
    elif _is_own(value):
      self._seen[value] = name = f'{given.__name__}.{_label(value)}'
      text = code.canonical(_tree(value)) if _functions(value) else _attributes(value)
      content = text + self._uses(value, name)
      while self._found.setdefault(name, _sha(content)) != _sha(content):
        name += "'"  # another definition of the same name
      self._seen[value] = name
    elif getattr(value, '__closure__', None):  # for example a function that optax returns
      name += self.token(_closure(value), name)
    return name

  def _uses(self, value: Callable, label: str) -> str:
    """Tokens of the values outside of a definition that it mentions, as text."""
    names, uses = _namespace(value), {}
    for node in code.walk(_tree(value)) if names else ():
      first, *rest = code.chain(node) or [None]
      if first not in names:
        continue
      found, path = names[first], first
      while inspect.ismodule(found) and rest and hasattr(found, rest[0]):
        path, found, rest = f'{path}.{rest[0]}', getattr(found, rest[0]), rest[1:]
      if found is not value and not inspect.ismodule(found):
        uses[path] = self.token(found, f'{label}.{path}')
    if inspect.isclass(value):
      uses['bases'] = self.token(value.__bases__, label)
      if dataclasses.is_dataclass(value):
        defaults = {
          f.name: f.default for f in _fields(value) if f.default is not dataclasses.MISSING
        }
        uses['defaults'] = self.token(defaults, f'{label}.defaults')
    else:
      uses['defaults'] = self.token([value.__defaults__, value.__kwdefaults__], f'{label}.defaults')
    return repr(sorted(uses.items()))


def _namespace(value: Callable) -> dict[str, Any]:
  """The values of the global and closure variables that a function, or a class and its methods, read."""
  found, functions = {}, _functions(value)
  in_body = set(_body_names(_tree(value))) if functions and inspect.isclass(value) else set()
  for function in functions:
    loaded = in_body.union(_global_names(function.__code__))
    found |= {k: v for k, v in function.__globals__.items() if k in loaded} | _closure(function)
  return found


def _body_names(tree: ast.AST) -> Iterator[str]:
  """The names that the body of a class reads as it is defined, such as in attributes and in defaults of methods."""
  kinds = [node for node in ast.walk(tree) if isinstance(node, ast.ClassDef)]
  for node in itertools.chain.from_iterable(kind.body for kind in kinds):
    nodes = [node]
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
      nodes = [*node.args.defaults, *filter(None, node.args.kw_defaults), *node.decorator_list]
    for inner in itertools.chain.from_iterable(map(code.walk, nodes)):
      if isinstance(inner, ast.Name) and isinstance(inner.ctx, ast.Load):
        yield inner.id


def _global_names(block: types.CodeType) -> Iterator[str]:
  for instruction in dis.get_instructions(block):
    if instruction.opname in ('LOAD_GLOBAL', 'LOAD_NAME') and not hasattr(
      builtins, instruction.argval
    ):
      yield instruction.argval
  for inner in block.co_consts:
    if isinstance(inner, types.CodeType):
      yield from _global_names(inner)


def _closure(function: Callable) -> dict[str, Any]:
  cells = zip(function.__code__.co_freevars, function.__closure__ or (), strict=True)
  found = {}
  for name, cell in cells:
    if name != '__class__':
      try:
        found[name] = cell.cell_contents
      except ValueError:  # not bound yet
        continue
  return found


def _home(value: Callable) -> str:
  """The module that defines a function or class. For a wrapper, the wrapper's module counts."""
  names = {} if inspect.isclass(value) else value.__globals__
  return names.get('__name__') or value.__module__ or ''


def _is_own(value: Callable) -> bool:
  """Whether a function or class belongs to the user or kdjax: it is neither built in nor installed."""
  package = _home(value).partition('.')[0]
  return package == '__main__' or code.is_followed(package) or package not in sys.modules


def _functions(value: Callable) -> list[types.FunctionType]:
  """The function itself, or the methods that the source of a class defines."""
  if not inspect.isclass(value):
    return [value]
  found = []
  for member in vars(value).values():
    member = getattr(member, 'fget', None) or getattr(member, '__func__', member)
    if callable(member):  # flax wraps methods
      member = inspect.unwrap(member, stop=lambda f: inspect.isfunction(f) and _is_own(f))
    if inspect.isfunction(member) and member.__qualname__.startswith(f'{value.__qualname__}.'):
      file = member.__code__.co_filename
      if file != GENERATED and linecache.getlines(file):
        found.append(member)
  return found


def _attributes(kind: type) -> str:
  """The fields and plain attributes of a class without methods, whose source cannot be found, as text."""
  fields = [field.name for field in _fields(kind)] if dataclasses.is_dataclass(kind) else []
  plain = {k: v for k, v in vars(kind).items() if not k.startswith('_') and is_plain(v)}
  return f'{kind.__qualname__} {fields} {sorted(plain.items(), key=str)}'


def _tree(value: Callable) -> ast.AST:
  """The syntax tree of a definition in a file or a cell of a notebook.

  Raises:
    UserError: there is no source, as for code that was typed at Python's prompt.
  """
  if inspect.isclass(value):
    name, kinds = value.__name__, ast.ClassDef
    blocks = [inspect.unwrap(function).__code__ for function in _functions(value)]
  else:
    name, kinds = value.__code__.co_name, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda
    blocks = [value.__code__]
  for block in blocks:
    found, line = [], block.co_firstlineno
    for node in ast.walk(_parsed(''.join(linecache.getlines(block.co_filename)))):
      if isinstance(node, kinds) and getattr(node, 'name', '<lambda>') == name:
        start = min([node.lineno, *(d.lineno for d in getattr(node, 'decorator_list', ()))])
        if start == line or (kinds is ast.ClassDef and start < line <= node.end_lineno):
          found.append(node)
    if found:
      return ast.Tuple(found)  # one line may have several lambdas
  raise UserError(
    f'{value.__qualname__}: its source cannot be read, so a change would go unnoticed. Write it in a file or '
    'a notebook'
  )


@functools.lru_cache(32)
def _parsed(text: str) -> ast.Module:
  return ast.parse(text)


def _fields(kind: type) -> list[dataclasses.Field]:
  return [f for f in dataclasses.fields(kind) if f.init and f.name not in _OF_FLAX]


def _is_default(field: dataclasses.Field, value: Any) -> bool:
  default = field.default
  if field.default_factory is not dataclasses.MISSING:
    default = field.default_factory()
  is_same = type(value) is type(default) and is_plain(unfreeze(value)) and value == default
  return value is default or is_same


def _dtype_name(dtype: Any) -> str | None:
  names = [name for name, known in models.DTYPES.items() if dtype is not None and known == dtype]
  return names[0] if names else None


def _dotted(value: Any) -> str:
  return f'{value.__module__}:{value.__qualname__}'


def _label(value: Any) -> str:
  """The name of an object, or of the first object of a list: letters, digits and underscores."""
  value = value[0] if isinstance(value, list | tuple) else value
  name = getattr(value, '__qualname__', type(value).__qualname__).rpartition('.')[2]
  return name.strip('<>') or 'object'


def _sha(content: str | bytes) -> str:
  content = content.encode() if isinstance(content, str) else content
  return hashlib.sha256(content).hexdigest()[:12]
