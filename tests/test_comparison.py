"""Fidelity with paired intervals, against scikit-learn, SciPy and numbers by hand."""

import numpy as np
import pytest
import scipy.stats
import sklearn.metrics

import kdjax
from kdjax import metrics
from kdjax.errors import UserError
from kdjax.stages import comparison

MEASURES = {
  'top1_agreement',
  'predictive_kl',
  'cohens_kappa',
  'total_variation',
  'top5_agreement',
  'rank_correlation',
}


def predictions(noise, num_examples=400, num_classes=8, seed=1):
  """The teacher's logits_NC, and those of a model with that much noise added."""
  teacher = 2 * np.random.default_rng(0).normal(size=(num_examples, num_classes))
  return teacher + noise * np.random.default_rng(seed).normal(size=teacher.shape), teacher


def compare(num_resamples=2000, **models):
  of = {who: comparison.fidelity(*both) for who, both in models.items()}
  return comparison.compare(of, num_resamples, np.random.default_rng(0))


def kappa(student, teacher):
  return sklearn.metrics.cohen_kappa_score(student.argmax(-1), teacher.argmax(-1))


def test_means_are_those_of_the_metrics_and_of_scikit_learn():
  student, teacher = predictions(1.0)
  found = compare(fidelity=(student, teacher))['fidelity']
  assert set(found) == MEASURES
  values = metrics.fidelity_values(student, teacher)
  values |= metrics.finer_fidelity_values(student, teacher)
  for name, values_N in values.items():
    assert found[name] == pytest.approx(values_N.mean(), rel=1e-12)
  assert found['cohens_kappa'] == pytest.approx(kappa(student, teacher), rel=1e-12)


def test_the_interval_of_kappa_is_scipys_bootstrap_of_scikit_learns():
  student, teacher = predictions(1.0)
  classes = student.argmax(-1), teacher.argmax(-1)
  expected = scipy.stats.bootstrap(
    classes,
    sklearn.metrics.cohen_kappa_score,
    paired=True,
    vectorized=False,
    n_resamples=500,
    method='percentile',
    random_state=0,
  ).confidence_interval
  low, high = compare(fidelity=(student, teacher))['intervals']['fidelity']['cohens_kappa']
  width = expected.high - expected.low
  assert (low, high) == pytest.approx(expected, abs=0.15 * width)


def test_kappa_is_agreement_beyond_chance():
  _, teacher = predictions(0)
  stranger = teacher[np.random.default_rng(5).permutation(len(teacher))]
  found = compare(fidelity=(stranger, teacher))['fidelity']
  assert found['top1_agreement'] > 0.09
  assert found['cohens_kappa'] == pytest.approx(0, abs=0.05)


def test_a_perfect_student_is_perfect_by_every_measure():
  _, teacher = predictions(0)
  found = compare(fidelity=(teacher, teacher))
  ones = {'top1_agreement', 'cohens_kappa', 'top5_agreement', 'rank_correlation'}
  assert found['fidelity'] == pytest.approx({m: float(m in ones) for m in MEASURES}, abs=1e-12)
  assert 'difference' not in found and 'independent' not in found['intervals']


def test_the_difference_is_resampled_in_pairs():
  """Both models are wrong on the same examples: apart their intervals overlap, in pairs they do not."""
  student, teacher = predictions(1.0)
  independent, _ = predictions(1.0)
  independent[:20] = -teacher[:20]  # differs on these alone
  found = compare(fidelity=(student, teacher), independent=(independent, teacher))
  of = found['intervals']
  for name in ('top1_agreement', 'predictive_kl', 'cohens_kappa'):
    difference = found['difference'][name]
    mean = found['fidelity'][name] - found['independent'][name]
    assert difference['mean'] == pytest.approx(mean, rel=1e-9)
    low, high = difference['interval']
    assert low < mean < high
    assert difference['verdict'] == ('lower' if name == 'predictive_kl' else 'higher')
  assert of['fidelity']['top1_agreement'][0] < of['independent']['top1_agreement'][1]
  # The paired bootstrap of SciPy on the difference of each example.
  values = [
    metrics.fidelity_values(model, teacher)['top1_agreement'] for model in (student, independent)
  ]
  error = (values[0] - values[1]).std() / np.sqrt(len(teacher))
  low, high = found['difference']['top1_agreement']['interval']
  assert high - low == pytest.approx(2 * 1.96 * error, rel=0.1)


def test_models_of_equal_fidelity_cannot_be_told_apart():
  student, teacher = predictions(1.0, seed=1)
  independent, _ = predictions(1.0, seed=2)
  found = compare(fidelity=(student, teacher), independent=(independent, teacher))['difference']
  assert {of['verdict'] for of in found.values()} == {'cannot be told'}
  same = compare(fidelity=(student, teacher), independent=(student, teacher))['difference']
  for of in same.values():
    assert of == {'mean': 0, 'interval': [0, 0], 'verdict': 'cannot be told'}


@pytest.mark.parametrize(('num_examples', 'verdict'), [(5, 'cannot be told'), (6, 'higher')])
def test_a_few_examples_have_no_interval(num_examples, verdict):
  """By the sign test: all of 5 alike have p = 1/16, all of 6 p = 1/32."""
  _, teacher = predictions(0, num_examples)
  found = compare(fidelity=(teacher, teacher), independent=(-teacher, teacher))
  assert found['difference']['top1_agreement']['verdict'] == verdict
  has_interval = found['difference']['top1_agreement']['interval'] is not None
  assert has_interval == (num_examples == 6)
  assert (found['intervals']['fidelity']['top1_agreement'] is not None) == has_interval


def test_kappa_of_a_single_class_is_unknown():
  logits = np.tile([3.0, 1.0, 0.0], (10, 1))
  found = compare(fidelity=(logits, logits), independent=(logits, logits))
  assert found['fidelity']['cohens_kappa'] is None
  assert found['intervals']['fidelity']['cohens_kappa'] is None
  expected = {'mean': None, 'interval': None, 'verdict': 'cannot be told'}
  assert found['difference']['cohens_kappa'] == expected


def test_views_of_an_example_are_averaged_and_it_counts_once():
  student, teacher = predictions(1.0, 100)
  other, other_teacher = predictions(1.0, 100, seed=7)
  other_teacher = other_teacher[:, ::-1]
  views = [comparison.fidelity(student, teacher), comparison.fidelity(other, other_teacher)]
  mean = comparison.over_views(views)
  found = comparison.compare({'fidelity': mean}, 100, np.random.default_rng(0))
  both = np.concatenate([student, other]), np.concatenate([teacher, other_teacher])
  assert found['fidelity'] == pytest.approx(compare(fidelity=both)['fidelity'], rel=1e-9)
  twice = comparison.compare(
    {'fidelity': comparison.over_views(views[:1] * 2)}, 100, np.random.default_rng(0)
  )
  once = comparison.compare({'fidelity': views[0]}, 100, np.random.default_rng(0))
  assert twice == once  # 200 examples would have a shorter interval


def test_blocks_of_examples_equal_the_whole(monkeypatch):
  both = predictions(1.0, 50)
  whole = compare(50, fidelity=both)
  monkeypatch.setattr(comparison, 'BLOCK', 7 * 8)
  assert compare(50, fidelity=both) == whole


def test_equal_generators_give_equal_results():
  student, teacher = predictions(1.0)
  assert compare(50, fidelity=(student, teacher)) == compare(50, fidelity=(student, teacher))


# `kdjax.fidelity`. The student agrees on the first of two examples, and on neither of the next.

STUDENT = np.log([[0.5, 0.5], [0.25, 0.75]])
TEACHER = np.log([[0.5, 0.5], [0.75, 0.25]])


def test_fidelity_against_numbers_by_hand():
  found = kdjax.fidelity(STUDENT, TEACHER)
  assert found['top1_agreement'].mean == 0.5
  np.testing.assert_allclose(found['predictive_kl'].mean, 0.5 * 0.5 * np.log(3), rtol=1e-12)
  np.testing.assert_allclose(found['total_variation'].mean, 0.25)
  assert np.isnan(found['top1_agreement'].low)  # two examples have no interval
  assert found.independent is found.difference is None


def test_fidelity_has_intervals_and_a_baseline():
  many = kdjax.fidelity(
    np.repeat(STUDENT, 50, 0), np.repeat(TEACHER, 50, 0), np.repeat(TEACHER[::-1], 50, 0)
  )
  agreement = many['top1_agreement']
  assert agreement.mean == 0.5
  # The standard error of 100 coin flips is 0.05.
  np.testing.assert_allclose([agreement.low, agreement.high], [0.402, 0.598], atol=0.025)
  # The baseline [0.75, 0.25], [0.5, 0.5] has the same classes as the teacher.
  assert many.independent['top1_agreement'].mean == 1.0
  assert many.difference['top1_agreement'].mean == -0.5
  assert many.difference['top1_agreement'].verdict == 'lower'
  assert 'agreement (%)' in repr(many) and '50.00' in repr(many)


@pytest.mark.parametrize(
  ('arguments', 'expected'),
  [
    ((STUDENT[:1], TEACHER), r'student_logits_NC: has the shape \(1, 2\); needed: .* \(2, 2\)'),
    ((STUDENT * np.nan, TEACHER), 'student_logits_NC: 4 of its values are not finite'),
    ((STUDENT, TEACHER, np.full((2, 2), -np.inf)), 'independent_logits_NC: 4 of its values'),
    ((STUDENT[0], TEACHER[0]), r'has the shape \(2,\)'),
  ],
)
def test_arrays_without_a_fidelity_are_refused(arguments, expected):
  with pytest.raises(UserError, match=expected):
    kdjax.fidelity(*arguments)
