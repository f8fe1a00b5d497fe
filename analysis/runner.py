"""Runs parts on a student and writes their results: .npz, .png, .pdf, and .json for the report."""

import dataclasses
import json
import textwrap
from collections.abc import Sequence

import numpy as np
from etils import epath

from kdjax.errors import ConfigError, UserError
from kdjax.report import figures
from kdjax.runtime import files, progress
from kdjax.stages import stage
from kdjax.stages.stage import Job, Stage

from . import part as part_lib
from . import runs
from .figures import style
from .part import Blocks, Checks, Part, Settings, Training
from .parts import PARTS
from .runs import SIBLING_NAME, Study

PIXELS_PER_INCH = 150
NONE, CHEAP, ALL = 'none', 'cheap', 'all'  # of --train
HELP_WIDTH = 72


def check(settings: Settings, names: Sequence[str] = ()) -> None:
  """Raises ConfigError for settings out of range, unknown parts, and settings that no part reads."""
  wrong = settings.problems()
  for name in names:
    if name not in PARTS:
      wrong.append(f'--parts: {name!r}: no such part; allowed: any of {",".join(PARTS)}')
  for setting in ('corners', 'pairs'):
    readers = [name for name, part in PARTS.items() if setting in part.reads]
    if getattr(settings, setting) and not set(readers) & set(names or PARTS):
      wrong.append(f'--{setting}: read only by {",".join(readers)}, which --parts leaves out')
  if wrong:
    raise ConfigError(*wrong)


@dataclasses.dataclass(frozen=True)
class Selection:
  """The parts to run, what is trained first, and why other parts are left out."""

  names: list[str]
  trainings: dict[str, list[Training]]  # by part; that of the sibling by SIBLING_NAME
  left_out: dict[str, str]

  @property
  def trains_sibling(self) -> bool:
    return SIBLING_NAME in self.trainings


def select(
  study: Study, settings: Settings, names: Sequence[str] = (), train: str = ALL
) -> Selection:
  """Selects from the named parts, by default from all.

  Args:
    train: ALL; CHEAP, at most as many steps for a part as the student took; or NONE. A part whose students
      may not be trained is left out. Without a sibling, parts use the networks that exist.
  """
  own = study.experiment.student.plan.num_steps
  most = {NONE: 0, CHEAP: own, ALL: float('inf')}[train]
  chosen = {name: PARTS[name] for name in names or PARTS}
  trainings, left_out = {}, {}
  compares = any(part.compares_others for part in chosen.values())
  trains_sibling = compares and not study.siblings and own <= most
  if trains_sibling:
    trainings[SIBLING_NAME] = [Training('with another seed', own)]
  for name, part in chosen.items():
    if reason := part.lacks(study, trains_sibling):
      left_out[name] = reason
      continue
    lacking = [training for training in part.trains(study, settings) if training.num_steps]
    if sum(training.num_steps for training in lacking) > most:
      left_out[name] = f'it would train {_cost(lacking, study)}; --train={train} does not'
    elif lacking:
      trainings[name] = lacking
  return Selection([name for name in chosen if name not in left_out], trainings, left_out)


def prepare(
  study: Study, settings: Settings, names: Sequence[str] = (), train: str = ALL
) -> list[str]:
  """Checks everything that can be checked before parts run, and trains a sibling if parts need one.

  Args:
    names, train: as in `select`.

  Returns: the names of the parts to run.

  Raises:
    ConfigError: as `check` does, a setting names a network that does not exist, or a named part cannot be
      computed for this student.
  """
  check(settings, names)
  selected = _possible(study, settings, names, train)
  networks = list(dict.fromkeys([*study.names, *[SIBLING_NAME] * selected.trains_sibling]))
  wrong = [text for name in names or PARTS for text in PARTS[name].misnamed(networks, settings)]
  if wrong:
    raise ConfigError(*wrong)
  _announce(study, selected)
  if selected.trains_sibling:
    runs.train_sibling(study)
    selected = _possible(study, settings, names, train)
  for name, reason in selected.left_out.items():
    progress.logger.info('%s: left out: %s', name, reason)
  return selected.names


def _possible(study: Study, settings: Settings, names: Sequence[str], train: str) -> Selection:
  """The selection; raises ConfigError if it leaves out a named part."""
  selected = select(study, settings, names, train)
  if names and selected.left_out:
    raise ConfigError(*(f'--parts: {name!r}: {why}' for name, why in selected.left_out.items()))
  return selected


def _announce(study: Study, selected: Selection) -> None:
  """Logs what will be trained, and about how long that takes."""
  lacking = [training for students in selected.trainings.values() for training in students]
  if not lacking:
    return
  own = study.experiment.student.plan.num_steps
  share = sum(training.num_steps for training in lacking) / own
  progress.logger.info(
    'training %s, %.1f times the steps of this student (--train=cheap or --train=none for less):',
    _cost(lacking, study),
    share,
  )
  for name, students in selected.trainings.items():
    progress.logger.info('  %s: %s', name, _cost(students, study))


def _cost(trainings: Sequence[Training], study: Study) -> str:
  """'6 students, 945 steps, about 2 min' at the median speed of the student's own training."""
  num_steps = sum(training.num_steps for training in trainings)
  students = 'student' if len(trainings) == 1 else 'students'
  text = f'{len(trainings)} {students}, {num_steps:,} steps'
  speed = study.steps_per_second
  if speed is None:
    return text
  minutes = num_steps / speed / 60
  if minutes < 1:
    return f'{text}, under a minute'
  return f'{text}, about ' + (f'{minutes:.0f} min' if minutes < 90 else f'{minutes / 60:.1f} h')


def described() -> str:
  """The text for --help: each part with the question it answers, its settings and its trainings."""
  lines = []
  for name, part in PARTS.items():
    lines.append(f'  {name}')
    texts = [part.answers or part.title]
    if part.reads:
      texts.append('reads ' + ', '.join(f'--{setting}' for setting in part.reads))
    if part.training:
      texts.append(f'trains {part.training}')
    elif part.compares_others:
      texts.append('trains a sibling, if the workdir has none')
    for text in texts:
      lines += textwrap.wrap(
        text,
        HELP_WIDTH,
        initial_indent=' ' * 6,
        subsequent_indent=' ' * 8,
        break_long_words=False,
        break_on_hyphens=False,
      )
  return '\n'.join(lines)


def run(
  study: Study, settings: Settings, names: Sequence[str], style_name: str = style.SCREEN
) -> list[str]:
  """Runs the named parts, which `prepare` returned.

  A part is not computed again if its numbers exist for this student and these settings. A figure that is
  missing or of another style is drawn from the numbers. Several processes can share the parts, but not on
  gs://, which has no locks.

  Args:
    style_name: of `style.STYLES`, for the figures.

  Returns: the names of the parts that are complete now.

  Raises:
    UserError: some parts failed, for the reasons that it gives. All others are done.
  """
  stages = {name: _stage(PARTS[name], settings, style_name) for name in names}
  done = []

  def attempt(name: str, wait: bool) -> bool:
    is_done = stages[name].run(study, wait) is not None
    done.extend([name] * is_done)
    return is_done

  if failures := stage.in_turn(stages, attempt):
    texts = [f'{name}: {error}' for name, error in failures.items()]
    raise UserError('\n  '.join([f'{len(failures)} of {len(stages)} parts failed:', *texts]))
  return done


def _stage(part: Part, settings: Settings, style_name: str) -> Stage:
  """The stage that computes and draws a part. Its subject is a study."""

  def jobs(study: Study) -> list[Job]:
    path = study.folder / f'{part.name}.npz'

    def is_complete() -> bool:
      record = part.record(study, settings)
      return _is_computed(path, record) and _is_shown(path, record, style_name)

    def make() -> None:
      record = part.record(study, settings)
      if not _is_computed(path, record):
        _compute(study, settings, part, path, record)
      _show(part, path, record, style_name)

    return [Job(study.folder / part.name, is_complete, make)]

  return Stage(part.name, jobs)


def _is_shown(path: epath.Path, record: dict, style_name: str) -> bool:
  """Whether the figures and the texts exist, belong to these numbers and have this style."""
  about = path.with_suffix('.json')
  if not all(path.with_suffix(end).exists() for end in ('.png', '.pdf', '.json')):
    return False
  told = files.read_json(about)
  return (told.get('numbers'), told.get('style')) == (part_lib.digest(record), style_name)


def _is_computed(path: epath.Path, record: dict) -> bool:
  return path.exists() and part_lib.read_record(path) == record


def _compute(study: Study, settings: Settings, part: Part, path: epath.Path, record: dict) -> None:
  checks = Checks()
  blocks = Blocks(study.folder / 'blocks' / part.name / part_lib.digest(record), checks)
  arrays = part.compute(study, settings, blocks, checks)
  config = study.experiment.config.to_dict()
  beside = {'record': record, 'config': config, part_lib.CHECKS: checks.values}
  texts = {name: np.array(json.dumps(value)) for name, value in beside.items()}
  files.write_arrays(path, arrays | texts)
  blocks.delete()


def _show(part: Part, path: epath.Path, record: dict, style_name: str) -> None:
  """Draws the figure, then writes what the report needs, with the digest of the numbers' record."""
  arrays = files.read_arrays(path)
  with style.drawing(part.name, style_name):
    figure = part.draw(arrays)
    for end in ('.png', '.pdf'):
      files.write_bytes(path.with_suffix(end), figures.image(figure, end[1:], PIXELS_PER_INCH))
  about = {
    'place': list(PARTS).index(part.name),
    'title': part.title,
    'caption': part.caption(arrays),
    'table': part.table(arrays),
    'checks': json.loads(str(arrays[part_lib.CHECKS])),
    'numbers': part_lib.digest(record),
    'style': style_name,
  }
  files.write_json(path.with_suffix('.json'), about)
