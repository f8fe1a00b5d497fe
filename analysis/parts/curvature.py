"""Curvature of the student's loss and of the cross-entropy: at the student's start and end, at a teacher.

Two parts: `curvature` has spectra, largest eigenvalues and sharpness (Ghorbani et al. 2019; Foret et
al. 2021), `curvature_traces` the traces of the Hessian H and the Gauss-Newton matrix G, of each layer,
and tr(H) − tr(G), which is the curvature that mismatch alone causes. Examples and probes are the same
everywhere. Axes: P parameter, N example, K eigenvalue or probe, L layer, T Lanczos step, G grid.
"""

import itertools
from collections.abc import Callable, Iterable, Iterator
from functools import partial

import jax
import numpy as np

from analysis import curvature, lanczos, measure
from analysis.curvature import MeanLoss
from analysis.figures import curvature as drawing
from analysis.figures.curvature import DRAWN_LAYERS, OBJECTIVES, OPERATORS, POINTS
from analysis.lanczos import Krylov
from analysis.part import Arrays, Blocks, Checks, Part, Settings
from analysis.runs import Study
from kdjax import intervals, keys, progress

RADIUS = 0.002  # of the ball of sharpness, as a fraction of ‖θ‖: about SAM's 0.05 for a ResNet-8
TRACE_PROBES = 6  # for each probe of the densities: one costs a product, and not lanczos_steps

# Limits of the self-checks; a ResNet-8 in float32 stays far below each.
LIMITS = {
  'symmetry': 1e-3,  # ⟨u, A v⟩ − ⟨v, A u⟩ of random signs, relative to its spread ‖A v‖
  'orthogonality': 1e-5,  # max |Q Qᵀ − I|
  'weights': 1e-6,  # Σ w − 1
  'trace': 1e-3,  # P Σ w θ of the quadrature against vᵀ A v, relative to P Σ w |θ|
}
LAYERS = 1e-6  # of the sum of the layers' traces against the trace, relative

Show = Callable[[], None]  # called after each step of the work


# Computing.


def compute_spectra(study: Study, settings: Settings, blocks: Blocks, checks: Checks) -> Arrays:
  """Eigenvalues, quadratures, loss and sharpness; `_spectrum` and `_sharpness` say under which keys."""
  num_steps = len(OPERATORS) * settings.num_probes * settings.lanczos_steps
  block = partial(_spectra, study=study, settings=settings)
  arrays = _at_all_points(study, settings, blocks, num_steps, block)
  for place, operator, name in itertools.product(_places(arrays), OPERATORS, LIMITS):
    deviation = arrays[f'{place}/{operator}/deviation/{name}']
    checks.at_most(f'{name} of {operator}', deviation, LIMITS[name])
  return arrays


def compute_traces(study: Study, settings: Settings, blocks: Blocks, checks: Checks) -> Arrays:
  """Traces and Frobenius norms with 95 % intervals over probes; `_traces` says under which keys."""
  num_probes = TRACE_PROBES * settings.num_probes
  block = partial(_traces, study=study, num_probes=num_probes)
  arrays = _at_all_points(study, settings, blocks, num_probes, block)
  for place, operator in itertools.product(_places(arrays), OPERATORS):
    layers_L, trace = arrays[f'{place}/{operator}/layers'], arrays[f'{place}/{operator}/trace']
    deviation = abs(layers_L.sum() - trace) / np.abs(layers_L).sum()
    checks.at_most('layers add up to the trace', deviation, LAYERS)
  return arrays


def _at_all_points(
  study: Study,
  settings: Settings,
  blocks: Blocks,
  num_steps: int,
  block: Callable[[MeanLoss, Show], Arrays],
) -> Arrays:
  """What `block` finds of each objective at each point, as '<point>/<objective>/<key>'.

  BatchNorm's statistics are re-estimated from the examples at each point: those that an untrained
  network has are of no data.
  """
  measured = measure.Measure(study, settings.curvature_examples)
  batches, forward = measured.batches('distillation'), curvature.forward(measured.model)
  unpadded = [{'inputs': batch['inputs'][batch['weights'] > 0]} for batch in batches]
  points = {name: x for name, x in study.points().items() if name in POINTS}
  has_labels = any((batch['labels'] >= 0).any() for batch in batches)
  objectives = [name for name in OBJECTIVES if has_labels or name != 'cross_entropy']
  arrays = {
    'points': np.array(list(points)),
    'objectives': np.array(objectives),
    'num_parameters': np.array(sum(x.size for x in jax.tree.leaves(points['student']['params']))),
    'num_examples': np.array(measured.num_examples('distillation')),
    'reestimated': np.array(bool(points['student']['batch_stats'])),
  }

  def compute(point: str, loss: measure.Objective, first: int) -> Arrays:
    variables = measure.reestimated(points[point], unpadded, measured.model)
    done = itertools.count(first + 1)
    return block(MeanLoss(forward, loss, variables, batches), lambda: show(next(done), point))

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
  """Lanczos from each probe; eigenvalues are those that the first one finds.

  Returns: 'nodes' and 'weights' of the quadratures, (K, T), with weights of 0 behind a breakdown;
    the largest 'eigenvalues' (K,), NaN where there are fewer, and the 'lowest' one, with 'low' and
    'high' by their residuals; and 'deviation/<check>'. And the largest ones' vectors_KP.
  """
  nodes_KT, weights_KT = np.zeros((2, len(probes), settings.lanczos_steps))
  orthogonality = []
  for i, probe_P in enumerate(probes):
    krylov = lanczos.lanczos(multiply, probe_P, settings.lanczos_steps, show)
    orthogonality.append(krylov.deviation())
    rule = krylov.quadrature()
    nodes_KT[i, : len(rule[0])], weights_KT[i, : len(rule[1])] = rule
    if i == 0:
      eigenvalues, vectors_KP = _eigenvalues(krylov, settings.num_eigenpairs)
  deviations = _deviations(multiply, probes, nodes_KT, weights_KT)
  deviations['deviation/orthogonality'] = np.array(max(orthogonality))
  return {'nodes': nodes_KT, 'weights': weights_KT} | eigenvalues | deviations, vectors_KP


def _eigenvalues(krylov: Krylov, num: int) -> tuple[Arrays, np.ndarray]:
  values_K, bounds_K, vectors_KP = krylov.largest(num)
  missing = (0, num - len(values_K))
  values_K, bounds_K = (np.pad(x, missing, constant_values=np.nan) for x in (values_K, bounds_K))
  values_T, bounds_T, _ = krylov.eigenvalues()
  arrays = {
    'eigenvalues': values_K,
    'eigenvalues/low': values_K - bounds_K,
    'eigenvalues/high': values_K + bounds_K,
    'lowest': values_T[0],
    'lowest/low': values_T[0] - bounds_T[0],
    'lowest/high': values_T[0] + bounds_T[0],
  }
  return arrays, vectors_KP


def _deviations(
  multiply: lanczos.Multiply, probes: list[np.ndarray], nodes_KT: np.ndarray, weights_KT: np.ndarray
) -> Arrays:
  """What `LIMITS` holds, from products of two probes that owe nothing to Lanczos."""
  u_P, v_P = (probe_P.astype(np.float64) for probe_P in probes[:2])
  au_P, av_P = (multiply(probe_P).astype(np.float64) for probe_P in probes[:2])
  spread = max(np.linalg.norm(av_P), np.finfo(np.float64).tiny)
  size = max(u_P.size * weights_KT[0] @ np.abs(nodes_KT[0]), np.finfo(np.float64).tiny)
  trace = u_P.size * weights_KT[0] @ nodes_KT[0]
  found = {
    'symmetry': abs(u_P @ av_P - v_P @ au_P) / spread,
    'weights': np.abs(weights_KT.sum(axis=1) - 1).max(),
    'trace': abs(trace - u_P @ au_P) / size,
  }
  return {f'deviation/{name}': np.array(value) for name, value in found.items()}


def _sharpness(mean_loss: MeanLoss, vectors_KP: np.ndarray, study: Study) -> Arrays:
  """The mean 'loss' and its 'gradient_norm'; 'sharpness', the worst increase in a ball of 'radius'.

  Loss and sharpness have 'low' and 'high', 95 % bootstraps over examples; those of sharpness are for
  the weights that are the worst on all of them.
  """
  radius = RADIUS * float(np.linalg.norm(mean_loss.theta_P))
  starts = [sign * vector_P for vector_P in vectors_KP[:1] for sign in (1, -1)]
  _, shift_P = curvature.sharpness(mean_loss, radius, starts)
  losses_N = mean_loss.losses().astype(np.float64)
  arrays = {
    'radius': np.array(radius),
    'gradient_norm': np.linalg.norm(mean_loss.gradient()[1]),
  }
  for name, values_N in (('loss', losses_N), ('sharpness', mean_loss.losses(shift_P) - losses_N)):
    rng = keys.numpy_rng(study.seed, 'analysis/curvature/bootstrap')
    low, high = intervals.bootstrap_interval(values_N, intervals.NUM_RESAMPLES, rng)
    arrays |= {
      name: values_N.mean(),
      f'{name}/low': np.array(low),
      f'{name}/high': np.array(high),
    }
  return arrays


def _traces(mean_loss: MeanLoss, show: Show, study: Study, num_probes: int) -> Arrays:
  """'<operator>/trace', '/layers' (L,), '/frobenius'; 'difference' and 'difference/layers', H − G.

  With 'low' and 'high'. The names of the layers are in 'layers'.
  """
  found = curvature.traces(mean_loss, _shown(_probes(study, mean_loss, num_probes), show))
  arrays = {'layers': np.array(found.layers)}
  hessian, ggn = found.hessian, found.ggn
  for operator, trace in (('hessian', hessian), ('ggn', ggn)):
    arrays |= _with_interval(f'{operator}/trace', trace.total_K)
    arrays |= _with_interval(f'{operator}/layers', trace.layers_KL)
    squares = _with_interval(f'{operator}/frobenius', trace.squares_K)
    arrays |= {key: np.sqrt(np.maximum(x, 0)) for key, x in squares.items()}
  arrays |= _with_interval('difference/layers', hessian.layers_KL - ggn.layers_KL)
  return arrays | _with_interval('difference', hessian.total_K - ggn.total_K)


def _with_interval(name: str, values_K: np.ndarray) -> Arrays:
  mean, low, high = intervals.of_mean(values_K)
  return {name: mean, f'{name}/low': low, f'{name}/high': high}


def _shown(probes: Iterable[np.ndarray], show: Show) -> Iterator[np.ndarray]:
  for probe_P in probes:
    yield probe_P
    show()


# Captions.


def caption_spectra(arrays: Arrays) -> str:
  objective = str(arrays['objectives'][0])
  points = {POINTS[str(point)]: f'{point}/{objective}' for point in arrays['points']}
  largest = [
    f'{arrays[f"{place}/hessian/eigenvalues"][0]:.3g} and {arrays[f"{place}/hessian/lowest"]:.2g} '
    f'({label})'
    for label, place in points.items()
  ]
  rises = [
    f'{_with_ends(arrays, f"{place}/sharpness")} from {arrays[f"{place}/loss"]:.3g} ({label})'
    for label, place in points.items()
  ]
  drawn = [f'{place}/{name}/eigenvalues' for place in _places(arrays) for name in OPERATORS]
  drawn += [f'{place}/hessian/lowest' for place in _places(arrays)]
  error = max(np.nanmax(arrays[f'{key}/high'] - arrays[key], initial=0) for key in drawn)
  num_probes = len(arrays[f'{_places(arrays)[0]}/hessian/nodes'])
  return (
    f'Spectra of the Hessian H and the Gauss-Newton matrix G. Lines are means over {num_probes} '
    'random vectors, bands their range; ticks are the largest eigenvalues, and the lowest of H, each '
    f"to within {error:.1g}. Largest and lowest of H of the student's loss: "
    f'{", ".join(largest)}. Within {100 * RADIUS:g} % of the norm of the weights this loss rises by at '
    f'least {", ".join(rises)}; intervals are 95 % bootstraps over examples. {_how(arrays)}'
  )


def caption_traces(arrays: Arrays) -> str:
  objective = str(arrays['objectives'][0])
  texts = [
    f'{POINTS[str(point)]} tr H {_with_ends(arrays, f"{point}/{objective}/hessian/trace")}, '
    f'tr H − tr G {_with_ends(arrays, f"{point}/{objective}/difference")}'
    for point in arrays['points']
  ]
  return (
    'Traces of H and of G, and tr H − tr G, the curvature that is there only because the loss has a '
    "gradient in the logits: without labels in the loss, a perfect match has none. Student's loss: "
    f'{"; ".join(texts)}. Intervals are 95 % over probes, which H and G share. Of the layers, the '
    f'{DRAWN_LAYERS} with the largest traces are drawn. {_how(arrays)}'
  )


def _with_ends(arrays: Arrays, key: str) -> str:
  value, low, high = (_number(arrays[f'{key}{end}']) for end in ('', '/low', '/high'))
  return f'{value} [{low}, {high}]'


def _number(value: np.ndarray) -> str:
  return f'{value:.3g}' if abs(value) < 999.5 else f'{value:.0f}'  # and not 1.12e+03


def _how(arrays: Arrays) -> str:
  text = f'Mean loss of {arrays["num_examples"]} fixed examples of the distillation data'
  held = ", with BatchNorm's statistics re-estimated from them at each point and then held fixed"
  return f'{text}{held if arrays["reestimated"] else ""}.'


PARTS = (
  Part(
    name='curvature',
    title='Curvature',
    reads=('curvature_examples', 'num_eigenpairs', 'lanczos_steps', 'num_probes'),
    compute=compute_spectra,
    draw=drawing.draw_spectra,
    caption=caption_spectra,
  ),
  Part(
    name='curvature_traces',
    title='Traces of the curvature, and layers',
    reads=('curvature_examples', 'num_probes'),
    compute=compute_traces,
    draw=drawing.draw_traces,
    caption=caption_traces,
  ),
)
