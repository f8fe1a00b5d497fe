"""Distillation from Python: `kdjax.distil`, `kdjax.make_config` and `kdjax.views`; see docs/extending.md.

They run the stages of `launch.py`, with the same store, checks and resuming. Errors are those of
`kdjax.errors`, with the text that `launch.py` prints. Axes: M member, V view, N example, B batch, C class, H W
C image.
"""

import functools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from etils import epath
from ml_collections import ConfigDict

from kdjax import config as config_lib
from kdjax import data, models
from kdjax.config import code, validation
from kdjax.config.objects import Objects
from kdjax.data import arrays
from kdjax.errors import ConfigError, MissingInputError, UserError
from kdjax.interface.opened import Result, Student
from kdjax.predictions import imported
from kdjax.runtime import compiler, files, plugins, progress
from kdjax.stages import evaluation, pipeline
from kdjax.stages.experiment import Experiment
from kdjax.train import trackers as trackers_lib
from kdjax.train.checkpoint import digest

PARTS = ('num_train', 'num_val', 'num_test')  # fields that choose examples of the data

Pair = tuple[Any, Any]  # inputs (N, ...) and labels (N,)


def distil(
  *,
  student: nn.Module | str,
  teacher: Any,
  train: Pair | None = None,
  test: Pair | None = None,
  val: Pair | None = None,
  class_names: Sequence[str] | None = None,
  workdir: epath.PathLike,
  num_epochs: int | None = None,
  config: Mapping[str, Any] | None = None,
  trackers: Sequence[str] = (),
) -> Result:
  """Trains teachers and a student, and measures the student's fidelity to them.

  All stages run in the workdir. Complete stages are skipped, and an interrupted call resumes.

    >>> import kdjax
    >>> result = kdjax.distil(
    ...   student=Net(num_classes=10), teacher='resnet', train=(x, y), test=(x_test, y_test),
    ...   workdir='runs/mine', num_epochs=30, config={'student.temperature': 1})  # doctest: +SKIP
    >>> result['splits']['test']['fidelity']['top1_agreement']  # doctest: +SKIP

  Args:
    student: a linen module (x, train) → logits_BC in float32 or (logits_BC, features); a built-in name such as
      'resnet'; or 'module:class'.
    teacher: one of three. An architecture, given as `student` is, which is trained as an ensemble of
      `teacher.num_members` (1). A function images_BHWC → logits_BC of float32 images in [−1, 1], or a list of
      functions as members. Logits by split, {'train': ..., 'test': ...}, of shape (N, C), (M, N, C) or (M, V,
      N, C); with augmentation also 'distillation', for the views of `kdjax.views`.
    train, test, val: (inputs, labels), which are copied to the workdir. Inputs are arrays (N, ...), uint8 or
      floating point in [−1, 1]. Built-in models need (N, H, W, C); your own modules take any shape, such as
      (N, F). Labels are 0, 1, ... Without train and test, `config` names the data.
    class_names: the names of the classes, by label.
    workdir: where everything is written.
    num_epochs: of teachers and student; by default 200 and 300.
    config: fields of kdjax/config/base.py by dotted name; callables are named automatically. The defaults are
      those of base.py, but with one teacher, no augmentation and one view.
    trackers: any of 'wandb', 'mlflow' and 'trackio'; they get trainings and results, as TensorBoard does.

  Returns: the content of result.json.

  Raises:
    ConfigError: an argument or field is wrong; nothing was run.
    UserError: any error that `launch.py` prints without a traceback.
  """
  if problems := trackers_lib.problems(trackers, 'trackers'):
    raise ConfigError(*problems)
  made = make_config(
    student=student,
    teacher=teacher,
    train=train,
    test=test,
    val=val,
    class_names=class_names,
    workdir=workdir,
    num_epochs=num_epochs,
    config=config,
  )
  _require_right()
  if not progress.logger.handlers:
    progress.setup_logging()
  experiment = pipeline.run(made, _folder(workdir), list(pipeline.STAGES), trackers)
  return Result(evaluation.result(experiment), Student(experiment.folders.student))


def make_config(
  *,
  student: nn.Module | str,
  teacher: Any,
  workdir: epath.PathLike,
  train: Pair | None = None,
  test: Pair | None = None,
  val: Pair | None = None,
  class_names: Sequence[str] | None = None,
  num_epochs: int | None = None,
  config: Mapping[str, Any] | None = None,
) -> ConfigDict:
  """The checked config that `distil` runs with these arguments. Writes the data and logits to the workdir.

  Raises:
    ConfigError: an argument or field is wrong.
  """
  _forget()
  workdir, names = _folder(workdir), Objects()
  given = {name: _named(value, names) for name, value in (config or {}).items()}
  values: dict[str, Any] = {
    'teacher.num_members': 1,
    'teacher.augmentation': (),
    'predictions.augmentation': (),
  }
  if num_epochs is not None:
    values |= {'teacher.num_epochs': num_epochs, 'student.num_epochs': num_epochs}
  if (train is None) != (test is None) or (train is None and 'dataset.name' not in given):
    raise ConfigError("train, test: allowed: both, or neither with config={'dataset.name': ...}")
  if train is not None:
    splits = {'train': train, 'test': test} | ({} if val is None else {'val': val})
    values |= _written_data(splits, class_names, workdir)
  values |= _models(student, teacher, names)
  is_from_elsewhere = 'teacher.source' in values or isinstance(teacher, Mapping)
  if is_from_elsewhere and 'teacher.independent_source' not in given:
    values['evaluation.independent_seed'] = None  # no independent teacher can be trained
  values |= given
  if 'predictions.num_views' not in values:  # without augmentation, all views are the same
    if not values['predictions.augmentation']:
      values['predictions.num_views'] = 1
    elif values.get('student.num_epochs') is not None:
      values['predictions.num_views'] = values['student.num_epochs']
  made = _checked(values)
  if isinstance(teacher, Mapping):
    wrong = [f'dataset.{name}' for name in PARTS if given.get(f'dataset.{name}')]
    if wrong:
      raise ConfigError(
        f'{", ".join(wrong)}: allowed with logits: none; give the examples that are used'
      )
    made = _checked(values | _written_logits(teacher, made, workdir) | given)
  _require_same_modules(made, {'model': teacher, 'student.model': student})
  return made


def _forget() -> None:
  """Forgets what was read of data and code, which may have changed in a session."""
  data.forget()
  code.forget()


def _checked(values: Mapping[str, Any]) -> ConfigDict:
  made, problems = config_lib.from_values(values)
  validation.check(made, jax.device_count(), problems)
  return made


def _folder(workdir: epath.PathLike) -> epath.Path:
  if not files.is_reachable(str(workdir)):
    raise ConfigError(f'workdir = {str(workdir)!r}: {files.NEEDS_CLOUD}')
  folder = epath.Path(workdir).expanduser()
  return folder if folder.is_absolute() else folder.absolute()


def _named(value: Any, names: Objects) -> Any:
  """The value, with callables replaced by their names."""
  if isinstance(value, list | tuple):
    return tuple(_named(one, names) for one in value)
  return names.name(value) if callable(value) else value


def _models(student: Any, teacher: Any, names: Objects) -> dict[str, Any]:
  """The fields of the models and of the teacher's source."""
  own = _model(student, 'student', names)
  is_model = isinstance(teacher, nn.Module | str)
  of_teacher = _model(teacher, 'teacher', names) if is_model else own
  if own['name'] == of_teacher['name'] and isinstance(student, nn.Module):
    # In a config, a student inherits options that it does not set. So all of this module's are set.
    inherited = of_teacher['options'].keys() - own['options'].keys()
    own['options'] |= {name: getattr(student, name) for name in inherited}
  found = {f'model.{key}': value for key, value in of_teacher.items()}
  found |= {f'student.model.{key}': value for key, value in own.items()}
  return found if is_model or isinstance(teacher, Mapping) else found | _source(teacher, names)


def _model(model: Any, role: str, names: Objects) -> dict[str, Any]:
  """The fields of a `model` section."""
  if isinstance(model, nn.Module) and model.scope is not None:
    raise ConfigError(
      f'{role}: a bound module, whose weights would not be used; for a trained teacher give a function images → logits'
    )
  if isinstance(model, nn.Module):
    return names.model(model)
  if isinstance(model, str):
    return {'name': model, 'options': {}}
  raise ConfigError(
    f'{role} = {model!r}: allowed: a linen module, one of {", ".join(models.MODELS)}, or {plugins.FORM}'
  )


def _source(teacher: Any, names: Objects) -> dict[str, Any]:
  """The fields of a teacher that is a function or a list of functions."""
  is_list = isinstance(teacher, list | tuple) and teacher and all(map(callable, teacher))
  if not is_list and not callable(teacher):
    raise ConfigError(
      f'teacher = {type(teacher).__name__}: allowed: a linen module, a name, a function images_BHWC → '
      'logits_BC, a list of these, or logits by split'
    )
  source, num_members = names.name(teacher), len(teacher) if is_list else 1
  return {'teacher.source': source, 'teacher.num_members': num_members}


def _written_logits(
  logits: Mapping[str, Any], made: ConfigDict, workdir: epath.Path
) -> dict[str, Any]:
  """Writes the logits of a teacher with the ids of their examples; returns the fields that name the file.

  Args:
    made: the config without these fields.
  """
  inputs, section = Experiment(made, workdir).data.inputs, made.predictions
  if 'train' in logits and not (section.augmentation or section.examples or section.extra):
    logits = {'distillation': logits['train'], **logits}
  if logits.keys() != inputs.keys():
    raise ConfigError(f'teacher: has logits of {", ".join(logits)}; needed: {", ".join(inputs)}')
  found = {}
  for split, values in logits.items():
    array = np.asarray(values, np.float32)
    if array.ndim not in (2, 3, 4):
      raise ConfigError(
        f'teacher[{split!r}]: has the shape {array.shape}; allowed: (examples, classes), '
        '(members, examples, classes) or (members, views, examples, classes)'
      )
    array = array[None] if array.ndim == 2 else array
    found[split] = array[:, None] if array.ndim == 3 else array
  num_members, *others = sorted({len(array) for array in found.values()})
  if others:
    raise ConfigError(
      f'teacher: has logits of {num_members} and {others[0]} members; needed: one number'
    )
  path = (
    workdir / 'teacher' / f'{config_lib.predictions_fingerprint(made)}_{digest(found)[:12]}.npz'
  )
  if not path.exists():
    imported.write(path, found, inputs)
  return {
    'teacher.source': 'file',
    'teacher.path': path.as_posix(),
    'teacher.num_members': num_members,
  }


def _written_data(
  splits: Mapping[str, Pair], class_names: Sequence[str] | None, workdir: epath.Path
) -> dict[str, Any]:
  """Writes the data to an .npz file unless it exists; returns the fields that name the file."""
  names = {} if class_names is None else {'class_names': list(class_names)}
  try:
    source = arrays.Arrays(arrays.NAME, {**splits, **names}, 'train, test, val')
    found = {'class_names': np.array(source.class_names)}
    for split in splits:
      inputs, labels = source.fetch(split, np.arange(source.size(split)))
      found |= {f'x_{split}': inputs, f'y_{split}': labels}
  except ConfigError:
    raise
  except UserError as error:
    raise ConfigError(str(error)) from error
  path = workdir / 'data' / f'{digest(found)[:12]}.npz'
  if not path.exists():
    files.write_arrays(path, found)
  return {'dataset.name': arrays.NAME, 'dataset.path': path.as_posix()}


def _require_same_modules(made: ConfigDict, given: Mapping[str, Any]) -> None:
  """Raises ConfigError if the data and the config need a module with other fields, such as `num_classes`."""
  description = Experiment(made, epath.Path('.')).data.description
  sections = {'model': made.model, 'student.model': config_lib.student_model(made)}
  problems = []
  for field, module in given.items():
    if isinstance(module, nn.Module):
      arguments = description.num_classes, description.vocabulary_size
      built = models.own_module(models.build(sections[field], *arguments, field=field))
      if differences := _differences(built, module):
        role = 'student' if field == 'student.model' else 'teacher'
        problems.append(
          f'{role} = {type(module).__name__}(...): the data and the config need {differences}'
        )
  if problems:
    raise ConfigError(*problems)


def _differences(needed: nn.Module, module: nn.Module) -> str:
  fields = [name for name in type(module).__dataclass_fields__ if name not in ('parent', 'name')]
  pairs = [(name, getattr(needed, name), getattr(module, name)) for name in fields]
  return ', '.join(f'{name} = {a!r}, not {b!r}' for name, a, b in pairs if a != b)


@functools.cache
def _require_right() -> None:
  compiler.require_right(insist=False)


def views(
  config: ConfigDict | str, workdir: epath.PathLike | None = None
) -> Iterator[tuple[int, np.ndarray, np.ndarray, np.ndarray]]:
  """Yields batches of the distillation data as teachers and students see them, view by view, examples in order.

  If you have your own teacher, compute its logits for these images in this order, and give them to `distil` as
  `teacher={'distillation': logits_MVNC, ...}`.

  Args:
    config: of `make_config` or `kdjax.open(workdir)[0].config`, or the name of a config file such as
      'configs/cifar_resnet.py:smoke'.
    workdir: the workdir of the GAN, if the distillation data has images of one.

  Yields: (view, indices_B, images_BHWC, labels_B): the number of the view; the numbers of up to
    `evaluation.batch_size` examples; float32 in [−1, 1]; labels, −1 for none.

  Raises:
    ConfigError: the config is wrong.
    MissingInputError: images of a GAN are needed, and `workdir` is None.
  """
  _forget()
  problems: list[str] = []
  if isinstance(config, str):
    config, problems = config_lib.load(config)
  validation.check(config, jax.device_count(), problems)
  if config_lib.needs_gan(config) and workdir is None:
    raise MissingInputError(
      'views: the distillation data has images of a GAN; give the workdir in which the GAN was trained'
    )
  experiment = Experiment(config, _folder(workdir or '.'))
  inputs = experiment.data.inputs['distillation']
  return (
    (view, *seen)
    for view in range(config.predictions.num_views)
    for seen in experiment.predictor.views(inputs, view)
  )
