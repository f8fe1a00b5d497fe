"""Metrics against values worked out by hand, scikit-learn, SciPy, and a plain loop."""

import numpy as np
import pytest
import scipy.special
import scipy.stats
import sklearn.metrics

from kdjax import metrics

# Two classes: confidences 0.95, 0.85, 0.65, 0.65, of which the first and the third are correct.
PROBS = np.array([[0.95, 0.05], [0.15, 0.85], [0.65, 0.35], [0.35, 0.65]])
LABELS = np.array([0, 0, 0, 0])


def make_predictions(num_examples=500, num_classes=5):
  rng = np.random.default_rng(0)
  logits, others = rng.normal(size=(2, num_examples, num_classes)) * 2
  return logits, others, rng.integers(num_classes, size=num_examples)


def ece_by_loop(logits, labels):
  probs = scipy.special.softmax(logits, axis=-1)
  confidences, correct = probs.max(-1), probs.argmax(-1) == labels
  ece = 0.0
  for i in range(10):
    inside = (confidences > i / 10) & (confidences <= (i + 1) / 10)
    if inside.any():
      ece += inside.mean() * abs(correct[inside].mean() - confidences[inside].mean())
  return ece


def test_generalization_golden():
  results = metrics.generalization(np.log(PROBS), LABELS)
  expected = {
    'accuracy': 0.5,
    'nll': -np.log([0.95, 0.15, 0.65, 0.35]).mean(),
    # Bins of 1, 1 and 2 examples: (|1 − 0.95| + |0 − 0.85| + 2 |0.5 − 0.65|) / 4.
    'ece': 0.3,
  }
  assert results == pytest.approx(expected, rel=1e-12)


def test_nll_is_that_of_scikit_learn():
  logits, _, labels = make_predictions()
  probs = scipy.special.softmax(logits, axis=-1)
  expected = sklearn.metrics.log_loss(labels, probs, labels=range(5))
  assert metrics.generalization(logits, labels)['nll'] == pytest.approx(expected, rel=1e-12)


def test_ece_is_that_of_a_plain_loop():
  logits, _, labels = make_predictions()
  expected = ece_by_loop(logits, labels)
  assert expected > 0.05  # else any code would do
  assert metrics.generalization(logits, labels)['ece'] == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(('label', 'expected'), [(0, 0.3), (1, 0.7)], ids=['correct', 'wrong'])
def test_ece_of_a_single_example(label, expected):
  results = metrics.generalization(np.log([[0.7, 0.3]]), np.array([label]))
  assert results['ece'] == pytest.approx(expected, rel=1e-12)


def test_ece_is_the_mean_confidence_where_all_are_wrong():
  logits, _, _ = make_predictions()
  wrong = (logits.argmax(-1) + 1) % 5
  confidence = scipy.special.softmax(logits, axis=-1).max(-1).mean()
  results = metrics.generalization(logits, wrong)
  assert results['accuracy'] == 0
  assert results['ece'] == pytest.approx(confidence, rel=1e-12)


@pytest.mark.parametrize(
  ('logits', 'bin_index'),
  [([0.0, 0.0], 4), ([0.0] * 5, 1), ([0.0, -1e4], 9), ([0.0] * 4, 2), ([0.0] * 100, 0)],
  ids=['0.5', '0.2', '1.0', '0.25', '0.01'],
)
def test_a_confidence_on_the_edge_belongs_to_the_bin_below(logits, bin_index):
  bins = metrics.reliability(np.array([logits]), np.array([0]))
  assert bins['fraction'][bin_index] == 1


def test_reliability_golden():
  bins = metrics.reliability(np.log(PROBS), LABELS)
  empty = [np.nan] * 6
  expected = {
    'fraction': [0, 0, 0, 0, 0, 0, 0.5, 0, 0.25, 0.25],
    'confidence': [*empty, 0.65, np.nan, 0.85, 0.95],
    'accuracy': [*empty, 0.5, np.nan, 0.0, 1.0],
  }
  for name, values in expected.items():
    np.testing.assert_allclose(bins[name], values, rtol=1e-12)  # NaN equals NaN here


def test_fidelity_golden():
  student = np.log([[0.5, 0.5], [0.25, 0.75]])
  teacher = np.log([[0.75, 0.25], [0.5, 0.5]])
  kl = [0.75 * np.log(1.5) + 0.25 * np.log(0.5), 0.5 * np.log(4 / 3)]
  results = metrics.fidelity(student, teacher)
  assert results['predictive_kl'] == pytest.approx(np.mean(kl), rel=1e-12)


def test_agreement_golden():
  student = np.array([[1.0, 2.0, 0.0], [0.0, 1.0, 2.0], [5.0, 1.0, 1.0], [0.0, 0.0, 1.0]])
  teacher = np.log([[0.2, 0.5, 0.3], [0.2, 0.5, 0.3], [0.5, 0.2, 0.3], [0.2, 0.2, 0.6]])
  assert metrics.fidelity(student, teacher)['top1_agreement'] == 0.75


def test_predictive_kl_is_that_of_scipy():
  student, teacher, _ = make_predictions()
  probs = [scipy.special.softmax(logits, axis=-1) for logits in (teacher, student)]
  expected = scipy.stats.entropy(*probs, axis=-1).mean()
  result = metrics.fidelity(student, scipy.special.log_softmax(teacher, axis=-1))
  assert result['predictive_kl'] == pytest.approx(expected, rel=1e-12)


def test_fidelity_of_a_model_to_itself_is_perfect():
  logits, _, _ = make_predictions()
  results = metrics.fidelity(logits + 3, scipy.special.log_softmax(logits, axis=-1))
  assert results == pytest.approx({'top1_agreement': 1, 'predictive_kl': 0}, abs=1e-12)


def test_predictive_kl_with_a_probability_that_underflows():
  result = metrics.fidelity(np.log([[0.25, 0.75]]), np.array([[0.0, -1e4]]))
  assert result['predictive_kl'] == pytest.approx(np.log(4), rel=1e-12)


def test_low_precision_logits_are_reduced_in_float64():
  logits = np.zeros((4096, 2), np.float16)  # sums of 4096 ln 2 are rough in float16
  result = metrics.generalization(logits, np.zeros(4096, int))
  assert result['nll'] == pytest.approx(np.log(2), rel=1e-12)


def test_the_order_of_the_examples_is_nothing():
  student, teacher, labels = make_predictions()
  order = np.random.default_rng(1).permutation(len(labels))
  straight = metrics.generalization(student, labels) | metrics.fidelity(student, teacher)
  shuffled = metrics.generalization(student[order], labels[order])
  shuffled |= metrics.fidelity(student[order], teacher[order])
  assert shuffled == pytest.approx(straight, rel=1e-12)


@pytest.mark.parametrize('ends', [(1,), (128, 256, 384), (7, 400, 499)])
def test_ragged_pieces_equal_the_whole(ends):
  student, teacher, labels = make_predictions()
  of_labels, of_teacher = metrics.Sums(), metrics.Sums()
  for part in np.split(np.arange(len(labels)), ends):
    of_labels.add(metrics.generalization_values(student[part], labels[part]))
    of_teacher.add(metrics.fidelity_values(student[part], teacher[part]))
  pieces = metrics.generalization_means(of_labels) | metrics.fidelity_means(of_teacher)
  whole = metrics.generalization(student, labels) | metrics.fidelity(student, teacher)
  assert pieces == pytest.approx(whole, rel=1e-12)


def test_sums_divide_once_by_all_examples():
  sums = metrics.Sums().add({'x': np.array([1.0, 2.0, 3.0])}).add({'x': np.array([10.0])})
  assert sums.mean('x') == 4.0  # the mean of the pieces' means is 6


def interval(values, num_resamples=2000, seed=0, **options):
  return metrics.bootstrap_interval(values, num_resamples, np.random.default_rng(seed), **options)


@pytest.mark.parametrize(('level', 'z'), [(0.95, 1.9600), (0.5, 0.6745)])
def test_bootstrap_of_a_fraction_is_the_normal_approximation(level, z):
  num_examples = 10_000
  correct = np.arange(num_examples) < 8000
  error = np.sqrt(0.8 * 0.2 / num_examples)
  low, high = interval(correct, level=level)
  assert low == pytest.approx(0.8 - z * error, abs=0.15 * error)
  assert high == pytest.approx(0.8 + z * error, abs=0.15 * error)


def test_bootstrap_is_that_of_scipy():
  values = np.random.default_rng(1).exponential(size=25)  # skewed: the interval is lopsided
  expected = scipy.stats.bootstrap(
    (values,), np.mean, n_resamples=20_000, method='percentile', random_state=1
  ).confidence_interval
  lengths = np.subtract([values.mean(), expected.high], [expected.low, values.mean()])
  assert lengths[1] > 1.1 * lengths[0]
  assert interval(values, 20_000) == pytest.approx(expected, abs=0.05 * lengths.sum() / 2)


def test_bootstrap_covers_the_true_mean_as_often_as_its_level_says():
  rng = np.random.default_rng(2)
  num_trials = 500
  hits = 0
  for i in range(num_trials):
    low, high = interval(rng.normal(3.0, 2.0, size=50), 200, seed=i, level=0.9)
    hits += low <= 3.0 <= high
  # 0.9 but for 50 examples and 200 resamples: a bit less. The standard error is 0.013.
  assert 0.85 < hits / num_trials < 0.93


def test_bootstrap_of_equal_values_has_no_width():
  assert interval(np.full(5, 0.25, np.float32)) == (0.25, 0.25)
  assert interval(np.array([7.0])) == (7.0, 7.0)


def test_bootstrap_without_examples_is_none():
  assert interval(np.zeros(0)) is None


def test_bootstrap_repeats_with_the_generator():
  values = np.random.default_rng(3).normal(size=100)
  assert interval(values, 50) == interval(values, 50) != interval(values, 50, seed=1)
