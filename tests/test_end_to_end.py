"""launch.py as a user runs it: in a process of its own. Whole runs from nothing are in test_faults.py."""

import json
import os
import subprocess
import sys

import jax
import pytest
from conftest import DATA, ROOT, TINY, copied
from etils import epath

from kdjax import config as config_lib
from kdjax.data import tfds_sets
from kdjax.stages import pipeline
from tests import launched

# The stages that have something to do here: there is no GAN, and no independent student.
STAGES = ('teachers', 'predictions', 'student', 'evaluation', 'report')
WRONG_FIELDS = {
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
# Flags, and what stderr says about them.
WRONG = (
  (
    ['--config.model.name=resnet']
    + [f'--config.{field}={value}' for field, value in WRONG_FIELDS.items()],
    [f'{len(WRONG_FIELDS)} problems', 'did you mean student.temperature']
    + [f'{field} = ' for field in WRONG_FIELDS],
  ),
  (['--stages=evaluation,report'], ['--stages=student']),  # which is missing
  (['--stages='], ['--stages: empty']),
  (
    ['--config.student.alpha', '--stages=teacher'],
    ['student.alpha: no value given', "'teacher': no such stage"],
  ),
  (['--config=no_such_file.py'], ['there is no file no_such_file.py']),
  (['--sweep_index=first'], ['--sweep_index']),
  (['--nonsense=1'], ['nonsense']),
  (['--workdir=s3://bucket'], ["--workdir = 's3://bucket'"]),
  (['--workdir=/proc/no_such_folder'], ['/proc/no_such_folder']),
  (
    ['--coordinator=auto', '--sweep'],
    ['the configuration has 1 problem', '--sweep and --coordinator: allowed: one of them'],
  ),
)


@pytest.fixture(scope='module')
def workdir(finished, tmp_path_factory):
  """The finished run after the very command."""
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
  (path,) = workdir.glob('students/*/result.json')
  splits = json.loads(path.read_text())['splits']
  assert set(splits) == {'train', 'val', 'test', 'distillation'}
  assert 0.1 < splits['test']['student']['accuracy'] < 1


def test_every_artefact_has_its_environment(workdir):
  for pattern in ('teachers/*/member_*', 'predictions/*', 'students/*'):
    for folder in workdir.glob(f'{pattern}/'):
      environment = json.loads((folder / 'environment.json').read_text())
      assert environment['packages']['jax'] == jax.__version__
      assert environment['seconds'] > 0
      assert environment['command']


def test_a_second_run_does_no_work_and_every_error_is_one_clear_message(
  workdir, finished, tmp_path
):
  copied(finished, tmp_path / 'flipped')
  chunk = max((tmp_path / 'flipped').glob('predictions/*/logits/distillation/c/*/*/*/*'))
  content = chunk.read_bytes()
  chunk.write_bytes(bytes([content[0] ^ 1]) + content[1:])
  before = {path: path.stat().st_mtime_ns for path in workdir.rglob('*') if path.is_file()}

  def of(config, folder, *more):
    return [f'--config={config}', f'--workdir={folder}', *more]

  second, *failed = launched.run_each(
    of(TINY, workdir),
    of(TINY, tmp_path / 'flipped', '--verify'),
    of(TINY, tmp_path / 'diverging', '--config.teacher.learning_rate=1e6'),
    *(of(TINY, tmp_path / 'wrong', *wrong) for wrong, _ in WRONG),
  )
  assert second.returncode == 0
  assert second.stderr.count('up to date') == len(STAGES)
  assert 'steps' not in second.stderr
  assert before == {path: path.stat().st_mtime_ns for path in before}
  expected = [[str(chunk)], ['teacher 0: the', 'at step'], *(told for _, told in WRONG)]
  for done, told in zip(failed, expected, strict=True):
    assert done.returncode == 1, done
    assert 'Traceback' not in done.stderr
    assert all(text in done.stderr for text in told), done
  assert not list((tmp_path / 'wrong').rglob('*'))


@pytest.mark.skipif(DATA is None, reason='real data sets are not here: set TFDS_DATA_DIR')
def test_real_cifar10(tmp_path, monkeypatch):
  sizes = {'train': 200, 'test': 100}
  monkeypatch.setattr(tfds_sets.Tfds, 'size', lambda _, split: sizes.get(split, 0))  # all take long
  config, _ = config_lib.load(str(ROOT / 'configs' / 'cifar_resnet.py:smoke'))
  fields = {
    'dataset.data_dir': str(DATA),
    'dataset.num_train': None,
    'dataset.num_test': None,
    'model.name': 'tests.small_network:Small',
    'teacher.num_members': 1,
    'teacher.num_epochs': 1,
    'student.num_epochs': 1,
    'predictions.num_views': 2,
    'evaluation.independent_seed': None,
    'evaluation.batch_size': 100,
    'training.num_evals': 1,
    'training.num_checkpoints': 1,
  }
  config.update_from_flattened_dict(fields)
  run = pipeline.run(config, epath.Path(tmp_path), [name for name in STAGES if name != 'report'])
  splits = json.loads((run.folders.student / 'result.json').read_text())['splits']
  assert splits['test']['num_examples'] == 100
  assert splits['distillation']['num_examples'] == 200
