"""Runs the stages of an experiment.

    python launch.py --config=configs/digits_resnet.py --config.student.temperature=1

Flags:
  --config=FILE.py[:ARGUMENT]   the experiment
  --config.FIELD=VALUE          overrides a field; configs/base.py explains them all
  --workdir=DIR                 where everything is written, gs:// too (default: runs/<config name>)
  --stages=A,B                  a subset of teachers,predictions,student,evaluation,report
  --verify                      checks the stored predictions against the teachers, and runs no stage
"""

import os
import pathlib
import sys

# Before JAX is imported: the same config gives the same bits on a GPU too.
os.environ['XLA_FLAGS'] = f'{os.environ.get("XLA_FLAGS", "")} --xla_gpu_deterministic_ops=true'

import jax
from absl import app, flags
from etils import epath

from kdjax import config as config_lib
from kdjax import evaluation, predictions, progress, report, stages, validation
from kdjax.errors import UserError
from kdjax.run import Run

DEFAULT_CONFIG = pathlib.Path(__file__).parent / 'configs' / 'digits_resnet.py'

_CONFIG = flags.DEFINE_string('config', str(DEFAULT_CONFIG), 'FILE.py or FILE.py:ARGUMENT.')
_WORKDIR = flags.DEFINE_string('workdir', None, 'Default: runs/<config name>.')
_STAGES = flags.DEFINE_list('stages', list(stages.STAGES), 'Which stages to run.')
_VERIFY = flags.DEFINE_bool('verify', False, 'Check the stored predictions; run no stage.')

_overrides: list[tuple[str, str | None]] = []


def _parse_flags(argv: list[str]) -> list[str]:
  """Takes the --config.FIELD=VALUE out, so that all wrong ones can be told at once."""
  rest, arguments = [], iter(argv)
  for argument in arguments:
    if argument.startswith('--config.'):
      field, equals, value = argument.removeprefix('--config.').partition('=')
      _overrides.append((field, value if equals else next(arguments, None)))
    else:
      rest.append(argument)
  return app.parse_flags_with_usage(rest)


def _run() -> None:
  config, problems = config_lib.load(_CONFIG.value, _overrides)
  validation.check(config, jax.local_device_count(), problems + stages.problems(_STAGES.value))
  workdir = epath.Path(_WORKDIR.value or f'runs/{config_lib.config_name(_CONFIG.value)}')
  if _VERIFY.value:
    progress.console.print(predictions.verify(Run(config, workdir)))
    return
  run = stages.run(config, workdir, _STAGES.value)
  if 'report' in _STAGES.value:
    progress.console.print(report.terminal_table(evaluation.result(run)))
    progress.console.print(f'report: {run.workdir / "report.html"}', soft_wrap=True)


def main(argv: list[str]) -> None:
  if len(argv) > 1:
    raise app.UsageError(f'unknown arguments: {" ".join(argv[1:])}')
  progress.setup_logging()
  try:
    _run()
  except (UserError, OSError) as error:  # OSError: a full disk, a folder that cannot be written
    sys.exit(f'error: {error}')
  except KeyboardInterrupt:
    sys.exit('interrupted; the same command goes on where it was')


if __name__ == '__main__':
  app.run(main, flags_parser=_parse_flags)
