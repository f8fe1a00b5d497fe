import shutil

import jax
import numpy as np
import pytest
from conftest import copied, tiny_run

from kdjax import data, metrics
from kdjax.errors import DamageError, MissingInputError
from kdjax.predictions.teachers import ensemble
from kdjax.stages import pipeline, predictions, student, teachers
from kdjax.train.checkpoint import digest


def test_needs_the_store_alone_and_goes_on_from_the_checkpoint_before_a_lost_one(
  finished, tmp_path
):
  run = copied(finished, tmp_path)
  expected, result = digest(student.load(run)), run.folders.student / 'result.json'
  content = result.read_text()
  (final,) = (run.folders.student / 'checkpoints').glob('34')
  shutil.rmtree(final)
  result.unlink()
  shutil.move(run.workdir / 'teachers', tmp_path / 'moved away')
  with pytest.raises(MissingInputError, match='--stages=student'):
    student.load(run)
  assert pipeline.STAGES['student'].run(run)
  assert digest(student.load(run)) == expected
  assert pipeline.STAGES['evaluation'].run(run)
  assert result.read_text() == content


def test_names_the_command_that_makes_what_is_missing(finished, tmp_path):
  run = tiny_run(tmp_path)
  with pytest.raises(MissingInputError, match='--stages=predictions'):
    student.STAGE.run(run)
  with pytest.raises(MissingInputError, match='--stages=student'):
    student.load(run)
  run = copied(finished, tmp_path, student__init_lambda=0.5)
  shutil.rmtree(run.workdir / 'teachers')
  with pytest.raises(MissingInputError, match='--stages=teachers'):
    student.STAGE.run(run)


def test_training_goes_on_with_the_data_that_it_began_with(finished, tmp_path):
  run = copied(finished, tmp_path)
  (run.folders.student / 'complete.json').unlink()
  (run.folders.member(0) / 'complete.json').unlink()
  labels_N = run.data.splits['train'].labels_N.copy()
  labels_N[0] += 1
  run.data.splits = run.data.splits | {
    'train': data.Split(run.data.splits['train'].inputs_N, labels_N)
  }
  for stage in (teachers.STAGE, student.STAGE):
    with pytest.raises(DamageError, match='made from other data'):
      stage.run(run)


def test_a_lost_config_is_written_again(finished, tmp_path):
  run = copied(finished, tmp_path)
  expected = (run.folders.student / 'config.json').read_text()
  (run.folders.student / 'config.json').unlink()
  assert not student.STAGE.run(run)
  assert (run.folders.student / 'config.json').read_text() == expected


def test_checkpoints_along_the_trajectory_are_kept(finished):
  num_steps = finished.student.plan.num_steps
  found = {int(p.name) for p in (finished.folders.student / 'checkpoints').iterdir()}
  assert found == {0, round(num_steps / 2), num_steps}
  first = student.load(finished, step=0)
  assert digest(first) == digest(finished.student.init_variables(seed=0))
  assert digest(first) != digest(student.load(finished))


def test_a_student_that_starts_at_the_teacher_matches_it(finished, tmp_path):
  fields = {'teacher__num_members': 1, 'predictions__mode': 'online'}  # stored ones are rounded
  run = copied(finished, tmp_path, student__init_lambda=1.0, **fields)
  variables = student.initial_variables(run)
  logits = run.predictor.logits(run.student.model, variables, run.data.inputs['test'])
  teacher = ensemble(predictions.open_teacher(run), 'test')
  found = metrics.fidelity(logits, teacher)
  assert found['top1_agreement'] == 1
  assert found['predictive_kl'] < 1e-8


def test_lambda_interpolates_the_weights(finished, tmp_path):
  ends = {w: copied(finished, tmp_path, student__init_lambda=w) for w in (0.0, 0.25, 1.0)}
  random, mixed, teacher = (student.initial_variables(run)['params'] for run in ends.values())
  expected = jax.tree.map(lambda r, t: 0.75 * np.asarray(r) + 0.25 * np.asarray(t), random, teacher)
  jax.tree.map(lambda e, m: np.testing.assert_allclose(m, e, atol=1e-6), expected, mixed)
  assert digest(teacher) == digest(teachers.load(ends[1.0], 0)['params'])


def test_a_student_can_start_at_the_initial_weights_of_the_teacher(tmp_path):
  """The seed decides these weights, so no teacher is needed."""
  fields = {'student__init_from': 'initial', 'model__name': 'lenet', 'dataset__image_size': 12}
  run = tiny_run(tmp_path, student__init_lambda=1.0, **fields)
  teacher = teachers.initial(run, 0)
  found = student.initial_variables(run)
  assert digest(found) == digest(teacher)
  random = run.student.init_variables(run.config.seed)
  assert digest(found) != digest(random)
  half = student.initial_variables(tiny_run(tmp_path, student__init_lambda=0.5, **fields))
  jax.tree.map(
    lambda h, t, r: np.testing.assert_allclose(h, (t + r) / 2, atol=1e-6), half, teacher, random
  )


def test_batch_statistics_are_re_estimated_after_interpolation(finished, tmp_path):
  """The first BatchNorm sees outputs of the first layer; its statistics are those of all images."""
  run = copied(
    finished,
    tmp_path,
    student__init_lambda=0.5,
    student__batch_size=40,  # divides 200, so that every image counts once
    predictions__augmentation=(),
  )
  variables = student.initial_variables(run)
  images = run.data.splits['train'].inputs_N.astype(np.float32) / 127.5 - 1
  layer = variables['params']['Hidden_0']['Dense_0']
  outputs = images.reshape(200, -1) @ np.asarray(layer['kernel']) + np.asarray(layer['bias'])
  found = variables['batch_stats']['Hidden_0']['BatchNorm_0']
  np.testing.assert_allclose(found['mean'], outputs.mean(0), atol=1e-5)
  np.testing.assert_allclose(found['var'], outputs.var(0), rtol=1e-4)


def test_the_student_may_have_a_model_and_a_seed_of_its_own(finished, tmp_path):
  run = tiny_run(tmp_path, student__model__options={'width': 8}, student__seed=7)
  assert run.folders.predictions.name == finished.folders.predictions.name
  found = student.initial_variables(run)
  assert found['params']['Dense_0']['kernel'].shape == (8, 10)
  assert run.teacher.init_variables(7)['params']['Dense_0']['kernel'].shape == (12, 10)
  assert digest(found) == digest(run.student.init_variables(7))


def test_controls(tmp_path):
  """The stages of a student that learns labels alone beside a teacher that never learnt anything."""
  run = tiny_run(
    tmp_path,
    teacher__num_members=1,
    teacher__num_epochs=0,
    predictions__dtype='float32',
    student__alpha=1.0,
    student__num_epochs=1,
    student__keep_checkpoints=(),
  )
  for stage in ('teachers', 'predictions', 'student', 'evaluation'):
    pipeline.STAGES[stage].run(run)
  assert digest(teachers.load(run, 0)) == digest(teachers.initial(run, 0))
  before = student.load(run)
  run.config.student.loss = 'brier'  # whatever is learnt from the teacher, the student is the same
  assert student.STAGE.run(run)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), before, student.load(run))


def test_data_recycling(tmp_path):
  """A student is distilled on D1 alone, from a teacher that learnt from D0 alone."""
  run = tiny_run(
    tmp_path,
    teacher__num_members=1,
    teacher__num_epochs=1,
    teacher__examples=(0, 100),
    teacher__augmentation=(),
    predictions__examples=(100, 200),
    predictions__augmentation=(),
    predictions__num_views=1,
    predictions__dtype='float32',
    student__num_epochs=1,
    student__keep_checkpoints=(),
  )
  images, labels = run.data.splits['train'].inputs_N.copy(), run.data.splits['train'].labels_N
  run.data.splits = run.data.splits | {'train': data.Split(images, labels)}  # to be changed
  positions = data.Split(np.arange(200), labels)
  in_d0, in_d1 = (data.part(positions, part).inputs_N for part in ((0, 100), (100, 200)))
  assert sorted([*in_d0, *in_d1]) == list(range(200))
  trainer, original = teachers.Trainer(run), images.copy()

  def trained(changed) -> str:
    images[changed] = 255 - original[changed]
    shutil.rmtree(run.folders.member(0), ignore_errors=True)
    trainer.fit(0)
    images[:] = original
    return digest(teachers.load(run, 0))

  weights = trained([])
  assert trained(in_d0[:1]) != weights
  assert trained(in_d1) == weights
  assert predictions.STAGE.run(run) and student.STAGE.run(run)
  logits, _ = run.teacher.model.apply(
    teachers.load(run, 0), original[in_d1].astype(np.float32) / 127.5 - 1, train=False
  )
  stored = predictions.open_teacher(run).members('distillation')
  np.testing.assert_allclose(stored, jax.nn.log_softmax(logits)[None], atol=1e-4)
  assert (run.folders.student / 'checkpoints' / '3').exists()  # 100 examples, 48 a batch
  assert (len(run.data.splits['train']), len(run.data.inputs['distillation'].split)) == (200, 100)
