import numpy as np
import pytest
from conftest import tiny_run

from kdjax import steps


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
  batch = {name: steps.unshard(array) for name, array in batch.items()}
  train = run.splits['train']
  np.testing.assert_array_equal(batch['images'], train.images_NHWC[batch['indices']])
  np.testing.assert_array_equal(batch['labels'], train.labels_N[batch['indices']])
  assert len(set(batch['indices'])) > 40


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
