"""The training loop of teachers, students and GANs. It dispatches, logs, evaluates, saves and resumes."""

import contextlib
import dataclasses
import itertools
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jax
import numpy as np
from etils import epath

from kdjax.errors import DivergedError
from kdjax.runtime import files, hosts, progress
from kdjax.train import devices
from kdjax.train.checkpoint import Checkpoints
from kdjax.train.events import Events
from kdjax.train.steps import Metrics, State
from kdjax.train.trackers import Run, Tracking

LAST_EPOCH = ('train/top1_agreement', 'train/predictive_kl', 'train/loss')
DIVERGED = 'diverged.json'  # marks a training that diverged, so that it is not repeated
STEPS_IN_FLIGHT = 16  # steps dispatched ahead of the devices; bounds the memory of waiting batches
BLOCKS_AHEAD = 2  # calls whose inputs are gathered while the devices work
# Defaults. On a CPU a step inside an XLA loop takes more than twice the time (LeNet 2.4, ResNet-8 2.1 times).
# On a GPU it takes less, since a call costs as much as a step of a small model (docs/performance.md).
STEPS_PER_DISPATCH, STEPS_PER_DISPATCH_ON_CPU = 10, 1


@dataclasses.dataclass(frozen=True)
class Plan:
  """The length of a training, and the steps after which to log, evaluate and save."""

  num_steps: int
  batch_size: int
  num_examples: int  # in an epoch
  logs: frozenset[int]
  evals: frozenset[int]
  saves: frozenset[int]
  keeps: frozenset[int]
  steps_per_dispatch: int = 1  # at most

  @property
  def last_epoch(self) -> int:
    """The step after which the last epoch begins. Every example comes at least once after it."""
    return max(0, self.num_steps - -(-self.num_examples // self.batch_size))

  @property
  def stops(self) -> frozenset[int]:
    """Steps after which metrics are fetched. Saves are among them, so that a restart has the same stops."""
    return self.logs | self.evals | self.saves | self.keeps | {self.last_epoch}

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
  steps_per_dispatch: int | None = 1,
) -> Plan:
  """A plan with `num_*` events spread evenly; the last of each falls on the last step.

  Args:
    steps_per_dispatch: None for the platform's default.
  """

  def spread(count: int) -> frozenset[int]:
    count = min(count, num_steps)
    return frozenset(-(-num_steps * i // count) for i in range(1, count + 1))

  if steps_per_dispatch is None:
    on_cpu = jax.default_backend() == 'cpu'
    steps_per_dispatch = STEPS_PER_DISPATCH_ON_CPU if on_cpu else STEPS_PER_DISPATCH
  return Plan(
    num_steps,
    batch_size,
    num_examples,
    logs=spread(num_logs),
    evals=spread(num_evals),
    saves=spread(num_checkpoints) or frozenset({0}),  # without steps, the start is the end
    keeps=frozenset(round(fraction * num_steps) for fraction in keep_checkpoints),
    steps_per_dispatch=steps_per_dispatch,
  )


def fit(folder: epath.Path, name: str, plan: Plan, **how: Any) -> None:
  """Trains to the end, with a progress bar. All arguments are those of `advance`."""
  with progress.bar(name, plan.num_steps, 'steps') as show:
    for done, text in advance(folder, name, plan, **how):
      show(done, text)


def advance(
  folder: epath.Path,
  name: str,
  plan: Plan,
  *,
  like: State,
  init: Callable[[], State],
  step: Callable[..., tuple[State, Metrics]],
  inputs: Callable[[int], Iterator[tuple]],
  evaluate: Callable[[State], dict[str, float]],
  learning_rate: Callable[[int], Any],
  multi_step: Callable[..., tuple[State, Metrics]] | None = None,
  place: Callable[[State], State] = devices.replicate,
  run: Run | None = None,
) -> Iterator[tuple[int, str]]:
  """Trains to `plan.num_steps`, from the newest checkpoint in `folder` or from `init()`.

  Writes checkpoints/, metrics.jsonl and tensorboard/, and at the end complete.json or diverged.json.

  Args:
    name: for messages.
    like: shapes and dtypes of the state.
    step: (state, *inputs) → (state, metrics); the state is donated.
    inputs: start → the other arguments of `step` for steps start, start + 1, ...; the last is the same for
      all steps: a seed, or a tree with it.
    evaluate: state → values to log, called after the steps of `plan.evals`.
    learning_rate: step → its learning rate, for the log.
    multi_step: `steps.multi_step` of the step. None: each step is a call of its own.
    place: moves a state from the host to the devices that `step` runs on.
    run: the training for trackers. None: the log goes to TensorBoard alone.

  Yields: after each dispatched call, the number of steps so far and the newest values as text.

  Raises:
    DivergedError: a loss or a gradient is NaN or infinite, or was in an earlier attempt.
  """
  hosts.decide(lambda: _require_not_diverged(folder / DIVERGED))
  per_dispatch = plan.steps_per_dispatch if multi_step else 1
  in_flight = max(2, STEPS_IN_FLIGHT // per_dispatch)
  with (
    Checkpoints(folder / 'checkpoints', plan.keeps) as checkpoints,
    contextlib.ExitStack() as stack,
  ):
    done, state = _start(checkpoints, like, init, plan, place)
    log = stack.enter_context(_Log(folder, done, checkpoints.log() if done else [], run))
    metrics, since, began = [], done, time.monotonic()  # since the last row of the log
    yield done, 'compiling'
    blocks = map(_as_one_call, _blocks(inputs(done), done, plan.stops, per_dispatch))
    for num_steps, arguments in devices.ahead(blocks, BLOCKS_AHEAD):
      state, block_metrics = (step if num_steps == 1 else multi_step)(state, *arguments)
      metrics.append(block_metrics)
      done += num_steps
      if len(metrics) > in_flight:
        jax.block_until_ready(metrics[-in_flight])
      if done in plan.stops:
        row = _summary(metrics, done, name, checkpoints)
        row |= {'epoch': plan.epoch(done), 'learning_rate': float(learning_rate(done))}
        num_examples = (done - since) * plan.batch_size
        row |= {'examples_per_second': num_examples / (time.monotonic() - began)}
        log.append(done, row | (evaluate(state) if done in plan.evals else {}))
        if done in plan.saves | plan.keeps:
          checkpoints.save(done, state, log.rows)
        metrics, since, began = [], done, time.monotonic()
      yield done, log.text
  complete = {'step': plan.num_steps, 'log_sha256': files.checksum(files.json_lines(log.rows))}
  files.write_json(folder / 'complete.json', complete)
  hosts.barrier()


def _blocks(
  inputs: Iterator[tuple], done: int, stops: Iterable[int], per_dispatch: int
) -> Iterator[list[tuple]]:
  """The inputs of each call: `per_dispatch` steps, or one step where so many would cross a stop.

  So only two programs are compiled, and a restart, which begins at a stop, has the same blocks.
  """
  for stop in sorted(stop for stop in stops if stop > done):
    while done < stop:
      block = list(itertools.islice(inputs, per_dispatch if done + per_dispatch <= stop else 1))
      if not block:
        return
      yield block
      done += len(block)


def _as_one_call(block: list[tuple]) -> tuple[int, tuple]:
  """The number of steps of a block, and the arguments of `step`, or of `multi_step` if there are more."""
  if len(block) == 1:
    return 1, block[0]
  *batches, common = zip(*block, strict=True)
  return len(block), (*map(devices.stack, batches), common[0])


class _Log:
  """A row for each stop in metrics.jsonl, and the same values for TensorBoard and trackers."""

  def __init__(
    self, folder: epath.Path, start: int, rows: list[dict[str, Any]], run: Run | None = None
  ):
    """Resumes from the rows up to the restored step. Later rows of an interrupted run are written again."""
    self._path, self.rows = folder / 'metrics.jsonl', rows
    files.write_bytes(self._path, files.json_lines(self.rows))
    self._sinks: list[Events | Tracking] = []
    if hosts.is_main():
      self._sinks.append(Events(folder / 'tensorboard', start))
      if run:
        self._sinks.append(Tracking(run, rows))

  def __enter__(self) -> '_Log':
    return self

  def __exit__(self, _: type[BaseException] | None, error: BaseException | None, *__) -> None:
    for sink in self._sinks:
      sink.finish(failed=error is not None)

  def append(self, step: int, row: dict[str, float]) -> None:
    self.rows.append({'step': step} | row)
    files.write_bytes(self._path, files.json_lines(self.rows))
    for sink in self._sinks:
      sink.scalars(step, row)

  @property
  def text(self) -> str:
    """The newest values, for the progress bar."""
    if not self.rows:
      return ''
    shown = {
      'train/loss': 'loss',
      'train/accuracy': 'accuracy',
      'train/top1_agreement': 'agreement',
    }
    row = self.rows[-1]
    return ' '.join(f'{label} {row[key]:.3f}' for key, label in shown.items() if key in row)


def last_epoch_means(folder: epath.Path, plan: Plan) -> dict[str, float]:
  """Means of 'train/...' values of the log over the last epoch of a complete training.

  The network is in train mode and still changes; the views are those of that epoch. The paper's public
  code calls this the train agreement. Returns {} if the log has no rows of the last epoch.
  """
  rows = files.read_json_lines(folder / 'metrics.jsonl')
  steps_before = [0, *(row['step'] for row in rows)]
  lengths = [row['step'] - before for row, before in zip(rows, steps_before, strict=False)]
  last = [(row, n) for row, n in zip(rows, lengths, strict=True) if row['step'] > plan.last_epoch]
  num_steps = sum(n for _, n in last)
  return {
    key.removeprefix('train/'): sum(row[key] * n for row, n in last) / num_steps
    for key in LAST_EPOCH
    if last and all(key in row for row, _ in last)
  }


def is_complete(folder: epath.Path) -> bool:
  """Whether training is complete, and its last checkpoint and its log are intact.

  A changed log counts as missing; it is restored from the last checkpoint.
  """

  def is_there() -> bool:
    if not (folder / 'complete.json').exists():
      return False
    complete, log = files.read_json(folder / 'complete.json'), folder / 'metrics.jsonl'
    content = log.read_bytes() if log.exists() else b''
    if complete['log_sha256'] != files.checksum(content):
      return False
    return (folder / 'checkpoints' / str(complete['step'])).exists()

  return hosts.decide(is_there)


def restore(folder: epath.Path, like: State, step: int | None = None) -> State:
  """The state after the last or another kept step of a complete training, as arrays of NumPy.

  Raises:
    DamageError: the checkpoint is damaged or missing.
  """
  step = files.read_json(folder / 'complete.json')['step'] if step is None else step
  with Checkpoints(folder / 'checkpoints', create=False) as checkpoints:
    return checkpoints.restore(like, step)


def has_diverged(folder: epath.Path) -> bool:
  return hosts.decide(lambda: (folder / DIVERGED).exists())


def _require_not_diverged(diverged: epath.Path) -> bool:
  if diverged.exists():
    message = files.read_json(diverged)['message']
    raise DivergedError(f'{message} (Recorded in {diverged}; delete this file to train again.)')
  return True


def _start(
  checkpoints: Checkpoints,
  like: State,
  init: Callable[[], State],
  plan: Plan,
  place: Callable[[State], State],
) -> tuple[int, State]:
  if checkpoints.steps:
    state = checkpoints.restore(like)
    return int(state.step), place(state)
  state = init()
  if 0 in plan.saves | plan.keeps:
    checkpoints.save(0, state)
  return 0, place(state)


def _summary(
  metrics: list[Metrics], done: int, name: str, checkpoints: Checkpoints
) -> dict[str, float]:
  """Fetches the metrics of the steps up to `done` and divides each sum once by its count."""
  names = metrics[0].names
  values = [block.values.reshape(-1, len(names), 2) for block in jax.device_get(metrics)]
  values_KM2 = np.concatenate(values, dtype=np.float64)  # of K steps
  num_steps = len(values_KM2)
  for i, key in itertools.product(range(num_steps), ('loss', 'gradient_norm')):
    if not np.isfinite(value := values_KM2[i, names.index(key), 0]):
      step = done - num_steps + 1 + i
      message = _divergence_message(name, key, value, step, checkpoints)
      files.write_json(checkpoints.folder.parent / DIVERGED, {'message': message})
      raise DivergedError(message)
  sums = dict(zip(names, values_KM2.sum(axis=0).tolist(), strict=True))
  return {f'train/{key}': total / count for key, (total, count) in sums.items() if count}


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
