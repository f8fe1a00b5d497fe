"""Teachers that are not trained here (`teacher.source`): their identity in fingerprints, and their checks."""

import json
from collections.abc import Iterator
from typing import Any

import numpy as np
from etils import epath
from ml_collections import ConfigDict

from kdjax import data
from kdjax.config import fields
from kdjax.errors import UserError
from kdjax.predictions import functions
from kdjax.predictions.imported import LogitsFile
from kdjax.runtime import files, hosts

NEEDS_WEIGHTS = "needs a teacher's weights"
NUM_SHOWN = 4  # random inputs for the check of a function


def identity(config: ConfigDict) -> dict[str, Any]:
  """The part of a fingerprint for a teacher that is not trained here, without the code of a function."""
  section = config.teacher
  if section.source != fields.WORKDIR:
    content = None if section.path is None else files.tree_checksum(section.path)
    return {'source': section.source, 'content': content}
  path, found = _record(section.path), {}
  if path.exists():
    found = {name: files.read_json(path).get(name) for name in ('seed', 'model', 'teacher')}
    found['teacher'].pop('num_members', None)
  name = path.parents[1].name
  content = {'fingerprint': name} | found
  return {'source': section.source, 'model': config.model.to_dict(), 'content': content}


def recorded(path: str) -> ConfigDict:
  """The config of the members in a folder of another workdir."""
  return ConfigDict(files.read_json(_record(path)))


def problems(config: ConfigDict) -> Iterator[str]:
  """A line for each field that does not fit `teacher.source`, before the data are known."""
  section = config.teacher
  for name in ('path', 'independent_source', 'independent_path'):
    if section.source == fields.TRAINED and section[name]:
      yield (
        f"teacher.{name} = {section[name]!r}: has no effect with teacher.source = ''; allowed: "
        f'{"None" if "path" in name else repr("")}'
      )
  if section.source == fields.TRAINED:
    return
  independent_seed = config.evaluation.independent_seed
  if independent_seed is not None and section.independent_source == fields.TRAINED:
    yield (
      f'evaluation.independent_seed = {independent_seed}: with teacher.source = {section.source!r}, no '
      'independent teacher can be trained here; allowed: None, for no independent student, or a '
      'teacher.independent_source (and teacher.independent_path) that names another teacher, such as the '
      'same model trained on another sample'
    )
  teachers = fields.sources(config)
  if len(set(teachers.values())) < len(teachers):
    yield (
      f'teacher.independent_source = {section.independent_source!r}: with teacher.independent_path = '
      f'{section.independent_path!r}, it names the teacher itself; allowed: another teacher'
    )
  for prefix, (source, path) in teachers.items():
    field = f'{prefix}source = {source!r}'
    if source in (fields.FILE, fields.WORKDIR) and path is None:
      yield f'{prefix}path = None: allowed with {field}: a path; see kdjax/config/base.py'
    if source == fields.FILE and config.predictions.mode == 'online':
      yield (
        f"predictions.mode = 'online': {field} has the logits of its own views only; allowed: 'stored'"
      )
    elif config.predictions.mode == 'online' and source != fields.WORKDIR and hosts.count() > 1:
      yield f"predictions.mode = 'online': allowed with {field} and {hosts.count()} hosts: 'stored'"
    if not fields.has_weights(source):
      yield from _weight_problems(config, field)


def _weight_problems(config: ConfigDict, field: str) -> Iterator[str]:
  """A line for each field that needs a teacher's weights. `field` is the source, which has none."""
  student, evaluation = config.student, config.evaluation
  has_none = f'and {field} has only predictions; allowed:'
  if student.init_lambda > 0:
    yield f'student.init_lambda = {student.init_lambda}: {NEEDS_WEIGHTS}, {has_none} 0'
  if evaluation.num_cka_examples > 0:
    value = evaluation.num_cka_examples
    yield f'evaluation.num_cka_examples = {value}: {NEEDS_WEIGHTS}, {has_none} 0'
  if fields.needs_gan(config):
    yield (
      f"predictions.extra = 'gan': {NEEDS_WEIGHTS}, to measure the quality of the GAN's images, {has_none} "
      'another predictions.extra'
    )


def content_problems(config: ConfigDict, description: data.Description) -> Iterator[str]:
  """A line for each teacher that is missing, or does not fit the data or the other fields."""
  checks = {fields.FILE: _file_problems, fields.WORKDIR: _workdir_problems}
  for prefix, (source, path) in fields.sources(config).items():
    check = checks.get(source, _function_problems)
    try:
      yield from check(config, description, prefix, source, path)
    except UserError as error:
      yield str(error)


def _function_problems(
  config: ConfigDict, description: data.Description, prefix: str, source: str, path: str | None
) -> Iterator[str]:
  """Calls each member with random inputs."""
  field = f'{prefix}source'
  if path is not None and not epath.Path(path).expanduser().exists():
    yield f'{prefix}path = {path!r}: no such file or folder'
    return
  members, wanted = functions.find(source, path, field), config.teacher.num_members
  if len(members) < wanted:
    yield _too_few(wanted, f'{field} = {source!r}', len(members))
  rng, shape = np.random.default_rng(0), (NUM_SHOWN, *description.input_shape)
  if description.vocabulary_size is None:
    inputs_BX = rng.uniform(-1, 1, shape)
  else:
    inputs_BX = rng.integers(1, description.vocabulary_size, shape)
  inputs_BX = inputs_BX.astype(description.input_dtype)
  # PyTorch takes no negative strides.
  batches = inputs_BX, inputs_BX[::-1].copy(), inputs_BX[:-1]
  for i, member in enumerate(members[:wanted]):
    logits_BC, reversed_BC, part_BC = (
      functions.logits(member, inputs, description.num_classes, source, field) for inputs in batches
    )
    if (logits_BC >= 0).all() and np.allclose(logits_BC.sum(axis=-1), 1, atol=1e-3):
      yield (
        f'{field} = {source!r}: member {i} returns probabilities; needed: logits, for instance '
        'np.log(np.maximum(p, 1e-7))'
      )
    others = np.concatenate([reversed_BC[::-1], part_BC])
    if not np.allclose(others, np.concatenate([logits_BC, logits_BC[:-1]]), rtol=0.01, atol=0.01):
      yield (
        f'{field} = {source!r}: member {i} gives other logits for the same inputs in another batch; needed: '
        'a function of each input alone, without dropout or statistics of the batch (PyTorch: model.eval())'
      )


def _file_problems(
  config: ConfigDict, description: data.Description, prefix: str, source: str, path: str
) -> Iterator[str]:
  """Compares the shapes in the file with those of the data."""
  file, predictions = LogitsFile(path, f'{prefix}path'), config.predictions
  sizes = data.split_sizes(config.dataset, description)
  num_distilled = data.part_size(sizes['train'], predictions.examples) + fields.num_extra(config)
  views = {'distillation': (predictions.num_views, num_distilled)}
  views |= {name: (1, size) for name, size in sizes.items()}
  for name, (num_views, num_examples) in views.items():
    shape = config.teacher.num_members, num_views, num_examples, description.num_classes
    try:
      file.require_shape(name, shape)
    except UserError as error:
      yield str(error)


def _workdir_problems(
  config: ConfigDict, description: data.Description, prefix: str, source: str, path: str
) -> Iterator[str]:
  """Compares the model of the other workdir with this one, and counts its members."""
  del description  # reading the checkpoint checks the number of classes
  field = f'{prefix}path = {path!r}'
  if not _record(path).exists():
    yield (
      f"{field}: has no member_0/config.json; allowed with {prefix}source = 'workdir': a folder "
      'OTHER/teachers/FINGERPRINT of another workdir'
    )
    return
  found, model = recorded(path), fields.without(config.model, 'dtype')
  theirs = {name: found.model.to_dict().get(name) for name in model}
  differing = [
    f'model.{name} = {theirs[name]!r}'
    for name in model
    if _as_json(model[name]) != _as_json(theirs[name])  # which has no tuples
  ]
  if differing:
    yield f'{field}: was trained with {", ".join(differing)}; needed: the same `model` as here'
  folder = epath.Path(path).expanduser()
  finished = [
    (folder / f'member_{i}' / 'complete.json').exists() for i in range(config.teacher.num_members)
  ]
  if not all(finished):
    yield _too_few(config.teacher.num_members, field, finished.index(False))


def _as_json(value: Any) -> str:
  return json.dumps(value, default=lambda section: section.to_dict(), sort_keys=True)


def _too_few(wanted: int, field: str, found: int) -> str:
  return f'teacher.num_members = {wanted}: {field} has {found}; allowed: up to {found}'


def _record(path: str) -> epath.Path:
  return epath.Path(path).expanduser() / 'member_0' / 'config.json'
