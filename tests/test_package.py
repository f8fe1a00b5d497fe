"""The wheel: it installs `kdjax` alone, and runs the built-in experiments beside a foreign `configs/`."""

import json
import os
import pathlib
import shutil
import subprocess
import sys
import zipfile

import pytest

import kdjax

ROOT = pathlib.Path(__file__).parents[1]
TINY = [
  '--config.dataset.num_train=100',
  '--config.teacher.examples=()',
  '--config.predictions.examples=()',
  '--config.predictions.num_views=1',
  '--config.teacher.num_members=1',
  '--config.teacher.num_epochs=1',
  '--config.student.num_epochs=1',
  '--config.model.name=lenet',
  '--config.dataset.image_size=12',
  '--config.evaluation.independent_seed=None',
]


def run(*arguments, **options):
  done = subprocess.run(arguments, capture_output=True, text=True, **options)
  assert done.returncode == 0, done.stdout + done.stderr
  return done.stdout


@pytest.fixture(scope='module')
def wheel(tmp_path_factory):
  folder = tmp_path_factory.mktemp('wheel')
  tree = folder / 'tree'  # the build leaves files in the tree
  for name in ('kdjax', 'analysis', 'configs'):
    shutil.copytree(ROOT / name, tree / name, ignore=shutil.ignore_patterns('__pycache__'))
  for name in ('setup.py', 'pyproject.toml', 'README.md', 'LICENSE'):
    shutil.copy(ROOT / name, tree)
  pip = [sys.executable, '-m', 'pip', 'wheel', '-q', '--no-deps', '--no-build-isolation']
  run(*pip, '--wheel-dir', str(folder), str(tree))
  (path,) = folder.glob('*.whl')
  return path


def test_the_wheel_has_one_top_level_name(wheel):
  names = {name.partition('/')[0] for name in zipfile.ZipFile(wheel).namelist()}
  assert names == {'kdjax', f'kdjax-{kdjax.__version__}.dist-info'}
  assert zipfile.ZipFile(wheel).read('kdjax/py.typed') == b''


def test_an_experiment_and_the_analysis_run_from_the_wheel(wheel, tmp_path):
  target = tmp_path / 'site'
  run(
    sys.executable, '-m', 'pip', 'install', '-q', '--no-deps', '--target', str(target), str(wheel)
  )
  own = tmp_path / 'project' / 'configs'
  own.mkdir(parents=True)
  (own / '__init__.py').write_text('raise SystemExit("a foreign configs package")')
  place = {'cwd': own.parent, 'env': os.environ | {'PYTHONPATH': str(target)}}
  where = run(sys.executable, '-c', 'import kdjax; print(kdjax.__file__)', **place)
  assert where.startswith(str(target))
  assert 'paper/fig6b_lambda' in run(str(target / 'bin' / 'kdjax'), '--help', **place)
  workdir = tmp_path / 'workdir'
  run(
    str(target / 'bin' / 'kdjax'), '--config=digits_resnet', f'--workdir={workdir}', *TINY, **place
  )
  (path,) = workdir.glob('students/*/result.json')
  assert json.loads(path.read_text())['splits']['test']['num_examples'] == 360
  analysis = [
    sys.executable,
    '-m',
    'kdjax.analysis',
    str(workdir),
    '--parts=predictions',
    '--train=none',
  ]
  run(*analysis, '--num_examples=20', **place)
  assert list(workdir.glob('analysis/*/predictions.png'))
