"""The error budget of storing k classes of each example: agreement, KL, the student's gradient, and bytes.

    python -m tests.benchmarks.top_k              # simulated teachers of 10, 100 and 1,000 classes
    python -m tests.benchmarks.top_k WORKDIR      # the teachers and the student of a finished run, on its test set

The gradient is that of the cross-entropy at temperature 1 by the student's logits, q − p for an ensemble's p
and a student's q. A draw of an estimate gives another p̂, and the table says how far the mean of p̂ is from p
(bias), and how far single draws are from their mean (noise), as fractions of the norm of q − p, over all examples.

Axes: M member, N example, C class, R draw.
"""

import dataclasses
import pathlib
import sys
import tempfile

import numpy as np
from etils import epath
from rich import box
from rich.table import Table
from scipy.special import log_softmax, softmax

from analysis import runs
from kdjax import metrics
from kdjax.predictions.encodings import TAIL, TRUNCATED, UNBIASED, Dense, Encoding, TopK
from kdjax.predictions.store import PredictionStore
from kdjax.predictions.teachers import combine
from kdjax.runtime import progress
from tests.benchmarks import store as store_benchmark

NUM_EXAMPLES, NUM_MEMBERS, NUM_DRAWS = 1000, 5, 30
SIZES = {10: (1, 2, 5), 100: (5, 10, 20), 1000: (5, 10, 20, 50)}  # classes: values of k
CONFIDENCE = (
  0.8  # of a simulated member in its most probable class, on average, as of a ResNet-50 on ImageNet
)
HEADINGS = 'stored as', 'bytes', 'on disk', 'same (%)', 'KL (nats)', 'bias (%)', 'noise (%)'
SPREAD, NOISE = 0.6, 1.0  # of the sharpness of examples (in its logarithm), and of members' logits


@dataclasses.dataclass(frozen=True)
class Budget:
  """The cost of one way of storing.

  Attributes:
    num_bytes, on_disk: bytes of one member's prediction of one example, before and after compression.
    agreement: how often the stored and the exact ensemble have the same most probable class.
    kl: KL(stored ‖ exact) in nats, the predictive KL that a student equal to its teacher would show.
    bias, noise: of the gradient, as fractions of its norm.
  """

  stored_as: str
  num_bytes: int
  on_disk: float
  agreement: float
  kl: float
  bias: float
  noise: float

  @property
  def row(self) -> list[str]:
    numbers = f'{self.num_bytes:,}', f'{self.on_disk:,.1f}', f'{100 * self.agreement:.2f}'
    percentages = (f'{100 * x:.3g}' for x in (self.bias, self.noise))
    return [self.stored_as, *numbers, f'{self.kl:.2g}', *percentages]


def budget(
  encoding: Encoding, log_probs_MNC: np.ndarray, student_NC: np.ndarray, num_draws: int = NUM_DRAWS
) -> Budget:
  """The cost of an encoding.

  Args:
    log_probs_MNC: the exact predictions of the members.
    student_NC: the logits of a student.
    num_draws: views that store the same predictions; 1 will do for what draws nothing.
  """
  num_views = num_draws if isinstance(encoding, TopK) and encoding.estimator in UNBIASED else 1
  num_members, num_examples, num_classes = log_probs_MNC.shape
  with tempfile.TemporaryDirectory() as temporary:
    store = PredictionStore(epath.Path(temporary))
    shape = num_members, num_views, num_examples, num_classes
    store.reserve('distillation', shape, encoding)
    for member, view in np.ndindex(num_members, num_views):
      store.write('distillation', member, view, log_probs_MNC[member], are_log_probs=True)
    chunks = (path for path in pathlib.Path(temporary).rglob('c/*/*/*/*') if path.is_file())
    on_disk = sum(path.stat().st_size for path in chunks) / np.prod(shape[:3])
    stored = [store.read_ensemble('distillation', num_members, view) for view in range(num_views)]
  exact_NC = np.exp(log_probs_MNC.astype(np.float64)).mean(axis=0)
  fidelity = [metrics.fidelity(np.log(exact_NC), of_NC) for of_NC in stored]
  stored_RNC = np.exp(np.array(stored, np.float64))
  norm = np.sum((softmax(student_NC.astype(np.float64), axis=-1) - exact_NC) ** 2)
  mean_NC, noise = stored_RNC.mean(axis=0), 0.0
  bias = np.sum((mean_NC - exact_NC) ** 2)
  if num_views > 1:
    noise = np.sum((stored_RNC - mean_NC) ** 2) / (num_views - 1)
    bias = max(bias - noise / num_views, 0)  # without what so many draws leave by chance
  name = f'{encoding.estimator}, k = {encoding.k}' if isinstance(encoding, TopK) else str(encoding)
  return Budget(
    name,
    encoding.num_bytes,
    float(on_disk),
    float(np.mean([of['top1_agreement'] for of in fidelity])),
    float(np.mean([of['predictive_kl'] for of in fidelity])),
    float(np.sqrt(bias / norm)),
    float(np.sqrt(noise / norm)),
  )


def encodings(num_classes: int, sizes: tuple[int, ...]) -> list[Encoding]:
  """float16, and every estimator for each k."""
  return [Dense('float16', num_classes)] + [
    TopK(k, estimator, num_classes, seed=0)
    for estimator in (TRUNCATED, TAIL, *UNBIASED)
    for k in sizes
  ]


def simulated(
  num_classes: int, num_examples: int = NUM_EXAMPLES, num_members: int = NUM_MEMBERS
) -> tuple[np.ndarray, np.ndarray]:
  """log_probs_MNC of members, and the logits of one more member, who stands for a student.

  Zipf's law: the logit of the class of rank r is −a log r, with ranks in random order for each example, so
  that an exponent of a = 1 gives probabilities proportional to 1/r. a = A exp(SPREAD · normal) differs between
  examples; each member adds NOISE · normal to each logit. A is such that the mean confidence is CONFIDENCE.
  """
  rng = np.random.default_rng(0)
  ranks_NC = np.tile(np.arange(1, num_classes + 1), (num_examples, 1))
  shared_NC = -np.log(rng.permuted(ranks_NC, axis=1))
  shared_NC *= np.exp(SPREAD * rng.normal(size=(num_examples, 1)))
  own_MNC = NOISE * rng.normal(size=(num_members + 1, num_examples, num_classes))
  low, high = 0.0, 20.0
  for _ in range(20):
    scale = (low + high) / 2
    is_low = softmax(scale * shared_NC + own_MNC[0], axis=-1).max(axis=-1).mean() < CONFIDENCE
    low, high = (scale, high) if is_low else (low, scale)
  log_probs_MNC = log_softmax(scale * shared_NC + own_MNC, axis=-1)
  return log_probs_MNC[:-1], log_probs_MNC[-1]


def of_study(study: runs.Study) -> tuple[np.ndarray, np.ndarray]:
  """log_probs_MNC of a run's teachers and the logits of its student, on the test set."""
  run, variables = study.experiment, study.student()
  student_NC = run.predictor.logits(run.student.model, variables, run.data.inputs['test'])
  return store_benchmark.of_study(study)[0], student_NC


def describe(log_probs_MNC: np.ndarray, student_NC: np.ndarray) -> str:
  """A line about the teachers, to judge what they stand for."""
  num_members, num_examples, num_classes = log_probs_MNC.shape
  sorted_MNC = np.sort(np.exp(log_probs_MNC), axis=-1)[..., ::-1]
  ensemble_NC = combine(log_probs_MNC)
  agreement = metrics.fidelity(student_NC, ensemble_NC)['top1_agreement']
  return (
    f'{num_members} members, {num_examples:,} examples, {num_classes:,} classes: a member gives its first class '
    f'{sorted_MNC[..., 0].mean():.3f}, its first five {sorted_MNC[..., :5].sum(-1).mean():.3f} on average; the '
    f'student agrees with the ensemble on {100 * agreement:.1f} %'
  )


def table(log_probs_MNC: np.ndarray, student_NC: np.ndarray) -> Table:
  """The cost of every way."""
  num_classes = log_probs_MNC.shape[-1]
  sizes = SIZES[max((n for n in SIZES if n <= num_classes), default=min(SIZES))]
  title = describe(log_probs_MNC, student_NC)
  found = Table(title=title, title_justify='left', box=box.SIMPLE, pad_edge=False)
  for heading in HEADINGS:
    found.add_column(heading, justify='right', no_wrap=True)
  for encoding in encodings(num_classes, tuple(k for k in sizes if k <= num_classes)):
    found.add_row(*budget(encoding, log_probs_MNC, student_NC).row)
  return found


def main() -> None:
  given = [of_study(runs.load(path)) for path in sys.argv[1:]]
  for teacher_and_student in given or map(simulated, SIZES):
    progress.console.print(table(*teacher_and_student))


if __name__ == '__main__':
  main()
