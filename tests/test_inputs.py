"""Inputs: which examples and views a batch has, and which other images they meet."""

import numpy as np
import pytest
import scipy.stats
from conftest import tiny_run

from kdjax import data, keys, steps
from kdjax.inputs import Inputs, Replacement
from kdjax.views import make_view

NUM_EXAMPLES, NUM_OTHERS = 200, 50


@pytest.fixture(scope='module')
def run(tmp_path_factory):
  return tiny_run(tmp_path_factory.mktemp('inputs'))  # 200 examples, 3 views


def test_epoch_e_sees_view_e_mod_num_views(run):
  batches = list(run.inputs['distillation'].training(0, 48, 42, start=0))
  views = np.concatenate([steps.unshard(batch['views']) for batch in batches])
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
  seen = [steps.unshard(batch['indices'])[:count] for batch, count in batches]
  np.testing.assert_array_equal(np.concatenate(seen), indices)
  for batch, _ in batches:
    assert steps.unshard(batch['indices']).shape == (64,)
    assert (steps.unshard(batch['views']) == 2).all()


# Partners and replacements. The examples' only pixel is their index, that of the others 200 + theirs.


def make_inputs(
  seed=0, num_examples=NUM_EXAMPLES, probability=None, num_others=NUM_OTHERS, has_partners=False
) -> Inputs:
  pixels = np.arange(num_examples, dtype=np.uint8)[:, None, None, None]
  split = data.Split(pixels, np.arange(num_examples, dtype=np.int32) % 10)
  replacement = None
  if probability is not None:
    others = np.arange(NUM_EXAMPLES, NUM_EXAMPLES + num_others, dtype=np.uint8)
    replacement = Replacement(others[:, None, None, None], probability)
  view = make_view((), None)
  return Inputs(split, view, seed, replacement=replacement, has_partners=has_partners)


def unsharded(batch):
  return {name: steps.unshard(x) for name, x in batch.items()}


def batch(inputs, indices, view=0):
  """A batch of examples in one view, or each in its own; images as the value of their pixel."""
  indices = np.asarray(indices, np.int32)
  found = unsharded(inputs.batch(indices, np.broadcast_to(np.int32(view), indices.shape).copy()))
  return found | {k: found[k][:, 0, 0, 0].astype(int) for k in ('inputs', 'partners') if k in found}


EVERYONE = np.arange(NUM_EXAMPLES)


@pytest.mark.parametrize('view', [0, 1, 299])
def test_partners_are_one_permutation_of_all_for_each_view(view):
  found = batch(make_inputs(3, has_partners=True), EVERYONE, view)
  expected = keys.numpy_rng(3, 'view/partners', view).permutation(NUM_EXAMPLES)
  np.testing.assert_array_equal(found['partner_indices'], expected)
  np.testing.assert_array_equal(found['partners'], expected)
  np.testing.assert_array_equal(found['inputs'], EVERYONE)
  assert found['partner_indices'].dtype == np.int32


def test_partners_are_uniform_over_views():
  """Of example 3 among 20, in 2,000 views."""
  views = np.arange(2000)
  found = batch(make_inputs(num_examples=20, has_partners=True), np.full(2000, 3), views)
  assert scipy.stats.chisquare(np.bincount(found['partners'], minlength=20)).pvalue > 1e-3


@pytest.mark.parametrize('probability', [0.2, 1.0])
def test_replacements_are_one_table_for_each_view(probability):
  """Replaced with the probability, by any of the others; without a label where replaced, only."""
  inputs, num_views = make_inputs(5, probability=probability), 20
  found = [batch(inputs, EVERYONE, view) for view in range(num_views)]
  pixels = np.stack([of_view['inputs'] for of_view in found])
  labels = np.stack([of_view['labels'] for of_view in found])
  replaced = pixels >= NUM_EXAMPLES
  test = scipy.stats.binomtest(int(replaced.sum()), replaced.size, probability)
  assert test.pvalue > 1e-3
  kept = np.broadcast_to(EVERYONE, pixels.shape)
  np.testing.assert_array_equal(pixels[~replaced], kept[~replaced])
  np.testing.assert_array_equal(labels, np.where(replaced, -1, kept % 10))
  counts = np.bincount(pixels[replaced] - NUM_EXAMPLES, minlength=NUM_OTHERS)
  assert len(counts) == NUM_OTHERS and scipy.stats.chisquare(counts).pvalue > 1e-3
  rng = keys.numpy_rng(5, 'view/replacements', 3)
  others = NUM_EXAMPLES + rng.integers(NUM_OTHERS, size=NUM_EXAMPLES)
  expected = np.where(rng.random(NUM_EXAMPLES) < probability, others, EVERYONE)
  np.testing.assert_array_equal(pixels[3], expected)


def test_an_example_is_replaced_anew_in_every_view():
  inputs = make_inputs(probability=0.5)
  replaced = np.stack([batch(inputs, EVERYONE, view)['inputs'] for view in range(40)]) >= 200
  # Independent draws: by example and by view the counts scatter as those of coins do.
  for axis, coins in ((0, 40), (1, NUM_EXAMPLES)):
    spread = replaced.sum(axis).var() / (coins / 4)
    assert 0.4 < spread < 2.2


def test_the_data_itself_stays_as_it_is():
  inputs = make_inputs(probability=1.0)
  batch(inputs, EVERYONE)
  assert (inputs.split.labels_N >= 0).all()
  np.testing.assert_array_equal(inputs.split.inputs_N[:, 0, 0, 0], EVERYONE)


def test_a_partner_can_be_replaced_too():
  inputs = make_inputs(probability=0.4, has_partners=True)
  found = batch(inputs, EVERYONE, 6)
  of_partners = batch(inputs, found['partner_indices'], 6)
  np.testing.assert_array_equal(found['partners'], of_partners['inputs'])
  assert 40 < (found['partners'] >= NUM_EXAMPLES).sum() < 120
  alone = batch(make_inputs(has_partners=True), EVERYONE, 6)
  np.testing.assert_array_equal(found['partner_indices'], alone['partner_indices'])
  of_one = batch(make_inputs(probability=0.4), EVERYONE, 6)
  np.testing.assert_array_equal(found['inputs'], of_one['inputs'])
  np.testing.assert_array_equal(found['labels'], of_one['labels'])


def test_whom_an_example_meets_does_not_depend_on_the_batch():
  """Nor on what was asked for before: views come in any order, and more of them than are kept."""
  inputs = make_inputs(probability=0.4, has_partners=True)
  views = [batch(inputs, EVERYONE, view) for view in range(10)]
  rng = np.random.default_rng(0)
  indices, numbers = rng.integers(NUM_EXAMPLES, size=300), rng.integers(10, size=300)
  mixed = batch(inputs, indices, numbers)
  for name in ('inputs', 'labels', 'partners', 'partner_indices'):
    expected = [views[v][name][i] for i, v in zip(indices, numbers, strict=True)]
    np.testing.assert_array_equal(mixed[name], expected)
    alone = [batch(inputs, [i], v)[name][0] for i, v in zip(indices[:9], numbers, strict=False)]
    np.testing.assert_array_equal(alone, expected[:9])


@pytest.mark.parametrize('changed', [{'seed': 1}, {'view': 1}], ids=['seed', 'view'])
def test_seeds_and_views_differ(changed):
  def found(seed=0, view=0):
    return batch(make_inputs(seed, probability=0.5, has_partners=True), EVERYONE, view)

  first, other = found(), found(**changed)
  assert (first['partner_indices'] == other['partner_indices']).sum() < 8
  differ = (first['inputs'] >= NUM_EXAMPLES) != (other['inputs'] >= NUM_EXAMPLES)
  assert scipy.stats.binomtest(int(differ.sum()), NUM_EXAMPLES, 0.5).pvalue > 1e-3


def test_training_batches_that_reach_into_the_next_epoch_have_the_partners_of_both_views():
  inputs = make_inputs(probability=0.4, has_partners=True)
  (found,) = inputs.training(0, 48, 5, start=4)
  found = unsharded(found)
  assert set(found['views']) == {0, 1}
  expected = batch(inputs, found['indices'], found['views'])
  for name in ('inputs', 'partners'):
    np.testing.assert_array_equal(found[name][:, 0, 0, 0], expected[name])
