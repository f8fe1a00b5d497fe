"""Configs: loading, overrides, durations and fingerprints.

A config is an `ml_collections.ConfigDict` with the fields of `configs/base.py`, which explains them.
What their values may be says `config/validation.py`.
"""

import ast
import difflib
import hashlib
import importlib.util
import inspect
import json
import traceback
from collections.abc import Iterator, Sequence
from typing import Any

from etils import epath
from ml_collections import ConfigDict, FieldReference

from kdjax.config import sweep as sweep_lib
from kdjax.config.sweep import Sweep
from kdjax.data import views
from kdjax.errors import ConfigError
from kdjax.runtime import files

ARTEFACT_VERSION = 3  # raise it when a change of the code makes old artefacts wrong
DURATIONS = ('num_epochs', 'num_steps', 'num_examples')


def load(
  spec: str, overrides: Sequence[tuple[str, str | None]] = ()
) -> tuple[ConfigDict, list[str]]:
  """The config of FILE.py or FILE.py:ARGUMENT with fields overridden.

  Args:
    spec: a Python file that defines `get_config`, and its argument.
    overrides: (dotted field, value as text) pairs, as in `--config.student.temperature=1`. Values are
      Python literals; text that is none is a string. None stands for a value that was not given.

  Returns: the config, and a line for each override that fits no field or has a wrong type. These are
    not applied. `validation.check` raises them together with what else is wrong.

  Raises:
    ConfigError: there is no such file, or it cannot be run.
  """
  config = _call_get_config(spec)
  problems = [problem for field, text in overrides for problem in _override(config, field, text)]
  return config, problems


def config_name(spec: str) -> str:
  """'configs/cifar_resnet.py:smoke' → 'cifar_resnet_smoke'."""
  path, _, argument = spec.partition('.py:')
  name = epath.Path(path).name.removesuffix('.py')
  return f'{name}_{argument}' if argument else name


def num_steps(section: ConfigDict, num_examples: int) -> int:
  """The one conversion of durations: of the `teacher` or `student` section, to steps.

  Epochs and examples are rounded up to whole batches.
  """
  if section.num_steps is not None:
    return section.num_steps
  examples = section.num_examples
  if section.num_epochs is not None:
    examples = section.num_epochs * num_examples
  return int(-(-examples // section.batch_size))  # whole numbers of any size


def student_model(config: ConfigDict) -> ConfigDict:
  """`model` with the fields that `student.model` sets."""
  merged = config.model.copy_and_resolve_references()
  for field, value in config.student.model.items():
    if value is not None:
      merged[field] = value
  return merged


def shares_weight_space(config: ConfigDict) -> bool:
  """Whether teacher and student have the same architecture; what they compute in may differ."""
  return _without(student_model(config), 'dtype') == _without(config.model, 'dtype')


def student_seed(config: ConfigDict) -> int:
  """Decides the student's initial weights and data order."""
  return config.seed if config.student.seed is None else config.student.seed


def num_extra(config: ConfigDict) -> int:
  """How many unlabelled inputs are added to the distillation data."""
  return config.predictions.num_extra if config.predictions.extra else 0


def needs_gan(config: ConfigDict) -> bool:
  return config.predictions.extra == 'gan'


def subset_seed(config: ConfigDict) -> int:
  """Decides which examples `teacher.examples` and `predictions.examples` take."""
  return config.seed if config.dataset.subset_seed is None else config.dataset.subset_seed


def independent(config: ConfigDict) -> ConfigDict:
  """The same experiment from another seed: the baseline of fidelity (paper, Section 3).

  Both are distilled on the same images, unless a section takes a part of the training set: then the other
  one has parts of its own, as its teacher has (or the same ones, if `dataset.subset_seed` is set).
  """
  other = config.copy_and_resolve_references()
  other.update_from_flattened_dict(
    {
      'seed': config.evaluation.independent_seed,
      'student.seed': None,
      'evaluation.independent_seed': None,
    }
  )
  return other


# Fingerprints.


def teacher_fingerprint(config: ConfigDict) -> str:
  """Of everything that can change what a member leaves, except which member it is."""
  return _hash(
    seed=config.seed,
    dataset=_dataset(config),
    model=config.model,
    teacher=_without(config.teacher, 'num_members'),
    subset=_subset(config, 'teacher'),
    augmentation=views.fields(config.teacher.augmentation, config.augmentation),
  )


def gan_fingerprint(config: ConfigDict) -> str:
  return _hash(
    dataset=_dataset(config),
    gan=_without(config.gan, 'num_samples'),
  )


def predictions_fingerprint(config: ConfigDict) -> str:
  """Of one stored value. Members and views can be added, so their numbers do not enter."""
  predictions = config.predictions
  return _hash(
    teacher=teacher_fingerprint(config),
    num_test=config.dataset.num_test,
    dtype=predictions.dtype if predictions.mode == 'stored' else None,
    distillation=_distillation_data(config),
    subset=_subset(config, 'predictions'),
    augmentation=views.fields(predictions.augmentation, config.augmentation),
  )


def _distillation_data(config: ConfigDict) -> dict[str, Any]:
  """The fields that say what a student is distilled on, as far as they count."""
  predictions = config.predictions
  unused = ['mode', 'num_views', 'dtype']
  unused += [] if predictions.extra else ['num_extra', 'augment_extra']
  gan = gan_fingerprint(config) if needs_gan(config) else None
  return _without(predictions, *unused) | {'gan': gan}


def _subset(config: ConfigDict, section: str) -> int | None:
  """The subset seed, if the section takes a part of the training set."""
  return subset_seed(config) if any(config[section].examples) else None


def student_fingerprint(config: ConfigDict) -> str:
  return _hash(
    predictions=predictions_fingerprint(config),
    num_members=config.teacher.num_members,
    num_views=config.predictions.num_views,
    mode=config.predictions.mode,
    student=_without(config.student, 'model', 'seed'),
    seed=student_seed(config),
    model=student_model(config),
  )


def _dataset(config: ConfigDict) -> dict[str, Any]:
  """The fields that decide the training data as a whole, and not their place or how they are read."""
  unused = 'data_dir', 'num_test', 'streaming', 'num_workers', 'subset_seed'
  return _without(config.dataset, *unused)


def _without(section: ConfigDict, *fields: str) -> dict[str, Any]:
  return {name: value for name, value in section.to_dict().items() if name not in fields}


def _hash(**parts: Any) -> str:
  plain = {k: v.to_dict() if isinstance(v, ConfigDict) else v for k, v in parts.items()}
  text = json.dumps({'version': ARTEFACT_VERSION, **plain}, sort_keys=True)
  return hashlib.sha256(text.encode()).hexdigest()[:12]


# Loading.


def load_sweep(spec: str) -> Sweep:
  """The sweep of FILE.py or FILE.py:ARGUMENT.

  Raises:
    ConfigError: the file defines none, or it is not a sensible one.
  """
  _call_get_config(spec)  # which knows what arguments there are
  sweep = _call(spec, 'get_sweep')
  if not isinstance(sweep, Sweep):
    raise ConfigError([f'--config = {spec!r}: get_sweep returns no kdjax.config.sweep.Sweep'])
  if problems := sweep_lib.problems(sweep):
    raise ConfigError([f'--config = {spec!r}: get_sweep: {problem}' for problem in problems])
  return sweep


def _call_get_config(spec: str) -> ConfigDict:
  config = _call(spec, 'get_config')
  if not isinstance(config, ConfigDict):
    raise ConfigError(
      [f'--config = {spec!r}: get_config returns no ConfigDict; see configs/base.py']
    )
  return config


def _call(spec: str, function: str) -> Any:
  """What a function of the file returns for the argument."""
  path, _, argument = spec.partition('.py:')
  if not files.is_reachable(path):
    raise ConfigError([f'--config = {spec!r}: {files.NEEDS_CLOUD}'])
  path = epath.Path(path if path.endswith('.py') else f'{path}.py')
  if not path.exists():
    raise ConfigError([f'--config = {spec!r}: there is no file {path}'])
  module_spec = importlib.util.spec_from_file_location(path.stem, path)
  module = importlib.util.module_from_spec(module_spec)
  try:
    module_spec.loader.exec_module(module)
    if not hasattr(module, function):
      is_sweep = function == 'get_sweep'
      hint = '; it is no sweep: run it without --sweep and --sweep_index' * is_sweep
      raise ConfigError([f'--config = {spec!r}: {path} defines no {function}{hint}'])
    if argument and not inspect.signature(getattr(module, function)).parameters:
      raise ConfigError([f'--config = {spec!r}: {path} takes no argument; leave out :{argument}'])
    arguments = (argument,) if argument else ()
    return getattr(module, function)(*arguments)
  except ConfigError:
    raise
  except (Exception, SystemExit) as error:
    frame = traceback.extract_tb(error.__traceback__)[-1]
    reason = str(error).partition(' Other fields present')[0]  # a dump of the whole config
    place = f'{frame.filename}:{frame.lineno}'
    raise ConfigError(
      [f'--config = {spec!r}: {type(error).__name__}: {reason} ({place})']
    ) from error


def sweep_configs(
  spec: str, sweep: Sweep, overrides: Sequence[tuple[str, str | None]]
) -> tuple[list[ConfigDict], list[str]]:
  """The config of every run of the sweep: the file's, the overrides, and the fields of the run.

  Returns: the configs in the order of `sweep.expand`, and what is wrong with fields, as `load` does.
  """
  configs, problems = [], []
  for one in sweep_lib.expand(sweep):
    config, wrong = load(spec, overrides)
    problems += wrong
    for field, value in one.fields.items():
      if field in dict(overrides):
        problems.append(f'{field} = {dict(overrides)[field]}: the sweep sets it; leave it out')
      problems += _assign(config, field, value, repr(value))
    configs.append(config)
  return configs, list(dict.fromkeys(problems))


def _override(config: ConfigDict, field: str, text: str | None) -> Iterator[str]:
  """Sets a field, or yields what is wrong."""
  if text is None:
    yield f'{field}: no value given; write --config.{field}=VALUE'
    return
  try:
    value = ast.literal_eval(text)
  except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):  # no literal
    value = text
  yield from _assign(config, field, value, text)


def _assign(config: ConfigDict, field: str, value: Any, text: str) -> Iterator[str]:
  *parents, name = field.split('.')
  section = config
  for parent in parents:
    section = section.get(parent)
    if not isinstance(section, ConfigDict):
      break
  if not isinstance(section, ConfigDict) or name not in section:
    yield _unknown(config, field, text)
    return
  wanted = section.get_type(name)
  optional = is_optional(config, field)
  if wanted is float and type(value) is int:
    value = float(value)
  if wanted is tuple and type(value) is list:
    value = tuple(value)
  if type(value) is not wanted and not (value is None and optional):
    yield f'{field} = {text}: wrong type; allowed: {TYPE_NAMES[wanted]}{" or None" * optional}'
    return
  section[name] = value


TYPE_NAMES = {
  bool: 'True or False',
  int: 'an integer',
  float: 'a number',
  str: 'a string',
  tuple: "a tuple such as ('crop', 'flip') or ()",
  ConfigDict: 'no value: it is a section, set its fields',
}


def is_optional(config: ConfigDict, field: str) -> bool:
  """Whether None is allowed: base.py makes such fields references, which know their type."""
  *parents, name = field.split('.')
  for parent in parents:
    config = config[parent]
  return isinstance(dict(config.items(preserve_field_references=True))[name], FieldReference)


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


def leaves(section: ConfigDict, prefix: str = '') -> dict[str, Any]:
  """Every field that is not a section, by its dotted name."""
  found = {}
  for name, value in section.items():
    if isinstance(value, ConfigDict):
      found |= leaves(value, f'{prefix}{name}.')
    else:
      found[f'{prefix}{name}'] = value
  return found
