"""The wheel installs only `kdjax`, and runs the built-in experiments beside a foreign `configs/`."""

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
  '--config.model.name=own:Linear',
  '--config.dataset.num_train=100',
  '--config.teacher.examples=()',
  '--config.predictions.examples=()',
  '--config.predictions.num_views=1',
  '--config.teacher.num_members=1',
  '--config.teacher.num_epochs=1',
  '--config.student.num_epochs=1',
  '--config.evaluation.independent_seed=None',
]
OWN = """
import flax.linen as nn

class Linear(nn.Module):  # compiles in a fraction of a ResNet's time
  num_classes: int

  @nn.compact
  def __call__(self, x, train):
    return nn.Dense(self.num_classes)(x.reshape(len(x), -1))
"""
BUILD = 'import sys; from setuptools import build_meta; build_meta.build_wheel(sys.argv[1])'
# The command `kdjax`; first it says where the package is.
COMMAND = 'import kdjax; print(kdjax.__file__); from kdjax.interface.command_line import run; run()'


def python(*arguments, **options):
  done = subprocess.run([sys.executable, *arguments], capture_output=True, text=True, **options)
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
  python('-c', BUILD, str(folder), cwd=tree)
  (path,) = folder.glob('*.whl')
  return zipfile.ZipFile(path)


def test_the_wheel_has_one_top_level_name_and_the_command(wheel):
  names = {name.partition('/')[0] for name in wheel.namelist()}
  about = f'kdjax-{kdjax.__version__}.dist-info'
  assert names == {'kdjax', about}
  assert wheel.read('kdjax/py.typed') == b''
  scripts = wheel.read(f'{about}/entry_points.txt').decode().split('\n')
  assert 'kdjax = kdjax.interface.command_line:run' in scripts


def test_an_experiment_and_the_analysis_run_from_the_wheel(wheel, tmp_path):
  target = tmp_path / 'site'
  wheel.extractall(target)
  own = tmp_path / 'project' / 'configs'
  own.mkdir(parents=True)
  (own / '__init__.py').write_text('raise SystemExit("a foreign configs package")')
  (own.parent / 'own.py').write_text(OWN)
  place = {'cwd': own.parent, 'env': os.environ | {'PYTHONPATH': str(target)}}
  assert 'paper/fig6b_lambda' in python('-c', COMMAND, '--help', **place)
  workdir = tmp_path / 'workdir'
  flags = ['--config=digits_resnet', f'--workdir={workdir}', *TINY]
  assert python('-c', COMMAND, *flags, **place).startswith(str(target))
  (path,) = workdir.glob('students/*/result.json')
  assert json.loads(path.read_text())['splits']['test']['num_examples'] == 360
  parts = ['--parts=predictions', '--train=none', '--num_examples=20']
  python('-m', 'kdjax.analysis', str(workdir), *parts, **place)
  assert list(workdir.glob('analysis/*/predictions.png'))
