"""Losses against values worked out by hand and against float64 NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
import scipy.stats

from kdjax import losses

LOSSES = {  # of (student logits, teacher log_probs, labels)
  'cross_entropy': lambda student, teacher, labels: losses.cross_entropy(student, labels),
  'distillation': lambda student, teacher, labels: losses.distillation(student, teacher, 4.0),
  'kl_divergence': lambda student, teacher, labels: losses.kl_divergence(teacher, student),
}


def make_inputs(scale=2.0, shape=(5, 3)):
  """Student logits, teacher log_probs and labels, with B ≠ C."""
  rng = np.random.default_rng(0)
  student, teacher = rng.normal(size=(2, *shape)).astype(np.float32) * scale
  return (
    student,
    scipy.special.log_softmax(teacher, axis=-1),
    rng.integers(shape[-1], size=shape[0]),
  )


def reference_distillation(student, teacher, temperature):
  """The formula in float64."""
  student, teacher = np.asarray(student, np.float64), np.asarray(teacher, np.float64)
  probs = scipy.special.softmax(teacher / temperature, axis=-1)
  log_probs = scipy.special.log_softmax(student / temperature, axis=-1)
  return -(temperature**2) * (probs * log_probs).sum(-1)


# The ensemble.


def test_ensemble_averages_probabilities_and_not_logits():
  logits_MBC = jnp.log(jnp.array([[[0.9, 0.1]], [[0.5, 0.5]]]))
  probs_BC = np.exp(losses.ensemble_log_probs(logits_MBC))
  np.testing.assert_allclose(probs_BC, [[0.7, 0.3]], rtol=1e-6)
  # √0.45 to √0.05 is 3 to 1.
  of_mean_logits = jax.nn.softmax(logits_MBC.mean(0))
  np.testing.assert_allclose(of_mean_logits, [[0.75, 0.25]], rtol=1e-6)


def test_ensemble_reduces_the_first_axis_only():
  logits_MBC = np.random.default_rng(1).normal(size=(2, 3, 4))
  expected_BC = np.log(scipy.special.softmax(logits_MBC, axis=2).mean(axis=0))
  result_BC = losses.ensemble_log_probs(logits_MBC.astype(np.float32))
  assert result_BC.shape == (3, 4)
  np.testing.assert_allclose(result_BC, expected_BC, rtol=1e-5)


def test_members_may_be_given_as_logits_or_log_probs():
  logits_MBC = np.random.default_rng(2).normal(size=(3, 2, 4)).astype(np.float32) + 5
  from_log_probs = losses.ensemble_log_probs(jax.nn.log_softmax(logits_MBC))
  expected_BC = np.log(scipy.special.softmax(logits_MBC.astype(np.float64), axis=2).mean(axis=0))
  np.testing.assert_allclose(from_log_probs, expected_BC, rtol=1e-5)
  np.testing.assert_allclose(losses.ensemble_log_probs(logits_MBC), expected_BC, rtol=1e-5)


@pytest.mark.parametrize('num_members', [1, 4])
def test_equal_members_are_as_good_as_one(num_members):
  logits_BC = np.random.default_rng(3).normal(size=(3, 5)).astype(np.float32)
  result = losses.ensemble_log_probs(np.stack([logits_BC] * num_members))
  np.testing.assert_allclose(result, scipy.special.log_softmax(logits_BC, axis=-1), rtol=2e-6)


def test_ensemble_of_members_that_are_certain():
  logits_MBC = jnp.array([[[1e4, -1e4]], [[-1e4, 1e4]]])
  np.testing.assert_allclose(losses.ensemble_log_probs(logits_MBC), np.log([[0.5, 0.5]]), rtol=1e-6)


# Values.


def test_cross_entropy_golden():
  logits_BC = jnp.log(jnp.array([[1.0, 2.0, 5.0], [1.0, 2.0, 5.0]]))  # in eighths
  losses_B = losses.cross_entropy(logits_BC, jnp.array([1, 2]))
  np.testing.assert_allclose(losses_B, [np.log(4), np.log(8 / 5)], rtol=1e-6)


def test_cross_entropy_takes_any_leading_axes():
  logits_BC, _, labels_B = make_inputs(shape=(6, 4))
  losses_B = losses.cross_entropy(logits_BC, labels_B)
  nested = losses.cross_entropy(logits_BC.reshape(2, 3, 4), labels_B.reshape(2, 3))
  np.testing.assert_array_equal(nested, losses_B.reshape(2, 3))


def test_distillation_golden():
  # At τ = 2 the teacher's (1/5, 4/5) becomes (1/3, 2/3) and the student's (1/10, 9/10) (1/4, 3/4).
  teacher_BC, student_BC = jnp.log(jnp.array([[0.2, 0.8]])), jnp.log(jnp.array([[0.1, 0.9]]))
  losses_B = losses.distillation(student_BC, teacher_BC, 2.0)
  expected = -4 * (np.log(1 / 4) / 3 + 2 * np.log(3 / 4) / 3)
  np.testing.assert_allclose(losses_B, [expected], rtol=1e-6)


def test_kl_divergence_golden():
  half, quarter = jnp.log(jnp.array([[0.5, 0.5]])), jnp.log(jnp.array([[0.25, 0.75]]))
  np.testing.assert_allclose(losses.kl_divergence(half, quarter), [np.log(4 / 3) / 2], rtol=1e-5)
  other_way = 0.25 * np.log(1 / 2) + 0.75 * np.log(3 / 2)
  np.testing.assert_allclose(losses.kl_divergence(quarter, half), [other_way], rtol=1e-5)


def test_kl_divergence_is_zero_at_equality():
  student, _, _ = make_inputs()
  kl_B = losses.kl_divergence(jax.nn.log_softmax(student), student + 7)
  np.testing.assert_allclose(kl_B, np.zeros(5), atol=1e-6)


@pytest.mark.parametrize('log_prob', [-1e4, -np.inf])
def test_kl_divergence_with_a_probability_that_underflows(log_prob):
  teacher_BC = jnp.array([[0.0, log_prob]])
  student_BC = jnp.log(jnp.array([[0.25, 0.75]]))
  np.testing.assert_allclose(losses.kl_divergence(teacher_BC, student_BC), [np.log(4)], rtol=1e-6)


@pytest.mark.parametrize('name', LOSSES)
def test_a_value_depends_on_its_own_example_alone(name):
  inputs = make_inputs()
  losses_B = LOSSES[name](*inputs)
  assert losses_B.shape == (5,)
  for i in range(5):
    alone = LOSSES[name](*(x[i : i + 1] for x in inputs))
    np.testing.assert_allclose(alone, losses_B[i : i + 1], rtol=1e-6)


@pytest.mark.parametrize('name', LOSSES)
def test_jit_equals_eager(name):
  inputs = make_inputs()
  np.testing.assert_allclose(jax.jit(LOSSES[name])(*inputs), LOSSES[name](*inputs), rtol=1e-5)


@pytest.mark.parametrize('name', LOSSES)
def test_extreme_logits_stay_finite(name):
  student = jnp.array([[1e4, -1e4, 0.0], [-1e4, 1e4, 1e4]])
  teacher = jax.nn.log_softmax(jnp.array([[-1e4, 1e4, 0.0], [-1e4, 1e4, 1e4]]))
  labels = jnp.array([1, 2])
  gradient = jax.grad(lambda s: LOSSES[name](s, teacher, labels).sum())(student)
  losses_B = LOSSES[name](student, teacher, labels)
  assert np.isfinite(losses_B).all() and np.isfinite(gradient).all()
  # The first example is as wrong as can be: 2e4 nats at τ = 1, and τ times that at τ.
  expected = {'distillation': 8e4}.get(name, 2e4)
  np.testing.assert_allclose(losses_B[0], expected, rtol=1e-5)


# The distillation loss.


@pytest.mark.parametrize('temperature', [1.0, 4.0])
def test_distillation_gradient_by_finite_differences(temperature):
  student, teacher, _ = make_inputs()
  gradient = jax.grad(lambda s: losses.distillation(s, teacher, temperature).sum())(student)
  step = 1e-5
  for place in np.ndindex(student.shape):
    moved = [student.astype(np.float64) for _ in range(2)]
    moved[0][place] += step
    moved[1][place] -= step
    above, below = (reference_distillation(s, teacher, temperature).sum() for s in moved)
    np.testing.assert_allclose(gradient[place], (above - below) / (2 * step), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize('temperature', [1.0, 4.0])
def test_distillation_is_least_where_the_student_equals_the_teacher(temperature):
  _, teacher, _ = make_inputs()
  at_teacher = losses.distillation(teacher + 3, teacher, temperature)
  probs = scipy.special.softmax(teacher / temperature, axis=-1)
  least = temperature**2 * scipy.stats.entropy(probs, axis=-1)
  np.testing.assert_allclose(at_teacher, least, rtol=1e-5)
  gradient = jax.grad(lambda s: losses.distillation(s, teacher, temperature).sum())(teacher)
  np.testing.assert_allclose(gradient, np.zeros_like(gradient), atol=1e-5)
  rng = np.random.default_rng(4)
  for _ in range(20):
    elsewhere = teacher + rng.normal(size=teacher.shape).astype(np.float32)
    assert (losses.distillation(elsewhere, teacher, temperature) > at_teacher).all()


def test_distillation_from_a_certain_teacher_is_cross_entropy():
  student, _, labels = make_inputs()
  one_hot = np.where(np.arange(3) == labels[:, None], 0.0, -np.inf)
  result = losses.distillation(student, one_hot, 1.0)
  np.testing.assert_allclose(result, losses.cross_entropy(student, labels), rtol=1e-6)


def test_distillation_gradient_tends_to_that_of_a_squared_loss_on_centred_logits():
  student, teacher, _ = make_inputs(scale=1.0)
  gradient = jax.grad(lambda s: losses.distillation(s, teacher, 1000.0).sum())(student)
  difference = student - teacher
  expected = (difference - difference.mean(-1, keepdims=True)) / 3
  np.testing.assert_allclose(gradient, expected, atol=3e-3)
