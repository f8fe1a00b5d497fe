"""One function for each kind of fault. Each does the harm once, and judges what comes of it."""

import pathlib
import shutil
from collections.abc import Sequence
from typing import Any

import numpy as np

from tests import launched as programs
from tests.faults import processes, workdirs
from tests.faults.workdirs import BAD, CLEAR_ERROR, IDENTICAL, TINY, Outcome
from tests.launched import Launch

MOMENTS = (  # after which a process is killed: files that appear in the course of a run
  'teachers/*/member_0/config.json',
  'teachers/*/member_0/checkpoints/*',
  'teachers/*/member_0/checkpoints/*/state',
  'teachers/*/member_0/complete.json',
  'teachers/*/member_1/metrics.jsonl*',
  'teachers/*/member_1/checkpoints/*/digest',
  'teachers/*/member_1/checkpoints/*',
  'predictions/*/data.json',
  'predictions/*/logits/*/zarr.json',
  'predictions/*/logits/distillation/c/1/*',
  'predictions/*/logits/test/c/0',
  'predictions/*/meta.json',
  'students/*/config.json',
  'students/*/checkpoints/*',
  'students/*/checkpoints/*/state/d',
  'students/*/metrics.jsonl*',
  'students/*/complete.json*',
  'students/*/logits.npz',
  'students/*/result.json*',
  'report.html*',
  'teachers/*/member_0/data.json',  # these four in a run of their own, so that twenty are met in any case
  'teachers/*/member_1/data.json',
  'predictions/*/logits/train/c/0',
  'students/*/data.json',
)


OF_THE_OTHERS = (  # of what the tiny config has not: the GAN, and after it the independent student
  'gans/*/config.json',
  'gans/*/checkpoints/*',
  'gans/*/checkpoints/*/state/d',
  'gans/*/complete.json*',
  'gans/*/samples.npz*',
  'gans/*/quality.json*',
  'students/*/complete.json',
  'teachers/*/member_0/checkpoints/*',
  'predictions/*/logits/distillation/c/0/*',
  'students/*/checkpoints/*',
  'students/*/checkpoints/*',
  'students/*/complete.json',
)


def start(workdir: pathlib.Path, config: pathlib.Path = TINY, **how: Any) -> Launch:
  """Starts a run of the stages `workdirs.RUN`."""
  return programs.start(workdir, f'--stages={",".join(workdirs.RUN)}', config=config, **how)


def _ended(launched: Launch, workdir: pathlib.Path, expected: dict) -> Outcome:
  """The outcome of a process that should have come to its end."""
  if launched.wait():
    return Outcome(BAD, f'exit status {launched.wait()}: {launched.told[-2000:]}')
  return workdirs.compared(workdirs.results(workdir), expected)


def killed(
  place: pathlib.Path,
  expected: dict[str, Any],
  moments: Sequence[str],
  delays: Sequence[float],
  config: pathlib.Path = TINY,
) -> tuple[int, Outcome]:
  """Kills a run at each moment in turn, starts it again, and lets it end in this process.

  Returns: how many were killed before their end, and the outcome of the last.
  """
  workdir = place / 'run'
  num_killed = 0
  for moment, delay in zip(moments, delays, strict=True):
    launched = start(workdir, config=config)
    if processes.kill_after(launched, workdir, moment, delay):
      num_killed += 1
    elif launched.wait():
      return num_killed, Outcome(BAD, f'before {moment}: {launched.told[-2000:]}')
  return num_killed, workdirs.judge(workdir, expected, config)


def full_disk(place: pathlib.Path, expected: dict[str, Any], kilobytes: int) -> Outcome:
  """Runs out of space, is given some, and goes on."""
  with processes.small_disk(place / 'disk', kilobytes) as disk:
    first = start(disk / 'run')
    if first.wait() == 0:
      return Outcome(BAD, f'{kilobytes} kB are enough')
    processes.remount(disk, 'size=64m')
    return _goes_on(first, 'No space', disk / 'run', expected)


def file_too_large(place: pathlib.Path, expected: dict[str, Any], size: int) -> Outcome:
  """Writes fail as under a quota, and later do not. Needs no rights."""
  first = start(place / 'run', file_size=size)
  if first.wait() == 0:
    return Outcome(BAD, f'{size} bytes are enough')
  return _goes_on(first, '', place / 'run', expected)


def read_only(
  place: pathlib.Path, expected: dict[str, Any], finished: pathlib.Path, stage: str
) -> Outcome:
  """The folder cannot be written after a stage, and later can. A finished run needs no writing."""
  with processes.small_disk(place / 'disk', 65536) as disk:
    workdir = disk / 'run'
    shutil.copytree(finished, workdir)
    workdirs.prepare(workdir, stage)
    processes.remount(disk, 'ro')
    first = start(workdir)
    if first.wait() == 0:
      return _ended(first, workdir, expected)
    processes.remount(disk, 'rw')
    return _goes_on(first, 'Read-only', workdir, expected)


def _goes_on(failed: Launch, cause: str, workdir: pathlib.Path, expected: dict) -> Outcome:
  """The outcome of a process that should have told the cause in one clear error, and of a run after it."""
  if failed.error is None or cause not in failed.error:
    return Outcome(BAD, failed.told[-2000:])
  then = workdirs.judge(workdir, expected)
  return Outcome(CLEAR_ERROR, failed.error) if then.kind == IDENTICAL else Outcome(BAD, then.detail)


def at_once(place: pathlib.Path, expected: dict[str, Any], count: int) -> Outcome:
  """Several launches in one workdir share the work, and nothing is done twice.

  Every beginning of a training leaves an event file of TensorBoard.
  """
  workdir = place / 'run'
  all_launched = [start(workdir) for _ in range(count)]
  outcomes = [_ended(launched, workdir, expected) for launched in all_launched]
  told = [launched.told for launched in all_launched]
  bad = [outcome for outcome in outcomes if outcome.kind == BAD]
  for name in ('predictions', 'student', 'evaluation'):  # whoever had to wait finds it done
    if sum(f'{name}: done' in text for text in told) != 1:
      bad.append(Outcome(BAD, f'{name} was not done once'))
  trained = [*workdir.glob('teachers/*/member_?'), *workdir.glob('students/*/')]
  for folder in filter(pathlib.Path.is_dir, trained):
    if len(list((folder / 'tensorboard').iterdir())) != 1:
      bad.append(Outcome(BAD, f'{folder} was trained more than once'))
  return bad[0] if bad else Outcome(IDENTICAL)


def damaged(
  place: pathlib.Path,
  expected: dict[str, Any],
  finished: pathlib.Path,
  damage: tuple[str, str, str, pathlib.Path],
  seed: Sequence[int] = (),
) -> Outcome | None:
  """A file of a finished stage is harmed or gone. None if the stage has no such file."""
  stage, how, _, path = damage
  workdir, rng = place / 'run', np.random.default_rng(seed)
  if not workdirs.damaged(finished, workdir, stage, how, path, rng):
    return None
  outcome = workdirs.judge(workdir, expected)
  shutil.rmtree(workdir)
  return outcome
