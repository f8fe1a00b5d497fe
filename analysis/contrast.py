"""Measures what differs between the students of two points of a sweep, over its trials.

    python launch.py --config=configs/paper/fig6b_lambda.py:small --sweep --workdir=DIR
    python -m analysis.contrast --config=configs/paper/fig6b_lambda.py:small --workdir=DIR \\
      --points='rate as configured, 0.5; rate as configured, 0.0' --out=docs/basins

A point is written 'SERIES, X', or 'X' if the sweep has one series. For the student of each point and trial, the
command runs the parts of `python -m analysis` that MEASURES need; none of them trains, and finished ones are skipped.
It writes OUT/measures.csv, with a row for each measure, point and trial, and figures of the first trial as
PART_PLACE.png. `--parts` names their parts. One that trains, such as forks, must be finished before for each student;
if forks is named, its measures are included for all trials.
"""

import argparse
import csv
import dataclasses
import io
import math
import sys
from collections.abc import Callable, Mapping, Sequence

from kdjax.runtime import xla_flags

xla_flags.set_flags()  # before JAX is imported

import numpy as np
from etils import epath

from kdjax import config as config_lib
from kdjax.config import sweep as sweep_lib
from kdjax.errors import ConfigError, MissingInputError, UserError
from kdjax.runtime import compiler, files, progress
from kdjax.stages.experiment import Experiment

from . import runner, runs
from .part import Arrays, Settings

FIELDS = ('measure', 'unit', 'point', 'trial', 'value')


@dataclasses.dataclass(frozen=True)
class Measure:
  """A number about one student."""

  text: str
  unit: str
  part: str  # of the analysis
  value: Callable[[Arrays], float]


def _fidelity(text: str, unit: str, key: str, factor: float = 1.0) -> Measure:
  """A measure of `trajectory` at the last checkpoint."""
  return Measure(text, unit, 'trajectory', lambda arrays: factor * arrays[key][-1])


def _distance(text: str, checkpoint: int) -> Measure:
  """The distance of a kept checkpoint to teacher 0, over all layers."""

  def value(arrays: Arrays) -> float:
    is_kept = checkpoint != 0 or arrays['steps'][0] == 0
    return arrays['distance/raw'][checkpoint, 0] if is_kept else math.nan

  return Measure(text, 'norm', 'trajectory', value)


def _barrier(text: str, unit: str, key: str, variant: str, factor: float = 1.0) -> Measure:
  """The barrier on the line from the student to teacher 0."""

  def value(arrays: Arrays) -> float:
    names = arrays['names'].tolist()
    ends = {names.index('student'), names.index('teacher 0')}
    (pair,) = (i for i, pair in enumerate(arrays['pairs'].tolist()) if set(pair) == ends)
    variants = arrays['variants'].tolist()
    if variant not in variants:  # of a model that cannot be aligned
      return math.nan
    return factor * arrays[key][pair, variants.index(variant)]

  return Measure(f'barrier to the teacher, {text}', unit, 'barriers', value)


def _curvature(text: str, unit: str, part: str, key: str) -> Measure:
  """A measure of the student's loss at the final student."""
  return Measure(text, unit, part, lambda arrays: arrays[f'student/distillation/{key}'].flat[0])


def _forks(text: str, unit: str, key: str, fraction: float) -> Measure:
  """A mean over pairs of the ends of continuations from a fraction of training, in percent."""

  def value(arrays: Arrays) -> float:
    (places,) = np.nonzero(abs(arrays['fractions'] - fraction) < NEAR)
    return 100 * arrays[key][places[0]] if len(places) else math.nan

  return Measure(f'{text}, continuations from {fraction:.0%}', unit, FORKS, value)


RAW, ALIGNED, FORKS = 'as they are', 'aligned', 'forks'
NEAR = 0.01  # a checkpoint is kept after a whole step, so its fraction of training is rounded
MEASURES = (
  _fidelity('agreement, distillation data', '%', 'distillation/top1_agreement', 100),
  _fidelity('agreement, test', '%', 'test/top1_agreement', 100),
  _fidelity('KL to the teacher, distillation data', 'nats', 'distillation/predictive_kl'),
  _distance('distance to the teacher, initial student', 0),
  _distance('distance to the teacher, final student', -1),
  _barrier('loss', 'nats', 'loss', RAW),
  _barrier('loss, aligned', 'nats', 'loss', ALIGNED),
  _barrier('test accuracy', 'points', 'error', RAW, 100),
  _barrier('test accuracy, aligned', 'points', 'error', ALIGNED, 100),
  _curvature('largest eigenvalue of the Hessian', 'nats', 'curvature', 'hessian/eigenvalues'),
  _curvature('sharpness', 'nats', 'curvature', 'sharpness'),
  _curvature('trace of the Hessian', 'nats', 'curvature_traces', 'hessian/trace'),
  _curvature('mismatch ‖H − G‖ / ‖G‖', '', 'curvature_traces', 'mismatch'),
  *(
    _forks(text, unit, key, fraction)
    for text, unit, key in (
      ('barrier of the test accuracy', 'points', 'barrier/test/accuracy'),
      ('agreement of two ends, test', '%', 'agreement'),
      ('mismatches that another end repeats, test', '%', 'repeated'),
    )
    for fraction in (0.0, 0.25)
  ),
)


def studies(
  spec: str, workdir: epath.Path, points: Sequence[str]
) -> dict[int, dict[str, runs.Study]]:
  """The students of the points by trial; trials without all of them are left out.

  Args:
    spec: FILE.py or FILE.py:ARGUMENT of a sweep.
    points: as in --points.

  Raises:
    ConfigError: the sweep has no such point.
    MissingInputError: no trial has all of the students.
  """
  sweep = config_lib.load_sweep(spec)
  configs, _ = config_lib.sweep_configs(spec, sweep, [])
  found: dict[int, dict[str, runs.Study]] = {}
  names = {run.index: _name(run.point) for run in sweep_lib.expand(sweep)}
  if unknown := [point for point in points if point not in names.values()]:
    allowed = '; '.join(dict.fromkeys(names.values()))
    raise ConfigError(
      *(f'--points: {point!r}: no such point; allowed: {allowed}' for point in unknown)
    )
  for run in sweep_lib.expand(sweep):
    folder = Experiment(configs[run.index], workdir).folders.student
    if names[run.index] in points and (folder / 'complete.json').exists():
      found.setdefault(run.trial, {})[names[run.index]] = runs.load(folder)
  complete = {
    trial: {point: of[point] for point in points}
    for trial, of in found.items()
    if len(of) == len(points)
  }
  if not complete:
    raise MissingInputError(
      f'{workdir}: no trial of {spec} has the students of {"; ".join(points)}. Run launch.py '
      f'--config={spec} --sweep --workdir={workdir} first.'
    )
  return complete


def _name(point: sweep_lib.Point) -> str:
  return ', '.join(filter(None, (point.series, f'{point.x}')))


def measure(
  study: runs.Study,
  settings: Settings,
  measures: Sequence[Measure] = MEASURES,
  figures: Sequence[str] = (),
) -> dict[Measure, float]:
  """The measures of one student; runs the unfinished ones of their parts and of `figures`."""
  parts = dict.fromkeys(of.part for of in measures)
  names = runner.prepare(study, settings, [*(parts | dict.fromkeys(figures))], runner.NONE)
  runner.run(study, settings, names)
  arrays = {part: files.read_arrays(study.folder / f'{part}.npz') for part in parts}
  return {of: float(of.value(arrays[of.part])) for of in measures}


def write(
  out: epath.Path,
  found: Mapping[int, Mapping[str, runs.Study]],
  settings: Settings,
  figures: Sequence[str],
) -> None:
  """Writes the measures of all students into a folder, and the figures of parts, of the first trial.

  Measures of continuations are left out unless `figures` names their part.
  """
  measures = [of for of in MEASURES if of.part != FORKS or FORKS in figures]
  out.mkdir(parents=True, exist_ok=True)
  text = io.StringIO()
  table = csv.writer(text, lineterminator='\n')
  table.writerow(FIELDS)
  for trial, by_point in found.items():
    for place, (point, study) in enumerate(by_point.items()):
      progress.logger.info('trial %s, %s', trial, point)
      drawn = figures if trial == min(found) else ()
      for of, value in measure(study, settings, measures, drawn).items():
        if not math.isnan(value):
          table.writerow([of.text, of.unit, point, trial, f'{value:.6g}'])
      for name in drawn:
        content = (study.folder / f'{name}.png').read_bytes()
        files.write_bytes(out / f'{name}_{place}.png', content)
  files.write_text(out / 'measures.csv', text.getvalue())


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
  parser.add_argument('--config', required=True, help='FILE.py:ARGUMENT of the sweep')
  parser.add_argument('--workdir', required=True, type=epath.Path, help='where the sweep ran')
  parser.add_argument(
    '--points', required=True, help="two points, such as 'SERIES, 0.5; SERIES, 0.0'"
  )
  parser.add_argument('--out', required=True, type=epath.Path, help='folder of the results')
  parser.add_argument('--parts', default='plane,barriers', help='whose figures are kept')
  parser.add_argument('--num_examples', type=int, default=Settings.num_examples)
  flags = parser.parse_args()
  progress.setup_logging()
  points = [point.strip() for point in flags.points.split(';')]
  try:
    compiler.require_right(insist=False)
    found = studies(flags.config, flags.workdir, points)
    write(flags.out, found, Settings(num_examples=flags.num_examples), flags.parts.split(','))
  except UserError as error:
    sys.exit(f'error: {error}')


if __name__ == '__main__':
  main()
