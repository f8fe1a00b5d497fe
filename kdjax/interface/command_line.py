"""The entry of the command line, which `launch.py` and the command `kdjax` call.

Importing JAX takes seconds, so the flags are read and the first line is logged before.
"""

import signal

from absl import app

from kdjax import __version__
from kdjax.interface import flags
from kdjax.runtime import progress, xla_flags


def main(argv: list[str]) -> None:
  """Logs the first line, sets XLA's flags and runs the command of the flags."""
  if len(argv) > 1:
    raise app.UsageError(f'unknown arguments: {" ".join(argv[1:])}')
  progress.setup_logging()
  if not flags.PROCESS_ID.value:
    progress.logger.info('kdjax %s: %s', __version__, flags.CONFIG.value)
  xla_flags.set_flags()  # before JAX is imported
  signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C shows no traceback of an import
  from kdjax.interface import commands

  signal.signal(signal.SIGINT, signal.default_int_handler)
  commands.main()


def run() -> None:
  """Runs the command line."""
  app.run(main, flags_parser=flags.parse_flags)
