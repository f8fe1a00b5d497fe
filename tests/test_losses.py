"""Losses against values worked out by hand and against float64 NumPy."""

import doctest

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
import scipy.stats

from kdjax import losses, metrics, similarity
from kdjax.interface import fidelity
from kdjax.losses import basic, on_features, on_logits

LABELS = np.array([2, 0, 1, 0, 2])  # of the five examples of `make_inputs`
ON_LOGITS = [name for name, loss in losses.LOSSES.items() if 'student_features' not in loss.needs]
FUNCTIONS = {  # of (student logits, teacher log_probs, labels)
  'cross_entropy': lambda student, teacher, labels: losses.cross_entropy(student, labels),
  'kl_divergence': lambda student, teacher, labels: losses.kl_divergence(student, teacher),
  'with_labels': lambda student, teacher, labels: losses.with_labels(
    losses.distillation(student, teacher, 4.0), student, labels, 0.25, 1.0
  ),
  **{
    f'distillation: {name}': lambda student, teacher, labels, name=name: value(
      name, student, teacher, 4.0, labels
    )
    for name in ON_LOGITS
  },
}
OF_A_BATCH = 'distillation: dist'  # a value depends on the other examples of the batch


def value(name, student, teacher, temperature, labels=LABELS):
  return losses.apply(losses.LOSSES[name], student, teacher, temperature, labels_B=labels)


def make_inputs(scale=2.0, shape=(5, 3)):
  """Student logits, teacher log_probs and labels, with B ≠ C."""
  rng = np.random.default_rng(0)
  student, teacher = rng.normal(size=(2, *shape)).astype(np.float32) * scale
  return (
    student,
    scipy.special.log_softmax(teacher, axis=-1),
    rng.integers(shape[-1], size=shape[0]),
  )


def reference(name, student, teacher, temperature, labels=LABELS):
  """The distillation losses in float64, by other formulas where there are any."""
  if name in PAPERS:
    return PAPERS[name](np.float64(student), np.float64(teacher), temperature, labels)
  student, teacher = np.asarray(student, np.float64), np.asarray(teacher, np.float64)
  p = scipy.special.softmax(teacher / temperature, axis=-1)
  q = scipy.special.softmax(student / temperature, axis=-1)
  entropy, forward = scipy.stats.entropy(p, axis=-1), scipy.stats.entropy(p, q, axis=-1)
  backward = scipy.stats.entropy(q, p, axis=-1)
  log_probs = student - scipy.special.logsumexp(student, axis=-1, keepdims=True)
  return {
    'cross_entropy': temperature**2 * (entropy + forward),
    'reverse_kl': temperature**2 * backward,
    'symmetric_kl': temperature**2 * (forward + backward) / 2,
    'hard_labels': -log_probs[np.arange(len(teacher)), teacher.argmax(-1)],
    'brier': temperature**2 * ((p * p).sum(-1) - 2 * (p * q).sum(-1) + (q * q).sum(-1)),
    'logit_mse': np.var(student - teacher, axis=-1),
  }[name]


def standardised_kl(student, teacher, temperature, labels):
  """Algorithm 1 of Sun et al. (2024) on one example after the other."""
  z_score = lambda z: (z - np.mean(z)) / np.std(z) / temperature
  return np.array(
    [
      temperature**2 * scipy.stats.entropy(*map(scipy.special.softmax, (z_score(t), z_score(s))))
      for s, t in zip(student, teacher, strict=True)
    ]
  )


def decoupled(student, teacher, temperature, labels):
  """Equation 7 of Zhao et al. (2022): probabilities of the label and of the other classes, one by one."""
  values = []
  for s, t, label in zip(student, teacher, labels, strict=True):
    p, q = scipy.special.softmax(t / temperature), scipy.special.softmax(s / temperature)
    target = scipy.stats.entropy([p[label], 1 - p[label]], [q[label], 1 - q[label]])
    others = scipy.stats.entropy(np.delete(p, label), np.delete(q, label))  # which normalises
    values.append(temperature**2 * (target + 8 * others))
  return np.array(values)


def dist(student, teacher, temperature, labels):
  """Equations 8 to 10 of Huang et al. (2022), with the correlations of NumPy."""
  p, q = (
    scipy.special.softmax(teacher / temperature, -1),
    scipy.special.softmax(student / temperature, -1),
  )
  distances = lambda x, y: np.array(
    [1 - np.corrcoef(*pair)[0, 1] for pair in zip(x, y, strict=True)]
  )
  return temperature**2 * (2 * distances(p, q) + 2 * distances(p.T, q.T).mean())


PAPERS = {'standardised_kl': standardised_kl, 'decoupled': decoupled, 'dist': dist}


def gradient_of(name, student, teacher, temperature, labels=LABELS):
  labels = labels[: len(student)]
  return jax.grad(lambda s: value(name, s, teacher, temperature, labels).sum())(student)


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


# At τ = 2 the teacher's (1/5, 4/5) becomes p = (1/3, 2/3) and the student's (1/10, 9/10) q = (1/4, 3/4).
GOLDEN = {
  'standardised_kl': 0,  # two classes always become −1 and 1
  'decoupled': 4 * (np.log(4 / 3) / 3 + 2 * np.log(8 / 9) / 3),  # there is but one other class
  'dist': 4 * 2,  # over one example nothing correlates, over two classes everything does
  'cross_entropy': -4 * (np.log(1 / 4) / 3 + 2 * np.log(3 / 4) / 3),
  'reverse_kl': 4 * (np.log(3 / 4) / 4 + 3 * np.log(9 / 8) / 4),
  'symmetric_kl': 2 * (1 / 12) * np.log(3 / 2),  # (4/3) / (8/9) is 3/2
  'hard_labels': -np.log(9 / 10),
  'brier': 4 * 2 * (1 / 12) ** 2,
  'logit_mse': np.log(3 / 2) ** 2,  # the differences are log 1/2 and log 9/8, 2 log 3/2 apart
}


@pytest.mark.parametrize('name', ON_LOGITS)
def test_distillation_losses_golden(name):
  teacher_BC, student_BC = jnp.log(jnp.array([[0.2, 0.8]])), jnp.log(jnp.array([[0.1, 0.9]]))
  losses_B = value(name, student_BC, teacher_BC, 2.0, labels=np.array([0]))
  np.testing.assert_allclose(losses_B, [GOLDEN[name]], rtol=2e-6, atol=1e-6)


@pytest.mark.parametrize('temperature', [0.5, 1.0, 4.0])
@pytest.mark.parametrize('name', ON_LOGITS)
def test_distillation_losses_against_scipy(name, temperature):
  student, teacher, _ = make_inputs()
  for constant in (0, 5):  # softmax does not see it
    losses_B = value(name, student + constant, teacher, temperature)
    np.testing.assert_allclose(
      losses_B, reference(name, student, teacher, temperature), rtol=2e-5, atol=1e-6
    )


def test_kl_divergence_golden():
  half, quarter = jnp.log(jnp.array([[0.5, 0.5]])), jnp.log(jnp.array([[0.25, 0.75]]))
  np.testing.assert_allclose(losses.kl_divergence(quarter, half), [np.log(4 / 3) / 2], rtol=1e-5)
  other_way = 0.25 * np.log(1 / 2) + 0.75 * np.log(3 / 2)
  np.testing.assert_allclose(losses.kl_divergence(half, quarter), [other_way], rtol=1e-5)


def test_kl_divergence_is_zero_at_equality():
  student, _, _ = make_inputs()
  kl_B = losses.kl_divergence(student + 7, jax.nn.log_softmax(student))
  np.testing.assert_allclose(kl_B, np.zeros(5), atol=1e-6)


@pytest.mark.parametrize('log_prob', [-1e4, -np.inf])
def test_kl_divergence_with_a_probability_that_underflows(log_prob):
  teacher_BC = jnp.array([[0.0, log_prob]])
  student_BC = jnp.log(jnp.array([[0.25, 0.75]]))
  np.testing.assert_allclose(losses.kl_divergence(student_BC, teacher_BC), [np.log(4)], rtol=1e-6)


@pytest.mark.parametrize('name', [name for name in FUNCTIONS if name != OF_A_BATCH])
def test_a_value_depends_on_its_own_example_alone(name):
  inputs = make_inputs()
  losses_B = FUNCTIONS[name](*inputs)
  assert losses_B.shape == (5,)
  for i in range(5):
    alone = FUNCTIONS[name](*(x[i : i + 1] for x in inputs))
    np.testing.assert_allclose(alone, losses_B[i : i + 1], rtol=1e-6)


@pytest.mark.parametrize('name', FUNCTIONS)
def test_jit_and_vmap_equal_eager(name):
  inputs = make_inputs()
  expected = FUNCTIONS[name](*inputs)
  np.testing.assert_allclose(jax.jit(FUNCTIONS[name])(*inputs), expected, rtol=1e-5)
  if name != OF_A_BATCH:
    np.testing.assert_allclose(jax.vmap(FUNCTIONS[name])(*inputs), expected, rtol=1e-5)


@pytest.mark.parametrize('name', ON_LOGITS)
def test_the_temperature_may_be_traced(name):
  student, teacher, _ = make_inputs()
  traced = jax.jit(lambda t: value(name, student, teacher, t))(jnp.float32(3.0))
  np.testing.assert_allclose(traced, reference(name, student, teacher, 3.0), rtol=2e-5)


@pytest.mark.parametrize('name', FUNCTIONS)
def test_extreme_logits_stay_finite(name):
  student = jnp.array([[1e4, -1e4, 0.0], [-1e4, 1e4, 1e4]])
  teacher = jax.nn.log_softmax(jnp.array([[-1e4, 1e4, 0.0], [-1e4, 1e4, 1e4]]))
  labels = jnp.array([1, 2])
  for stored in (teacher, teacher.astype(jnp.float16).astype(jnp.float32)):
    gradient = jax.grad(lambda s, t=stored: FUNCTIONS[name](s, t, labels).sum())(student)
    losses_B = FUNCTIONS[name](student, stored, labels)
    assert np.isfinite(losses_B).all() and np.isfinite(gradient).all()
    # The first example is as wrong as can be: 2e4 nats at τ = 1, and τ times that at τ = 4.
    expected = {'cross_entropy': 8e4, 'reverse_kl': 8e4, 'symmetric_kl': 8e4}
    expected |= {'brier': 2 * 16, 'logit_mse': (2e4**2 + 2e4**2) / 3}
    expected |= {'decoupled': 16 * (5000 + 8 * 2500)}  # of the label, and of the other two
    # ρ is −1/2 over the classes, and over the two examples 0, −1 and 1.
    expected |= {'dist': 16 * (2 * 3 / 2 + 2 * 1)}
    expected |= {'standardised_kl': reference('standardised_kl', student, teacher, 4.0)[0]}
    expected = {f'distillation: {key}': x for key, x in expected.items()} | {'with_labels': 6.5e4}
    np.testing.assert_allclose(losses_B[0], expected.get(name, 2e4), rtol=1e-3)


# The distillation losses.


@pytest.mark.parametrize('temperature', [1.0, 4.0])
@pytest.mark.parametrize('name', ON_LOGITS)
def test_gradients_by_finite_differences(name, temperature):
  student, teacher, _ = make_inputs()
  gradient = gradient_of(name, student, teacher, temperature)
  step = 1e-5
  for place in np.ndindex(student.shape):
    moved = [student.astype(np.float64) for _ in range(2)]
    moved[0][place] += step
    moved[1][place] -= step
    above, below = (reference(name, s, teacher, temperature).sum() for s in moved)
    np.testing.assert_allclose(gradient[place], (above - below) / (2 * step), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize('temperature', [1.0, 4.0])
@pytest.mark.parametrize('name', [name for name in ON_LOGITS if name != 'hard_labels'])
def test_a_loss_is_least_where_the_student_equals_the_teacher(name, temperature):
  _, teacher, _ = make_inputs()
  at_teacher = value(name, teacher + 3, teacher, temperature)
  probs = scipy.special.softmax(teacher / temperature, axis=-1)
  entropy = temperature**2 * scipy.stats.entropy(probs, axis=-1)
  least = np.zeros(5) if losses.LOSSES[name].minimum_is_zero else entropy
  np.testing.assert_allclose(at_teacher, least, rtol=1e-5, atol=1e-5)
  gradient = gradient_of(name, teacher, teacher, temperature)
  np.testing.assert_allclose(gradient, np.zeros_like(gradient), atol=1e-5)
  rng = np.random.default_rng(4)
  for _ in range(20):
    elsewhere = teacher + rng.normal(size=teacher.shape).astype(np.float32)
    assert (value(name, elsewhere, teacher, temperature) > at_teacher).all()


@pytest.mark.parametrize('temperature', [1.0, 4.0, 1000.0])
def test_symmetric_kl_and_its_gradient_are_exactly_0_at_equality(temperature):
  _, teacher, _ = make_inputs(shape=(50, 10))
  assert (losses.symmetric_kl(teacher, teacher, temperature) == 0).all()
  assert (gradient_of('symmetric_kl', teacher, teacher, temperature) == 0).all()


def test_reverse_kl_swaps_teacher_and_student():
  student, teacher, _ = make_inputs()
  swapped = losses.kl_divergence(teacher, jax.nn.log_softmax(student))
  np.testing.assert_allclose(losses.reverse_kl(student, teacher, 1.0), swapped, rtol=1e-5)


@pytest.mark.parametrize('name', ['reverse_kl', 'symmetric_kl'])
def test_a_teacher_that_rules_a_class_out(name):
  teacher = jnp.log(jnp.array([[0.5, 0.5, 0.0]]))
  elsewhere = jnp.array([[0.0, 1.0, -9.0]])
  assert np.isposinf(losses.LOSSES[name](elsewhere, teacher, 1.0))
  assert np.isnan(gradient_of(name, elsewhere, teacher, 1.0)).any()
  # A student that rules it out too is as one that has only the other classes.
  student = jnp.log(jnp.array([[0.25, 0.75]]))
  alone = losses.LOSSES[name](student, teacher[:, :2], 1.0)
  student_BC = jnp.append(student, jnp.array([[-1e4]]), axis=1)
  np.testing.assert_allclose(losses.LOSSES[name](student_BC, teacher, 1.0), alone, rtol=1e-6)
  expected = jnp.append(gradient_of(name, student, teacher[:, :2], 1.0), jnp.zeros((1, 1)), axis=1)
  np.testing.assert_allclose(gradient_of(name, student_BC, teacher, 1.0), expected, rtol=1e-5)


def test_distillation_from_a_certain_teacher_is_cross_entropy():
  student, _, labels = make_inputs()
  one_hot = np.where(np.arange(3) == labels[:, None], 0.0, -np.inf)
  result = losses.distillation(student, one_hot, 1.0)
  np.testing.assert_allclose(result, losses.cross_entropy(student, labels), rtol=1e-6)


def test_hard_labels_are_the_limit_of_a_sharpened_teacher():
  student, teacher, _ = make_inputs()
  sharpened = losses.distillation(student, 1000 * teacher, 1.0)
  np.testing.assert_allclose(losses.hard_labels(student, teacher, 4.0), sharpened, rtol=1e-5)
  tied = losses.hard_labels(student, jnp.log(jnp.full((5, 3), 1 / 3)), 4.0)
  np.testing.assert_allclose(tied, losses.cross_entropy(student, np.zeros(5, int)), rtol=1e-6)


@pytest.mark.parametrize(
  ('name', 'scale'),
  [('cross_entropy', 1 / 2), ('reverse_kl', 1 / 2), ('symmetric_kl', 1 / 2), ('brier', 1 / 3)],
)
def test_gradients_tend_to_that_of_logit_mse(name, scale):
  student, teacher, _ = make_inputs(scale=1.0)
  difference = student - teacher
  expected = 2 * (difference - difference.mean(-1, keepdims=True)) / 3
  np.testing.assert_allclose(gradient_of('logit_mse', student, teacher, 1.0), expected, rtol=1e-5)
  gradient = gradient_of(name, student, teacher, 1000.0)
  np.testing.assert_allclose(gradient, scale * expected, atol=3e-3)


# Labels, where there are any.


@pytest.mark.parametrize('alpha', [0.3, 1.0])
def test_with_labels_averages_the_nll_over_the_labelled(alpha):
  student, teacher, _ = make_inputs()
  labels = np.array([0, -1, 2, -7, 1])
  loss_B = losses.distillation(student, teacher, 4.0)
  nll_B = -scipy.special.log_softmax(np.asarray(student), axis=-1)[[0, 2, 4], [0, 2, 1]]
  mixed = losses.with_labels(loss_B, student, labels, alpha, 3 / 5)
  expected = alpha * nll_B.mean() + (1 - alpha) * loss_B.mean()
  np.testing.assert_allclose(mixed.mean(), expected, rtol=1e-5)
  np.testing.assert_allclose(
    np.asarray(mixed)[[1, 3]], (1 - alpha) * np.asarray(loss_B)[[1, 3]], rtol=1e-5
  )


@pytest.mark.parametrize('labels', [[-1, -1], [-1, 2]])
def test_no_label_gives_no_gradient(labels):
  logits = jnp.array([[1e4, -1e4, 0.0], [0.0, 1.0, 2.0]])
  labels = jnp.array(labels)
  labelled = (labels >= 0).mean()
  gradient = jax.grad(lambda z: losses.with_labels(jnp.zeros(2), z, labels, 0.25, labelled).mean())(
    logits
  )
  probs = scipy.special.softmax([0.0, 1.0, 2.0])
  expected = 0.25 * (probs - [0, 0, 1]) * (labels[1] >= 0)
  np.testing.assert_allclose(gradient, [np.zeros(3), expected], rtol=1e-5)


# The temperature.


def test_a_constant_temperature():
  assert losses.temperature_at(7, 10, 4.0, None) == 4.0


def test_the_temperature_is_annealed_geometrically():
  at = jax.jit(lambda step: losses.temperature_at(step, 6, 8.0, 1.0))
  expected = [8, 8 / 2**0.5, 4, 4 / 2**0.5, 2, 2 / 2**0.5, 1, 1]  # and no further
  np.testing.assert_allclose([at(step) for step in range(8)], expected, rtol=1e-6)
  assert losses.temperature_at(0, 6, 8.0, 1.0) == 8


@pytest.mark.parametrize(
  ('name', 'alpha', 'expected'),
  [
    ('cross_entropy', 0.0, 'nats'),
    ('reverse_kl', 0.5, 'nats'),
    ('logit_mse', 0.0, 'squared logits'),
    ('logit_mse', 0.5, ''),  # a sum of squared logits and nats
    ('brier', 0.0, ''),
  ],
)
def test_units(name, alpha, expected):
  assert losses.unit(name, alpha) == expected


# The registry.


def test_decoupled_distillation_with_the_teachers_own_weight_is_kl():
  """KL = TCKD + (1 − p_label) NCKD (Zhao et al. 2022, equation 6)."""
  student, teacher, _ = make_inputs()
  probs_B = scipy.special.softmax(teacher / 4.0, axis=-1)[np.arange(5), LABELS]
  parts = [
    losses.decoupled(student, teacher, 4.0, labels_B=LABELS, target_weight=a, non_target_weight=b)
    for a, b in ((1.0, 0.0), (0.0, 1.0))
  ]
  expected_B = 16 * scipy.stats.entropy(
    *(scipy.special.softmax(x / 4.0, axis=-1) for x in (teacher, student)), axis=-1
  )
  np.testing.assert_allclose(parts[0] + (1 - probs_B) * parts[1], expected_B, rtol=1e-4)


def test_a_loss_tells_what_it_needs_and_its_options():
  needs = {name: loss.needs for name, loss in losses.LOSSES.items() if loss.needs}
  assert needs == {
    'decoupled': ('labels_B',),
    'dist': ('batch_mean',),
    'cka': ('batch_gather', 'student_features', 'teacher_features'),
  }
  options = {name: loss.options for name, loss in losses.LOSSES.items() if loss.options}
  assert options == {
    'decoupled': {'target_weight': 1.0, 'non_target_weight': 8.0},
    'dist': {'inter_weight': 2.0, 'intra_weight': 2.0},
    'cka': {'student_feature': 'pooled', 'teacher_feature': 'pooled', 'weight': 1.0},
  }
  assert {name for name, loss in losses.LOSSES.items() if not loss.uses_temperature} == {
    name
    for name in ON_LOGITS
    if np.allclose(*(reference(name, *make_inputs()[:2], t) for t in (1, 4)))
  }


def test_options_are_set():
  student, teacher, _ = make_inputs()
  half = losses.make('dist', {'inter_weight': 1.0, 'intra_weight': 1.0})
  np.testing.assert_allclose(
    2 * losses.apply(half, student, teacher, 4.0, labels_B=LABELS),
    value('dist', student, teacher, 4.0),
  )


@pytest.mark.parametrize(
  'module',
  [basic, on_logits, on_features, metrics, similarity, fidelity],
  ids=lambda module: module.__name__,
)
def test_the_examples_in_docstrings(module):
  found = doctest.testmod(module)
  assert found.failed == 0
  assert found.attempted >= 2
