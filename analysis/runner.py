"""Runs parts on a student and writes what they found: .npz, .png, .pdf, and .json for the report."""

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
from .part import Blocks, Checks, Part, Settings, Training
from .parts import PARTS
from .runs import SIBLING_NAME, Study

PIXELS_PER_INCH = 150
NONE, CHEAP, ALL = 'none', 'cheap', 'all'  # of --train
HELP_WIDTH = 72


def check(settings: Settings, names: Sequence[str] = ()) -> None:
  """Raises ConfigError for wrong settings, and for parts that do not exist."""
  wrong = settings.problems()
  for name in names:
    if name not in PARTS:
      wrong.append(f'--parts: {name!r}: no such part; allowed: any of {",".join(PARTS)}')
  for setting in ('corners', 'pairs'):
    readers = [name for name, part in PARTS.items() if setting in part.reads]
    if getattr(settings, setting) and not set(readers) & set(names or PARTS):
      wrong.append(f'--{setting}: it is of {",".join(readers)}, which --parts leaves out')
  if wrong:
    raise ConfigError(wrong)


def check_names(
  study: Study, settings: Settings, names: Sequence[str] = (), coming: Sequence[str] = ()
) -> None:
  """Raises ConfigError where the chosen parts' settings name networks that are not there.

  Args:
    coming: names of networks that will have been trained when the parts run.
  """
  there = list(dict.fromkeys([*study.names, *coming]))
  wrong = [text for name in names or PARTS for text in PARTS[name].misnamed(there, settings)]
  if wrong:
    raise ConfigError(wrong)


@dataclasses.dataclass(frozen=True)
class Trainings:
  """The trainings, by part or as 'sibling', and the reasons why other parts are left out."""

  trainings: dict[str, list[Training]]
  left_out: dict[str, str]

  @property
  def trains_sibling(self) -> bool:
    return SIBLING_NAME in self.trainings


def plan(
  study: Study, settings: Settings, names: Sequence[str] = (), train: str = ALL
) -> Trainings:
  """The trainings of the named parts, by default of all that can be computed.

  Args:
    train: ALL; CHEAP, only what takes no more steps than the student did; or NONE. A part whose students
      may not be trained is left out; without a sibling, parts go on with the networks that there are.
  """
  own = study.experiment.student.plan.num_steps
  most = {NONE: 0, CHEAP: own, ALL: float('inf')}[train]
  chosen = {name: PARTS[name] for name in names or PARTS}
  left_out = {name: text for name, part in chosen.items() if (text := part.lacks(study))}
  wanted = {
    name: part.trains(study, settings) for name, part in chosen.items() if name not in left_out
  }
  if not study.siblings and any(part.compares_others for part in chosen.values()):
    wanted = {SIBLING_NAME: [Training('with another seed', own)]} | wanted
  trainings = {}
  for name, students in wanted.items():
    lacking = [training for training in students if training.num_steps]
    if sum(training.num_steps for training in lacking) <= most:
      trainings |= {name: lacking} if lacking else {}
    elif name != SIBLING_NAME:
      left_out[name] = f'it would train {_cost(lacking, study)}; --train={train} does not'
  return Trainings(trainings, left_out)


def announce(study: Study, planned: Trainings) -> None:
  """Says what will be trained, and about how long that takes."""
  lacking = [training for students in planned.trainings.values() for training in students]
  if not lacking:
    return
  own = study.experiment.student.plan.num_steps
  share = sum(training.num_steps for training in lacking) / own
  progress.logger.info(
    'training %s, %.1f times the steps of this student (--train=cheap or --train=none for less):',
    _cost(lacking, study),
    share,
  )
  for name, students in planned.trainings.items():
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
  return (
    f'{text}, about {minutes:.0f} min' if minutes < 90 else f'{text}, about {minutes / 60:.1f} h'
  )


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


def run(study: Study, settings: Settings, names: Sequence[str] = (), train: str = ALL) -> list[str]:
  """Runs the named parts, by default all that can be.

  A part whose numbers are there, of the same student and settings, is not computed again. A figure
  that is missing is drawn from the numbers. Several processes may do so at once, each at another part;
  not on gs://, where there are no locks.

  Args:
    train: what may be trained, as in `plan`.

  Returns: the names of the parts that are complete now.

  Raises:
    ConfigError: as `check` does, or a named part cannot be computed for this student.
    UserError: some parts failed, for the reasons that it gives. All others are done.
  """
  check(settings, names)
  check_names(study, settings, names)
  chosen = {name: PARTS[name] for name in names or PARTS}
  reasons = plan(study, settings, names, train).left_out
  if names and reasons:
    raise ConfigError([f'--parts: {name!r}: {reason}' for name, reason in reasons.items()])
  for name, reason in reasons.items():
    progress.logger.info('%s: left out: %s', name, reason)
  stages = {name: _stage(chosen[name], settings) for name in chosen if name not in reasons}
  done = []

  def attempt(name: str, wait: bool) -> bool:
    is_done = stages[name].run(study, wait) is not None
    done.extend([name] * is_done)
    return is_done

  if failures := stage.in_turn(stages, attempt):
    texts = [f'{name}: {error}' for name, error in failures.items()]
    raise UserError('\n  '.join([f'{len(failures)} of {len(stages)} parts failed:', *texts]))
  return done


def _stage(part: Part, settings: Settings) -> Stage:
  """The stage that computes and draws a part. Its subject is a study."""

  def jobs(study: Study) -> list[Job]:
    path = study.folder / f'{part.name}.npz'

    def is_complete() -> bool:
      record = part.record(study, settings)
      return _is_computed(path, record) and _is_shown(path, record)

    def make() -> None:
      record = part.record(study, settings)
      if not _is_computed(path, record):
        _compute(study, settings, part, path, record)
      _show(part, path, record)

    return [Job(study.folder / part.name, is_complete, make)]

  return Stage(part.name, jobs)


def _is_shown(path: epath.Path, record: dict) -> bool:
  """Whether figures and words are there, and of these numbers."""
  about = path.with_suffix('.json')
  if not all(path.with_suffix(end).exists() for end in ('.png', '.pdf', '.json')):
    return False
  return files.read_json(about).get('numbers') == part_lib.digest(record)


def _is_computed(path: epath.Path, record: dict) -> bool:
  return path.exists() and part_lib.read_record(files.read_arrays(path)) == record


def _compute(study: Study, settings: Settings, part: Part, path: epath.Path, record: dict) -> None:
  checks = Checks()
  blocks = Blocks(study.folder / 'blocks' / part.name / part_lib.digest(record), checks)
  arrays = part.compute(study, settings, blocks, checks)
  beside = {
    'record': record,
    'config': study.experiment.config.to_dict(),
    part_lib.CHECKS: checks.values,
  }
  texts = {name: np.array(json.dumps(value)) for name, value in beside.items()}
  files.write_arrays(path, arrays | texts)
  blocks.delete()


def _show(part: Part, path: epath.Path, record: dict) -> None:
  """Draws the figure, and then says what the report says of it, and of which numbers."""
  arrays = files.read_arrays(path)
  with figures.style(part.name):
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
  }
  files.write_json(path.with_suffix('.json'), about)
