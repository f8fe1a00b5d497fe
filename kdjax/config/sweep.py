"""Sweeps: the runs of a figure or table of the paper, the means over their trials, and its claims.

A config file with a `get_sweep(arg='')` beside its `get_config` defines a sweep. Each point overrides fields
of the config, and is repeated for `trials` seeds. `config/claims.py` decides the claims.
"""

import collections
import dataclasses
import itertools
import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from kdjax import intervals
from kdjax.intervals import Estimate

INDEPENDENT = 'evaluation.independent_seed'
MAX_SERIES = 6  # more cannot be told apart in a figure
EQUAL = 'equal'
DIRECTIONS = (intervals.HIGHER, intervals.LOWER, EQUAL)

Key = tuple[str, float | str]  # (series, x) of a point


@dataclasses.dataclass(frozen=True)
class Point:
  """A place in the figure, and the fields of its config."""

  fields: Mapping[str, Any]  # dotted config field: value
  x: float | str
  series: str = ''

  @property
  def key(self) -> Key:
    return self.series, self.x


@dataclasses.dataclass(frozen=True)
class Panel:
  """One measure, drawn against x."""

  measure: str  # dotted path into result.json, as 'splits.test.fidelity.top1_agreement'
  label: str  # with the unit
  scale: float = 1  # from result.json's unit to the label's: 100 for percent


@dataclasses.dataclass(frozen=True)
class Claim:
  """A statement of the paper that results can decide.

  Its effect is the measure at `first` minus the value that `second` names, in the unit of the panel's label.
  """

  text: str
  measure: str  # of a panel
  first: Key
  # Another point; another measure at `first`, as a dotted path into result.json; or a number.
  second: Key | str | float
  direction: str  # of DIRECTIONS: the effect is above `margin`, below −`margin`, or between the two
  margin: float = 0.0
  paper: float | None = None  # the paper's effect


@dataclasses.dataclass(frozen=True)
class Sweep:
  """The runs, panels and claims of a figure or table."""

  title: str
  x_label: str
  points: Sequence[Point]
  panels: Sequence[Panel]
  trials: int = 1
  trial_field: str = 'seed'  # the field that gets the trial's number, 0, 1, ...; '': none
  caption: str = ''
  # {measure: {(series, x): mean or (mean, standard deviation)}}, in the unit of the panel's label.
  paper: Mapping[str, Mapping[Key, float | tuple[float, float]]] = dataclasses.field(
    default_factory=dict
  )
  claims: Sequence[Claim] = ()


@dataclasses.dataclass(frozen=True)
class SweepRun:
  """One training: a trial of a point."""

  index: int
  point: Point
  trial: int
  fields: dict[str, Any]  # dotted config field: value


@dataclasses.dataclass(frozen=True)
class Cell:
  """A measure at a point, in the unit of the panel's label. None is an unknown value."""

  mean: float | None = None
  std: float | None = None  # over trials, with ddof = 1; None for fewer than two trials
  count: int = 0  # trials that have the measure
  paper_mean: float | None = None
  paper_std: float | None = None
  independent: 'Cell | None' = None  # the independent student's, for a measure of fidelity
  difference: Estimate | None = None  # student minus independent student, paired over trials
  num_pairs: int = 0  # trials that have both


@dataclasses.dataclass(frozen=True)
class Row:
  """A point with its cells in the order of the panels."""

  point: Point
  cells: tuple[Cell, ...]
  missing: tuple[SweepRun, ...]  # its trials that have no result


def expand(sweep: Sweep) -> list[SweepRun]:
  """Every run of the sweep, in the order of its index.

  A trial of all points comes before the next trial. So a sweep that is cut short has a value for each point,
  and more trials change no earlier run. With trials over `seed`, the independent student (Section 4) of a trial
  is the student of the trial before; for the first trial, of the second. So the baseline costs no training.
  """
  places = itertools.product(range(sweep.trials), sweep.points)
  return [
    SweepRun(index, point, trial, {**point.fields, **added_fields(sweep, trial)})
    for index, (trial, point) in enumerate(places)
  ]


def summarise(sweep: Sweep, results: Mapping[int, Mapping[str, Any]]) -> list[Row]:
  """Means over the finished trials, for each point in its order.

  A measure of fidelity, `....fidelity....` in result.json, comes with the independent student's and with
  their difference, which has Student's t interval over trials. Each trial's student is paired with its
  independent student. The interval is approximate: with trials over `seed`, the student of one trial is the
  independent student of another.

  Args:
    results: the content of result.json by index of the run. Runs without one are `missing`; a measure that
      none of a point's results has gets `count` 0.
  """
  trials = collections.defaultdict(list)
  for run in expand(sweep):
    trials[run.point.key].append(run)
  rows = []
  for point in sweep.points:
    runs = trials[point.key]
    found = [results[run.index] for run in runs if run.index in results]
    cells = tuple(_cell(sweep, panel, point, found) for panel in sweep.panels)
    missing = tuple(run for run in runs if run.index not in results)
    rows.append(Row(point, cells, missing))
  return rows


def independent_measure(measure: str) -> str | None:
  """The independent student's value of a measure of fidelity; None for any other measure."""
  return measure.replace('.fidelity.', '.independent.') if '.fidelity.' in measure else None


def values(panel: Panel, measure: str, results: Sequence[Mapping[str, Any]]) -> list[float | None]:
  """A measure of each result in the unit of the panel's label; None where a result does not have it."""
  found = [look_up(result, measure) for result in results]
  return [None if value is None else panel.scale * value for value in found]


def look_up(result: Any, path: str) -> float | None:
  """The value at a dotted path into result.json; None if there is none."""
  for name in path.split('.'):
    result = result.get(name) if isinstance(result, Mapping) else None
  return result


def has_difference(rows: Sequence[Row]) -> list[bool]:
  """Whether any point has an independent student to compare with, for each panel."""
  columns = zip(*(row.cells for row in rows), strict=True)
  return [any(cell.num_pairs for cell in cells) for cells in columns]


def series_names(sweep: Sweep) -> list[str]:
  """The series, in the order of their first points."""
  return list(dict.fromkeys(point.series for point in sweep.points))


def x_values(sweep: Sweep) -> list[float | str]:
  """The values of x, in the order of their first points."""
  return list(dict.fromkeys(point.x for point in sweep.points))


def is_categorical(sweep: Sweep) -> bool:
  """Whether the values of x are names instead of numbers."""
  return isinstance(sweep.points[0].x, str)


def problems(sweep: Sweep) -> list[str]:
  """The problems of a sweep by itself, one line each."""
  found = [
    f'{name} of the sweep is empty; give at least one'
    for name in ('points', 'panels')
    if not getattr(sweep, name)
  ]
  if type(sweep.trials) is not int or sweep.trials < 1:
    return [*found, f'trials = {sweep.trials!r} of the sweep; allowed: an integer of at least 1']
  keys = [point.key for point in sweep.points]
  found += [
    f'{count} points of the sweep have series {series!r} and x = {x!r}; allowed: one'
    for (series, x), count in collections.Counter(keys).items()
    if count > 1
  ]
  kinds = {_kind(point.x) for point in sweep.points}
  if len(kinds) > 1 or 'other' in kinds:
    values = ', '.join(map(repr, x_values(sweep)))
    found.append(f'x of the points are {values}; allowed: all finite numbers, or all strings')
  num_series = len(series_names(sweep))
  if num_series > MAX_SERIES:
    found.append(f'the sweep has {num_series} series; allowed: up to {MAX_SERIES}')
  fixed = added_fields(sweep, 0)
  found += [
    f'the point at {point.key} sets {field}, which the trials of the sweep set; remove it'
    for point in sweep.points
    for field in point.fields
    if field in fixed
  ]
  measures = [panel.measure for panel in sweep.panels]
  for measure, values in sweep.paper.items():
    if measure not in measures:
      found.append(f"the paper's {measure} has no panel; measures of panels: {', '.join(measures)}")
    found += [f"the paper's {measure} at {key} has no point" for key in values if key not in keys]
  for claim in sweep.claims:
    found += _problems_of_claim(claim, measures, keys)
  return found


def _problems_of_claim(claim: Claim, measures: Sequence[str], keys: Sequence[Key]) -> Iterator[str]:
  name = f'the claim {claim.text!r}'
  if claim.measure not in measures:
    yield f'{name} is about {claim.measure}, which has no panel; measures of panels: {", ".join(measures)}'
  for key in (claim.first, claim.second):
    if isinstance(key, tuple) and key not in keys:
      yield f'{name} is about {key}, which has no point'
  if claim.direction not in DIRECTIONS:
    yield f'{name} has direction = {claim.direction!r}; allowed: {", ".join(map(repr, DIRECTIONS))}'
  if claim.margin < 0 or (claim.margin == 0 and claim.direction == EQUAL):
    yield f'{name} has margin = {claim.margin}; allowed: 0 or more, and more than 0 for {EQUAL!r}'


def added_fields(sweep: Sweep, trial: int) -> dict[str, int]:
  """The fields that a trial adds to those of its point."""
  added = {sweep.trial_field: trial} if sweep.trial_field else {}
  if sweep.trials > 1 and sweep.trial_field == 'seed':
    added[INDEPENDENT] = trial - 1 if trial else 1
  return added


def _cell(sweep: Sweep, panel: Panel, point: Point, results: Sequence[Mapping[str, Any]]) -> Cell:
  paper = sweep.paper.get(panel.measure, {}).get(point.key)
  paper_mean, paper_std = paper if isinstance(paper, tuple) else (paper, None)
  own, baseline = values(panel, panel.measure, results), independent_measure(panel.measure)
  others = values(panel, baseline, results) if baseline else [None] * len(own)
  pairs = [pair for pair in zip(own, others, strict=True) if None not in pair]
  return dataclasses.replace(
    _mean(own),
    paper_mean=paper_mean,
    paper_std=paper_std,
    independent=_mean(others) if any(value is not None for value in others) else None,
    difference=intervals.paired(*zip(*pairs, strict=True)) if pairs else None,
    num_pairs=len(pairs),
  )


def _mean(values: Sequence[float | None]) -> Cell:
  known = [value for value in values if value is not None]
  has_std = len(known) > 1 and all(map(math.isfinite, known))
  return Cell(
    mean=statistics.fmean(known) if known else None,
    std=statistics.stdev(known) if has_std else None,
    count=len(known),
  )


def _kind(x: Any) -> str:
  if isinstance(x, str):
    return 'name'
  is_number = isinstance(x, int | float) and not isinstance(x, bool)
  return 'number' if is_number and math.isfinite(x) else 'other'
