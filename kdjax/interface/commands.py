"""The commands of the command line: an experiment, a sweep, a list, a check."""

import faulthandler
import os
import shlex
import sys
import traceback
from collections.abc import Mapping
from functools import partial
from typing import Any, NoReturn

import jax
from etils import epath
from rich.table import Table

from kdjax import config as config_lib
from kdjax.config import sweep as sweep_lib
from kdjax.config import validation
from kdjax.config.sweep import Sweep, SweepRun
from kdjax.errors import ConfigError, UserError
from kdjax.interface import flags
from kdjax.report import index as report_index
from kdjax.report import sweep_page, tables
from kdjax.runtime import compiler, files, hosts, progress
from kdjax.stages import evaluation, pipeline, report, verification
from kdjax.stages.experiment import Experiment
from kdjax.train import trackers

INTERRUPTED = 130  # the exit status after Ctrl-C: 128 + SIGINT


def _workdir() -> epath.Path:
  name = config_lib.config_name(flags.CONFIG.value)
  workdir = flags.WORKDIR.value or f'runs/{name}'
  if not files.is_reachable(workdir):
    raise ConfigError(f'--workdir = {workdir!r}: {files.NEEDS_CLOUD}')
  return epath.Path(workdir).expanduser()


def _run() -> None:
  is_one, is_list = flags.SWEEP_INDEX.value is not None, flags.LIST.value
  modes = {
    '--sweep': flags.SWEEP.value or (flags.SWEPT and not is_one and not is_list),
    '--sweep_index': is_one,
    '--list': is_list,
    '--verify': flags.VERIFY.value,
  }
  given = [flag for flag, is_given in modes.items() if is_given]
  if len(given) > 1:
    raise ConfigError(f'{" and ".join(given)}: allowed: one of them')
  sweeps = [flag for flag in given if flag != '--verify']
  if sweeps and flags.COORDINATOR.value is not None:
    raise ConfigError(
      f'{sweeps[0]} and --coordinator: allowed: one of them. Without --coordinator, a process on each host '
      'takes its share of the runs'
    )
  hosts.initialise(flags.COORDINATOR.value, flags.NUM_PROCESSES.value, flags.PROCESS_ID.value)
  if hosts.count() > 1:
    faulthandler.disable()  # no trace when JAX aborts a process that lost a peer; there is a message
  if not hosts.is_main():
    progress.setup_logging(errors_only=True)
  compiler.require_right(insist=flags.ALLOW_WRONG_XLA.value)
  if sweeps:
    _run_sweep(_flag_problems())
    return
  config, problems = config_lib.load(flags.CONFIG.value, flags.OVERRIDES)
  if hosts.count() > 1:
    hosts.require_same(
      f'{config} {problems} {_workdir()} {flags.STAGES.value} {flags.TRACKERS.value} {flags.VERIFY.value}',
      '--config, --workdir, --stages, --trackers or --verify',
    )
  check = partial(validation.check, config, jax.device_count(), problems + _flag_problems())
  hosts.decide(lambda: check() is None)  # prepares the data once
  if not hosts.is_main():
    check(prepare=False)
  if flags.VERIFY.value:
    progress.console.print(verification.verify(Experiment(config, _workdir())))
    return
  run = pipeline.run(config, _workdir(), flags.STAGES.value, flags.TRACKERS.value)
  if 'report' in flags.STAGES.value:
    progress.console.print(*tables.terminal(evaluation.result(run)))
    progress.console.print(f'report: {report.path(run)}', soft_wrap=True)
    progress.console.print(f'all students: {run.workdir / report_index.NAME}', soft_wrap=True)


def _flag_problems() -> list[str]:
  """The problems of --stages and --trackers, one line each. Only the main host needs a tracker's package."""
  of_trackers = trackers.problems(flags.TRACKERS.value, '--trackers') if hosts.is_main() else []
  return pipeline.problems(flags.STAGES.value) + of_trackers


def _run_sweep(problems: list[str]) -> None:
  name = config_lib.config_name(flags.CONFIG.value)
  if flags.SWEPT:
    sweep, more = config_lib.sweep_from_flags(name, flags.SWEPT)
    problems = problems + more
    name = '_'.join([name, *(config_lib.short_name(field) for field, _ in flags.SWEPT)])
  else:
    sweep = config_lib.load_sweep(flags.CONFIG.value)
  configs, wrong = config_lib.sweep_configs(flags.CONFIG.value, sweep, flags.OVERRIDES)
  chosen, index = dict(enumerate(configs)), flags.SWEEP_INDEX.value
  if index is not None:
    if index not in chosen:
      wrong.append(f'--sweep_index = {index}: allowed: 0 to {len(configs) - 1}')
    chosen = {index: chosen.get(index)}
  if flags.LIST.value:
    if problems + wrong:
      raise ConfigError(*problems, *wrong)
    progress.console.print(_listed(sweep, evaluation.results(configs, _workdir())))
    return
  validation.check_sweep(configs, jax.device_count(), problems + wrong)
  workdir = _workdir()
  try:
    titles = {run.index: _fields(run) for run in sweep_lib.expand(sweep)}
    pipeline.run_sweep(chosen, workdir, flags.STAGES.value, titles, flags.TRACKERS.value)
  finally:  # after a failure, too, the finished runs are shown
    results = evaluation.results(configs, workdir)
    paths = sweep_page.write(workdir, name, sweep, results, command=_command_of)
    paths += [path for path in [workdir / report_index.NAME] if path.exists()]
    progress.console.print(*sweep_page.terminal_tables(sweep, results))
    progress.console.print('\n'.join(map(str, paths)), soft_wrap=True)


def _listed(sweep: Sweep, results: Mapping[int, Any]) -> Table:
  """A table of the runs of the sweep: fields, and whether they are done."""
  runs = sweep_lib.expand(sweep)
  title = f'{len(results)} of {len(runs)} runs are done'
  table = Table('run', 'fields', 'done', title=title, title_justify='left')
  for run in runs:
    table.add_row(str(run.index), _fields(run), 'yes' if run.index in results else '')
  return table


def _fields(run: SweepRun) -> str:
  return ', '.join(f'{field}={value}' for field, value in run.fields.items())


def _command_of(run: SweepRun) -> str:
  """The shell command of a run of the sweep."""
  given = [f'--config={flags.CONFIG.value}', f'--workdir={_workdir()}']
  given += [f'--config.{field}={value}' for field, value in flags.OVERRIDES]
  given += [f'--sweep.{field}={values}' for field, values in flags.SWEPT]
  return shlex.join(['python', 'launch.py', *given, f'--sweep_index={run.index}'])


def main() -> None:
  """Runs the command of the flags. On failure, ends the process with one clear error."""
  _quiet_closed_loop()
  try:
    _run()
  except UserError as error:
    if hosts.is_known_to_all(error):
      sys.exit(f'error: {error}')
    _stop(f'error: {error}')
  except OSError as error:  # a full disk, a folder that cannot be written
    _stop(f'error: {error}. Fix that and run the same command again: it resumes')
  except KeyboardInterrupt:
    _stop('interrupted; the same command resumes', INTERRUPTED)
  except Exception as error:
    if hosts.count() == 1:
      raise
    if not hosts.is_loss(error):
      _stop(traceback.format_exc())
    _stop(
      f'error: process {hosts.index()} of {hosts.count()} lost another process, which ended; its output has '
      f'the cause. The same command on all hosts resumes. ({error})'
    )


def _quiet_closed_loop() -> None:
  """Hides the tracebacks of writes that Orbax leaves unfinished after a failed one, which has its own message."""
  sys.unraisablehook = lambda args: (
    None if str(args.exc_value) == 'Event loop is closed' else sys.__unraisablehook__(args)
  )


def _stop(message: str, status: int = 1) -> NoReturn:
  """Prints a message and ends this process without waiting for other hosts, which then end, too."""
  print(message, file=sys.stderr, flush=True)
  if hosts.count() == 1:
    sys.exit(status)
  sys.stdout.flush()
  os._exit(status)
