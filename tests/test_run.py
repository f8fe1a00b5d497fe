"""A workdir may lie in a bucket: no path of a run may be mangled on its way."""

import os

from conftest import tiny_run
from etils import epath

from kdjax import config as config_lib
from kdjax.run import Run
from kdjax.store import PredictionStore, kvstore


def test_all_folders_of_a_run_stay_in_its_bucket(tmp_path):
  config = tiny_run(tmp_path).config
  run = Run(config, epath.Path('gs://bucket/some/dir'))
  folders = [run.member_folder(1), run.predictions_folder, run.student_folder]
  assert [folder.as_posix() for folder in folders] == [
    f'gs://bucket/some/dir/teachers/{config_lib.teacher_fingerprint(config)}/member_1',
    f'gs://bucket/some/dir/predictions/{config_lib.predictions_fingerprint(config)}',
    f'gs://bucket/some/dir/students/{config_lib.student_fingerprint(config)}',
  ]
  assert str(run.student_folder / 'tensorboard').startswith('gs://bucket/')  # for tensorboardX
  assert kvstore(PredictionStore(run.predictions_folder).folder / 'logits') == {
    'driver': 'gcs',
    'bucket': 'bucket',
    'path': f'some/dir/predictions/{run.predictions_folder.name}/logits/',
  }


def test_a_relative_workdir_is_made_absolute(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  run = Run(tiny_run(tmp_path).config, epath.Path('here'))
  assert run.workdir.as_posix() == os.fspath(tmp_path / 'here')


def test_a_student_section_overrides_the_model_field_by_field(tmp_path):
  run = tiny_run(tmp_path, student__model__depth=14, student__model__norm='layer')
  assert (run.student_model.blocks_per_stage, run.student_model.norm) == (2, 'layer')
  assert (run.teacher_model.blocks_per_stage, run.teacher_model.norm) == (1, 'batch')
  assert run.student_model.width == run.teacher_model.width == 4
