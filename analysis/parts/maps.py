"""Maps of the training: principal components in weight space, and distances in prediction space.

There are two parts: `pca` of the kept checkpoints, with that of a random walk as control; and
`predictions`, the distances between all predictors on the test set, which also compare architectures.
Axes: T checkpoint, K predictor or component, N example, C class.
"""

from collections.abc import Callable
from functools import partial

import flax.linen as nn
import jax
import numpy as np
from scipy.special import log_softmax

from kdjax import intervals, keys, losses, models
from kdjax.stages import student
from kdjax.train.steps import Variables

from .. import surface, trajectory
from ..figures import maps as drawing
from ..measure import Measure
from ..part import Arrays, Blocks, Checks, Part, Settings, stacked
from ..runs import Study
from ..surface import Batch

MIN_CHECKPOINTS = 3  # two points always lie on a line
SAME_FUNCTION = 1e-3  # largest change of a probability by float32 rounding
ROUNDING = 1e-6  # relative rounding error of float64 sums


# Computing.


def compute_pca(study: Study, settings: Settings, blocks: Blocks, checks: Checks) -> Arrays:
  """Computes the principal components of the kept checkpoints and of a random walk."""
  points = [jax.device_get(study.student(step)['params']) for step in study.steps]
  coords_TK, explained_K = trajectory.pca(points)
  expected = np.array([trajectory.distances(point, points[0])[0] for point in points])
  found = np.linalg.norm(coords_TK - coords_TK[:1], axis=1)
  error = np.abs(found - expected).max() / expected.max()
  checks.at_most('distances between projected checkpoints', error, ROUNDING)
  return {
    'steps': np.array(study.steps),
    'coords': coords_TK,
    'explained': explained_K,
    'null': trajectory.random_walk_explained(np.array(study.steps)),
    'num_parameters': trajectory.sizes(points[0])[0],
  }


def compute_predictions(study: Study, settings: Settings, blocks: Blocks, checks: Checks) -> Arrays:
  """Computes distances between all predictors on the test set, and their maps in the plane."""
  batches = Measure(study, settings.num_examples).batches('test')
  predictors = _predictors(study)
  log_probs = {
    name: _log_probs(model, variables, batches)
    for name, (_, model, variables) in predictors.items()
  }
  kinds = {name: kind for name, (kind, _, _) in predictors.items()}
  log_probs['ensemble'] = np.concatenate([batch['teacher_log_probs'] for batch in batches])
  kinds['ensemble'] = 'ensemble'
  if members := [log_probs[name] for name, kind in kinds.items() if kind == 'teacher']:
    again_NC = np.asarray(losses.ensemble_log_probs(np.stack(members)))
    error = np.abs(np.exp(again_NC) - np.exp(log_probs['ensemble'])).max()
    checks.at_most("members' mean against the ensemble", error, SAME_FUNCTION)
  make_rng = partial(keys.numpy_rng, study.seed, 'analysis/predictions')
  arrays = trajectory.prediction_distances(
    list(log_probs.values()), intervals.NUM_RESAMPLES, make_rng
  )
  names = np.array(list(log_probs))
  # A random initial student is far from all others, which would collapse to a dot on the map.
  section = study.experiment.config.student
  is_random = section.init_lambda == 0 or section.init_from == 'initial'
  mapped_K = (names != 'step 0') | (not is_random)
  arrays |= _repeated(log_probs, f'step {study.steps[-1]}', make_rng)
  for name in drawing.MAPS:
    d_KK = arrays[name]
    excess = (d_KK[:, :, None] - d_KK[:, None, :] - d_KK[None, :, :]).max()
    checks.at_most(f'triangle inequality of {name}', excess, ROUNDING)
    coords_K2 = np.full((len(names), 2), np.nan)
    # Classical scaling needs Euclidean distances, as √disagreement and √JS are.
    euclidean_KK = np.sqrt(d_KK) if name == 'disagreement' else d_KK
    coords_K2[mapped_K], kept = trajectory.mds(euclidean_KK[mapped_K][:, mapped_K])
    arrays |= {f'{name}/coords': coords_K2, f'{name}/kept': np.array(kept)}
  return arrays | {
    'names': names,
    'kinds': np.array([kinds[name] for name in names]),
    'num_examples': np.array(len(log_probs['ensemble'])),
  }


def _repeated(log_probs: dict[str, np.ndarray], student: str, make_rng: Callable) -> Arrays:
  """The share of the student's mismatches with the ensemble that each predictor K repeats."""
  classes_KN = np.stack([log_probs_NC.argmax(axis=-1) for log_probs_NC in log_probs.values()])
  names = list(log_probs)
  mismatch_KN = classes_KN != classes_KN[names.index('ensemble')]
  found = [
    trajectory.repeated_mismatches(
      mismatch_KN, [(names.index(student), k)], intervals.NUM_RESAMPLES, make_rng
    )
    for k in range(len(names))
  ]
  return {key: x for key, x in stacked(found).items() if key.startswith('repeated')}


def _predictors(study: Study) -> dict[str, tuple[str, nn.Module, Variables]]:
  """(kind, model, variables) by name, checkpoints first, in order."""
  run = study.experiment
  found = {
    f'step {step}': ('checkpoint', run.student.model, study.student(step)) for step in study.steps
  }
  if study.has_teachers and study.num_members > 1:  # one member is the ensemble
    for i in range(study.num_members):
      found[f'teacher {i}'] = ('teacher', run.teacher.model, study.member(i))
  for i, other in enumerate(study.siblings, 1):
    found[f'sibling {i}'] = ('sibling', other.student.model, student.load(other))
  if study.independent is not None:
    other = study.independent
    found['independent'] = ('independent', other.student.model, student.load(other))
  return found


def _log_probs(model: nn.Module, variables: Variables, batches: list[Batch]) -> np.ndarray:
  """log_probs_NC of all examples, from logits in float32 like those of the ensemble."""
  logits = partial(surface.logits, variables, model=models.in_float32(model))
  logits_NC = np.concatenate([logits(batch['inputs']) for batch in batches])
  return log_softmax(logits_NC.astype(np.float64), axis=-1)


def pca_unavailable(study: Study) -> str | None:
  count = len(study.steps)
  if count < MIN_CHECKPOINTS:
    return f'{count} checkpoints were kept (student.keep_checkpoints); PCA needs {MIN_CHECKPOINTS} or more'
  return None


PARTS = (
  Part(
    name='pca',
    title='Principal components of the training',
    reads=(),
    compute=compute_pca,
    draw=drawing.draw_pca,
    caption=drawing.caption_pca,
    table=drawing.table_pca,
    answers='does training move in fewer directions than a random walk?',
    unavailable=pca_unavailable,
    measures_loss=False,
  ),
  Part(
    name='predictions',
    title='Predictors in prediction space',
    answers='how similar are the predictions of checkpoints, teachers, siblings and the ensemble?',
    reads=('num_examples',),
    compute=compute_predictions,
    draw=drawing.draw_predictions,
    caption=drawing.caption_predictions,
    table=drawing.table_predictions,
    compares_others=True,
    measures_loss=False,
    version=3,
  ),
)
