"""Curvature of the student's loss and of the cross-entropy at the initial and final student and a teacher.

There are two parts: `curvature` computes spectra, largest eigenvalues and sharpness (Ghorbani et al. 2019;
Foret et al. 2021); `curvature_traces` computes the traces of the Hessian H and the Gauss-Newton matrix G, in
total and by layer, and ‖H − G‖_F / ‖G‖_F, which is 0 at a perfect match. The loss is that of the planes
(`surface`). All points share examples and probes.
Axes: P parameter, N example, K eigenvalue or probe, L layer, T Lanczos step, G grid.
"""

import itertools
from collections.abc import Callable, Iterator
from functools import partial

import jax
import numpy as np

from kdjax import intervals, keys
from kdjax.runtime import progress

from .. import curvature, lanczos, measure, surface
from ..curvature import MeanLoss
from ..estimates import named
from ..figures import curvature as drawing
from ..figures.curvature import DRAWN_LAYERS, OBJECTIVES, OPERATORS, POINTS
from ..lanczos import Krylov
from ..part import Arrays, Blocks, Checks, Part, Settings
from ..runs import Study

RADIUS = 0.002  # radius of sharpness as a fraction of ‖θ‖: about SAM's 0.05 for a ResNet-8
TRACE_PROBES = 6  # per probe of the densities; each costs one product instead of lanczos_steps
NUM_CHECKED = 3  # entries of the exact diagonal of G that are compared with products

# Limits of the self-checks; a ResNet-8 in float32 stays far below each.
LIMITS = {
  'symmetry': 1e-3,  # ⟨u, A v⟩ − ⟨v, A u⟩ of random signs, relative to its spread ‖A v‖
  'orthogonality': 1e-5,  # max |Q Qᵀ − I|
  'weights': 1e-6,  # Σ w + eigenvalues found / P − 1
  'trace': 1e-3,  # P Σ w θ of the quadrature against vᵀ A v, relative to P Σ w |θ|
}
DIAGONAL = 0.02  # limit of `_diagonal_deviation`; the factors of a product have 8 bits on a TPU
Show = Callable[[], None]  # called after each step of the work


# Computing.


def compute_spectra(study: Study, settings: Settings, blocks: Blocks, checks: Checks) -> Arrays:
  """Computes eigenvalues, quadratures, loss and sharpness; see `_spectrum` and `_sharpness` for keys."""
  num_steps = len(OPERATORS) * settings.num_probes * settings.lanczos_steps
  block = partial(_spectra, study=study, settings=settings)
  arrays = _at_all_points(study, settings, blocks, num_steps, block)
  for place, operator, name in itertools.product(_places(arrays), OPERATORS, LIMITS):
    deviation = arrays[f'{place}/{operator}/deviation/{name}']
    checks.at_most(f'{name} of {operator}', deviation, LIMITS[name])
  return arrays


def compute_traces(study: Study, settings: Settings, blocks: Blocks, checks: Checks) -> Arrays:
  """Computes traces and mismatch with 95 % intervals over probes; see `_traces` for keys."""
  num_probes = TRACE_PROBES * settings.num_probes
  block = partial(_traces, study=study, num_probes=num_probes)
  arrays = _at_all_points(study, settings, blocks, num_probes, block)
  for place in _places(arrays):
    checks.at_most('diagonal of G against products', arrays[f'{place}/ggn/deviation'], DIAGONAL)
  return arrays


def _at_all_points(
  study: Study,
  settings: Settings,
  blocks: Blocks,
  num_steps: int,
  block: Callable[[MeanLoss, Show], Arrays],
) -> Arrays:
  """Runs `block` for each objective at each point, with results as '<point>/<objective>/<key>'.

  BatchNorm uses the statistics of the examples at each point, and derivatives go through them.
  """
  measured = measure.Measure(study, settings.curvature_examples)
  batches = measured.batches('distillation')
  points = {name: x for name, x in study.points().items() if name in POINTS}
  forward = surface.of_params(measured.model, points['student'])
  has_labels = any((batch['labels'] >= 0).any() for batch in batches)
  objectives = [name for name in OBJECTIVES if has_labels or name != 'cross_entropy']
  arrays = {
    'points': np.array(list(points)),
    'objectives': np.array(objectives),
    'num_parameters': np.array(sum(x.size for x in jax.tree.leaves(points['student']['params']))),
    'num_examples': np.array(measured.num_examples('distillation')),
    'normalised': np.array(measured.in_batch is not None),
    'exact': np.array(not measured.couples_examples),  # whether traces of G are
  }

  def compute(point: str, loss: measure.Objective, first: int) -> Arrays:
    done = itertools.count(first + 1)
    mean_loss = MeanLoss(forward, loss, points[point]['params'], batches, measured.couples_examples)
    return block(mean_loss, lambda: show(next(done), point))

  total = num_steps * len(points) * len(objectives)
  with progress.bar('curvature', total, 'steps') as show:
    first = 0
    for objective in objectives:
      loss = measured.objective(objective)
      for point in points:
        found = blocks.get(f'{point}-{objective}', partial(compute, point, loss, first))
        arrays |= {f'{point}/{objective}/{key}': x for key, x in found.items()}
        first += num_steps
  return arrays


def _places(arrays: Arrays) -> list[str]:
  pairs = itertools.product(arrays['points'], arrays['objectives'])
  return [f'{point}/{objective}' for point, objective in pairs]


def _probes(study: Study, mean_loss: MeanLoss, num: int) -> Iterator[np.ndarray]:
  for i in range(num):
    rng = keys.numpy_rng(study.seed, 'analysis/curvature', i)
    yield lanczos.rademacher(rng, mean_loss.num_parameters)


def _spectra(mean_loss: MeanLoss, show: Show, study: Study, settings: Settings) -> Arrays:
  arrays, sharpest = {}, {}
  for operator, multiply in (('hessian', mean_loss.hvp), ('ggn', mean_loss.gvp)):
    probes = list(_probes(study, mean_loss, settings.num_probes))
    found, sharpest[operator] = _spectrum(multiply, probes, settings, show)
    arrays |= {f'{operator}/{key}': x for key, x in found.items()}
  return arrays | _sharpness(mean_loss, sharpest['hessian'], study)


def _spectrum(
  multiply: lanczos.Multiply, probes: list[np.ndarray], settings: Settings, show: Show
) -> tuple[Arrays, np.ndarray]:
  """Runs Lanczos from each probe; eigenvalues are those of the first.

  Returns: arrays and vectors_KP of the largest eigenvalues. The arrays are 'found' (T,), the converged
    eigenvalues, padded with NaN; 'nodes' and 'weights' (K, T) of the quadratures of the rest, as fractions
    of all P eigenvalues, with weight 0 after a breakdown; the largest 'eigenvalues' (K,), padded with NaN,
    and the 'lowest' one, with 'low' and 'high' from their residuals; and 'deviation/<check>'.
  """
  num_steps, size = settings.lanczos_steps, probes[0].size
  nodes_KT, weights_KT = np.zeros((2, len(probes), num_steps))
  first = krylov = lanczos.lanczos(multiply, probes[0], num_steps, show)
  found_K, vectors_KP = first.converged()
  orthogonality = []
  for i, probe_P in enumerate(probes):
    if i > 0:  # the eigenvalues found are not part of the density
      start_P = lanczos.without(vectors_KP, probe_P)
      krylov = lanczos.lanczos(multiply, start_P, num_steps, show)
    rule_2T = np.array(krylov.quadrature())
    if i == 0:
      rule_2T = np.delete(rule_2T, found_K, axis=1)
    count, rest = rule_2T.shape[1], rule_2T[1].sum()
    nodes_KT[i, :count] = rule_2T[0]
    weights_KT[i, :count] = rule_2T[1] / (rest or 1) * (1 - len(found_K) / size)
    orthogonality.append(krylov.deviation())
  values_K = first.eigenvalues()[0][found_K]
  eigenvalues, largest_KP = _eigenvalues(first, settings.num_eigenpairs)
  arrays = {
    'found': np.pad(values_K, (0, num_steps - len(values_K)), constant_values=np.nan),
    'nodes': nodes_KT,
    'weights': weights_KT,
    'deviation/orthogonality': np.array(max(orthogonality)),
    'deviation/weights': np.abs(weights_KT.sum(axis=1) + len(found_K) / size - 1).max(),
  }
  return arrays | eigenvalues | _deviations(multiply, probes, first), largest_KP


def _eigenvalues(krylov: Krylov, num: int) -> tuple[Arrays, np.ndarray]:
  values_K, bounds_K, vectors_KP = krylov.largest(num)
  missing = (0, num - len(values_K))
  values_K, bounds_K = (np.pad(x, missing, constant_values=np.nan) for x in (values_K, bounds_K))
  values_T, bounds_T, _ = krylov.eigenvalues()
  arrays = named('eigenvalues', (values_K, values_K - bounds_K, values_K + bounds_K))
  lowest, bound = values_T[0], bounds_T[0]
  return arrays | named('lowest', (lowest, lowest - bound, lowest + bound)), vectors_KP


def _deviations(multiply: lanczos.Multiply, probes: list[np.ndarray], first: Krylov) -> Arrays:
  """Two of the checks in `LIMITS`, from products of two probes that do not use Lanczos."""
  u_P, v_P = (probe_P.astype(np.float64) for probe_P in probes[:2])
  au_P, av_P = (multiply(probe_P).astype(np.float64) for probe_P in probes[:2])
  least = np.finfo(np.float64).tiny
  nodes_T, weights_T = first.quadrature()
  trace, size = (u_P.size * weights_T @ x_T for x_T in (nodes_T, np.abs(nodes_T)))
  return {
    'deviation/symmetry': abs(u_P @ av_P - v_P @ au_P) / max(np.linalg.norm(av_P), least),
    'deviation/trace': abs(trace - u_P @ au_P) / max(size, least),
  }


def _sharpness(mean_loss: MeanLoss, vectors_KP: np.ndarray, study: Study) -> Arrays:
  """The mean 'loss' and its 'gradient_norm', and 'sharpness', the largest increase found within 'radius'.

  Loss and sharpness have 'low' and 'high', 95 % bootstraps over examples. The interval of sharpness holds
  the displacement fixed.
  """
  radius = RADIUS * float(np.linalg.norm(mean_loss.theta_P))
  starts = [sign * vector_P for vector_P in vectors_KP[:1] for sign in (1, -1)]
  _, shift_P = curvature.sharpness(mean_loss, radius, starts)
  losses_N = mean_loss.losses().astype(np.float64)
  arrays = {'radius': np.array(radius), 'gradient_norm': np.linalg.norm(mean_loss.gradient()[1])}
  for name, values_N in (('loss', losses_N), ('sharpness', mean_loss.losses(shift_P) - losses_N)):
    rng = keys.numpy_rng(study.seed, 'analysis/curvature/bootstrap')
    ends = intervals.bootstrap_interval(values_N, intervals.NUM_RESAMPLES, rng)
    arrays |= named(name, (values_N.mean(), *ends))
  return arrays


def _traces(mean_loss: MeanLoss, show: Show, study: Study, num_probes: int) -> Arrays:
  """'<operator>/trace', '<operator>/layers' (L,) and 'mismatch' with intervals, and the names 'layers'.

  Without BatchNorm the traces of G are exact, and 'ggn/deviation' is `_diagonal_deviation`.
  """
  found = curvature.probed(mean_loss, _probes(study, mean_loss, num_probes), show)
  arrays = {'layers': np.array(found.layers), 'ggn/deviation': np.array(0.0)}
  arrays |= named('mismatch', curvature.mismatch(found))
  for operator, traces_KL in (('hessian', found.hessian_KL), ('ggn', found.ggn_KL)):
    arrays |= named(f'{operator}/trace', intervals.of_mean(traces_KL.sum(axis=1)))
    arrays |= named(f'{operator}/layers', intervals.of_mean(traces_KL))
  if not mean_loss.normalised:
    diagonal_P = mean_loss.ggn_diagonal()
    layers_L = np.array(list(curvature.layer_sums(mean_loss.tree(diagonal_P)).values()))
    arrays['ggn/deviation'] = np.array(_diagonal_deviation(mean_loss, diagonal_P))
    arrays |= named('ggn/trace', [layers_L.sum()] * 3)
    arrays |= named('ggn/layers', [layers_L] * 3)
  return arrays


def _diagonal_deviation(mean_loss: MeanLoss, diagonal_P: np.ndarray) -> float:
  """The largest |eᵀ G e − diag(G)| for unit vectors e at the largest entries, relative to the largest entry.

  The estimated trace is no check: where one eigenvalue dominates, few probes see it, and the
  others agree on a trace that is too small.
  """
  largest = np.argsort(diagonal_P)[-NUM_CHECKED:]
  found = [mean_loss.gvp(np.eye(1, len(diagonal_P), i, np.float32)[0])[i] for i in largest]
  return float(abs(found - diagonal_P[largest]).max() / (diagonal_P.max() or 1.0))


# Captions and tables.


def caption_spectra(arrays: Arrays) -> str:
  num_probes = len(arrays[f'{_places(arrays)[0]}/hessian/nodes'])
  return (
    'Spectra of the Hessian H and the Gauss-Newton matrix G of the mean loss. Sticks: eigenvalues found to '
    f'{100 * lanczos.CONVERGED:g} %; lines: density of the rest, mean and range over {num_probes} probes. '
    f'{_how(arrays)}'
  )


def table_spectra(arrays: Arrays) -> list[list[str]]:
  """Extreme eigenvalues of H, loss and sharpness at each point for each objective."""
  rise = f'rise within {100 * RADIUS:g} % of ‖θ‖'
  rows = [['Point', 'objective', 'largest of H', 'lowest of H', 'loss', rise]]
  for point, objective in itertools.product(arrays['points'], arrays['objectives']):
    place = f'{point}/{objective}'
    rows.append(
      [
        POINTS[str(point)],
        OBJECTIVES[str(objective)],
        intervals.text(arrays, f'{place}/hessian/eigenvalues', 0),
        intervals.text(arrays, f'{place}/hessian/lowest'),
        intervals.text(arrays, f'{place}/loss'),
        intervals.text(arrays, f'{place}/sharpness'),
      ]
    )
  return rows


def caption_traces(arrays: Arrays) -> str:
  exact = '; traces of G are exact' if arrays['exact'] else ''
  return (
    'Mismatch ‖H − G‖ / ‖G‖ in Frobenius norms, 0 at a perfect match of a loss without labels, and traces of '
    'the Hessian H and the Gauss-Newton matrix G. Error bars: 95 % over probes, which H and G share'
    f'{exact}. By layer: the {DRAWN_LAYERS} largest traces. {_how(arrays)}'
  )


def table_traces(arrays: Arrays) -> list[list[str]]:
  """Mismatch and traces at each point for each objective."""
  rows = [['Point', 'objective', '‖H − G‖ / ‖G‖', 'tr H', 'tr G']]
  for point, objective in itertools.product(arrays['points'], arrays['objectives']):
    keys = ('mismatch', 'hessian/trace', 'ggn/trace')
    cells = [intervals.text(arrays, f'{point}/{objective}/{key}') for key in keys]
    rows.append([POINTS[str(point)], OBJECTIVES[str(objective)], *cells])
  return rows


def _how(arrays: Arrays) -> str:
  text = f'n = {arrays["num_examples"]} distillation examples'
  return f'{text}{", with their BatchNorm statistics" if arrays["normalised"] else ""}.'


PARTS = (
  Part(
    name='curvature',
    title='Curvature',
    answers='how curved is the loss at the initial and final student and at the teacher?',
    reads=('curvature_examples', 'num_eigenpairs', 'lanczos_steps', 'num_probes'),
    compute=compute_spectra,
    draw=drawing.draw_spectra,
    caption=caption_spectra,
    table=table_spectra,
    version=3,
  ),
  Part(
    name='curvature_traces',
    title='Curvature by layer, and mismatch',
    answers='in which layers does the curvature lie, and how far is it from that of a perfect match?',
    reads=('curvature_examples', 'num_probes'),
    compute=compute_traces,
    draw=drawing.draw_traces,
    caption=caption_traces,
    table=table_traces,
    version=4,
  ),
)
