import hashlib
import itertools
import json
import shutil
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl import logging as absl_logging
from etils import epath

from kdjax.errors import DivergedError
from kdjax.runtime import files
from kdjax.train import loop, steps
from kdjax.train.checkpoint import Checkpoints, digest
from kdjax.train.steps import Metrics, State

NUM_STEPS = 20


def plan(**fields) -> loop.Plan:
  arguments = {
    'num_steps': NUM_STEPS,
    'batch_size': 10,
    'num_examples': 40,
    'num_logs': 4,
    'num_evals': 2,
    'num_checkpoints': 5,
    'keep_checkpoints': (0.0, 0.3),
  }
  return loop.make_plan(**arguments | fields)


def init() -> State:
  return State(jnp.zeros((), jnp.int32), {'w': jnp.ones(3)}, {}, {'momentum': jnp.zeros(3)})


def step(state, x):
  """A toy with momentum, so that both have to be restored."""
  momentum = 0.9 * state.opt_state['momentum'] + x
  params = {'w': state.params['w'] - 0.1 * momentum}
  metrics = Metrics.from_sums({'loss': (x.sum(), 3), 'gradient_norm': (jnp.abs(x).max(), 1)})
  return State(state.step + 1, params, {}, {'momentum': momentum}), metrics


def batches(start: int):
  for i in range(start, NUM_STEPS):
    yield (np.random.RandomState(i).randn(3).astype(np.float32),)


def fit(folder, inputs=batches, the_plan=None, evaluate=lambda state: {}, the_step=step, **how):
  loop.fit(
    epath.Path(folder),
    'toy',
    the_plan or plan(),
    like=jax.eval_shape(init),
    init=init,
    step=jax.jit(the_step, donate_argnums=0),
    inputs=inputs,
    evaluate=evaluate,
    learning_rate=lambda i: 0.1 * i,
    **how,
  )


def final_state(folder) -> State:
  with Checkpoints(epath.Path(folder) / 'checkpoints', create=False) as checkpoints:
    return checkpoints.restore(jax.eval_shape(init), NUM_STEPS)


def rows(folder) -> list[dict]:
  found = [json.loads(line) for line in (folder / 'metrics.jsonl').read_text().splitlines()]
  return [{k: v for k, v in row.items() if k != 'examples_per_second'} for row in found]


def test_events_are_spread_and_end_on_the_last_step():
  made = plan()
  assert made.logs == {5, 10, 15, 20}
  assert made.evals == {10, 20}
  assert made.saves == {4, 8, 12, 16, 20}
  assert made.keeps == {0, 6}
  assert made.saves | made.keeps | made.logs | made.evals == made.stops
  assert plan(num_logs=100).logs == set(range(1, 21))
  assert made.epoch(20) == 5.0


def test_metrics_are_means_over_all_steps_since_the_last_row(tmp_path):
  fit(tmp_path, evaluate=lambda state: {'test/w': float(state.params['w'][0])})
  found = {row['step']: row for row in rows(tmp_path)}
  assert sorted(found) == [4, 5, 6, 8, 10, 12, 15, 16, 20]
  losses = [np.random.RandomState(i).randn(3).astype(np.float32) for i in range(NUM_STEPS)]
  np.testing.assert_allclose(found[12]['train/loss'], np.mean(losses[10:12]), rtol=1e-5)
  np.testing.assert_allclose(found[20]['train/loss'], np.mean(losses[16:20]), rtol=1e-5)
  assert found[10]['learning_rate'] == 1.0
  assert [s for s in sorted(found) if 'test/w' in found[s]] == [10, 20]
  np.testing.assert_allclose(found[20]['test/w'], final_state(tmp_path).params['w'][0])
  complete = files.read_json(epath.Path(tmp_path) / 'complete.json')
  log = (tmp_path / 'metrics.jsonl').read_bytes()
  assert complete == {'step': 20, 'log_sha256': hashlib.sha256(log).hexdigest()}
  assert list((tmp_path / 'tensorboard').glob('events.out.tfevents.*'))


def test_the_last_epoch_has_a_mean_of_its_own(tmp_path):
  """45 examples in batches of 10: the last five steps."""
  values = np.random.default_rng(0).random(NUM_STEPS)

  def agreeing(state, x, value):
    state, metrics = step(state, x)
    pairs = {name: metrics[name] for name in metrics.names}
    return state, Metrics.from_sums(pairs | {'top1_agreement': (10 * value, 10)})

  the_plan = plan(num_examples=45, num_logs=1, num_evals=1, keep_checkpoints=(0.9,))
  assert the_plan.last_epoch == 15
  fit(
    tmp_path,
    lambda start: ((x, values[i]) for i, (x,) in enumerate(batches(start), start)),
    the_plan,
    the_step=agreeing,
  )
  found = loop.last_epoch_means(epath.Path(tmp_path), the_plan)
  assert set(found) == {'loss', 'top1_agreement'}
  assert found['top1_agreement'] == pytest.approx(values[15:].mean(), rel=1e-6)
  assert plan(num_examples=10_000).last_epoch == 0


def test_a_training_of_no_steps_leaves_its_start(tmp_path):
  fit(tmp_path, the_plan=plan(num_steps=0, keep_checkpoints=()))
  assert loop.is_complete(epath.Path(tmp_path))
  with Checkpoints(epath.Path(tmp_path) / 'checkpoints', create=False) as checkpoints:
    assert digest(checkpoints.restore(jax.eval_shape(init), 0)) == digest(init())
  assert rows(tmp_path) == []


def test_a_metric_of_labels_counts_only_what_has_them(tmp_path):
  """Steps 1 to 4 have no label, and 5 to 8 have 0 to 3 of them."""
  counts = np.maximum(np.arange(NUM_STEPS) - 4, 0).clip(max=3)

  def counted(state, x, count):
    state, metrics = step(state, x)
    pairs = {name: metrics[name] for name in metrics.names}
    return state, Metrics.from_sums(pairs | {'accuracy': (count * 0.5, count)})

  fit(
    tmp_path,
    lambda start: ((x, counts[i]) for i, (x,) in enumerate(batches(start), start)),
    plan(num_logs=10, num_checkpoints=1, keep_checkpoints=()),
    the_step=counted,
  )
  found = {row['step']: row.get('train/accuracy') for row in rows(tmp_path)}
  assert found == {2: None, 4: None} | dict.fromkeys(range(6, 21, 2), 0.5)


@pytest.fixture(scope='module')
def undisturbed(tmp_path_factory):
  """The folder of an uninterrupted training with single steps."""
  folder = tmp_path_factory.mktemp('undisturbed')
  fit(folder)
  return folder


@pytest.mark.parametrize('stop', [1, 4, 7])
def test_an_interrupted_training_ends_bit_for_bit_where_the_undisturbed_one_does(
  undisturbed, tmp_path, stop
):
  def interrupted(start):
    yield from itertools.islice(batches(start), stop)
    raise KeyboardInterrupt

  with pytest.raises(KeyboardInterrupt):
    fit(tmp_path, interrupted)
  assert not loop.is_complete(tmp_path)
  seen = []

  def resumed(start):
    seen.append(start)
    return batches(start)

  fit(tmp_path, resumed)
  assert seen == [max((s for s in plan().saves | plan().keeps if s <= stop), default=0)]
  assert digest(final_state(tmp_path)) == digest(final_state(undisturbed))
  assert rows(tmp_path) == rows(undisturbed)


def test_reading_a_checkpoint_writes_nothing_and_logs_no_warning(tmp_path, caplog, monkeypatch):
  """Orbax logs by absl, whose warnings a notebook shows."""
  fit(tmp_path)
  monkeypatch.setattr(absl_logging.get_absl_logger(), 'propagate', True)
  verbosity = absl_logging.get_verbosity()
  absl_logging.set_verbosity(absl_logging.WARNING)
  before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob('*')}
  try:
    loop.restore(epath.Path(tmp_path), jax.eval_shape(init))
  finally:
    absl_logging.set_verbosity(verbosity)
  assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob('*')} == before
  assert [record.message for record in caplog.records if record.name == 'absl'] == []


def test_a_loss_that_is_not_finite_stops_with_the_step_and_the_last_good_checkpoint(tmp_path):
  def diverging(start):
    for i, (x,) in enumerate(batches(start), start + 1):
      yield (x * np.float32(np.inf) if i >= 14 else x,)

  with pytest.raises(DivergedError, match='at step 14') as error:
    fit(tmp_path, diverging)
  assert str(tmp_path / 'checkpoints' / '12') in str(error.value)
  assert not loop.is_complete(tmp_path)
  with Checkpoints(epath.Path(tmp_path) / 'checkpoints', create=False) as checkpoints:
    assert checkpoints.steps == [0, 6, 12]
    assert np.isfinite(checkpoints.restore(jax.eval_shape(init)).params['w']).all()


def test_a_diverged_training_is_not_repeated_until_its_mark_is_deleted(tmp_path):
  """Here at the first step, before any checkpoint."""
  folder, the_plan = epath.Path(tmp_path), plan(keep_checkpoints=())
  assert not loop.has_diverged(folder)
  with pytest.raises(DivergedError, match=r'at step 1\. There is no checkpoint before it') as first:
    fit(folder, lambda start: iter([(np.full(3, np.nan, np.float32),)] * NUM_STEPS), the_plan)
  assert loop.has_diverged(folder)

  def unused(start):
    raise AssertionError(f'trains from {start}')

  with pytest.raises(DivergedError) as second:
    fit(folder, unused, the_plan)
  told = f'{first.value} (Recorded in {tmp_path / "diverged.json"}; delete this file'
  assert str(second.value).startswith(told)
  (tmp_path / 'diverged.json').unlink()
  fit(folder, batches, the_plan)
  assert loop.is_complete(folder)


@pytest.mark.parametrize('content', [None, '{"step": 4, "train/loss": 9}\n'])
def test_the_last_checkpoint_gives_a_damaged_log_back(undisturbed, tmp_path, content):
  shutil.copytree(undisturbed, tmp_path, dirs_exist_ok=True)
  expected = rows(tmp_path)
  log = tmp_path / 'metrics.jsonl'
  log.unlink() if content is None else log.write_text(content)
  assert not loop.is_complete(epath.Path(tmp_path))
  fit(tmp_path, lambda start: batches(start) if start < NUM_STEPS else iter(()))
  assert loop.is_complete(epath.Path(tmp_path))
  assert rows(tmp_path) == expected


# Several steps a call.


STOPS = (4, 5, 6, 8, 10, 12, 15, 16, 20)
SIZES = [3, 1, 1, 1, 1, 1, 1, 1, 1, 1, 3, 1, 3, 1]


def test_no_call_crosses_a_stop():
  for done, sizes in [(0, SIZES), (8, SIZES[6:]), (16, SIZES[-2:]), (20, [])]:
    blocks = list(loop._blocks(iter(range(done, NUM_STEPS)), done, STOPS, 3))
    assert [len(block) for block in blocks] == sizes
    assert list(itertools.chain(*blocks)) == list(range(done, NUM_STEPS))


def test_steps_per_dispatch_follow_the_platform(monkeypatch):
  assert plan().steps_per_dispatch == 1
  assert plan(steps_per_dispatch=None).steps_per_dispatch == 1
  monkeypatch.setattr(jax, 'default_backend', lambda: 'gpu')
  assert plan(steps_per_dispatch=None).steps_per_dispatch == 10
  assert plan(steps_per_dispatch=3).steps_per_dispatch == 3


def seeded_batches(start: int):
  """On one device."""
  for (x,) in batches(start):
    yield x[None], 5


def seeded_step(state, x_D, seed):
  return step(state, x_D[0] * seed)


def fit_by_threes(folder, inputs=seeded_batches) -> list[int]:
  """Trains with three steps a call; returns the steps that each call of several began after."""
  several, calls = partial(steps.multi_step, step=lambda state, x, seed: step(state, x * seed)), []
  on_one_device = jax.jit(lambda state, x_DK, seed: several(state, x_DK[0], seed))

  def counted(state, *arguments):
    calls.append(int(state.step))
    return on_one_device(state, *arguments)

  fit(folder, inputs, plan(steps_per_dispatch=3), the_step=seeded_step, multi_step=counted)
  return calls


def test_several_steps_a_call_give_what_single_ones_give_and_go_on_bit_for_bit(tmp_path):
  fit(tmp_path / 'single', seeded_batches, the_step=seeded_step)
  assert fit_by_threes(tmp_path / 'several') == [0, 12, 16]
  found, expected = (final_state(tmp_path / name) for name in ('several', 'single'))
  jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-5), found, expected)
  for of_several, of_single in zip(
    *(rows(tmp_path / n) for n in ('several', 'single')), strict=True
  ):
    assert of_several == pytest.approx(of_single, rel=1e-5)

  def interrupted(start):
    yield from itertools.islice(seeded_batches(start), 14)
    raise KeyboardInterrupt

  with pytest.raises(KeyboardInterrupt):
    fit_by_threes(tmp_path / 'resumed', interrupted)
  assert fit_by_threes(tmp_path / 'resumed') == [12, 16]
  assert digest(final_state(tmp_path / 'resumed')) == digest(final_state(tmp_path / 'several'))
  assert rows(tmp_path / 'resumed') == rows(tmp_path / 'several')


def test_a_divergence_within_a_call_is_reported_with_its_step(tmp_path):
  def diverging(start):
    for i, (x, seed) in enumerate(seeded_batches(start), start + 1):
      yield x * np.float32(np.nan if i == 14 else 1), seed

  with pytest.raises(DivergedError, match='at step 14'):
    fit_by_threes(tmp_path, diverging)
