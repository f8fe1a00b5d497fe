"""Runs parts on a student and writes what they found: .npz, .png, .pdf, and .json for the report."""

import io
import json
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from etils import epath

from analysis import part as part_lib
from analysis.part import Blocks, Checks, Part, Settings
from analysis.parts import PARTS
from analysis.runs import Study
from kdjax import figures, files, progress
from kdjax.errors import ConfigError

if TYPE_CHECKING:
  from matplotlib.figure import Figure

PIXELS_PER_INCH = 150


def check(study: Study, settings: Settings, names: Sequence[str] = ()) -> None:
  """Raises ConfigError for wrong settings, and for parts that do not exist or cannot be computed.

  Args:
    names: of the parts that somebody asked for.
  """
  wrong = settings.problems()
  for name in names:
    if name not in PARTS:
      wrong.append(f'--parts: {name!r}: no such part; allowed: any of {",".join(PARTS)}')
    elif reason := PARTS[name].unavailable(study):
      wrong.append(f'--parts: {name!r}: {reason}')
  if wrong:
    raise ConfigError(wrong)


def run(study: Study, settings: Settings, names: Sequence[str] = ()) -> list[str]:
  """Runs the named parts, by default all that can be. Several processes may do so at once.

  A part whose numbers are there, of the same student and settings, is not computed again. A figure
  that is missing is drawn from the numbers.

  Returns: the names of the parts that are complete now.

  Raises:
    ConfigError: as `check` does.
    CheckError: a part fails a self-check. What other parts found stays.
  """
  check(study, settings, names)
  done = []
  for name, part in PARTS.items():
    if names and name not in names:
      continue
    if reason := part.unavailable(study):
      progress.logger.info('%s: left out: %s', name, reason)
    else:
      _run_part(study, settings, part)
      done.append(name)
  return done


def _run_part(study: Study, settings: Settings, part: Part) -> None:
  path = study.folder / f'{part.name}.npz'
  with files.lock(study.folder / part.name):
    start, record = time.monotonic(), part.record(study, settings)
    worked = not _is_computed(path, record)
    if worked:
      _compute(study, settings, part, path)
    if worked or not all(_beside(path, end).exists() for end in ('.png', '.pdf', '.json')):
      _show(part, path, list(PARTS).index(part.name))
      worked = True
  took = f'done in {time.monotonic() - start:.0f} s' if worked else 'up to date'
  progress.logger.info('%s: %s', part.name, took)


def _is_computed(path: epath.Path, record: dict) -> bool:
  return path.exists() and part_lib.read_record(files.read_arrays(path)) == record


def _compute(study: Study, settings: Settings, part: Part, path: epath.Path) -> None:
  record, checks = part.record(study, settings), Checks()
  blocks = Blocks(study.folder / 'blocks' / f'{part.name}_{part_lib.digest(record)}')
  arrays = part.compute(study, settings, blocks, checks)
  beside = {
    'record': record,
    'config': study.run.config.to_dict(),
    'checks': checks.values,
  }
  texts = {name: np.array(json.dumps(value)) for name, value in beside.items()}
  files.write_arrays(path, arrays | texts)
  blocks.delete()


def _show(part: Part, path: epath.Path, place: int) -> None:
  """Draws the figure, and says what the report says of it."""
  arrays = files.read_arrays(path)
  with figures.style(part.name):
    figure = part.draw(arrays)
    for end in ('.png', '.pdf'):
      files.write_bytes(_beside(path, end), _image(figure, end))
  about = {'place': place, 'title': part.title, 'caption': part.caption(arrays)}
  about |= {'checks': json.loads(str(arrays['checks']))}
  files.write_json(_beside(path, '.json'), about)


def _image(figure: 'Figure', end: str) -> bytes:
  buffer = io.BytesIO()
  nothing = dict.fromkeys({'.png': ('Software',), '.pdf': ('Creator', 'CreationDate')}[end])
  figure.savefig(buffer, format=end[1:], dpi=PIXELS_PER_INCH, facecolor='white', metadata=nothing)
  return buffer.getvalue()


def _beside(path: epath.Path, end: str) -> epath.Path:
  return path.parent / f'{path.stem}{end}'
