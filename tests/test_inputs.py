"""Inputs: which examples and views a batch has, and which other images they may meet."""

import jax
import numpy as np
import pytest
import scipy.stats
from conftest import tiny_run

from kdjax import data, devices, keys
from kdjax.inputs import Inputs
from kdjax.views import make_view

NUM_EXAMPLES, NUM_OTHERS = 200, 50


@pytest.fixture(scope='module')
def run(tmp_path_factory):
  return tiny_run(tmp_path_factory.mktemp('inputs'))  # 200 examples, 3 views


def test_epoch_e_sees_view_e_mod_num_views(run):
  batches = list(run.inputs['distillation'].training(0, 48, 42, start=0))
  views = np.concatenate([devices.unshard(batch['views']) for batch in batches])
  expected = np.repeat([0, 1, 2, 0, 1, 2, 0, 1, 2, 0, 1], 200)[: 48 * 42]
  np.testing.assert_array_equal(views, expected)


def test_batches_hold_the_examples_of_their_indices(run):
  (batch,) = run.inputs['distillation'].training(0, 48, 8, start=7)
  batch = unsharded(batch)
  train = run.splits['train']
  np.testing.assert_array_equal(batch['inputs'], train.inputs_N[batch['indices']])
  np.testing.assert_array_equal(batch['labels'], train.labels_N[batch['indices']])
  assert len(set(batch['indices'])) > 40
  assert set(batch) == {'inputs', 'labels', 'indices', 'views'}


@pytest.mark.parametrize('num_examples, counts', [(1, [1]), (64, [64]), (150, [64, 64, 22])])
def test_evaluation_takes_every_example_once_and_fills_up_the_last_batch(run, num_examples, counts):
  indices = np.arange(num_examples) + 7
  batches = list(run.inputs['distillation'].evaluation(indices, view=2, batch_size=64))
  assert [count for _, count in batches] == counts
  seen = [devices.unshard(batch['indices'])[:count] for batch, count in batches]
  np.testing.assert_array_equal(np.concatenate(seen), indices)
  for batch, _ in batches:
    assert devices.unshard(batch['indices']).shape == (64,)
    assert (devices.unshard(batch['views']) == 2).all()


# Partners and others. The examples' only pixel is their index, that of the others 200 + theirs.


def make_inputs(
  seed=0, num_examples=NUM_EXAMPLES, num_others=None, has_partners=False, view=None
) -> Inputs:
  pixels = np.arange(num_examples, dtype=np.uint8)[:, None, None, None]
  split = data.Split(pixels, np.arange(num_examples, dtype=np.int32) % 10)
  others = None
  if num_others is not None:
    others = np.arange(NUM_EXAMPLES, NUM_EXAMPLES + num_others, dtype=np.uint8)
    others = others[:, None, None, None]
  view = view or make_view((), None)
  return Inputs(split, view, seed, others_KX=others, has_partners=has_partners)


def unsharded(batch):
  return jax.tree.map(devices.unshard, batch)


def batch(inputs, indices, view=0):
  """A batch of examples in one view, or each in its own; images as the value of their pixel."""
  indices = np.asarray(indices, np.int32)
  found = unsharded(inputs.batch(indices, np.broadcast_to(np.int32(view), indices.shape).copy()))
  return jax.tree.map(lambda x: x[:, 0, 0, 0].astype(int) if x.ndim == 4 else x, found)


EVERYONE = np.arange(NUM_EXAMPLES)


@pytest.mark.parametrize('view', [0, 1, 299])
def test_partners_are_one_permutation_of_all_for_each_view(view):
  found = batch(make_inputs(3, has_partners=True), EVERYONE, view)
  expected = keys.numpy_rng(3, 'view/partners', view).permutation(NUM_EXAMPLES)
  np.testing.assert_array_equal(found['inputs'], EVERYONE)
  partners = found['partners']
  np.testing.assert_array_equal(partners['indices'], expected)
  np.testing.assert_array_equal(partners['inputs'], expected)
  np.testing.assert_array_equal(partners['labels'], expected % 10)
  np.testing.assert_array_equal(partners['views'], found['views'])
  assert partners['indices'].dtype == np.int32 and set(partners) == {*found} - {'partners'}


def test_partners_are_uniform_over_views():
  """Of example 3 among 20, in 2,000 views."""
  views = np.arange(2000)
  found = batch(make_inputs(num_examples=20, has_partners=True), np.full(2000, 3), views)
  counts = np.bincount(found['partners']['inputs'], minlength=20)
  assert scipy.stats.chisquare(counts).pvalue > 1e-3


def test_others_are_one_table_for_each_view():
  """Any of them, with equal probability, and the examples themselves stay as they are."""
  inputs = make_inputs(5, num_others=NUM_OTHERS)
  found = [batch(inputs, EVERYONE, view) for view in range(20)]
  for of_view in found:
    np.testing.assert_array_equal(of_view['inputs'], EVERYONE)
    np.testing.assert_array_equal(of_view['labels'], EVERYONE % 10)
  others = np.stack([of_view['others'] for of_view in found]) - NUM_EXAMPLES
  counts = np.bincount(others.reshape(-1), minlength=NUM_OTHERS)
  assert len(counts) == NUM_OTHERS and scipy.stats.chisquare(counts).pvalue > 1e-3
  expected = keys.numpy_rng(5, 'view/others', 3).integers(NUM_OTHERS, size=NUM_EXAMPLES)
  np.testing.assert_array_equal(others[3], expected)


def test_a_partner_has_the_other_of_its_own_index():
  inputs = make_inputs(num_others=NUM_OTHERS, has_partners=True)
  found = batch(inputs, EVERYONE, 6)
  of_partners = batch(inputs, found['partners']['indices'], 6)
  np.testing.assert_array_equal(found['partners']['others'], of_partners['others'])
  alone = batch(make_inputs(has_partners=True), EVERYONE, 6)
  np.testing.assert_array_equal(found['partners']['indices'], alone['partners']['indices'])
  of_one = batch(make_inputs(num_others=NUM_OTHERS), EVERYONE, 6)
  np.testing.assert_array_equal(found['others'], of_one['others'])


def test_a_replaced_example_is_seen_as_one_of_the_others():
  """From the split and the others to the step, which sees in half of all places one of them."""
  inputs = make_inputs(num_others=NUM_OTHERS, view=make_view((), None, 0.5))
  found = batch(inputs, EVERYONE, 2)
  gathered = inputs.batch(EVERYONE.astype(np.int32), np.full(NUM_EXAMPLES, 2, np.int32))
  images, labels = inputs.view(0, unsharded(gathered))
  pixels = np.round((np.asarray(images)[:, 0, 0, 0] + 1) * 127.5).astype(int)
  replaced = np.asarray(labels) == -1
  np.testing.assert_array_equal(pixels, np.where(replaced, found['others'], EVERYONE))
  assert 60 < replaced.sum() < 140


def flat(batch):
  """With the partners' arrays beside the others'."""
  leaves = jax.tree_util.tree_leaves_with_path(batch)
  return {jax.tree_util.keystr(path): x for path, x in leaves}


def test_whom_an_example_meets_does_not_depend_on_the_batch():
  """Nor on what was asked for before: views come in any order, and more of them than are kept."""
  inputs = make_inputs(num_others=NUM_OTHERS, has_partners=True)
  views = [flat(batch(inputs, EVERYONE, view)) for view in range(10)]
  rng = np.random.default_rng(0)
  indices, numbers = rng.integers(NUM_EXAMPLES, size=300), rng.integers(10, size=300)
  mixed = flat(batch(inputs, indices, numbers))
  assert len(mixed) == 10
  for name, found in mixed.items():
    expected = [views[v][name][i] for i, v in zip(indices, numbers, strict=True)]
    np.testing.assert_array_equal(found, expected)
    pairs = zip(indices[:9], numbers, strict=False)
    alone = [flat(batch(inputs, [i], v))[name][0] for i, v in pairs]
    np.testing.assert_array_equal(alone, expected[:9])


@pytest.mark.parametrize('changed', [{'seed': 1}, {'view': 1}], ids=['seed', 'view'])
def test_seeds_and_views_differ(changed):
  def found(seed=0, view=0):
    return batch(make_inputs(seed, num_others=NUM_OTHERS, has_partners=True), EVERYONE, view)

  first, other = found(), found(**changed)
  assert (first['partners']['indices'] == other['partners']['indices']).sum() < 8
  assert (first['others'] == other['others']).sum() < 20


def test_training_batches_that_reach_into_the_next_epoch_have_the_partners_of_both_views():
  inputs = make_inputs(num_others=NUM_OTHERS, has_partners=True)
  (found,) = inputs.training(0, 48, 5, start=4)
  found = flat(unsharded(found))
  assert set(found["['views']"]) == {0, 1}
  expected = flat(batch(inputs, found["['indices']"], found["['views']"]))
  for name in ("['inputs']", "['others']", "['partners']['inputs']"):
    np.testing.assert_array_equal(found[name][:, 0, 0, 0], expected[name])
