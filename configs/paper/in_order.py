"""Trains the most valuable runs of sweeps first, and writes results after each run.

    python -m configs.paper.in_order --workdir=DIR        # a GPU: Figure 6b, then Figure 3, in full; not run
    python -m configs.paper.in_order --workdir=DIR configs/paper/anchor.py    # two CPU cores, 6 hours (projected)

Sweeps come in the given order. In a sweep, the first trial of all points comes before the second, and the points of
a claim before those of later claims: Figure 6b begins with λ = 0.5 and 0. After each run, the results of its sweep
are written to DIR/results, as by `python -m configs.paper.results`. The same command resumes an interrupted run and
skips finished ones. `--config.FIELD=VALUE` overrides a field of every run.
"""

import argparse
import sys
from collections.abc import Sequence

from kdjax.runtime import xla_flags

xla_flags.set_flags()  # before JAX is imported

import jax
from etils import epath

from kdjax import config as config_lib
from kdjax.config import sweep as sweep_lib
from kdjax.config import validation
from kdjax.config.sweep import Sweep, SweepRun
from kdjax.errors import UserError
from kdjax.runtime import compiler, progress
from kdjax.stages import pipeline

from . import results

FULL = ('configs/paper/fig6b_lambda.py', 'configs/paper/fig3_data.py')
STAGES = [name for name in pipeline.STAGES if name != 'report']


def ordered(sweep: Sweep) -> list[SweepRun]:
  """The runs of a sweep, sorted by trial, then by the first claim about their point, then by index."""
  ranks: dict[sweep_lib.Key, int] = {}
  for claim in sweep.claims:
    for key in (claim.first, claim.second):
      if isinstance(key, tuple):
        ranks.setdefault(key, len(ranks))
  last = len(ranks)
  return sorted(
    sweep_lib.expand(sweep), key=lambda run: (run.trial, ranks.get(run.point.key, last), run.index)
  )


def run(specs: Sequence[str], workdir: epath.Path, overrides: Sequence[tuple[str, str]]) -> None:
  """Trains and evaluates every run of the sweeps, and writes the results after each.

  Raises:
    UserError: a sweep or a field is wrong, and nothing was trained; or a run failed.
  """
  plan = []
  for spec in specs:
    sweep = config_lib.load_sweep(spec)
    configs, problems = config_lib.sweep_configs(spec, sweep, overrides)
    validation.check_sweep(configs, jax.device_count(), problems)
    plan += [(spec, one, configs[one.index]) for one in ordered(sweep)]
  for place, (spec, one, config) in enumerate(plan, 1):
    progress.logger.info('%d of %d: run %d of %s', place, len(plan), one.index, spec)
    pipeline.run_sweep({one.index: config}, workdir, STAGES)
    results.collect(spec, workdir, workdir / 'results', results.environment(), overrides)


def main(arguments: Sequence[str] | None = None) -> None:
  parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
  parser.add_argument('specs', nargs='*', default=FULL, help='FILE.py[:ARGUMENT] of sweeps')
  parser.add_argument(
    '--workdir', type=epath.Path, required=True, help='where everything is written'
  )
  flags, rest = parser.parse_known_args(arguments)
  overrides = []
  for argument in rest:
    field, equals, value = argument.partition('=')
    if not (field.startswith('--config.') and equals):
      parser.error(f'unknown argument {argument!r}; overrides are written --config.FIELD=VALUE')
    overrides.append((field.removeprefix('--config.'), value))
  progress.setup_logging()
  compiler.require_right(insist=False)
  try:
    run(flags.specs, flags.workdir, overrides)
  except UserError as error:
    sys.exit(f'error: {error}')


if __name__ == '__main__':
  main()
