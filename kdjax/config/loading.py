"""Loads configs from files with overrides, and the configs of a sweep that a file or flags define."""

import ast
import copy
import difflib
import hashlib
import importlib.util
import inspect
import itertools
import math
import sys
import traceback
from collections.abc import Mapping, Sequence
from typing import Any

from etils import epath
from ml_collections import ConfigDict

from kdjax.config import base
from kdjax.config import sweep as sweep_lib
from kdjax.config.fields import is_free, is_optional, leaves
from kdjax.config.sweep import Panel, Point, Sweep
from kdjax.errors import ConfigError
from kdjax.runtime import files, plugins
from kdjax.runtime.plugins import EXPERIMENTS

# The panels of a sweep of flags.
_PANELS = (
  Panel('splits.test.fidelity.top1_agreement', 'agreement, test (%)', 100),
  Panel('splits.test.fidelity.predictive_kl', 'KL to the teacher, test (nats)'),
  Panel('splits.test.student.accuracy', 'student accuracy, test (%)', 100),
)


def load(
  spec: str, overrides: Sequence[tuple[str, str | None]] = ()
) -> tuple[ConfigDict, list[str]]:
  """The config of FILE.py or FILE.py:ARGUMENT with overrides.

  Args:
    spec: a Python file that defines `get_config`, and its argument.
    overrides: (dotted field, value as text) pairs, as in `--config.student.temperature=1`. Text that is no
      Python literal is a string. None stands for a missing value.

  Returns: the config, and a line for each override without a field or with a wrong type, which is not
    applied. `validation.check` raises these lines together with all other problems.

  Raises:
    ConfigError: the file does not exist or cannot be run.
  """
  config = _call_get_config(spec)
  problems = [
    f'{field}: no value given; write --config.{field}=VALUE'
    if text is None
    else _assign(config, field, _literal(text), text)
    for field, text in overrides
  ]
  return config, [*filter(None, problems)]


def from_values(values: Mapping[str, Any]) -> tuple[ConfigDict, list[str]]:
  """The config of base.py with Python values of fields, and a line for each value that does not fit.

  Args:
    values: by dotted field, such as {'student.temperature': 1}.
  """
  config = base.get_config()
  return config, _assign_all(config, values)


def config_name(spec: str) -> str:
  """'configs/cifar_resnet.py:smoke' → 'cifar_resnet_smoke'."""
  path, argument = _split(spec)
  name = epath.Path(path).name.removesuffix('.py')
  return f'{name}_{argument}' if argument else name


def short_name(field: str) -> str:
  """The last part of a field's dotted name, or all of it if several fields have the same last part."""
  last = field.rpartition('.')[2]
  same = [name for name in leaves(base.get_config()) if name.rpartition('.')[2] == last]
  return field if len(same) > 1 else last


def load_sweep(spec: str) -> Sweep:
  """The sweep of FILE.py or FILE.py:ARGUMENT.

  Raises:
    ConfigError: the file defines no sweep, or one with problems.
  """
  _call_get_config(spec)  # raises for an unknown argument
  sweep = _call(spec, 'get_sweep')
  if not isinstance(sweep, Sweep):
    raise ConfigError(f'--config = {spec!r}: get_sweep returns no kdjax.config.sweep.Sweep')
  if problems := sweep_lib.problems(sweep):
    raise ConfigError(*(f'--config = {spec!r}: get_sweep: {problem}' for problem in problems))
  return sweep


def _call_get_config(spec: str) -> ConfigDict:
  config = _call(spec, 'get_config')
  if not isinstance(config, ConfigDict):
    raise ConfigError(
      f'--config = {spec!r}: get_config returns no ConfigDict; see kdjax/config/base.py'
    )
  return config


def _call(spec: str, function: str) -> Any:
  """The result of a function of the file for the argument."""
  path, argument = _split(spec)
  if not files.is_reachable(path):
    raise ConfigError(f'--config = {spec!r}: {files.NEEDS_CLOUD}')
  built_in = EXPERIMENTS / path  # such as 'paper/fig6b_lambda.py'
  path = epath.Path(path)
  path = built_in if not path.exists() and built_in.exists() else path
  if not path.exists():
    raise ConfigError(
      f'--config = {spec!r}: there is no file {path}, and no experiment of that name in {EXPERIMENTS}'
    )
  plugins.add_folder('.')
  if '://' not in str(path):
    plugins.add_folder(path.parent)
  try:
    name = f'{_package(path.parent)}.{path.stem}'.removeprefix('.')
    module_spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(module_spec)
    module_spec.loader.exec_module(module)
    if not hasattr(module, function):
      is_sweep = function == 'get_sweep'
      hint = '; run it without --sweep, --sweep_index and --list' * is_sweep
      raise ConfigError(f'--config = {spec!r}: {path} defines no {function}{hint}')
    if argument and not inspect.signature(getattr(module, function)).parameters:
      raise ConfigError(f'--config = {spec!r}: {path} takes no argument; leave out :{argument}')
    arguments = (argument,) if argument else ()
    return getattr(module, function)(*arguments)
  except ConfigError:
    raise
  except (Exception, SystemExit) as error:
    frame = traceback.extract_tb(error.__traceback__)[-1]
    reason, *_ = str(error).partition(' Other fields present')  # by ml_collections
    place = f'{frame.filename}:{frame.lineno}'
    raise ConfigError(f'--config = {spec!r}: {type(error).__name__}: {reason} ({place})') from error


def _split(spec: str) -> tuple[str, str]:
  """'a/b.py:smoke' and 'a/b:smoke' → ('a/b.py', 'smoke')."""
  path, colon, argument = spec.rpartition(':')
  if not colon or '/' in argument:  # 'gs://bucket/b.py' has no argument
    path, argument = spec, ''
  return f'{path.removesuffix(".py")}.py', argument


def _package(folder: epath.Path) -> str:
  """The dotted name under which a folder with an `__init__.py` is imported; '' for any other folder.

  Files of the folder can then import relatively. The name is not the folder's own, since another package
  `configs` may be installed.
  """
  if not (folder / '__init__.py').exists():
    return ''
  folder = folder.absolute()
  if parent := _package(folder.parent) if folder.parent.name != 'kdjax' else '':
    return f'{parent}.{folder.name}'
  name = f'_{folder.name}_{hashlib.sha256(str(folder).encode()).hexdigest()[:8]}'
  if name not in sys.modules:
    spec = importlib.util.spec_from_file_location(
      name, folder / '__init__.py', submodule_search_locations=[str(folder)]
    )
    sys.modules[name] = importlib.util.module_from_spec(spec)
    try:
      spec.loader.exec_module(sys.modules[name])
    except BaseException:
      del sys.modules[name]  # the next call raises the error again
      raise
  return name


def sweep_configs(
  spec: str, sweep: Sweep, overrides: Sequence[tuple[str, str | None]]
) -> tuple[list[ConfigDict], list[str]]:
  """The config of every run of the sweep: the file's with the overrides and the fields of the run.

  Returns: the configs in the order of `sweep.expand`, and a line for each problem, as `load` does.
  """
  start, problems = load(spec, overrides)
  configs = []
  for one in sweep_lib.expand(sweep):
    config = copy.deepcopy(start)
    for field, text in overrides:
      if field in one.fields:
        problems.append(f'{field} = {text}: the sweep sets it; leave it out')
    problems += _assign_all(config, one.fields)
    configs.append(config)
  return configs, list(dict.fromkeys(problems))


def sweep_from_flags(name: str, swept: Sequence[tuple[str, str | None]]) -> tuple[Sweep, list[str]]:
  """The sweep of `--sweep.FIELD=VALUES` over all combinations of the values, and the problems with the flags.

  The first field is the x axis; each combination of the others is a series. If these are too many for a figure,
  each combination of all fields is a name on the x axis.

  Args:
    name: the name of the config, for the title.
    swept: (dotted field, values as text, separated by commas), as in `--sweep.FIELD=V1,V2`.
  """
  fields = [field for field, _ in swept]
  short = [short_name(field) for field in fields]
  problems = [
    f'--sweep.{field}: no values given; write --sweep.{field}=V1,V2'
    for field, text in swept
    if not text
  ]
  problems += [
    f'--sweep.{field}: given twice' for field in {f for f in fields if fields.count(f) > 1}
  ]
  values = [_literals(text or '') for _, text in swept]
  are_numbers = all(type(x) in (int, float) for x in values[0])
  has_series = math.prod(map(len, values[1:])) <= sweep_lib.MAX_SERIES
  points = []
  for combination in itertools.product(*values):
    x = float(combination[0]) if are_numbers else str(combination[0])
    names = [f'{field} = {value}' for field, value in zip(short, combination, strict=True)]
    place = (x, ', '.join(names[1:])) if has_series else (', '.join(names),)
    points.append(Point(dict(zip(fields, combination, strict=True)), *place))
  x_label = short[0] if has_series else 'fields'
  sweep = Sweep(f'{name}: {", ".join(short)}', x_label, points, _PANELS, trial_field='')
  return sweep, problems or [f'--sweep: {problem}' for problem in sweep_lib.problems(sweep)]


def _literals(text: str) -> list[Any]:
  """The values, separated by commas, as Python literals. '(1, 2),(3, 4)' are two tuples."""
  found = _literal(f'[{text}]')
  return found if isinstance(found, list) else [_literal(part.strip()) for part in text.split(',')]


def _literal(text: str) -> Any:
  """The value of a Python literal; any other text is itself, as a string."""
  try:
    return ast.literal_eval(text)
  except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
    return text


def _assign_all(config: ConfigDict, values: Mapping[str, Any]) -> list[str]:
  """Sets fields to Python values; returns a line for each that does not fit."""
  problems = [_assign(config, field, value, repr(value)) for field, value in values.items()]
  return [*filter(None, problems)]


def _assign(config: ConfigDict, field: str, value: Any, text: str) -> str | None:
  """Sets a field to a value, or returns the problem. `text` is the value as the user wrote it."""
  *parents, name = field.split('.')
  section = config
  for parent in parents:
    section = section.get(parent)
    if not isinstance(section, ConfigDict):
      return _unknown(config, field, text)
  if parents and is_free(parents[-1]) and name:
    with section.unlocked(), section.ignore_type():
      section[name] = value
    return None
  if name not in section:
    return _unknown(config, field, text)
  if is_free(name) and isinstance(value, dict) and all(isinstance(key, str) for key in value):
    section[name] = ConfigDict(value)
    return None
  wanted = section.get_type(name)
  optional = is_optional(config, field)
  if wanted is float and type(value) is int:
    value = float(value)
  if wanted is tuple and type(value) is list:
    value = tuple(value)
  if type(value) is not wanted and not (value is None and optional):
    return f'{field} = {text}: wrong type; allowed: {TYPE_NAMES[wanted]}{" or None" * optional}'
  section[name] = value
  return None


TYPE_NAMES = {
  bool: 'True or False',
  int: 'an integer',
  float: 'a number',
  str: 'a string',
  tuple: "a tuple such as ('crop', 'flip') or ()",
  ConfigDict: 'no value: it is a section, set its fields',
}


def _unknown(config: ConfigDict, field: str, text: str) -> str:
  known = sorted(leaves(config))
  section = field.rpartition('.')[0]
  siblings = [name.rpartition('.')[2] for name in known if name.rpartition('.')[0] == section]
  if siblings:
    allowed = f'fields of {section or "the top level"}: {", ".join(siblings)}'
  else:
    allowed = (
      f'sections: {", ".join(name for name in config if isinstance(config[name], ConfigDict))}'
    )
  close = difflib.get_close_matches(field, known, n=1)
  hint = f'; did you mean {close[0]}?' if close else ''
  return f'{field} = {text}: no such field{hint} ({allowed})'
