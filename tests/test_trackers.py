"""Trackers get the log, the config and the result of each training. The tests read the trackers' files without kdjax."""

import importlib.util
import json
import os
import pathlib
import signal
import sqlite3
import struct
import time
from collections.abc import Iterator
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import TINY
from etils import epath

import kdjax
from kdjax.errors import ConfigError, DivergedError, UserError
from kdjax.runtime import files, hosts, progress
from kdjax.train import loop, trackers
from kdjax.train.steps import Metrics, State
from tests import launched

NUM_STEPS = 6


INSTALLED = tuple(name for name in trackers.TRACKERS if importlib.util.find_spec(name))


def require_any() -> None:
  if not INSTALLED:
    pytest.skip("no tracker is installed: pip install 'kdjax[wandb,mlflow,trackio]'")


@pytest.fixture(params=trackers.TRACKERS)
def tracker(request) -> str:
  if request.param not in INSTALLED:
    pytest.skip(f"{request.param} is not installed: pip install 'kdjax[{request.param}]'")
  return request.param


# A toy training.


def init() -> State:
  return State(jnp.zeros((), jnp.int32), {'w': jnp.zeros(())}, {}, {})


def step(state: State, x: jax.Array) -> tuple[State, Metrics]:
  metrics = Metrics.from_sums({'loss': (x, 1), 'gradient_norm': (x, 1)})
  return State(state.step + 1, {'w': state.params['w'] + x}, {}, {}), metrics


def batches(start: int) -> Iterator[tuple[np.ndarray]]:
  """The loss at step i is i."""
  for i in range(start + 1, NUM_STEPS + 1):
    yield (np.float32(i),)


def killed(start: int) -> Iterator[tuple[np.ndarray]]:
  """Ends the process when four steps are logged, the last of them after the newest checkpoint."""
  for i, batch in enumerate(batches(start), 1):
    if i > 4:
      time.sleep(2)  # trackio writes twice a second, from a thread
      os.kill(os.getpid(), signal.SIGKILL)
    yield batch


def train(folder: pathlib.Path, names: tuple[str, ...], inputs=batches, **config) -> None:
  folder = epath.Path(folder)
  loop.fit(
    folder,
    'toy',
    loop.make_plan(
      NUM_STEPS, 1, 2, num_logs=NUM_STEPS, num_evals=1, num_checkpoints=2, keep_checkpoints=()
    ),
    like=jax.eval_shape(init),
    init=init,
    step=jax.jit(step),
    inputs=inputs,
    evaluate=lambda state: {'test/w': float(state.params['w'])},
    learning_rate=lambda i: 0.5,
    run=trackers.Run(names, 'project', 'toy τ=1', folder, config),
  )


def train_with(environment: dict[str, str], *arguments: Any) -> None:
  os.environ.update(environment)
  train(*arguments, units=(1, 2), rate=0.1)


def train_killed(environment: dict[str, str], folder: pathlib.Path, names: tuple[str, ...]) -> None:
  loop.devices.ahead = lambda items, _: items  # the kill comes after the steps before it
  loop.STEPS_IN_FLIGHT = 1
  train_with(environment, folder, names, killed)


def places(folder: pathlib.Path) -> dict[str, str]:
  """Environment variables that keep all trackers in a folder, without network."""
  folder.mkdir(exist_ok=True)
  return {
    'WANDB_MODE': 'offline',
    'WANDB_DIR': str(folder),
    'MLFLOW_TRACKING_URI': f'sqlite:///{folder}/mlflow.db',
    'TRACKIO_DIR': str(folder / 'trackio'),
    'HF_HUB_OFFLINE': '1',
  }


# Readers: {name of the run: {'ids', 'config', 'history': {key: {step: value}}, 'summary', 'failed'}}.


def read(name: str, folder: pathlib.Path) -> dict[str, dict[str, Any]]:
  return {'wandb': read_wandb, 'mlflow': read_mlflow, 'trackio': read_trackio}[name](folder)


def read_wandb(folder: pathlib.Path) -> dict[str, dict[str, Any]]:
  """A run has a file for each process that wrote it; later ones add to what earlier ones have."""
  found = {}
  for path in sorted(folder.glob('wandb/offline-run-*/*.wandb')):
    run = {}
    for record in wandb_records(path):
      kind = record.WhichOneof('record_type')
      if kind == 'run':
        new = {'ids': set(), 'config': {}, 'history': {}, 'summary': {}}
        run = found.setdefault(record.run.display_name, new)
        run['ids'].add(record.run.run_id)
        run['config'] |= {u.key: json.loads(u.value_json) for u in record.run.config.update}
      elif kind == 'history':
        add(run, record.history.step.num, wandb_values(record.history.item))
      elif kind == 'summary':
        run['summary'] |= wandb_values(record.summary.update)
      elif kind == 'exit':
        run['failed'] = bool(record.exit.exit_code)
  return found


def wandb_values(items) -> dict[str, float]:
  values = {item.key or '/'.join(item.nested_key): json.loads(item.value_json) for item in items}
  return {key: value for key, value in values.items() if not key.startswith('_')}


def wandb_records(path: pathlib.Path) -> Iterator[Any]:
  """The records of a file: pieces with a header of 7 bytes, which do not cross blocks of 32 KiB."""
  from wandb.proto import wandb_internal_pb2

  content, place, record = path.read_bytes(), 7, b''
  assert content[:4] == b':W&B'
  while place < len(content):
    left = 2**15 - place % 2**15
    if left < 7:
      place += left
      continue
    _, length, kind = struct.unpack('<IHB', content[place : place + 7])
    record += content[place + 7 : place + 7 + length]
    place += 7 + length
    if kind in (1, 4):  # whole, or the last piece
      yield wandb_internal_pb2.Record.FromString(record)
      record = b''


def read_mlflow(folder: pathlib.Path) -> dict[str, dict[str, Any]]:
  import mlflow

  client, found = mlflow.MlflowClient(f'sqlite:///{folder}/mlflow.db'), {}
  for experiment in client.search_experiments():
    for run in client.search_runs([experiment.experiment_id]):
      one = found[run.info.run_name] = {
        'ids': {run.info.run_id},
        'config': run.data.params,
        'history': {},
        'summary': {k: v for k, v in run.data.metrics.items() if k.startswith('result/')},
        'failed': {'FAILED': True, 'FINISHED': False}[run.info.status],
      }
      for key in run.data.metrics:
        for metric in client.get_metric_history(run.info.run_id, key):
          add(one, metric.step, {key: metric.value})
  return found


def read_trackio(folder: pathlib.Path) -> dict[str, dict[str, Any]]:
  """The name of a run without the folder that it ends with."""
  found = {}
  for path in (folder / 'trackio').glob('*.db'):
    with sqlite3.connect(path) as database:
      for run_id, name, config in database.execute('select run_id, run_name, config from configs'):
        found[run_id] = {
          'name': name.rpartition(' (')[0],
          'ids': {run_id},
          'config': json.loads(config),
          'history': {},
          'summary': {},
        }
      columns = 'run_id, step, metrics'
      for run_id, at, text in database.execute(f'select {columns} from metrics order by id'):
        values = json.loads(text)
        add(found[run_id], at, values)
        found[run_id]['summary'] |= {k: v for k, v in values.items() if k.startswith('result/')}
  return {run['name']: run for run in found.values()}


def add(run: dict[str, Any], at: int, values: dict[str, float]) -> None:
  for key, value in values.items():
    run['history'].setdefault(key, {})[at] = value


# The trackers.


@pytest.fixture(scope='module')
def resumed(tmp_path_factory) -> tuple[pathlib.Path, dict[str, str]]:
  """The folder of what a killed and resumed training wrote, and the ids of its runs before the kill."""
  require_any()
  folder = tmp_path_factory.mktemp('resumed')
  environment, training = places(folder / 'places'), folder / 'training'
  first = launched.call(train_killed, environment, training, INSTALLED)
  assert first.wait() == -signal.SIGKILL, first.told
  ids = files.read_json(epath.Path(training) / trackers.RECORD)
  second = launched.call(train_with, environment, training, INSTALLED)
  assert second.wait() == 0, second.told
  assert files.read_json(epath.Path(training) / trackers.RECORD) == ids
  return folder / 'places', ids


def test_a_killed_training_continues_its_run(tracker, resumed):
  folder, ids = resumed
  ((name, run),) = read(tracker, folder).items()
  assert name == 'toy τ=1' and run['ids'] == {ids[tracker]}
  assert run['history']['train/loss'] == {i: float(i) for i in range(1, NUM_STEPS + 1)}
  assert run['history']['test/w'] == {NUM_STEPS: 21.0}
  assert not run.get('failed')
  config = {'units': [1, 2], 'rate': 0.1}
  if tracker == 'mlflow':  # whose parameters are texts
    config = {'units': '(1, 2)', 'rate': '0.1'}
  assert {name: run['config'][name] for name in config} == config


def launch_with(environment: dict[str, str], arguments: list[str]) -> None:
  os.environ.update(environment)
  launched._launch(arguments)


@pytest.fixture(scope='module')
def swept(tmp_path_factory) -> tuple[pathlib.Path, pathlib.Path]:
  """The folder of what a sweep of two students wrote, and its workdir."""
  require_any()
  folder = tmp_path_factory.mktemp('swept')
  fields = {'student.num_epochs': 1, 'teacher.num_epochs': 1, 'dataset.num_train': 100}
  flags = [f'--config={TINY}', *(f'--config.{name}={value}' for name, value in fields.items())]
  flags += ['--stages=teachers,predictions,student,evaluation']
  flags += ['--sweep.student.temperature=1,4', f'--trackers={",".join(INSTALLED)}']
  run = launched.call(launch_with, places(folder / 'places'), [*flags, f'--workdir={folder}/mine'])
  assert run.wait() == 0, run.told
  return folder / 'places', folder / 'mine'


def test_a_sweep_is_a_run_for_each_student_with_its_result(tracker, swept):
  folder, workdir = swept
  found = read(tracker, folder)
  (teacher,) = (workdir / 'teachers').iterdir()
  temperatures = {'student.temperature=1': 1.0, 'student.temperature=4': 4.0}
  assert found.keys() == {*temperatures, *(f'teacher {i} {teacher.name}' for i in range(2))}
  for title, temperature in temperatures.items():
    one = found[title]
    assert float(one['config']['student.temperature']) == temperature
    student = epath.Path(one['config']['folder'])
    test = files.read_json(student / 'result.json')['splits']['test']
    for who, key in (('student', 'accuracy'), ('teacher', 'nll'), ('fidelity', 'predictive_kl')):
      assert one['summary'][f'result/test/{who}/{key}'] == pytest.approx(test[who][key])
    rows = files.read_json_lines(student / 'metrics.jsonl')
    kl = {row['step']: row['train/predictive_kl'] for row in rows}
    assert one['history']['train/predictive_kl'] == pytest.approx(kl) and not one.get('failed')


# The following holds for all trackers.


class Noted:
  """A tracker that notes its calls in `runs`, by id."""

  runs: ClassVar[dict[str, list]] = {}
  loses_rows = False

  def __init__(self, run: trackers.Run, run_id: str | None):
    self.id = run_id if run_id in self.runs else f'id {len(self.runs)}'
    self._told = self.runs.setdefault(self.id, [])
    self._told.append(run.name)

  def scalars(self, step, values):
    self._told.append((step, values['train/loss']))

  def summary(self, values):
    self._told.append(values)

  def finish(self, failed):
    self._told.append('failed' if failed else 'finished')


@pytest.fixture
def noted(monkeypatch) -> dict[str, list]:
  monkeypatch.setattr(trackers, 'TRACKERS', {'noted': Noted})
  monkeypatch.setattr(Noted, 'runs', {})
  return Noted.runs


def losses(*steps: int) -> list[tuple[int, float]]:
  return [(i, float(i)) for i in steps]


def test_a_training_that_diverges_is_a_failed_run(noted, tmp_path):
  with pytest.raises(DivergedError):
    train(tmp_path, ('noted',), lambda start: iter([(np.float32(1),), (np.float32(np.nan),)]))
  assert noted == {'id 0': ['toy τ=1', (1, 1.0), 'failed']}


def test_a_tracker_that_comes_late_or_has_lost_the_run_gets_the_whole_log(
  noted, tmp_path, monkeypatch
):
  def interrupted(start):
    yield from list(batches(start))[:4]
    raise KeyboardInterrupt

  told = []
  monkeypatch.setattr(progress.logger, 'warning', lambda text, *args: told.append(text % args))
  with pytest.raises(KeyboardInterrupt):
    train(tmp_path, (), interrupted)
  assert not (tmp_path / trackers.RECORD).exists()
  with pytest.raises(KeyboardInterrupt):
    train(tmp_path, ('noted',), lambda start: interrupted(6))
  assert noted == {'id 0': ['toy τ=1', *losses(1, 2, 3), 'failed']} and not told
  noted.clear()
  noted['another'] = []
  train(tmp_path, ('noted',))
  assert noted['id 1'] == ['toy τ=1', *losses(1, 2, 3, 4, 5, 6), 'finished']
  assert told == ['noted: no longer has the run id 0; toy τ=1 begins a new one']


@pytest.mark.parametrize(
  ('loses_rows', 'is_finished'), [(True, True), (True, False), (False, False)]
)
def test_the_log_is_sent_again_only_to_a_tracker_that_may_have_lost_it(
  noted, tmp_path, monkeypatch, loses_rows, is_finished
):
  monkeypatch.setattr(Noted, 'loses_rows', loses_rows)
  run = trackers.Run(('noted',), 'project', 'name', epath.Path(tmp_path), {})
  rows = [{'step': 1, 'train/loss': 1.0}]
  trackers.Tracking(run, rows).finish(failed=True)
  trackers.Tracking(run, rows, is_finished).summary({'a': 1.0})
  again = losses(1) if loses_rows and not is_finished else []
  assert noted == {'id 0': ['name', *losses(1), 'failed', 'name', *again, {'a': 1.0}]}


def test_only_the_main_host_writes(noted, tmp_path, monkeypatch):
  monkeypatch.setattr(hosts, 'is_main', lambda: False)
  run = trackers.Run(('noted',), 'project', 'name', epath.Path(tmp_path), {})
  with loop._Log(epath.Path(tmp_path), 0, [], run) as log:
    log.append(1, {'train/loss': 1.0})
  assert noted == {} and not list(tmp_path.iterdir())


def test_a_tracker_that_fails_stops_with_one_error(noted, tmp_path, monkeypatch):
  def refuse(*_):
    raise ConnectionError('no\nroute')

  monkeypatch.setattr(Noted, 'scalars', refuse)
  with pytest.raises(UserError, match=r'^the tracker noted failed: no route\. Fix that and run'):
    train(tmp_path, ('noted',))
  assert noted['id 0'][-1] == 'failed'


def test_wrong_choices_are_refused_before_anything_runs(tmp_path, monkeypatch):
  run = launched.run(tmp_path / 'workdir', '--trackers=wandb,tensorbord')
  assert run.returncode == 1 and not (tmp_path / 'workdir').exists()
  assert (
    "--trackers: 'tensorbord': no such tracker; allowed: any of wandb, mlflow, tra" in run.stderr
  )
  monkeypatch.setattr(importlib.util, 'find_spec', lambda name: None)
  with pytest.raises(ConfigError) as error:
    kdjax.distil(student='lenet', teacher='lenet', workdir=tmp_path / 'own', trackers=['wandb'])
  assert error.value.problems == ["trackers: 'wandb': needs a package: pip install 'kdjax[wandb]'"]
  assert not (tmp_path / 'own').exists()
