"""Which stages run, and sweeps in one and in several processes, with kills, divergence and errors."""

import contextlib
import csv
import json
import pathlib
import shutil
import threading
import time
from functools import partial

import pytest
from conftest import TINY, copied, tiny_run
from etils import epath

from kdjax import config as config_lib
from kdjax.errors import MissingInputError, UserError
from kdjax.runtime import files
from kdjax.stages import pipeline
from kdjax.stages.experiment import Experiment
from kdjax.stages.stage import Stage
from tests import launched

AGREEMENT = 'splits.test.fidelity.top1_agreement'
SWEEP = f"""
from kdjax import config as config_lib
from kdjax.config.sweep import Panel, Point, Sweep


def get_config():
  config, _ = config_lib.load({str(TINY)!r})
  config.dataset.num_test = 100
  config.teacher.num_members = 1
  config.teacher.num_epochs = 0
  config.predictions.num_views = 2
  config.student.num_epochs = 2
  config.student.keep_checkpoints = ()
  config.training.num_checkpoints = 2
  config.training.num_evals = 1
  return config


def get_sweep():
  return Sweep(
    'Temperatures',
    'temperature',
    [Point({{'student.temperature': tau}}, tau) for tau in (1.0, 4.0)],
    [Panel({AGREEMENT!r}, 'agreement (%)', 100)],
    trials=2,
  )
"""
DIVERGING = SWEEP.replace('trials=2', 'trials=1').replace(
  "{'student.temperature': tau}, tau) for tau in (1.0, 4.0)",
  "{'student.learning_rate': rate, 'student.loss': 'logit_mse'}, rate)\n    for rate in (1e-4, 1e6, 2e-4)",
)
STAGES = [name for name in pipeline.STAGES if name != 'report']  # drawing takes long
WRONG = SWEEP.replace("'student.temperature'", "'student.tau'")


@pytest.fixture(scope='module')
def sweeps(tmp_path_factory) -> dict[str, str]:
  """Config files."""
  folder = tmp_path_factory.mktemp('sweeps')
  texts = {'good': SWEEP, 'diverging': DIVERGING, 'wrong': WRONG}
  for name, text in texts.items():
    (folder / f'{name}.py').write_text(text)
  return {name: str(folder / f'{name}.py') for name in texts}


def configs_of(spec):
  """The configs of a sweep by the index of the run."""
  configs, problems = config_lib.sweep_configs(spec, config_lib.load_sweep(spec), [])
  assert problems == []
  return dict(enumerate(configs))


@pytest.fixture(scope='module')
def swept(sweeps, tmp_path_factory) -> pathlib.Path:
  """The workdir of a sweep that one process ran."""
  workdir = tmp_path_factory.mktemp('swept')
  pipeline.run_sweep(configs_of(sweeps['good']), epath.Path(workdir), STAGES)
  return workdir


def results(workdir) -> dict[str, str]:
  return {path.parent.name: path.read_text() for path in workdir.glob('students/*/result.json')}


def folders(workdir) -> dict[str, int]:
  kinds = ('teachers', 'predictions', 'students')
  return {kind: sum(path.is_dir() for path in (workdir / kind).iterdir()) for kind in kinds}


def content(workdir) -> dict[pathlib.Path, int]:
  return {path: path.stat().st_mtime_ns for path in workdir.rglob('*') if path.is_file()}


# Some of the stages.


def test_a_missing_stage_between_two_is_reported_before_the_first(tmp_path):
  config = tiny_run(tmp_path, predictions__extra='gan', predictions__num_extra=2).config
  for names, missing in [
    (['teachers', 'predictions'], 'gan'),
    (['teachers', 'gan', 'student'], 'predictions'),
    (['predictions', 'gan', 'teachers', 'evaluation'], 'student'),
  ]:
    with pytest.raises(MissingInputError, match=f'--stages={missing}'):
      pipeline.run(config, epath.Path(tmp_path), names)
  assert list(tmp_path.iterdir()) == []


def test_online_mode_requires_no_stored_predictions(tmp_path, monkeypatch):
  run = tiny_run(tmp_path, predictions__mode='online')
  with pytest.raises(MissingInputError, match='--stages=teachers'):
    pipeline.run(run.config, run.workdir, ['gan', 'student'])
  ran = []
  monkeypatch.setattr(Stage, 'run', lambda stage, *_: bool(ran.append(stage.name)))
  pipeline.run(run.config, run.workdir, ['teachers', 'student'])
  assert ran == ['teachers', 'student']


def test_a_stage_that_is_left_out_may_be_complete_or_not_needed(finished, tmp_path):
  run = copied(finished, tmp_path)
  before = content(tmp_path)
  pipeline.run(run.config, run.workdir, ['teachers', 'evaluation'])
  assert content(tmp_path) == before
  shutil.rmtree(tmp_path / 'students')
  with pytest.raises(MissingInputError, match='--stages=student'):
    pipeline.run(run.config, run.workdir, ['teachers', 'evaluation'])


# One process.


def test_teachers_and_predictions_are_shared(swept, sweeps):
  # Two seeds, each with two temperatures; the other seed's student is the independent one.
  assert folders(swept) == {'teachers': 2, 'predictions': 2, 'students': 4}
  found = results(swept)
  configs = configs_of(sweeps['good']).values()
  assert set(found) == {config_lib.student_fingerprint(config) for config in configs}
  for text in found.values():
    splits = json.loads(text)['splits']
    assert set(splits['test']) >= {'fidelity', 'independent', 'teacher_wrong'}


def test_a_finished_sweep_is_not_run_again(swept, sweeps):
  before = content(swept)
  pipeline.run_sweep(configs_of(sweeps['good']), epath.Path(swept), STAGES)
  assert content(swept) == before


# Several processes.


def test_two_processes_share_a_sweep_and_a_killed_one_resumes(swept, sweeps, tmp_path):
  start = partial(
    launched.start, tmp_path, '--sweep', f'--stages={",".join(STAGES)}', config=sweeps['good']
  )
  killed, other = start(), start()
  while not list(tmp_path.glob('students/*/checkpoints/*')):
    assert killed.is_alive(), killed.told
    time.sleep(0.001)
  assert killed.kill()
  again = start()
  assert [other.wait(), again.wait()] == [0, 0], other.told + again.told
  told = killed.told + other.told + again.told
  assert told.count('independent: done') == 0  # each is another's student
  assert told.count('evaluation: done') == 4
  assert told.count('student: done') in (3, 4)  # the killed one may have had no time to say so
  assert results(tmp_path) == results(swept)
  for kind in ('csv', 'json', 'png', 'html'):
    assert str(tmp_path / f'good.{kind}') in other.told
  expected = {}
  for config, trial in zip(configs_of(sweeps['good']).values(), (0, 0, 1, 1), strict=True):
    splits = json.loads(results(tmp_path)[config_lib.student_fingerprint(config)])['splits']
    agreement = splits['test']['fidelity']['top1_agreement']
    expected[config.student.temperature, trial] = agreement
  with (tmp_path / 'good.csv').open() as file:
    rows = list(csv.DictReader(file))
  found = {(float(row['x']), int(row['trial'])): float(row[AGREEMENT]) for row in rows}
  assert found == expected  # means and deviations are tested in test_sweep_page.py


def test_one_point_diverges_and_all_errors_of_a_sweep_are_reported(swept, sweeps, tmp_path):
  for kind in ('teachers', 'predictions'):
    shutil.copytree(swept / kind, tmp_path / kind)
  of_wrong = f'--config={sweeps["wrong"]}', f'--workdir={tmp_path / "wrong"}'
  done, wrong = launched.run_each(
    [f'--config={sweeps["diverging"]}', f'--workdir={tmp_path}', '--sweep_index=1'],
    [*of_wrong, '--sweep_index=4', '--stages=students'],
  )
  assert done.returncode == wrong.returncode == 1
  assert 'Traceback' not in done.stderr + wrong.stderr
  error = done.stderr[done.stderr.index('error: ') :]
  assert error.startswith('error: 1 of 1 runs of the sweep failed')
  assert 'run 1: student: the loss' in error
  assert results(tmp_path) == {}
  with (tmp_path / 'diverging.csv').open() as file:
    assert list(csv.DictReader(file)) == []
  page = (tmp_path / 'diverging.html').read_text()
  assert f'--config={sweeps["diverging"]} --workdir={tmp_path} --sweep_index=2' in page
  told = ['student.tau = 1.0: no such field', 'student.tau = 4.0: no such field']
  told += ['--sweep_index = 4: allowed: 0 to 3', "--stages: 'students': no such stage"]
  assert '4 problems' in wrong.stderr
  assert all(wrong.stderr.count(problem) == 1 for problem in told)
  assert not (tmp_path / 'wrong').exists()  # it is told before anything runs


def test_a_trial_that_diverged_is_not_trained_again_and_costs_no_other_its_result(
  swept, sweeps, tmp_path, caplog
):
  shutil.copytree(swept, tmp_path, dirs_exist_ok=True)
  configs = configs_of(sweeps['good'])
  diverged, other = (
    Experiment(configs[i], epath.Path(tmp_path)) for i in (2, 0)
  )  # two trials of a point
  expected = results(tmp_path)
  diverged.folders.student.rmtree()
  diverged.folders.student.mkdir()
  files.write_json(
    diverged.folders.student / 'diverged.json', {'message': 'student: the loss is nan'}
  )

  def run_sweep():
    pipeline.run_sweep(configs, epath.Path(tmp_path), STAGES)

  for _ in range(2):  # nor by the next process
    with pytest.raises(
      UserError, match=r'1 of 4 .*\n  run 2: student: the loss is nan .*delete this file'
    ):
      run_sweep()
    assert not (diverged.folders.student / 'checkpoints').exists()
    found = results(tmp_path)
    assert set(found) == set(expected) - {diverged.folders.student.name}
    (changed,) = (name for name in found if found[name] != expected[name])
    assert changed == other.folders.student.name
    assert 'independent' not in json.loads(found[changed])['splits']['test']
    assert str(diverged.folders.student) in caplog.text
  (diverged.folders.student / 'diverged.json').unlink()
  run_sweep()
  assert results(tmp_path) == expected


# The order of the runs, without any work.


class Recorder:
  """A replacement of `pipeline.run` that notes the config and the stages of each call. Some calls fail."""

  def __init__(self, failing=()):
    self.calls = []
    self.failing = failing
    self.then = {}  # what to do when a config is run

  def __call__(self, config, workdir, names, trackers, title, wait):
    index = int(config.student.temperature)
    self.calls.append((index, *names))
    self.then.get(index, lambda: None)()
    if index in self.failing:
      raise UserError(f'no {index}')
    return config


def temperatures(count):
  """Configs by index."""
  configs = {}
  for index in range(count):
    configs[index], _ = config_lib.load(str(TINY))
    configs[index].student.temperature = float(index)
  return configs


def test_students_come_first_and_then_what_compares_them(monkeypatch, tmp_path):
  recorder = Recorder()
  monkeypatch.setattr(pipeline, 'run', recorder)
  names = ['report', 'evaluation', 'student', 'teachers', 'independent']
  pipeline.run_sweep(temperatures(2), epath.Path(tmp_path), names)
  training, comparing = ('student', 'teachers'), ('report', 'evaluation', 'independent')
  in_order = [(0, *training), (1, *training), (0, *comparing), (1, *comparing)]
  assert recorder.calls == in_order
  recorder.calls.clear()
  pipeline.run_sweep(temperatures(2), epath.Path(tmp_path), ['evaluation'])
  assert recorder.calls == [(0, 'evaluation'), (1, 'evaluation')]


def test_a_failed_run_is_reported_and_not_compared_and_the_others_are_done(monkeypatch, tmp_path):
  recorder = Recorder(failing=(0, 2))
  monkeypatch.setattr(pipeline, 'run', recorder)
  with pytest.raises(UserError) as error:
    pipeline.run_sweep(temperatures(4), epath.Path(tmp_path), ['student', 'evaluation'])
  assert str(error.value).splitlines() == [
    '2 of 4 runs of the sweep failed; the others are done:',
    '  run 0: no 0',
    '  run 2: no 2',
  ]
  assert recorder.calls == [
    *[(index, 'student') for index in range(4)],
    *[(index, 'evaluation') for index in (1, 3)],
  ]


def claim(config, workdir) -> contextlib.ExitStack:
  """The lock of another process that runs a config, until it is closed."""
  folder = Experiment(config, epath.Path(workdir)).folders.student
  stack = contextlib.ExitStack()
  assert stack.enter_context(files.lock(folder.with_name(f'{folder.name}.claim')))
  return stack


def test_a_run_of_another_process_comes_last(monkeypatch, tmp_path):
  recorder = Recorder()
  monkeypatch.setattr(pipeline, 'run', recorder)
  configs = temperatures(3)
  with claim(configs[0], tmp_path) as claimed:
    recorder.then[2] = claimed.close  # the other process ends
    pipeline.run_sweep(configs, epath.Path(tmp_path), ['student'])
  assert recorder.calls == [(1, 'student'), (2, 'student'), (0, 'student')]


def test_a_run_whose_teacher_another_process_trains_comes_last(monkeypatch, tmp_path):
  """Meanwhile the other member of the teacher is trained."""
  configs = temperatures(2)
  for seed, config in configs.items():
    config.seed, config.teacher.num_epochs = seed, 0
  first, second = Experiment(configs[0], epath.Path(tmp_path)).folders.members
  run, finished, other_process = pipeline.run, [], contextlib.ExitStack()

  def noted(config, *arguments):
    done = run(config, *arguments) is not None
    finished.append((config.seed, done, (second / 'complete.json').exists()))
    other_process.close()  # after the first call
    return config if done else None

  monkeypatch.setattr(pipeline, 'run', noted)
  assert other_process.enter_context(files.lock(first))
  pipeline.run_sweep(configs, epath.Path(tmp_path), ['teachers', 'predictions'])
  assert finished == [(0, False, True), (1, True, True), (0, True, True)]


def test_when_nothing_else_is_left_a_sweep_waits_for_the_other_process(monkeypatch, tmp_path):
  recorder = Recorder()
  monkeypatch.setattr(pipeline, 'run', recorder)
  configs = temperatures(2)
  claimed = threading.Event()

  def other_process():
    with claim(configs[1], tmp_path):
      claimed.set()
      time.sleep(0.3)
      recorder.calls.append('the other ends')

  thread = threading.Thread(target=other_process)
  thread.start()
  claimed.wait()
  pipeline.run_sweep(configs, epath.Path(tmp_path), ['student'])
  thread.join()
  assert recorder.calls == [(0, 'student'), 'the other ends', (1, 'student')]
