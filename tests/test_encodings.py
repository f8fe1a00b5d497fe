"""Encodings of stored predictions: decoded probabilities with a known answer, and the statistics of draws."""

import dataclasses

import numpy as np
import pytest
from etils import epath
from scipy.special import log_softmax, logsumexp

from kdjax.predictions.encodings import ESTIMATORS, TAIL, TRUNCATED, UNBIASED, TopK
from kdjax.predictions.store import PredictionStore

PROBS = [0.07, 0.5, 0.03, 0.25, 0.15]


def log_probs_of(*probs):
  with np.errstate(divide='ignore'):
    return np.log(np.array(probs, np.float64))


def decoded(encoding, rows_NW):
  log_probs_NC = np.empty((len(rows_NW), encoding.num_classes), np.float32)
  encoding.decode(rows_NW, log_probs_NC)
  return log_probs_NC


def there_and_back(encoding, log_probs_NC, member=0, view=0):
  """The probabilities that an encoding leaves."""
  rows_NW = encoding.encode(log_probs_NC, member, view, np.arange(len(log_probs_NC)))
  assert rows_NW.shape == (len(log_probs_NC), encoding.width)
  return np.exp(decoded(encoding, rows_NW))


def random_log_probs(*shape):
  return log_softmax(3 * np.random.default_rng(0).normal(size=shape), axis=-1)


@pytest.mark.parametrize(
  'estimator, k, expected',
  [
    (TRUNCATED, 1, [0, 1, 0, 0, 0]),
    (TRUNCATED, 2, [0, 2 / 3, 0, 1 / 3, 0]),
    (TAIL, 1, [1 / 8, 1 / 2, 1 / 8, 1 / 8, 1 / 8]),
    (TAIL, 2, [1 / 12, 1 / 2, 1 / 12, 1 / 4, 1 / 12]),
    (TAIL, 4, PROBS),  # the tail is one class
    (TRUNCATED, 5, PROBS),
    (TAIL, 5, PROBS),
  ],
)
def test_the_most_probable_classes_and_the_rest(estimator, k, expected):
  found = there_and_back(TopK(k, estimator, 5, seed=0), log_probs_of(PROBS))
  np.testing.assert_allclose(found, [expected], rtol=1e-3)  # float16


def test_a_row_has_the_classes_and_then_the_bits_of_the_values():
  """If classes are equally probable, the lower ones are kept."""
  encode = lambda encoding, probs: encoding.encode(log_probs_of(probs), 0, 0, np.arange(1))
  row = encode(TopK(2, TAIL, 4, seed=0), [1 / 8, 1 / 2, 1 / 8, 1 / 4])
  assert row.dtype == np.uint16 and row[0, :2].tolist() == [1, 3]
  values = np.log([1 / 2, 1 / 4, 1 / 8]).astype(np.float16)
  np.testing.assert_array_equal(row[0, 2:].view(np.float16), values)
  row = encode(TopK(3, TRUNCATED, 6, seed=0), [0.1, 0.1, 0.4, 0.1, 0.2, 0.1])
  assert row[0, :3].tolist() == [2, 4, 0]


def test_a_small_tail_is_as_exact_as_a_probability():
  """It is stored, and does not follow from what rounding leaves beside the others."""
  log_probs_NC = log_softmax(np.array([[8.0, 8.0, 0.0, -1.0, -2.0]]), axis=-1)
  found = there_and_back(TopK(2, TAIL, 5, seed=0), log_probs_NC)
  expected = np.exp(logsumexp(log_probs_NC[:, 2:])) / 3
  assert expected < np.finfo(np.float16).eps
  np.testing.assert_allclose(found[:, 2:], expected, rtol=5e-3)


def test_draws_are_classes_at_places_of_the_cumulative_probabilities(monkeypatch):
  places = np.array([[0.0, 0.49, 0.5, 0.75, 0.999]])
  monkeypatch.setattr(TopK, '_places', lambda *_: places)
  encoding = TopK(5, 'sampled', 5, seed=0)
  log_probs_NC = log_probs_of([0, 0.5, 0, 0.25, 0.25])
  assert encoding.encode(log_probs_NC, 0, 0, np.arange(1)).tolist() == [[1, 1, 3, 4, 4]]
  expected = [[0, 2 / 5, 0, 1 / 5, 2 / 5]]
  np.testing.assert_allclose(there_and_back(encoding, log_probs_NC), expected, rtol=1e-6)


@pytest.mark.parametrize('estimator', UNBIASED)
def test_the_expectation_of_a_stored_ensemble_is_the_exact_one(tmp_path, estimator):
  """Each of three predictions is stored 5,000 times; their mean lies within five standard errors."""
  k, count = 4, 5000
  log_probs_MNC = random_log_probs(2, 3, 10)
  store, shape = PredictionStore(epath.Path(tmp_path)), (2, 1, 3 * count, 10)
  store.reserve('distillation', shape, TopK(k, estimator, 10, seed=0))
  for member, log_probs_NC in enumerate(log_probs_MNC):
    store.write('distillation', member, 0, np.repeat(log_probs_NC, count, axis=0))
  found = np.exp(store.read_ensemble('distillation', 2, 0)).reshape(3, count, 10)
  probs_MNC = np.exp(log_probs_MNC)
  if estimator == 'sampled':
    variance_MNC = probs_MNC * (1 - probs_MNC) / k  # of the share of k independent draws
  else:
    over_MNC = k * probs_MNC % 1  # the probability that a count is rounded up
    variance_MNC = over_MNC * (1 - over_MNC) / k**2
  variance_NC = variance_MNC.mean(axis=0) / 2
  error_NC = np.abs(found.mean(axis=1) - probs_MNC.mean(axis=0))
  assert (error_NC <= 5 * np.sqrt(variance_NC / count) + 1e-6).all()
  np.testing.assert_allclose(found.var(axis=1).sum(), variance_NC.sum(), rtol=0.05)


def test_systematic_draws_differ_from_the_expectation_by_less_than_one():
  log_probs_NC = random_log_probs(500, 20)
  counts_NC = 10 * there_and_back(TopK(10, 'systematic', 20, seed=0), log_probs_NC)
  assert (np.abs(counts_NC - 10 * np.exp(log_probs_NC)) < 1).all()
  sampled_NC = 10 * there_and_back(TopK(10, 'sampled', 20, seed=0), log_probs_NC)
  assert (np.abs(sampled_NC - 10 * np.exp(log_probs_NC)) >= 1).any()


@pytest.mark.parametrize('estimator', UNBIASED)
def test_draws_depend_on_seed_member_view_and_index_alone(estimator):
  encoding, log_probs_NC = TopK(3, estimator, 50, seed=1), np.tile(random_log_probs(50), (600, 1))
  rows_NW = encoding.encode(log_probs_NC, 2, 5, np.arange(600))
  assert len(np.unique(rows_NW, axis=0)) > 20
  for indices_N in (np.arange(300, 600), np.array([599, 3, 256, 255])):
    found = encoding.encode(log_probs_NC[indices_N], 2, 5, indices_N)
    np.testing.assert_array_equal(found, rows_NW[indices_N])
  for other, member, view in [
    (dataclasses.replace(encoding, seed=2), 2, 5),
    (encoding, 3, 5),
    (encoding, 2, 6),
  ]:
    assert np.mean(other.encode(log_probs_NC, member, view, np.arange(600)) != rows_NW) > 0.1


@pytest.mark.parametrize('estimator', ESTIMATORS)
def test_many_classes_have_wider_numbers(estimator):
  small, large = (TopK(2, estimator, n, seed=0) for n in (2**16 - 1, 2**16))
  assert (small.data_type, large.data_type) == ('uint16', 'uint32')
  assert large.num_bytes == 2 * small.num_bytes
  log_probs_NC = np.full((1, 2**16), -np.inf)
  log_probs_NC[0, -1] = 0
  found = there_and_back(large, log_probs_NC)
  assert np.flatnonzero(found > 0.5).tolist() == [2**16 - 1]


@pytest.mark.parametrize('estimator', ESTIMATORS)
def test_predictions_that_are_not_finite_count_as_missing(estimator):
  encoding, log_probs_NC = TopK(2, estimator, 5, seed=0), log_probs_of(PROBS, PROBS)
  log_probs_NC[0, 3] = np.nan
  rows_NW = encoding.encode(log_probs_NC, 0, 0, np.arange(2))
  assert encoding.is_missing(rows_NW).tolist() == [True, False]
  assert np.isnan(decoded(encoding, rows_NW)).all(axis=-1).tolist() == [True, False]


# The comparison of --verify.


def worst_N(encoding, rows_NW, log_probs_NC, view=0):
  stored_NX, fresh_NX = encoding.compared(rows_NW, log_probs_NC, 0, view, np.arange(len(rows_NW)))
  return np.abs(stored_NX - fresh_NX).max(axis=-1)


@pytest.mark.parametrize('estimator', ESTIMATORS)
@pytest.mark.parametrize('k', [1, 4, 10])
def test_drift_is_small_and_another_teacher_is_not(estimator, k):
  encoding, log_probs_NC = TopK(k, estimator, 10, seed=0), random_log_probs(400, 10)
  log_probs_NC[7, :5] = log_probs_NC[7].max()  # classes that drift exchanges
  log_probs_NC = log_softmax(log_probs_NC, axis=-1)
  rows_NW = encoding.encode(log_probs_NC, 0, 0, np.arange(400))
  drift_NC = np.random.default_rng(1).uniform(-1e-3, 1e-3, log_probs_NC.shape)
  drifted_NC = log_softmax(log_probs_NC + drift_NC, axis=-1)
  rounding = 0.01  # of log-probabilities of up to 20 nats in float16
  assert worst_N(encoding, rows_NW, log_probs_NC).max() < rounding
  assert worst_N(encoding, rows_NW, drifted_NC).max() < rounding + 5e-3
  other_N = worst_N(encoding, rows_NW, np.roll(log_probs_NC, 1, axis=0))
  assert np.mean(other_N > 0.05) > 0.5
  if estimator in UNBIASED:  # the stored draws are of this view
    assert worst_N(encoding, rows_NW, log_probs_NC, view=1).max() > 0.02
