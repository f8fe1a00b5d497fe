"""`--verify`: checks the stored predictions against their digests and against the teachers.

The digests in meta.json find every value that has changed since it was written. A sample of the predictions
is computed again, which finds other teachers and measures numerical drift between machines. Drift is small
and similar for all examples; damage is large or in single examples. Axes: N example, X compared value.
"""

import dataclasses
from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np

from kdjax import config as config_lib
from kdjax import keys
from kdjax.errors import DamageError, MissingInputError
from kdjax.predictions.encodings import Dense
from kdjax.predictions.store import PredictionStore
from kdjax.predictions.teachers import Source, log_probs
from kdjax.runtime import progress
from kdjax.stages import predictions, teachers
from kdjax.stages.experiment import Experiment

NUM_EXAMPLES = 256  # examples of each split and member that are predicted again
# Allowed differences relative to 1 + |log_prob|, by the dtype that layers compute in: NOISE between batches,
# DRIFT between machines and versions of libraries. A GPU may multiply float32 in 11 bits (TF32); bfloat16
# has 8, and fused operations round it less often (ResNet-20: 0.1 nats).
NOISE = {'float32': 1e-5, 'bfloat16': 0.01}
DRIFT = {'float32': 0.05, 'bfloat16': 0.3}
OUTLIER = 100  # drift is less than this many times the median example's difference


@dataclasses.dataclass(frozen=True)
class Sample:
  """Stored and fresh predictions of some examples, as `PredictionStore.compared` gives them."""

  stored_NX: np.ndarray  # nats
  fresh_NX: np.ndarray  # nats
  dtype: np.dtype  # of the store
  computed_in: str = 'float32'  # `model.dtype`
  has_classes: bool = True  # whether X is the class

  @property
  def difference_NX(self) -> np.ndarray:
    """Absolute differences in nats."""
    return np.abs(self.stored_NX - self.fresh_NX)

  @property
  def excess_NX(self) -> np.ndarray:
    """The differences beyond the rounding of the dtype, relative to 1 + |log_prob|."""
    rounding_NX = float(jnp.finfo(self.dtype).eps) / 2 * np.abs(self.fresh_NX)
    return np.maximum(self.difference_NX - rounding_NX, 0) / (1 + np.abs(self.fresh_NX))

  @property
  def outliers(self) -> np.ndarray:
    """Positions of single examples that differ more than drift can explain."""
    worst_N = self.excess_NX.max(axis=-1)
    usual = max(float(np.median(worst_N)), NOISE[self.computed_in])
    return np.flatnonzero((worst_N > DRIFT[self.computed_in]) | (worst_N > OUTLIER * usual))


def verify(experiment: Experiment) -> str:
  """Reads the whole store, and predicts a sample of it again.

  Returns: a text about how much was compared, how large the differences are, and what they mean.

  Raises:
    DamageError: a value is missing or has changed, or the teachers predict something else.
    MissingInputError: the store or the teachers are missing.
  """
  if experiment.config.predictions.mode == 'online':
    raise MissingInputError("predictions.mode = 'online' stores no predictions to verify")
  predictions.open_teacher(experiment)
  store = PredictionStore(experiment.folders.predictions)
  source = teachers.open_source(experiment)
  num_read = _read_all(store)
  samples = [
    _checked(experiment, store, name, member, source)
    for name in experiment.data.inputs
    for member in range(experiment.config.teacher.num_members)
  ]
  return f'{store.folder}: {num_read} views are as they were written. {summary(samples)}'


def summary(samples: Sequence[Sample]) -> str:
  """A text about the size and the cause of the differences."""
  joined = lambda get: np.concatenate([np.ravel(get(sample)) for sample in samples])
  difference, excess = joined(lambda s: s.difference_NX), joined(lambda s: s.excess_NX)
  dtypes = ' and '.join(dict.fromkeys(sample.dtype.name for sample in samples))
  within = np.mean(excess <= NOISE[samples[0].computed_in])
  text = (
    f'{difference.size:,} log-probabilities of a sample, predicted again, differ by at most '
    f'{difference.max():.2g} nats, on average by {difference.mean():.2g}; the rounding of {dtypes} '
    f'explains {100 * within:.1f} %'
  )
  if within == 1:
    return f'{text}: equal up to that rounding.'
  drift = (excess * (1 + np.abs(joined(lambda s: s.fresh_NX)))).max()
  same = np.concatenate(
    [s.stored_NX.argmax(-1) == s.fresh_NX.argmax(-1) for s in samples if s.has_classes]
  )
  return (
    f'{text}, and the rest is numerical drift of up to {drift:.2g} nats, as on another machine or with '
    f'another version of a library: {same.sum()} of {len(same)} most likely classes are the same.'
  )


def _read_all(store: PredictionStore) -> int:
  """Compares every stored view with its digest. Returns the number of views."""
  digests = store.meta['digests']
  wanted = [(name, *map(int, key.split('/'))) for name, known in digests.items() for key in known]
  with progress.bar('reading', len(wanted), 'views') as show:
    for done, (name, member, view) in enumerate(wanted, 1):
      if store.digest(name, member, view) != digests[name][f'{member}/{view}']:
        raise DamageError(
          f'{store.folder}: the predictions of member {member} for view {view} of {name} are not those '
          f'that were written. {store.mend(name, member, view)}'
        )
      show(done, '')
  return len(wanted)


def _checked(
  experiment: Experiment, store: PredictionStore, name: str, member: int, source: Source
) -> Sample:
  """A sample of one member's predictions; raises DamageError if another teacher made them."""
  inputs = experiment.data.inputs[name]
  rng = keys.numpy_rng(experiment.config.seed, f'verify/{name}', member)
  view = int(rng.integers(predictions.views_of(experiment)[name]))
  indices = np.sort(rng.permutation(len(inputs.split))[:NUM_EXAMPLES])
  log_probs_NC = log_probs(source, member, name, view, indices)
  compared = store.compared(name, member, view, indices, log_probs_NC)
  encoding = store.encoding(name)
  section, model = experiment.config.teacher, experiment.config.model
  computed_in = model.dtype if config_lib.has_weights(section.source) else 'float32'
  sample = Sample(*compared, encoding.precision, computed_in, isinstance(encoding, Dense))
  if len(sample.outliers):
    which = (
      f'{len(sample.outliers)} of {len(indices)} examples, as of {indices[sample.outliers[0]]},'
    )
    raise DamageError(
      f'{store.folder}: the stored predictions of member {member} for view {view} of {name} are not '
      f'those of the teacher {teachers.place(experiment, member)}: for {which} log-probabilities differ by up '
      f'to {sample.difference_NX.max():.3g} nats, which is more than numerical drift. One of the two '
      f'was replaced. Delete {store.folder} and run with --stages=predictions to make them again.'
    )
  return sample
