"""Trackers that take the log of a training besides TensorBoard: Weights & Biases, MLflow and trackio.

A tracker's package is imported when the tracker is used. Its own environment variables and logins decide where
it writes and whether it needs a network; docs/operations.md has them.
"""

import contextlib
import contextvars
import dataclasses
import importlib.util
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol

from etils import epath

from kdjax.errors import UserError
from kdjax.runtime import files, progress

RECORD = 'trackers.json'  # beside the log of a training: the id of its run in each tracker
MLFLOW_BATCH = 100  # parameters that MLflow takes in one call


@dataclasses.dataclass(frozen=True)
class Run:
  """A training as trackers show it.

  Attributes:
    trackers: names of TRACKERS.
    project: the name under which trackers list the runs of a workdir.
    name: the name of the run.
    folder: where the training writes.
    config: the fields of the experiment by dotted name, with plain values.
  """

  trackers: Sequence[str]
  project: str
  name: str
  folder: epath.Path
  config: Mapping[str, Any]


class Sink(Protocol):
  """A run in one tracker. It is made with a `Run` and the id of the run to continue, or None.

  Attributes:
    id: the run's id in the tracker. It differs from the given one if the tracker no longer has that run.
    loses_rows: whether a kill of the process may lose values that were added long before.
  """

  id: str
  loses_rows: bool

  def scalars(self, step: int, values: Mapping[str, float]) -> None:
    """Adds values of a step."""

  def summary(self, values: Mapping[str, float]) -> None:
    """Sets values of the whole run."""

  def finish(self, failed: bool) -> None:
    """Ends the run. A later sink may continue it."""


class Wandb:
  """A run of Weights & Biases.

  Its process keeps values in memory for a while. A kill loses them if it writes to files ('offline'). After
  a resume, files have steps twice, with the same values; online, repeated steps are ignored.
  """

  loses_rows = True

  def __init__(self, run: Run, run_id: str | None):
    import wandb

    self._run = wandb.init(
      project=os.environ.get('WANDB_PROJECT') or run.project,
      name=run.name,
      id=run_id,
      resume='allow' if run_id else None,
      config=dict(run.config),
      reinit='create_new',  # members of a teacher may train at once in this process
      settings=wandb.Settings(console='off', silent=True),
    )
    self.id = self._run.id
    progress.logger.info('wandb: %s: %s', run.name, self._run.settings.run_url or self._run.dir)

  def scalars(self, step: int, values: Mapping[str, float]) -> None:
    self._run.log(dict(values), step=step, commit=True)

  def summary(self, values: Mapping[str, float]) -> None:
    self._run.summary.update(dict(values))

  def finish(self, failed: bool) -> None:
    self._run.finish(exit_code=int(failed))


class Mlflow:
  """A run of MLflow. A resume logs the steps after the last checkpoint again, with the same values."""

  loses_rows = False

  def __init__(self, run: Run, run_id: str | None):
    import mlflow

    self._entities, self._client = mlflow.entities, mlflow.MlflowClient()
    name = os.environ.get('MLFLOW_EXPERIMENT_NAME') or run.project
    experiment = mlflow.set_experiment(name).experiment_id
    if run_id and self._client.search_runs([experiment], f"attributes.run_id = '{run_id}'"):
      self.id = run_id
      self._client.update_run(self.id, status='RUNNING')
      return
    self.id = self._client.create_run(experiment, run_name=run.name).info.run_id
    params = [self._entities.Param(key, str(value)) for key, value in run.config.items()]
    for start in range(0, len(params), MLFLOW_BATCH):
      self._client.log_batch(self.id, params=params[start : start + MLFLOW_BATCH])

  def scalars(self, step: int, values: Mapping[str, float]) -> None:
    now = int(1000 * time.time())
    metrics = [self._entities.Metric(key, value, now, step) for key, value in values.items()]
    self._client.log_batch(self.id, metrics=metrics)

  def summary(self, values: Mapping[str, float]) -> None:
    self.scalars(0, values)

  def finish(self, failed: bool) -> None:
    self._client.set_terminated(self.id, 'FAILED' if failed else 'FINISHED')


class Trackio:
  """A run of trackio, which finds a run by its name. The folder is part of it, so that it is unique.

  A summary is logged one step after the last, since trackio has no summaries. A resume logs the steps after
  the last checkpoint again, with the same values.
  """

  loses_rows = False  # except those of the last half second

  def __init__(self, run: Run, run_id: str | None):
    import trackio

    # In its own context, `init` does not finish another member's run.
    self._run = contextvars.Context().run(
      trackio.init,
      project=run.project,
      name=f'{run.name} ({run.folder.parent.name}/{run.folder.name})',
      config=dict(run.config),
      resume='allow' if run_id else 'never',
      embed=False,
    )
    self.id = self._run.id

  def scalars(self, step: int, values: Mapping[str, float]) -> None:
    self._run.log(dict(values), step=step)

  def summary(self, values: Mapping[str, float]) -> None:
    self._run.log(dict(values))

  def finish(self, failed: bool) -> None:
    self._run.finish()


# The name of a tracker is that of its package, and of the extra of kdjax that installs it.
TRACKERS: dict[str, Callable[[Run, str | None], Sink]] = {
  'wandb': Wandb,
  'mlflow': Mlflow,
  'trackio': Trackio,
}


def problems(names: Sequence[str], field: str) -> list[str]:
  """The problems of a choice of trackers, one line each.

  Args:
    field: the flag or argument that chose them.
  """
  found = []
  for name in names:
    if name not in TRACKERS:
      found.append(f'{field}: {name!r}: no such tracker; allowed: any of {", ".join(TRACKERS)}')
    elif importlib.util.find_spec(name) is None:
      found.append(f"{field}: {name!r}: needs a package: pip install 'kdjax[{name}]'")
  return found


class Tracking:
  """A run in all of its trackers."""

  def __init__(self, run: Run, rows: Sequence[Mapping[str, float]], is_finished: bool = False):
    """Begins the run in each tracker, or continues the one that RECORD has.

    Args:
      rows: the log so far, with the key 'step'. It is sent to a tracker that has no such run, or that may have
        lost a part of it.
      is_finished: whether the training is finished, so that no tracker has lost a part.

    Raises:
      UserError: a tracker failed; the methods raise it too.
    """
    path = run.folder / RECORD
    known = files.read_json(path) if path.exists() else {}
    self._sinks: dict[str, Sink] = {}
    for name in dict.fromkeys(run.trackers):
      before = known.get(name)
      with _explained(name):
        sink = self._sinks[name] = TRACKERS[name](run, before)
        if before is not None and sink.id != before:
          progress.logger.warning(
            '%s: no longer has the run %s; %s begins a new one', name, before, run.name
          )
        if sink.id != before or (sink.loses_rows and not is_finished):
          for row in rows:
            sink.scalars(row['step'], {key: x for key, x in row.items() if key != 'step'})
    ids = known | {name: sink.id for name, sink in self._sinks.items()}
    if ids != known:
      files.write_json(path, ids)

  def scalars(self, step: int, values: Mapping[str, float]) -> None:
    self._each(lambda sink: sink.scalars(step, values))

  def summary(self, values: Mapping[str, float]) -> None:
    self._each(lambda sink: sink.summary(values))

  def finish(self, failed: bool) -> None:
    self._each(lambda sink: sink.finish(failed))

  def _each(self, act: Callable[[Sink], None]) -> None:
    for name, sink in self._sinks.items():
      with _explained(name):
        act(sink)


@contextlib.contextmanager
def _explained(name: str) -> Iterator[None]:
  """Turns any error of a tracker into a UserError that names the tracker."""
  try:
    yield
  except Exception as error:
    reason = ' '.join(str(error).split()) or type(error).__name__
    raise UserError(
      f'the tracker {name} failed: {reason}. Fix that and run the same command again: it resumes. Without '
      f'{name} in --trackers it resumes too.'
    ) from error
