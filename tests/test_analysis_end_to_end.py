"""`python -m analysis` on a tiny student: numbers, figures, the report, and a second run that does nothing."""

import html
import json
import pathlib
import subprocess

import numpy as np
import pytest
from conftest import copied

from analysis import runs
from analysis.parts import PARTS
from kdjax.runtime import files
from tests import launched

SMALL = {'num_examples': 64, 'resolution': 3}
CORNERS = 'teacher 0,student,sibling'  # the sibling is not there yet
CHOSEN = ('ensemble_plane', 'predictions')  # cheap ones; every part has its own tests
FLAGS = [f'--parts={",".join(CHOSEN)}', '--train=cheap', f'--corners={CORNERS}'] + [
  f'--{name}={value}' for name, value in SMALL.items()
]


@pytest.fixture(scope='module')
def analysed(finished, tmp_path_factory) -> tuple[runs.Study, subprocess.CompletedProcess]:
  workdir = tmp_path_factory.mktemp('analysed')
  copied(finished, workdir)
  done = launched.analyse(str(workdir), *FLAGS)  # test_package.py has the command itself
  assert done.returncode == 0, done.stderr
  return runs.load(workdir), done


def test_trainings_are_announced_and_no_block_is_left(analysed):
  study, done = analysed
  announced = done.stderr.index(
    'training 1 student, 34 steps, under a minute, 1.0 times the steps of this'
  )
  assert announced < done.stderr.index('sibling: 34/34 steps')
  assert list((study.folder / 'blocks').glob('*')) == []
  assert not list(pathlib.Path(study.folder).rglob('*.tmp'))


@pytest.mark.parametrize('name', CHOSEN)
def test_a_part_has_numbers_a_figure_and_a_place_in_the_report(analysed, name):
  study, _ = analysed
  arrays = files.read_arrays(study.folder / f'{name}.npz')
  record = json.loads(str(arrays['record']))
  assert record['fingerprints'] == study.fingerprints
  settings = record['settings']
  assert settings['num_examples'] == SMALL['num_examples']
  assert all(settings[key] == value for key, value in SMALL.items() if key in settings)
  assert name != 'ensemble_plane' or arrays['corners/names'].tolist() == CORNERS.split(',')
  for check, (value, limit) in json.loads(str(arrays['checks'])).items():
    assert value <= limit, check
  keys = [key.removesuffix('/low') for key in arrays if key.endswith('/low')]
  assert keys
  for key in keys:
    low, value, high = (arrays[f'{key}{end}'] for end in ('/low', '', '/high'))
    inside = (low <= value + 1e-6) & (value <= high + 1e-6)
    assert np.all(inside | np.isnan(value)), key
  assert (study.folder / f'{name}.png').read_bytes().startswith(b'\x89PNG')
  assert (study.folder / f'{name}.pdf').read_bytes().startswith(b'%PDF')
  about = files.read_json(study.folder / f'{name}.json')
  report = (study.experiment.folders.student / 'report.html').read_text()
  assert PARTS[name].title in report
  assert about['caption']
  assert f'<th scope="col">{html.escape(about["table"][0][0])}</th>' in report


def test_a_second_run_does_nothing(analysed):
  study, _ = analysed
  times = lambda: {
    path: path.stat().st_mtime for path in pathlib.Path(study.experiment.workdir).rglob('*.npz')
  }
  before = times()
  done = launched.analyse(str(study.experiment.folders.student), *FLAGS)
  assert done.returncode == 0, done.stderr
  assert done.stderr.count('up to date') >= len(CHOSEN)
  assert times() == before


def test_wrong_flags_get_one_clear_error(tmp_path: pathlib.Path):
  wrong = ['--parts=plan', '--resolution=2', '--lambdas=0,2']
  done = launched.analyse(str(tmp_path), *wrong)
  assert done.returncode == 1
  assert '3 problems' in done.stderr
  for message in (
    "--parts: 'plan': no such part; allowed: any of decomposition,",
    '--lambdas = (0.0, 2.0): allowed: 0.0 to 1.0',
    '--resolution = 2: allowed: 3 or more',
  ):
    assert message in done.stderr
  assert 'Traceback' not in done.stderr
