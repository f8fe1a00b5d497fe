"""The scripts of configs/paper: the most valuable runs first, and Figure 8."""

import csv

import numpy as np
import pytest
from conftest import ROOT
from etils import epath

import kdjax
from configs.paper import fig8_teachers, in_order
from kdjax import config as config_lib
from kdjax.errors import UserError
from kdjax.report import figures
from kdjax.stages import pipeline

SWEEP = """
from kdjax.config.sweep import Claim, Panel, Point, Sweep
from tests import tiny_config

AGREEMENT = 'splits.test.fidelity.top1_agreement'


def get_config(arg=''):
  config = tiny_config.get_config()
  config.dataset.num_train = 100
  config.teacher.num_members = 1
  config.teacher.num_epochs = 1
  config.student.keep_checkpoints = ()
  return config


def get_sweep(arg=''):
  return Sweep(
    title='τ',
    x_label='τ',
    points=[Point({'student.temperature': x}, x) for x in (1.0, 2.0)],
    panels=[Panel(AGREEMENT, 'agreement (%)', 100)],
    claims=[Claim('τ = 2 agrees more', AGREEMENT, ('', 2.0), ('', 1.0), 'higher')],
  )
"""


def test_points_of_the_first_claims_come_first_in_every_trial():
  sweep = config_lib.load_sweep(str(ROOT / 'configs' / 'paper' / 'fig6b_lambda.py'))
  runs = in_order.ordered(sweep)
  configured = 'rate as configured'
  assert [run.point.key for run in runs[:3]] == [(configured, x) for x in (0.5, 0.0, 0.375)]
  assert [run.trial for run in runs] == sorted(run.trial for run in runs)
  # No claim is about λ = 0.125 and 0.75.
  num_points = len(sweep.points)
  assert {run.point.x for run in runs[num_points - 4 : num_points]} == {0.125, 0.75}
  assert sorted(run.index for run in runs) == list(range(len(runs)))


def test_results_are_complete_whenever_it_is_stopped(tmp_path, monkeypatch):
  """After the first run, the results have its row; the same command then trains only the other run."""
  monkeypatch.setattr(figures, 'image', lambda *_: b'')
  spec = tmp_path / 'tau.py'
  spec.write_text(SWEEP)
  arguments = [str(spec), f'--workdir={tmp_path / "runs"}', '--config.student.num_epochs=1']
  trained = []

  def run_sweep(configs, workdir, names):
    (config,) = configs.values()
    if len(trained) == 1 and allowed == 1:
      raise UserError('stopped')
    trained.append(config.student.temperature)
    original(configs, workdir, names)

  original = pipeline.run_sweep
  monkeypatch.setattr(pipeline, 'run_sweep', run_sweep)

  def rows():
    text = (tmp_path / 'runs' / 'results' / 'tau.csv').read_text()
    return list(csv.DictReader(text.splitlines()))

  allowed = 1
  with pytest.raises(SystemExit, match='error: stopped'):
    in_order.main(arguments)
  assert trained == [2.0]
  (row,) = rows()
  assert (row['run'], row['x']) == ('1', '2.0')
  command = f'python launch.py --config={spec} --config.student.num_epochs=1 --sweep_index=1'
  assert row['command'] == command
  allowed = 2
  before = {
    path: path.stat().st_mtime_ns for path in (tmp_path / 'runs').glob('students/*/complete.json')
  }
  in_order.main(arguments)
  assert trained == [2.0, 2.0, 1.0]
  assert [row['x'] for row in rows()] == ['1.0', '2.0']
  assert all(path.stat().st_mtime_ns == time for path, time in before.items())  # not trained again


def test_the_most_probable_classes_at_both_temperatures():
  """The ensemble is the mean of probabilities; τ = 4 takes their fourth roots."""
  probs_MC = np.array([[0.1, 0.8, 0.1], [0.1, 0.4, 0.5]])
  classes, probs_TC = fig8_teachers.distributions(np.log(probs_MC), 2)
  assert classes.tolist() == [1, 2, 0]
  np.testing.assert_allclose(probs_TC[0], [0.6, 0.3, 0.1], rtol=1e-5)
  flat_C = np.array([0.6, 0.3, 0.1]) ** 0.25
  np.testing.assert_allclose(probs_TC[1], flat_C / flat_C.sum(), rtol=1e-5)
  assert fig8_teachers.distributions(np.log(probs_MC), 1)[1][0][0] == pytest.approx(0.8)


def test_figure_8_draws_stored_predictions(finished, capsys):
  """A row for each image; two members allow only the column m = 1. Labels are in brackets."""
  found = fig8_teachers.teachers(finished.workdir)
  ((name, (log_probs_MNC, labels_N)),) = found.items()
  assert (name, len(log_probs_MNC)) == ('tests.small_network:Small', 2)
  folder = finished.workdir / 'predictions' / finished.folders.predictions.name
  np.testing.assert_array_equal(log_probs_MNC, kdjax.open_predictions(folder).members('test'))
  np.testing.assert_array_equal(labels_N, finished.data.splits['test'].labels_N)
  with figures.style('Figure 8'):
    first, second = fig8_teachers.draw(found, [3, 5]).axes
  heights = [patch.get_height() for patch in second.patches]
  np.testing.assert_allclose(heights[:10], np.sort(np.exp(log_probs_MNC[0, 5]))[::-1], rtol=1e-3)
  assert sum(heights[10:]) == pytest.approx(1, abs=1e-3)  # ten classes: all of them
  names = [label.get_text() for label in first.get_xticklabels()]
  assert f'[{labels_N[3]}]' in names and first.get_title() == f'{name}, m = 1'
  fig8_teachers.main([str(finished.workdir), '--images', '3'])
  written = capsys.readouterr().out.split()
  assert [epath.Path(path).suffix for path in written] == ['.png', '.pdf']
  for path in written:
    epath.Path(path).unlink()  # other tests read the workdir
  with pytest.raises(SystemExit, match='--images: has 100000; allowed: 0 to'):
    fig8_teachers.main([str(finished.workdir), '--images', '100000'])


def test_wrong_arguments_are_reported(tmp_path, capsys):
  with pytest.raises(SystemExit, match='has no predictions; run launch'):
    fig8_teachers.main([str(tmp_path)])
  with pytest.raises(SystemExit):
    in_order.main([f'--workdir={tmp_path}', '--sweep'])
  assert "unknown argument '--sweep'" in capsys.readouterr().err
