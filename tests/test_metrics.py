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


def test_generalization_is_that_of_scikit_learn_and_of_a_plain_loop():
  logits, _, labels = make_predictions()
  probs = scipy.special.softmax(logits, axis=-1)
  expected = {
    'accuracy': sklearn.metrics.accuracy_score(labels, probs.argmax(-1)),
    'nll': sklearn.metrics.log_loss(labels, probs, labels=range(5)),
    'ece': ece_by_loop(logits, labels),
  }
  assert expected['ece'] > 0.05  # else any code would do
  assert metrics.generalization(logits, labels) == pytest.approx(expected, rel=1e-12)


def test_ece_of_a_single_example_and_where_all_are_wrong():
  for label, expected in ((0, 0.3), (1, 0.7)):
    results = metrics.generalization(np.log([[0.7, 0.3]]), np.array([label]))
    assert results['ece'] == pytest.approx(expected, rel=1e-12)
  logits, _, _ = make_predictions()
  results = metrics.generalization(logits, (logits.argmax(-1) + 1) % 5)
  assert results['accuracy'] == 0
  confidence = scipy.special.softmax(logits, axis=-1).max(-1).mean()
  assert results['ece'] == pytest.approx(confidence, rel=1e-12)


def test_a_confidence_on_the_edge_belongs_to_the_bin_below():
  for logits, bin_index in (
    ([0.0, 0.0], 4),
    ([0.0] * 5, 1),
    ([0.0, -1e4], 9),
    ([0.0] * 4, 2),
    ([0.0] * 100, 0),
  ):
    bins = metrics.reliability(np.array([logits]), np.array([0]))
    assert bins['fraction'][bin_index] == 1, logits


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
  found = metrics.fidelity(student, teacher)['predictive_kl']
  assert found == pytest.approx(np.mean(kl), rel=1e-12)
  of_underflow = metrics.fidelity(student[1:], np.array([[0.0, -1e4]]))['predictive_kl']
  assert of_underflow == pytest.approx(np.log(4), rel=1e-12)
  student = np.array([[1.0, 2.0, 0.0], [0.0, 1.0, 2.0], [5.0, 1.0, 1.0], [0.0, 0.0, 1.0]])
  teacher = np.log([[0.2, 0.5, 0.3], [0.2, 0.5, 0.3], [0.5, 0.2, 0.3], [0.2, 0.2, 0.6]])
  assert metrics.fidelity(student, teacher)['top1_agreement'] == 0.75


def test_predictive_kl_is_that_of_scipy_and_0_of_a_model_to_itself():
  student, teacher, _ = make_predictions()
  probs = [scipy.special.softmax(logits, axis=-1) for logits in (teacher, student)]
  log_probs = scipy.special.log_softmax(teacher, axis=-1)
  expected = scipy.stats.entropy(*probs, axis=-1).mean()
  found = metrics.fidelity(student, log_probs)['predictive_kl']
  assert found == pytest.approx(expected, rel=1e-12)
  perfect = {'top1_agreement': 1, 'predictive_kl': 0}
  assert metrics.fidelity(teacher + 3, log_probs) == pytest.approx(perfect, abs=1e-12)


def test_low_precision_logits_are_reduced_in_float64():
  logits = np.zeros((4096, 2), np.float16)  # sums of 4096 ln 2 are rough in float16
  result = metrics.generalization(logits, np.zeros(4096, int))
  assert result['nll'] == pytest.approx(np.log(2), rel=1e-12)


@pytest.mark.parametrize('ends', [(1,), (7, 400, 499)])
def test_ragged_pieces_in_any_order_equal_the_whole(ends):
  student, teacher, labels = make_predictions()
  of_labels, of_teacher = metrics.Sums(), metrics.Sums()
  for part in np.split(np.random.default_rng(1).permutation(len(labels)), ends):
    of_labels.add(metrics.generalization_values(student[part], labels[part]))
    of_teacher.add(metrics.fidelity_values(student[part], teacher[part]))
  whole = metrics.generalization(student, labels)
  assert metrics.generalization_means(of_labels) == pytest.approx(whole, rel=1e-12)
  for name, mean in metrics.fidelity(student, teacher).items():
    assert of_teacher.mean(name) == pytest.approx(mean, rel=1e-12)


def test_sums_divide_once_by_all_examples():
  sums = metrics.Sums().add({'x': np.array([1.0, 2.0, 3.0])}).add({'x': np.array([10.0])})
  assert sums.mean('x') == 4.0  # the mean of the pieces' means is 6


# The whole predicted distribution.


def finer(student, teacher):
  return metrics.finer_fidelity_values(np.asarray(student, float), np.asarray(teacher, float))


def test_total_variation_golden():
  student = np.log([[0.5, 0.3, 0.2], [0.25, 0.25, 0.5], [1 - 2e-300, 1e-300, 1e-300]])
  teacher = np.log([[0.2, 0.3, 0.5], [0.25, 0.25, 0.5], [1e-300, 1 - 2e-300, 1e-300]])
  np.testing.assert_allclose(finer(student, teacher)['total_variation'], [0.3, 0, 1], atol=1e-12)


def test_rank_correlation_is_that_of_scipy_with_ties():
  student, teacher, _ = make_predictions(40, 9)
  student, teacher = student.round(0), teacher.round(0)  # most rows have ties
  expected = [scipy.stats.spearmanr(*rows).statistic for rows in zip(student, teacher, strict=True)]
  np.testing.assert_allclose(finer(student, teacher)['rank_correlation'], expected, atol=1e-12)


def test_unsigned_integers_are_ranked_as_floats():
  values_NC = np.random.default_rng(0).integers(0, 256, (5, 8)).astype(np.uint8)
  ours, floats = finer(values_NC, values_NC[::-1]), finer(values_NC + 0.0, values_NC[::-1] + 0.0)
  for name, values_N in floats.items():
    np.testing.assert_allclose(ours[name], values_N, err_msg=name)


def test_rank_correlation_golden():
  teacher = [[1, 2, 3, 4]] * 4 + [[0, 0, 0, 0]]
  student = [[10, 20, 30, 41], [4, 3, 2, 1], [1, 2, 4, 3], [7, 7, 7, 7], [7, 7, 7, 7]]
  # 1 − 6 Σ d² / (n (n² − 1)): 1 − 12 / 60; rows without a ranking have none to share.
  expected = [1, -1, 0.8, 0, 0]
  np.testing.assert_allclose(finer(student, teacher)['rank_correlation'], expected, atol=1e-12)
  underflows = np.array([[0, -2000, -3000, -4000]])  # as probabilities
  found = finer(underflows, underflows[:, [0, 2, 1, 3]])
  assert found['rank_correlation'] == pytest.approx(0.8)


def test_top5_agreement_golden():
  teacher = [[9, 8, 7, 6, 5, 4, 3]] * 4
  student = [
    [5, 6, 7, 8, 9, 0, 0],  # the same five in another order
    [0, 8, 7, 6, 5, 9, 4],  # one of them replaced
    [1, 1, 0, 0, 0, 9, 9],
    [0, 0, 0, 0, 0, 0, 0],  # of equals the lower classes come first
  ]
  expected = [1, 0.8, 0.6, 1]  # third: classes 5, 6, 0, 1 and, the first of equals, 2
  np.testing.assert_allclose(finer(student, teacher)['top5_agreement'], expected)
  levels = np.random.default_rng(0).integers(2, size=1000)  # many equals
  teacher = np.zeros(1000)
  teacher[np.flatnonzero(levels)[:5]] = [3, 1, 4, 2, 5]
  assert finer([levels], [teacher])['top5_agreement'] == 1
  for num_classes, is_there in ((5, False), (6, True)):  # left out where it is always one
    student, teacher, _ = make_predictions(8, num_classes)
    assert ('top5_agreement' in finer(student, teacher)) == is_there


def test_kappa_golden():
  # Cohen's own form of the table: 0.7 observed, 0.6 · 0.5 + 0.4 · 0.5 = 0.5 by chance.
  assert metrics.cohens_kappa(0.7, np.array([0.6, 0.4]), np.array([0.5, 0.5])) == pytest.approx(0.4)
  assert np.isnan(metrics.cohens_kappa(1.0, np.array([1.0, 0]), np.array([1.0, 0])))
