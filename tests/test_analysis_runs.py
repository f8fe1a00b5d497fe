"""A study and its networks, found from a folder."""

import os
import pathlib
import shutil

import jax
import numpy as np
import pytest
from conftest import copied, tiny_run
from etils import epath

from analysis import runs
from kdjax import config as config_lib
from kdjax.config import base
from kdjax.errors import DamageError, MissingInputError
from kdjax.runtime import files, progress
from kdjax.stages import finished as finished_stage
from kdjax.stages import independent, student, teachers


def equal(a, b) -> bool:
  return jax.tree.all(jax.tree.map(np.array_equal, a, b))


def test_a_workdir_and_a_students_folder_give_the_same_study(finished, monkeypatch):
  by_workdir = runs.load(finished.workdir)
  assert by_workdir.experiment.folders.student == finished.folders.student
  assert runs.load(str(finished.folders.student)).experiment.workdir == finished.workdir
  assert by_workdir.folder == finished.workdir / 'analysis' / finished.folders.student.name
  assert by_workdir.fingerprints['teacher'] == config_lib.teacher_fingerprint(finished.config)
  monkeypatch.chdir(finished.workdir.parent)
  relative = runs.load(finished.workdir.name)
  assert relative.experiment.folders.student == finished.folders.student


def test_the_config_comes_back_with_its_types(finished):
  config = finished_stage.read_config(finished.folders.student)
  assert config.to_dict() == finished.config.to_dict()
  names = [f'{section}.{name}' for section in ('student', 'dataset') for name in config[section]]
  for name in names:
    assert config_lib.is_optional(config, name) == config_lib.is_optional(base.get_config(), name)


def test_variables_are_those_of_the_run(finished):
  study = runs.load(finished.workdir)
  num_steps = finished.student.plan.num_steps
  assert study.steps == [0, num_steps // 2, num_steps]
  assert study.num_members == 2
  assert study.same_architecture
  assert study.has_teachers
  assert equal(study.student(), student.load(finished))
  assert equal(study.student(0), student.load(finished, 0))
  assert not equal(study.student(0), study.student())
  assert equal(study.member(1), teachers.load(finished, 1))
  points = study.points()
  assert list(points) == study.names == ['initial', 'student', 'teacher 0', 'teacher 1']
  assert equal(study.point('initial'), study.student(0))
  assert equal(points['teacher 1'], study.member(1))


def neighbour(run, **fields):
  """A run with other fields and the student's files in the same workdir."""
  other = tiny_run(run.workdir, **fields)
  shutil.copytree(run.folders.student, other.folders.student)
  (other.folders.student / 'config.json').unlink()
  other.data.everything.restore(other.folders.student)
  return other


def test_siblings_differ_in_the_seed_alone(finished, tmp_path):
  run = copied(finished, tmp_path)
  assert runs.load(tmp_path).siblings == []
  neighbour(run, student__seed=5)
  neighbour(run, student__seed=6, student__temperature=1.0)
  study = runs.load(run.folders.student)
  assert [config_lib.student_seed(other.config) for other in study.siblings] == [5]
  assert equal(study.points()['sibling'], study.student())  # the copy


@pytest.fixture
def warnings(monkeypatch):
  """The logged warnings."""
  logged = []
  monkeypatch.setattr(progress.logger, 'warning', lambda text, *args: logged.append(text % args))
  return logged


def damage(run):
  """Empties the files of the last checkpoint."""
  step = str(run.student.plan.num_steps)
  for path in pathlib.Path(run.folders.student / 'checkpoints' / step).rglob('*'):
    if path.is_file():
      path.write_bytes(b'')


def test_a_damaged_neighbour_is_left_out_with_a_warning(finished, tmp_path, warnings):
  run = copied(finished, tmp_path)
  others = [neighbour(run, student__seed=seed) for seed in (5, 6, 7)]
  (others[0].folders.student / 'config.json').write_text('{')
  damage(others[1])
  study = runs.load(run.folders.student)
  assert [other.folders.student for other in study.siblings] == [others[2].folders.student]
  assert [text.split(': ')[:2] for text in warnings] == [
    [str(other.folders.student), 'this other student is left out'] for other in others[:2]
  ]
  assert equal(study.point('sibling'), study.student())  # the copy
  # Its own damage is an error.
  study = runs.load(others[1].folders.student)
  with pytest.raises(DamageError):
    study.student()
  with pytest.raises(DamageError):
    runs.load(others[0].folders.student)


def test_a_damaged_independent_student_is_left_out_with_a_warning(finished, tmp_path, warnings):
  run = copied(finished, tmp_path, evaluation__independent_seed=7)
  study = runs.Study(run)
  folder = independent.counterpart(run).folders.student
  shutil.copytree(run.folders.student, folder)
  assert study.independent.folders.student == folder
  assert study.names == ['initial', 'student', 'teacher 0', 'teacher 1', 'independent']
  damage(independent.counterpart(run))
  study = runs.Study(run)
  assert study.names == ['initial', 'student', 'teacher 0', 'teacher 1']
  assert len(warnings) == 1 and warnings[0].startswith(f'{folder}: this other student is left out')


def test_unrelated_teachers_are_those_of_the_independent_student(finished, tmp_path):
  assert runs.Study(finished).unrelated_teachers() == {}
  run = copied(finished, tmp_path, evaluation__independent_seed=7)
  other = independent.counterpart(run)
  assert runs.Study(run).unrelated_teachers() == {}  # not trained
  shutil.copytree(run.folders.member(1), other.folders.member(1))
  (found,) = runs.Study(run).unrelated_teachers().items()
  assert found[0] == f'{config_lib.teacher_fingerprint(other.config)}/1'
  assert equal(found[1](), teachers.load(run, 1))


def test_a_sibling_is_trained_once(finished, tmp_path):
  copied(finished, tmp_path)
  study = runs.load(tmp_path)
  assert study.siblings == []
  runs.train_sibling(study)
  (sibling,) = study.siblings
  assert config_lib.student_seed(sibling.config) == study.seed + runs.SIBLING
  assert not equal(student.load(sibling), study.student())
  before = sorted(tmp_path.glob('students/*/complete.json'))
  runs.train_sibling(study)
  assert sorted(tmp_path.glob('students/*/complete.json')) == before
  assert (
    runs.load(tmp_path).experiment.folders.student.name == study.experiment.folders.student.name
  )


def test_the_newest_is_the_student_that_was_evaluated_last(finished, tmp_path):
  run = copied(finished, tmp_path)
  other = neighbour(run, student__temperature=1.0)
  times = {run: 2000, other: 1000}
  for of, time in times.items():
    os.utime(of.folders.student / 'result.json', (time, time))
  assert runs.load(tmp_path).experiment.folders.student == run.folders.student
  os.utime(other.folders.student / 'result.json', (3000, 3000))
  assert runs.load(tmp_path).experiment.folders.student == other.folders.student
  for of in times:
    (of.folders.student / 'result.json').unlink()
  with pytest.raises(MissingInputError, match='none of its 2 students is evaluated'):
    runs.load(tmp_path)  # one may be an independent student, or a sibling
  (other.folders.student / 'complete.json').unlink()
  assert runs.load(tmp_path).experiment.folders.student == run.folders.student


def test_missing_students_are_reported(finished, tmp_path):
  with pytest.raises(MissingInputError, match=r'nowhere: there is no such folder'):
    runs.load(tmp_path / 'nowhere')
  with pytest.raises(MissingInputError, match=r'no finished student in .*students; train one'):
    runs.load(tmp_path)
  run = copied(finished, tmp_path)
  (run.folders.student / 'complete.json').unlink()
  with pytest.raises(MissingInputError, match='the student is not finished'):
    runs.load(run.folders.student)


def test_a_changed_config_is_refused(finished, tmp_path):
  path = copied(finished, tmp_path).folders.student / 'config.json'
  config = files.read_json(path)
  config['student']['temperature'] = 3.0
  files.write_json(path, config)
  with pytest.raises(DamageError, match='it was changed, or was written by another version'):
    runs.load(tmp_path)
  config['student']['colour'] = 'red'
  files.write_json(path, config)
  with pytest.raises(DamageError, match=r'does not know: student\.colour'):
    runs.load(tmp_path)
  path.unlink()
  with pytest.raises(DamageError, match=r'config\.json is missing'):
    runs.load(epath.Path(tmp_path))
