"""Inputs: which examples and views a batch has, and which partners they are mixed with."""

import jax
import numpy as np
import pytest
import scipy.stats
from conftest import tiny_run

from kdjax import data, keys
from kdjax.data.views import make_view
from kdjax.train import devices
from kdjax.train.inputs import Inputs, training_batch


@pytest.fixture(scope='module')
def run(tmp_path_factory):
  return tiny_run(tmp_path_factory.mktemp('inputs'))  # 200 examples, 3 views


def test_epoch_e_sees_view_e_mod_num_views(run):
  batches = list(run.data.inputs['distillation'].training(0, 48, 42, start=0))
  views = np.concatenate([devices.unshard(batch['views']) for batch in batches])
  expected = np.repeat([0, 1, 2, 0, 1, 2, 0, 1, 2, 0, 1], 200)[: 48 * 42]
  np.testing.assert_array_equal(views, expected)


def test_batches_hold_the_examples_of_their_indices(run):
  (batch,) = run.data.inputs['distillation'].training(0, 48, 8, start=7)
  batch = unsharded(batch)
  train = run.data.splits['train']
  np.testing.assert_array_equal(batch['inputs'], train.inputs_N[batch['indices']])
  np.testing.assert_array_equal(batch['labels'], train.labels_N[batch['indices']])
  assert len(set(batch['indices'])) > 40
  assert set(batch) == {'inputs', 'labels', 'indices', 'views'}


def test_evaluation_takes_every_example_once_and_fills_up_the_last_batch(run):
  for num_examples, counts in ((1, [1]), (64, [64]), (150, [64, 64, 22])):
    indices = np.arange(num_examples) + 7
    batches = list(run.data.inputs['distillation'].evaluation(indices, view=2, batch_size=64))
    assert [count for _, count in batches] == counts
    seen = [devices.unshard(batch['indices'])[:count] for batch, count in batches]
    np.testing.assert_array_equal(np.concatenate(seen), indices)
    for batch, _ in batches:
      assert devices.unshard(batch['indices']).shape == (64,)
      assert (devices.unshard(batch['views']) == 2).all()


# Partners. The examples' only pixel is their index.


NUM_EXAMPLES = 200
EVERYONE = np.arange(NUM_EXAMPLES)


def make_inputs(seed=0, num_examples=NUM_EXAMPLES) -> Inputs:
  pixels = np.arange(num_examples, dtype=np.uint8)[:, None, None, None]
  split = data.Split(pixels, np.arange(num_examples, dtype=np.int32) % 10)
  return Inputs(split, make_view((), None), seed, has_partners=True)


def unsharded(batch):
  return jax.tree.map(devices.unshard, batch)


def batch(inputs, indices, view=0):
  """A batch of examples in one view, or each in its own; images as the value of their pixel."""
  indices = np.asarray(indices, np.int32)
  found = inputs.batch(indices, np.broadcast_to(np.int32(view), indices.shape).copy())
  return jax.tree.map(lambda x: x[:, 0, 0, 0].astype(int) if x.ndim == 4 else x, found)


def partners_of(inputs, indices, view=0):
  return batch(inputs, indices, view)['partners']['indices']


@pytest.mark.parametrize('view', [0, 1, 299])
def test_partners_are_one_permutation_of_all_for_each_view(view):
  found = batch(make_inputs(3), EVERYONE, view)
  expected = keys.numpy_rng(3, 'view/partners', view).permutation(NUM_EXAMPLES)
  np.testing.assert_array_equal(found['inputs'], EVERYONE)
  partners = found['partners']
  np.testing.assert_array_equal(partners['indices'], expected)
  np.testing.assert_array_equal(partners['inputs'], expected)
  np.testing.assert_array_equal(partners['labels'], expected % 10)
  np.testing.assert_array_equal(partners['views'], found['views'])
  assert partners['indices'].dtype == np.int32 and set(partners) == {*found} - {'partners'}


def test_partners_are_uniform_over_views():
  """The partners of example 3 among 20, in 2,000 views."""
  found = partners_of(make_inputs(num_examples=20), np.full(2000, 3), np.arange(2000))
  assert scipy.stats.chisquare(np.bincount(found, minlength=20)).pvalue > 1e-3


def test_a_partner_does_not_depend_on_the_batch():
  """Nor on earlier calls: views come in any order, and more of them than the cache keeps."""
  inputs = make_inputs()
  views = [partners_of(inputs, EVERYONE, view) for view in range(10)]
  rng = np.random.default_rng(0)
  indices, numbers = rng.integers(NUM_EXAMPLES, size=300), rng.integers(10, size=300)
  expected = [views[v][i] for i, v in zip(indices, numbers, strict=True)]
  np.testing.assert_array_equal(partners_of(inputs, indices, numbers), expected)
  alone = [partners_of(inputs, [i], v)[0] for i, v in zip(indices[:9], numbers, strict=False)]
  np.testing.assert_array_equal(alone, expected[:9])


def test_partners_of_other_seeds_and_views_differ():
  first = partners_of(make_inputs(), EVERYONE)
  for seed, view in ((1, 0), (0, 1)):
    assert (first == partners_of(make_inputs(seed), EVERYONE, view)).sum() < 8


def test_training_batches_that_reach_into_the_next_epoch_have_the_partners_of_both_views():
  inputs = make_inputs()
  (found,) = inputs.training(0, 48, 5, start=4)
  found = unsharded(found)
  assert set(found['views']) == {0, 1}
  expected = partners_of(inputs, found['indices'], found['views'])
  np.testing.assert_array_equal(found['partners']['inputs'][:, 0, 0, 0], expected)


# The order of the examples.


def ordered(num_examples, batch_size, num_steps, seed=0, start=0):
  """The indices and epochs of all batches, each of shape (step, batch)."""
  found = [training_batch(seed, num_examples, batch_size, i) for i in range(start, num_steps)]
  return tuple(map(np.stack, zip(*found, strict=True)))


def test_members_that_take_turns_draw_each_order_once(monkeypatch):
  drawn = []
  numpy_rng = keys.numpy_rng
  monkeypatch.setattr(keys, 'numpy_rng', lambda *path: drawn.append(path) or numpy_rng(*path))
  for step in range(17):
    for seed in range(100, 108):
      training_batch(seed, 40, 7, step)
  assert sorted(drawn) == [(seed, 'order', epoch) for seed in range(100, 108) for epoch in range(3)]


@pytest.mark.parametrize(
  ('num_examples', 'batch_size'), [(12, 4), (10, 4), (10, 25), (10, 10), (7, 1), (1, 3)]
)
def test_every_example_comes_once_an_epoch(num_examples, batch_size):
  num_epochs = 5
  num_steps = -(-num_epochs * num_examples // batch_size)
  indices, epochs = ordered(num_examples, batch_size, num_steps)
  assert indices.shape == epochs.shape == (num_steps, batch_size)
  assert indices.dtype == epochs.dtype == np.int32
  np.testing.assert_array_equal(epochs.ravel(), np.arange(num_steps * batch_size) // num_examples)
  for epoch in range(num_epochs):
    np.testing.assert_array_equal(np.sort(indices[epochs == epoch]), np.arange(num_examples))


@pytest.mark.parametrize('batch_size', [4, 25])
def test_a_resumed_stream_is_the_uninterrupted_one(batch_size):
  """The order is the same for any batch size."""
  whole = ordered(10, batch_size, 12)
  for start in (1, 2, 7, 11):
    for expected, found in zip(whole, ordered(10, batch_size, 12, start=start), strict=True):
      np.testing.assert_array_equal(found, expected[start:])
  np.testing.assert_array_equal(ordered(10, 12, batch_size)[0].ravel(), whole[0].ravel())


def test_orders_differ_between_epochs_and_seeds():
  orders = [ordered(50, 50, 3, seed)[0][epoch] for seed in (0, 1) for epoch in range(3)]
  assert len({order.tobytes() for order in orders}) == 6
  assert not any((order == np.arange(50)).all() for order in orders)
