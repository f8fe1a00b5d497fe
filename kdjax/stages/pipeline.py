"""The stages in order. Each reads what earlier stages wrote, and skips what is complete."""

from collections.abc import Mapping, Sequence

from etils import epath
from ml_collections import ConfigDict

from kdjax.errors import UserError
from kdjax.runtime import files, progress
from kdjax.stages import evaluation, gan, independent, predictions, report, student, teachers
from kdjax.stages.experiment import Experiment
from kdjax.stages.stage import Stage, claimed, in_turn

STAGES: dict[str, Stage] = {
  module.STAGE.name: module.STAGE
  for module in (teachers, gan, predictions, student, independent, evaluation, report)
}
# The stages that compare students and report on them.
COMPARING = ('independent', 'evaluation', 'report')


def problems(names: Sequence[str]) -> list[str]:
  """The problems of a --stages flag, one line each."""
  if not names:
    return [f'--stages: empty; allowed: any of {",".join(STAGES)}']
  return [
    f'--stages: {name!r}: no such stage; allowed: any of {",".join(STAGES)}'
    for name in names
    if name not in STAGES
  ]


def run(
  config: ConfigDict,
  workdir: epath.Path,
  names: Sequence[str],
  trackers: Sequence[str] = (),
  title: str = '',
  wait: bool = True,
) -> Experiment | None:
  """Runs the named stages in their order; each has written its results when it returns.

  Args:
    trackers: names of trackers that trainings and results are sent to.
    title: the student's name in them.
    wait: whether to wait for what other processes are making.

  Returns: the experiment; None if a stage was left to another process, and what follows was not run.
  """
  experiment = Experiment(config, workdir, tracked_by=trackers, title=title)
  experiment.workdir.mkdir(parents=True, exist_ok=True)  # fails before any work is done
  files.require_shared(experiment.workdir)
  chosen = [stage for name, stage in STAGES.items() if name in names]
  for stage in chosen:
    _require_left_out(stage, experiment, names)
  is_complete = all(stage.run(experiment, wait) is not None for stage in chosen)
  return experiment if is_complete else None


def _require_left_out(stage: Stage, experiment: Experiment, names: Sequence[str]) -> None:
  """Raises MissingInputError before any stage runs if results of stages that are left out are missing."""
  left_out = [other for other in stage.requires(experiment) if other.name not in names]
  if left_out and not stage.is_complete(experiment):
    for other in left_out:
      other.require(experiment)


def run_sweep(
  configs: Mapping[int, ConfigDict],
  workdir: epath.Path,
  names: Sequence[str],
  titles: Mapping[int, str] | None = None,
  trackers: Sequence[str] = (),
) -> None:
  """Runs the named stages of every config. Any number of processes may do so in one workdir.

  One process at a time claims a config; the others take the next, and return to it when nothing else is
  left. So they do with a config whose teachers another process is training. All students come before the
  stages that compare them, since the independent student of one run is often the student of another.

  Args:
    configs: by the index of the run.
    titles: a few words about each run, for the log, and the name of its student in trackers.
    trackers: names of trackers that trainings and results are sent to.

  Raises:
    UserError: some runs failed, for the reasons in the message. All others are done.
  """
  workdir.mkdir(parents=True, exist_ok=True)
  failures: dict[int, UserError] = {}

  def work(index: int, wait: bool) -> bool:
    place, title = list(configs).index(index) + 1, (titles or {}).get(index, '')
    progress.logger.info('run %d, %d of %d: %s', index, place, len(configs), title)
    return run(configs[index], workdir, phase, trackers, title, wait) is not None

  def attempt(index: int, wait: bool) -> bool:
    folder = Experiment(configs[index], workdir).folders.student
    return claimed(folder, lambda: work(index, wait), wait)

  for phase in (
    [name for name in names if name not in COMPARING],
    [name for name in names if name in COMPARING],
  ):
    if phase:
      failures |= in_turn([i for i in configs if i not in failures], attempt, 'run %d')
  if failures:
    lines = [f'{len(failures)} of {len(configs)} runs of the sweep failed; the others are done:']
    raise UserError('\n  '.join(lines + [f'run {i}: {error}' for i, error in failures.items()]))
