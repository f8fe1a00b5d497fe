"""The contrast between the students of two points of a sweep: its measures, figures and table."""

import csv

import numpy as np
import pytest
from etils import epath

from analysis import contrast, runner
from analysis.part import Settings
from configs.paper import results
from kdjax.errors import ConfigError, MissingInputError
from kdjax.runtime import files

SWEEP = """
from kdjax.config.sweep import Panel, Point, Sweep
from tests import tiny_config

PANEL = Panel('splits.test.student.accuracy', 'accuracy (%)', 100)


def get_config(arg=''):
  return tiny_config.get_config()


def get_sweep(arg=''):
  points = [Point({}, 0.0, 'start'), Point({'student.init_lambda': 0.5}, 0.5, 'start')]
  return Sweep(title='λ', x_label='λ', points=points, panels=[PANEL], trials=2)
"""
# Arrays of the parts about a student at distance 5 of its teacher; `other` must not be read.
other = 99.0
ARRAYS = {
  'trajectory': {
    'steps': np.array([0, 9]),
    'distance/raw': np.array([[7.0, other], [5.0, other]]),
    'distillation/top1_agreement': np.array([0.1, 0.75]),
    'test/top1_agreement': np.array([0.1, 0.5]),
    'distillation/predictive_kl': np.array([1.0, 0.25]),
  },
  'barriers': {
    'names': np.array(['initial', 'student', 'teacher 0']),
    'pairs': np.array([[0, 1], [0, 2], [1, 2]]),
    'variants': np.array(['as they are', 'aligned']),
    'loss': np.array([[other, other], [other, other], [2.0, 1.0]]),
    'error': np.array([[other, other], [other, other], [0.25, 0.125]]),
  },
  'curvature': {
    'student/distillation/hessian/eigenvalues': np.array([9.0, 8.0]),
    'student/distillation/sharpness': np.array(0.5),
    'initial/distillation/sharpness': np.array(other),
  },
  'curvature_traces': {
    'student/distillation/hessian/trace': np.array(30.0),
    'student/distillation/mismatch': np.array(0.0625),
  },
  'forks': {  # from steps at 0, 25 and 75 % of training
    'fractions': np.array([0.0, 0.2499, 0.7501]),
    'barrier/test/accuracy': np.array([0.0625, 0.03125, other]),
    'agreement': np.array([0.75, 0.875, other]),
    'repeated': np.array([0.5, 0.625, other]),
  },
  'plane': {},
}


# The values of the measures, and of those of continuations.
EXPECTED = [75, 50, 0.25, 7, 5, 2, 1, 25, 12.5, 9, 0.5, 30, 0.0625]
OF_FORKS = [6.25, 3.125, 75, 87.5, 50, 62.5]


@pytest.fixture
def spec(tmp_path):
  (tmp_path / 'sweep.py').write_text(SWEEP)
  return str(tmp_path / 'sweep.py')


def test_students_are_found_by_their_point(finished, spec):
  """The run of the tiny config is that of the first point and trial."""
  found = contrast.studies(spec, finished.workdir, ['start, 0.0'])
  assert {trial: list(by_point) for trial, by_point in found.items()} == {0: ['start, 0.0']}
  assert found[0]['start, 0.0'].experiment.folders.student == finished.folders.student
  with pytest.raises(MissingInputError, match=r'no trial of .* has the students of start, 0.0; st'):
    contrast.studies(spec, finished.workdir, ['start, 0.0', 'start, 0.5'])
  with pytest.raises(
    ConfigError, match=r"'start, 1': no such point; allowed: start, 0.0; start, 0.5"
  ):
    contrast.studies(spec, finished.workdir, ['start, 1'])


@pytest.mark.parametrize(
  ('figures', 'expected'),
  [(['plane', 'barriers'], EXPECTED), (['plane', 'forks'], EXPECTED + OF_FORKS)],
)
def test_measures_and_figures_are_those_of_the_parts(
  finished, spec, tmp_path, monkeypatch, figures, expected
):
  ran = []

  def prepare(study, settings, parts, train):
    ran.append((settings.num_examples, train))
    return parts

  def run(study, settings, parts):
    assert set(parts) <= set(ARRAYS)
    for part in parts:
      files.write_arrays(tmp_path / f'{part}.npz', ARRAYS[part])
      (tmp_path / f'{part}.png').write_bytes(part.encode())

  monkeypatch.setattr(runner, 'prepare', prepare)
  monkeypatch.setattr(runner, 'run', run)
  monkeypatch.setattr(contrast.runs.Study, 'folder', epath.Path(tmp_path))
  out = epath.Path(tmp_path) / 'out'
  found = contrast.studies(spec, finished.workdir, ['start, 0.0'])
  contrast.write(out, found, Settings(num_examples=3), figures)
  assert ran == [(3, runner.NONE)]
  rows = list(csv.DictReader((out / 'measures.csv').read_text().splitlines()))
  assert {(row['point'], row['trial']) for row in rows} == {('start, 0.0', '0')}
  assert [float(row['value']) for row in rows] == expected
  for name in figures:
    assert (out / f'{name}_0.png').read_text() == name


def test_the_table_has_paired_differences(tmp_path):
  """Differences of 1, 2 and 3: mean 2, and 2 ± 4.303 · 1 / √3 by Student's t with two degrees of freedom."""
  rows = ['measure,unit,point,trial,value']
  for trial, (near, random) in enumerate([(11, 10), (22, 20), (33, 30)]):
    rows += [f'barrier,nats,near,{trial},{near}', f'barrier,nats,random,{trial},{random}']
  (tmp_path / 'docs' / 'basins').mkdir(parents=True)
  (tmp_path / 'docs' / 'basins' / 'measures.csv').write_text('\n'.join(rows))
  page = '<!-- results: contrast -->\n<!-- end of results -->'
  lines = results.updated(page, epath.Path(tmp_path)).splitlines()
  assert lines[1] == '| measure | near | random | difference | 95 % interval | n | verdict |'
  assert lines[3] == '| barrier (nats) | 22 | 20 | +2 | −0.484 to 4.48 | 3 | cannot be told |'


def test_what_a_student_lacks_is_left_out():
  """Without an alignment, and without the initial checkpoint."""
  trajectory = ARRAYS['trajectory'] | {'steps': np.array([4, 9])}
  barriers = ARRAYS['barriers'] | {'variants': np.array([contrast.RAW])}
  by_text = {of.text: of for of in contrast.MEASURES}
  value = lambda text, arrays: by_text[text].value(arrays)
  assert np.isnan(value('distance to the teacher, initial student', trajectory))
  assert value('distance to the teacher, final student', trajectory) == 5
  assert np.isnan(value('barrier to the teacher, loss, aligned', barriers))
  assert not np.isnan(value('barrier to the teacher, loss', barriers))
  forks = {'fractions': np.array([0.25]), 'agreement': np.array([0.5])}
  assert np.isnan(value('agreement of two ends, test, continuations from 0%', forks))
  assert value('agreement of two ends, test, continuations from 25%', forks) == 50
