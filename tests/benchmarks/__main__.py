"""The cost of the stages over the bare step and forward pass: python -m tests.benchmarks [MODEL ...]

Every number is a ratio or a rate from this one run on this machine, the median of several repeats. Other
questions have benchmarks of their own, `python -m tests.benchmarks.NAME`: see the files beside this one.
"""

import argparse
import itertools

import jax
from rich.table import Table

from kdjax.runtime import progress
from tests.benchmarks import loop, timing


def main() -> None:
  parser = argparse.ArgumentParser(prog='python -m tests.benchmarks')
  parser.add_argument('models', nargs='*', help=f'of {", ".join(loop.SIZES)}; by default all')
  parser.add_argument('--works', nargs='+', choices=loop.WORKS, default=loop.WORKS)
  parser.add_argument('--repeats', type=int, default=timing.REPEATS)
  arguments = parser.parse_args()
  models = arguments.models or list(loop.SIZES)
  if unknown := sorted(set(models) - set(loop.SIZES)):
    parser.error(f'unknown models {unknown}; allowed: {list(loop.SIZES)}')
  progress.setup_logging()
  table = Table(title=f'On {jax.device_count()} x {jax.devices()[0].device_kind}')
  for heading in ('model', 'work', 'examples/s', 'bare, examples/s', 'time / bare'):
    table.add_column(heading, justify='left' if heading in ('model', 'work') else 'right')
  rows = list(itertools.product(models, arguments.works))
  with progress.bar('benchmarks', len(rows), 'rows') as show:
    for name, work in rows:
      row = loop.measured(name, work, arguments.repeats)
      speeds = (f'{x:,.0f}' for x in (row.examples_per_second, row.bare_examples_per_second))
      table.add_row(row.model, row.work, *speeds, f'{row.ratio:.3f}')
      show(table.row_count, f'{row.model}, {row.work}: {row.ratio:.3f}')
  progress.console.print(table)


if __name__ == '__main__':
  main()
