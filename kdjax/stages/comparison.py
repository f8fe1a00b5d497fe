"""Fidelity of a student and of the independent student to one teacher, with paired intervals.

Both models are evaluated on the same examples, so their difference is resampled in pairs. It can be
significant even where the two models' own intervals overlap. Axes: N example, C class, R resample, W who
(student, independent student, difference), F measure.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from scipy import sparse

from kdjax import intervals, metrics
from kdjax.intervals import Estimate

STUDENT, INDEPENDENT, DIFFERENCE = 'fidelity', 'independent', 'difference'  # names in result.json
# Fewer examples are never significant at 5 % in a sign test, even if all differences have one sign.
MIN_EXAMPLES = 6
BLOCK = 2**21  # the number of logits that are converted to float64 and ranked at a time


@dataclasses.dataclass(frozen=True)
class Fidelity:
  """The values per example from which all measures of one model's fidelity are computed."""

  values: dict[str, np.ndarray]  # by measure that is a mean over examples, of shape (N,)
  # The fraction of the example's views on which each class is predicted.
  student_NC: sparse.csr_array
  teacher_NC: sparse.csr_array

  def measures(self, counts_RN: np.ndarray) -> dict[str, np.ndarray]:
    """Every measure, of shape (R,), with each example weighted by `counts_RN`."""
    num_examples = counts_RN.shape[-1]
    found = {name: counts_RN @ values_N / num_examples for name, values_N in self.values.items()}
    predicted = (counts_RN @ x_NC / num_examples for x_NC in (self.student_NC, self.teacher_NC))
    kappa = metrics.cohens_kappa(found['top1_agreement'], *predicted)
    return found | {'cohens_kappa': kappa}


def fidelity(student_logits_NC: np.ndarray, teacher_log_probs_NC: np.ndarray) -> Fidelity:
  """The fidelity of a student on one view of every example."""
  num_examples, num_classes = student_logits_NC.shape
  size = max(1, BLOCK // num_classes)
  blocks = []
  for start in range(0, num_examples, size):
    both = [x_NC[start : start + size] for x_NC in (student_logits_NC, teacher_log_probs_NC)]
    blocks.append(metrics.fidelity_values(*both) | metrics.finer_fidelity_values(*both))
  values = {name: np.concatenate([block[name] for block in blocks]) for name in blocks[0]}
  return Fidelity(values, _predicted(student_logits_NC), _predicted(teacher_log_probs_NC))


def over_views(views: Sequence[Fidelity]) -> Fidelity:
  """The mean over views of the same examples, in the same order."""
  count = len(views)
  return Fidelity(
    {name: np.mean([view.values[name] for view in views], axis=0) for name in views[0].values},
    sum(view.student_NC for view in views) / count,
    sum(view.teacher_NC for view in views) / count,
  )


def compare(
  models: Mapping[str, Fidelity], num_resamples: int, rng: np.random.Generator
) -> dict[str, Any]:
  """Means, intervals and the paired difference, as result.json has them.

  Args:
    models: STUDENT and then, if there is one, INDEPENDENT, on the same examples in the same order.

  Returns:
    {model: {measure: mean}, 'intervals': {model: {measure: [low, high]}}} and, with both models,
    'difference': {measure: {'mean', 'interval': [low, high], 'verdict'}} of student minus independent
    student. All intervals are percentile bootstraps of the same resamples. An interval is None for fewer
    than MIN_EXAMPLES examples; a measure or an interval that is undefined (κ of a single class) is None.
  """
  num_examples = models[STUDENT].student_NC.shape[0]
  rows = [*models, DIFFERENCE] if INDEPENDENT in models else list(models)
  measures = list(models[STUDENT].measures(np.ones((1, num_examples))))

  def statistic(counts_RN: np.ndarray) -> np.ndarray:
    values_WFR = np.array([list(model.measures(counts_RN).values()) for model in models.values()])
    if DIFFERENCE in rows:
      values_WFR = np.concatenate([values_WFR, -np.diff(values_WFR, axis=0)])
    return values_WFR.transpose(2, 0, 1)

  (mean_WF,) = statistic(np.ones((1, num_examples)))
  low_WF = high_WF = np.full_like(mean_WF, np.nan)
  if num_examples >= MIN_EXAMPLES:
    values_RWF = intervals.bootstrap(statistic, num_examples, num_resamples, rng)
    low_WF, high_WF = intervals.percentiles(values_RWF)
  found = {
    row: {
      measure: Estimate(*map(float, values))
      for measure, *values in zip(measures, *estimates, strict=True)
    }
    for row, *estimates in zip(rows, mean_WF, low_WF, high_WF, strict=True)
  }
  result = {who: {name: _known(e.mean) for name, e in found[who].items()} for who in models}
  result['intervals'] = {
    who: {name: _interval(e) for name, e in found[who].items()} for who in models
  }
  if DIFFERENCE in rows:
    result[DIFFERENCE] = {
      name: {'mean': _known(e.mean), 'interval': _interval(e), 'verdict': e.verdict}
      for name, e in found[DIFFERENCE].items()
    }
  return result


def _predicted(logits_NC: np.ndarray) -> sparse.csr_array:
  """A sparse array with 1 at each example's most probable class."""
  num_examples, num_classes = logits_NC.shape
  rows_N, classes_N = np.arange(num_examples), logits_NC.argmax(axis=-1)
  return sparse.csr_array(
    (np.ones(num_examples), (rows_N, classes_N)), shape=(num_examples, num_classes)
  )


def _known(value: float) -> float | None:
  return None if math.isnan(value) else value


def _interval(estimate: Estimate) -> list[float] | None:
  return None if math.isnan(estimate.low) else [estimate.low, estimate.high]
