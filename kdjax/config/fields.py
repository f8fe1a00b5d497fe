"""The fields of a config, and values that follow from several of them."""

from typing import Any

from ml_collections import ConfigDict, FieldReference

from kdjax.predictions.encodings import TOP_K

DURATIONS = ('num_epochs', 'num_steps', 'num_examples')
# Values of `teacher.source`; others name a function as 'module:attribute'.
TRAINED, FILE, WORKDIR = SOURCES = ('', 'file', 'workdir')
FREE = ('options', 'loss_options')  # names of sections that take any fields


def num_steps(section: ConfigDict, num_examples: int) -> int:
  """The steps of the duration in a `teacher` or `student` section, rounded up to whole batches.

  Args:
    num_examples: the examples of an epoch.
  """
  if section.num_steps is not None:
    return section.num_steps
  examples = section.num_examples
  if section.num_epochs is not None:
    examples = section.num_epochs * num_examples
  return int(-(-examples // section.batch_size))  # integer division is exact for any size


def student_model(config: ConfigDict) -> ConfigDict:
  """`model` with the fields that `student.model` sets. Options of another model are not inherited."""
  merged = config.model.copy_and_resolve_references()
  for field, value in config.student.model.items():
    if value is not None and not is_free(field):
      merged[field] = value
  inherited = config.model.options.to_dict() if merged.name == config.model.name else {}
  merged.options = ConfigDict(inherited | config.student.model.options.to_dict())
  return merged


def shares_weight_space(config: ConfigDict) -> bool:
  """Whether the teacher has weights and the student's architecture. Their `dtype` may differ."""
  same = without(student_model(config), 'dtype') == without(config.model, 'dtype')
  return same and has_weights(config.teacher.source)


def student_seed(config: ConfigDict) -> int:
  """The seed of the student's initial weights and data order."""
  return config.seed if config.student.seed is None else config.student.seed


def num_extra(config: ConfigDict) -> int:
  """The number of unlabelled inputs in the distillation data."""
  return config.predictions.num_extra if config.predictions.extra else 0


def is_top_k(config: ConfigDict) -> bool:
  """Whether the predictions of the distillation data are stored as `encodings.TopK`."""
  return config.predictions.mode == 'stored' and config.predictions.dtype == TOP_K


def needs_gan(config: ConfigDict) -> bool:
  """Whether the distillation data has images of a GAN."""
  return config.predictions.extra == 'gan'


def subset_seed(config: ConfigDict) -> int:
  """The seed that chooses the parts `teacher.examples` and `predictions.examples`."""
  return config.seed if config.dataset.subset_seed is None else config.dataset.subset_seed


def independent(config: ConfigDict) -> ConfigDict:
  """The same experiment with another seed: the baseline of fidelity (paper, Section 3).

  Both distil on the same training images. If a section takes a part of them, each experiment has its own part,
  unless `dataset.subset_seed` is set.
  """
  other = config.copy_and_resolve_references()
  other.update_from_flattened_dict(
    {
      'seed': config.evaluation.independent_seed,
      'student.seed': None,
      'evaluation.independent_seed': None,
      'teacher.source': config.teacher.independent_source,
      'teacher.path': config.teacher.independent_path,
      'teacher.independent_source': '',
      'teacher.independent_path': None,
    }
  )
  return other


def has_weights(source: str) -> bool:
  """Whether a teacher of this `teacher.source` has weights. Other teachers have only predictions."""
  return source in (TRAINED, WORKDIR)


def sources(config: ConfigDict) -> dict[str, tuple[str, str | None]]:
  """{prefix: (source, path)} of the teachers that are not trained here.

  The prefix is how the names of their fields begin: 'teacher.' for the teacher, 'teacher.independent_' for
  the independent teacher, which is left out if there is no independent student.
  """
  section = config.teacher
  found = {'teacher.': (section.source, section.path)}
  if config.evaluation.independent_seed is not None:
    found['teacher.independent_'] = section.independent_source, section.independent_path
  return {prefix: pair for prefix, pair in found.items() if pair[0] != TRAINED}


def is_optional(config: ConfigDict, field: str) -> bool:
  """Whether a field may be None. base.py makes these fields references, which know their type."""
  *parents, name = field.split('.')
  for parent in parents:
    config = config[parent]
  return isinstance(dict(config.items(preserve_field_references=True))[name], FieldReference)


def is_free(field: str) -> bool:
  """Whether a section takes any fields: the options of a user's model or of a loss."""
  return field.rpartition('.')[2] in FREE


def leaves(section: ConfigDict, prefix: str = '') -> dict[str, Any]:
  """The values of all fields by dotted name. A free section is one field with a dict."""
  found = {}
  for name, value in section.items():
    if is_free(name):
      found[f'{prefix}{name}'] = value.to_dict() if isinstance(value, ConfigDict) else value
    elif isinstance(value, ConfigDict):
      found |= leaves(value, f'{prefix}{name}.')
    else:
      found[f'{prefix}{name}'] = value
  return found


def without(section: ConfigDict, *fields: str) -> dict[str, Any]:
  """A section as a dict, without some fields."""
  return {name: value for name, value in section.to_dict().items() if name not in fields}
