"""A sweep from the command line: `--sweep.student.temperature=1,4,8`."""

import ast
import itertools
from collections.abc import Sequence
from typing import Any

from kdjax.config.sweep import Panel, Point, Sweep

PANELS = (
  Panel('splits.test.fidelity.top1_agreement', 'agreement, test (%)', 100),
  Panel('splits.test.fidelity.predictive_kl', 'KL to the teacher, test (nats)'),
  Panel('splits.test.student.accuracy', 'student accuracy, test (%)', 100),
)


def from_flags(name: str, swept: Sequence[tuple[str, str | None]]) -> tuple[Sweep, list[str]]:
  """The sweep over all combinations of the fields' values, and the problems with the flags.

  The first field is on the x axis; each combination of the others is a series.

  Args:
    name: the name of the config, for the title.
    swept: (dotted field, values as text, separated by commas), as in `--sweep.FIELD=V1,V2`.
  """
  problems = [
    f'--sweep.{field}: no values given; write --sweep.{field}=V1,V2'
    for field, text in swept
    if not text
  ]
  fields = [field for field, _ in swept]
  problems += [
    f'--sweep.{field}: given twice' for field in {f for f in fields if fields.count(f) > 1}
  ]
  values = [_values(text or '') for _, text in swept]
  points = []
  for combination in itertools.product(*values):
    first, *rest = zip(fields, combination, strict=True)
    series = ', '.join(f'{_short(field)} = {value}' for field, value in rest)
    points.append(Point(dict(zip(fields, combination, strict=True)), _x(first[1]), series))
  return Sweep(
    f'{name}: {", ".join(map(_short, fields))}', _short(fields[0]), points, PANELS, trial_field=''
  ), problems


def _values(text: str) -> list[Any]:
  """The values as Python literals; strings need no quotes. '(1, 2),(3, 4)' are two tuples."""
  try:
    return list(ast.literal_eval(f'[{text}]'))
  except (ValueError, SyntaxError):
    return [_literal(part.strip()) for part in text.split(',')]


def _literal(text: str) -> Any:
  try:
    return ast.literal_eval(text)
  except (ValueError, SyntaxError):
    return text


def _x(value: Any) -> float | str:
  return float(value) if type(value) in (int, float) else str(value)


def _short(field: str) -> str:
  return field.rpartition('.')[2]
