"""Losses against values worked out by hand and against float64 NumPy."""

import doctest
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special

from kdjax import losses, metrics
from kdjax.interface import fidelity
from kdjax.losses import on_features, on_logits

LABELS = np.array([2, 0, 1, 0, 2])  # of the five examples of `make_inputs`
ON_LOGITS = [
  name for name, loss in losses.LOSSES.items() if 'student_features' not in losses.needs(loss)
]
OF_A_BATCH = 'dist'  # a value depends on the other examples of the batch


def value(name, student, teacher, temperature, labels=LABELS):
  return losses.apply(losses.LOSSES[name], student, teacher, temperature, labels_B=labels)


FUNCTIONS = {  # of (student logits, teacher log_probs, temperature, labels)
  'on labels': lambda student, teacher, temperature, labels: losses.cross_entropy(student, labels),
  'kl_divergence': lambda student, teacher, *_: losses.kl_divergence(student, teacher),
  'with_labels': lambda student, teacher, temperature, labels: losses.with_labels(
    losses.distillation(student, teacher, temperature), student, labels, 0.25, 1.0
  ),
  **{name: partial(value, name) for name in ON_LOGITS},
}


@jax.jit  # one program; the temperature is traced, too
def computed(student, teacher, temperature, labels):
  """(losses_B, gradient_BC) of all FUNCTIONS by name."""
  found = {}
  for name, function in FUNCTIONS.items():
    losses_B, transpose = jax.vjp(
      lambda z, of=function: of(z, teacher, temperature, labels), student
    )
    found[name] = losses_B, *transpose(jnp.ones_like(losses_B))
  return found


def make_inputs(scale=2.0, shape=(5, 3)):
  """Student logits, teacher log_probs, with B ≠ C."""
  rng = np.random.default_rng(0)
  student, teacher = rng.normal(size=(2, *shape)).astype(np.float32) * scale
  return student, scipy.special.log_softmax(teacher, axis=-1)


def reference(name, student, teacher, temperature, labels=LABELS):
  """The distillation losses in float64, by other formulas where there are any."""
  student, teacher = np.asarray(student, np.float64), np.asarray(teacher, np.float64)
  if name in PAPERS:
    return PAPERS[name](student, teacher, temperature, labels)
  p = scipy.special.softmax(teacher / temperature, axis=-1)
  q = scipy.special.softmax(student / temperature, axis=-1)
  entropy, forward, backward = scipy.special.entr(p).sum(-1), kl(p, q), kl(q, p)
  log_probs = student - scipy.special.logsumexp(student, axis=-1, keepdims=True)
  return {
    'cross_entropy': temperature**2 * (entropy + forward),
    'reverse_kl': temperature**2 * backward,
    'symmetric_kl': temperature**2 * (forward + backward) / 2,
    'hard_labels': -log_probs[np.arange(len(teacher)), teacher.argmax(-1)],
    'brier': temperature**2 * ((p * p).sum(-1) - 2 * (p * q).sum(-1) + (q * q).sum(-1)),
    'logit_mse': np.var(student - teacher, axis=-1),
  }[name]


def kl(p, q):
  """KL(p ‖ q) over the last axis."""
  return scipy.special.rel_entr(p, q).sum(-1)


def standardised_kl(student, teacher, temperature, labels):
  """Algorithm 1 of Sun et al. (2024) on one example after the other."""
  z_score = lambda z: (z - np.mean(z)) / np.std(z) / temperature
  softmax = lambda z: scipy.special.softmax(z_score(z))
  values = [kl(softmax(t), softmax(s)) for s, t in zip(student, teacher, strict=True)]
  return temperature**2 * np.array(values)


def decoupled(student, teacher, temperature, labels):
  """Equation 7 of Zhao et al. (2022): probabilities of the label and of the other classes, one by one."""
  values = []
  for s, t, label in zip(student, teacher, labels, strict=True):
    p, q = scipy.special.softmax(t / temperature), scipy.special.softmax(s / temperature)
    target = kl([p[label], 1 - p[label]], [q[label], 1 - q[label]])
    others = kl(*(x / x.sum() for x in (np.delete(p, label), np.delete(q, label))))
    values.append(temperature**2 * (target + 8 * others))
  return np.array(values)


def dist(student, teacher, temperature, labels):
  """Equations 8 to 10 of Huang et al. (2022), with the correlations of NumPy."""
  p, q = (scipy.special.softmax(x / temperature, -1) for x in (teacher, student))
  distances = lambda x, y: np.array(
    [1 - np.corrcoef(*pair)[0, 1] for pair in zip(x, y, strict=True)]
  )
  return temperature**2 * (2 * distances(p, q) + 2 * distances(p.T, q.T).mean())


PAPERS = {'standardised_kl': standardised_kl, 'decoupled': decoupled, 'dist': dist}


@partial(jax.jit, static_argnums=0)
def value_and_gradient(name, student, teacher, temperature=1.0):
  of = lambda s: value(name, s, teacher, temperature, LABELS[: len(s)])
  losses_B, transpose = jax.vjp(of, student)
  return losses_B, *transpose(jnp.ones_like(losses_B))


# The ensemble.


def test_an_ensemble_averages_probabilities_over_the_first_axis():
  certain, golden = [[[1e4, -1e4]], [[-1e4, 1e4]]], np.log([[[0.9, 0.1]], [[0.5, 0.5]]])
  for logits_MBC, probs_BC in ((golden, [[0.7, 0.3]]), (certain, [[0.5, 0.5]])):
    found_BC = losses.ensemble_log_probs(jnp.array(logits_MBC))
    np.testing.assert_allclose(found_BC, np.log(probs_BC), rtol=1e-6)
  logits_MBC = np.random.default_rng(2).normal(size=(3, 2, 4)).astype(np.float32) + 5
  for count in (1, 3):
    exact_BC = np.log(scipy.special.softmax(np.float64(logits_MBC[:count]), axis=2).mean(axis=0))
    for members in (logits_MBC[:count], jax.nn.log_softmax(logits_MBC[:count])):
      np.testing.assert_allclose(losses.ensemble_log_probs(members), exact_BC, rtol=1e-5)


# Values.


def test_cross_entropy_golden():
  logits_BC = jnp.log(jnp.array([[1.0, 2.0, 5.0], [1.0, 2.0, 5.0]]))  # in eighths
  for lead in ((2,), (1, 2)):  # any leading axes
    found = losses.cross_entropy(logits_BC.reshape(*lead, 3), jnp.array([1, 2]).reshape(lead))
    expected = np.log([4, 8 / 5]).reshape(lead)
    np.testing.assert_allclose(found, expected, rtol=1e-6)


# At τ = 2 the teacher's (1/5, 4/5) becomes p = (1/3, 2/3) and the student's (1/10, 9/10) q = (1/4, 3/4).
GOLDEN = {
  'standardised_kl': 0,  # two classes always become −1 and 1
  'decoupled': 4 * (np.log(4 / 3) / 3 + 2 * np.log(8 / 9) / 3),  # there is but one other class
  'cross_entropy': -4 * (np.log(1 / 4) / 3 + 2 * np.log(3 / 4) / 3),
  'reverse_kl': 4 * (np.log(3 / 4) / 4 + 3 * np.log(9 / 8) / 4),
  'symmetric_kl': 2 * (1 / 12) * np.log(3 / 2),  # (4/3) / (8/9) is 3/2
  'hard_labels': -np.log(9 / 10),
  'brier': 4 * 2 * (1 / 12) ** 2,
  'logit_mse': np.log(3 / 2) ** 2,  # the differences are log 1/2 and log 9/8, 2 log 3/2 apart
}


def test_the_references_golden():
  teacher_BC, student_BC = np.log([[0.2, 0.8]]), np.log([[0.1, 0.9]])
  assert GOLDEN.keys() | {'dist'} == set(ON_LOGITS)
  for name, expected in GOLDEN.items():
    found = reference(name, student_BC, teacher_BC, 2.0, labels=[0])
    np.testing.assert_allclose(found, [expected], rtol=1e-12, atol=1e-12, err_msg=name)
  # Over one example nothing correlates, and over two classes everything does.
  found, _ = value_and_gradient('dist', student_BC, teacher_BC, 2.0)
  np.testing.assert_allclose(found, [4 * 2], rtol=2e-6)


@pytest.mark.parametrize('temperature', [0.5, 1.0, 4.0])
def test_distillation_losses_and_gradients_are_those_of_numpy(temperature):
  """The gradients by finite differences of the float64 references."""
  student, teacher = make_inputs()
  found = computed(student, teacher, temperature, LABELS)
  shifted = computed(student + 5, teacher, temperature, LABELS)  # softmax does not see a constant
  for name in ON_LOGITS:
    expected = reference(name, student, teacher, temperature)
    for values, _ in (found[name], shifted[name]):
      np.testing.assert_allclose(values, expected, rtol=2e-5, atol=1e-6, err_msg=name)
    differences = np.zeros(student.shape)
    for place in np.ndindex(student.shape):
      for sign in (1, -1):
        moved = student.astype(np.float64)
        moved[place] += sign * 1e-5
        differences[place] += sign * reference(name, moved, teacher, temperature).sum() / 2e-5
    np.testing.assert_allclose(found[name][1], differences, rtol=1e-4, atol=1e-5, err_msg=name)


def test_kl_divergence_golden():
  half, quarter = jnp.log(jnp.array([[0.5, 0.5]])), jnp.log(jnp.array([[0.25, 0.75]]))
  other_way = 0.25 * np.log(1 / 2) + 0.75 * np.log(3 / 2)
  for student, teacher, expected in (
    (quarter, half, np.log(4 / 3) / 2),
    (half, quarter, other_way),
    (quarter + 7, quarter, 0),
    (quarter, jnp.array([[0.0, -1e4]]), np.log(4)),  # a probability that underflows
    (quarter, jnp.array([[0.0, -np.inf]]), np.log(4)),
  ):
    found = losses.kl_divergence(student, teacher)
    np.testing.assert_allclose(found, [expected], rtol=1e-5, atol=1e-6)


def test_a_value_depends_on_its_own_example_alone_with_jit_and_without():
  arguments = *make_inputs(), np.full(5, 4.0, np.float32), LABELS
  found = computed(*arguments[:2], 4.0, LABELS)
  apart = [x[:, None] if x.ndim > 1 else x for x in arguments[:3]] + [LABELS[:, None]]
  alone = jax.jit(jax.vmap(lambda *of_one: {name: f(*of_one) for name, f in FUNCTIONS.items()}))
  for name, alone_B1 in alone(*apart).items():
    losses_B, _ = found[name]
    eager_B = FUNCTIONS[name](*arguments[:2], 4.0, LABELS)
    np.testing.assert_allclose(eager_B, losses_B, rtol=1e-5, err_msg=name)
    if name != OF_A_BATCH:
      np.testing.assert_allclose(alone_B1[:, 0], losses_B, rtol=1e-5, err_msg=name)


def test_extreme_logits_stay_finite():
  which = np.array([0, 1, 0, 1, 1])  # two examples, several times
  student = np.array([[1e4, -1e4, 0.0], [-1e4, 1e4, 1e4]], np.float32)[which]
  teacher = scipy.special.log_softmax(np.float32([[-1e4, 1e4, 0], [-1e4, 1e4, 1e4]]), -1)[which]
  labels = np.array([1, 2])[which]
  # The first example is as wrong as can be: 2e4 nats at τ = 1, and τ times that at τ = 4.
  expected = {'cross_entropy': 8e4, 'reverse_kl': 8e4, 'symmetric_kl': 8e4, 'with_labels': 6.5e4}
  expected |= {'brier': 2 * 16, 'logit_mse': (2e4**2 + 2e4**2) / 3}
  expected |= {'decoupled': 16 * (5000 + 8 * 2500)}  # of the label, and of the other two
  # ρ is −1/2 over the classes, and over the two examples 0, −1 and 1.
  expected |= {'dist': 16 * (2 * 3 / 2 + 2 * 1)}
  expected |= {'standardised_kl': reference('standardised_kl', student, teacher, 4.0)[0]}
  for stored in (teacher, teacher.astype(np.float16).astype(np.float32)):
    for name, (losses_B, gradient) in computed(student, stored, 4.0, labels).items():
      assert np.isfinite(losses_B).all() and np.isfinite(gradient).all(), name
      np.testing.assert_allclose(losses_B[0], expected.get(name, 2e4), rtol=1e-3, err_msg=name)


# The distillation losses.


@pytest.mark.parametrize('temperature', [1.0, 4.0])
def test_a_loss_is_least_where_the_student_equals_the_teacher(temperature):
  _, teacher = make_inputs()
  probs = scipy.special.softmax(teacher / temperature, axis=-1)
  entropy = temperature**2 * scipy.special.entr(probs).sum(-1)
  noise = np.random.default_rng(4).normal(size=(20, *teacher.shape)).astype(np.float32)
  at_teacher = computed(teacher + 3, teacher, temperature, LABELS)
  elsewhere = [computed(teacher + x, teacher, temperature, LABELS) for x in noise]
  for name in set(ON_LOGITS) - {'hard_labels'}:
    values, gradient = at_teacher[name]
    least = np.zeros(5) if name != 'cross_entropy' else entropy
    np.testing.assert_allclose(values, least, rtol=1e-5, atol=1e-5, err_msg=name)
    np.testing.assert_allclose(gradient, np.zeros_like(gradient), atol=1e-5, err_msg=name)
    assert all((found[name][0] > values).all() for found in elsewhere), name


@pytest.mark.parametrize('temperature', [1.0, 4.0, 1000.0])
def test_symmetric_kl_and_its_gradient_are_exactly_0_at_equality(temperature):
  _, teacher = make_inputs(shape=(50, 10))
  for found in value_and_gradient('symmetric_kl', teacher, teacher, temperature):
    assert (found == 0).all()


@pytest.mark.parametrize('name', ['reverse_kl', 'symmetric_kl'])
def test_a_teacher_that_rules_a_class_out(name):
  teacher_BC = np.log(np.float32([[0.5, 0.5, 1]])) + np.float32([0, 0, -np.inf])[None]
  found, gradient = value_and_gradient(name, np.float32([[0.0, 1.0, -9.0]]), teacher_BC)
  assert np.isposinf(found) and np.isnan(gradient).any()
  # A student that rules it out too is as one that has only the other classes.
  student_BC = np.log(np.float32([[0.25, 0.75]]))
  expected, of_two = value_and_gradient(name, student_BC, teacher_BC[:, :2])
  found, gradient = value_and_gradient(name, np.append(student_BC, [[-1e4]], 1), teacher_BC)
  np.testing.assert_allclose(found, expected, rtol=1e-6)
  np.testing.assert_allclose(gradient, np.append(of_two, [[0]], 1), rtol=1e-5)


def test_distillation_from_a_certain_teacher_is_cross_entropy():
  student, _ = make_inputs()
  one_hot = np.where(np.arange(3) == LABELS[:, None], 0.0, -np.inf)
  result = losses.distillation(student, one_hot, 1.0)
  np.testing.assert_allclose(result, losses.cross_entropy(student, LABELS), rtol=1e-6)


def test_of_equally_probable_classes_the_first_is_the_hard_label():
  student, _ = make_inputs()
  tied = on_logits.hard_labels(student, jnp.log(jnp.full((5, 3), 1 / 3)), 4.0)
  np.testing.assert_allclose(tied, losses.cross_entropy(student, np.zeros(5, int)), rtol=1e-6)


def test_gradients_tend_to_that_of_logit_mse():
  student, teacher = make_inputs(scale=1.0)
  difference = student - teacher
  expected = 2 * (difference - difference.mean(-1, keepdims=True)) / 3
  found = computed(student, teacher, 1000.0, LABELS)
  np.testing.assert_allclose(found['logit_mse'][1], expected, rtol=1e-5)
  for name, scale in (
    ('cross_entropy', 1 / 2),
    ('reverse_kl', 1 / 2),
    ('symmetric_kl', 1 / 2),
    ('brier', 1 / 3),
  ):
    np.testing.assert_allclose(found[name][1], scale * expected, atol=3e-3, err_msg=name)


def test_decoupled_distillation_with_the_teachers_own_weight_is_kl():
  """KL = TCKD + (1 − p_label) NCKD (Zhao et al. 2022, equation 6)."""
  student, teacher = make_inputs()
  probs_B = scipy.special.softmax(teacher / 4.0, axis=-1)[np.arange(5), LABELS]
  parts = [
    on_logits.decoupled(
      student, teacher, 4.0, labels_B=LABELS, target_weight=a, non_target_weight=b
    )
    for a, b in ((1.0, 0.0), (0.0, 1.0))
  ]
  expected_B = 16 * kl(*(scipy.special.softmax(x / 4.0, axis=-1) for x in (teacher, student)))
  np.testing.assert_allclose(parts[0] + (1 - probs_B) * parts[1], expected_B, rtol=1e-4)


# Labels, where there are any.


@pytest.mark.parametrize('alpha', [0.3, 1.0])
def test_with_labels_averages_the_nll_over_the_labelled(alpha):
  student, teacher = make_inputs()
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
  mean = lambda z: losses.with_labels(jnp.zeros(2), z, labels, 0.25, labelled).mean()
  probs = scipy.special.softmax([0.0, 1.0, 2.0])
  expected = 0.25 * (probs - [0, 0, 1]) * (labels[1] >= 0)
  np.testing.assert_allclose(jax.grad(mean)(logits), [np.zeros(3), expected], rtol=1e-5)


# The temperature.


def test_the_temperature_is_annealed_geometrically_or_constant():
  at = jax.jit(lambda step: losses.temperature_at(step, 6, 8.0, 1.0))
  expected = [8, 8 / 2**0.5, 4, 4 / 2**0.5, 2, 2 / 2**0.5, 1, 1]  # and no further
  np.testing.assert_allclose([at(step) for step in range(8)], expected, rtol=1e-6)
  assert losses.temperature_at(0, 6, 8.0, 1.0) == 8
  assert losses.temperature_at(7, 10, 4.0, None) == 4.0


# The registry.


def test_units():
  for name, alpha, expected in (
    ('cross_entropy', 0.0, 'nats'),
    ('reverse_kl', 0.5, 'nats'),
    ('logit_mse', 0.0, 'squared logits'),
    ('logit_mse', 0.5, ''),  # a sum of squared logits and nats
    ('brier', 0.0, ''),
  ):
    assert losses.unit(name, alpha) == expected, name


def test_a_loss_has_its_needs_and_options():
  needs = {name: losses.needs(loss) for name, loss in losses.LOSSES.items() if losses.needs(loss)}
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
    name for name in ON_LOGITS if np.allclose(*(reference(name, *make_inputs(), t) for t in (1, 4)))
  }


def test_options_are_set():
  student, teacher = make_inputs()
  half = losses.make('dist', {'inter_weight': 1.0, 'intra_weight': 1.0})
  np.testing.assert_allclose(
    2 * losses.apply(half, student, teacher, 4.0, labels_B=LABELS),
    value('dist', student, teacher, 4.0),
  )


def test_the_examples_in_docstrings():
  for module in (on_logits, on_features, metrics, fidelity):
    found = doctest.testmod(module)
    assert found.failed == 0 and found.attempted >= 2, module.__name__
