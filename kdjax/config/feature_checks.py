"""Checks of the features of teacher and student, which are made of their shapes alone."""

import math
from collections.abc import Iterator, Mapping

import jax
from ml_collections import ConfigDict

from kdjax import data, losses, models
from kdjax.config import fields, user_code

Shapes = Mapping[str, jax.ShapeDtypeStruct]
STORED_BYTES = 2  # of a value, as of a log-probability in float16
SHOWN_MEMBERS = 2  # whose random features a loss is shown


def problems(config: ConfigDict, description: data.Description) -> Iterator[str]:
  """A line for each field that names or needs features that there are not.

  The models, the loss and the source of the teacher are right by themselves.
  """
  yield from _cka_problems(config, description)
  loss = losses.find(config.student.loss)
  if {'student_features', 'teacher_features'} & set(loss.needs):
    yield from _loss_problems(config, description, loss)


def _shapes(config: ConfigDict, description: data.Description) -> dict[str, Shapes]:
  """The shapes of the features of two examples, of the 'student' and the 'teacher'."""
  sections = {'student': fields.student_model(config), 'teacher': config.model}
  dtype = 'float32' if description.vocabulary_size is None else 'int32'
  return {
    role: models.feature_shapes(
      models.build(section, description.num_classes, description.vocabulary_size),
      description.input_shape,
      dtype,
    )
    for role, section in sections.items()
  }


def _cka_problems(config: ConfigDict, description: data.Description) -> Iterator[str]:
  """Whether teacher and student have features whose CKA can be evaluated."""
  names = config.model.name, fields.student_model(config).name
  is_known = len(set(names)) == 1 and names[0] in models.MODELS
  if not config.evaluation.num_cka_examples or is_known:
    return
  shapes = _shapes(config, description)
  if not shapes['teacher'].keys() & shapes['student'].keys():
    yield (
      f'evaluation.num_cka_examples = {config.evaluation.num_cka_examples}: {names[0]} has the features '
      f'{_listed(shapes["teacher"])}, and {names[1]} {_listed(shapes["student"])}: none in common; '
      'allowed: 0'
    )


def _loss_problems(
  config: ConfigDict, description: data.Description, loss: losses.Loss
) -> Iterator[str]:
  """Whether a loss on features has them."""
  shapes, section = _shapes(config, description), config.student
  listed = '; '.join(f'features of the {role}: {_listed(of)}' for role, of in shapes.items())
  found = []
  chosen = loss.options | section.loss_options.to_dict()
  for role, of_role in shapes.items():
    option = f'{role}_feature'
    if option in chosen and chosen[option] not in list(of_role):
      found.append(
        f'student.loss_options.{option} = {chosen[option]!r}: the {role} has no such feature; allowed: '
        f'{_listed(of_role)} ({listed})'
      )
    found += [
      f'student.loss = {section.loss!r}: the feature {name!r} of the {role} has the shape {of.shape} for '
      'two examples; needed: an array with the examples first'
      for name, of in of_role.items()
      if of.shape[:1] != (2,)
    ]
  if 'teacher_features' in loss.needs and config.predictions.mode == 'stored':
    found.append(_needs_members(config, description, shapes['teacher'], chosen))
  if not found:
    num_members = min(config.teacher.num_members, SHOWN_MEMBERS)
    needed = {
      'student_features': shapes['student'],
      'teacher_features': jax.tree.map(
        lambda x: jax.ShapeDtypeStruct((2, num_members, *x.shape[1:]), x.dtype), shapes['teacher']
      ),
    }
    needed = {name: needed[name] for name in loss.needs if name in needed}
    found = [f'{text}; {listed}' for text in user_code.loss_problems(config, description, **needed)]
  yield from found


def _needs_members(
  config: ConfigDict, description: data.Description, shapes: Shapes, chosen: Mapping[str, object]
) -> str:
  """The problem that the store has no features, with the bytes that they would take."""
  predictions, num_members = config.predictions, config.teacher.num_members
  size = data.split_sizes(config.dataset, description)['train']
  size = data.part_size(size, predictions.examples) + fields.num_extra(config)
  named = chosen.get('teacher_feature')
  stored = {named: shapes[named]} if named in list(shapes) else shapes
  num_values = sum(math.prod(of.shape[1:]) for of in stored.values())
  num_bytes = predictions.num_views * size * num_members * num_values * STORED_BYTES
  return (
    f"predictions.mode = 'stored': the store has no features, and student.loss = {config.student.loss!r} "
    f"needs those of the teacher; allowed: 'online', which runs the members beside the student. Storing "
    f'{_listed(stored)} would take {num_bytes:,} bytes: {predictions.num_views} views x {size} examples x '
    f'{num_members} members x {num_values} values x {STORED_BYTES} bytes'
  )


def _listed(shapes: Shapes) -> str:
  return ', '.join(shapes) or 'none'
