"""Claims of a made-up sweep with known effects, intervals and verdicts."""

import dataclasses
import math

import pytest
import scipy.stats

from kdjax.config import claims, sweep
from kdjax.config.sweep import Claim, Panel, Point, Sweep
from kdjax.intervals import Estimate

AGREEMENT = 'splits.test.fidelity.top1_agreement'
INDEPENDENT = 'splits.test.independent.top1_agreement'
LOW, HIGH = ('', 0.0), ('', 1.0)
CLAIM = Claim('λ = 1 agrees more', AGREEMENT, HIGH, LOW, 'higher', paper=20.0)


def made_up(claim=CLAIM, trials=3):
  points = [Point({'student.init_lambda': x}, x) for x in (0.0, 1.0)]
  panels = [Panel(AGREEMENT, 'agreement (%)', 100)]
  return Sweep('Start', 'λ', points, panels, trials, claims=[claim])


def result(agreement, independent=None):
  test = {'fidelity': {'top1_agreement': agreement}}
  return {'splits': {'test': test | {'independent': {'top1_agreement': independent}}}}


def finding(low, high, claim=CLAIM):
  """Results with the agreements of trials 0, 1, ... at λ = 0 and at λ = 1; None is a missing run."""
  results = {}
  for trial, pair in enumerate(zip(low, high, strict=True)):
    results |= {2 * trial + i: result(x) for i, x in enumerate(pair) if x is not None}
  (found,) = claims.findings(made_up(claim, trials=len(low)), results)
  return found


def test_the_effect_is_paired_over_trials():
  """Trials differ much more than the two points of one trial."""
  low, high = (0.60, 0.70, 0.80), (0.62, 0.715, 0.825)
  found = finding(low, high)
  expected = scipy.stats.ttest_rel(high, low).confidence_interval()
  assert found.effect.mean == pytest.approx(2)
  assert (found.effect.low, found.effect.high) == pytest.approx([100 * end for end in expected])
  assert (found.count, found.verdict, found.num_needed) == (3, claims.HOLDS, None)


def test_a_claim_of_the_other_direction_does_not_hold():
  lower = dataclasses.replace(CLAIM, direction='lower')
  assert finding((0.6, 0.7, 0.8), (0.62, 0.715, 0.825), lower).verdict == claims.FAILS


def test_the_trials_that_would_decide_are_the_fewest():
  """Differences of 3, 1 and −1 points: mean 1, standard deviation 2; 18 trials reach 0.9946 from the mean."""
  found = finding((0.5, 0.5, 0.5), (0.53, 0.51, 0.49))
  assert (found.verdict, found.num_needed) == (claims.UNDECIDED, 18)
  for count, decides in ((17, False), (18, True)):
    half = scipy.stats.t.ppf(0.975, count - 1) * 2 / math.sqrt(count)
    assert (half < 1) == decides


def test_an_effect_of_zero_is_never_decided():
  found = finding((0.5, 0.5), (0.51, 0.49))
  assert (found.verdict, found.num_needed) == (claims.UNDECIDED, None)


@pytest.mark.parametrize(
  ('low', 'high', 'count'),
  [((0.5,), (0.7,), 1), ((0.5, 0.5), (0.7, None), 1), ((0.5, None), (None, 0.7), 0)],
  ids=['one trial', 'one pair', 'no pair'],
)
def test_a_single_pair_decides_nothing(low, high, count):
  found = finding(low, high)
  assert (found.count, found.verdict, found.num_needed) == (count, claims.UNDECIDED, None)
  assert (found.effect is None) == (count == 0)
  if count:
    assert found.effect.mean == pytest.approx(20) and math.isnan(found.effect.low)


def test_a_point_is_compared_with_a_number_in_the_labels_unit():
  above = dataclasses.replace(CLAIM, second=60.0)
  found = finding((0.5, 0.5, 0.5), (0.70, 0.72, 0.74), above)
  assert (found.effect.mean, found.verdict) == (pytest.approx(12), claims.HOLDS)
  assert found.effect.high == pytest.approx(12 + 4.30265 * 2 / math.sqrt(3), abs=1e-4)


def test_a_point_is_compared_with_another_measure_of_its_own_run():
  claim = dataclasses.replace(CLAIM, second=INDEPENDENT)
  results = {1: result(0.70, 0.60), 3: result(0.80, 0.69), 5: result(0.75)}
  (found,) = claims.findings(made_up(claim), results)
  assert (found.count, found.effect.mean) == (2, pytest.approx(10.5))


@pytest.mark.parametrize(
  ('direction', 'low', 'high', 'verdict'),
  [
    ('higher', 1.5, 3, claims.HOLDS),
    ('higher', 0.5, 3, claims.UNDECIDED),
    ('higher', -2, 0.5, claims.FAILS),  # above 0 is not above the margin
    ('lower', -3, -1.5, claims.HOLDS),
    ('lower', -3, -0.5, claims.UNDECIDED),
    ('lower', -0.5, 3, claims.FAILS),
    ('equal', -0.5, 0.9, claims.HOLDS),
    ('equal', -1.5, 0.9, claims.UNDECIDED),
    ('equal', -3, 3, claims.UNDECIDED),
    ('equal', 1.5, 3, claims.FAILS),
    ('equal', -3, -1.5, claims.FAILS),
    ('equal', math.nan, math.nan, claims.UNDECIDED),
    ('higher', math.nan, math.nan, claims.UNDECIDED),
  ],
)
def test_verdicts_of_a_margin_of_1(direction, low, high, verdict):
  claim = dataclasses.replace(CLAIM, direction=direction, margin=1.0)
  assert claims.verdict(claim, Estimate((low + high) / 2, low, high)) == verdict


def test_equality_needs_trials_until_the_interval_is_within_the_margin():
  """Differences of 1 and −1 points are at 0 ± 1.414: six trials reach 1.484, ten 1.012, eleven 0.950."""
  equal = dataclasses.replace(CLAIM, direction='equal', margin=1.0)
  found = finding((0.5, 0.5), (0.51, 0.49), equal)
  assert (found.verdict, found.num_needed) == (claims.UNDECIDED, 11)


@pytest.mark.parametrize(
  ('fields', 'problem'),
  [
    ({'measure': 'nll'}, f'is about nll, which has no panel; measures of panels: {AGREEMENT}'),
    ({'first': ('', 2.0)}, "is about ('', 2.0), which has no point"),
    ({'second': ('m', 1.0)}, "is about ('m', 1.0), which has no point"),
    ({'direction': 'more'}, "has direction = 'more'; allowed: 'higher', 'lower', 'equal'"),
    ({'direction': 'equal'}, "has margin = 0.0; allowed: 0 or more, and more than 0 for 'equal'"),
    ({'margin': -1.0}, "has margin = -1.0; allowed: 0 or more, and more than 0 for 'equal'"),
  ],
  ids=str,
)
def test_problems_of_a_claim(fields, problem):
  assert sweep.problems(made_up()) == []
  wrong = made_up(dataclasses.replace(CLAIM, **fields))
  assert sweep.problems(wrong) == [f"the claim 'λ = 1 agrees more' {problem}"]
