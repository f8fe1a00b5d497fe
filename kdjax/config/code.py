"""Digests of the code that decides an artefact: of every definition that its root functions reach.

The code is read from source files; only `__init__` files of packages are run. A definition is a top-level
statement that binds names: a function, a class, an assignment. It reaches the definitions that it mentions by
name, in the modules of kdjax and of the user. Names in other packages, in strings and in registries are not
followed. Comments, docstrings, annotations, positions and formatting do not count. Top-level statements that
bind no name, such as calls, count with every definition of their module.
"""

import ast
import dataclasses
import functools
import hashlib
import importlib.util
import json
import pathlib
import sysconfig
from collections.abc import Iterator, Sequence

from kdjax.runtime import given

# Tables from name to function, which are not followed: a root names the entry that the config chooses.
REGISTRIES = {
  'kdjax.models.MODELS',
  'kdjax.models.SHAPED_BY',
  'kdjax.losses.registry.LOSSES',
  'kdjax.train.optimizers.OPTIMIZERS',
  'kdjax.data.augmentations.FUNCTIONS',
}
# Infrastructure and reading of results, which change no number.
NOT_FOLLOWED = ('kdjax.runtime', 'kdjax.errors', 'kdjax.interface.opened')
_IGNORED = {'annotation', 'returns', 'type_comment', 'type_params', 'kind', 'ctx'}


@functools.lru_cache(64)
def digest(roots: tuple[str, ...]) -> str:
  """One digest of the values of `digests`. Names do not count, so a definition may move."""
  return hashlib.sha256(json.dumps(sorted(digests(roots).values())).encode()).hexdigest()


def forget() -> None:
  """Clears the caches, so source files that were edited in a notebook session are read again."""
  for function in (digest, digests, _module, is_followed):
    function.cache_clear()


@functools.lru_cache(64)
def digests(roots: Sequence[str]) -> dict[str, str]:
  """The digest of every definition that the roots reach, by dotted name.

  Args:
    roots: 'module:attribute' of functions and classes. Their code is read once per process.

  Raises:
    LookupError: a root in kdjax does not exist.
  """
  found = {name: value for root in roots for name, value in given.digests(root).items()}
  waiting, seen = [], set()
  for module_name, name in (root.split(':') for root in roots):
    if module_name != given.__name__:  # objects there come with their digests
      waiting += _places(module_name, name)
  while waiting:
    module_name, name = place = waiting.pop()
    module = _module(module_name)
    if module is None or place in seen or _is_excluded(module_name, name):
      continue
    seen.add(place)
    if name in module.imports:  # defined elsewhere, and perhaps here, too
      waiting.append(module.imports[name])
    if name not in module.definitions:  # made as the module runs
      continue
    nodes = [*module.definitions[name], *module.effects]
    content = '\n'.join(canonical(node) for node in nodes)
    found[f'{module_name}.{name}'] = hashlib.sha256(content.encode()).hexdigest()[:12]
    waiting += [reference for node in nodes for reference in _references(node, module)]
  return found


def _places(module_name: str, name: str) -> list[tuple[str, str]]:
  """The (module, name) pairs of a root; the whole module for a name that a user's module binds at run time."""
  module = _module(module_name)
  if module is None or name in module.definitions or name in module.imports:
    return [(module_name, name)]
  if module_name.startswith('kdjax.'):
    raise LookupError(f'{module_name} defines no {name}')
  return [(module_name, defined) for defined in module.definitions]


@dataclasses.dataclass(frozen=True)
class _Module:
  """The top level of a source file.

  Attributes:
    imports: name → (module, name there), or (module, '') for the module itself.
    definitions: name → the statements that bind it.
    effects: statements that bind no name.
  """

  name: str
  imports: dict[str, tuple[str, str]]
  definitions: dict[str, list[ast.stmt]]
  effects: list[ast.stmt]


def _is_excluded(module_name: str, name: str) -> bool:
  is_infrastructure = any(
    module_name == place or module_name.startswith(f'{place}.') for place in NOT_FOLLOWED
  )
  return is_infrastructure or f'{module_name}.{name}' in REGISTRIES


@functools.cache
def _module(name: str) -> _Module | None:
  """A module of kdjax or of the user; None for any other."""
  if not is_followed(name.partition('.')[0]):
    return None
  try:
    spec = importlib.util.find_spec(name)
  except (ImportError, ValueError):  # such as a name inside a module that is no package
    return None
  if spec is None or spec.origin is None or not spec.origin.endswith('.py'):
    return None
  imports, definitions, effects = {}, {}, []
  package = name if spec.submodule_search_locations is not None else name.rpartition('.')[0]
  tree = ast.parse(pathlib.Path(spec.origin).read_text(encoding='utf-8'))
  for node in ast.walk(tree):
    if isinstance(node, ast.Import | ast.ImportFrom):
      imports |= _imported(node, package)
  for node in tree.body:
    if isinstance(node, ast.Import | ast.ImportFrom):
      continue
    names = dict.fromkeys(_bound(node))
    for bound in names:
      definitions.setdefault(bound, []).append(node)
    if not names and not _is_docstring(node):
      effects.append(node)
  return _Module(name, imports, definitions, effects)


@functools.cache
def is_followed(package: str) -> bool:
  """Whether a top-level package or module is kdjax or the user's: neither built in nor installed."""
  if package == 'kdjax':
    return True
  try:
    spec = importlib.util.find_spec(package)
  except (ImportError, ValueError):
    return False
  places = list(spec.submodule_search_locations or [spec.origin]) if spec else []
  if not places or places[0] in (None, 'built-in', 'frozen'):
    return False
  path = pathlib.Path(places[0]).resolve()
  installed = [sysconfig.get_path(key) for key in ('stdlib', 'platstdlib', 'purelib', 'platlib')]
  return not any(path.is_relative_to(pathlib.Path(place).resolve()) for place in installed)


def _imported(
  node: ast.Import | ast.ImportFrom, package: str
) -> Iterator[tuple[str, tuple[str, str]]]:
  if isinstance(node, ast.Import):
    for alias in node.names:
      top = alias.name.partition('.')[0]
      yield (alias.asname, (alias.name, '')) if alias.asname else (top, (top, ''))
    return
  parents = package.split('.')[: len(package.split('.')) - node.level + 1]
  origin = '.'.join([*parents * bool(node.level), *filter(None, [node.module])])
  for alias in node.names:
    if alias.name != '*':
      yield alias.asname or alias.name, (origin, alias.name)
    elif (module := _module(origin)) is not None:
      yield from ((name, (origin, name)) for name in (*module.imports, *module.definitions))


def _bound(node: ast.AST) -> Iterator[str]:
  """The names that a top-level statement binds, also in its branches."""
  if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
    yield node.name
    return
  if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
    yield node.id
  if not isinstance(
    node, ast.Lambda | ast.ListComp | ast.SetComp | ast.DictComp | ast.GeneratorExp
  ):
    for inner in ast.iter_child_nodes(node):
      yield from _bound(inner)


def _references(node: ast.stmt, module: _Module) -> Iterator[tuple[str, str]]:
  """Yields (module, name) of each definition that a statement mentions."""
  for inner in walk(node):
    names = chain(inner)
    if not names:
      continue
    first, *rest = names
    if first in module.definitions:
      yield module.name, first
    elif first in module.imports:
      origin, name = module.imports[first]
      path = [*filter(None, [name]), *rest]
      yield from _resolved(origin, path)


def _resolved(origin: str, path: Sequence[str]) -> Iterator[tuple[str, str]]:
  """Yields the longest module of origin.path[0].path[1]... that defines the next part, and that part."""
  while path and is_followed(origin.partition('.')[0]):
    module = _module(origin)
    if module and (path[0] in module.definitions or path[0] in module.imports):
      yield origin, path[0]
      return
    origin, path = f'{origin}.{path[0]}', path[1:]


def chain(node: ast.AST) -> list[str]:
  """['a', 'b', 'c'] of a.b.c and ['a'] of a; [] of anything else."""
  if isinstance(node, ast.Name):
    return [node.id]
  if isinstance(node, ast.Attribute):
    inner = chain(node.value)
    return [*inner, node.attr] if inner else []
  return []


def walk(node: ast.AST) -> Iterator[ast.AST]:
  """Yields all nodes of a tree except annotations."""
  yield node
  for field, value in ast.iter_fields(node):
    if field not in _IGNORED:
      for inner in value if isinstance(value, list) else [value]:
        if isinstance(inner, ast.AST):
          yield from walk(inner)


def canonical(node: ast.AST) -> str:
  """A tree as text, the same in all supported versions of Python."""
  if not isinstance(node, ast.AST):
    return repr(node)
  parts = []
  for field, value in ast.iter_fields(node):
    if field in _IGNORED or value is None or value == []:
      continue
    if isinstance(value, list):
      kept = [x for x in value if not (field == 'body' and _is_docstring(x))]
      parts.append(f'{field}=[{",".join(map(canonical, kept))}]')
    else:
      parts.append(f'{field}={canonical(value)}')
  return f'{type(node).__name__}({",".join(parts)})'


def _is_docstring(node: ast.AST) -> bool:
  return (
    isinstance(node, ast.Expr)
    and isinstance(node.value, ast.Constant)
    and isinstance(node.value.value, str)
  )
