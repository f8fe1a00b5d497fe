"""All checks of a config: the rules of `config/rules.py`, and checks across fields, code and data.

A problem is one line with the field, its value and what is allowed. All problems are raised at once, before
anything runs.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
from ml_collections import ConfigDict

from kdjax import data, losses, models
from kdjax.config import data_checks, fields, fingerprints, loss_checks, teacher_source, user_code
from kdjax.config.rules import RULES, passes
from kdjax.errors import ConfigError, UserError
from kdjax.predictions.encodings import TOP_K
from kdjax.runtime import files, hosts


def check(
  config: ConfigDict, num_devices: int, problems: Sequence[str] = (), prepare: bool = True
) -> None:
  """Raises ConfigError with every problem of the config.

  The data set is looked up, but no input is read.

  Args:
    num_devices: on all hosts.
    problems: lines that come first, such as those of `config.load`.
    prepare: whether to download and prepare the data set where needed, once all else is right.
  """
  leaves = fields.leaves(config)
  incomplete = [*_wrong_fields(leaves), *_missing_values(config, leaves)]
  problems = [*problems, *incomplete, *_field_problems(leaves)]
  if incomplete or not files.is_reachable(config.dataset.data_dir or ''):
    raise ConfigError(*problems)  # the next checks need all fields
  problems += [*_joint_problems(config), *_device_problems(config, num_devices)]
  if unknown := [*user_code.missing(config)]:
    raise ConfigError(*problems, *unknown)
  try:
    description = data.describe(config.dataset, prepare=prepare and not problems)
  except UserError as error:
    problems.append(str(error))
  else:
    problems += data_checks.problems(config, description)
    if not problems:  # these checks build the models
      problems += user_code.problems(config, description)
      problems += teacher_source.content_problems(config, description)
    if not problems:
      problems += loss_checks.top_k_problems(config, description)
      problems += loss_checks.feature_problems(config, description)
  if problems:
    raise ConfigError(*problems)


def check_sweep(configs: Sequence[ConfigDict], num_devices: int, problems: Sequence[str]) -> None:
  """Raises ConfigError with the problems of all runs of a sweep, each after the first run that has it."""
  found = dict.fromkeys(problems)
  for index, config in enumerate(configs):
    try:
      check(config, num_devices, list(found))
    except ConfigError as error:
      for problem in error.problems:
        found.setdefault(problem, index)
  for problem, index in _replaced_results(configs) if not found else ():
    found.setdefault(problem, index)
  if found:
    raise ConfigError(
      *(text if index is None else f'run {index}: {text}' for text, index in found.items())
    )


def _replaced_results(configs: Sequence[ConfigDict]) -> Iterator[tuple[str, int]]:
  """A (line, run) for each run that would evaluate the student of an earlier run with other settings.

  A student has one result, so the earlier one would be lost.
  """
  earlier: dict[str, tuple[int, ConfigDict]] = {}
  for index, config in enumerate(configs):
    first, other = earlier.setdefault(fingerprints.student_fingerprint(config), (index, config))
    for name, value in config.evaluation.items():
      if name != 'batch_size' and value != other.evaluation[name]:
        yield (
          f'evaluation.{name} = {value!r}: would replace the result of run {first}, which is of the same '
          f'student with {other.evaluation[name]!r}; allowed: one value for a student, or a sweep and a '
          '--workdir for each value',
          index,
        )


def _wrong_fields(leaves: Mapping[str, Any]) -> Iterator[str]:
  """A line for each missing or unknown field of a config that does not come from base.py or adds to it."""
  for field in sorted(RULES.keys() - leaves.keys()):
    yield f'{field}: missing; make the config with kdjax.config.base.get_config and change it'
  for field in sorted(leaves.keys() - RULES.keys()):
    yield f'{field} = {leaves[field]!r}: no such field; see kdjax/config/base.py'


def _missing_values(config: ConfigDict, leaves: Mapping[str, Any]) -> Iterator[str]:
  for field, value in leaves.items():
    if value is None and field in RULES and not fields.is_optional(config, field):
      yield f'{field} = None: not optional; allowed: {RULES[field][1]}'


def _field_problems(leaves: Mapping[str, Any]) -> Iterator[str]:
  for field, (test, allowed) in RULES.items():
    if leaves.get(field) is not None and not passes(test, leaves[field]):
      yield f'{field} = {leaves[field]!r}: allowed: {allowed}'


def _joint_problems(config: ConfigDict) -> Iterator[str]:
  for name in ('teacher', 'student'):
    given = {d: config[name][d] for d in fields.DURATIONS if config[name][d] is not None}
    if len(given) != 1:
      shown = ', '.join(f'{d} = {value}' for d, value in given.items()) or 'none of them'
      yield f'{name}.{"/".join(fields.DURATIONS)}: {shown}; allowed: exactly one, the others None'
  yield from _unread_problems(config)
  yield from _student_problems(config)
  yield from _distillation_problems(config)
  yield from teacher_source.problems(config)
  other = config.evaluation.independent_seed
  if other is not None and other in (config.seed, fields.student_seed(config)):
    yield (
      f'evaluation.independent_seed = {other}: the same as seed or student.seed, so not independent; '
      'allowed: any other, or None'
    )


def _unread_problems(config: ConfigDict) -> Iterator[str]:
  """A line for each field of a model that the model does not read."""
  names = [fields.student_model(config).name, config.model.name]
  of_student, of_teacher = map(models.fields_read, names)
  if of_student is None or of_teacher is None:  # an unknown model, which another check reports
    return
  for field, section, name, read in (
    ('model', config.model, names[1], of_teacher),
    ('student.model', config.student.model, names[0], of_student),
  ):
    options = section.options.to_dict()
    if options and 'options' not in read:
      yield (
        f'{field}.options = {options!r}: {name} has no options; allowed: {{}}, and the fields '
        f'{", ".join(sorted(read)) or "of no model"}'
      )
  for field in ('depth', 'width', 'norm', 'shortcut'):
    value = config.student.model[field]
    if value is not None and field not in of_student:
      yield f'student.model.{field} = {value!r}: {names[0]} has no {field}; allowed: None'
  for field, default in (('norm', 'batch'), ('shortcut', 'activated')):
    value = config.model[field]
    if value != default and field not in of_student | of_teacher:
      yield f'model.{field} = {value!r}: {names[1]} has no {field} to choose; allowed: {default!r}, the default'


def _student_problems(config: ConfigDict) -> Iterator[str]:
  student = config.student
  has_weights = fields.has_weights(config.teacher.source)  # otherwise `teacher_source` reports it
  if student.init_lambda > 0 and has_weights and not fields.shares_weight_space(config):
    yield (
      f'student.init_lambda = {student.init_lambda}: mixes the weights of teacher and student; '
      'allowed: 0, or a student.model that equals model, except in dtype'
    )
  if student.init_from == 'initial' and student.init_lambda == 0:
    yield (
      "student.init_from = 'initial': has no effect at student.init_lambda = 0, a random start; allowed: "
      "'final', or student.init_lambda > 0 (1 starts at the member's initial weights)"
    )
  loss = losses.LOSSES.get(student.loss)
  if student.final_temperature is not None and loss and not loss.uses_temperature:
    yield (
      f'student.final_temperature = {student.final_temperature}: the loss {student.loss} has no '
      'temperature; allowed: None'
    )
  noise = config.augmentation.noise_probability * ('noise' in config.predictions.augmentation)
  if student.alpha > 0 and (noise == 1 or config.predictions.examples == (0, 0)):
    yield f'student.alpha = {student.alpha}: no example has a label; allowed: 0'
  if student.alpha > 0 and 'mixup' in config.predictions.augmentation:
    yield (
      f"student.alpha = {student.alpha}: with 'mixup' in predictions.augmentation, an image has no single "
      'true label; allowed: 0'
    )


def _distillation_problems(config: ConfigDict) -> Iterator[str]:
  predictions = config.predictions
  if predictions.extra and predictions.num_extra is None:
    yield f'predictions.num_extra = None: predictions.extra = {predictions.extra!r} needs it; allowed: a number'
  if not predictions.extra and predictions.num_extra is not None:
    yield (
      f'predictions.num_extra = {predictions.num_extra}: has no effect without predictions.extra; allowed: '
      'None'
    )
  if predictions.dtype == TOP_K and predictions.top_k is None:
    yield "predictions.top_k = None: predictions.dtype = 'top_k' needs it; allowed: a number of classes"
  if predictions.dtype != TOP_K and predictions.top_k is not None:
    yield (
      f'predictions.top_k = {predictions.top_k}: has no effect with predictions.dtype = '
      f"{predictions.dtype!r}; allowed: None, or predictions.dtype = 'top_k'"
    )
  if predictions.examples == (0, 0) and not predictions.extra:
    yield (
      'predictions.examples = (0, 0): leaves nothing to distil on without predictions.extra; allowed: () '
      'for all, or a part'
    )
  if predictions.extra == 'gan' and (predictions.num_extra or 0) > config.gan.num_samples:
    yield (
      f'predictions.num_extra = {predictions.num_extra}: allowed: at most the gan.num_samples = '
      f'{config.gan.num_samples} images of the GAN'
    )


def _device_problems(config: ConfigDict, num_devices: int) -> Iterator[str]:
  sections = ['teacher', 'student', 'evaluation']
  for section in sections + ['gan'] * fields.needs_gan(config):
    size = config[section].batch_size
    if size % num_devices:
      yield f'{section}.batch_size = {size}: allowed: a multiple of the {num_devices} devices'
  sections = {'model': config.model, 'student.model': fields.student_model(config)}
  wrong = [field for field, section in sections.items() if models.is_miscomputed(section)]
  if wrong:
    yield (
      f"{wrong[0]}.dtype = 'bfloat16': on a CPU, XLA of JAX {jax.__version__} computes VGG-16 wrongly in "
      "bfloat16; allowed: 'float32'"
    )
  if config.teacher.members_in_parallel and hosts.count() > 1:
    yield (
      f'teacher.members_in_parallel = True: {hosts.count()} hosts train each member together; allowed: False'
    )
