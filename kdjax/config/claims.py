"""Decides the claims of a sweep from its results.

The effect of a claim is the difference of two values of the same trial, averaged over trials. A trial has one
seed, and so one teacher. The effect's 95 % interval is Student's t interval over trials (`intervals.paired`).
The claim holds if the whole interval lies where the claim says, does not hold if it lies where the claim
excludes, and is not decided otherwise. Intervals are not corrected for the number of claims.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

from scipy.special import stdtrit

from kdjax import intervals
from kdjax.config import sweep as sweep_lib
from kdjax.config.sweep import Claim, Panel, Sweep
from kdjax.intervals import Estimate

HOLDS, FAILS, UNDECIDED = 'holds', 'does not hold', 'not decided'  # verdicts
MAX_TRIALS = 1000  # the largest number of trials that `num_needed` gives


@dataclasses.dataclass(frozen=True)
class Finding:
  """The verdict of the results on a claim."""

  claim: Claim
  panel: Panel  # its label has the unit of the effect
  effect: Estimate | None  # None if no trial has both values
  count: int  # trials that have both values
  verdict: str
  # The trials that would decide an undecided claim if mean and spread stayed the same; None for more than
  # MAX_TRIALS, or if not known.
  num_needed: int | None


def findings(sweep: Sweep, results: Mapping[int, Mapping[str, Any]]) -> list[Finding]:
  """A finding for each claim of the sweep, in its order.

  Args:
    sweep: a sweep without `sweep.problems`.
    results: the content of result.json by index of the run. Any run can be missing.
  """
  panels = {panel.measure: panel for panel in sweep.panels}
  return [_finding(claim, panels[claim.measure], sweep, results) for claim in sweep.claims]


def verdict(claim: Claim, effect: Estimate) -> str:
  """HOLDS, FAILS or UNDECIDED, by the place of the interval relative to the bounds of the claim."""
  found = {bound: intervals.verdict(effect.low, effect.high, bound) for bound in _bounds(claim)}
  if claim.direction != sweep_lib.EQUAL:
    (side,) = found.values()
    return {claim.direction: HOLDS, intervals.UNDECIDED: UNDECIDED}.get(side, FAILS)
  lower, upper = found[-claim.margin], found[claim.margin]
  if lower == intervals.LOWER or upper == intervals.HIGHER:
    return FAILS
  is_inside = lower == intervals.HIGHER and upper == intervals.LOWER
  return HOLDS if is_inside else UNDECIDED


def num_needed(mean: float, std: float, bounds: Sequence[float]) -> int | None:
  """The fewest trials whose interval around `mean` reaches no bound; None if they exceed MAX_TRIALS.

  Args:
    std: standard deviation of the effect over trials.
  """
  distance = min(abs(mean - bound) for bound in bounds)
  for count in range(2, MAX_TRIALS + 1):
    if stdtrit(count - 1, 1 - intervals.TAIL) * std / math.sqrt(count) < distance:
      return count
  return None


def _bounds(claim: Claim) -> tuple[float, ...]:
  by_direction = {
    intervals.HIGHER: (claim.margin,),
    intervals.LOWER: (-claim.margin,),
    sweep_lib.EQUAL: (-claim.margin, claim.margin),
  }
  return by_direction[claim.direction]


def _finding(
  claim: Claim, panel: Panel, sweep: Sweep, results: Mapping[int, Mapping[str, Any]]
) -> Finding:
  pairs = _pairs(claim, panel, sweep, results)
  if not pairs:
    return Finding(claim, panel, None, 0, UNDECIDED, None)
  effect = intervals.paired(*zip(*pairs, strict=True))
  found, needed = verdict(claim, effect), None
  if found == UNDECIDED and not math.isnan(effect.low):
    half_of_one = stdtrit(len(pairs) - 1, 1 - intervals.TAIL) / math.sqrt(len(pairs))
    needed = num_needed(effect.mean, (effect.high - effect.mean) / half_of_one, _bounds(claim))
  return Finding(claim, panel, effect, len(pairs), found, needed)


def _pairs(
  claim: Claim, panel: Panel, sweep: Sweep, results: Mapping[int, Mapping[str, Any]]
) -> list[tuple[float, float]]:
  """The value at `first` and the value that `second` names, of each trial that has both."""
  by_trial = {
    (run.trial, run.point.key): results[run.index]
    for run in sweep_lib.expand(sweep)
    if run.index in results
  }
  pairs = []
  for trial in range(sweep.trials):
    first = by_trial.get((trial, claim.first))
    second = by_trial.get((trial, claim.second)) if isinstance(claim.second, tuple) else first
    measure = claim.second if isinstance(claim.second, str) else claim.measure
    (a,) = sweep_lib.values(panel, claim.measure, [first])
    (b,) = sweep_lib.values(panel, measure, [second])
    pair = (a, claim.second) if isinstance(claim.second, int | float) else (a, b)
    if None not in pair:
      pairs.append(pair)
  return pairs
