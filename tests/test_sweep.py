"""The runs of sweeps, and means over made-up results."""

import dataclasses
import math

import pytest
import scipy.stats

from kdjax.config import sweep as sweep_lib
from kdjax.config.sweep import Cell, Panel, Point, Sweep

AGREEMENT = 'splits.test.fidelity.top1_agreement'
KL = 'splits.test.fidelity.predictive_kl'
POINTS = (
  Point({'student.temperature': 1.0}, 1, 'm = 1'),
  Point({'student.temperature': 4.0}, 4, 'm = 1'),
)
PANELS = (Panel(AGREEMENT, 'agreement (%)', 100), Panel(KL, 'KL (nats)'))
SWEEP = Sweep('Temperature', 'temperature τ', POINTS, PANELS, trials=3)


def changed(**fields):
  return dataclasses.replace(SWEEP, **fields)


def result(agreement, kl=None):
  fidelity = {'top1_agreement': agreement} | ({} if kl is None else {'predictive_kl': kl})
  return {'splits': {'test': {'fidelity': fidelity}}}


def test_expand_golden():
  """Several trials have an independent student only if they are over `seed`."""
  runs = sweep_lib.expand(SWEEP)
  assert [run.index for run in runs] == [0, 1, 2, 3, 4, 5]
  assert [run.point for run in runs] == [*POINTS] * 3
  assert [run.trial for run in runs] == [0, 0, 1, 1, 2, 2]
  assert [run.fields for run in runs] == [
    {'student.temperature': temperature, 'seed': seed, 'evaluation.independent_seed': other}
    for seed, other in ((0, 1), (1, 0), (2, 1))
    for temperature in (1.0, 4.0)
  ]
  (_, alone) = sweep_lib.expand(changed(trials=1))
  assert alone.fields == {'student.temperature': 4.0, 'seed': 0}
  last = sweep_lib.expand(changed(trials=2, trial_field='student.seed'))[-1]
  assert last.fields == {'student.temperature': 4.0, 'student.seed': 1}


@pytest.mark.parametrize('trial_field', ['seed', 'student.seed'])
def test_more_trials_change_no_earlier_run(trial_field):
  """Baselines stay, too, so sweeps of two and of three trials can share students."""
  before = sweep_lib.expand(changed(trial_field=trial_field))
  assert sweep_lib.expand(changed(trials=5, trial_field=trial_field))[:6] == before


def test_summarise_golden():
  results = {
    **{0: result(0.70, 0.5), 2: result(0.74, 0.3), 4: result(0.78, 0.1)},  # τ = 1
    5: result(0.9),  # τ = 4, only the last trial
  }
  sweep = changed(paper={AGREEMENT: {('m = 1', 1): (73.5, 0.4)}, KL: {('m = 1', 4): 0.25}})
  first, second = sweep_lib.summarise(sweep, results)
  assert (first.point, second.point) == POINTS
  # Deviations −4, 0, 4: √(32 / 2) = 4; and 0.2, 0, −0.2: √(0.08 / 2) = 0.2.
  assert first.cells == (
    Cell(pytest.approx(74), pytest.approx(4), 3, 73.5, 0.4),
    Cell(pytest.approx(0.3), pytest.approx(0.2), 3),
  )
  assert first.missing == ()
  assert second.cells == (Cell(90, None, 1), Cell(None, None, 0, 0.25))
  assert [(run.index, run.trial) for run in second.missing] == [(1, 0), (3, 1)]


def paired(agreement, independent):
  return {
    'splits': {
      'test': {
        'fidelity': {'top1_agreement': agreement},
        'independent': {'top1_agreement': independent},
      }
    }
  }


def test_the_difference_is_paired_over_trials():
  """Trials differ much more than the student and the independent student of one trial."""
  values = [(0.60, 0.58), (0.70, 0.685), (0.80, 0.775)]
  results = {2 * trial: paired(*both) for trial, both in enumerate(values)}
  cell = sweep_lib.summarise(SWEEP, results)[0].cells[0]
  assert (cell.mean, cell.independent.mean) == pytest.approx((70, 68))
  assert (cell.count, cell.independent.count, cell.num_pairs) == (3, 3, 3)
  # Differences of 2, 1.5 and 2.5 points: 2 ± 4.303 · 0.5 / √3.
  of = cell.difference
  assert (of.mean, of.low, of.high) == pytest.approx((2, 2 - 1.2421, 2 + 1.2421), abs=1e-4)
  student, independent = zip(*values, strict=True)
  expected = scipy.stats.ttest_rel(student, independent).confidence_interval()
  assert (of.low, of.high) == pytest.approx([100 * end for end in expected], rel=1e-9)
  assert of.verdict == 'higher'


def test_one_trial_has_a_difference_without_an_interval():
  cell = sweep_lib.summarise(SWEEP, {0: paired(0.6, 0.5), 2: result(0.7)})[0].cells[0]
  assert (cell.count, cell.independent.count, cell.num_pairs) == (2, 1, 1)
  assert cell.difference.mean == pytest.approx(10)
  assert math.isnan(cell.difference.low) and cell.difference.verdict == 'cannot be told'


def test_only_fidelity_has_an_independent_student():
  panel = Panel('splits.test.independent.top1_agreement', 'independent agreement (%)', 100)
  row = sweep_lib.summarise(changed(panels=(panel,)), {0: paired(0.6, 0.5), 2: paired(0.7, 0.5)})[0]
  assert row.cells == (Cell(pytest.approx(50), pytest.approx(0), 2),)
  assert sweep_lib.has_difference([row]) == [False]


@pytest.mark.parametrize(
  'value', [{}, {'splits': None}, {'splits': {'test': [1]}}, result(None)], ids=str
)
def test_a_missing_measure_is_blank(value):
  first, second = sweep_lib.summarise(SWEEP, {0: value})
  assert first.cells == second.cells == (Cell(), Cell())
  assert [run.index for run in first.missing] == [2, 4]
  assert [run.index for run in second.missing] == [1, 3, 5]


def test_series_and_names_keep_their_order():
  keys = [('b', 'z'), ('b', 'a'), ('a', 'z'), ('a', 'y')]
  sweep = changed(points=[Point({}, x, series) for series, x in keys])
  assert sweep_lib.series_names(sweep) == ['b', 'a']
  assert sweep_lib.x_values(sweep) == ['z', 'a', 'y']
  assert sweep_lib.is_categorical(sweep) and not sweep_lib.is_categorical(SWEEP)


@pytest.mark.parametrize(
  ('fields', 'expected'),
  [
    ({'paper': {AGREEMENT: {('m = 1', 4): 83.5}}}, []),
    (
      {'points': (), 'panels': (), 'trials': 0},
      [
        'points of the sweep is empty; give at least one',
        'panels of the sweep is empty; give at least one',
        'trials = 0 of the sweep; allowed: an integer of at least 1',
      ],
    ),
    ({'trials': 2.0}, ['trials = 2.0 of the sweep; allowed: an integer of at least 1']),
    (
      {'points': (*POINTS, POINTS[0])},
      ["2 points of the sweep have series 'm = 1' and x = 1; allowed: one"],
    ),
    (
      {'points': (*POINTS, Point({}, 'four'))},
      ["x of the points are 1, 4, 'four'; allowed: all finite numbers, or all strings"],
    ),
    (
      {'points': (Point({}, float('nan')),)},
      ['x of the points are nan; allowed: all finite numbers, or all strings'],
    ),
    (
      {'points': [Point({}, 1, f'series {i}') for i in range(7)]},
      ['the sweep has 7 series; allowed: up to 6'],
    ),
    (
      {'points': (Point({'seed': 3}, 1),)},
      ["the point at ('', 1) sets seed, which the trials of the sweep set; remove it"],
    ),
    (
      {'paper': {'nll': {}}},
      [f"the paper's nll has no panel; measures of panels: {AGREEMENT}, {KL}"],
    ),
    ({'paper': {KL: {('m = 1', 16): 0.2}}}, [f"the paper's {KL} at ('m = 1', 16) has no point"]),
  ],
  ids=lambda value: '-'.join(value) if isinstance(value, dict) else '',
)
def test_problems_golden(fields, expected):
  assert sweep_lib.problems(changed(**fields)) == expected


def test_an_infinite_value_is_in_the_mean_and_leaves_no_deviation():
  cell = sweep_lib._mean([1.0, float('inf'), None])
  assert (cell.mean, cell.std, cell.count) == (float('inf'), None, 2)
