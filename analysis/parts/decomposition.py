"""Decomposition of a student's KL to its teacher, on seen views, fresh views and the test set.

The part has four analyses: bias and variance over seeds (Heskes 1998); the KL of students that start at the
teacher, that are twice as wide, or that are independent; the residual p − q by eigendirections of the
tangent kernel; and disagreement by the teacher's margin.
Axes: K student, S set, V view, N example, C class, R output, G group.
"""

from collections.abc import Iterable, Sequence
from functools import partial

import jax
import numpy as np
from scipy.special import log_softmax, softmax

from kdjax import config as config_lib
from kdjax import intervals, keys, models
from kdjax.runtime import progress
from kdjax.stages import student
from kdjax.stages.experiment import Experiment

from .. import basins, decomposition
from ..decomposition import MIN_STUDENTS, TERMS
from ..estimates import named
from ..figures import decomposition as drawing
from ..measure import Measure, order, teacher_log_probs, teacher_members
from ..part import Arrays, Blocks, Checks, Part, Settings
from ..runs import Study
from ..surface import of_params

NUM_VIEWS = 3  # seen views, evenly spaced, and fresh views
NUM_KERNELS = 3  # students, or disjoint sets of examples for one student
MAX_OUTPUTS = 1_000  # examples times classes of a kernel
EDGES = np.array([0, 0.1, 0.25, 0.5, 0.75, 0.9, 0.99, 1])  # of bins of the teacher's margin
EXACT = 1e-9  # largest error of an identity in float64
ROUNDING = 1e-3  # largest asymmetry of a float32 kernel, relative to its largest entry


def compute_decomposition(
  study: Study, settings: Settings, blocks: Blocks, checks: Checks
) -> Arrays:
  """Computes all four analyses; results without data are NaN or missing.

  'sets' lists the available ones of 'seen', 'fresh' and 'test'.
  """
  groups = _groups(study)
  views = _views(study)
  teacher = {of: _teacher(study, settings, of, views[of]) for of in views}
  students = {
    name: {of: _students(study, settings, runs, of, views[of]) for of in views}
    for name, runs in groups.items()
  }
  return (
    {
      'sets': np.array(list(views)),
      'num_examples': np.array([teacher[of].shape[1] for of in views]),
      'num_views': np.array([len(views[of]) for of in views]),
      'num_students': np.array(len(groups['student'])),
    }
    | _bias_and_variance(teacher, students['student'], study.seed, checks)
    | _kl_of_groups(teacher, students, study.seed)
    | _residual(study, settings, groups['student'], blocks, checks)
    | _by_margin(teacher['test'][0], {name: of['test'][0, 0] for name, of in students.items()})
  )


# Students and examples.


def _groups(study: Study) -> dict[str, list[Experiment]]:
  """The students to compare, by the names of drawing.GROUPS; students of a group differ only in seed."""
  found = {'student': [study.experiment, *study.siblings]}
  section = study.experiment.config.student
  if not (section.init_lambda == 1 and section.init_from == 'final'):
    found['λ = 1'] = study.alike(basins.with_lambda(study.experiment, 1.0))
  found['twice the width'] = study.alike(_twice_as_wide(study.experiment))
  found['independent'] = [] if study.independent is None else [study.independent]
  return {name: runs for name, runs in found.items() if runs}


def _twice_as_wide(run: Experiment) -> Experiment:
  config = run.config.copy_and_resolve_references()
  config.student.model.width = 2 * config_lib.student_model(config).width
  return Experiment(config, run.workdir)


def _fingerprints(study: Study, settings: Settings) -> dict[str, list[str]]:
  """Fingerprints of the students that are not in `Study.others`."""
  known = 'student', 'independent'
  return {
    name: [run.folders.student.name for run in runs]
    for name, runs in _groups(study).items()
    if name not in known
  }


def _views(study: Study) -> dict[str, list[int]]:
  """Indices of views by set; 'fresh' needs augmentation and the teachers' checkpoints."""
  config, plan = study.experiment.config, study.experiment.student.plan
  stored = config.predictions.num_views
  is_augmented = bool(config.predictions.augmentation)
  num_epochs = max(1, round(plan.epoch(plan.num_steps)))
  num_seen = min(stored, num_epochs) if is_augmented else 1
  count = min(NUM_VIEWS, num_seen)
  found = {'seen': [num_seen * i // count for i in range(count)]}
  if is_augmented and study.has_teachers:
    found['fresh'] = [stored + i for i in range(NUM_VIEWS)]  # epoch e sees view e mod num_views
  return found | {'test': [0]}


def _chosen(study: Study, settings: Settings, of: str) -> tuple[str, np.ndarray]:
  """The name of a set's inputs, and the indices_N of the examples, which other parts share."""
  name = 'test' if of == 'test' else 'distillation'
  return name, order(study, name)[: settings.num_examples]


def _teacher(study: Study, settings: Settings, of: str, views: Sequence[int]) -> np.ndarray:
  """The ensemble's log_probs_VNC in float64."""
  (name, indices_N), members = _chosen(study, settings, of), teacher_members(study)
  return _log_probs([teacher_log_probs(study, members, name, view, indices_N) for view in views])


def _students(
  study: Study, settings: Settings, runs: Sequence[Experiment], of: str, views: Sequence[int]
) -> np.ndarray:
  """log_probs_KVNC in float64, all on the inputs of the study's student."""
  run, (name, indices_N) = study.experiment, _chosen(study, settings, of)
  found = []
  for other in runs:
    model, variables = models.in_float32(other.student.model), student.load(other)
    predict = partial(run.predictor.logits, model, variables, run.data.inputs[name])
    found.append(_log_probs([predict(view, indices_N) for view in views]))
  return np.stack(found)


def _log_probs(logits: Sequence[np.ndarray]) -> np.ndarray:
  return log_softmax(np.asarray(logits, np.float64), axis=-1)


# The four analyses.


def _bias_and_variance(
  teacher: dict[str, np.ndarray], students: dict[str, np.ndarray], seed: int, checks: Checks
) -> Arrays:
  """'plain/<term>' for these students, and 'heskes/<term>' extrapolated to infinitely many, of shape (S,)."""
  plain = [decomposition.heskes(teacher[of], students[of]) for of in teacher]
  for terms in plain:
    error = np.abs(terms['mean'] - terms['of_mean'] - terms['variance']).max()
    checks.at_most('KL of the mean and variance add up', error, EXACT)
  found = {f'plain/{term}': np.array([of[term].mean() for of in plain]) for term in TERMS}
  if len(students['test']) > 1:
    pseudo = [decomposition.heskes_jackknife(teacher[of], students[of]) for of in teacher]
    for term in TERMS:
      found |= named(f'heskes/{term}', _over_students([of[term] for of in pseudo], seed))
  return found


def _kl_of_groups(
  teacher: dict[str, np.ndarray], students: dict[str, dict[str, np.ndarray]], seed: int
) -> Arrays:
  """'kl' by group and set, and 'fresh_less_seen' by group, paired by example or seed."""
  groups = [{of: decomposition.kl(teacher[of], x[of]) for of in teacher} for x in students.values()]
  kl = [_over_students(group.values(), seed) for group in groups]
  found = {
    'groups': np.array(list(students)),
    'group_sizes': np.array([len(group['test']) for group in groups]),
  } | named('kl', np.stack(kl, axis=1))
  if 'fresh' in teacher:
    differences = [x['fresh'].mean(axis=1) - x['seen'].mean(axis=1) for x in groups]
    estimates = _over_students([x_KN[:, None] for x_KN in differences], seed)
    found |= named('fresh_less_seen', estimates)
  return found


def _by_margin(teacher_NC: np.ndarray, others: dict[str, np.ndarray]) -> Arrays:
  """'margin/<group>', the disagreement of one student of each group by bin."""
  margins_N = decomposition.margins(teacher_NC)
  found = {'margin/edges': EDGES}
  for name in ('student', 'independent'):
    if name in others:
      disagrees_N = others[name].argmax(axis=-1) != teacher_NC.argmax(axis=-1)
      counts, estimate = decomposition.by_margin(margins_N, disagrees_N, EDGES)
      found['margin/counts'] = counts
      found |= named(f'margin/{name}', estimate)
  return found


def _over_students(values: Iterable[np.ndarray], seed: int) -> np.ndarray:
  """`decomposition.over_students` of each of the values_KVN: (value, low, high) along the first axis.

  Views are averaged first, so that each example counts once.
  """
  rng = lambda: keys.numpy_rng(seed, 'analysis/decomposition')
  estimates = [decomposition.over_students(x_KVN.mean(axis=1), rng()) for x_KVN in values]
  return np.array(estimates).T


# The residual.


def _kernel_size(study: Study, settings: Settings) -> int:
  """Number of examples of a kernel; below 2 no kernel is computed."""
  run = study.experiment
  available = min(settings.num_examples, len(run.data.inputs['distillation'].split)) // NUM_KERNELS
  most = MAX_OUTPUTS // run.data.description.num_classes
  return min(settings.kernel_examples, available, most)


def _rate_sum(run: Experiment) -> float:
  """Σ_t η_t of gradient descent, where momentum m lengthens each step to η / (1 − m)."""
  section = run.config.student
  rates_T = np.asarray(run.student.learning_rate(np.arange(run.student.plan.num_steps)))
  return float(rates_T.sum(dtype=np.float64)) / (1 - section.momentum)


def _residual(
  study: Study, settings: Settings, runs: list[Experiment], blocks: Blocks, checks: Checks
) -> Arrays:
  """'residual/shares' and 'residual/directions' by decomposition.GROUPS, with t intervals.

  Intervals are over NUM_KERNELS students on the same examples or, with fewer students, over as many disjoint
  sets of examples. The result is empty for optimizers other than SGD, to which λ Σ η_t does not apply.
  """
  size = _kernel_size(study, settings)
  if study.experiment.config.student.optimizer != 'sgd' or size < 2:
    return {}
  batches = Measure(study, size * NUM_KERNELS).batches('distillation')
  inputs_NX, teacher_NC = (
    np.concatenate([batch[key] for batch in batches]) for key in ('inputs', 'teacher_log_probs')
  )
  over_students = len(runs) >= MIN_STUDENTS
  if over_students:
    cases = [(run, slice(0, size)) for run in runs[:NUM_KERNELS]]
  else:
    cases = [(study.experiment, slice(i * size, (i + 1) * size)) for i in range(NUM_KERNELS)]
  forward = of_params(models.in_float32(study.experiment.student.model), study.student())
  kernel = jax.jit(partial(decomposition.tangent_kernel, forward))
  rate_sum, found = _rate_sum(study.experiment), []
  with progress.bar('kernel', len(cases), 'kernels') as show:
    for index, (run, part) in enumerate(cases):
      compute = partial(_kernel, run, forward, kernel, inputs_NX[part], checks)
      arrays = blocks.get(f'kernel {run.folders.student.name} {part.start}', compute)
      probs_NC, own_NC = (
        softmax(x_NC.astype(np.float64), axis=-1) for x_NC in (teacher_NC[part], arrays['logits'])
      )
      found.append(decomposition.residual_groups(arrays['kernel'], probs_NC - own_NC, rate_sum))
      show(index + 1, '')
  # A t interval can exceed the range of a share.
  shares, directions = np.clip(intervals.of_mean(np.array(found)), 0, 1).swapaxes(0, 1)
  return (
    named('residual/shares', shares)
    | named('residual/directions', directions)
    | {
      'residual/rate_sum': np.array(rate_sum),
      'residual/num_examples': np.array(size),
      'residual/over_students': np.array(over_students),
    }
  )


def _kernel(run: Experiment, forward, kernel, inputs_NX: np.ndarray, checks: Checks) -> Arrays:
  """The tangent kernel of a student's logits on some examples, and the logits."""
  params = student.load(run)['params']
  kernel_RR = np.asarray(kernel(params, inputs_NX))
  asymmetry = np.abs(kernel_RR - kernel_RR.T).max() / np.abs(kernel_RR).max()
  checks.at_most('symmetry of the tangent kernel', asymmetry, ROUNDING)
  return {'kernel': kernel_RR, 'logits': np.asarray(forward(params, inputs_NX))}


PARTS = (
  Part(
    name='decomposition',
    title="Decomposition of the student's KL to its teacher",
    reads=('num_examples', 'kernel_examples'),
    compute=compute_decomposition,
    draw=drawing.draw_decomposition,
    caption=drawing.caption_decomposition,
    table=drawing.table_decomposition,
    answers="how much of the student's KL to its teacher is bias, variance over seeds, a generalisation gap, "
    'or a residual that training does not reach?',
    depends=_fingerprints,
    compares_others=True,
    measures_loss=False,
  ),
)
