import itertools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath

from kdjax import training
from kdjax.checkpoint import Checkpoints, digest
from kdjax.errors import DivergedError
from kdjax.steps import State

NUM_STEPS = 20


def plan(**fields) -> training.Plan:
  arguments = {
    'num_steps': NUM_STEPS,
    'batch_size': 10,
    'num_examples': 40,
    'num_logs': 4,
    'num_evals': 2,
    'num_checkpoints': 5,
    'keep_checkpoints': (0.0, 0.3),
  }
  return training.make_plan(**arguments | fields)


def init() -> State:
  return State(jnp.zeros((), jnp.int32), {'w': jnp.ones(3)}, {}, {'momentum': jnp.zeros(3)})


def step(state, x):
  """A toy with momentum, so that both have to be restored."""
  momentum = 0.9 * state.opt_state['momentum'] + x
  params = {'w': state.params['w'] - 0.1 * momentum}
  metrics = {
    'loss': (x.sum(), jnp.asarray(3)),
    'gradient_norm': (jnp.abs(x).max(), jnp.asarray(1)),
  }
  return State(state.step + 1, params, {}, {'momentum': momentum}), metrics


def batches(start: int):
  for i in range(start, NUM_STEPS):
    yield (np.random.RandomState(i).randn(3).astype(np.float32),)


def fit(folder, inputs=batches, the_plan=None, evaluate=lambda state: {}, the_step=step):
  training.fit(
    epath.Path(folder),
    'toy',
    the_plan or plan(),
    like=jax.eval_shape(init),
    init=init,
    step=jax.jit(the_step, donate_argnums=0),
    inputs=inputs,
    evaluate=evaluate,
    learning_rate=lambda i: 0.1 * i,
  )


def final_state(folder) -> State:
  with Checkpoints(epath.Path(folder) / 'checkpoints', read_only=True) as checkpoints:
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
  assert json.loads((tmp_path / 'complete.json').read_text()) == {'step': 20}
  assert list((tmp_path / 'tensorboard').glob('events.out.tfevents.*'))


def test_a_metric_of_labels_counts_only_what_has_them(tmp_path):
  """Steps 1 to 4 have no label, and 5 to 8 have 0 to 3 of them."""
  counts = np.maximum(np.arange(NUM_STEPS) - 4, 0).clip(max=3)

  def counted(state, x, count):
    state, metrics = step(state, x)
    return state, metrics | {'accuracy': (count * 0.5, count)}

  fit(
    tmp_path,
    lambda start: ((x, counts[i]) for i, (x,) in enumerate(batches(start), start)),
    plan(num_logs=10, num_checkpoints=1, keep_checkpoints=()),
    the_step=counted,
  )
  found = {row['step']: row.get('train/accuracy') for row in rows(tmp_path)}
  assert found == {2: None, 4: None} | dict.fromkeys(range(6, 21, 2), 0.5)


@pytest.mark.parametrize('stop', [0, 1, 4, 7, 15, 19, 20])
def test_an_interrupted_training_ends_bit_for_bit_where_the_undisturbed_one_does(tmp_path, stop):
  fit(tmp_path / 'undisturbed')

  def interrupted(start):
    yield from itertools.islice(batches(start), stop)
    raise KeyboardInterrupt

  with pytest.raises(KeyboardInterrupt):
    fit(tmp_path / 'resumed', interrupted)
  assert not training.is_complete(tmp_path / 'resumed')
  seen = []

  def resumed(start):
    seen.append(start)
    return batches(start)

  fit(tmp_path / 'resumed', resumed)
  assert seen == [max((s for s in plan().saves | plan().keeps if s <= stop), default=0)]
  assert digest(final_state(tmp_path / 'resumed')) == digest(final_state(tmp_path / 'undisturbed'))
  assert rows(tmp_path / 'resumed') == rows(tmp_path / 'undisturbed')


@pytest.mark.parametrize('value', [np.nan, np.inf])
def test_a_loss_that_is_not_finite_stops_with_the_step_and_the_last_good_checkpoint(
  tmp_path, value
):
  def diverging(start):
    for i, (x,) in enumerate(batches(start), start + 1):
      yield (x * np.float32(value) if i >= 14 else x,)

  with pytest.raises(DivergedError, match='at step 14') as error:
    fit(tmp_path, diverging)
  assert str(tmp_path / 'checkpoints' / '12') in str(error.value)
  assert not training.is_complete(tmp_path)
  with Checkpoints(epath.Path(tmp_path) / 'checkpoints', read_only=True) as checkpoints:
    assert checkpoints.steps == [0, 6, 12]
    assert np.isfinite(checkpoints.restore(jax.eval_shape(init)).params['w']).all()


def test_a_divergence_before_any_checkpoint_says_so(tmp_path):
  with pytest.raises(DivergedError, match=r'at step 1\. There is no checkpoint before it'):
    fit(
      tmp_path,
      lambda start: iter([(np.full(3, np.nan, np.float32),)] * NUM_STEPS),
      plan(keep_checkpoints=()),
    )
