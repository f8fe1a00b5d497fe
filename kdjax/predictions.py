"""The second stage: the teachers' predictions for every view, and how the student gets at them.

The student and the evaluation see a `Teacher`. `StoredTeacher` reads the prediction store and needs
no teacher; `OnlineTeacher` runs the members instead and needs no store. Both give the same numbers, up
to the dtype of the store. Axes: M member, N example, B batch, C class.
"""

from functools import partial
from typing import Protocol

import jax
import jax.numpy as jnp
import numpy as np
from scipy.special import log_softmax

from kdjax import config as config_lib
from kdjax import files, keys, losses, metrics, progress, steps, teachers
from kdjax.errors import DamageError, MissingInputError
from kdjax.run import Run
from kdjax.store import DTYPES, PredictionStore

NUM_VERIFIED = 256  # examples, for each split and member, that `verify` recomputes
COMBINED = 10_000  # examples at once
DRIFT = 0.01  # absolute (nats) and relative, by which machines and batch sizes may differ


class Teacher(Protocol):
  """The ensemble's predictions on the inputs that `Run.inputs` names."""

  def members(self, name: str, view: int = 0) -> np.ndarray:
    """log_probs_MNC of every member, for one view of every example."""

  def batch(self, name: str, batch: steps.Batch) -> jax.Array:
    """The ensemble's log_probs for a batch, split over the devices as the batch is."""


def ensemble(teacher: Teacher, name: str, view: int = 0) -> np.ndarray:
  """log_probs_NC of the ensemble, for one view of every example."""
  return combine(teacher.members(name, view))


def combine(log_probs_MNC: np.ndarray) -> np.ndarray:
  """log_probs_NC of the ensemble, in blocks of examples that fit on any device."""
  blocks = np.array_split(log_probs_MNC, -(-log_probs_MNC.shape[1] // COMBINED), axis=1)
  return np.concatenate([np.asarray(losses.ensemble_log_probs(block)) for block in blocks])


class StoredTeacher:
  def __init__(self, store: PredictionStore, num_members: int):
    self._store = store
    self._num_members = num_members
    self._views: dict[tuple[str, int], np.ndarray] = {}

  def members(self, name: str, view: int = 0) -> np.ndarray:
    return self._store.read(name, range(self._num_members), view)

  def batch(self, name: str, batch: steps.Batch) -> np.ndarray:
    indices, views = batch['indices'], batch['views']
    needed = np.unique(views)
    ensembles = {view: self._ensemble(name, view) for view in needed}
    self._views = {(name, view): ensembles[view] for view in needed}  # older ones are done with
    log_probs = np.empty((*indices.shape, ensembles[needed[0]].shape[-1]), np.float32)
    for view in needed:
      log_probs[views == view] = ensembles[view][indices[views == view]]
    return log_probs

  def _ensemble(self, name: str, view: int) -> np.ndarray:
    if (name, view) in self._views:
      return self._views[name, view]
    return self._store.read_ensemble(name, self._num_members, view)


class OnlineTeacher:
  def __init__(self, run: Run):
    self._run = run
    self._steps = {}
    self._variables = [teachers.load(run, i) for i in range(run.config.teacher.num_members)]

  def members(self, name: str, view: int = 0) -> np.ndarray:
    run = self._run
    logits_MNC = [
      run.predict(run.teacher_model, variables, run.inputs[name], view)
      for variables in self._variables
    ]
    return log_softmax(np.stack(logits_MNC), axis=-1)

  def batch(self, name: str, batch: steps.Batch) -> jax.Array:
    inputs = self._run.inputs[name]
    if name not in self._steps:
      step = partial(steps.ensemble_step, model=self._run.teacher_model, view=inputs.view)
      self._steps[name] = steps.parallel(step, sharded_output=True)
    return self._steps[name](self._variables, batch, inputs.seed)


def open_teacher(run: Run) -> Teacher:
  """What `predictions.mode` asks for.

  Raises:
    MissingInputError: the stage before was not run.
  """
  predictions, num_members = run.config.predictions, run.config.teacher.num_members
  if predictions.mode == 'online':
    return OnlineTeacher(run)
  store = PredictionStore(run.predictions_folder)
  if not is_stored(run):
    raise MissingInputError(
      f'the predictions of {num_members} members for {predictions.num_views} views are not all in '
      f'{store.folder}. Run the same command with --stages=predictions first.'
    )
  run.check_data(store.meta['data_checksum'], store.folder, 'student')
  return StoredTeacher(store, num_members)


def is_stored(run: Run) -> bool:
  """Whether meta.json says that every prediction that this config wants is there."""
  wanted = run.config.teacher.num_members, run.config.predictions.num_views
  complete = PredictionStore(run.predictions_folder).meta.get('complete', [])
  return any(members >= wanted[0] and views >= wanted[1] for members, views in complete)


def run(run: Run) -> bool:
  """Stores the predictions that are not there yet. Returns whether there were any."""
  if run.config.predictions.mode == 'online' or is_stored(run):
    return False
  members = [teachers.load(run, i) for i in range(run.config.teacher.num_members)]
  with files.lock(run.predictions_folder):
    if is_stored(run):  # by another process, while this one waited
      return False
    run.begin(run.predictions_folder, 'student')  # what is there must be of the same data
    _store(run, members)
  return True


def _store(run: Run, members: list[steps.Variables]) -> None:
  config, store = run.config, PredictionStore(run.predictions_folder)
  num_views = _num_views(run)
  for name, of_inputs in num_views.items():
    shape = (len(members), of_inputs, len(run.inputs[name].split), run.description.num_classes)
    store.reserve(name, shape, config.predictions.dtype)
  num_values = sum(n * len(run.inputs[name].split) for name, n in num_views.items())
  num_bytes = num_values * len(members) * run.description.num_classes
  num_bytes *= DTYPES[config.predictions.dtype].itemsize
  progress.logger.info('predictions: up to %.0f MB, before compression', num_bytes / 1e6)
  with progress.bar('predictions', len(members) * sum(num_views.values()), 'views') as show:
    done = 0
    for name in num_views:
      for member, variables in enumerate(members):
        for view in range(num_views[name]):
          if not store.has(name, member, view):
            logits_NC = run.predict(run.teacher_model, variables, run.inputs[name], view)
            store.write(name, member, view, logits_NC)
          done += 1
          show(done)
  store.write_meta(_meta(run, store, members))


def _num_views(run: Run) -> dict[str, int]:
  """Views to store, by the name of the inputs. Splits as they are have one."""
  num_views = run.config.predictions.num_views
  return {name: num_views if name == 'distillation' else 1 for name in run.inputs}


def _meta(run: Run, store: PredictionStore, members: list[steps.Variables]) -> dict:
  config = run.config
  complete = [[len(members), config.predictions.num_views], *store.meta.get('complete', [])]
  return {
    'space': 'log_probs',
    'dtype': config.predictions.dtype,
    'teacher_fingerprint': config_lib.teacher_fingerprint(config),
    'predictions_fingerprint': config_lib.predictions_fingerprint(config),
    'data_checksum': run.checksum('student'),
    'complete': complete,  # (members, views) up to which nothing is missing
    'dtype_error': _dtype_error(run, store, members),
  }


def _dtype_error(
  run: Run, store: PredictionStore, members: list[steps.Variables]
) -> dict[str, float]:
  """What storing costs, on the test set: the stored ensemble against the one just computed."""
  fresh = [run.predict(run.teacher_model, member, run.inputs['test']) for member in members]
  fresh_MNC = np.asarray(jax.nn.log_softmax(np.stack(fresh)))
  stored_MNC = store.read('test', range(len(members)), 0)
  fidelity = metrics.fidelity(
    losses.ensemble_log_probs(stored_MNC), losses.ensemble_log_probs(fresh_MNC)
  )
  return {
    'max_abs_log_prob': float(np.abs(stored_MNC - fresh_MNC).max()),
    'ensemble_top1_disagreement': 1 - fidelity['top1_agreement'],
    'ensemble_predictive_kl': fidelity['predictive_kl'],
  }


def verify(run: Run) -> str:
  """Reads every chunk of the store, and recomputes a sample of it with the teachers.

  Returns: a line that says what was compared and how far apart it was.

  Raises:
    DamageError: a chunk is missing or damaged, or the teachers give other predictions.
    MissingInputError: there is no store, or there are no teachers, to verify.
  """
  if run.config.predictions.mode == 'online':
    raise MissingInputError("predictions.mode = 'online' stores no predictions to verify")
  open_teacher(run)
  store = PredictionStore(run.predictions_folder)
  members = [teachers.load(run, i) for i in range(run.config.teacher.num_members)]
  num_read = sum(_read_all(store, name, len(members), n) for name, n in _num_views(run).items())
  worst = max(
    _recompute(run, store, name, member, variables)
    for name in run.inputs
    for member, variables in enumerate(members)
  )
  return (
    f'{store.folder}: read {num_read} views; recomputed up to {NUM_VERIFIED} examples of each split and '
    f'member; largest difference of a log-probability {worst:.2g} nats'
  )


def _read_all(store: PredictionStore, name: str, num_members: int, num_views: int) -> int:
  """Reads each member's views, those of larger ensembles too. Returns how many there are."""
  all_members, all_views = store.room(name)
  num_read = 0
  with progress.bar(f'reading {name}', all_members * all_views, 'views') as show:
    for member, view in np.ndindex(all_members, all_views):
      if member < num_members and view < num_views:
        store.read(name, [member], view)  # raises where something is missing
        num_read += 1
      else:
        num_read += store.has(name, member, view)
      show(member * all_views + view + 1)
  return num_read


def _recompute(
  run: Run, store: PredictionStore, name: str, member: int, variables: steps.Variables
) -> float:
  """The largest difference between stored and fresh log-probabilities on a sample, in nats."""
  inputs = run.inputs[name]
  rng = keys.numpy_rng(run.config.seed, f'verify/{name}', member)
  view = int(rng.integers(_num_views(run)[name]))
  indices = np.sort(rng.permutation(len(inputs.split))[:NUM_VERIFIED])
  logits = run.predict(run.teacher_model, variables, inputs, view, indices)
  fresh = np.asarray(jax.nn.log_softmax(logits))
  stored = store.read(name, [member], view)[0][indices]
  difference = np.abs(stored - fresh)
  rounding = float(jnp.finfo(DTYPES[run.config.predictions.dtype]).eps)
  if (difference > DRIFT + (DRIFT + rounding) * np.abs(fresh)).any():
    raise DamageError(
      f'{store.folder}: the stored predictions of member {member} for view {view} of {name} are not '
      f'those of the teacher in {run.member_folder(member)}: log-probabilities differ by up to '
      f'{difference.max():.3g} nats. One of the two was replaced; delete {store.folder} and run with '
      '--stages=predictions to make them anew.'
    )
  return float(difference.max())
