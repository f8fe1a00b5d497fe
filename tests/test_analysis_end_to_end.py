"""`python -m analysis` on a tiny student: numbers, figures, the report, and a second run that does nothing."""

import html
import json
import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest
from conftest import ROOT, copied

from analysis import runs
from analysis.parts import PARTS
from kdjax.runtime import files
from kdjax.stages.experiment import Experiment
from tests import launched

SMALL = {'num_examples': 64, 'resolution': 3}
NAMES = {'corners': 'teacher 0,student,sibling'}
CHOSEN = ('ensemble_plane', 'predictions')  # cheap ones; every part has its own tests
FLAGS = [f'--parts={",".join(CHOSEN)}', '--train=cheap'] + [
  f'--{name}={value}' for name, value in (SMALL | NAMES).items()
]


@pytest.fixture(scope='module')
def analysed(
  finished: Experiment, tmp_path_factory
) -> tuple[runs.Study, subprocess.CompletedProcess]:
  workdir = tmp_path_factory.mktemp('analysed')
  copied(finished, workdir)
  done = subprocess.run(  # the command itself; the other tests use a faster start
    [sys.executable, '-m', 'analysis', workdir, *FLAGS],
    cwd=ROOT,
    env=os.environ | {'PYTHONPATH': str(ROOT)},
    capture_output=True,
    text=True,
  )
  assert done.returncode == 0, done.stderr
  return runs.load(workdir), done


def times_of_arrays(study: runs.Study) -> dict[pathlib.Path, float]:
  return {
    path: path.stat().st_mtime for path in pathlib.Path(study.experiment.workdir).rglob('*.npz')
  }


def test_what_is_trained_is_said_first(analysed):
  _, done = analysed
  told = done.stderr.index(
    'training 1 student, 34 steps, under a minute, 1.0 times the steps of this'
  )
  assert told < done.stderr.index('sibling: 34/34 steps')


@pytest.mark.parametrize('name', CHOSEN)
def test_a_part_has_numbers_with_intervals_and_checks(analysed, name):
  study, _ = analysed
  arrays = files.read_arrays(study.folder / f'{name}.npz')
  record = json.loads(str(arrays['record']))
  assert record['fingerprints'] == study.fingerprints
  settings = record['settings']
  assert settings['num_examples'] == SMALL['num_examples']
  assert all(settings[key] == value for key, value in SMALL.items() if key in settings)
  for check, (value, limit) in json.loads(str(arrays['checks'])).items():
    assert value <= limit, check
  lows = [key for key in arrays if key.endswith('/low')]
  assert lows
  for low in lows:
    key = low.removesuffix('/low')
    inside = (arrays[low] <= arrays[key] + 1e-6) & (arrays[key] <= arrays[f'{key}/high'] + 1e-6)
    assert np.all(inside | np.isnan(arrays[key])), key


def test_networks_are_those_that_were_named(analysed):
  study, _ = analysed
  arrays = files.read_arrays(study.folder / 'ensemble_plane.npz')
  assert arrays['corners/names'].tolist() == NAMES['corners'].split(',')


@pytest.mark.parametrize('name', CHOSEN)
def test_a_part_is_drawn_and_stands_in_the_report(analysed, name):
  study, _ = analysed
  assert (study.folder / f'{name}.png').read_bytes().startswith(b'\x89PNG')
  assert (study.folder / f'{name}.pdf').read_bytes().startswith(b'%PDF')
  about = files.read_json(study.folder / f'{name}.json')
  report = (study.experiment.folders.student / 'report.html').read_text()
  assert PARTS[name].title in report
  assert about['caption']
  for heading in about['table'][:1]:
    assert f'<th scope="col">{html.escape(heading[0])}</th>' in report


def test_no_half_finished_piece_is_left(analysed):
  study, _ = analysed
  assert list((study.folder / 'blocks').glob('*')) == []
  assert not list(pathlib.Path(study.folder).rglob('*.tmp'))


def test_a_second_time_nothing_is_done(analysed):
  study, _ = analysed
  before = times_of_arrays(study)
  done = launched.analyse(str(study.experiment.folders.student), *FLAGS)
  assert done.returncode == 0, done.stderr
  assert done.stderr.count('up to date') >= len(CHOSEN)
  assert times_of_arrays(study) == before


@pytest.mark.parametrize(
  'arguments, all_told',
  [
    (
      ['--parts=plan', '--resolution=2', '--lambdas=0,2'],
      [
        "--parts: 'plan': no such part; allowed: any of decomposition,",
        '--lambdas = (0.0, 2.0): allowed: 0.0 to 1.0',
        '--resolution = 2: allowed: 3 or more',
      ],
    ),
    (
      ['--corners=teacher 2,student,sibling', '--pairs=teacher 0: student,student:nobody'],
      [
        '--corners = teacher 2,student,sibling: allowed: three different ones of initial, student, '
        'teacher 0, teacher 1, sibling',
        "--pairs: 'student:nobody': allowed: 'all', or two different ones of initial, student, ",
      ],
    ),
  ],
)
def test_wrong_flags_get_one_clear_error(analysed, arguments, all_told):
  study, _ = analysed
  done = launched.analyse(str(study.experiment.workdir), *arguments)
  assert done.returncode == 1
  assert f'{len(all_told)} problems' in done.stderr
  for told in all_told:
    assert told in done.stderr
  assert 'Traceback' not in done.stderr


def test_an_empty_folder_gets_one_clear_error(tmp_path: pathlib.Path):
  done = launched.analyse(str(tmp_path))
  assert done.returncode == 1
  assert 'no finished student' in done.stderr
  assert 'Traceback' not in done.stderr
