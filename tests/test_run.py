"""The values that an experiment derives from its config: folders, sizes, plans, inputs, and the outputs of models."""

import os

import numpy as np
import pytest
from conftest import copied, tiny_run
from etils import epath

from kdjax import config as config_lib
from kdjax import data
from kdjax.errors import DamageError, MissingInputError
from kdjax.predictions.store import PredictionStore, kvstore
from kdjax.stages import teachers
from kdjax.stages.experiment import Experiment


def test_all_folders_of_a_run_stay_in_its_bucket(tmp_path):
  config = tiny_run(tmp_path).config
  run = Experiment(config, epath.Path('gs://bucket/some/dir'))
  folders = [run.folders.member(1), run.folders.gan, run.folders.predictions, run.folders.student]
  assert [folder.as_posix() for folder in folders] == [
    f'gs://bucket/some/dir/teachers/{config_lib.teacher_fingerprint(config)}/member_1',
    f'gs://bucket/some/dir/gans/{config_lib.gan_fingerprint(config)}',
    f'gs://bucket/some/dir/predictions/{config_lib.predictions_fingerprint(config)}',
    f'gs://bucket/some/dir/students/{config_lib.student_fingerprint(config)}',
  ]
  assert str(run.folders.student / 'tensorboard').startswith('gs://bucket/')  # for tensorboardX
  assert kvstore(PredictionStore(run.folders.predictions).folder / 'logits') == {
    'driver': 'gcs',
    'bucket': 'bucket',
    'path': f'some/dir/predictions/{run.folders.predictions.name}/logits/',
  }


def test_a_relative_workdir_is_made_absolute(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  run = Experiment(tiny_run(tmp_path).config, epath.Path('here'))
  assert run.workdir.as_posix() == os.fspath(tmp_path / 'here')


def test_a_student_section_overrides_the_model_field_by_field(tmp_path):
  run = tiny_run(
    tmp_path, model__name='resnet', student__model__depth=14, student__model__norm='layer'
  )
  assert (run.student.model.blocks_per_stage, run.student.model.norm) == (2, 'layer')
  assert (run.teacher.model.blocks_per_stage, run.teacher.model.norm) == (1, 'batch')
  assert run.student.model.width == run.teacher.model.width == 8


# How long to train.


def test_plans_count_the_examples_that_each_learns_from(tmp_path):
  """Epochs are those of the part of the data, with the extra examples."""
  run = tiny_run(
    tmp_path,
    teacher__examples=(0, 120),
    predictions__examples=(100, 200),
    dataset__num_val=0,
    predictions__extra='digits',
    predictions__num_extra=30,
  )
  assert (run.teacher.num_examples, run.student.num_examples) == (120, 130)
  assert run.teacher.plan.num_steps == 8  # 4 epochs of 120, 64 a batch
  assert run.student.plan.num_steps == 22  # 8 epochs of 130, 48 a batch
  assert run.student.plan.epoch(22) == 22 * 48 / 130
  assert run.student.plan.keeps == {0, 11}
  assert len(run.data.inputs['distillation'].split) == 130


def test_the_learning_rate_follows_the_plan_and_its_warm_up(tmp_path):
  fields = {'warmup_epochs': 2.0, 'learning_rate': 0.5, 'final_learning_rate': 0.1}
  run = tiny_run(tmp_path, **{f'student__{name}': value for name, value in fields.items()})
  rate = run.student.learning_rate  # 34 steps, and 400 / 48 = 8 of warm-up
  np.testing.assert_allclose([rate(0), rate(4), rate(8)], [0, 0.25, 0.5], atol=1e-6)
  np.testing.assert_allclose([rate(21), rate(34)], [0.3, 0.1], rtol=1e-5)


# Data.


def test_the_distillation_data_are_the_part_and_then_the_extra_images(tmp_path):
  run = tiny_run(
    tmp_path,
    predictions__examples=(100, 200),
    dataset__num_val=0,
    predictions__extra='digits',
    predictions__num_extra=30,
  )
  split = run.data.inputs['distillation'].split
  part = data.part(run.data.splits['train'], (100, 200))
  extra = data.load_extra('digits', run.config.dataset, (8, 8, 1), 30)
  np.testing.assert_array_equal(split.inputs_N, np.concatenate([part.inputs_N, extra]))
  np.testing.assert_array_equal(split.labels_N, [*part.labels_N, *[-1] * 30])
  assert run.data.inputs['train'].split is run.data.splits['train']


def test_extra_images_alone_can_be_distilled_on_and_stay_as_they_are(tmp_path):
  fields = {'predictions__extra': 'digits', 'predictions__num_extra': 30, 'dataset__num_val': 0}
  fields |= {'predictions__examples': (0, 0), 'predictions__augment_extra': False}
  run = tiny_run(tmp_path, **fields)
  inputs, extra = run.data.inputs['distillation'], run.data.extra_inputs['extra']
  np.testing.assert_array_equal(inputs.split.inputs_N, extra)
  assert run.student.num_examples == 30
  batch = inputs.batch(np.arange(30), np.zeros(30, np.int32))
  images, labels = inputs.view(0, batch)  # crops, but for these
  np.testing.assert_allclose(images, extra / np.float32(127.5) - 1, atol=1e-6)
  assert (np.asarray(labels) == -1).all()


def test_parts_are_taken_by_the_subset_seed(tmp_path):
  fields = {'teacher__examples': (0, 60), 'predictions__examples': (0, 60)}

  def part(section, **more):
    run = tiny_run(tmp_path, **fields, **more)
    return run.data.part(run.config[section]).inputs_N.tobytes()

  assert part('teacher') == part('predictions') == part('teacher', dataset__subset_seed=0)
  assert part('teacher', seed=1) != part('teacher')
  assert part('teacher', seed=1) == part('predictions', dataset__subset_seed=1)
  run = tiny_run(tmp_path, **fields, seed=1)
  for name, split in tiny_run(tmp_path).data.splits.items():  # whatever the seed is
    assert run.data.splits[name] is split


def test_the_checksum_of_the_student_covers_the_extra_images(tmp_path):
  plain = tiny_run(tmp_path, dataset__num_val=0)
  fields = {'predictions__extra': 'digits', 'predictions__num_extra': 30, 'dataset__num_val': 0}
  run, other = (tiny_run(tmp_path, **fields) for _ in range(2))
  other.data.extra_inputs['extra'][3, 0, 0] ^= 1
  assert run.data.training.checksum == other.data.training.checksum == plain.data.training.checksum
  checksums = {r.data.everything.checksum for r in (plain, run, other)}
  assert len(checksums) == 3
  with pytest.raises(DamageError, match='made from other data'):
    other.data.everything.require(run.data.everything.checksum, run.folders.student)
  other.data.training.require(run.data.training.checksum, run.folders.student)


def test_gan_samples_are_the_first_ones_or_all(tmp_path):
  fields = {'predictions__extra': 'gan', 'predictions__num_extra': 2}
  run = tiny_run(tmp_path, **fields, gan__num_samples=3)
  with pytest.raises(MissingInputError, match='--stages=gan'):
    run.data.gan_samples(2)
  images = np.arange(3 * 64, dtype=np.uint8).reshape(3, 8, 8, 1)
  run.folders.gan.mkdir(parents=True)
  np.savez(run.folders.gan / 'samples.npz', images_NHWC=images)
  run.data.training.begin(run.folders.gan)
  np.testing.assert_array_equal(run.data.gan_samples(2), images[:2])
  np.testing.assert_array_equal(run.data.gan_samples(), images)
  np.testing.assert_array_equal(run.data.extra_inputs['extra'], images[:2])


# Outputs of models.


def test_predictions_and_features_are_the_models_in_the_order_of_the_indices(finished):
  variables, indices = teachers.load(finished, 0), np.array([300, 2, 5, 2, *range(70, 140)])
  inputs, model = finished.data.inputs['test'], finished.teacher.model
  images = inputs.split.inputs_N[indices].astype(np.float32) / 127.5 - 1
  logits, features = model.apply(variables, images, train=False)
  found = finished.predictor.logits(model, variables, inputs, indices_N=indices)
  np.testing.assert_allclose(found, logits, rtol=1e-4, atol=1e-4)
  found = finished.predictor.features(model, variables, inputs, indices)
  assert set(found) == set(features)
  for name, feature in features.items():
    np.testing.assert_allclose(found[name], feature, rtol=1e-4, atol=1e-4)


def test_labels_are_those_that_a_view_leaves(finished, tmp_path):
  run = copied(
    finished, tmp_path, predictions__augmentation=('noise',), augmentation__noise_probability=0.5
  )
  inputs, own = run.data.inputs['distillation'], run.data.splits['train'].labels_N
  first, second = (run.predictor.labels(inputs, view) for view in (0, 1))
  for labels in (first, second):
    assert 60 < (labels == -1).sum() < 140
    np.testing.assert_array_equal(labels[labels >= 0], own[labels >= 0])
  assert (first != second).any()
  np.testing.assert_array_equal(run.predictor.labels(run.data.inputs['train'], 0), own)
