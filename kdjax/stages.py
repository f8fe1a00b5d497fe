"""The stages and their order. Each reads what earlier ones wrote, and skips itself when it is done."""

import time
from collections.abc import Sequence

from etils import epath
from ml_collections import ConfigDict

from kdjax import evaluation, predictions, progress, report, student, teachers
from kdjax.run import Run


def _report(run: Run) -> bool:
  evaluation.result(run)  # raises if there is none
  members = [run.member_folder(i) for i in range(run.config.teacher.num_members)]
  return report.write(
    run.workdir,
    run.student_folder,
    members,
    test=lambda: run.splits['test'],
    class_names=run.description.class_names,
  )


STAGES = {
  'teachers': teachers.run,
  'predictions': predictions.run,
  'student': student.run,
  'evaluation': evaluation.run,
  'report': _report,
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
  for name, stage in STAGES.items():
    if name in names:
      start = time.monotonic()
      worked = stage(this)
      took = f'done in {time.monotonic() - start:.0f} s' if worked else 'up to date'
      progress.logger.info('%s: %s', name, took)
  return this
