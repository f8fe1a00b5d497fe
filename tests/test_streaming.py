"""Images that stay on disk: the same rows, the same batches and the same training as in memory."""

import gc
import multiprocessing
import os
import pathlib
import time

import jax
import numpy as np
import pytest
from conftest import tiny_run
from grain.multiprocessing import SharedMemoryArray
from streamed_rows import killed_at, load_forever, rows_of
from tiny_data import encoded, image_feature, label_feature, random_images, section, write_tfds

from kdjax import data
from kdjax.data import images, streaming
from kdjax.data.views import make_view
from kdjax.errors import DamageError, UserError
from kdjax.stages import teachers
from kdjax.train.checkpoint import digest
from kdjax.train.inputs import Inputs
from tests import launched
from tests.benchmarks import streaming as benchmark

NUM = 150  # training examples of the set below


@pytest.fixture(scope='module')
def photos(tmp_path_factory) -> pathlib.Path:
  """A set of TFDS: JPEGs of 9 to 24 pixels a side, and a grey one among them."""
  place = tmp_path_factory.mktemp('photos')
  rng = np.random.default_rng(0)

  def records(num):
    for i in range(num):
      shape = (*rng.integers(9, 25, 2), 1 if i == 3 else 3)
      yield {'image': encoded(random_images(1, *shape, seed=i)[0], 'JPEG'), 'label': i % 3}

  features = {'image': image_feature(-1, -1, 3), 'label': label_feature(3)}
  write_tfds(place, features, {'train': list(records(NUM)), 'test': list(records(20))})
  return place


def of_photos(place: pathlib.Path, **fields):
  return section(name='tiny', data_dir=str(place), image_size=8, **fields)


def both(config) -> tuple[dict[str, data.Split], dict[str, data.Split]]:
  """The splits in memory, and streamed."""
  assert not config.streaming
  streamed = config.copy_and_resolve_references()
  streamed.streaming = True
  return data.load(config), data.load(streamed)


def assert_same_batches(found, expected) -> None:
  for batch, other in zip(found, expected, strict=True):
    assert jax.tree.structure(batch) == jax.tree.structure(other)
    for x, y in zip(jax.tree.leaves(batch), jax.tree.leaves(other), strict=True):
      assert type(x) is np.ndarray and x.dtype == y.dtype
      np.testing.assert_array_equal(x, y)


# Images.


def test_streamed_images_are_indexed_as_an_array_is(photos):
  resident, streamed = (splits['train'].inputs_N for splits in both(of_photos(photos)))
  assert (streamed.shape, streamed.ndim) == (resident.shape, 4) == ((NUM, 8, 8, 3), 4)
  assert streamed.dtype == resident.dtype
  keys = (5, slice(3, 40, 7), np.array([9, 2, 2, 8]), np.array([[4, 1], [0, 7]]))
  for key in (*keys, np.arange(NUM) % 5 == 0):
    np.testing.assert_array_equal(streamed[key], resident[key])


def test_streamed_splits_are_those_in_memory(photos):
  for fields in ({}, {'num_train': 60, 'num_val': 30, 'num_test': 9}):
    resident, streamed = both(of_photos(photos, **fields))
    assert list(streamed) == list(resident)
    for name, split in resident.items():
      assert streamed[name].is_streamed and not split.is_streamed
      np.testing.assert_array_equal(streamed[name].labels_N, split.labels_N)
      np.testing.assert_array_equal(streamed[name].inputs_N[:], split.inputs_N)


def test_parts_and_joined_splits_are_streamed_too(photos):
  parts = []
  for splits in both(of_photos(photos)):
    part = data.part(splits['train'], (30, 90))
    parts.append(part.joined(splits['test']).joined(part.take(np.arange(5))))
  resident, streamed = parts
  assert streamed.is_streamed and len(streamed) == 60 + 20 + 5
  np.testing.assert_array_equal(streamed.labels_N, resident.labels_N)
  for key in (slice(None), np.array([84, 0, 61, 59, 60, 80])):  # of several sources, mixed
    np.testing.assert_array_equal(streamed.inputs_N[key], resident.inputs_N[key])


def test_extra_images_are_streamed_in_the_same_order(photos):
  config = of_photos(photos)
  resident = data.load_extra('digits', config, (8, 8, 3), 40)
  config.streaming = True
  np.testing.assert_array_equal(data.load_extra('digits', config, (8, 8, 3), 40)[:], resident)


def test_nothing_is_decoded_before_it_is_read(photos, monkeypatch):
  decoded = []
  decode = images.decode
  monkeypatch.setattr(images, 'decode', lambda *a: decoded.append(a[2]) or decode(*a))
  train = data.load(of_photos(photos, streaming=True))['train']
  data.part(train, (0, 30)).joined(train)
  assert decoded == []
  train.inputs_N[np.array([7, 140])]
  assert [place.rpartition('record')[2] for place in decoded] == [
    " 7 of 'train'",
    " 140 of 'train'",
  ]


# Batches.


def inputs_of(split: data.Split, **fields) -> Inputs:
  return Inputs(split, make_view((), None), seed=3, **fields)


def test_streamed_batches_are_those_in_memory(photos):
  """Batches with partners, of a training from its start and from any step, of an evaluation, and as given."""
  resident, streamed = (
    inputs_of(splits['train'], num_views=2, has_partners=True) for splits in both(of_photos(photos))
  )
  order = np.random.default_rng(0).permutation(NUM)[:100]
  for batch_size in (48, 64, 33, 7):
    expected = list(resident.training(5, batch_size, 12, 0))
    assert_same_batches(streamed.training(5, batch_size, 12, 0), expected)
    assert_same_batches(streamed.training(5, batch_size, 12, 9), expected[9:])
    expected, counts = zip(*resident.evaluation(order, 1, batch_size), strict=True)
    found, again = zip(*streamed.evaluation(order, 1, batch_size), strict=True)
    assert counts == again and sum(counts) == 100
    assert_same_batches(found, expected)
  given = np.array([8, 0, 149, 8], np.int32), np.array([0, 5, 1, 2], np.int32)
  assert_same_batches([streamed.batch(*given)], [resident.batch(*given)])


def test_only_the_rows_that_are_wanted_are_fetched():
  fetched = []

  def gather(number, rows):
    fetched.append((number, rows.start, rows.stop))
    return rows_of(number, rows)

  found = list(streaming.batches(gather, range(4, 6), range(100, 170), 0))
  np.testing.assert_array_equal(
    [b['row'] for b in found], [np.arange(4100, 4170), np.arange(5100, 5170)]
  )
  cuts = [(100, 132), (132, 164), (164, 170)]
  assert sorted(fetched) == [(number, *cut) for number in (4, 5) for cut in cuts]


def test_no_more_is_fetched_ahead_than_a_few_pieces():
  fetched = []

  def gather(number, rows):
    fetched.append(number)
    return rows_of(number, rows)

  batches = streaming.batches(gather, range(10_000), range(streaming.PIECE), 0)
  for _ in range(3):
    next(batches)
  time.sleep(0.2)
  assert 3 <= len(fetched) <= 3 + streaming.AHEAD * os.cpu_count() + 1
  batches.close()


# Processes.


def test_processes_give_the_same_batches_and_leave_nothing_behind(photos, monkeypatch):
  monkeypatch.setattr(streaming, 'MIN_ROWS_FOR_WORKERS', 0)
  monkeypatch.setattr(streaming, 'MIN_SHARED_BYTES', 1000)
  resident, _ = both(of_photos(photos))
  streamed = data.load(of_photos(photos, streaming=True, num_workers=2))
  expected = list(inputs_of(resident['train'], has_partners=True).training(5, 70, 14, 3))
  batches = inputs_of(streamed['train'], has_partners=True).training(5, 70, 14, 3)
  first = next(batches)
  assert len(multiprocessing.active_children()) == 2
  assert_same_batches([first, *batches], expected)
  assert multiprocessing.active_children() == []
  # Nobody keeps what is in shared memory, which would stay until the program ends.
  assert not [x for x in gc.get_objects() if isinstance(x, SharedMemoryArray)]


def test_a_broken_image_and_a_killed_process_are_reported_and_leave_other_processes(
  tmp_path, monkeypatch
):
  monkeypatch.setattr(streaming, 'MIN_ROWS_FOR_WORKERS', 0)
  good = encoded(random_images(1, 9, 9, 3)[0])
  records = [{'image': good if i != 5 else good[:60], 'label': i % 3} for i in range(9)]
  features = {'image': image_feature(-1, -1, 3), 'label': label_feature(3)}
  write_tfds(tmp_path, features, {'train': records, 'test': records[:3]})
  other = streaming.batches(killed_at, range(40), range(2), 1)
  found = [next(other)]
  for num_workers in (0, 1):
    train = data.load(of_photos(tmp_path, streaming=True, num_workers=num_workers))['train']
    with pytest.raises(UserError, match=r"record 5 of 'train': cannot be decoded"):
      list(inputs_of(train).training(0, 9, 2, 0))
  assert len(multiprocessing.active_children()) == 1
  with pytest.raises(UserError, match=r'^dataset\.num_workers = 1: a process .* was killed .*-9'):
    found += other
  assert multiprocessing.active_children() == []
  rows = [int(batch['row'][0]) for batch in found]
  assert len(rows) > 5 and rows == [1000 * number for number in range(len(rows))]


def test_processes_end_with_a_program_that_is_killed():
  program = launched.call(load_forever)
  while not program.told.endswith('\n'):
    assert program.is_alive(), program.told
    time.sleep(0.01)
  worker = int(program.told)
  os.kill(worker, 0)
  program.kill()
  while pathlib.Path(f'/proc/{worker}').exists():  # a worker that stays is a test that hangs
    if 'Z' in pathlib.Path(f'/proc/{worker}/stat').read_text().rpartition(')')[2].split()[0]:
      break  # ended, but its new parent has not waited for it yet
    time.sleep(0.05)


# Checksums.


def test_a_streamed_checksum_is_that_of_the_sample_in_memory(photos):
  resident, streamed = both(of_photos(photos))
  assert data.checksum(streamed) == data.checksum(resident, sampled=True)
  assert data.checksum(streamed).startswith(data.SAMPLED)
  assert data.checksum(streamed, sampled=False) == data.checksum(resident)
  assert not data.checksum(resident).startswith(data.SAMPLED)


# Whole trainings.

SHORT = {
  'dataset__num_val': 10,
  'teacher__num_members': 1,
  'teacher__num_epochs': None,
  'teacher__num_steps': 5,  # of 64 of 200: into the second epoch
  'training__num_logs': 1,
  'training__num_evals': 1,
}


def trained(workdir, **fields):
  run = tiny_run(workdir, **SHORT, **fields)
  teachers.STAGE.run(run)
  return run


class Killed(Exception):
  pass


def test_a_streamed_training_has_the_bits_of_one_in_memory(tmp_path, monkeypatch):
  """Each resumes what the other began, at any step, and has the result of an uninterrupted training."""
  expected = digest(teachers.load(trained(tmp_path / 'resident'), 0))
  training = Inputs.training
  relay = tmp_path / 'relay'
  for is_streamed, stop in ((True, 2), (False, 3)):

    def interrupted(self, order_seed, batch_size, _, start, stop=stop):
      yield from training(self, order_seed, batch_size, stop, start)
      raise Killed

    with monkeypatch.context() as patch, pytest.raises(Killed):
      patch.setattr(Inputs, 'training', interrupted)
      trained(relay, dataset__streaming=is_streamed)
  trained(relay, dataset__streaming=True)
  for is_streamed in (False, True):
    run = tiny_run(relay, **SHORT, dataset__streaming=is_streamed)
    assert digest(teachers.load(run, 0)) == expected


def test_other_data_are_noticed_streamed_or_not(tmp_path):
  for streaming_first in (False, True):
    run = tiny_run(tmp_path, **SHORT, dataset__streaming=streaming_first)
    checksum = run.data.training.checksum
    for streaming_now in (False, True):
      run = tiny_run(tmp_path, **SHORT, dataset__streaming=streaming_now)
      run.data.training.require(checksum, run.workdir)
      run = tiny_run(tmp_path, **SHORT, dataset__streaming=streaming_now)
      run.data.splits = {name: split.take(np.arange(9)) for name, split in run.data.splits.items()}
      with pytest.raises(
        DamageError, match=f'the checksum {checksum}, and the one that was read now'
      ):
        run.data.training.require(checksum, run.workdir)


def test_distillation_data_can_be_streamed_with_extra_images(tmp_path):
  fields = {
    'dataset__num_val': 0,
    'predictions__extra': 'digits',
    'predictions__num_extra': 30,
    'predictions__examples': (50, 150),
    'predictions__augmentation': ('mixup',),
  }
  resident, streamed = (
    tiny_run(tmp_path, **fields, dataset__streaming=on).data.inputs['distillation']
    for on in (False, True)
  )
  assert streamed.split.is_streamed and len(streamed.split) == 130
  batches = (inputs.evaluation(np.arange(130), 1, 50) for inputs in (streamed, resident))
  found, expected = ([batch for batch, _ in of] for of in batches)
  assert_same_batches(found, expected)
  assert (expected[0]['labels'] >= 0).all() and (expected[2]['labels'] == -1).all()
  assert 'partners' in expected[0]


# The benchmark.


def test_the_benchmark_runs(tmp_path, monkeypatch):
  monkeypatch.setattr(streaming, 'MIN_ROWS_FOR_WORKERS', 0)  # it sets this
  kind = benchmark.Kind('tiny', 32, 32, None, num_timed=256)
  assert benchmark.write(tmp_path, kind, 300) > 500
  assert len(benchmark.inputs_of(tmp_path, kind, streaming=True).split) == 300
  speed = benchmark.speed(tmp_path, kind, 0)
  assert speed.images_per_second > 0
  monkeypatch.setattr(benchmark, 'SMALL', kind)
  monkeypatch.setattr(benchmark, 'NUM_BATCHES', 2)
  assert isinstance(
    benchmark.memory(tmp_path, True), int
  )  # the kernel's counts are rough: below 0 here
  assert benchmark.label_seconds(tmp_path, 300) > 0
  fast = benchmark.Speed(0.0, 1000.0)
  lines = list(benchmark.imagenet(100_000, 1e-3, {0: fast, 1: fast}))
  assert 'an epoch of 1,281,167 images: 0.36 hours with one process (1,000 images/s)' in lines
  assert 'labels, at each start: 21.4 minutes, in which 128 GB are read' in lines
