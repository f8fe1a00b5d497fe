"""The runner with small parts: what is kept, computed again, left out and refused."""

import contextlib
import dataclasses
import json
import math

import numpy as np
import pytest
from conftest import copied, tiny_run
from etils import epath

from analysis import runner, runs
from analysis.part import CheckError, Checks, Part, Settings, Training
from analysis.parts import PARTS
from kdjax.errors import ConfigError, UserError
from kdjax.report import figures
from kdjax.runtime import files, progress

NUM_PIECES = 3
IMAGE = figures.image


class Made:
  """A part that counts its pieces and can be killed after some of them."""

  def __init__(self):
    self.computed, self.die_after = [], None

  def part(self, name: str = 'made', **fields) -> Part:
    reads = ('num_probes',)
    table = lambda arrays: [['last'], [f'{arrays["x"][-1]:g}']]
    fields = {'table': table} | fields
    return Part(name, f'Title of {name}', reads, self.compute, draw, caption, **fields)

  def compute(self, study, settings, blocks, checks):
    def piece(i):
      if len(self.computed) == self.die_after:
        raise KeyboardInterrupt
      self.computed.append(i)
      return {'x': np.array(float(i * settings.num_probes))}

    pieces = [blocks.get(f'piece {i}', lambda i=i: piece(i)) for i in range(NUM_PIECES)]
    checks.at_most('small', 0.25, 1.0)
    return {'x': np.array([of['x'] for of in pieces])}


def draw(arrays):
  """A text in place of a figure."""
  return str(arrays['x'])


def caption(arrays):
  return f'The last is {arrays["x"][-1]:g}.'


@pytest.fixture
def made(monkeypatch):
  made = Made()
  image = lambda figure, kind, *_: f'{kind} of {figure}'.encode()
  monkeypatch.setattr(runner.figures, 'image', image)
  monkeypatch.setattr(runner, 'PARTS', {'made': made.part()})
  return made


@pytest.fixture
def study(finished, tmp_path, monkeypatch):
  """The finished student, with a folder of its own for its analyses."""
  monkeypatch.setattr(runs.Study, 'folder', epath.Path(tmp_path) / 'analysis')
  return runs.Study(finished)


def run(study, settings, names=(), train=runner.ALL):
  return runner.run(study, settings, runner.prepare(study, settings, names, train))


def kill(*_):
  raise KeyboardInterrupt


def run_killed(study, *args):
  with pytest.raises(KeyboardInterrupt):
    run(study, *args)


def about(study, name='made'):
  return files.read_json(study.folder / f'{name}.json')


def problems_of(study, *args, **kwargs):
  with pytest.raises(ConfigError) as error:
    run(study, *args, **kwargs)
  return error.value.problems


def test_a_part_writes_numbers_figures_and_texts(study, made):
  assert run(study, Settings(num_probes=5)) == ['made']
  arrays = files.read_arrays(study.folder / 'made.npz')
  np.testing.assert_array_equal(arrays['x'], [0, 5, 10])
  record, config, checks = (json.loads(str(arrays[key])) for key in ('record', 'config', 'checks'))
  assert record['settings'] == {'num_probes': 5}
  assert record['fingerprints'] == study.fingerprints
  assert config == json.loads(json.dumps(study.experiment.config.to_dict()))
  assert checks == {'small': [0.25, 1.0]}
  shown = about(study)
  assert shown['title'] == 'Title of made'
  assert shown['caption'] == 'The last is 10.'
  assert shown['table'] == [['last'], ['10']]
  for end in ('png', 'pdf'):
    assert (study.folder / f'made.{end}').read_bytes().startswith(end.encode())
  assert list((study.folder / 'blocks').glob('*/*')) == []


def test_a_figure_is_drawn_after_a_kill_between_numbers_and_figure(study, made, monkeypatch):
  """The figure of the old numbers is replaced."""
  run(study, Settings(num_probes=5))
  with monkeypatch.context() as patch:
    patch.setattr(runner, '_show', kill)
    run_killed(study, Settings(num_probes=7))
  run(study, Settings(num_probes=7))
  assert about(study)['caption'] == 'The last is 14.'


def test_checks_of_finished_pieces_are_kept(study, made, monkeypatch):
  def compute(study, settings, blocks, checks):
    def piece():
      checks.at_most('inside', 0.5, 1.0)
      return {'x': np.zeros(2)}

    found = blocks.get('a', piece)
    if made.die_after == 0:
      raise KeyboardInterrupt
    return found

  monkeypatch.setattr(runner, 'PARTS', {'p': Part('p', 'P', (), compute, draw, caption)})
  made.die_after = 0
  run_killed(study, Settings())
  made.die_after = None
  run(study, Settings())
  assert about(study, 'p')['checks'] == {'inside': [0.5, 1.0]}


def test_a_part_that_another_process_runs_comes_last(study, made, monkeypatch):
  monkeypatch.setattr(runner, 'PARTS', {'made': made.part(), 'other': made.part('other')})
  waits, lock = [], files.lock

  def busy(folder, wait=True):
    waits.append((folder.name, wait))
    return contextlib.nullcontext(folder.name != 'made' or wait) if not wait else lock(folder)

  monkeypatch.setattr(files, 'lock', busy)
  assert run(study, Settings()) == ['other', 'made']
  assert waits[:2] == [('made', False), ('other', False)]
  assert [wait for wait in waits if wait[1]] == [('made', True)] == waits[-1:]


def test_what_is_finished_is_not_computed_again(study, made, monkeypatch):
  run(study, Settings())
  times = {path.name: path.stat().mtime for path in study.folder.glob('made.*')}
  run(study, Settings(num_examples=99))  # which this part does not read
  assert len(made.computed) == NUM_PIECES
  assert {path.name: path.stat().mtime for path in study.folder.glob('made.*')} == times
  (study.folder / 'made.png').unlink()
  run(study, Settings())
  assert len(made.computed) == NUM_PIECES
  assert (study.folder / 'made.png').exists()
  run(study, Settings(num_probes=9))
  assert len(made.computed) == 2 * NUM_PIECES
  assert about(study)['caption'] == 'The last is 18.'
  monkeypatch.setattr(runner, 'PARTS', {'made': made.part(version=2)})
  run(study, Settings(num_probes=9))
  assert len(made.computed) == 3 * NUM_PIECES


@pytest.mark.parametrize(('num_probes', 'computed'), [(4, [0, 1, 2]), (7, [0, 1, 0, 1, 2])])
def test_a_killed_part_continues_with_the_pieces_of_its_settings(study, made, num_probes, computed):
  made.die_after = 2
  run_killed(study, Settings(num_probes=4))
  assert not (study.folder / 'made.npz').exists()
  made.die_after = None
  run(study, Settings(num_probes=num_probes))
  assert made.computed == computed
  found = files.read_arrays(study.folder / 'made.npz')['x']
  np.testing.assert_array_equal(found, np.arange(3) * num_probes)


def test_a_finished_part_deletes_abandoned_pieces(study, made, monkeypatch):
  """Blocks of an unfinished part with the same prefix in its name stay."""
  monkeypatch.setattr(runner, 'PARTS', {'made': made.part(), 'made_too': made.part('made_too')})
  for name, die_after in (('made', 2), ('made_too', 4)):
    made.die_after = die_after
    run_killed(study, Settings(num_probes=5), [name])
  made.die_after = None
  blocks = study.folder / 'blocks'
  assert sorted(path.name for path in blocks.iterdir()) == ['made', 'made_too']
  run(study, Settings(num_probes=7), ['made'])
  assert [path.name for path in blocks.iterdir()] == ['made_too']
  assert len(list((blocks / 'made_too').glob('*/piece_*'))) == 2


def test_a_record_has_what_a_part_depends_on_beside_settings(study, made, monkeypatch):
  for others, count in ((None, 1), (None, 1), (['a'], 2), (['a'], 2), (['a', 'b'], 3)):
    depends = lambda study, settings, others=others: others
    monkeypatch.setattr(runner, 'PARTS', {'made': made.part(depends=depends)})
    run(study, Settings())
    assert len(made.computed) == count * NUM_PIECES


def test_unknown_names_are_refused_before_anything_runs(study, made, monkeypatch):
  def misnamed(names, settings):
    assert names == ['initial', 'student', 'teacher 0', 'teacher 1']
    return [f'--corners = {name}' for name in settings.corners if name not in names]

  part = dataclasses.replace(made.part('of', misnamed=misnamed), reads=('corners',))
  monkeypatch.setattr(runner, 'PARTS', {'made': made.part(), 'of': part})
  problems = problems_of(study, Settings(corners=('teacher 5',)), ['made'])
  assert problems == ['--corners: read only by of, which --parts leaves out']
  problems = problems_of(study, Settings(corners=('teacher 5', 'student')))
  assert problems == ['--corners = teacher 5']
  assert made.computed == []


def test_settings_are_finite_and_go_together():
  problems = Settings(return_radii=(0.1, math.inf), return_epochs=1e308).problems()
  assert problems == [
    '--return_radii = (0.1, inf): allowed: 1e-06 or more, for each of one or more',
    '--return_epochs = 1e+308: allowed: 0.01 to 1000000.0',
  ]
  (message,) = Settings(lanczos_steps=2).problems()
  assert message.startswith('--lanczos_steps = 2: allowed: --num_eigenpairs = 10 or more')
  assert Settings(lanczos_steps=2, num_eigenpairs=2).problems() == []


def test_a_failed_check_writes_nothing_and_loses_nothing(study, made, monkeypatch):
  def compute(study, settings, blocks, checks):
    checks.at_most('corners', 0.5, 0.1)

  bad = Part('bad', 'Bad', (), compute, draw, caption)
  monkeypatch.setattr(runner, 'PARTS', {'bad': bad, 'made': made.part()})
  with pytest.raises(
    UserError, match=r"1 of 2 parts failed:\n  bad: the self-check 'corners' failed: 0\.5 "
  ):
    run(study, Settings())
  assert (study.folder / 'made.npz').exists()
  assert list(study.folder.glob('bad.*z')) == []


def test_checks_keep_the_largest_and_refuse_nan():
  checks = Checks()
  for value in (0.1, 0.3, 0.2):
    checks.at_most('a', value, 0.5)
  assert checks.values == {'a': [0.3, 0.5]}
  with pytest.raises(CheckError):
    checks.at_most('a', float('nan'), 0.5)


def test_numbers_without_a_record_are_refused(study, made):
  files.write_arrays(study.folder / 'made.npz', {'x': np.zeros(2)})
  with pytest.raises(UserError, match=r'made\.npz has no record; delete it and run again'):
    run(study, Settings())


def test_parts_that_measure_a_loss_on_features_are_left_out(finished, made, monkeypatch):
  study = runs.Study(tiny_run(finished.workdir, student__loss='cka'))
  parts = {'made': made.part(), 'free': made.part('free', measures_loss=False)}
  monkeypatch.setattr(runner, 'PARTS', parts)
  assert runner.select(study, Settings()).left_out == {
    'made': "student.loss = 'cka' needs features, and the analysis has only logits"
  }


def test_unavailable_parts_are_left_out_or_refused(study, made, monkeypatch):
  never = made.part('never', unavailable=lambda study: 'the teacher has another architecture')
  monkeypatch.setattr(runner, 'PARTS', {'never': never, 'made': made.part()})
  assert run(study, Settings()) == ['made']
  problems = problems_of(study, Settings(num_probes=1, resolution=2), ['never', 'nothing'])
  assert problems == [
    '--resolution = 2: allowed: 3 or more',
    '--num_probes = 1: allowed: 2 or more',
    "--parts: 'nothing': no such part; allowed: any of never,made",
  ]
  problems = problems_of(study, Settings(), ['never', 'made'])
  assert problems == ["--parts: 'never': the teacher has another architecture"]


# Trainings.

STEPS = 34  # of the finished student


@pytest.fixture
def costly(made, monkeypatch):
  """Parts by the steps that they train; those of 'shared' compare with a sibling."""
  trains = {'free': [], 'short': [2, 0], 'long': [STEPS, 1], 'shared': []}
  parts = {
    name: made.part(
      name,
      compares_others=name == 'shared',
      trains=lambda study, settings, steps=steps: [
        Training(f'{name} {n}', n) for name, n in zip('ab', steps, strict=False)
      ],
      training='students of two kinds' if steps else '',
    )
    for name, steps in trains.items()
  }
  monkeypatch.setattr(runner, 'PARTS', parts)
  monkeypatch.setattr(runs, 'train_sibling', lambda study: None)


@pytest.mark.parametrize(
  ('train', 'trained', 'left_out'),
  [
    ('all', {'sibling': [STEPS], 'short': [2], 'long': [STEPS, 1]}, []),
    ('cheap', {'sibling': [STEPS], 'short': [2]}, ['long']),
    ('none', {}, ['short', 'long']),
  ],
)
def test_no_more_is_trained_than_is_allowed(study, costly, train, trained, left_out):
  selected = runner.select(study, Settings(), train=train)
  found = {name: [of.num_steps for of in each] for name, each in selected.trainings.items()}
  assert found == trained
  assert list(selected.left_out) == left_out
  assert selected.trains_sibling == ('sibling' in trained)
  done = run(study, Settings(), train=train)
  assert done == [name for name in ('free', 'short', 'long', 'shared') if name not in left_out]
  if train == 'none':
    (message,) = problems_of(study, Settings(), ['long', 'free'], train)
    assert message.startswith("--parts: 'long': it would train 2 students, 35 steps, ")
    assert message.endswith('; --train=none does not')


def test_trainings_are_logged_with_their_time(finished, tmp_path, costly, monkeypatch):
  rows = [{'step': 1, 'examples_per_second': x} for x in (8.0, 0.8, 1.6)]  # of 48 in a batch
  study = runs.Study(copied(finished, tmp_path))
  path = study.experiment.folders.student / 'metrics.jsonl'
  path.write_text(''.join(json.dumps(row) + '\n' for row in rows))
  assert study.steps_per_second == pytest.approx(1.6 / 48)
  logged = []
  monkeypatch.setattr(progress.logger, 'info', lambda text, *args: logged.append(text % args))
  runner.prepare(study, Settings())
  assert logged == [
    'training 4 students, 71 steps, about 36 min, 2.1 times the steps of this student (--train=cheap or '
    '--train=none for less):',
    '  sibling: 1 student, 34 steps, about 17 min',
    '  short: 1 student, 2 steps, about 1 min',
    '  long: 2 students, 35 steps, about 18 min',
  ]
  logged.clear()
  runner.prepare(study, Settings(), train='none')
  assert [text.partition(': left out: ')[0] for text in logged] == ['short', 'long']


def test_an_impossible_part_is_refused_before_a_sibling_is_trained(study, made, monkeypatch):
  """A part that a sibling may make possible is not refused; it is computed once the sibling exists."""
  trained = []
  lacks = lambda study: None if trained else 'there is no third network'
  parts = {
    'never': made.part('never', unavailable=lambda study: 'the teacher is gone'),
    'shared': made.part('shared', compares_others=True, unavailable=lacks),
  }
  monkeypatch.setattr(runner, 'PARTS', parts)
  monkeypatch.setattr(runs, 'train_sibling', trained.append)
  problems = problems_of(study, Settings(), ['shared', 'never'])
  assert problems == ["--parts: 'never': the teacher is gone"] and trained == []
  problems = problems_of(study, Settings(), ['shared'], 'none')
  assert problems == ["--parts: 'shared': there is no third network"] and trained == []
  assert run(study, Settings(), ['shared']) == ['shared'] and trained == [study]


def test_help_describes_questions_settings_and_trainings(costly):
  lines = runner.described().splitlines()
  assert lines[:3] == ['  free', '      Title of free', '      reads --num_probes']
  assert lines[6] == '      trains students of two kinds'
  assert lines[-1] == '      trains a sibling, if the workdir has none'


def test_help_breaks_no_name_over_lines():
  text = runner.described()
  assert max(map(len, text.splitlines())) <= runner.HELP_WIDTH
  words = set(text.replace(',', ' ').split())
  for name, part in PARTS.items():
    assert f'  {name}' in text.splitlines()
    assert {f'--{setting}' for setting in part.reads} <= words


def test_figures_are_the_same_bytes_twice(study, made, monkeypatch):
  def plot(arrays):
    figure = figures.blank()
    figure.subplots().plot(arrays['x'])
    return figure

  monkeypatch.setattr(figures, 'image', IMAGE)  # undoes the patch of `made`
  monkeypatch.setattr(runner, 'PARTS', {'made': dataclasses.replace(made.part(), draw=plot)})
  run(study, Settings())
  before = [(study.folder / f'made.{end}').read_bytes() for end in ('png', 'pdf', 'npz')]
  for end in ('png', 'pdf'):
    (study.folder / f'made.{end}').unlink()
  run(study, Settings())
  assert [(study.folder / f'made.{end}').read_bytes() for end in ('png', 'pdf', 'npz')] == before
  assert before[0].startswith(b'\x89PNG') and before[1].startswith(b'%PDF')
