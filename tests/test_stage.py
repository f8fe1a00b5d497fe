"""The driver of all stages, with stages of a few lines."""

import dataclasses
import json
import pathlib
import shutil

import pytest
from conftest import copied, tiny_run

from kdjax.errors import DamageError, DivergedError, MissingInputError
from kdjax.runtime import files
from kdjax.stages import pipeline, stage, student, teachers
from kdjax.stages.stage import Job, Stage


@dataclasses.dataclass
class Counted:
  """A stage that writes the number of training examples, and counts how often it was made."""

  num_made: int = 0

  def job(self, experiment) -> Job:
    folder = experiment.workdir / 'counts' / experiment.folders.student.name

    def make():
      self.num_made += 1
      files.write_json(folder / 'count.json', experiment.data.sizes['train'])

    return Job(
      folder,
      is_complete=(folder / 'count.json').exists,
      make=make,
      missing='the examples are not counted.',
      provenance=experiment.data.training,
    )

  def stage(self, **fields) -> Stage:
    return Stage('count', lambda experiment: [self.job(experiment)], **fields)


def test_a_stage_is_added_with_one_line(tmp_path, monkeypatch):
  counted, run = Counted(), tiny_run(tmp_path)
  monkeypatch.setitem(pipeline.STAGES, 'count', counted.stage())
  assert pipeline.problems(['count']) == []
  for _ in range(2):
    pipeline.run(run.config, run.workdir, ['count'])
  folder = counted.job(run).folder
  assert (counted.num_made, json.loads((folder / 'count.json').read_text())) == (1, 200)
  assert files.read_json(folder / 'config.json') == json.loads(json.dumps(run.config.to_dict()))
  assert files.read_json(folder / 'data.json') == {'checksum': run.data.training.checksum}


def test_what_another_process_made_while_this_one_waited_is_not_made_again(tmp_path, monkeypatch):
  counted, run, lock = Counted(), tiny_run(tmp_path), files.lock
  made = counted.stage()

  def lock_after_another(folder, wait=True):
    files.write_json(folder / 'count.json', 7)
    return lock(folder, wait)

  monkeypatch.setattr(files, 'lock', lock_after_another)
  assert made.run(run) is False
  assert counted.num_made == 0
  assert not (counted.job(run).folder / 'data.json').exists()


def test_a_job_of_another_process_is_left_to_it(tmp_path):
  counted, run = Counted(), tiny_run(tmp_path)
  with files.lock(counted.job(run).folder):
    assert counted.stage().run(run, wait=False) is None
  assert counted.num_made == 0
  assert counted.stage().run(run, wait=False) is True


def test_nothing_is_written_before_what_a_stage_requires_is_there(tmp_path):
  first, second, run = Counted(), Counted(), tiny_run(tmp_path)
  wanted = second.stage(requires=lambda experiment: [first.stage()])
  with pytest.raises(
    MissingInputError, match=r'^the examples are not counted\. Run .* with --stages=count first\.$'
  ):
    wanted.run(run)
  assert list(tmp_path.iterdir()) == []
  first.stage().run(run)
  assert wanted.run(run) is False  # it has the folder of the first
  assert (first.num_made, second.num_made) == (1, 0)


def test_stages_of_another_experiment_are_run_first_and_divergence_is_explained(tmp_path):
  first, run, other = Counted(), tiny_run(tmp_path), tiny_run(tmp_path, seed=1)

  def diverge():
    assert first.num_made == 1
    raise DivergedError('the loss is nan.')

  job = dataclasses.replace(first.job(run), make=diverge)
  diverging = Stage(
    'diverging',
    lambda experiment: [job],
    prepares=lambda experiment: [(first.stage(), other)],
    on_divergence='Go on without.',
  )
  with pytest.raises(DivergedError, match=r'^the loss is nan\. Go on without\.$'):
    diverging.run(run)


def test_work_goes_on_only_with_the_data_that_it_began_with(tmp_path):
  counted, run = Counted(), tiny_run(tmp_path)
  counted.stage().run(run)
  folder = counted.job(run).folder
  (folder / 'count.json').unlink()
  files.write_json(folder / 'data.json', {'checksum': 'another'})
  with pytest.raises(DamageError, match='made from other data'):
    counted.stage().run(run)
  assert counted.num_made == 1


def test_items_that_fail_or_are_busy_stop_no_other():
  attempts, free = [], {'a': False, 'b': True, 'c': True}

  def attempt(item, wait):
    attempts.append((item, wait))
    if item == 'b':
      raise DamageError('b is damaged')
    return free[item] or wait

  failures = stage.in_turn(['a', 'b', 'c'], attempt)
  assert {item: str(error) for item, error in failures.items()} == {'b': 'b is damaged'}
  assert attempts[:3] == [('a', False), ('b', False), ('c', False)]
  assert attempts[-1] == ('a', True) and not any(wait for _, wait in attempts[:-1])


def test_reading_writes_nothing(finished, tmp_path):
  """The driver alone writes lost records again."""
  run = copied(finished, tmp_path)
  for folder in (run.folders.member(0), run.folders.student):
    (folder / 'config.json').unlink()
    (folder / 'data.json').unlink()
  before = content(tmp_path)
  teachers.load(run, 0)
  student.load(run)
  assert content(tmp_path) == before
  assert teachers.STAGE.run(run) is False and student.STAGE.run(run) is False
  assert content(tmp_path) == content(pathlib.Path(finished.workdir))
  shutil.rmtree(tmp_path / 'teachers')
  with pytest.raises(MissingInputError, match='teacher member 0'):
    teachers.load(run, 0)


def content(folder: pathlib.Path) -> dict[str, bytes]:
  paths = [path for path in folder.rglob('*') if path.is_file() and path.suffix != '.lock']
  return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}
