import contextlib
import json
import shutil
import threading
import weakref

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import copied, tiny_run
from etils import epath
from ml_collections import ConfigDict
from tiny_data import random_images, write_files
from viewed import CONFIG

from kdjax import data, keys, losses
from kdjax.data import views
from kdjax.errors import DamageError, MissingInputError
from kdjax.predictions.store import PredictionStore
from kdjax.predictions.teachers import OnlineTeacher, StoredTeacher, ensemble
from kdjax.stages import evaluation, pipeline, predictions, student, teachers, verification
from kdjax.stages.experiment import Experiment
from kdjax.train import inputs as inputs_lib
from kdjax.train.inputs import Inputs, is_same_view


@pytest.fixture(scope='module')
def float32_run(finished, tmp_path_factory):
  fields = {'student__num_epochs': 2, 'student__keep_checkpoints': (), 'training__num_evals': 1}
  place = tmp_path_factory.mktemp('float32')
  run = copied(finished, place, predictions__dtype='float32', **fields)
  predictions.STAGE.run(run)
  return run


def batches_over_an_epoch(run):
  """The sixth reaches from epoch 0 into epoch 1: 200 examples, 48 a batch."""
  return list(run.data.inputs['distillation'].training(0, 48, 6, start=0))


def test_stored_is_online(float32_run):
  stored = predictions.open_teacher(float32_run)
  online = online_teacher(float32_run)
  assert isinstance(stored, StoredTeacher)
  batches = batches_over_an_epoch(float32_run)
  assert {len(np.unique(batch['views'])) for batch in batches} == {1, 2}
  for batch in batches:
    np.testing.assert_allclose(
      stored.batch('distillation', batch), online.batch('distillation', batch), atol=2e-5
    )
  for name, view in [('test', 0), ('val', 0), ('distillation', 2)]:
    np.testing.assert_allclose(stored.members(name, view), online.members(name, view), atol=2e-5)


def online_teacher(run) -> OnlineTeacher:
  members = teachers.load_all(run)
  return OnlineTeacher(run.teacher.model, members, run.data.inputs, run.predictor)


def assert_stored_is_online(run):
  """And each for its own view of its own example, in any batch."""
  stored, online = predictions.open_teacher(run), online_teacher(run)
  members = [stored.members('distillation', view) for view in range(2)]
  for view, of_view in enumerate(members):
    np.testing.assert_allclose(of_view, online.members('distillation', view), atol=2e-5)
  ensembles = np.stack([losses.ensemble_log_probs(of_view) for of_view in members])
  num_examples = len(run.data.inputs['distillation'].split)
  batches = run.data.inputs['distillation'].training(1, 48, 2 * num_examples // 48, start=0)
  for batch in list(batches)[:: num_examples // 48 - 1]:
    expected = ensembles[batch['views'], batch['indices']]
    np.testing.assert_allclose(stored.batch('distillation', batch), expected, atol=2e-5)
    np.testing.assert_allclose(online.batch('distillation', batch), expected, atol=2e-5)


def test_mixtures_and_noise_are_predicted_as_the_student_sees_them(finished, tmp_path):
  run = copied(
    finished,
    tmp_path,
    predictions__augmentation=('crop', 'mixup', 'noise'),
    predictions__num_views=2,
    predictions__dtype='float32',
  )
  predictions.STAGE.run(run)
  assert_stored_is_online(run)
  inputs = run.data.inputs['distillation']
  assert (run.predictor.labels(inputs, 0) == -1).all()
  clean = predictions.open_teacher(run).members('train')
  assert np.abs(predictions.open_teacher(run).members('distillation') - clean).mean() > 0.1


def test_extra_images_are_distilled_on_without_labels(finished, tmp_path):
  write_files(
    tmp_path / 'others', {f'{i}.png': x for i, x in enumerate(random_images(60, 8, 8, 1))}
  )
  run = copied(
    finished,
    tmp_path / 'run',
    predictions__extra=str(tmp_path / 'others'),
    predictions__num_extra=50,
    predictions__num_views=2,
    predictions__dtype='float32',
    student__num_epochs=1,
    student__keep_checkpoints=(),
    student__alpha=0.3,
    evaluation__num_views=1,
  )
  for stage in ('predictions', 'student', 'evaluation'):
    assert pipeline.STAGES[stage].run(run)
  assert_stored_is_online(run)
  inputs = run.data.inputs['distillation']
  labels, own = run.predictor.labels(inputs, 0), run.data.splits['train'].labels_N
  np.testing.assert_array_equal(labels, [*own, *[-1] * 50])
  labelled = labels >= 0
  found = evaluation.result(run)['splits']['distillation']
  assert found['num_examples'] == 250
  logits = run.predictor.logits(run.student.model, student.load(run), inputs)
  correct = (logits.argmax(-1) == labels)[labelled]
  assert found['student']['accuracy'] == pytest.approx(correct.mean())
  teacher = ensemble(predictions.open_teacher(run), 'distillation')
  agreement = (logits.argmax(-1) == teacher.argmax(-1)).mean()
  assert found['fidelity']['top1_agreement'] == pytest.approx(agreement)


def test_views_differ(finished):
  stored = predictions.open_teacher(finished)
  views = [stored.members('distillation', view) for view in range(3)]
  assert np.abs(views[0] - views[1]).max() > 0.01
  assert np.abs(views[1] - views[2]).max() > 0.01


def test_a_student_trained_online_has_the_losses_of_one_trained_on_the_store(float32_run):
  online = Experiment(float32_run.config.copy_and_resolve_references(), float32_run.workdir)
  online.config.predictions.mode = 'online'
  for run in (float32_run, online):
    pipeline.STAGES['student'].run(run)
    pipeline.STAGES['evaluation'].run(run)
  assert float32_run.folders.student != online.folders.student

  def losses_of(run):
    lines = (run.folders.student / 'metrics.jsonl').read_text().splitlines()
    return [json.loads(line)['train/loss'] for line in lines]

  np.testing.assert_allclose(losses_of(online), losses_of(float32_run), rtol=1e-4)
  results = [
    json.loads((run.folders.student / 'result.json').read_text())['splits']
    for run in (float32_run, online)
  ]
  for split in results[0]:
    np.testing.assert_allclose(
      results[1][split]['fidelity']['predictive_kl'],
      results[0][split]['fidelity']['predictive_kl'],
      rtol=1e-2,
    )


def test_the_store_holds_every_split_and_says_what_it_is(finished):
  meta = PredictionStore(finished.folders.predictions).meta
  assert meta['dtype'] == 'float16'
  assert meta['complete'] == [[2, 3]]
  assert finished.folders.predictions.name == meta['predictions_fingerprint']
  assert finished.folders.member(0).parent.name == meta['teacher_fingerprint']
  assert 0 < meta['dtype_error']['max_abs_log_prob'] < 0.02
  stored = predictions.open_teacher(finished)
  shapes = {name: stored.members(name).shape for name in finished.data.inputs}
  assert shapes == {
    'distillation': (2, 200, 10),
    'train': (2, 200, 10),
    'val': (2, 50, 10),
    'test': (2, 360, 10),
  }


def test_the_store_says_what_the_models_say(finished):
  """Against the members, called one by one, without the code that batches and stores."""
  images = finished.data.splits['test'].inputs_N[:7] / 127.5 - 1
  model = finished.teacher.model
  apply = jax.jit(lambda variables: model.apply(variables, images.astype(np.float32), train=False))
  logits = [apply(teachers.load(finished, i))[0] for i in range(2)]
  expected = jax.nn.log_softmax(np.stack(logits))
  stored = predictions.open_teacher(finished)
  np.testing.assert_allclose(stored.members('test')[:, :7], expected, atol=5e-3)
  np.testing.assert_allclose(
    ensemble(stored, 'test')[:7], losses.ensemble_log_probs(expected), atol=5e-3
  )


def test_a_larger_ensemble_and_more_views_reuse_what_is_there(finished, tmp_path):
  run = copied(finished, tmp_path, teacher__num_members=3, predictions__num_views=4)
  assert run.folders.member(1).name == 'member_1'
  before = {p: p.stat().st_mtime_ns for p in tmp_path.rglob('*') if p.is_file()}
  with pytest.raises(MissingInputError, match='--stages=teachers'):
    predictions.STAGE.run(run)
  shutil.copytree(run.folders.member(1), run.folders.member(2))  # takes less than training it
  assert predictions.STAGE.run(run)
  changed = {p.name for p, time in before.items() if p.stat().st_mtime_ns != time}
  assert changed <= {'meta.json', 'zarr.json', 'environment.json'}
  assert predictions.open_teacher(run).members('distillation', 3).shape == (3, 200, 10)
  assert PredictionStore(run.folders.predictions).meta['complete'] == [[3, 4], [2, 3]]
  assert not predictions.STAGE.run(run)
  assert not predictions.STAGE.run(tiny_run(tmp_path, predictions__num_views=2))


def test_an_interrupted_stage_goes_on_where_it_was(finished, tmp_path, monkeypatch):
  run = copied(finished, tmp_path)
  original = tmp_path.rglob('c/*/*/*/*')
  expected = {p: p.read_bytes() for p in original}
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
  predictions.STAGE.run(tiny_run(tmp_path))
  assert len(written) == len(set(written)) + 1  # only the interrupted one comes again
  for path, content in expected.items():
    assert path.read_bytes() == content


def test_other_data_under_the_same_name_is_noticed(finished, tmp_path):
  run = copied(finished, tmp_path)
  inputs_N = run.data.splits['test'].inputs_N.copy()
  inputs_N[5, 0, 0] ^= 1
  run.data.splits = run.data.splits | {
    'test': data.Split(inputs_N, run.data.splits['test'].labels_N)
  }
  with pytest.raises(DamageError, match='made from other data'):
    predictions.open_teacher(run)


def test_a_store_is_extended_from_the_same_data_alone(finished, tmp_path):
  run = copied(finished, tmp_path, predictions__num_views=4)
  inputs_N = run.data.splits['train'].inputs_N
  other = data.Split(255 - inputs_N, run.data.splits['train'].labels_N)
  members = [teachers.load(run, i) for i in range(2)]
  run.data.splits = run.data.splits | {'train': other}
  vars(run.data).pop('training')
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(teachers, 'load', lambda run, i: members[i])  # whose own check would raise first
    with pytest.raises(DamageError, match='made from other data'):
      predictions.STAGE.run(run)


def test_another_test_set_needs_no_other_teachers(finished, tmp_path):
  run = copied(finished, tmp_path, dataset__num_test=100)
  assert not teachers.STAGE.run(run)
  teachers.load(run, 0)
  assert run.folders.predictions.name != finished.folders.predictions.name


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
    _forget_draws()
    yield
  _forget_draws()


def _forget_draws():
  inputs_lib._partners.cache_clear()
  views._make_view.cache_clear()  # with a new view, its steps are compiled anew


def record(names=(), levels=0.0, view=1):
  """The record of 500 examples whose pixels are moved by some of 256 levels."""
  split = data.Split(random_images(500, 6, 8, 3), np.arange(500, dtype=np.int32) % 10)
  exact = views.make_view(names, SMALL_CHANGES)
  moved = lambda seed, batch: jax.tree.map(jnp.add, exact(seed, batch), (levels / 127.5, 0))
  return Inputs(split, moved, 3, 3, 'mixup' in names).record(view)


@pytest.mark.parametrize(
  ('stream', 'names'),
  [
    ('view/crop', ('crop', 'flip')),
    ('view/flip', ('crop', 'flip')),
    ('view/rotation', ('rotation',)),
    ('view/brightness', ('brightness',)),
    ('view/mixup', ('mixup',)),
    ('view/partners', ('mixup',)),
    ('view/noise', ('noise',)),
  ],
)
def test_other_draws_and_other_views_never_pass(stream, names):
  """Also where the change is small, or of one example in fifty."""
  before = record(names)
  with other_draws(stream):
    assert not is_same_view(before, record(names))
  assert is_same_view(before, record(names))
  assert not is_same_view(before, record(names, view=0))


@pytest.mark.parametrize(('levels', 'is_same'), [(1.9, True), (3, False)])
def test_a_view_that_is_rounded_otherwise_passes(levels, is_same):
  """The rounding of another processor or version of JAX."""
  before, after = record(('crop',)), record(('crop',), levels=levels)
  assert before['levels'] != after['levels']
  assert is_same_view(before, after) == is_same


def test_texts_and_splits_of_a_few_have_records():
  split = data.Split(np.arange(21, dtype=np.int32).reshape(3, 7), np.zeros(3, np.int32))
  clean = views.make_view((), None)
  before = Inputs(split, clean, 0, 1).record(0)
  assert before['levels'] == ''
  split.inputs_N[2, 6] += 1
  assert not is_same_view(before, Inputs(split, clean, 0, 1).record(0))


def test_predictions_of_other_draws_are_not_used(finished, tmp_path):
  """By a student, an evaluation or --verify, nor are more added to them."""
  run = lambda **fields: tiny_run(tmp_path, **fields)
  folder = copied(finished, tmp_path).folders.predictions
  (run().folders.student / 'result.json').unlink()
  uses = [
    lambda: student.STAGE.run(run(student__temperature=2.0)),
    lambda: evaluation.STAGE.run(run()),
    lambda: verification.verify(run()),
    lambda: predictions.STAGE.run(run(predictions__num_views=4)),
  ]
  with other_draws('view/crop'):
    for use in uses:
      with pytest.raises(DamageError, match=rf'{folder} are of other inputs.*view 1 of distill'):
        use()
  assert not (run().folders.student / 'result.json').exists()
  (folder / 'inputs.json').unlink()
  for use in uses:
    with pytest.raises(
      DamageError, match=rf'lost their inputs\.json.*Delete {folder} and run with'
    ):
      use()
  shutil.rmtree(folder)
  assert predictions.STAGE.run(run())
  predictions.open_teacher(run())


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
  """Each once an epoch, in a thread that ends; three are in memory at most."""
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


def test_damage_to_the_next_view_is_told_when_that_is_needed(tmp_path):
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
