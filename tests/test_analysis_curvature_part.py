"""The parts on curvature for a linear network, whose H and G are equal and known as formulas."""

import types

import flax.linen as nn
import jax
import numpy as np
import pytest
from etils import epath

from analysis import measure
from analysis.figures import curvature as drawing
from analysis.part import Blocks, CheckError, Checks, Settings
from analysis.parts import curvature
from kdjax import figures, losses

SETTINGS = Settings(curvature_examples=7, num_eigenpairs=3, lanczos_steps=30, num_probes=4)
PARTS = {part.name: part for part in curvature.PARTS}
PLACES = [
  f'{point}/{loss}' for point in drawing.POINTS for loss in ('distillation', 'cross_entropy')
]
TAU = 2.0


class Linear(nn.Module):
  @nn.compact
  def __call__(self, x, train):
    return nn.Dense(4, use_bias=False)(x), {}


def kernel(seed):
  return np.random.default_rng(seed).normal(size=(5, 4)).astype(np.float32)


def variables(seed):
  return {'params': {'Dense_0': {'kernel': kernel(seed)}}, 'batch_stats': {}}


POINTS = {
  'initial': variables(0),
  'student': variables(1),
  'teacher 0': variables(2),
  'sibling': variables(3),
}
INPUTS = np.random.default_rng(9).normal(size=(7, 5)).astype(np.float32)


class SmallMeasure(measure.Measure):
  """Seven examples in two batches; the teacher is 'teacher 0'."""

  labels = np.arange(7) % 4

  def __init__(self, study, num_examples):
    assert num_examples == 7
    self.model = Linear()
    self._loss = {'loss': losses.distillation, 'temperature': TAU, 'alpha': 0.0}
    self._examples = {
      'distillation': {
        'inputs': INPUTS,
        'labels': self.labels,
        'teacher_log_probs': np.asarray(jax.nn.log_softmax(INPUTS @ kernel(2))),
      }
    }
    self._run = types.SimpleNamespace(
      config=types.SimpleNamespace(evaluation=types.SimpleNamespace(batch_size=4))
    )


@pytest.fixture
def study(monkeypatch):
  monkeypatch.setattr(measure, 'Measure', SmallMeasure)
  return types.SimpleNamespace(seed=0, points=lambda: POINTS)


def computed(study, name, tmp_path, settings=SETTINGS):
  checks = Checks()
  return PARTS[name].compute(study, settings, Blocks(epath.Path(tmp_path)), checks), checks


def true_hessian(seed, tau):
  """mean x xᵀ ⊗ (diag(q) − q qᵀ), which needs neither labels nor teacher; τ² and 1/τ² cancel."""
  q_NC = np.asarray(jax.nn.softmax(INPUTS @ kernel(seed) / tau), np.float64)
  terms = [
    np.kron(np.outer(x, x), np.diag(q) - np.outer(q, q)) for x, q in zip(INPUTS, q_NC, strict=True)
  ]
  return np.mean(terms, axis=0)


@pytest.mark.parametrize('seed, point', list(enumerate(drawing.POINTS)))
def test_spectra_are_those_of_the_formula(study, tmp_path, seed, point):
  arrays, checks = computed(study, 'curvature', tmp_path)
  assert arrays['points'].tolist() == ['initial', 'student', 'teacher 0']  # and not 'sibling'
  assert len(checks.values) == 8
  for objective, tau in (('distillation', TAU), ('cross_entropy', 1.0)):
    values = np.linalg.eigvalsh(true_hessian(seed, tau))
    for operator in ('hessian', 'ggn'):
      found = {
        key: arrays[f'{point}/{objective}/{operator}/{key}']
        for key in ('eigenvalues', 'weights', 'nodes')
      }
      np.testing.assert_allclose(found['eigenvalues'], values[::-1][:3], rtol=1e-4)
      assert found['nodes'].shape == (4, 30)
      np.testing.assert_allclose(found['weights'].sum(axis=1), 1)
      assert arrays[f'{point}/{objective}/{operator}/lowest'] == pytest.approx(0, abs=1e-5)


def test_loss_and_sharpness_are_those_of_all_examples(study, tmp_path):
  arrays, _ = computed(study, 'curvature', tmp_path)
  log_probs = np.asarray(jax.nn.log_softmax(INPUTS @ kernel(1)), np.float64)
  nll = -log_probs[np.arange(7), SmallMeasure.labels]
  place = 'student/cross_entropy'
  assert arrays[f'{place}/loss'] == pytest.approx(nll.mean(), rel=1e-5)
  assert (
    nll.min() < arrays[f'{place}/loss/low'] < nll.mean() < arrays[f'{place}/loss/high'] < nll.max()
  )
  radius = curvature.RADIUS * np.linalg.norm(kernel(1))
  assert arrays[f'{place}/radius'] == pytest.approx(radius, rel=1e-5)
  # In so small a ball the loss is its slope and the curvature along it.
  slope = arrays[f'{place}/gradient_norm']
  curved = 0.5 * radius**2 * np.linalg.eigvalsh(true_hessian(1, 1.0))[-1]
  assert slope * radius - 1e-6 < arrays[f'{place}/sharpness'] < slope * radius + curved + 1e-6
  # At the teacher there is no slope, and the top eigenvector is the worst direction.
  place, radius = 'teacher 0/distillation', curvature.RADIUS * np.linalg.norm(kernel(2))
  assert arrays[f'{place}/gradient_norm'] == pytest.approx(0, abs=1e-6)
  curved = 0.5 * radius**2 * np.linalg.eigvalsh(true_hessian(2, TAU))[-1]
  # A difference of losses in float32, of about 1e-7 of them each.
  assert arrays[f'{place}/sharpness'] == pytest.approx(curved, rel=0.01, abs=1e-6)


def test_traces_hold_the_true_ones_and_their_difference_is_zero(study, tmp_path):
  arrays, checks = computed(study, 'curvature_traces', tmp_path)
  assert list(checks.values) == ['layers add up to the trace']
  for seed, point in enumerate(drawing.POINTS):
    hessian = true_hessian(seed, TAU)
    place = f'{point}/distillation'
    for key, expected in (('trace', np.trace(hessian)), ('frobenius', np.linalg.norm(hessian))):
      low, high = arrays[f'{place}/hessian/{key}/low'], arrays[f'{place}/hessian/{key}/high']
      half = (high - low) / 2  # 24 probes; twice the interval is missed once in ten thousand
      assert low - half < expected < high + half
      assert half < expected / 2
    assert arrays[f'{place}/difference'] == pytest.approx(0, abs=1e-5)
    assert arrays[f'{place}/difference/high'] == pytest.approx(0, abs=1e-5)
    assert arrays[f'{place}/layers'].tolist() == ['Dense_0']


@pytest.mark.parametrize('name', PARTS)
def test_finished_blocks_are_not_computed_again(study, tmp_path, name, monkeypatch):
  first, _ = computed(study, name, tmp_path)
  monkeypatch.setattr(curvature, 'MeanLoss', None)
  second, _ = computed(study, name, tmp_path)
  assert first.keys() == second.keys()
  assert all(np.array_equal(first[key], second[key]) for key in first)


def test_without_labels_there_is_no_cross_entropy(study, tmp_path, monkeypatch):
  monkeypatch.setattr(SmallMeasure, 'labels', np.full(7, -1))
  arrays, _ = computed(study, 'curvature_traces', tmp_path)
  assert arrays['objectives'].tolist() == ['distillation']
  assert not any('cross_entropy' in key for key in arrays)


def test_an_operator_that_is_not_symmetric_is_found(study, tmp_path, monkeypatch):
  right = curvature.MeanLoss.gvp
  skewed = lambda self, v: right(self, v) + 0.1 * np.roll(v, 1)
  monkeypatch.setattr(curvature.MeanLoss, 'gvp', skewed)
  with pytest.raises(CheckError, match='of ggn'):
    computed(study, 'curvature', tmp_path)


def test_the_figures_show_all_points_and_objectives(study, tmp_path):
  for name, num_axes, words in (
    ('curvature', 6, ['eigenvalues', 'student', 'teacher 0', '7 fixed examples']),
    ('curvature_traces', 2 + 6, ['tr H − tr G', 'student', '7 fixed examples']),
  ):
    part = PARTS[name]
    arrays, _ = computed(study, name, tmp_path / name)
    with figures.style(name):
      assert len(part.draw(arrays).axes) == num_axes
    assert all(word in part.caption(arrays) for word in words)
  largest = arrays['student/distillation/hessian/trace']
  assert f'student tr H {largest:.3g} [' in part.caption(arrays)


@pytest.mark.parametrize('value, text', [(0.01234, '0.0123'), (-999.4, '-999'), (1119.1, '1119')])
def test_captions_have_plain_numbers(value, text):
  assert curvature._number(np.array(value)) == text
