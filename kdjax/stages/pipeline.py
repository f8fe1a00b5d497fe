"""The stages and their order. Each reads what earlier ones wrote, and skips itself when it is done."""

import time
from collections.abc import Mapping, Sequence

from etils import epath
from ml_collections import ConfigDict

from kdjax import config as config_lib
from kdjax.errors import UserError
from kdjax.report import page as report
from kdjax.runtime import files, hosts, progress
from kdjax.stages import evaluation, gan, independent, predictions, student, teachers
from kdjax.stages.run import Run


def _report(run: Run) -> bool:
  evaluation.result(run)  # raises if there is none
  if not hosts.is_main():
    return False
  members = [run.member_folder(i) for i in range(run.config.teacher.num_members)]
  return report.write(
    run.workdir,
    run.student_folder,
    members,
    test=lambda: run.splits['test'],
    class_names=run.description.class_names,
    gan_folder=run.gan_folder if config_lib.needs_gan(run.config) else None,
  )


STAGES = {
  'teachers': teachers.run,
  'gan': gan.run,
  'predictions': predictions.run,
  'student': student.run,
  'independent': independent.run,
  'evaluation': evaluation.run,
  'report': _report,
}


# What raises MissingInputError if a stage's results are not there.
REQUIRED = {
  'teachers': teachers.require,
  'gan': gan.require,
  'predictions': predictions.require,
  'student': student.require,
  'independent': evaluation.require_independent,
  'evaluation': evaluation.result,
}


def problems(names: Sequence[str]) -> list[str]:
  """What is wrong with a --stages flag."""
  if not names:
    return [f'--stages: empty; allowed: any of {",".join(STAGES)}']
  return [
    f'--stages: {name!r}: no such stage; allowed: any of {",".join(STAGES)}'
    for name in names
    if name not in STAGES
  ]


def run(config: ConfigDict, workdir: epath.Path, names: Sequence[str]) -> Run:
  """Runs the named stages in their order; each has written its results when it returns."""
  this = Run(config, workdir)
  this.workdir.mkdir(parents=True, exist_ok=True)  # fails before any work is done
  files.require_shared(this.workdir)
  _require_between(this, names)
  for name, stage in STAGES.items():
    if name in names:
      start = time.monotonic()
      worked = stage(this)
      hosts.barrier()  # the next one reads what this one wrote
      took = f'done in {time.monotonic() - start:.0f} s' if worked else 'up to date'
      progress.logger.info('%s: %s', name, took)
  return this


def _require_between(run: Run, names: Sequence[str]) -> None:
  """What is left out between two stages must be there: told now, and not after the first of them."""
  places = [i for i, name in enumerate(STAGES) if name in names]
  online = run.config.predictions.mode == 'online'
  for name in list(STAGES)[places[0] : places[-1]]:
    needs_chosen = name == 'predictions' and online and 'teachers' in names
    if name not in names and not needs_chosen:
      REQUIRED[name](run)


COMPARING = ('independent', 'evaluation')


def run_sweep(configs: Mapping[int, ConfigDict], workdir: epath.Path, names: Sequence[str]) -> None:
  """Runs the named stages of every config. Any number of processes may do so in one workdir.

  A config is claimed by one process at a time; the others go on to the next, and come back to it when
  nothing else is left. All students come first, and then what compares them: by then the independent
  student of one is often another of the sweep. The report, one for the workdir, is of the last one.

  Args:
    configs: by the index of the run.

  Raises:
    UserError: some could not be run, for the reasons that it gives. All others are done.
  """
  workdir.mkdir(parents=True, exist_ok=True)
  failures: dict[int, str] = {}
  for phase in (
    [name for name in names if name not in (*COMPARING, 'report')],
    [name for name in names if name in COMPARING],
  ):
    waiting = [i for i in configs if phase and i not in failures]
    while waiting:
      busy = [i for i in waiting if not _run_claimed(configs, i, workdir, phase, failures)]
      if busy == waiting:
        first, *busy = waiting
        _run_claimed(configs, first, workdir, phase, failures, wait=True)
      waiting = busy
  done = [i for i in configs if i not in failures]
  if 'report' in names and done:
    try:
      run(configs[done[-1]], workdir, ['report'])
    except UserError as error:
      failures[done[-1]] = str(error)
  if failures:
    lines = [f'{len(failures)} of {len(configs)} runs of the sweep failed; the others are done:']
    raise UserError('\n  '.join(lines + [f'run {i}: {text}' for i, text in failures.items()]))


def _run_claimed(
  configs: Mapping[int, ConfigDict],
  index: int,
  workdir: epath.Path,
  names: Sequence[str],
  failures: dict[int, str],
  wait: bool = False,
) -> bool:
  """Runs stages of one config, unless another process is at it and we do not wait. Whether it did."""
  folder = Run(configs[index], workdir).student_folder
  with files.lock(folder.with_name(f'{folder.name}.claim'), wait) as claimed:
    if claimed:
      progress.logger.info('run %d (of %d)', index, len(configs))
      try:
        run(configs[index], workdir, names)
      except UserError as error:
        failures[index] = str(error)
        progress.logger.error('run %d failed: %s', index, error)
  return claimed
