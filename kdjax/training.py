"""The training loop, the same for teachers and students: dispatch, log, evaluate, save, go on."""

import collections
import dataclasses
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jax
import numpy as np
from etils import epath
from tensorboardX import SummaryWriter

from kdjax import files, progress, steps
from kdjax.checkpoint import Checkpoints
from kdjax.errors import DivergedError
from kdjax.steps import Metrics, State

STEPS_IN_FLIGHT = 16  # dispatched ahead of the devices; bounds the memory that waiting batches take


@dataclasses.dataclass(frozen=True)
class Plan:
  """How long to train, and after which steps to do what besides."""

  num_steps: int
  batch_size: int
  num_examples: int  # in an epoch
  logs: frozenset[int]
  evals: frozenset[int]
  saves: frozenset[int]
  keeps: frozenset[int]

  @property
  def stops(self) -> frozenset[int]:
    """Steps after which metrics are fetched. Every save is one, so that a restart finds the same."""
    return self.logs | self.evals | self.saves | self.keeps

  def epoch(self, step: int) -> float:
    return step * self.batch_size / self.num_examples


def make_plan(
  num_steps: int,
  batch_size: int,
  num_examples: int,
  *,
  num_logs: int,
  num_evals: int,
  num_checkpoints: int,
  keep_checkpoints: Iterable[float],
) -> Plan:
  """Spreads `num_*` events evenly; the last of each falls on the last step."""

  def spread(count: int) -> frozenset[int]:
    count = min(count, num_steps)
    return frozenset(-(-num_steps * i // count) for i in range(1, count + 1))

  return Plan(
    num_steps,
    batch_size,
    num_examples,
    logs=spread(num_logs),
    evals=spread(num_evals),
    saves=spread(num_checkpoints),
    keeps=frozenset(round(fraction * num_steps) for fraction in keep_checkpoints),
  )


def fit(
  folder: epath.Path,
  name: str,
  plan: Plan,
  like: State,
  init: Callable[[], State],
  step: Callable[..., tuple[State, Metrics]],
  inputs: Callable[[int], Iterator[tuple]],
  evaluate: Callable[[State], dict[str, float]],
  learning_rate: Callable[[int], Any],
) -> None:
  """Trains to `plan.num_steps`, from the newest checkpoint in `folder` or from `init()`.

  Writes checkpoints/, metrics.jsonl, tensorboard/ and at the very end complete.json.

  Args:
    name: for the progress bar and messages.
    like: shapes and dtypes of the state.
    step: (state, *inputs) → (state, metrics); the state is donated.
    inputs: start → what `step` takes beside the state, for steps start, start + 1, ...
    evaluate: state → values to log, called after the steps of `plan.evals`.
    learning_rate: step → its learning rate, for the log.

  Raises:
    DivergedError: a loss or a gradient is NaN or infinite.
  """
  with Checkpoints(folder / 'checkpoints', plan.keeps) as checkpoints:
    start, state = _start(checkpoints, like, init, plan)
    log = _Log(folder, start)
    metrics, began = [], time.monotonic()  # since the last row of the log
    with progress.bar(name, plan.num_steps, 'steps') as show:
      show(start, 'compiling')
      for done, arguments in enumerate(inputs(start), start + 1):
        state, step_metrics = step(state, *arguments)
        metrics.append(step_metrics)
        if len(metrics) > STEPS_IN_FLIGHT:
          jax.block_until_ready(metrics[-STEPS_IN_FLIGHT])
        if done in plan.stops:
          row = _summary(metrics, done, name, checkpoints)
          row |= {'epoch': plan.epoch(done), 'learning_rate': float(learning_rate(done))}
          row |= {
            'examples_per_second': len(metrics) * plan.batch_size / (time.monotonic() - began)
          }
          log.append(done, row | (evaluate(state) if done in plan.evals else {}))
          if done in plan.saves | plan.keeps:
            checkpoints.save(done, state)
          metrics, began = [], time.monotonic()
        show(done, log.text)
    log.close()
  files.write_json(folder / 'complete.json', {'step': plan.num_steps})


class _Log:
  """A row for each stop in metrics.jsonl, and the same values for TensorBoard."""

  def __init__(self, folder: epath.Path, start: int):
    """Keeps the rows up to the restored step; what an interrupted run wrote later comes again."""
    self._path = folder / 'metrics.jsonl'
    self._rows = [row for row in files.read_json_lines(self._path) if row['step'] <= start]
    self._writer = SummaryWriter(str(folder / 'tensorboard'), purge_step=start)

  def append(self, step: int, row: dict[str, float]) -> None:
    self._rows.append({'step': step} | row)
    files.write_json_lines(self._path, self._rows)
    for key, value in row.items():
      self._writer.add_scalar(key, value, step)

  @property
  def text(self) -> str:
    """The newest values, for the progress bar."""
    if not self._rows:
      return ''
    shown = {
      'train/loss': 'loss',
      'train/accuracy': 'accuracy',
      'train/top1_agreement': 'agreement',
    }
    row = self._rows[-1]
    return ' '.join(f'{label} {row[key]:.3f}' for key, label in shown.items() if key in row)

  def close(self) -> None:
    self._writer.close()


def is_complete(folder: epath.Path) -> bool:
  """Whether training came to its end, and the last checkpoint is still there."""
  complete = folder / 'complete.json'
  if not complete.exists():
    return False
  return (folder / 'checkpoints' / str(files.read_json(complete)['step'])).exists()


def _start(
  checkpoints: Checkpoints, like: State, init: Callable[[], State], plan: Plan
) -> tuple[int, State]:
  if checkpoints.steps:
    state = checkpoints.restore(like)
    return int(state.step), steps.replicate(state)
  state = init()
  if 0 in plan.keeps:
    checkpoints.save(0, state)
  return 0, steps.replicate(state)


def _summary(
  metrics: list[Metrics], done: int, name: str, checkpoints: Checkpoints
) -> dict[str, float]:
  """Fetches the metrics of the steps up to `done` and divides each sum once by its count."""
  fetched = jax.device_get(metrics)
  for step, values in enumerate(fetched, done - len(fetched) + 1):
    for key in ('loss', 'gradient_norm'):
      if not np.isfinite(values[key][0]):
        raise DivergedError(_divergence_message(name, key, values[key][0], step, checkpoints))
  sums = collections.defaultdict(lambda: np.zeros(2))
  for values in fetched:
    for key, pair in values.items():
      sums[key] += pair
  return {f'train/{key}': float(total / count) for key, (total, count) in sums.items() if count}


def _divergence_message(
  name: str, key: str, value: float, step: int, checkpoints: Checkpoints
) -> str:
  last = 'There is no checkpoint before it'
  if good := [saved for saved in checkpoints.steps if saved < step]:
    last = f'The last good checkpoint is {checkpoints.folder / str(good[-1])}'
  return (
    f'{name}: the {key} is {value} at step {step}. {last}. A smaller learning rate usually helps; a '
    'changed config trains in a folder of its own.'
  )
