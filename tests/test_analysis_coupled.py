"""The analysis of a student whose loss couples the examples of a batch."""

import numpy as np
import pytest
from conftest import copied

from analysis import measure, runs
from kdjax import losses
from kdjax.losses import on_logits


@pytest.fixture(scope='module')
def study(finished, tmp_path_factory):
  """The finished student as if it had been trained by DIST, which correlates classes over the batch."""
  run = copied(finished, tmp_path_factory.mktemp('coupled'), student__loss='dist')
  return runs.Study(run)


def test_the_loss_is_that_of_the_batch(study):
  measured = measure.Measure(study, 50)
  (batch,) = measured.batches('distillation')
  assert measured.couples_examples
  student_BC = np.random.default_rng(0).normal(size=batch['teacher_log_probs'].shape)
  tau = study.experiment.config.student.temperature
  found = measured.objective('distillation')(student_BC, batch)
  expected = on_logits.dist(student_BC, batch['teacher_log_probs'], tau)
  np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_a_loss_with_a_mean_over_the_batch_is_measured():
  loss = lambda student, teacher, temperature, *, batch_mean: (
    student.sum(-1) - batch_mean(student).sum()
  )
  batch = {'teacher_log_probs': np.log([[0.9, 0.1], [0.2, 0.8]]), 'labels': np.array([0, 1])}
  logits_BC = np.array([[1.0, 2.0], [5.0, 2.0]])
  found = measure.example_losses(logits_BC, batch, loss=loss, temperature=1.0, alpha=0.0)['loss']
  own = logits_BC.sum(-1) - logits_BC.mean(0).sum()
  teacher_BC = batch['teacher_log_probs']
  np.testing.assert_allclose(
    found, own - (teacher_BC.sum(-1) - teacher_BC.mean(0).sum()), rtol=1e-5
  )


@pytest.mark.parametrize(('name', 'couples'), [('dist', True), ('cross_entropy', False)])
def test_without_batch_norm_the_loss_decides(study, name, couples):
  loss = {'loss': losses.make(name, {}), 'temperature': 1.0, 'alpha': 0.0}
  model = study.experiment.student.model
  surface = measure.Distilled(model, loss, {}, batch_size=8, has_statistics=False)
  assert surface.couples_examples == couples
