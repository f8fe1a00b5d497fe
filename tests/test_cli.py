"""The command line: help, sweeps from flags, and exit statuses."""

import re

import pytest

from kdjax import config as config_lib
from kdjax import losses, models
from kdjax.config import base
from kdjax.config import sweep as sweep_lib
from kdjax.data import augmentations
from kdjax.interface import flags
from kdjax.train import optimizers
from tests import launched


def parsed(*arguments):
  with pytest.raises(SystemExit) as stopped:
    flags.parse_flags(['launch.py', *arguments])
  return stopped.value.code


def test_help_lists_flags_and_experiments_and_succeeds(capsys):
  assert parsed('--config=nowhere.py', '--help') == 0
  text = capsys.readouterr().out
  for name in ('--sweep.FIELD=V1,V2,...', '--process_id=I', 'teachers,gan,predictions,student'):
    assert name in text
  assert 'paper/fig6b_lambda ' in text and 'Figure 6b: ' in text


def test_help_config_has_every_field_with_its_default_and_comment(capsys):
  assert parsed('--help_config') == 0
  lines = capsys.readouterr().out.splitlines()
  place = lines.index('student.temperature = 4.0')
  assert lines[place + 1].startswith('    τ, ')
  assert lines[lines.index('teacher.momentum = 0.9') + 1].startswith('    of SGD and Muon')
  names = {
    'student.loss': losses.LOSSES,
    'student.optimizer': optimizers.OPTIMIZERS,
    'teacher.augmentation': augmentations.FUNCTIONS,
    'model.name': models.MODELS,
  }
  for name, value in config_lib.leaves(base.get_config()).items():
    meaning = lines[lines.index(f'{name} = {value!r}') + 1]
    assert re.match(r'    [^ .]', meaning), name
    assert all(f"'{known}'" in meaning for known in names.get(name, ())), name


def test_a_sweep_from_flags_has_every_combination():
  sweep, problems = config_lib.sweep_from_flags(
    'digits', [('student.temperature', '1,4.5'), ('student.loss', 'kl,logit_mse')]
  )
  assert problems == [] and sweep_lib.problems(sweep) == []
  assert [(point.x, point.series) for point in sweep.points] == [
    (1.0, 'loss = kl'),
    (1.0, 'loss = logit_mse'),
    (4.5, 'loss = kl'),
    (4.5, 'loss = logit_mse'),
  ]
  assert sweep.points[-1].fields == {'student.temperature': 4.5, 'student.loss': 'logit_mse'}


def test_a_field_has_its_full_name_where_others_end_like_it():
  swept = [('teacher.num_epochs', '1,2'), ('student.num_epochs', '3'), ('student.loss', 'kl')]
  sweep, _ = config_lib.sweep_from_flags('digits', swept)
  assert sweep.x_label == 'teacher.num_epochs'
  assert sweep_lib.series_names(sweep) == ['student.num_epochs = 3, loss = kl']


def test_values_that_are_not_all_numbers_are_names():
  sweep, problems = config_lib.sweep_from_flags('digits', [('student.final_temperature', 'None,3')])
  assert problems == [] and [point.x for point in sweep.points] == ['None', '3']
  assert [point.fields['student.final_temperature'] for point in sweep.points] == [None, 3]


def test_more_combinations_than_series_are_names():
  swept = [('seed', '0,1'), ('student.alpha', '0,0.5,1'), ('student.temperature', '1,2,4')]
  sweep, problems = config_lib.sweep_from_flags('digits', swept)
  assert problems == [] and len(sweep.points) == 18
  assert sweep_lib.series_names(sweep) == ['']
  assert sweep.points[1].x == 'seed = 0, alpha = 0, temperature = 2'
  sweep, _ = config_lib.sweep_from_flags('digits', [swept[0], ('student.alpha', '0,1,2,3,4,5')])
  assert len(sweep_lib.series_names(sweep)) == 6


@pytest.mark.parametrize(
  ('text', 'values'),
  [
    ('1,2', [1, 2]),
    ('(0, 5),(5, 9)', [(0, 5), (5, 9)]),
    ("('crop',)", [('crop',)]),
    ('sgd, adam', ['sgd', 'adam']),
    ('None,3', [None, 3]),
  ],
)
def test_values_are_literals(text, values):
  sweep, _ = config_lib.sweep_from_flags('digits', [('field', text)])
  assert [point.fields['field'] for point in sweep.points] == values


@pytest.mark.parametrize(
  ('swept', 'problem'),
  [
    ([('seed', None)], '--sweep.seed: no values given; write --sweep.seed=V1,V2'),
    ([('seed', '1'), ('seed', '2')], '--sweep.seed: given twice'),
    ([('seed', '1,1')], "--sweep: 2 points of the sweep have series '' and x = 1.0; allowed: one"),
  ],
)
def test_wrong_sweeps_are_reported(swept, problem):
  assert config_lib.sweep_from_flags('digits', swept)[1] == [problem]


def test_list_prints_the_runs_and_trains_nothing(tmp_path):
  listed = launched.run(
    tmp_path / 'workdir', '--list', '--sweep.seed=0,1', '--sweep.student.temperature=1,4'
  )
  assert listed.returncode == 0, listed.stderr
  assert '0 of 4 runs are done' in listed.stdout
  assert 'seed=1, student.temperature=4' in listed.stdout
  assert not (tmp_path / 'workdir').exists()
  both = launched.run(tmp_path / 'workdir', '--verify', '--sweep.seed=0,1')
  assert both.returncode == 1 and '--sweep and --verify: allowed: one of them' in both.stderr
  wrong = launched.run(tmp_path / 'workdir', '--list', '--sweep.student.temprature=1')
  assert wrong.returncode == 1
  assert 'student.temprature = 1: no such field; did you mean student.temperature?' in wrong.stderr
