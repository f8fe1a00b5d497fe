"""`kdjax.distil`, the students that it makes, and `kdjax.views`."""

import importlib
import logging
import os
import pathlib
import shutil

import flax.linen as nn
import jax
import numpy as np
import pytest
from conftest import TINY
from etils import epath

import kdjax
from kdjax import config as config_lib
from kdjax import data
from kdjax.data.arrays import digits
from kdjax.errors import ConfigError, DamageError, MissingInputError
from kdjax.interface import distillation
from kdjax.runtime import files, given, progress
from kdjax.stages import finished, independent, pipeline, report, student, teachers
from kdjax.train import loop

CONFIG = {
  'evaluation.num_bootstrap': 50,
  'training.num_logs': 2,
  'training.num_evals': 1,
  'training.num_checkpoints': 1,
  'student.keep_checkpoints': (),
}


class Mlp(nn.Module):
  num_classes: int
  width: int = 8
  act: object = nn.relu

  @nn.compact
  def __call__(self, x, train):
    x = x.reshape(len(x), -1)
    return nn.Dense(self.num_classes)(self.act(nn.Dense(self.width)(x)))


def notebook_class():
  """A class that cannot be imported, with the same code each time."""

  class OfNotebook(nn.Module):
    num_classes: int

    @nn.compact
    def __call__(self, x, train):
      return nn.Dense(self.num_classes)(x.reshape(len(x), -1))

  return OfNotebook


@pytest.fixture(scope='module', autouse=True)
def quiet():
  """Keeps the logger as it is and draws no report. Yields the folders for which a report was asked."""
  drawn = []
  with pytest.MonkeyPatch.context() as patch:
    if not progress.logger.handlers:
      patch.setattr(progress.logger, 'handlers', [logging.NullHandler()])
    patch.setattr(report.page, 'write', lambda folder, *_, **__: drawn.append(folder))
    patch.setattr(report.index, 'write', lambda workdir: drawn.append(workdir))
    yield drawn


def splits(count=60):
  found = digits()
  (x, y), (x_test, y_test) = found['train'], found['test']
  return {'train': (x[:count], y[:count]), 'test': (x_test[:20], y_test[:20])}


def distil(workdir, **arguments):
  config = CONFIG | arguments.pop('config', {})
  arguments = {
    'student': Mlp(10),
    'teacher': Mlp(10, width=16),
    'num_epochs': 2,
    **splits(),
  } | arguments
  return kdjax.distil(workdir=workdir, config=config, **arguments)


@pytest.fixture(scope='module')
def done(tmp_path_factory):
  """The workdir and the result of one call."""
  workdir = tmp_path_factory.mktemp('distilled')
  return workdir, distil(workdir, config={'teacher.num_members': 2})


def state_of(folder) -> dict[str, tuple[int, int]]:
  found = {path: path.stat() for path in pathlib.Path(folder).rglob('*') if path.suffix != '.lock'}
  return {str(path): (stat.st_size, stat.st_mtime_ns) for path, stat in found.items()}


# Distillation.


def test_the_result_is_that_of_the_same_config_to_the_bit(done, tmp_path):
  (x, y), (x_test, y_test) = splits().values()
  np.savez(tmp_path / 'mine.npz', x_train=x, y_train=y, x_test=x_test, y_test=y_test)
  fields = CONFIG | {
    'dataset.name': 'arrays',
    'dataset.path': str(tmp_path / 'mine.npz'),
    'model.name': 'test_api:Mlp',
    'model.options': {'width': 16},
    'student.model.options': {'width': 8},
    'teacher.num_epochs': 2,
    'student.num_epochs': 2,
    'teacher.num_members': 2,
    'teacher.augmentation': (),
    'predictions.augmentation': (),
    'predictions.num_views': 1,
  }
  config, problems = config_lib.from_values(fields)
  assert problems == []
  stages = ['teachers', 'predictions', 'student', 'independent', 'evaluation']
  run = pipeline.run(config, epath.Path(tmp_path), stages)
  workdir, result = done
  (path,) = workdir.glob('students/*/result.json')
  assert (run.folders.student / 'result.json').read_bytes() == path.read_bytes()
  assert files.read_json(path) == result
  assert result['splits'].keys() == {'train', 'test', 'distillation'}
  test = result['splits']['test']
  assert test['num_examples'] == 20 and len(test['members']) == 2


def test_all_stages_run_and_a_second_call_makes_nothing(done, quiet, monkeypatch):
  workdir, result = done
  assert {epath.Path(workdir), result.student.folder} <= set(quiet)  # the reports
  monkeypatch.setattr(loop, 'fit', lambda *_, **__: pytest.fail('it was trained again'))
  before = state_of(workdir)
  assert distil(workdir, config={'teacher.num_members': 2}) == result
  assert state_of(workdir) == before


def test_nothing_is_augmented_unless_asked_for(tmp_path):
  make = lambda **fields: distillation.make_config(
    student=Mlp(10), teacher=Mlp(10), workdir=tmp_path, num_epochs=7, config=fields, **splits()
  )
  plain = make()
  assert (plain.teacher.augmentation, plain.predictions.augmentation) == ((), ())
  assert (plain.predictions.num_views, plain.teacher.num_members) == (1, 1)
  assert (plain.teacher.num_epochs, plain.student.num_epochs) == (7, 7)
  asked = make(**{'predictions.augmentation': ('flip',), 'student.num_epochs': 5})
  assert (asked.predictions.augmentation, asked.predictions.num_views) == (('flip',), 5)
  counted = make(**{'predictions.augmentation': ['flip'], 'predictions.num_views': 3})
  assert counted.predictions.num_views == 3
  assert len(list((tmp_path / 'data').iterdir())) == 1  # the data are written once


def test_modules_of_a_notebook_vectors_and_a_validation_split(tmp_path):
  """Float vectors, a class of a notebook, and a loss that is a closure. Another process needs these objects again."""
  weight = 2.0

  def loss(student_logits, teacher_log_probs, temperature):
    return weight * ((student_logits - teacher_log_probs) ** 2).sum(-1)

  x, y = np.random.default_rng(0).uniform(-1, 1, (60, 5)), np.arange(60) % 3
  net = notebook_class()(3)
  arguments = {
    'student': net,
    'teacher': net,
    'train': (x[:40], y[:40]),
    'test': (x[40:50], y[40:50]),
    'val': (x[50:], y[50:]),
    'class_names': ['a', 'b', 'c'],
    'config': {'student.loss': loss, 'evaluation.independent_seed': None},
  }
  result = distil(tmp_path, **arguments)
  assert result['splits'].keys() == {'train', 'val', 'test', 'distillation'}
  config = result.student.config
  assert (config.model.name, config.student.loss) == (
    'kdjax.runtime.given:OfNotebook',
    'kdjax.runtime.given:loss',
  )
  assert result.student.experiment.data.description.class_names == ('a', 'b', 'c')
  loaded = kdjax.open(tmp_path)[0]
  logits = net.apply(loaded.variables, x[40:50].astype(np.float32), train=False)
  np.testing.assert_allclose(logits, loaded.logits['test']['student'], atol=1e-5)

  given.forget()  # as in another process
  (found,) = kdjax.open(tmp_path)
  assert found.result == result
  assert found.logits.keys() == result['splits'].keys() - {'distillation'}
  told = 'OfNotebook: this object was passed from Python'
  with pytest.raises(MissingInputError, match=told) as error:
    _ = found.variables
  assert 'kdjax.runtime.given:loss' in str(error.value)
  again = kdjax.open(tmp_path, notebook_class(), loss)[0].variables
  assert jax.tree.all(jax.tree.map(np.array_equal, again, loaded.variables))
  before = state_of(tmp_path)
  assert distil(tmp_path, **arguments | {'student': notebook_class()(3)}) == result
  assert state_of(tmp_path) == before
  weight = 3.0  # a loss includes the variables of its closure
  with pytest.raises(DamageError, match=r'other code or data: kdjax\.runtime\.given\.loss'):
    _ = kdjax.open(tmp_path, notebook_class(), loss)[0].variables


def test_a_module_is_trained_as_it_was_given(tmp_path):
  """The same holds for fields that are not plain values, and for defaults where the teacher has options."""
  module = Mlp(10, act=nn.tanh)
  make = lambda student, teacher: distillation.make_config(
    student=student, teacher=teacher, workdir=tmp_path, **splits()
  )
  config = make(module, Mlp(10, width=16))
  assert config.student.model.name.startswith('kdjax.runtime.given:Mlp_')
  assert config.model.options.to_dict() == {'width': 16}
  config = make(Mlp(10), Mlp(10, width=16))
  assert config_lib.student_model(config).options.to_dict() == {'width': 8}
  assert make('resnet', 'resnet').student.model.name == 'resnet'
  assert make('test_api:Mlp', 'resnet').model.name == 'resnet'


NET = """
import flax.linen as nn

class Net(nn.Module):
  num_classes: int

  @nn.compact
  def __call__(self, x, train):
    return nn.Dense(self.num_classes)({})
"""


def test_a_module_that_was_edited_and_reloaded_is_another(tmp_path, monkeypatch):
  monkeypatch.syspath_prepend(tmp_path)
  file, seen = tmp_path / 'edited_net.py', []
  for inputs in ('x.reshape(len(x), -1)', '(x ** 2).reshape(len(x), -1)'):
    file.write_text(NET.format(inputs))
    module = importlib.reload(importlib.import_module('edited_net'))
    config = distillation.make_config(
      student=module.Net(10), teacher='resnet', workdir=tmp_path, **splits()
    )
    assert config.student.model.name == 'edited_net:Net'
    seen.append((config_lib.student_fingerprint(config), config_lib.teacher_fingerprint(config)))
  (student, teacher), (edited, same) = seen
  assert student != edited and teacher == same


CASES = [
  ({'student': Mlp(7)}, 'student = Mlp(...): the data and the config need num_classes = 10, not 7'),
  (
    {'student': Mlp(7, act=nn.tanh)},
    'maps (2, 8, 8, 1) to (2, 7); needed: logits of shape (2, 10)',
  ),
  ({'student': 3}, 'student = 3: allowed: a linen module, one of resnet, lenet'),
  ({'student': 'resnat'}, "student.model.name = 'resnat': allowed: one of resnet"),
  ({'teacher': 3}, 'teacher = int: allowed: a linen module, a name, a function'),
  ({'train': None}, 'train, test: allowed: both, or neither'),
  ({'train': (np.zeros((3, 2)), np.zeros(4, int))}, "'train' has 3 inputs and 4 labels"),
  (
    {split: (np.full((3, 8, 8, 1), 2.0), np.arange(3)) for split in ('train', 'test')},
    'train has values in [2, 2]; allowed in floating point',
  ),
  ({'config': {'student.temprature': 1}}, 'no such field; did you mean student.temperature?'),
  (
    {'config': {'student.temperature': 'x'}},
    "student.temperature = 'x': wrong type; allowed: a number",
  ),
  ({'config': {'student.temperature': -1}}, 'student.temperature = -1.0: allowed: a number in'),
  ({'workdir': 's3://bucket/x'}, "workdir = 's3://bucket/x': gs:// needs a package"),
]


@pytest.mark.parametrize(('arguments', 'expected'), CASES)
def test_what_does_not_fit_is_refused(tmp_path, arguments, expected):
  with pytest.raises(ConfigError) as error:
    distil(**{'workdir': tmp_path} | arguments)
  (problem,) = error.value.problems
  assert expected in problem
  assert not list(tmp_path.glob('*/*/member_*'))


def test_data_count_by_their_content_and_not_their_path(done, tmp_path, caplog):
  workdir, path = tmp_path / 'workdir', tmp_path / 'mine.npz'
  shutil.copytree(done[0], workdir)
  arrays = files.read_arrays(epath.Path(next((workdir / 'data').glob('*.npz'))))
  of_file = {'dataset.name': 'arrays', 'dataset.path': str(path), 'teacher.num_members': 2}

  def run(**changes):
    """The student's name, and the stages that run again after 1 was added to some pixels of the file."""
    content = {name: array.copy() for name, array in arrays.items()}
    for name, place in changes.items():
      content[name][place] ^= 1
    np.savez_compressed(path, **content)
    before = state_of(workdir)
    result = distil(workdir, config=of_file, train=None, test=None)
    new = [epath.Path(path) for path in state_of(workdir).keys() - before.keys()]
    made = {path.relative_to(workdir).parts[0] for path in new if path.name == 'complete.json'}
    return result.student.name, sorted(made)

  name = done[1].student.name
  assert run() == (name, [])
  os.utime(path)
  assert run() == (name, [])
  with caplog.at_level('WARNING', logger=progress.logger.name):
    other, made = run(x_test=(3, 2, 1, 0))
  assert other != name and made == ['students']  # teachers never see the test images
  assert 'teacher: made again' not in caplog.text
  assert 'student: made again, since this has changed: the data of test' in caplog.text
  last, made = run(x_train=(5, 4, 3, 0))
  assert last not in (name, other) and made == ['students', 'teachers']
  records = [epath.Path(workdir / 'students' / x / 'data.json') for x in (name, other, last)]
  assert len({record.read_text() for record in records}) == 3  # each was trained on its own data
  assert run(y_test=0)[0] not in (name, other, last)
  assert run() == (name, [])
  folder = epath.Path(workdir / 'students' / name)
  assert finished.experiment(folder).folders.student == folder
  np.savez(path, **{**arrays, 'y_train': 9 - arrays['y_train']})
  data.forget()
  with pytest.raises(DamageError, match='it was made with other code or data: the data of train'):
    finished.experiment(folder)


def test_fidelity_is_that_of_the_result(done):
  _, result = done
  of_test, logits = result['splits']['test'], result.student.logits['test']
  found = kdjax.fidelity(
    logits['student'], logits['teacher'], logits['independent'], num_resamples=50
  )
  for name, estimate in found.items():
    assert [estimate.low, estimate.high] == of_test['intervals']['fidelity'][name]
    assert estimate.mean == of_test['fidelity'][name]
  assert {n: e.verdict for n, e in found.difference.items()} == {
    n: d['verdict'] for n, d in of_test['difference'].items()
  }


# The content of a workdir.


def test_open_lists_the_newest_student_first(done):
  workdir, result = done
  found = kdjax.open(workdir)
  assert len(found) == 2 and found[0].name == result.student.name
  assert found[0].is_evaluated and not found[1].is_evaluated  # the independent student
  run = found[0].experiment
  assert independent.counterpart(run).folders.student == found[1].folder
  expected = student.load(run)
  assert jax.tree.all(jax.tree.map(np.array_equal, found[0].variables, expected))
  assert found[0].model == Mlp(10)
  test = found[0].logits['test']
  images = splits()['test'][0] / np.float32(127.5) - 1
  logits = Mlp(10).apply(found[0].variables, images, train=False)
  np.testing.assert_allclose(test['student'], logits, atol=1e-5)
  members = [Mlp(10, width=16).apply(teachers.load(run, i), images, train=False) for i in range(2)]
  probs = np.mean([nn.softmax(x) for x in members], axis=0)
  np.testing.assert_allclose(np.exp(test['teacher']), probs, atol=2e-3)  # stored in float16
  assert found[0].config.to_dict() == run.config.to_dict()
  with pytest.raises(MissingInputError, match='the student is not evaluated: there is no'):
    _ = found[1].logits


def test_repr(done):
  workdir, result = done
  assert repr(result).startswith(
    f'Result of the student {result.student.name}\nDoes the student match'
  )
  assert f'{100 * result["splits"]["test"]["student"]["accuracy"]:.2f}' in repr(result)
  found = kdjax.open(workdir)
  assert repr(found[0]).startswith(f'Student({found[0].name}: test_api:Mlp, test accuracy ')
  assert repr(found[1]).endswith('not evaluated)')
  assert repr(found).startswith('2 students, 1 of them evaluated')
  assert 'distillation (2, 1, 60, 10)' in repr(kdjax.open_predictions(workdir))


# Views and stored predictions.


def test_views_are_those_that_teachers_see(tmp_path):
  data = splits()
  config = distillation.make_config(
    student=Mlp(10),
    teacher=Mlp(10),
    workdir=tmp_path,
    config={
      'predictions.augmentation': ('flip',),
      'predictions.num_views': 3,
      'evaluation.batch_size': 32,
    },
    **data,
  )
  batches = list(kdjax.views(config))
  assert [(view, len(indices)) for view, indices, _, _ in batches] == [
    (v, n) for v in range(3) for n in (32, 28)
  ]
  images = np.concatenate([b[2] for b in batches]).reshape(3, 60, 8, 8, 1)
  clean = data['train'][0] / np.float32(127.5) - 1
  flipped = clean[:, :, ::-1]
  is_flipped = np.abs(images - flipped).max((2, 3, 4)) < 1e-6
  assert np.all(is_flipped | (np.abs(images - clean).max((2, 3, 4)) < 1e-6))
  assert 0.3 < is_flipped.mean() < 0.7 and (is_flipped[0] != is_flipped[1]).any()
  for view, indices, _, labels in batches:
    np.testing.assert_array_equal(labels, data['train'][1][indices], err_msg=str(view))
  np.testing.assert_array_equal(np.concatenate([b[1] for b in batches]), np.tile(np.arange(60), 3))


def test_views_of_a_config_file():
  view, indices, images, labels = next(kdjax.views(str(TINY)))
  assert (view, indices[0], images.shape, labels.shape) == (0, 0, (64, 8, 8, 1), (64,))
  config, _ = config_lib.load(str(TINY))
  config.predictions.num_views = 0
  with pytest.raises(ConfigError, match=r'predictions\.num_views = 0'):
    kdjax.views(config)
  config.update_from_flattened_dict(
    {'predictions.num_views': 1, 'predictions.extra': 'gan', 'predictions.num_extra': 2}
  )
  with pytest.raises(MissingInputError, match='give the workdir in which the GAN was trained'):
    kdjax.views(config)
