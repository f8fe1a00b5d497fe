"""Workdirs as a run left them, damage to them, and whether the program recovers from it."""

import dataclasses
import hashlib
import pathlib
import re
import shutil
import traceback
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from etils import epath

from kdjax import config as config_lib
from kdjax.errors import DamageError, UserError
from kdjax.predictions.store import PredictionStore
from kdjax.runtime import files
from kdjax.stages import pipeline
from kdjax.stages.experiment import Experiment
from kdjax.train.checkpoint import Checkpoints, digest
from tests.launched import TINY

ALL_STAGES = TINY.with_name('all_stages_config.py')
OF_THE_CLOCK = ('examples_per_second',)  # what differs between two undisturbed runs
IDENTICAL, CLEAR_ERROR, BAD = 'identical', 'clear error', 'BAD'
RUN = list(pipeline.STAGES)  # the stages of each run
MAX_ERRORS = 5  # one after the other, until all that was damaged is deleted


@dataclasses.dataclass(frozen=True)
class Outcome:
  """The outcome of one fault. `detail` is the message of the first error, or what is bad."""

  kind: str
  detail: str = ''


def run_of(workdir: pathlib.Path, config: pathlib.Path) -> Experiment:
  loaded, _ = config_lib.load(str(config))
  return Experiment(loaded, epath.Path(workdir))


def attempt(workdir: pathlib.Path, config: pathlib.Path = TINY) -> str | None:
  """Runs the stages `RUN` as `launch.py` does. Returns the message of the error, or None."""
  run = run_of(workdir, config)
  try:
    pipeline.run(run.config, run.workdir, RUN)
  except (UserError, OSError) as error:
    return str(error)
  return None


def results(workdir: pathlib.Path, config: pathlib.Path = TINY) -> dict[str, Any]:
  """All that must be the same, bit for bit: logs, last checkpoints, the store and result.json.

  result.json has the independent student in it, if there is one, and the store the images of the GAN.

  Raises:
    DamageError: some of it cannot be read.
  """
  run = run_of(workdir, config)
  num_members = run.config.teacher.num_members
  folders = {f'member {i}': (run.folders.member(i), run.teacher) for i in range(num_members)}
  folders['student'] = run.folders.student, run.student
  found = {}
  for name, (folder, role) in folders.items():
    with Checkpoints(folder / 'checkpoints', create=False) as checkpoints:
      state = checkpoints.restore(role.abstract_state, role.plan.num_steps)
    rows = files.read_json_lines(folder / 'metrics.jsonl')
    found[f'{name}: arrays'] = digest(state)
    found[f'{name}: log'] = [
      {key: value for key, value in row.items() if key not in OF_THE_CLOCK} for row in rows
    ]
  store = PredictionStore(run.folders.predictions)
  for name in ('distillation', 'train', 'val', 'test'):
    num_views = run.config.predictions.num_views if name == 'distillation' else 1
    values = [store.read(name, range(num_members), view) for view in range(num_views)]
    found[f'predictions: {name}'] = hashlib.sha256(np.stack(values)).hexdigest()
  found['result.json'] = files.read_json(run.folders.student / 'result.json')
  if 'report' in RUN:
    found['results.csv'] = (workdir / 'results.csv').read_text()
  return found


def compared(found: dict[str, Any], expected: dict[str, Any], error: str = '') -> Outcome:
  """The outcome of a run that ended with the results `found`, after an error if there was one."""
  if wrong := [name for name in expected if found[name] != expected[name]]:
    return Outcome(BAD, f'differs: {", ".join(wrong)}; after: {error or None}')
  return Outcome(CLEAR_ERROR if error else IDENTICAL, error)


def judge(workdir: pathlib.Path, expected: dict[str, Any], config: pathlib.Path = TINY) -> Outcome:
  """Runs the program on a damaged workdir, and does what its errors say until it is through."""
  first = ''
  for _ in range(MAX_ERRORS):
    try:
      message = attempt(workdir, config)
      if message is None:
        return compared(results(workdir, config), expected, first)
    except DamageError as error:  # no stage had to read it; who does is told
      message = str(error)
    except Exception:
      return Outcome(BAD, traceback.format_exc())
    first = first or message
    told = to_delete(message, workdir)
    if not [delete(path) for path in told if path.exists()]:
      return Outcome(BAD, f'says nothing that helps: {message}')
  return Outcome(BAD, f'still an error after {MAX_ERRORS}: {message}')


def to_delete(message: str, workdir: pathlib.Path) -> list[pathlib.Path]:
  """The files and folders that an error says to delete: 'A is damaged. Delete it and B, and run ...'."""
  what, _, advice = message.partition('Delete ')
  advice, _, _ = advice.partition(' run ')
  paths = re.compile(rf'{re.escape(str(workdir))}[^\s,;]*')
  if re.match(r'it\b|that folder\b', advice):
    advice = f'{paths.findall(what)[0]} {advice}'
  return [pathlib.Path(path) for path in paths.findall(advice)]


# Damage. Each function harms one file.


def truncate(path: pathlib.Path, rng: np.random.Generator) -> None:
  path.write_bytes(path.read_bytes()[: rng.integers(path.stat().st_size)])


def flip(path: pathlib.Path, rng: np.random.Generator) -> None:
  content = bytearray(path.read_bytes())
  content[rng.integers(len(content))] ^= 1 << rng.integers(8)
  path.write_bytes(content)


def delete(path: pathlib.Path, rng: np.random.Generator | None = None) -> None:
  shutil.rmtree(path) if path.is_dir() else path.unlink()


DAMAGES: dict[str, Callable] = {'truncated': truncate, 'bit flipped': flip, 'removed': delete}

# The stages after one read its files and are run again: (its files, what is deleted so that they run).
STAGES = {
  'teachers': ('teachers/*/member_1', ['predictions', 'students', 'report.html', 'results.csv']),
  'predictions': ('predictions/*', ['students', 'report.html', 'results.csv']),
  'interrupted student': (
    'students/*',
    ['students/*/checkpoints/34', 'students/*/*.json', 'students/*/logits.npz', 'report.html'],
  ),
  'student': ('students/*', ['students/*/result.json', 'report.html']),
  'finished': ('.', []),
}
ALWAYS_KEPT = ('config.json', 'data.json')  # also while a training is under way
LEFT_OUT = re.compile(r'tensorboard|\.lock$|checkpoints/(0|17)/|report\.html|member_0')
NAMES = re.compile(r'\b[0-9a-f]{12}\b|\b[0-9a-f]{32}\b|(?<=tfevents\.).*')


def kinds(workdir: pathlib.Path, stage: str) -> dict[str, list[pathlib.Path]]:
  """Files and folders that a stage left, in groups that differ by the name of a hash alone."""
  pattern, _ = STAGES[stage]
  found: dict[str, list[pathlib.Path]] = {}
  for folder in [workdir] if pattern == '.' else sorted(workdir.glob(pattern)):
    for path in [folder, *sorted(folder.rglob('*'))] if folder.is_dir() else []:
      name = path.relative_to(workdir).as_posix()
      if name != '.' and (not LEFT_OUT.search(name) or _is_under_way(stage, name)):
        found.setdefault(NAMES.sub('*', name), []).append(path)
  return found


def _is_under_way(stage: str, name: str) -> bool:
  return stage == 'interrupted student' and 'checkpoints/17/' in name


def prepare(workdir: pathlib.Path, stage: str) -> None:
  """Deletes what came after a stage; of an interrupted training, also its end."""
  _, later = STAGES[stage]
  for pattern in later:
    for path in workdir.glob(pattern):
      if path.name not in ALWAYS_KEPT:
        delete(path)
  if stage == 'interrupted student':
    (log,) = workdir.glob('students/*/metrics.jsonl')
    lines = log.read_text().splitlines(keepends=True)
    log.write_text(''.join(lines[:-2]))


def damages(
  finished: pathlib.Path, rng: np.random.Generator
) -> Iterator[tuple[str, str, str, pathlib.Path]]:
  """(stage, damage, kind, a file or folder of the finished workdir) of every damage there is."""
  for stage in STAGES:
    for kind, paths in kinds(finished, stage).items():
      path = paths[rng.integers(len(paths))]
      for damage in DAMAGES:
        if damage == 'removed' or (path.is_file() and path.stat().st_size):
          yield stage, damage, kind, path


def damaged(
  finished: pathlib.Path,
  workdir: pathlib.Path,
  stage: str,
  damage: str,
  path: pathlib.Path,
  rng: np.random.Generator,
) -> bool:
  """Copies a finished workdir and harms it. Returns False if the file is not there at that stage."""
  shutil.copytree(finished, workdir, symlinks=True)
  prepare(workdir, stage)
  target = workdir / path.relative_to(finished)
  if not target.exists():
    return False
  DAMAGES[damage](target, rng)
  return True
