import contextlib
import functools
import json
import shutil
import threading
import weakref

import jax
import numpy as np
import pytest
from etils import epath
from ml_collections import ConfigDict
from tiny_data import random_images, write_files
from untrained import changed, copy_of, predicted_run
from viewed import CONFIG

from kdjax import data, keys, losses
from kdjax.data import views
from kdjax.errors import DamageError, MissingInputError
from kdjax.predictions.store import PredictionStore
from kdjax.predictions.teachers import OnlineTeacher, StoredTeacher, ensemble
from kdjax.stages import evaluation, pipeline, predictions, student, teachers, verification
from kdjax.train import inputs as inputs_lib
from kdjax.train.inputs import Inputs, is_same_view


@pytest.fixture(scope='module')
def base(tmp_path_factory):
  return predicted_run(tmp_path_factory.mktemp('base'))


def in_float32(base, folder, **fields):
  """The same members, whose predictions are stored exactly."""
  run = copy_of(base, folder, predictions__dtype='float32', **fields)
  assert predictions.STAGE.run(run)
  return run


def online_teacher(run) -> OnlineTeacher:
  members = teachers.load_all(run)
  return OnlineTeacher(run.teacher.model, members, run.data.inputs, run.predictor)


def assert_stored_is_online(run, num_views=2):
  """Each prediction is that of its own view of its own example, also in batches that see two views."""
  stored, online = predictions.open_teacher(run), online_teacher(run)
  assert isinstance(stored, StoredTeacher)
  of_views = [stored.members('distillation', view) for view in range(num_views)]
  for view, log_probs_MNC in enumerate(of_views):
    np.testing.assert_allclose(log_probs_MNC, online.members('distillation', view), atol=2e-5)
    assert np.abs(log_probs_MNC - of_views[view - 1]).max() > 0.01  # views differ
  ensembles = np.stack([losses.ensemble_log_probs(log_probs_MNC) for log_probs_MNC in of_views])
  inputs = run.data.inputs['distillation']
  last = len(inputs.split) // 48  # reaches into the next epoch
  batches = list(inputs.training(1, 48, last + 2, start=last - 1))
  assert [len(np.unique(batch['views'])) for batch in batches] == [1, 2, 1]
  for batch in batches:
    expected = ensembles[batch['views'], batch['indices']]
    np.testing.assert_allclose(stored.batch('distillation', batch), expected, atol=2e-5)
    np.testing.assert_allclose(online.batch('distillation', batch), expected, atol=2e-5)
  for name in ('test', 'val'):
    np.testing.assert_allclose(stored.members(name), online.members(name), atol=2e-5)


def test_stored_is_online(base, tmp_path):
  assert_stored_is_online(in_float32(base, tmp_path), num_views=3)


def test_mixtures_and_noise_are_predicted_as_the_student_sees_them(base, tmp_path):
  run = in_float32(
    base,
    tmp_path,
    predictions__augmentation=('crop', 'mixup', 'noise'),
    predictions__num_views=2,
  )
  assert_stored_is_online(run)
  assert (run.predictor.labels(run.data.inputs['distillation'], 0) == -1).all()
  stored = predictions.open_teacher(run)
  assert np.abs(stored.members('distillation') - stored.members('train')).mean() > 0.02


@pytest.fixture(scope='module')
def extra(base, tmp_path_factory):
  """A distilled and evaluated run with 50 images that have no label."""
  folder = tmp_path_factory.mktemp('extra')
  images = {f'{i}.png': image for i, image in enumerate(random_images(60, 8, 8, 1))}
  write_files(folder / 'others', images)
  run = in_float32(
    base,
    folder / 'run',
    predictions__extra=str(folder / 'others'),
    predictions__num_extra=50,
    predictions__num_views=2,
    student__alpha=0.3,
  )
  for stage in ('student', 'evaluation'):
    assert pipeline.STAGES[stage].run(run)
  return run


def test_extra_images_are_distilled_on_without_labels(extra):
  assert_stored_is_online(extra)
  inputs = extra.data.inputs['distillation']
  labels, own = extra.predictor.labels(inputs, 0), extra.data.splits['train'].labels_N
  np.testing.assert_array_equal(labels, [*own, *[-1] * 50])
  labelled = labels >= 0
  found = evaluation.result(extra)['splits']['distillation']
  assert found['num_examples'] == 250
  logits = extra.predictor.logits(extra.student.model, student.load(extra), inputs)
  correct = (logits.argmax(-1) == labels)[labelled]
  assert found['student']['accuracy'] == pytest.approx(correct.mean())
  teacher = ensemble(predictions.open_teacher(extra), 'distillation')
  agreement = (logits.argmax(-1) == teacher.argmax(-1)).mean()
  assert found['fidelity']['top1_agreement'] == pytest.approx(agreement)


def test_a_student_trained_online_has_the_losses_of_one_trained_on_the_store(extra):
  online = changed(extra, predictions__mode='online')
  for stage in ('student', 'evaluation'):
    assert pipeline.STAGES[stage].run(online)
  assert extra.folders.student != online.folders.student

  def losses_of(run):
    lines = (run.folders.student / 'metrics.jsonl').read_text().splitlines()
    return [json.loads(line)['train/loss'] for line in lines]

  np.testing.assert_allclose(losses_of(online), losses_of(extra), rtol=1e-4)
  found, expected = (evaluation.result(run)['splits'] for run in (online, extra))
  for split in expected:
    kl, expected_kl = (of[split]['fidelity']['predictive_kl'] for of in (found, expected))
    assert kl == pytest.approx(expected_kl, rel=1e-2)


def test_the_store_holds_every_split(base):
  meta = PredictionStore(base.folders.predictions).meta
  assert meta['dtype'] == 'float16'
  assert meta['complete'] == [[2, 3]]
  stored = predictions.open_teacher(base)
  shapes = {name: stored.members(name).shape for name in base.data.inputs}
  assert shapes == {
    'distillation': (2, 200, 10),
    'train': (2, 200, 10),
    'val': (2, 50, 10),
    'test': (2, 360, 10),
  }
  # Against the members, called one by one, without the code that batches and stores.
  images = (base.data.splits['test'].inputs_N[:7] / 127.5 - 1).astype(np.float32)
  apply = jax.jit(lambda variables: base.teacher.model.apply(variables, images, train=False)[0])
  expected = jax.nn.log_softmax(np.stack([apply(teachers.load(base, i)) for i in range(2)]))
  np.testing.assert_allclose(stored.members('test')[:, :7], expected, atol=5e-3)
  expected = np.log(np.exp(expected).mean(axis=0))
  np.testing.assert_allclose(ensemble(stored, 'test')[:7], expected, atol=5e-3)


def test_a_larger_ensemble_and_more_views_reuse_stored_predictions(base, tmp_path):
  run = copy_of(base, tmp_path, teacher__num_members=3, predictions__num_views=4)
  assert run.folders.member(1).name == 'member_1'
  before = {p: p.stat().st_mtime_ns for p in tmp_path.rglob('*') if p.is_file()}
  with pytest.raises(MissingInputError, match='--stages=teachers'):
    predictions.STAGE.run(run)
  shutil.copytree(run.folders.member(1), run.folders.member(2))  # takes less than making it
  assert predictions.STAGE.run(run)
  touched = {p.name for p, time in before.items() if p.stat().st_mtime_ns != time}
  assert touched <= {'meta.json', 'zarr.json', 'environment.json'}
  assert predictions.open_teacher(run).members('distillation', 3).shape == (3, 200, 10)
  assert PredictionStore(run.folders.predictions).meta['complete'] == [[3, 4], [2, 3]]
  assert not predictions.STAGE.run(run)
  assert not predictions.STAGE.run(changed(run, predictions__num_views=2))


def test_an_interrupted_stage_goes_on_where_it_was(base, tmp_path, monkeypatch):
  run = copy_of(base, tmp_path)
  expected = {p: p.read_bytes() for p in tmp_path.rglob('c/*/*/*/*')}
  shutil.rmtree(run.folders.predictions)
  write, written = PredictionStore.write, []

  def interrupted(self, *arguments):
    written.append(arguments[:3])
    if len(written) == 5:
      raise KeyboardInterrupt
    write(self, *arguments)

  monkeypatch.setattr(PredictionStore, 'write', interrupted)
  with pytest.raises(KeyboardInterrupt):
    predictions.STAGE.run(run)
  with pytest.raises(MissingInputError, match='--stages=predictions'):
    predictions.open_teacher(run)
  predictions.STAGE.run(run)
  assert len(written) == len(set(written)) + 1  # only the interrupted one comes again
  for path, content in expected.items():
    assert path.read_bytes() == content


def test_other_data_under_the_same_name_is_noticed(base, tmp_path, monkeypatch):
  """Both a reader of the store and a stage that adds to it notice."""
  members = [teachers.load(base, i) for i in range(2)]
  monkeypatch.setattr(teachers, 'load', lambda run, i: members[i])  # its own check would come first
  for name, num_views, use in (
    ('test', 3, predictions.open_teacher),
    ('train', 4, predictions.STAGE.run),
  ):
    run = copy_of(base, tmp_path / name, predictions__num_views=num_views)
    split = run.data.splits[name]
    inputs_N = split.inputs_N.copy()
    inputs_N[5, 0, 0] ^= 1
    run.data.splits = run.data.splits | {name: data.Split(inputs_N, split.labels_N)}
    with pytest.raises(DamageError, match='made from other data'):
      use(run)


def test_another_test_set_needs_no_other_teachers(base, tmp_path):
  run = copy_of(base, tmp_path, dataset__num_test=100)
  assert not teachers.STAGE.run(run)
  teachers.load(run, 0)
  assert run.folders.predictions.name != base.folders.predictions.name


# The inputs of the predictions.


SMALL_CHANGES = ConfigDict(
  CONFIG.to_dict() | {'rotation_degrees': 3.0, 'brightness': 0.03, 'noise_probability': 0.02}
)


@contextlib.contextmanager
def other_draws(stream):
  """Gives other numbers for a stream, as a change of the code might."""
  renamed = lambda name: f'{name}, drawn otherwise' if name == stream else name
  with pytest.MonkeyPatch.context() as patch:
    for function in ('stream', 'numpy_rng'):
      draw = getattr(keys, function)
      patch.setattr(keys, function, lambda seed, name, *i, draw=draw: draw(seed, renamed(name), *i))
    # Views that are made again, with steps that are compiled again. Earlier views stay as they were.
    patch.setattr(views, '_make_view', functools.lru_cache(views._make_view.__wrapped__))
    inputs_lib._partners.cache_clear()
    yield
  inputs_lib._partners.cache_clear()


def record(names, view=1):
  """The record of 500 examples."""
  split = data.Split(random_images(500, 6, 8, 3), np.arange(500, dtype=np.int32) % 10)
  return Inputs(split, views.make_view(names, SMALL_CHANGES), 3, 3, 'mixup' in names).record(view)


@pytest.mark.parametrize(
  ('names', 'streams'),
  [
    (('crop', 'flip'), ('crop', 'flip')),
    (('rotation',), ('rotation',)),
    (('brightness',), ('brightness',)),
    (('mixup',), ('mixup', 'partners')),
    (('noise',), ('noise',)),
  ],
)
def test_other_draws_and_other_views_never_pass(names, streams):
  """Even if the change is small, or affects one example in fifty."""
  before = record(names)
  for stream in streams:
    with other_draws(f'view/{stream}'):
      assert not is_same_view(before, record(names))
  assert is_same_view(before, record(names))
  assert not is_same_view(before, record(names, view=0))


def test_a_view_that_is_rounded_otherwise_passes():
  """The rounding of another processor or version of JAX moves a value by up to two levels of 256."""
  before = {'draws': 'a', 'levels': bytes([0, 100, 255]).hex()}
  for levels, is_same in (
    ([2, 98, 253], True),
    ([0, 103, 255], False),
    ([0, 97, 255], False),
    ([0, 100], False),
  ):
    assert is_same_view(before, {'draws': 'a', 'levels': bytes(levels).hex()}) == is_same
  assert not is_same_view(before, before | {'draws': 'b'})
  assert not is_same_view(before, None)


def test_texts_and_splits_of_a_few_have_records():
  split = data.Split(np.arange(21, dtype=np.int32).reshape(3, 7), np.zeros(3, np.int32))
  clean = views.make_view((), None)
  before = Inputs(split, clean, 0, 1).record(0)
  assert before['levels'] == ''
  split.inputs_N[2, 6] += 1
  assert not is_same_view(before, Inputs(split, clean, 0, 1).record(0))


def test_predictions_of_other_draws_are_not_used(extra, tmp_path):
  """A student, an evaluation and --verify refuse them, and none are added to them."""
  run = copy_of(extra, tmp_path)
  folder, result = run.folders.predictions, run.folders.student / 'result.json'
  result.unlink()
  uses = [
    (student.STAGE.run, {'student__temperature': 2.0}),
    (evaluation.STAGE.run, {}),
    (verification.verify, {}),
    (predictions.STAGE.run, {'predictions__num_views': 4}),
  ]
  with other_draws('view/crop'):
    for problem in (r'are of other inputs.*view 1 of distill', r'have lost their inputs\.json'):
      for use, fields in uses:
        with pytest.raises(DamageError, match=rf'{folder} {problem}.*Delete {folder} and run with'):
          use(changed(run, **fields))
      (folder / 'inputs.json').unlink(missing_ok=True)
  assert not result.exists()


# Reading ahead.


NUM_EXAMPLES, BATCH, VIEWS = 40, 16, 4


def store_of_views(folder) -> PredictionStore:
  store, rng = PredictionStore(epath.Path(folder)), np.random.default_rng(0)
  store.reserve('distillation', (2, VIEWS, NUM_EXAMPLES, 3), 'float32')
  for member, view in np.ndindex(2, VIEWS):
    store.write('distillation', member, view, rng.normal(size=(NUM_EXAMPLES, 3)))
  return store


def batches_of_epochs(num_epochs):
  """Batches of 16 of 40 examples in order: the third reaches into the next epoch."""
  positions = np.arange(num_epochs * NUM_EXAMPLES).reshape(-1, 1, BATCH)
  for of_batch in positions:
    yield {'indices': of_batch % NUM_EXAMPLES, 'views': of_batch // NUM_EXAMPLES % VIEWS}


def test_the_next_view_is_read_while_this_one_is_used(tmp_path, monkeypatch):
  """Each is read once an epoch, in a thread that ends, and at most three are in memory."""
  store = store_of_views(tmp_path)
  expected_VNC = [store.read_ensemble('distillation', 2, view) for view in range(VIEWS)]
  read, threads, alive = store.read_ensemble, [], weakref.WeakSet()
  started = []

  def watched(name, num_members, view):
    started.append(view)
    threads.append(threading.current_thread())
    # An object of its own, since an array may be a view of another.
    result = read(name, num_members, view).view(Watched)
    alive.add(result)
    return result

  monkeypatch.setattr(store, 'read_ensemble', watched)
  teacher, most = StoredTeacher(store, 2, VIEWS), 0
  begun = []
  for batch in batches_of_epochs(6):
    found = teacher.batch('distillation', batch)
    for position in np.ndindex(found.shape[:2]):
      of_view = expected_VNC[batch['views'][position]]
      np.testing.assert_array_equal(found[position], of_view[batch['indices'][position]])
    for thread in threads:
      thread.join(timeout=60)
      assert not thread.is_alive()
    most = max(most, len(alive))
    begun.append(len(started))
  assert started == [0, 1, 2, 3, 0, 1, 2]
  # 2.5 batches are an epoch: what it needs is there, or being read, from the first batch that sees it.
  assert begun == [2, 2, 3, 3, 3, 4, 4, 5, 5, 5, 6, 6, 7, 7, 7]
  assert threading.main_thread() not in threads
  assert most == 3


class Watched(np.ndarray):
  """Can be referred to weakly, and is equal only to itself."""

  __hash__ = object.__hash__


def test_damage_to_the_next_view_is_reported_when_it_is_needed(tmp_path):
  store = store_of_views(tmp_path)
  chunk = tmp_path / 'logits' / 'distillation' / 'c' / '1' / '1' / '0' / '0'
  content = bytearray(chunk.read_bytes())
  content[len(content) // 2] ^= 1
  chunk.write_bytes(content)
  with pytest.raises(DamageError) as expected:
    store.read_ensemble('distillation', 2, 1)
  teacher, batches = StoredTeacher(store, 2, VIEWS), batches_of_epochs(2)
  for _ in range(2):
    assert np.isfinite(teacher.batch('distillation', next(batches))).all()
  with pytest.raises(DamageError) as found:
    teacher.batch('distillation', next(batches))
  assert str(found.value) == str(expected.value)
