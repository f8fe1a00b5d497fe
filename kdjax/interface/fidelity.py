"""Fidelity of any student's logits to any teacher's, without a workdir. Axes: N example, C class."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from rich.table import Table

from kdjax import keys
from kdjax.errors import UserError
from kdjax.interface.opened import drawn
from kdjax.intervals import NUM_RESAMPLES, Estimate
from kdjax.report import tables
from kdjax.stages import comparison


def fidelity(
  student_logits_NC: np.ndarray,
  teacher_NC: np.ndarray,
  independent_logits_NC: np.ndarray | None = None,
  *,
  num_resamples: int = NUM_RESAMPLES,
) -> 'Fidelity':
  """The measures of how well a student matches a teacher (paper, Section 3), with 95 % intervals.

    >>> import numpy as np
    >>> student, teacher = np.log([[0.5, 0.5], [0.9, 0.1]]), np.log([[0.25, 0.75], [0.9, 0.1]])
    >>> found = fidelity(student, teacher)
    >>> found['top1_agreement'].mean, round(found['predictive_kl'].mean, 4)
    (0.5, 0.0654)

  Args:
    student_logits_NC: logits or log-probabilities of the student, (examples, classes).
    teacher_NC: log-probabilities or logits of the teacher.
    independent_logits_NC: logits of a student of another teacher. It is the baseline: two accurate models
      agree by accuracy alone.
    num_resamples: bootstrap resamples for each interval. Fewer than six examples have no interval.

  Returns: {measure: Estimate}, as in result.json; with a baseline, also `independent` and `difference`.

  Raises:
    UserError: the arrays have wrong shapes, or values that are not finite (the teacher's may be −∞).
  """
  given = {
    'student_logits_NC': student_logits_NC,
    'teacher_NC': teacher_NC,
    'independent_logits_NC': independent_logits_NC,
  }
  found = {name: np.asarray(values) for name, values in given.items() if values is not None}
  shape = found['teacher_NC'].shape
  for name, values in found.items():
    if values.ndim != 2 or values.shape != shape or not values.size:
      raise UserError(
        f'{name}: has the shape {values.shape}; needed: (examples, classes), as teacher_NC {shape}'
      )
    is_wrong = np.isnan(values) | np.isposinf(values) | (name != 'teacher_NC') & np.isneginf(values)
    if is_wrong.any():
      raise UserError(f'{name}: {is_wrong.sum()} of its values are not finite')
  teacher = found.pop('teacher_NC')
  compared = dict(zip((comparison.STUDENT, comparison.INDEPENDENT), found.values(), strict=False))
  of_each = {who: comparison.fidelity(values, teacher) for who, values in compared.items()}
  return Fidelity(
    comparison.compare(of_each, num_resamples, keys.numpy_rng(0, 'bootstrap')), len(teacher)
  )


class Fidelity(dict):
  """{measure: Estimate} of a student; `repr` draws a table.

  Attributes:
    independent: {measure: Estimate} of the independent student, or None.
    difference: {measure: Estimate} of student minus independent student, or None. The `verdict` of an Estimate
      says whether it is above 0.
  """

  def __init__(self, compared: Mapping[str, Any], num_examples: int):
    self._compared = {**compared, 'num_examples': num_examples}
    super().__init__(self._estimates(comparison.STUDENT))
    self.independent = self.difference = None
    if comparison.INDEPENDENT in compared:
      self.independent = self._estimates(comparison.INDEPENDENT)
      differences = compared[comparison.DIFFERENCE].items()
      self.difference = {name: _estimate(x['mean'], x['interval']) for name, x in differences}

  def _estimates(self, who: str) -> dict[str, Estimate]:
    ends = self._compared['intervals'][who]
    return {name: _estimate(mean, ends[name]) for name, mean in self._compared[who].items()}

  def __repr__(self) -> str:
    (group,) = tables.finer({'splits': {'test': self._compared}})
    headings = '', 'student', 'independent student', 'difference', 'verdict'
    title = f'Fidelity on {group.num_examples} examples'
    table = Table(*headings, title=title, title_justify='left')
    for name, cells in group.rows:
      table.add_row(name, *cells)
    return drawn(table)


def _estimate(mean: float | None, ends: Sequence[float] | None) -> Estimate:
  return Estimate(math.nan if mean is None else mean, *(ends or ()))
