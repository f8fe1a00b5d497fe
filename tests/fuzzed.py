"""The draws of test_fuzz.py, and the tracing of accepted configs, which computes nothing."""

import contextlib
import json
import math
import pathlib
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import numpy as np
import pytest
from etils import epath
from hypothesis import strategies as st
from ml_collections import ConfigDict
from tiny_data import TEXT, image_feature, label_feature, write_tfds

from kdjax import config as config_lib
from kdjax import data, losses, models
from kdjax.data import tfds_sets, views
from kdjax.models import resnet, resnet50
from kdjax.predictions import encodings
from kdjax.stages import gan, predictions, student, teachers
from kdjax.stages.datasets import Data
from kdjax.stages.experiment import Experiment
from kdjax.stages.provenance import Provenance
from kdjax.stages.stage import Stage
from kdjax.train import devices, loop, optimizers, steps

# The TFDS sets that the experiments name: shape (None for texts), classes, and sizes.
SETS = {
  'mnist/3.0.1': ((28, 28, 1), 10, {'train': 60_000, 'test': 10_000}),
  'emnist/byclass/3.1.0': ((28, 28, 1), 62, {'train': 697_932, 'test': 116_323}),
  'cifar10/3.0.2': ((32, 32, 3), 10, {'train': 50_000, 'test': 10_000}),
  'cifar100/3.0.2': ((32, 32, 3), 100, {'train': 50_000, 'test': 10_000}),
  'svhn_cropped/3.1.0': ((32, 32, 3), 10, {'train': 73_257, 'test': 26_032, 'extra': 531_131}),
  'imagenet2012/5.1.0': ((-1, -1, 3), 1000, {'train': 1_281_167, 'validation': 50_000}),
  'imdb_reviews/plain_text/1.0.0': (
    None,
    2,
    {'train': 25_000, 'test': 25_000, 'unsupervised': 50_000},
  ),
}
NUM_WORDS, MOST_FREQUENT = 99, 1000  # of the vocabulary of the reviews


def write_sets(place: pathlib.Path) -> None:
  """Writes the sets in the layout of TFDS, with their sizes but without examples."""
  for name, (shape, num_classes, sizes) in SETS.items():
    inputs = {'text': TEXT} if shape is None else {'image': image_feature(*shape)}
    features = inputs | {'label': label_feature(num_classes)}
    set_name, _, version = name.rpartition('/')
    write_tfds(place, features, sizes, set_name, version, class_names=None)


# Drawing.

_NAMES = sorted(
  {
    *models.MODELS,
    *models.NORMS,
    *optimizers.OPTIMIZERS,
    *losses.LOSSES,
    *encodings.DTYPES,
    *encodings.ESTIMATORS,
    *views.NAMES,
    *(name.rpartition('/')[0] for name in SETS),
    *('digits', 'folder', 'gan', 'stored', 'online', 'top_k', 'initial', 'final'),
  }
)
_STRINGS = [
  *('', ' ', 'Resnet', 'τ', 'no such', '..', '/no/such', './no', '~nobody/x', '/dev/null', 'x://'),
  *('gs://no/such', 's3://no/such', 'http://no/such', 'file:///no', 'kaggle:x', 'a/b/c'),
  *('no_such_module:x', 'kdjax.losses:brier', 'kdjax.losses:LOSSES', 'builtins:dict'),
  *('mnist:9.9.9', 'mnist/config', 'mnist:1.*.*', 'mnist/a=1'),
]
_INTEGERS = [
  *(-(10**9), -1, 0, 1, 2, 3, 5, 8, 14, 31, 56, 100, 1000, 49_999, 60_001, 10**6, 2**20, 10**8),
  *(2**31 - 1, 2**31, 10**9, 10**9 + 1, 10**12, 2**63),
]
_FLOATS = [
  *(-1.0, -0.0, 0.0, 1e-300, 1e-46, 1e-6, 0.01, 0.3, 0.5, 1 - 1e-9, 1.0, 1.5, 2.5, 90.0, 180.5),
  *(300.0, 1001.0, 1e9, 1e38, 1e39, 1e300, 1.7e308, math.inf, -math.inf, math.nan),
]
_OTHERS = [None, True, False, 1j, b'x', ['crop'], {'a': 1}, {1}]
_AUGMENTATIONS = st.lists(st.sampled_from([*views.NAMES, 'shear', 1]), max_size=4).map(tuple)
_NUMBERS = st.lists(st.sampled_from([*_INTEGERS, *_FLOATS, True]), max_size=3).map(tuple)
_TUPLES = [
  *(('crop', 'crop'), ('',), (None,), ((),), ('a', 'b'), (0, 10), (0, 60_000), (1000, 2000)),
  *((10, 0), (0, 1.5), (False, True), (0.0, 0.999), (0.5, '0.5'), ((0, 1), (2, 3))),
]
_OF_TYPE = {
  bool: st.booleans(),
  int: st.sampled_from(_INTEGERS),
  float: st.sampled_from(_FLOATS),
  str: st.sampled_from(_STRINGS) | st.sampled_from(_NAMES),
  tuple: st.sampled_from(_TUPLES) | _AUGMENTATIONS | _NUMBERS,
  ConfigDict: st.sampled_from([{}, {'width': 8}, {'beta': None}, {'a': {'b': (1, 2)}}, {1: 2}]),
}
_ANY = st.one_of(*_OF_TYPE.values(), st.sampled_from(_OTHERS))
# Texts that a shell may pass, but `repr` never gives.
_TEXTS = [
  *(None, '', '(', "'", '{[1]: 2}', '2**3', 'nan', '1e999', '-0', '1_000', ' 1', '1 2', '1,'),
  *('τ=1', 'None', 'lambda: 0', "__import__('os')"),
]


def values_of(configs: dict[str, ConfigDict]) -> dict[str, list]:
  """The true values of each field in the configs, without repetitions."""
  all_leaves = [config_lib.leaves(config) for config in configs.values()]
  return {
    field: list({repr(v): v for leaves in all_leaves if (v := leaves[field])}.values())
    for field in all_leaves[0]
  }


@st.composite
def values(draw: st.DrawFn, config: ConfigDict, field: str, shipped: list) -> Any:
  """A right or wrong value for a field: of an experiment, of the field's type, or any."""
  *parents, name = field.split('.')
  section = config
  for parent in parents:
    section = section[parent]
  of_type = _OF_TYPE[section.get_type(name)]
  # `one_of` would prefer the strategy with most parts.
  choices = [st.sampled_from([None, *shipped]), of_type, of_type, of_type, _ANY]
  return draw(choices[draw(st.integers(0, len(choices) - 1))])


@st.composite
def overrides(
  draw: st.DrawFn, configs: dict[str, ConfigDict], shipped: dict[str, list]
) -> tuple[str, dict]:
  """The name of a config, and texts for one to three of its fields, some of which are misspelt."""
  spec = draw(st.sampled_from(sorted(configs)))
  names = st.sampled_from(sorted(shipped))
  misspelt = draw(st.integers(0, 7)) == 0
  found = {}
  count = draw(st.sampled_from([1, 1, 2, 3]))
  for field in draw(st.lists(names, min_size=count, max_size=count, unique=True)):
    value = draw(values(configs[spec], field, shipped[field]))
    text = value if isinstance(value, str) else repr(value)
    if misspelt:
      place = draw(st.integers(0, len(field) - 1))
      field = field[:place] + draw(st.sampled_from(['', '.', 'x', '=', 'τ'])) + field[place + 1 :]
    found[field] = draw(st.sampled_from(_TEXTS)) if draw(st.integers(0, 7)) == 0 else text
  return spec, found


# Building.


class _Traced(Exception):
  """Ends a stage after its steps are traced."""


def patch(monkeypatch: pytest.MonkeyPatch) -> None:
  """Makes the stages read no data, and only trace the steps of their trainings."""

  def zeros(shape, dtype):
    return np.broadcast_to(np.zeros((), dtype), shape)

  def load(section):
    description = data.describe(section)
    dtype = np.uint8 if description.vocabulary_size is None else np.int32
    sizes = data.split_sizes(section, description)
    return {
      name: data.Split(zeros((n, *description.input_shape), dtype), zeros((n,), np.int32))
      for name, n in sizes.items()
    }

  def load_extra(name, section, input_shape, count=None):
    size = data.extra_size(name, section) if count is None else count
    return zeros((size, *input_shape), np.uint8 if len(input_shape) == 3 else np.int32)

  def gan_samples(data, count=None):
    return zeros((count or data._config.gan.num_samples, *data.description.input_shape), np.uint8)

  def fit(folder, name, plan, like, step, inputs, multi_step=None, **_):
    batches = inputs(0)
    first = next(batches)
    after, _ = jax.eval_shape(step, like, *first)
    of = lambda state: jax.tree.map(lambda x: (x.shape, x.dtype), state)
    assert of(after) == of(like)
    if multi_step and plan.steps_per_dispatch > 1:
      _, arguments = loop._as_one_call([first, next(batches)])
      after, _ = jax.eval_shape(multi_step, like, *arguments)
      assert of(after) == of(like)
    raise _Traced

  class Teacher:
    def __init__(self, run):
      self.num_classes = run.data.description.num_classes
      self.model, self.variables = run.teacher.model, [run.teacher.abstract_state.variables]

    def members(self, name, view=0):
      return np.zeros((1, 1, self.num_classes), np.float32)

    def batch(self, name, batch):
      return np.zeros((*batch['indices'].shape, self.num_classes), np.float32)

  def vocabulary(place, feature, min_count):
    return {str(i): i for i in range(1, NUM_WORDS + 1)} if min_count <= MOST_FREQUENT else {}

  def one_block(depth):
    fitting = resnet.resnet_block(depth)
    return fitting and (fitting[0], 1)

  monkeypatch.setattr(models, 'resnet_block', one_block)
  monkeypatch.setattr(resnet50, 'BLOCKS_PER_STAGE', (1, 1))
  monkeypatch.setattr(data, 'load', load)
  monkeypatch.setattr(data, 'load_extra', load_extra)
  monkeypatch.setattr(tfds_sets, '_vocabulary', vocabulary)
  monkeypatch.setattr(loop, 'fit', fit)
  monkeypatch.setattr(loop, 'advance', fit)
  monkeypatch.setattr(predictions, 'open_teacher', Teacher)
  monkeypatch.setattr(teachers, 'load', lambda run, member: None)
  monkeypatch.setattr(Data, 'gan_samples', gan_samples)
  monkeypatch.setattr(Provenance, 'begin', lambda *args: None)
  monkeypatch.setattr(Stage, 'require', lambda *args: None)


def build(config: ConfigDict, workdir: pathlib.Path, traced: set[str]) -> None:
  """Makes plans, learning rates, folders, states and steps of a config; raises the errors of a run.

  Args:
    traced: the folders that are traced already; updated.
  """
  run = Experiment(config, epath.Path(workdir))
  json.dumps(config.to_dict())
  for role in (run.teacher, run.student):
    num_steps, rate = role.plan.num_steps, role.learning_rate
    assert all(np.isfinite(float(rate(i))) for i in (0, num_steps // 2, num_steps)), role
  for folder, trace in _traces(run).items():
    if folder not in traced:
      with contextlib.suppress(_Traced):
        trace()
      traced.add(folder)


def folders(config: ConfigDict, workdir: pathlib.Path) -> set[str]:
  """The folders whose stages `build` would trace."""
  return set(_traces(Experiment(config, epath.Path(workdir))))


def _traces(run: Experiment) -> dict[str, Callable[[], Any]]:
  """{folder: function that traces its stage}. The folder's name depends on all that the stage depends on."""
  small = Experiment(_small(run), run.workdir)
  found = {
    small.folders.member(0): lambda: teachers.STAGE.run(small),
    small.folders.student: lambda: student.STAGE.run(small),
    small.folders.predictions: lambda: _predict(small),
  }
  if config_lib.needs_gan(run.config):
    found[small.folders.gan] = lambda: gan.STAGE.run(small)
  return {str(folder): trace for folder, trace in found.items()}


def _small(run: Experiment) -> ConfigDict:
  """A config with the same steps, except for depth and numbers of examples, that are quicker to trace."""
  config = run.config.copy_and_resolve_references()
  batch_size = 4 * jax.local_device_count()  # the least for CKA
  for section, role in ((config.teacher, run.teacher), (config.student, run.student)):
    num_steps = max(role.plan.num_steps, 1)
    section.num_epochs, section.num_steps, section.num_examples = None, num_steps, None
    section.batch_size, section.warmup_epochs = batch_size, 0.0
  config.gan.batch_size = batch_size
  config.gan.num_discriminator_steps = min(config.gan.num_discriminator_steps, 2)
  config.gan.num_samples = min(config.gan.num_samples, 8)
  for name, size in run.data.sizes.items():
    config.dataset[f'num_{name}'] = min(size, 8)
  config.teacher.examples = config.predictions.examples = ()
  if config.predictions.num_extra is not None:
    config.predictions.num_extra = min(config.predictions.num_extra, 8)
  for section in (config.model, config.student.model):
    if section.depth is not None:
      section.depth = 56 if models.resnet_block(section.depth)[0] is models.BottleneckBlock else 8
  config.teacher.num_members, config.predictions.num_views = 1, 1
  config.seed, config.student.seed, config.evaluation.independent_seed = 0, None, None
  return config


def _predict(run: Experiment) -> None:
  inputs = run.data.inputs['distillation']
  batch, _ = next(inputs.evaluation(np.arange(1), 0, 2 * jax.local_device_count()))
  step = devices.parallel(partial(steps.predict_step, model=run.teacher.model, view=inputs.view))
  variables = run.teacher.abstract_state.variables
  logits = jax.eval_shape(step, variables, batch, 0)
  assert logits.shape[-1] == run.data.description.num_classes
