"""launch.py as a user runs it: in a process of its own, which may be killed."""

import json
import os
import pathlib
import subprocess
import sys
import time

import jax
import pytest
from conftest import DATA, QUICK, ROOT, TINY, copied

from kdjax.interface import commands
from tests import launched

# The stages that have something to do here: there is no GAN, and no independent student.
STAGES = ('teachers', 'predictions', 'student', 'evaluation', 'report')


def files(workdir) -> dict[pathlib.Path, int]:
  return {p: p.stat().st_mtime_ns for p in workdir.rglob('*') if p.is_file()}


def result(workdir) -> str:
  (path,) = workdir.glob('students/*/result.json')
  return path.read_text()


@pytest.fixture(scope='module')
def workdir(finished, tmp_path_factory):
  """The finished run after the very command; whole runs from nothing are in test_faults.py."""
  folder = tmp_path_factory.mktemp('launched')
  copied(finished, folder)
  done = subprocess.run(  # all else here is started faster
    [sys.executable, 'launch.py', f'--config={TINY}', f'--workdir={folder}'],
    cwd=ROOT,
    env=os.environ | {'COLUMNS': '200'},
    capture_output=True,
    text=True,
  )
  assert done.returncode == 0, done.stderr
  for name in STAGES:
    assert f'{name}: {"done" if name == "report" else "up to date"}' in done.stderr
  assert str(folder / 'report.html') in done.stdout
  for word in ('ensemble', 'student', 'accuracy', 'agreement'):
    assert word in done.stdout.lower()
  return folder


def test_writes_the_table_the_report_and_the_results(workdir):
  assert (workdir / 'report.html').stat().st_size > 10_000
  assert len((workdir / 'results.csv').read_text().splitlines()) == 2
  splits = json.loads(result(workdir))['splits']
  assert set(splits) == {'train', 'val', 'test', 'distillation'}
  assert 0.1 < splits['test']['student']['accuracy'] < 1


def test_every_artefact_has_its_environment(workdir):
  for pattern in ('teachers/*/member_*', 'predictions/*', 'students/*'):
    for folder in workdir.glob(f'{pattern}/'):
      environment = json.loads((folder / 'environment.json').read_text())
      assert environment['packages']['jax'] == jax.__version__
      assert environment['seconds'] > 0
      assert environment['command']


def test_a_second_run_does_no_work(workdir):
  before = files(workdir)
  done = launched.run(workdir)
  assert done.returncode == 0
  assert done.stderr.count('up to date') == len(STAGES)
  assert 'steps' not in done.stderr
  assert files(workdir) == before


def test_verify_finds_a_flipped_bit(workdir):
  chunk = max(workdir.glob('predictions/*/logits/distillation/c/*/*/*/*'))
  content = chunk.read_bytes()
  chunk.write_bytes(bytes([content[0] ^ 1]) + content[1:])
  done = launched.run(workdir, '--verify')
  chunk.write_bytes(content)
  assert done.returncode == 1
  assert str(chunk) in done.stderr
  assert 'Traceback' not in done.stderr


def test_every_wrong_field_is_told_at_once(tmp_path):
  wrong = {
    'student.temprature': '1',
    'student.temperature': '-1',
    'student.alpha': '2',
    'teacher.num_epochs': '-3',
    'teacher.num_members': '0',
    'teacher.batch_size': 'many',
    'model.depth': '21',
    'model.norm': 'group',
    'predictions.dtype': 'int8',
    'dataset.name': 'no_such_set',
  }
  done = launched.run(tmp_path, *(f'--config.{field}={value}' for field, value in wrong.items()))
  assert done.returncode == 1
  assert 'Traceback' not in done.stderr
  assert f'{len(wrong)} problems' in done.stderr
  for field in wrong:
    assert f'{field} = ' in done.stderr
  assert 'did you mean student.temperature' in done.stderr
  assert not list(tmp_path.rglob('*'))


@pytest.mark.parametrize(
  'arguments, told',
  [
    (['--stages=evaluation,report'], '--stages=student'),  # which is missing
    (['--stages='], '--stages: empty'),
    (
      ['--config.student.alpha', '--stages=teacher'],
      "student.alpha: no value given|'teacher': no such stage",
    ),
    (['--config=no_such_file.py'], 'there is no file no_such_file.py'),
    (['--sweep_index=first'], '--sweep_index'),
    (['--nonsense=1'], 'nonsense'),
    (['--workdir=s3://bucket'], "--workdir = 's3://bucket'"),
    (['--workdir=/proc/no_such_folder'], '/proc/no_such_folder'),
  ],
)
def test_wrong_flags_get_one_clear_error(tmp_path, arguments, told):
  done = launched.run(tmp_path, *arguments)
  assert done.returncode == 1
  assert 'Traceback' not in done.stderr
  assert all(text in done.stderr for text in told.split('|'))
  assert not list(tmp_path.rglob('*'))


def test_a_loss_that_diverges_stops_with_one_clear_error(tmp_path):
  done = launched.run(tmp_path, '--config.teacher.learning_rate=1e6', config=QUICK)
  assert done.returncode == 1
  assert 'Traceback' not in done.stderr
  assert 'teacher 0: the' in done.stderr
  assert 'at step' in done.stderr


def test_an_interrupted_run_says_that_it_resumes(tmp_path):
  started = launched.start(tmp_path, config=QUICK)
  while not list(tmp_path.glob('teachers/*/*/checkpoints/*')):
    assert started.is_alive(), started.told
    time.sleep(0.01)
  started.interrupt()
  assert started.wait() == commands.INTERRUPTED == 130
  assert started.told.splitlines()[-1] == 'interrupted; the same command resumes'
  assert 'Traceback' not in started.told


@pytest.mark.skipif(DATA is None, reason='real data sets are not here: set TFDS_DATA_DIR')
def test_real_cifar10(tmp_path):
  sizes = {
    'dataset.data_dir': DATA,
    'dataset.num_train': 200,
    'dataset.num_test': 100,
    'model.name': 'lenet',
    'teacher.num_members': 1,
    'teacher.num_epochs': 1,
    'student.num_epochs': 1,
    'predictions.num_views': 2,
    'evaluation.independent_seed': None,
    'evaluation.batch_size': 100,
  }
  done = launched.run(
    tmp_path,
    *(f'--config.{field}={value}' for field, value in sizes.items()),
    config=ROOT / 'configs' / 'cifar_resnet.py:smoke',
  )
  assert done.returncode == 0, done.stderr
  splits = json.loads(result(tmp_path))['splits']
  assert splits['test']['num_examples'] == 100
  assert splits['distillation']['num_examples'] == 200
