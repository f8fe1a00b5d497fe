"""The short form of the fault suite: a few faults of each kind. `python -m tests.faults` has them all."""

import shutil

import pytest
from conftest import copied

from kdjax.interface import commands
from kdjax.stages import pipeline
from tests.faults import processes, trials, workdirs
from tests.faults.workdirs import CLEAR_ERROR, IDENTICAL, Outcome

needs_mount = pytest.mark.skipif(
  not processes.can_mount(), reason='only a user who may mount can fill or lock a disk'
)


@pytest.fixture(scope='module')
def workdir(finished, tmp_path_factory):
  """An undisturbed run. Later runs draw no report."""
  folder = tmp_path_factory.mktemp('undisturbed') / 'run'
  copied(finished, folder)
  assert workdirs.attempt(folder) is None
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(workdirs, 'RUN', [name for name in pipeline.STAGES if name != 'report'])
    yield folder


@pytest.fixture(scope='module')
def expected(workdir):
  return workdirs.results(workdir)


def test_interrupted_and_killed_it_ends_with_the_very_same_numbers(expected, tmp_path):
  started = trials.start(tmp_path / 'run')
  assert processes.reaches(started, tmp_path / 'run', 'teachers/*/member_0/checkpoints/*')
  started.interrupt()
  assert started.wait(60) == commands.INTERRUPTED == 130
  assert started.told.splitlines()[-1] == 'interrupted; the same command resumes'
  assert 'Traceback' not in started.told
  moments = ['predictions/*/logits/distillation/c/1/*', 'students/*/checkpoints/*/state/d']
  num_killed, outcome = trials.killed(tmp_path, expected, moments, [0.0] * len(moments))
  assert outcome == Outcome(IDENTICAL)
  assert num_killed == len(moments)


def test_two_processes_at_once_share_the_work_and_do_nothing_twice(expected, tmp_path):
  assert trials.at_once(tmp_path, expected, 2) == Outcome(IDENTICAL)


@needs_mount
def test_a_full_disk_gets_one_clear_error_and_then_the_same_numbers(expected, tmp_path):
  outcome = trials.full_disk(tmp_path, expected, 300)
  assert outcome.kind == CLEAR_ERROR, outcome
  assert 'No space left' in outcome.detail


@pytest.mark.skipif(processes.can_mount(), reason='a full disk is tried')
def test_what_cannot_be_written_gets_one_clear_error_and_then_the_same_numbers(expected, tmp_path):
  outcome = trials.file_too_large(tmp_path, expected, 15_000)
  assert outcome.kind == CLEAR_ERROR, outcome


@needs_mount
@pytest.mark.parametrize('stage, kind', [('predictions', CLEAR_ERROR), ('finished', IDENTICAL)])
def test_a_read_only_folder_gets_one_clear_error_if_there_is_work_to_do(
  workdir, expected, tmp_path, stage, kind
):
  outcome = trials.read_only(tmp_path, expected, workdir, stage)
  assert outcome.kind == kind, outcome


@pytest.mark.parametrize(
  'stage, damage, kind, outcome',
  [
    ('teachers', 'bit flipped', 'teachers/*/member_1/checkpoints/13/state/d/*', CLEAR_ERROR),
    ('teachers', 'removed', 'teachers/*/member_1/data.json', IDENTICAL),
    ('predictions', 'bit flipped', 'predictions/*/logits/distillation/c/1/2/0/0', CLEAR_ERROR),
    ('predictions', 'removed', 'predictions/*/logits/test/zarr.json', CLEAR_ERROR),
    ('interrupted student', 'truncated', 'students/*/metrics.jsonl', IDENTICAL),
    ('student', 'bit flipped', 'students/*/complete.json', CLEAR_ERROR),
    ('finished', 'bit flipped', 'students/*/result.json', CLEAR_ERROR),
    ('finished', 'bit flipped', 'students/*/metrics.jsonl', IDENTICAL),
    ('finished', 'removed', 'students/*/logits.npz', IDENTICAL),
    ('finished', 'bit flipped', 'results.csv', IDENTICAL),
  ],
)
def test_damage_is_told_or_mended(
  workdir, expected, tmp_path, monkeypatch, stage, damage, kind, outcome
):
  if kind == 'results.csv':  # which the report writes, and the page is up to date
    monkeypatch.setattr(workdirs, 'RUN', list(pipeline.STAGES))
    expected = workdirs.results(workdir)
  path = workdirs.kinds(workdir, stage)[kind][0]
  found = trials.damaged(tmp_path, expected, workdir, (stage, damage, kind, path), (0,))
  assert found.kind == outcome, found


def test_a_wrong_result_and_useless_advice_are_bad(workdir, expected, tmp_path, monkeypatch):
  copy = tmp_path / 'run'
  shutil.copytree(workdir, copy)
  other = expected | {'student: arrays': 'others'}
  assert workdirs.judge(copy, other) == Outcome('BAD', 'differs: student: arrays; after: None')
  monkeypatch.setattr(workdirs, 'attempt', lambda *_: 'something is wrong')
  assert workdirs.judge(copy, expected).detail == 'says nothing that helps: something is wrong'


def test_the_files_that_an_error_says_to_delete_are_found(tmp_path):
  a, b = tmp_path / 'a.json', tmp_path / 'b' / '13'
  assert workdirs.to_delete(f'{a} is damaged (x). Delete it and run again.', tmp_path) == [a]
  text = f'{a} is damaged. Delete {b} and {a}, and run with --stages=x: {tmp_path}/c stays.'
  assert workdirs.to_delete(text, tmp_path) == [b, a]
