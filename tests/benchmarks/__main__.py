"""What the stages cost over the bare step and forward pass: python -m tests.benchmarks

Every number is a ratio or a rate from this one run on this machine, the median of several repeats. Other
questions have benchmarks of their own, `python -m tests.benchmarks.NAME`: see the files beside this one.
"""

import jax
from rich.table import Table

from kdjax import progress
from tests.benchmarks import loop, timing


def main() -> None:
  progress.setup_logging()
  table = Table(title=f'On {jax.device_count()} x {jax.devices()[0].device_kind}')
  for heading in ('model', 'work', 'examples/s', 'bare, examples/s', 'time / bare'):
    table.add_column(heading, justify='left' if heading in ('model', 'work') else 'right')
  num_rows = 4 * len(loop.SIZES)
  with progress.bar('benchmarks', num_rows, 'rows') as show:
    for name, size in loop.SIZES.items():
      for row in loop.measured(name, size, timing.REPEATS):
        speeds = (f'{x:,.0f}' for x in (row.examples_per_second, row.bare_examples_per_second))
        table.add_row(row.model, row.work, *speeds, f'{row.ratio:.3f}')
        show(table.row_count, f'{row.model}, {row.work}: {row.ratio:.3f}')
  progress.console.print(table)


if __name__ == '__main__':
  main()
