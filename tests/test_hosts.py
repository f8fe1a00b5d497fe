"""Several processes that run together, compared with one process."""

import json
import pathlib
import signal
import socket
import time
from functools import partial

import hosts_program
import jax
import numpy as np
import pytest
from conftest import TINY
from etils import epath
from hosts_program import BATCH_SIZE, STATE, numbered
from ml_collections import ConfigDict

from kdjax import data
from kdjax.data import views
from kdjax.data.streaming import StreamedImages
from kdjax.errors import ConfigError
from kdjax.runtime import files, hosts
from kdjax.stages import gan
from kdjax.train.checkpoint import Checkpoints, digest
from kdjax.train.inputs import Inputs
from tests import launched

# The smallest sizes; starting and compiling take nearly all of the time.
FIELDS = {
  'teacher.num_epochs': 0,
  'predictions.num_views': 2,
  'student.num_epochs': 4,
  'training.num_logs': 4,
  'training.num_evals': 1,
  'training.num_checkpoints': 2,
  'evaluation.num_views': 1,
}
HALF = 8  # of the student's steps, after which a checkpoint is kept
LOST = ('lost another process', 'another task died')  # as kdjax, or JAX, reports it


def finish(processes: list[launched.Launch]) -> None:
  codes = [process.wait() for process in processes]
  assert codes == [0] * len(processes), '\n'.join(process.told for process in processes)


def coordinator() -> str:
  with socket.socket() as free:
    free.bind(('localhost', 0))
    return f'localhost:{free.getsockname()[1]}'


def overrides(**fields) -> list[str]:
  return [f'--config.{field}={value}' for field, value in (FIELDS | fields).items()]


start = partial(launched.start, config=TINY)


def together(workdir: pathlib.Path, num_processes: int, *flags: str) -> list[launched.Launch]:
  flags = *flags, f'--coordinator={coordinator()}', f'--num_processes={num_processes}'
  return [start(workdir, *flags, f'--process_id={i}') for i in range(num_processes)]


# The flags.


def test_every_wrong_flag_is_reported():
  for flags, told in (
    ((None, None, None), []),
    (('auto', None, None), []),
    (('host:1234', 2, 1), []),
    (('[::1]:1234', 2, 0), []),
    ((None, 2, None), ['--num_processes = 2: allowed: only with']),
    (('auto', None, 0), ['--process_id = 0: allowed: only with']),
    (('host:1234', None, None), ['--num_processes: missing', '--process_id: missing']),
    (('host', 2, 0), ["--coordinator = 'host': allowed"]),
    (('host:0', 2, 0), ["--coordinator = 'host:0': allowed"]),
    (('host:99999', 2, 0), ["--coordinator = 'host:99999': allowed"]),
    (('host:1234', 0, 0), ['--num_processes = 0: allowed: at least 1']),
    (('host:1234', 2, 2), ['--process_id = 2: allowed: 0 to 1']),
    (('host:1234', 2, -1), ['--process_id = -1: allowed: 0 to 1']),
  ):
    found = hosts.problems(*flags)
    assert len(found) == len(told)
    assert all(text.startswith(start) for text, start in zip(found, told, strict=True)), found


def test_one_process_is_the_main_one_and_has_all():
  assert (hosts.count(), hosts.index(), hosts.is_main()) == (1, 0, True)
  assert hosts.share(6) == slice(0, 6)
  assert hosts.decide(lambda: True) and not hosts.decide(lambda: False)
  hosts.require_same('text', 'the flags')
  hosts.initialise(None, None, None)
  with pytest.raises(ConfigError, match='only with --coordinator'):
    hosts.initialise(None, None, 1)
  with pytest.raises(ConfigError, match="--coordinator = 'auto': cannot join"):
    hosts.initialise('auto', None, None)  # there is no cluster here


# Shares of a batch.


def read_images(indices_B):
  return np.broadcast_to(indices_B.astype(np.uint8)[:, None, None, None], (len(indices_B), 2, 2, 1))


@pytest.fixture
def as_host(monkeypatch):
  """as_host(index, count) makes this process appear as one of several."""

  def become(index, count):
    monkeypatch.setattr(hosts, 'count', lambda: count)
    monkeypatch.setattr(hosts, 'index', lambda: index)

  return become


def check_shares(batches, as_host):
  """The number of batches of one host, after a check that the shares of three hosts add up to them."""
  whole, shares = batches(), []
  for host in range(3):
    as_host(host, 3)
    shares.append(batches())
  for batch, *of_hosts in zip(whole, *shares, strict=True):
    assert {x.shape[:2] for share in of_hosts for x in jax.tree.leaves(share)} == {(1, 8)}
    together = jax.tree.map(lambda *x: np.concatenate(x, axis=1), *of_hosts)
    jax.tree.map(np.testing.assert_array_equal, together, batch)
  return len(whole)


@pytest.mark.parametrize('is_streamed', [False, True])
def test_the_shares_of_all_hosts_are_the_batch(as_host, is_streamed):
  indices_N = np.arange(50)
  images_N = read_images(indices_N).copy()
  if is_streamed:
    rows_N2 = np.stack([0 * indices_N, indices_N], axis=1)
    images_N = StreamedImages([read_images], rows_N2, (2, 2, 1))
  split = data.Split(images_N, np.arange(50, dtype=np.int32) % 7)
  inputs = Inputs(split, views.make_view((), None), 0, 3, has_partners=True)
  evaluation = lambda: (batch for batch, _ in inputs.evaluation(indices_N, 1, 24))
  assert check_shares(lambda: [*inputs.training(0, 24, 3, start=1), *evaluation()], as_host) == 5


def test_the_shares_of_all_hosts_are_the_batch_of_a_gan(as_host):
  section = ConfigDict({'batch_size': 24, 'num_discriminator_steps': 2, 'num_steps': 3})
  split = data.Split(read_images(np.arange(50)).copy(), np.zeros(50, np.int32))
  assert check_shares(lambda: [b for b, _ in gan.batches(split, section, 0, start=1)], as_host) == 2


# Two processes together.


@pytest.fixture(scope='module')
def pieces(tmp_path_factory):
  """The folder and the findings of two processes that ran `hosts_program.main`, each on two devices."""
  folder, place = tmp_path_factory.mktemp('together'), coordinator()
  with files.lock(epath.Path(folder) / 'taken'):
    finish(
      [launched.call(hosts_program.main, folder, place, 2, i, num_devices=2) for i in range(2)]
    )
  return folder, [json.loads((folder / str(i) / 'found.json').read_text()) for i in range(2)]


def test_the_main_process_decides_for_all(pieces):
  _, (main, other) = pieces
  assert main['answers'] == other['answers'] == [True, False]
  assert (main['asked'], other['asked']) == ([0, 0], [])
  assert main['failure'] == other['failure'] == 'seen by process 0: λ'


def test_other_flags_and_an_unshared_workdir_are_reported_by_all(pieces):
  folder, found = pieces
  for index, of in enumerate(found):
    assert of['same'] == of['shared'] == 'no error'
    assert 'the flags: process 1 has other values than process 0' in of['other']
    assert f'--workdir = {folder / str(index)}: process 1 does not see' in of['not shared']
    assert of['left over'] == []


def test_the_main_process_writes_shared_files_and_takes_locks(pieces):
  _, found = pieces
  assert [of['text'] for of in found] == ['process 0'] * 2
  assert [of['locks'] for of in found] == [[True, False]] * 2


def test_a_checkpoint_of_two_processes_is_read_by_them_and_by_one(pieces):
  folder, found = pieces
  assert [of['digest'] for of in found] == [digest(STATE)] * 2
  with Checkpoints(epath.Path(folder) / 'checkpoints', create=False) as checkpoints:
    assert digest(checkpoints.restore(STATE)) == digest(STATE)
  written = [p.name for p in (folder / 'checkpoints' / '7' / 'state').glob('ocdbt.process_*')]
  assert sorted(written) == ['ocdbt.process_0', 'ocdbt.process_1']


def test_each_loads_its_share_and_gets_the_outputs_for_all(pieces):
  _, (main, other) = pieces
  batch = next(numbered().training(0, BATCH_SIZE, 1, 0))
  assert len(main['indices']) == len(other['indices']) == BATCH_SIZE // 2
  assert main['indices'] + other['indices'] == batch['indices'].ravel().tolist()
  assert main['outputs'] == other['outputs'] == batch['indices'].ravel().tolist()


def test_both_give_the_same_bits_with_all_maps_and_what_one_device_gives(pieces):
  """One device is equal up to rounding, since it sums in another order."""
  folder, _ = pieces
  main, other = (dict(np.load(folder / str(i) / 'stepped.npz')) for i in range(2))
  jax.tree.map(np.testing.assert_array_equal, main, other)
  alone = hosts_program.stepped('pmap')
  assert len(alone) == 2 * 9
  for name, value in alone.items():
    np.testing.assert_array_equal(main[f'shard_map/{name}'], main[f'pmap/{name}'])
    np.testing.assert_allclose(main[f'pmap/{name}'], value, rtol=1e-5, atol=1e-6, err_msg=name)


def test_when_one_cannot_write_it_says_so_and_the_others_do_not_wait_for_it(tmp_path):
  place = coordinator()
  processes = [launched.call(hosts_program.main, tmp_path, place, 2, i, True) for i in range(2)]
  codes = [process.wait(300) for process in processes]
  for process in processes:
    process.kill()  # a process may still wait
  assert not {None, 0} & set(codes), codes
  told, told_by_other = (process.told for process in processes)
  assert 'refused: a checkpoint could not be written' in told and 'File too large' in told
  assert f'\n{told}'.count('\nerror: ') == 1 and 'Traceback' not in told
  assert any(text in told_by_other for text in LOST), told_by_other


# The whole program.


@pytest.fixture(scope='module')
def killed_and_again(tmp_path_factory):
  """A run of one process with two devices, and one of two processes that were killed and restarted."""
  alone, workdir = (tmp_path_factory.mktemp(name) for name in ('one', 'two'))
  stages = '--stages=teachers,predictions,student,evaluation'
  one = start(alone, *overrides(), stages, num_devices=2)
  processes = together(workdir, 2, *overrides())
  while not list(workdir.glob(f'students/*/checkpoints/{HALF}')):
    assert processes[0].is_alive(), processes[0].told
    time.sleep(0.01)
  assert processes[1].kill()
  ended = [process.communicate()[1] for process in processes]
  killed = [process.wait() for process in processes], ended
  assert list(workdir.glob('students/*/result.json')) == []
  again = together(workdir, 2, *overrides())
  finish([one, *again])
  return alone, workdir, killed, [process.communicate() for process in again]


def test_when_one_is_killed_all_end_with_an_error(killed_and_again):
  _, _, (codes, (survivor, _)), _ = killed_and_again
  assert codes[0] != 0 and codes[1] == -signal.SIGKILL
  assert any(text in survivor for text in LOST), survivor


def test_started_again_they_go_on(killed_and_again):
  _, _, _, ((out, main), (other_out, other)) = killed_and_again
  for name in ('teachers', 'predictions'):
    assert f'{name}: up to date' in main
  for name in ('student', 'evaluation', 'report'):
    assert f'{name}: done' in main
  assert 'ensemble' in out and 'report.html' in out
  for shown in ('ensemble', 'up to date', 'done'):  # only the main process reports
    assert shown not in other_out + other


def of_kind(workdir, pattern):
  return {path.relative_to(workdir): path for path in workdir.glob(pattern) if path.is_file()}


def test_two_processes_write_the_bytes_that_one_writes(killed_and_again):
  alone, workdir, _, _ = killed_and_again
  for pattern, count in {
    'students/*/result.json': 1,
    'students/*/logits.npz': 1,
    'predictions/*/meta.json': 1,
    'predictions/*/logits/*/c/*/*/*/*': 2 * (2 + 3),  # members, views and splits
    '*/**/config.json': 4,
    '*/**/data.json': 4,
  }.items():
    expected, found = (
      {path: file.read_bytes() for path, file in of_kind(of, pattern).items()}
      for of in (alone, workdir)
    )
    assert len(expected) == count
    assert found == expected


def test_two_processes_log_what_one_logs_and_once(killed_and_again):
  alone, workdir, _, _ = killed_and_again
  for place, path in of_kind(alone, '*/**/metrics.jsonl').items():
    rows, expected = (files.read_json_lines(epath.Path(p)) for p in (workdir / place, path))
    for row in (*rows, *expected):
      assert row.pop('examples_per_second') > 0
    assert rows == expected
  for folder in workdir.glob('teachers/*/member_?'):
    assert len(list((folder / 'tensorboard').iterdir())) == 1
