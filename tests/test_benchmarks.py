"""The benchmarks run, and compare equal work. Their times are not tested: machines are noisy."""

import dataclasses
import io
import sys
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import softmax

from analysis import runs
from kdjax import models
from kdjax.predictions.encodings import Dense, TopK
from kdjax.runtime import files
from tests.benchmarks import (
  allocator,
  dispatch,
  gpu,
  growth,
  layers,
  loop,
  members,
  planes,
  store,
  students,
  synthetic,
  timing,
  top_k,
  views,
)


def test_medians_are_of_pairs_that_were_timed_together():
  times = {'a': np.array([1.0, 4.0, 9.0]), 'b': np.array([1.0, 2.0, 3.0])}
  assert timing.ratio(times, 'a', 'b') == 2


SMALL = 'tests.small_network:Small'


@pytest.fixture
def small_loop(monkeypatch):
  """One network and size for all tests of the loop, so that they share what is compiled; no augmentations."""
  for name, number in {'BATCH': 2, 'PREDICTED': 16, 'ANALYSED': 16, 'NUM_MEMBERS': 1}.items():
    monkeypatch.setattr(loop, name, number)
  plain = partial(synthetic.config_of, teacher__augmentation=(), predictions__augmentation=())
  monkeypatch.setattr(synthetic, 'config_of', plain)
  monkeypatch.setitem(
    loop.SIZES, 'Small', loop.Size(SMALL, 20, 2, 2, num_points=2, num_examples=16)
  )


@pytest.mark.parametrize('work', loop.WORKS)
def test_the_benchmark_of_the_loop_runs(small_loop, work):
  row = loop.measured('Small', work, repeats=1)
  assert (row.model, row.work) == ('Small', work)
  assert row.examples_per_second > 0
  assert row.ratio == pytest.approx(row.bare_examples_per_second / row.examples_per_second)


def test_the_programs_of_the_benchmark_of_the_allocator_take_turns(small_loop, monkeypatch, capsys):
  monkeypatch.setitem(allocator.NUM_STEPS, 'Small', 2)
  monkeypatch.setattr(sys, 'stdin', io.StringIO('train\ntrain\n'))
  allocator._train_when_told('Small')
  assert capsys.readouterr().out == 'done\ndone\n'


def test_the_cost_of_a_dtype():
  log_probs_MNC, labels_N = store.simulated(num_members=2, num_examples=300, num_classes=20)
  costs = {cost.stored_as: cost for cost in store.costs(log_probs_MNC, labels_N)}
  assert costs['float32'].top1_agreement == 1
  assert costs['float32'].predictive_kl == 0
  assert {name: cost.num_bytes for name, cost in costs.items()} == {
    'float16': 40,
    'bfloat16': 40,
    'float32': 80,
  }
  assert 0 < costs['float16'].predictive_kl < costs['bfloat16'].predictive_kl < 1e-3


def test_the_budget_of_top_k(monkeypatch):
  log_probs_MNC, student_NC = top_k.simulated(20, num_examples=200, num_members=2)
  probs_MNC = np.exp(log_probs_MNC)
  assert probs_MNC[0].max(axis=-1).mean() == pytest.approx(top_k.CONFIDENCE, abs=1e-3)
  norm = np.linalg.norm(softmax(student_NC, axis=-1) - probs_MNC.mean(axis=0))
  kept_MNC = np.where(probs_MNC >= np.sort(probs_MNC)[..., -3, None], probs_MNC, 0)
  rest_MNC = (1 - kept_MNC.sum(-1, keepdims=True)) * (kept_MNC == 0) / 17
  truncated_MNC = kept_MNC / kept_MNC.sum(-1, keepdims=True)
  biases = {
    'truncated': np.linalg.norm((truncated_MNC - probs_MNC).mean(axis=0)),
    'tail': np.linalg.norm((kept_MNC + rest_MNC - probs_MNC).mean(axis=0)),
    'sampled': 0,
    'systematic': 0,
  }
  # The variance of two members with independent draws is p (1 − p) / k, and less for systematic ones.
  noise = np.sqrt((probs_MNC * (1 - probs_MNC)).sum() / 3) / 2 / norm
  budgets = {
    name: top_k.budget(TopK(3, name, 20, 0), log_probs_MNC, student_NC, 50) for name in biases
  }
  for name, bias in biases.items():
    assert budgets[name].bias == pytest.approx(bias / norm, rel=0.01, abs=0.05 * noise)
  assert [of.noise for of in budgets.values()][:2] == [0, 0]
  assert budgets['sampled'].noise == pytest.approx(noise, rel=0.05)
  assert 0 < budgets['systematic'].noise < 0.9 * noise
  assert [of.num_bytes for of in budgets.values()] == [12, 14, 6, 6]
  exact = top_k.budget(Dense('float16', 20), log_probs_MNC, student_NC)
  assert exact.kl < 1e-6 and exact.bias < 1e-3 and exact.num_bytes == 40
  monkeypatch.setattr(top_k, 'SIZES', {10: (2,)})
  assert top_k.table(log_probs_MNC[:, :20], student_NC[:20]).row_count == 1 + 4


def test_the_throughput_of_the_store():
  rate = store.throughput(num_classes=100, dtype='float16', repeats=1, num_examples=2000)
  assert min(rate.write, rate.read) > 0
  assert 100 < rate.num_bytes <= 200  # 100 classes in float16, compressed


def test_the_share_of_an_epoch_that_reading_takes(finished, monkeypatch):
  monkeypatch.setattr(timing, 'seconds', lambda read: 0.5 + 0 * read().sum())
  log = [{'examples_per_second': speed} for speed in (1.0, 50.0, 1000.0)]
  monkeypatch.setattr(files, 'read_json_lines', lambda path: log)
  of = store.reading(runs.load(finished.workdir))
  assert of.epoch_seconds == 200 / 50  # the tiny config has 200 examples
  assert of.share == 0.125


def test_the_benchmark_of_growth(small_loop, monkeypatch, tmp_path):
  monkeypatch.setattr(growth, 'MODEL', SMALL)
  monkeypatch.setattr(growth, 'NUM_STEPS', 2)
  point = growth.measure(num_examples=16, num_members=1, num_views=2, width=4)
  assert point.num_parameters == 32 * 32 * 3 * 12 + 12 * 12 + 12 * 10 + 34 + 2 * 24
  assert 2 * 16 * 10 < point.store_bytes < 2 * 16 * 10 * 2 + 60_000
  assert point.peak_bytes > 1e8
  swept = {'num_views': [point, dataclasses.replace(point, num_views=4)]}
  growth.draw(swept | {'width': [point]}, tmp_path / 'growth.png')
  assert (tmp_path / 'growth.png').stat().st_size > 1000
  assert growth.table(swept).row_count == 2


def test_the_benchmark_of_planes_runs(finished):
  study = runs.load(finished.workdir)
  assert planes.plane_overhead(study, resolution=2, repeats=1, num_examples=16) > 0


def test_the_benchmark_of_members_runs(monkeypatch):
  monkeypatch.setattr(members, 'REPEATS', 1)
  monkeypatch.setattr(members, 'BATCH', 2)
  label, *speeds, ratio = members.measure(SMALL, 20, num_steps=1)
  assert label == SMALL and min(*speeds, ratio) > 0


def test_the_benchmark_of_views_compares_equal_images(monkeypatch):
  monkeypatch.setattr(views, 'BATCH', 4)
  monkeypatch.setattr(views, 'SIDE', 8)
  names = ('crop', 'contrast')  # moves pixels; has a loop
  works = views.works(names)
  monkeypatch.setattr(views, 'works', lambda _: works)
  np.testing.assert_array_equal(works['loops'](), works['merged']())
  assert min(views.measure(names, repeats=1).values()) > 0


class OneBlock(nn.Module):
  """All that a ResNet convolves and normalises, once."""

  @nn.compact
  def __call__(self, x, train):
    block = models.BasicBlock(4, 2, models.NORMS['batch'](train, jnp.float32))
    return block(x).mean((1, 2)), {}


def test_the_benchmark_of_layers_compares_equal_gradients(monkeypatch):
  monkeypatch.setattr(models, 'build', lambda *_: OneBlock())
  monkeypatch.setattr(layers, 'BATCH', 2)
  monkeypatch.setattr(layers, 'CALLS', 1)
  ours, *others = (work() for work in layers.works(depth=8).values())
  assert len(others) == 2
  for other in others:
    assert jax.tree.structure(ours) == jax.tree.structure(other)
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(other), strict=True):
      np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


def test_all_students_at_once_are_what_each_is_in_a_loop(small_loop, monkeypatch):
  monkeypatch.setitem(students.MODELS, 'Small', (SMALL, 20))
  settings = students.Settings(num_students=2, per_call=2, num_steps=4, batch_size=16)
  trained = {way: students.work('Small', settings, way)() for way in students.WAYS}
  loop_of = trained.pop('loop')
  weights = [state.params['Dense_0']['kernel'] for state, _ in loop_of]
  assert np.abs(weights[0] - weights[1]).max() > 1e-2  # they start elsewhere
  assert [float(temperature) for _, temperature in loop_of] == [1, 16]
  assert [int(state.step) for state, _ in loop_of] == [4, 4]
  for way, other in trained.items():
    if way in students.STACKED:
      other = [jax.tree.map(lambda x, i=i: x[i], other) for i in range(2)]
    compare = partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5, err_msg=way)
    jax.tree.map(compare, other, loop_of)


def test_all_ways_to_dispatch_make_all_calls():
  small, resnet = dispatch.states().values()
  assert (len(jax.tree.leaves(small)), len(jax.tree.leaves(resnet))) == (2, 162)
  for work in dispatch.works(small, calls=3).values():
    assert jax.tree.map(float, work()) == {'weights': 3, 'bias': 3}


PRINTS_A_ROW = """
import json, sys
print('a warning')
print(json.dumps({'part': 'steps', 'setting': sys.argv[1], 'ratio': 2.5}), flush=True)
"""


@pytest.mark.parametrize(
  'then, told',
  [
    ('', None),
    ('raise ValueError(3)', 'failed: ValueError: 3'),
    ('import time; time.sleep(60)', gpu.STOPPED),
  ],
)
def test_rows_of_the_benchmark_of_a_gpu_stay_whatever_comes_after_them(tmp_path, then, told):
  out, part, found = tmp_path / 'rows.csv', gpu.PARTS[2], []
  rows = gpu.run(part, True, 5, ('-c', PRINTS_A_ROW + then))
  for row in gpu.measure(rows, [part], out, True, end=0):
    found.append(row)
    assert len(out.read_text().splitlines()) == 1 + len(found)  # at once
  assert found[0] == gpu.Row('steps', '--part=3', ratio=2.5)
  assert [row.work for row in found[1:-1]] == ([] if told is None else [told])
  assert found[-1] == gpu.Row('steps', part.setting, work=gpu.STOPPED)  # its time is over


def test_the_benchmark_of_a_gpu_says_what_it_would_do(monkeypatch, capsys, tmp_path):
  cpu = gpu.DEVICE.row('cpu', 'JAX 1, cpu')
  monkeypatch.setattr(gpu, 'run', lambda part, *_: [cpu])
  monkeypatch.setattr(sys, 'argv', ['gpu', f'--out={tmp_path / "rows.csv"}'])
  gpu.main()
  told = capsys.readouterr().out
  assert 'There is no GPU here' in told
  assert all(f'{part.name}, {part.setting}' in told for part in gpu.PARTS)
  assert not list(tmp_path.iterdir())
