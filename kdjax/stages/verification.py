"""`--verify`: checks the stored predictions against their digests and against the teachers.

The digests in meta.json find every value that has changed since it was written. A sample of all
predictions is computed again, which finds other teachers, and measures numerical drift between machines.
Drift is small and about as large for all examples; damage is large or in single examples.
Axes: N example, C class.
"""

import dataclasses

import jax.numpy as jnp
import numpy as np

from kdjax import config as config_lib
from kdjax import keys
from kdjax.errors import DamageError, MissingInputError
from kdjax.predictions.store import DTYPES, PredictionStore
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
OUTLIER = 100  # drift stays below so many times the median example's difference


@dataclasses.dataclass(frozen=True)
class Sample:
  """Stored and fresh predictions of some examples."""

  stored_NC: np.ndarray  # log_probs
  fresh_NC: np.ndarray  # log_probs
  dtype: np.dtype  # of the store
  computed_in: str = 'float32'  # `model.dtype`

  @property
  def difference_NC(self) -> np.ndarray:
    """Absolute differences in nats."""
    return np.abs(self.stored_NC - self.fresh_NC)

  @property
  def excess_NC(self) -> np.ndarray:
    """The differences beyond the rounding of the dtype, relative to 1 + |log_prob|."""
    rounding_NC = float(jnp.finfo(self.dtype).eps) / 2 * np.abs(self.fresh_NC)
    return np.maximum(self.difference_NC - rounding_NC, 0) / (1 + np.abs(self.fresh_NC))

  @property
  def outliers(self) -> np.ndarray:
    """Positions of single examples that differ more than drift can explain."""
    worst_N = self.excess_NC.max(axis=-1)
    usual = max(float(np.median(worst_N)), NOISE[self.computed_in])
    return np.flatnonzero((worst_N > DRIFT[self.computed_in]) | (worst_N > OUTLIER * usual))


def verify(experiment: Experiment) -> str:
  """Reads the whole store, and predicts a sample of it again.

  Returns: a text: how much was read and compared, how large the differences are, and what that means.

  Raises:
    DamageError: a value is missing or has changed, or the teachers give other predictions.
    MissingInputError: there is no store, or there are no teachers, to verify.
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
  joined = Sample(
    np.concatenate([sample.stored_NC for sample in samples]),
    np.concatenate([sample.fresh_NC for sample in samples]),
    samples[0].dtype,
    samples[0].computed_in,
  )
  return f'{store.folder}: {num_read} views are as they were written. {summary(joined)}'


def summary(sample: Sample) -> str:
  """A text about the size and the cause of the differences."""
  difference_NC, excess_NC, dtype = sample.difference_NC, sample.excess_NC, sample.dtype.name
  within = np.mean(excess_NC <= NOISE[sample.computed_in])
  text = (
    f'{difference_NC.size:,} log-probabilities of a sample, predicted again, differ by at most '
    f'{difference_NC.max():.2g} nats, on average by {difference_NC.mean():.2g}; the rounding of {dtype} '
    f'explains {100 * within:.1f} %'
  )
  if within == 1:
    return f'{text}: equal up to that rounding.'
  drift = (excess_NC * (1 + np.abs(sample.fresh_NC))).max()
  same = np.sum(sample.stored_NC.argmax(-1) == sample.fresh_NC.argmax(-1))
  return (
    f'{text}, and the rest is numerical drift of up to {drift:.2g} nats, as on another machine or with '
    f'another version of a library: {same} of {len(difference_NC)} most likely classes are the same.'
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
  """A sample of one member's predictions. Raises DamageError if they are not this teacher's."""
  inputs = experiment.data.inputs[name]
  rng = keys.numpy_rng(experiment.config.seed, f'verify/{name}', member)
  view = int(rng.integers(predictions.views_of(experiment)[name]))
  indices = np.sort(rng.permutation(len(inputs.split))[:NUM_EXAMPLES])
  fresh_NC = log_probs(source, member, name, view, indices)
  stored_NC = store.read(name, [member], view)[0][indices]
  dtype = DTYPES[experiment.config.predictions.dtype]
  section, model = experiment.config.teacher, experiment.config.model
  computed_in = model.dtype if config_lib.has_weights(section.source) else 'float32'
  sample = Sample(stored_NC, fresh_NC, dtype, computed_in)
  if len(sample.outliers):
    which = (
      f'{len(sample.outliers)} of {len(indices)} examples, as of {indices[sample.outliers[0]]},'
    )
    raise DamageError(
      f'{store.folder}: the stored predictions of member {member} for view {view} of {name} are not '
      f'those of the teacher {teachers.place(experiment, member)}: for {which} log-probabilities differ by up '
      f'to {sample.difference_NC.max():.3g} nats, which is more than machines drift apart. One of the '
      f'two was replaced. Delete {store.folder} and run with --stages=predictions to make them anew.'
    )
  return sample
