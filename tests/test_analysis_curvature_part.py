"""The parts on curvature for a linear network, whose H and G are equal and known as formulas."""

import dataclasses
import types

import flax.linen as nn
import jax
import numpy as np
import pytest
from etils import epath

from analysis import measure
from analysis.figures import curvature as drawing
from analysis.figures import style
from analysis.part import Blocks, CheckError, Checks, Settings
from analysis.parts import curvature
from kdjax import losses, models

SETTINGS = Settings(curvature_examples=7, num_eigenpairs=3, lanczos_steps=30, num_probes=4)
PARTS = {part.name: part for part in curvature.PARTS}
TAU, LABELS, NO_LABELS = 2.0, np.arange(7) % 4, np.full(7, -1)
INPUTS = np.random.default_rng(9).normal(size=(7, 5)).astype(np.float32)


class Linear(nn.Module):
  @nn.compact
  def __call__(self, x, train):
    return nn.Dense(4, use_bias=False)(x), {}


class Normed(nn.Module):
  """ReLU and BatchNorm."""

  @nn.compact
  def __call__(self, x, train):
    x = models.NORMS['batch'](train)()(nn.Dense(6)(x))
    return nn.Dense(4, use_bias=False)(nn.relu(x)), {}


def kernel(seed):
  return np.random.default_rng(seed).normal(size=(5, 4)).astype(np.float32)


def points_of(model):
  names = ('initial', 'student', 'teacher 0', 'sibling')
  if isinstance(model, Linear):
    make = lambda seed: {'params': {'Dense_0': {'kernel': kernel(seed)}}, 'batch_stats': {}}
  else:
    make = lambda seed: jax.device_get(models.init(model, jax.random.key(seed), (5,)))
  return {name: make(seed) for seed, name in enumerate(names)}


def made_measure(model, labels=LABELS):
  """Seven examples, with BatchNorm in two batches; the teacher predicts what `kernel(2)` does."""

  def make(study, num_examples):
    assert num_examples == 7
    log_probs_NC = np.asarray(jax.nn.log_softmax(INPUTS @ kernel(2)))
    examples = {'inputs': INPUTS, 'labels': labels, 'teacher_log_probs': log_probs_NC}
    loss = {'loss': losses.distillation, 'temperature': TAU, 'alpha': 0.0}
    has_norm = isinstance(model, Normed)
    sets = {'distillation': examples}
    return measure.Distilled(model, loss, sets, 4 if has_norm else 7, has_norm)

  return make


def computed(name, folder, model=None, settings=SETTINGS, **kwargs):
  model, checks = model or Linear(), Checks()
  study = types.SimpleNamespace(seed=0, points=lambda: points_of(model))
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(measure, 'Measure', made_measure(model, **kwargs))
    return PARTS[name].compute(study, settings, Blocks(epath.Path(folder)), checks), checks


@pytest.fixture(scope='module')
def folders(tmp_path_factory):
  """The blocks of both parts."""
  return {name: tmp_path_factory.mktemp(name) for name in PARTS}


@pytest.fixture(scope='module')
def spectra(folders):
  return computed('curvature', folders['curvature'])


@pytest.fixture(scope='module')
def traces(folders):
  return computed('curvature_traces', folders['curvature_traces'])


def true_hessian(seed, tau):
  """mean x xᵀ ⊗ (diag(q) − q qᵀ), which needs neither labels nor teacher; τ² and 1/τ² cancel."""
  q_NC = np.asarray(jax.nn.softmax(INPUTS @ kernel(seed) / tau), np.float64)
  terms = [
    np.kron(np.outer(x, x), np.diag(q) - np.outer(q, q)) for x, q in zip(INPUTS, q_NC, strict=True)
  ]
  return np.mean(terms, axis=0)


@pytest.mark.parametrize('seed, point', list(enumerate(drawing.POINTS)))
def test_spectra_are_those_of_the_formula(spectra, seed, point):
  arrays, checks = spectra
  assert arrays['points'].tolist() == ['initial', 'student', 'teacher 0']  # and not 'sibling'
  assert len(checks.values) == 8
  for objective, tau in (('distillation', TAU), ('cross_entropy', 1.0)):
    values = np.linalg.eigvalsh(true_hessian(seed, tau))[::-1]
    for operator in ('hessian', 'ggn'):
      of = f'{point}/{objective}/{operator}'
      np.testing.assert_allclose(arrays[f'{of}/eigenvalues'], values[:3], rtol=1e-4)
      assert arrays[f'{of}/lowest'] == pytest.approx(0, abs=1e-5)


def test_found_eigenvalues_are_not_in_the_density(spectra):
  """The 15 nonzero of 20 eigenvalues are found, so the rest has trace 0."""
  arrays, _ = spectra
  of = 'student/distillation/hessian'
  found_K = arrays[f'{of}/found'][~np.isnan(arrays[f'{of}/found'])]
  true = np.linalg.eigvalsh(true_hessian(1, TAU))[::-1][:15]
  np.testing.assert_allclose(found_K, true, rtol=1e-3)
  assert arrays[f'{of}/nodes'].shape == (4, 30)
  weights_KT = arrays[f'{of}/weights']
  np.testing.assert_allclose(weights_KT.sum(axis=1), 5 / 20)
  assert np.abs(arrays[f'{of}/nodes'][weights_KT > 1e-6]).max() < 1e-3 * true[0]


def test_loss_and_sharpness_are_those_of_all_examples(spectra):
  arrays, _ = spectra
  log_probs = np.asarray(jax.nn.log_softmax(INPUTS @ kernel(1)), np.float64)
  nll = -log_probs[np.arange(7), LABELS]
  place = 'student/cross_entropy'
  assert arrays[f'{place}/loss'] == pytest.approx(nll.mean(), rel=1e-5)
  assert (
    nll.min() < arrays[f'{place}/loss/low'] < nll.mean() < arrays[f'{place}/loss/high'] < nll.max()
  )
  radius = curvature.RADIUS * np.linalg.norm(kernel(1))
  assert arrays[f'{place}/radius'] == pytest.approx(radius, rel=1e-5)
  # In so small a ball the loss is quadratic.
  slope = arrays[f'{place}/gradient_norm']
  curved = 0.5 * radius**2 * np.linalg.eigvalsh(true_hessian(1, 1.0))[-1]
  assert slope * radius - 1e-6 < arrays[f'{place}/sharpness'] < slope * radius + curved + 1e-6
  # At the teacher loss and gradient are 0, and the top eigenvector is the worst direction.
  place, radius = 'teacher 0/distillation', curvature.RADIUS * np.linalg.norm(kernel(2))
  assert arrays[f'{place}/loss'] == pytest.approx(0, abs=1e-6)
  assert arrays[f'{place}/gradient_norm'] == pytest.approx(0, abs=1e-6)
  curved = 0.5 * radius**2 * np.linalg.eigvalsh(true_hessian(2, TAU))[-1]
  # A difference of float32 losses, each rounded by about 1e-7.
  assert arrays[f'{place}/sharpness'] == pytest.approx(curved, rel=0.01, abs=1e-6)


def test_traces_of_g_are_exact_and_intervals_of_h_contain_the_trace(traces):
  arrays, checks = traces
  assert list(checks.values) == ['diagonal of G against products']
  for seed, point in enumerate(drawing.POINTS):
    trace, place = np.trace(true_hessian(seed, TAU)), f'{point}/distillation'
    for end in ('', '/low', '/high'):
      assert arrays[f'{place}/ggn/trace{end}'] == pytest.approx(trace, rel=1e-5)
    low, high = arrays[f'{place}/hessian/trace/low'], arrays[f'{place}/hessian/trace/high']
    half = (high - low) / 2  # 24 probes; twice the interval is missed once in ten thousand
    assert low - half < trace < high + half
    assert half < trace / 2
    assert arrays[f'{place}/mismatch/high'] < 1e-5
    assert arrays[f'{place}/layers'].tolist() == ['Dense_0']


def test_with_batch_norm_there_are_estimates_and_a_mismatch(tmp_path):
  """Compares with an explicit matrix, whose derivatives go through the statistics of both batches.

  Without labels there is no cross-entropy.
  """
  model = Normed()
  arrays, _ = computed('curvature_traces', tmp_path, model, labels=NO_LABELS)
  assert arrays['objectives'].tolist() == ['distillation']
  assert not any('cross_entropy' in key for key in arrays)
  of, point = made_measure(model)(None, 7), points_of(model)['student']
  theta_P, unravel = jax.flatten_util.ravel_pytree(point['params'])

  def mean_loss(theta_P):
    total = 0.0
    for batch in of.batches('distillation'):
      dense, norm, last = (unravel(theta_P)[k] for k in ('Dense_0', 'BatchNorm_0', 'Dense_1'))
      x = batch['inputs'] @ dense['kernel'] + dense['bias'][None]
      x = (x - x.mean(0)[None]) / jax.numpy.sqrt(x.var(0)[None] + 1e-5)
      x = jax.nn.relu(x * norm['scale'][None] + norm['bias'][None]) @ last['kernel']
      total += losses.distillation(x, batch['teacher_log_probs'], TAU).sum()
    return total / 7

  hessian = np.asarray(jax.jit(jax.hessian(mean_loss))(theta_P))
  place = 'student/distillation'
  low, high = (arrays[f'{place}/hessian/trace/{end}'] for end in ('low', 'high'))
  half = (high - low) / 2
  assert low - half < np.trace(hessian) < high + half and half < np.linalg.norm(hessian)
  assert arrays[f'{place}/ggn/trace/low'] < arrays[f'{place}/ggn/trace/high']
  assert arrays[f'{place}/mismatch/low'] > 0.1
  assert 'traces of G are exact' not in PARTS['curvature_traces'].caption(arrays)


def test_finished_blocks_are_not_computed_again(folders, spectra, traces, monkeypatch):
  monkeypatch.setattr(curvature, 'MeanLoss', None)
  for name, (first, _) in zip(PARTS, (spectra, traces), strict=True):
    second, _ = computed(name, folders[name])
    assert first.keys() == second.keys()
    for key, x in first.items():
      assert np.array_equal(x, second[key], equal_nan=x.dtype.kind == 'f'), key


@pytest.mark.parametrize(
  'name, wrong, message',
  [
    ('curvature', lambda right, v: right + 0.1 * np.roll(v, 1), 'of ggn'),
    ('curvature_traces', lambda right, v: right + v, 'diagonal of G against products'),
  ],
)
def test_a_wrong_product_is_found(tmp_path, monkeypatch, name, wrong, message):
  right = curvature.MeanLoss.gvp
  monkeypatch.setattr(curvature.MeanLoss, 'gvp', lambda self, v: wrong(right(self, v), v))
  settings = dataclasses.replace(SETTINGS, lanczos_steps=4, num_probes=2)
  with pytest.raises(CheckError, match=message):
    computed(name, tmp_path, settings=settings, labels=NO_LABELS)


def test_the_figures_show_all_points_and_objectives(spectra, traces):
  for name, (arrays, _), num_axes, words in (
    ('curvature', spectra, 6, ['Sticks', 'n = 7 distillation examples']),
    ('curvature_traces', traces, 4 + 6, ['‖H − G‖ / ‖G‖', 'traces of G are exact']),
  ):
    with style.drawing(name):
      figure = PARTS[name].draw(arrays)
    assert len(figure.axes) == num_axes
    caption = PARTS[name].caption(arrays)
    assert all(word in caption for word in words)
    rows = PARTS[name].table(arrays)
    assert [row[:2] for row in rows[1:3]] == [
      ['initial student', "student's loss"],
      ['initial student', 'cross-entropy'],
    ]
    assert len(rows) == 1 + 6
    if name == 'curvature':  # of H, then of G
      sticks = [c for c in figure.axes[0].collections if hasattr(c, 'get_segments')]
      xs = [segment[0][0] for segment in sticks[0].get_segments()]
      found_T = arrays['initial/distillation/hessian/found']
      np.testing.assert_allclose(xs, found_T[~np.isnan(found_T)])
  trace = arrays['student/distillation/ggn/trace']
  assert rows[3][4] == f'{trace:.3g} [{trace:.3g}, {trace:.3g}]'
