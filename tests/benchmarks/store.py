"""The prediction store: bytes, throughput, and what each dtype costs in accuracy of the teacher.

    python -m tests.benchmarks.store              # simulated predictions of 1000 classes
    python -m tests.benchmarks.store WORKDIR      # of the teachers of a finished run, on its test set; and
                                                  # how much of its student's epochs reading would take

Axes: M member, N example, C class.
"""

import dataclasses
import pathlib
import sys
import tempfile
from functools import partial

import numpy as np
from etils import epath
from rich.table import Table
from scipy.special import log_softmax

from analysis import runs
from kdjax import losses, metrics
from kdjax.predictions.encodings import DTYPES
from kdjax.predictions.store import PredictionStore
from kdjax.runtime import files, progress
from tests.benchmarks import timing

NUM_EXAMPLES, NUM_CLASSES, NUM_MEMBERS = 10_000, 1000, 5


@dataclasses.dataclass(frozen=True)
class Cost:
  """The error of storing the members' predictions in one dtype: the stored ensemble against the exact one."""

  stored_as: str
  num_bytes: int  # of one member's prediction for one example, before compression
  top1_agreement: float
  predictive_kl: float  # KL(exact ‖ stored), nats
  ece: float  # of the stored ensemble

  @property
  def row(self) -> tuple[str, ...]:
    agreement, kl = f'{100 * self.top1_agreement:.3f}', f'{self.predictive_kl:.1e}'
    return self.stored_as, str(self.num_bytes), agreement, kl, f'{100 * self.ece:.3f}'


def costs(log_probs_MNC: np.ndarray, labels_N: np.ndarray) -> list[Cost]:
  """The cost of every dtype. The labels decide the calibration error."""
  exact_NC = losses.ensemble_log_probs(log_probs_MNC)
  found = []
  for name, dtype in DTYPES.items():
    stored_NC = losses.ensemble_log_probs(log_probs_MNC.astype(dtype).astype(np.float32))
    fidelity = metrics.fidelity(stored_NC, exact_NC)
    ece = metrics.generalization(stored_NC, labels_N)['ece']
    num_bytes = dtype.itemsize * log_probs_MNC.shape[-1]
    found.append(Cost(name, num_bytes, fidelity['top1_agreement'], fidelity['predictive_kl'], ece))
  return found


def simulated(
  num_members: int = NUM_MEMBERS, num_examples: int = NUM_EXAMPLES, num_classes: int = NUM_CLASSES
) -> tuple[np.ndarray, np.ndarray]:
  """log_probs_MNC of members that share much of their logits, and labels_N drawn from the ensemble."""
  rng = np.random.RandomState(0)
  shared_NC = rng.gumbel(size=(num_examples, num_classes))
  own_MNC = rng.gumbel(size=(num_members, num_examples, num_classes))
  sharpness_N1 = rng.uniform(0.5, 3, (num_examples, 1))  # some examples are easy
  logits_MNC = sharpness_N1 * (2 * shared_NC + own_MNC)
  log_probs_MNC = log_softmax(logits_MNC, axis=-1).astype(np.float32)
  cumulated_NC = np.exp(losses.ensemble_log_probs(log_probs_MNC)).cumsum(-1)
  labels_N = (cumulated_NC < rng.uniform(size=(num_examples, 1))).sum(-1)
  return log_probs_MNC, np.minimum(labels_N, num_classes - 1).astype(np.int32)


@dataclasses.dataclass(frozen=True)
class Throughput:
  write: float  # float32 values in, MB/s
  read: float  # float32 values out, MB/s
  num_bytes: float  # on disk for one prediction of one member


def throughput(
  num_classes: int, dtype: str, repeats: int, num_examples: int = 20_000
) -> Throughput:
  """The speeds with views of `num_examples`, each written and read once."""
  log_probs_MNC, _ = simulated(1, num_examples, num_classes)
  logits_NC = log_probs_MNC[0]
  with tempfile.TemporaryDirectory() as temporary:
    store = PredictionStore(epath.Path(temporary))
    store.reserve('distillation', (1, repeats, *logits_NC.shape), dtype)
    views = range(repeats)
    writes = [
      timing.seconds(partial(store.write, 'distillation', 0, view, logits_NC)) for view in views
    ]
    reads = [timing.seconds(partial(store.read, 'distillation', [0], view)) for view in views]
    size = sum(p.stat().st_size for p in pathlib.Path(temporary).rglob('*') if p.is_file())
  megabytes = logits_NC.nbytes / 1e6
  return Throughput(
    megabytes / float(np.median(writes)),
    megabytes / float(np.median(reads)),
    size / (repeats * len(logits_NC)),
  )


def of_study(study: runs.Study) -> tuple[np.ndarray, np.ndarray]:
  """log_probs_MNC of the student's teachers on the test set, computed anew in float32, and labels_N."""
  run, members = study.experiment, range(study.num_members)
  logits = [
    run.predictor.logits(run.teacher.model, study.member(i), run.data.inputs['test'])
    for i in members
  ]
  return log_softmax(np.stack(logits), axis=-1), run.data.splits['test'].labels_N


@dataclasses.dataclass(frozen=True)
class Reading:
  """The time to read an ensemble's predictions for one epoch of a student, against that epoch."""

  view_seconds: float
  epoch_seconds: float

  @property
  def share(self) -> float:
    return self.view_seconds / self.epoch_seconds


def reading(study: runs.Study) -> Reading:
  """Reads some views anew; what an epoch took stands in the student's log. Medians."""
  run = study.experiment
  read = partial(
    PredictionStore(run.folders.predictions).read_ensemble, 'distillation', study.num_members
  )
  views = range(min(timing.REPEATS, run.config.predictions.num_views))
  log = files.read_json_lines(run.folders.student / 'metrics.jsonl')
  speed = np.median([row['examples_per_second'] for row in log])
  return Reading(
    float(np.median([timing.seconds(partial(read, view)) for view in views])),
    run.student.num_examples / float(speed),
  )


def main() -> None:
  study = runs.load(sys.argv[1]) if len(sys.argv) > 1 else None
  if study and study.experiment.config.predictions.mode == 'online':
    sys.exit(
      f"error: {sys.argv[1]}: predictions.mode = 'online' stores nothing; take a 'stored' run"
    )
  predictions = of_study(study) if study else simulated()
  table = Table(title='What the way of storing costs')
  for heading in ('stored as', 'bytes', 'agreement (%)', 'KL (nats)', 'ECE (%)'):
    table.add_column(heading, justify='right')
  for cost in costs(*predictions):
    table.add_row(*cost.row)
  progress.console.print(table)
  table = Table(title='Throughput of the store')
  for heading in ('classes', 'dtype', 'writes, MB/s', 'reads, MB/s', 'bytes on disk'):
    table.add_column(heading, justify='right')
  for num_classes in (10, 100, 1000):
    for dtype in ('float16', 'float32'):
      rate = throughput(num_classes, dtype, timing.REPEATS)
      numbers = (f'{x:,.0f}' for x in (rate.write, rate.read, rate.num_bytes))
      table.add_row(str(num_classes), dtype, *numbers)
  progress.console.print(table)
  if study:
    of = reading(study)
    progress.console.print(
      f'reading a view of the ensemble: {1000 * of.view_seconds:.1f} ms, {100 * of.share:.2f} % of an '
      f'epoch of the student ({of.epoch_seconds:.2f} s)'
    )


if __name__ == '__main__':
  main()
