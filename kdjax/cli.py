"""The command line: runs the stages of an experiment. `launch.py` and the command `kdjax` call it."""

HELP = """\
Usage: python launch.py [--config=EXPERIMENT] [--config.FIELD=VALUE ...] [FLAGS]

What to run
  --config=FILE.py[:ARGUMENT]   the experiment, or NAME[.py:ARGUMENT] of one listed below (default: digits_resnet)
  --config.FIELD=VALUE          overrides a field
  --help_config                 prints every field with its default and its meaning
  --workdir=DIR                 where everything is written, on gs:// too (default: runs/<config name>)
  --stages=A,B                  a subset of {stages}
  --trackers=A,B                sends trainings and results to any of {trackers}, besides TensorBoard
  --verify                      checks the stored predictions against the teachers, and runs no stage

Sweeps
  --sweep                       runs every point of the sweep that the experiment defines, and draws it;
                                several processes, and several sweeps, may share one workdir
  --sweep.FIELD=V1,V2,...       runs the experiment once for each value of a field; with several of these
                                flags, once for each combination
  --sweep_index=I               runs one point of the sweep, for a job array
  --list                        prints the points of the sweep, and which are done; runs nothing

Several hosts (the same command on each, in a workdir that all see)
  --coordinator=auto            on a TPU pod, SLURM, Open MPI or Kubernetes
  --coordinator=HOST:PORT       elsewhere: a free port of process 0
  --num_processes=N             the number of processes
  --process_id=I                the number of this process, 0 to N - 1: the only flag that differs

Other
  --allow_wrong_xla             runs although a probe finds that this XLA computes wrong results
  --help                        prints this text
"""

import ast
import faulthandler
import os
import pathlib
import shlex
import sys
import traceback
from collections.abc import Mapping
from functools import partial
from typing import Any, NoReturn

from kdjax.runtime import xla_flags

xla_flags.set_flags()  # before JAX is imported

import jax
from absl import app, flags
from etils import epath
from rich.table import Table

from kdjax import config as config_lib
from kdjax.config import base, validation
from kdjax.config import sweep as sweep_lib
from kdjax.config.ad_hoc import from_flags
from kdjax.config.described import described
from kdjax.config.loading import EXPERIMENTS
from kdjax.config.sweep import Sweep, SweepRun
from kdjax.errors import ConfigError, UserError
from kdjax.report import index as report_index
from kdjax.report import sweep_page, tables
from kdjax.runtime import compiler, files, hosts, progress
from kdjax.stages import evaluation, pipeline, report, verification
from kdjax.stages.experiment import Experiment
from kdjax.train import trackers

DEFAULT_CONFIG, BASE = EXPERIMENTS / 'digits_resnet.py', pathlib.Path(base.__file__)

_CONFIG = flags.DEFINE_string('config', str(DEFAULT_CONFIG), 'FILE.py or FILE.py:ARGUMENT.')
_WORKDIR = flags.DEFINE_string('workdir', None, 'Default: runs/<config name>.')
_STAGES = flags.DEFINE_list('stages', list(pipeline.STAGES), 'Which stages to run.')
_TRACKERS = flags.DEFINE_list('trackers', [], 'Which trackers take trainings and results.')
_SWEEP = flags.DEFINE_bool('sweep', False, 'Run every point of the sweep.')
_LIST = flags.DEFINE_bool('list', False, 'Print the points of the sweep; run nothing.')
_SWEEP_INDEX = flags.DEFINE_integer('sweep_index', None, 'Run one point of the sweep.')
_VERIFY = flags.DEFINE_bool('verify', False, 'Check the stored predictions; run no stage.')
_ALLOW_WRONG_XLA = flags.DEFINE_bool('allow_wrong_xla', False, 'Run though XLA computes wrongly.')
_COORDINATOR = flags.DEFINE_string('coordinator', None, 'auto, or HOST:PORT of process 0.')
_NUM_PROCESSES = flags.DEFINE_integer('num_processes', None, 'That run together.')
_PROCESS_ID = flags.DEFINE_integer('process_id', None, 'Which of them this is.')

INTERRUPTED = 130  # the exit status after Ctrl-C: 128 + SIGINT

_overrides: list[tuple[str, str | None]] = []
_swept: list[tuple[str, str | None]] = []  # the --sweep.FIELD=VALUES


def _parse_flags(argv: list[str]) -> list[str]:
  """Parses all flags. --config.FIELD and --sweep.FIELD are kept as text, so all wrong ones are reported at once."""
  rest, arguments = [], list(argv)
  if {'--help', '-h', '-help'} & set(arguments):
    print(help_text())
    sys.exit(0)
  if '--help_config' in arguments:
    print(described(base.get_config(), BASE))
    sys.exit(0)
  while arguments:
    argument = arguments.pop(0)
    for prefix, found in (('--config.', _overrides), ('--sweep.', _swept)):
      if argument.startswith(prefix):
        field, equals, value = argument.removeprefix(prefix).partition('=')
        if not equals:  # the value is the next argument, unless that is a flag
          value = arguments.pop(0) if arguments and not arguments[0].startswith('--') else None
        found.append((field, value))
        break
    else:
      rest.append(argument)
  return app.parse_flags_with_usage(rest)


def help_text() -> str:
  """The flags, and the experiments with the first sentence of their docstrings."""
  lines = [
    HELP.format(stages=','.join(pipeline.STAGES), trackers=','.join(trackers.TRACKERS)),
    'Experiments',
  ]
  for path in sorted(EXPERIMENTS.rglob('*.py')):
    tree = ast.parse(path.read_text())
    if any(isinstance(node, ast.FunctionDef) and node.name == 'get_config' for node in tree.body):
      about = (ast.get_docstring(tree) or '').partition('\n')[0]
      lines.append(f'  {path.relative_to(EXPERIMENTS).with_suffix("").as_posix():<30} {about}')
  return '\n'.join(lines)


def _workdir() -> epath.Path:
  name = config_lib.config_name(_CONFIG.value)
  workdir = _WORKDIR.value or f'runs/{name}'
  if not files.is_reachable(workdir):
    raise ConfigError([f'--workdir = {workdir!r}: {files.NEEDS_CLOUD}'])
  return epath.Path(workdir).expanduser()


def _run() -> None:
  modes = {
    '--sweep': _SWEEP.value,
    '--sweep_index': _SWEEP_INDEX.value is not None,
    '--list': _LIST.value,
  }
  given = [flag for flag, on in (modes | {'--verify': _VERIFY.value}).items() if on]
  if _swept and not given:
    given = ['--sweep']
    modes['--sweep'] = True
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
  if sweeps:
    _run_sweep(_flag_problems())
    return
  config, problems = config_lib.load(_CONFIG.value, _overrides)
  if hosts.count() > 1:
    hosts.require_same(
      f'{config} {problems} {_workdir()} {_STAGES.value} {_TRACKERS.value} {_VERIFY.value}',
      '--config, --workdir, --stages, --trackers or --verify',
    )
  check = partial(validation.check, config, jax.device_count(), problems + _flag_problems())
  hosts.decide(lambda: check() is None)  # which prepares the data, once
  if not hosts.is_main():
    check(prepare=False)
  if _VERIFY.value:
    progress.console.print(verification.verify(Experiment(config, _workdir())))
    return
  run = pipeline.run(config, _workdir(), _STAGES.value, _TRACKERS.value)
  if 'report' in _STAGES.value:
    progress.console.print(*tables.terminal(evaluation.result(run)))
    progress.console.print(f'report: {report.path(run)}', soft_wrap=True)
    progress.console.print(f'all students: {run.workdir / report_index.NAME}', soft_wrap=True)


def _flag_problems() -> list[str]:
  """The problems of --stages and --trackers, one line each. Only the main host needs a tracker's package."""
  of_trackers = trackers.problems(_TRACKERS.value, '--trackers') if hosts.is_main() else []
  return pipeline.problems(_STAGES.value) + of_trackers


def _run_sweep(problems: list[str]) -> None:
  name = config_lib.config_name(_CONFIG.value)
  if _swept:
    sweep, more = from_flags(name, _swept)
    problems = problems + more
    name = '_'.join([name, *(field.rpartition('.')[2] for field, _ in _swept)])
  else:
    sweep = config_lib.load_sweep(_CONFIG.value)
  configs, wrong = config_lib.sweep_configs(_CONFIG.value, sweep, _overrides)
  chosen, index = dict(enumerate(configs)), _SWEEP_INDEX.value
  if index is not None:
    if index not in chosen:
      wrong.append(f'--sweep_index = {index}: allowed: 0 to {len(configs) - 1}')
    chosen = {index: chosen.get(index)}
  if _LIST.value:
    if problems + wrong:
      raise ConfigError(problems + wrong)
    progress.console.print(_listed(sweep, evaluation.results(configs, _workdir())))
    return
  validation.check_sweep(configs, jax.device_count(), problems + wrong)
  workdir = _workdir()
  try:
    titles = {run.index: _fields(run) for run in sweep_lib.expand(sweep)}
    pipeline.run_sweep(chosen, workdir, _STAGES.value, titles, _TRACKERS.value)
  finally:  # what is done is shown, whatever failed
    results = evaluation.results(configs, workdir)
    paths = sweep_page.write(workdir, name, sweep, results, command=_command_of)
    paths += [path for path in [workdir / report_index.NAME] if path.exists()]
    progress.console.print(*sweep_page.terminal_tables(sweep, results))
    progress.console.print('\n'.join(map(str, paths)), soft_wrap=True)


def _listed(sweep: Sweep, results: Mapping[int, Any]) -> Table:
  """The runs of the sweep with their fields, and which are done."""
  runs = sweep_lib.expand(sweep)
  table = Table(title=f'{len(results)} of {len(runs)} runs are done', title_justify='left')
  for heading in ('run', 'fields', 'done'):
    table.add_column(heading)
  for run in runs:
    table.add_row(str(run.index), _fields(run), 'yes' if run.index in results else '')
  return table


def _fields(run: SweepRun) -> str:
  return ', '.join(f'{field}={value}' for field, value in run.fields.items())


def _command_of(run: SweepRun) -> str:
  """The command that runs one point of the sweep."""
  overrides = [f'--config.{field}={value}' for field, value in _overrides]
  swept = [f'--sweep.{field}={values}' for field, values in _swept]
  flags = [f'--config={_CONFIG.value}', f'--workdir={_workdir()}', *overrides, *swept]
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
    _stop(f'error: {error}. Fix that and run the same command again: it resumes')
  except KeyboardInterrupt:
    _stop('interrupted; the same command resumes', INTERRUPTED)
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


def _stop(message: str, status: int = 1) -> NoReturn:
  """Prints a message and ends this process. It does not wait for other hosts, which end with it."""
  print(message, file=sys.stderr, flush=True)
  if hosts.count() == 1:
    sys.exit(status)
  sys.stdout.flush()
  os._exit(status)


def run() -> None:
  """Runs the command line."""
  app.run(main, flags_parser=_parse_flags)


if __name__ == '__main__':
  run()
