"""Runs the stages of an experiment.

    python launch.py --config=configs/digits_resnet.py --config.student.temperature=1

Flags:
  --config=FILE.py[:ARGUMENT]   the experiment
  --config.FIELD=VALUE          overrides a field; configs/base.py explains them all
  --workdir=DIR                 where everything is written, gs:// too (default: runs/<config name>)
  --stages=A,B                  a subset of teachers,gan,predictions,student,independent,evaluation,report
  --sweep                       runs every point of the sweep that the experiment defines, and draws it;
                                several processes, and several sweeps, may do so in one workdir
  --sweep_index=I               runs one point of it, as for a job array
  --verify                      checks the stored predictions against the teachers, and runs no stage
  --allow_wrong_xla             runs though a probe finds that this XLA computes wrong results

On several hosts, the same command on each runs one experiment together, in a workdir that all see:
  --coordinator=auto            of a TPU pod, SLURM, Open MPI or Kubernetes, as jax.distributed finds it
  --coordinator=HOST:PORT       elsewhere: of process 0, with a free port, and
  --num_processes=N             how many processes there are in all, and
  --process_id=I                which one this is: 0 to N - 1, the only flag that differs
"""

import faulthandler
import os
import pathlib
import shlex
import sys
import traceback
from functools import partial
from typing import NoReturn

from kdjax.runtime import xla_flags

xla_flags.set_flags()

import jax
from absl import app, flags
from etils import epath

from kdjax import config as config_lib
from kdjax.config import validation
from kdjax.config.sweep import SweepRun
from kdjax.errors import ConfigError, UserError
from kdjax.report import sweep_page, tables
from kdjax.runtime import compiler, files, hosts, progress
from kdjax.stages import evaluation, pipeline, verification
from kdjax.stages.run import Run

DEFAULT_CONFIG = pathlib.Path(__file__).parent / 'configs' / 'digits_resnet.py'

_CONFIG = flags.DEFINE_string('config', str(DEFAULT_CONFIG), 'FILE.py or FILE.py:ARGUMENT.')
_WORKDIR = flags.DEFINE_string('workdir', None, 'Default: runs/<config name>.')
_STAGES = flags.DEFINE_list('stages', list(pipeline.STAGES), 'Which stages to run.')
_SWEEP = flags.DEFINE_bool('sweep', False, 'Run every point of the sweep.')
_SWEEP_INDEX = flags.DEFINE_integer('sweep_index', None, 'Run one point of the sweep.')
_VERIFY = flags.DEFINE_bool('verify', False, 'Check the stored predictions; run no stage.')
_ALLOW_WRONG_XLA = flags.DEFINE_bool('allow_wrong_xla', False, 'Run though XLA computes wrongly.')
_COORDINATOR = flags.DEFINE_string('coordinator', None, 'auto, or HOST:PORT of process 0.')
_NUM_PROCESSES = flags.DEFINE_integer('num_processes', None, 'That run together.')
_PROCESS_ID = flags.DEFINE_integer('process_id', None, 'Which of them this is.')

_overrides: list[tuple[str, str | None]] = []


def _parse_flags(argv: list[str]) -> list[str]:
  """Takes the --config.FIELD=VALUE out, so that all wrong ones can be told at once."""
  rest, arguments = [], list(argv)
  while arguments:
    argument = arguments.pop(0)
    if argument.startswith('--config.'):
      field, equals, value = argument.removeprefix('--config.').partition('=')
      if not equals:  # the value is the next argument, unless that is a flag
        value = arguments.pop(0) if arguments and not arguments[0].startswith('--') else None
      _overrides.append((field, value))
    else:
      rest.append(argument)
  return app.parse_flags_with_usage(rest)


def _workdir() -> epath.Path:
  name = config_lib.config_name(_CONFIG.value)
  workdir = _WORKDIR.value or f'runs/{name}'
  if not files.is_reachable(workdir):
    raise ConfigError([f'--workdir = {workdir!r}: {files.NEEDS_CLOUD}'])
  return epath.Path(workdir).expanduser()


def _run() -> None:
  modes = {'--sweep': _SWEEP.value, '--sweep_index': _SWEEP_INDEX.value is not None}
  given = [flag for flag, on in (modes | {'--verify': _VERIFY.value}).items() if on]
  if len(given) > 1:
    raise ConfigError([f'{" and ".join(given)}: allowed: one of them'])
  sweeps = [flag for flag, on in modes.items() if on]
  if sweeps and _COORDINATOR.value is not None:
    raise ConfigError(
      [
        f'{sweeps[0]} and --coordinator: allowed: one of them. Processes of a sweep that are started '
        'without --coordinator, one on each host, share its runs'
      ]
    )
  hosts.initialise(_COORDINATOR.value, _NUM_PROCESSES.value, _PROCESS_ID.value)
  if hosts.count() > 1:
    faulthandler.disable()  # JAX aborts a process that lost another, and says so; no trace after that
  if not hosts.is_main():
    progress.setup_logging(errors_only=True)
  compiler.require_right(insist=_ALLOW_WRONG_XLA.value)
  if _SWEEP.value or _SWEEP_INDEX.value is not None:
    _run_sweep(pipeline.problems(_STAGES.value))
    return
  config, problems = config_lib.load(_CONFIG.value, _overrides)
  if hosts.count() > 1:
    hosts.require_same(
      f'{config} {problems} {_workdir()} {_STAGES.value} {_VERIFY.value}',
      '--config, --workdir, --stages or --verify',
    )
  check = partial(
    validation.check, config, jax.device_count(), problems + pipeline.problems(_STAGES.value)
  )
  hosts.decide(lambda: check() is None)  # which prepares the data, once
  if not hosts.is_main():
    check(prepare=False)
  if _VERIFY.value:
    progress.console.print(verification.verify(Run(config, _workdir())))
    return
  run = pipeline.run(config, _workdir(), _STAGES.value)
  if 'report' in _STAGES.value:
    progress.console.print(*tables.terminal(evaluation.result(run)))
    progress.console.print(f'report: {run.workdir / "report.html"}', soft_wrap=True)


def _run_sweep(problems: list[str]) -> None:
  sweep = config_lib.load_sweep(_CONFIG.value)
  configs, wrong = config_lib.sweep_configs(_CONFIG.value, sweep, _overrides)
  chosen, index = dict(enumerate(configs)), _SWEEP_INDEX.value
  if index is not None:
    if index not in chosen:
      wrong.append(f'--sweep_index = {index}: allowed: 0 to {len(configs) - 1}')
    chosen = {index: chosen.get(index)}
  validation.check_sweep(configs, jax.device_count(), problems + wrong)
  workdir, name = _workdir(), config_lib.config_name(_CONFIG.value)
  try:
    pipeline.run_sweep(chosen, workdir, _STAGES.value)
  finally:  # what is done is shown, whatever failed
    results = evaluation.results(configs, workdir)
    paths = sweep_page.write(workdir, name, sweep, results, command=_command_of)
    progress.console.print(*sweep_page.terminal_tables(sweep, results))
    progress.console.print('\n'.join(map(str, paths)), soft_wrap=True)


def _command_of(run: SweepRun) -> str:
  """The command that runs one point of the sweep."""
  overrides = [f'--config.{field}={value}' for field, value in _overrides]
  flags = [f'--config={_CONFIG.value}', f'--workdir={_workdir()}', *overrides]
  return shlex.join(['python', 'launch.py', *flags, f'--sweep_index={run.index}'])


def main(argv: list[str]) -> None:
  if len(argv) > 1:
    raise app.UsageError(f'unknown arguments: {" ".join(argv[1:])}')
  progress.setup_logging()
  _quiet_closed_loop()
  try:
    _run()
  except UserError as error:
    if hosts.is_known_to_all(error):
      sys.exit(f'error: {error}')
    _stop(f'error: {error}')
  except OSError as error:  # a full disk, a folder that cannot be written
    _stop(f'error: {error}. Mend that; the same command goes on where it was')
  except KeyboardInterrupt:
    _stop('interrupted; the same command goes on where it was')
  except Exception as error:
    if hosts.count() == 1:
      raise
    if not hosts.is_loss(error):
      _stop(traceback.format_exc())
    _stop(
      f'error: process {hosts.index()} of {hosts.count()} has lost another, which has ended: what that '
      f'one said tells why. The same command on all hosts goes on where it was. ({error})'
    )


def _quiet_closed_loop() -> None:
  """A failed write is told in one line; those that Orbax leaves under way behind it say nothing more."""
  sys.unraisablehook = lambda args: (
    None if str(args.exc_value) == 'Event loop is closed' else sys.__unraisablehook__(args)
  )


def _stop(message: str) -> NoReturn:
  """Ends this process, and with it the others, for which it does not wait."""
  if hosts.count() == 1:
    sys.exit(message)
  print(message, file=sys.stderr, flush=True)
  sys.stdout.flush()
  os._exit(1)


if __name__ == '__main__':
  app.run(main, flags_parser=_parse_flags)
