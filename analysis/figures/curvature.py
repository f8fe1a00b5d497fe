"""Figures of curvature: spectra as sticks and densities, traces, and mismatch.

Axes: K probe, T Lanczos step, G grid, L layer.
"""

import itertools
import string

import numpy as np

from .. import lanczos
from . import style
from .style import Arrays, Axes, Figure

POINTS = {'initial': 'initial student', 'student': 'student', 'teacher 0': 'teacher 0'}
OBJECTIVES = {'distillation': "student's loss", 'cross_entropy': 'cross-entropy'}
OPERATORS = {'hessian': 'Hessian H', 'ggn': 'Gauss-Newton G'}

COLORS = {'hessian': style.GREEN, 'ggn': style.PINK, 'mismatch': style.INK}
LINES = {'hessian': '-', 'ggn': '--'}
MARKERS = {'hessian': 'o', 'ggn': 's', 'mismatch': 'D'}
NAMES = OPERATORS | {'mismatch': 'mismatch'}
GRID = 600
DRAWN_LAYERS = 12
SMOOTHING = 1 / 150  # width of the Gaussians as a fraction of the range of eigenvalues


def draw_spectra(arrays: Arrays) -> Figure:
  """A panel for each point (row) and objective (column) with the spectra of H and G."""
  points, objectives = arrays['points'], arrays['objectives']
  figure = style.blank(0.9 + 2.1 * len(points))
  panels = figure.subplots(len(points), len(objectives), squeeze=False)
  places = itertools.product(points, objectives)
  for axes, letter, (point, objective) in zip(
    panels.ravel(), string.ascii_lowercase, places, strict=False
  ):
    _draw_density(axes, arrays, f'{point}/{objective}')
    style.title(axes, letter, f'{POINTS[str(point)]}, {OBJECTIVES[str(objective)]}', ncols=0)
  for axes in panels[:, 0]:
    axes.set_ylabel('number per unit of λ')
  for axes in panels[-1]:
    axes.set_xlabel('eigenvalue λ')
  style.legend(figure, panels[0, 0], ncols=2)
  return figure


def _draw_density(axes: Axes, arrays: Arrays, place: str) -> None:
  """Draws converged eigenvalues as sticks, and the density of the rest with its range over probes."""
  rules = {
    name: [arrays[f'{place}/{name}/{key}'] for key in ('nodes', 'weights')] for name in OPERATORS
  }
  found = {name: arrays[f'{place}/{name}/found'] for name in OPERATORS}
  used = [nodes_KT[weights_KT > 0] for nodes_KT, weights_KT in rules.values()]
  everything = np.concatenate([*used, *found.values(), [0.0]])
  low, high = np.nanmin(everything), np.nanmax(everything)
  width = max(SMOOTHING * (high - low), np.finfo(np.float32).tiny)
  one = 1 / (width * np.sqrt(2 * np.pi))  # the height of a single eigenvalue
  grid_G = np.linspace(low - 6 * width, high + 6 * width, GRID)
  num_parameters = float(arrays['num_parameters'])
  for name, label in OPERATORS.items():
    counts_KG = num_parameters * lanczos.density(*rules[name], grid_G, width)
    look = {'color': COLORS[name], 'linestyle': LINES[name]}
    axes.plot(grid_G, counts_KG.mean(axis=0), linewidth=1.6, label=label, **look)
    axes.fill_between(
      grid_G,
      counts_KG.min(axis=0),
      counts_KG.max(axis=0),
      color=COLORS[name],
      alpha=0.2,
      linewidth=0,
    )
    sticks = found[name][~np.isnan(found[name])]
    axes.vlines(sticks, one / 1000, one, linewidth=1.4, **look)
  axes.set_yscale('log')
  axes.set_ylim(one / 1000, 3 * num_parameters * one)


def draw_traces(arrays: Arrays) -> Figure:
  """Mismatch and traces at all points, above traces by layer in a row for each objective."""
  points, objectives = list(arrays['points']), list(arrays['objectives'])
  heights = [
    *2 * [0.8 + 0.3 * len(points)],
    *(1.2 + 0.24 * len(_largest(arrays, o)) for o in objectives),
  ]
  labels = [POINTS[str(point)] for point in points]
  letters = iter(string.ascii_lowercase)
  figure = style.blank(0.4 + sum(heights))
  mismatch, traces, *below = figure.subfigures(2 + len(objectives), 1, height_ratios=heights)
  for part, series, quantity in (
    (mismatch, {'mismatch': 'mismatch'}, '‖H − G‖ / ‖G‖'),
    (traces, {name: f'{name}/trace' for name in OPERATORS}, 'trace'),
  ):
    panels = part.subplots(1, len(objectives), squeeze=False, sharey=True)[0]
    for axes, objective in zip(panels, objectives, strict=True):
      places = [f'{point}/{objective}' for point in points]
      _draw_rows(axes, labels, _values(arrays, places, series))
      style.title(axes, next(letters), OBJECTIVES[str(objective)], ncols=0)
      axes.set_xlabel(quantity)
  series = {name: f'{name}/layers' for name in OPERATORS}
  for part, objective in zip(below, objectives, strict=True):
    largest = _largest(arrays, objective)
    layers = [str(arrays[f'{points[0]}/{objective}/layers'][layer]) for layer in largest]
    by_point = part.subplots(1, len(points), squeeze=False, sharey=True)[0]
    for axes, point in zip(by_point, points, strict=True):
      values = _values(arrays, [f'{point}/{objective}'], series)
      _draw_rows(axes, layers, {key: x[:, 0, largest] for key, x in values.items()})
      style.title(axes, next(letters), POINTS[str(point)], ncols=0)
      axes.set_xlabel('trace by layer')
    by_point[0].set_ylabel(OBJECTIVES[str(objective)])
  style.legend(figure, panels[0], ncols=2)
  return figure


def _values(arrays: Arrays, places: list[str], series: dict[str, str]) -> dict[str, np.ndarray]:
  """(mean, low, high) of each place for each of the series {name: key}, of shape (3, places, ...)."""
  return {
    name: np.stack([style.estimate(arrays, f'{place}/{key}') for place in places], axis=1)
    for name, key in series.items()
  }


def _largest(arrays: Arrays, objective: str) -> np.ndarray:
  """The layers with the largest traces of H at any point, in the order of the parameters."""
  traces = [np.abs(arrays[f'{point}/{objective}/hessian/layers']) for point in arrays['points']]
  relative = np.max([x / max(x.max(), np.finfo(np.float32).tiny) for x in traces], axis=0)
  return np.sort(np.argsort(-relative)[:DRAWN_LAYERS])


def _draw_rows(axes: Axes, labels: list[str], values: dict[str, np.ndarray]) -> None:
  """Draws a row for each label, the first on top, with the values of all series and their intervals."""
  rows = np.arange(len(labels))
  axes.axvline(0, color=style.INK, linewidth=0.8)
  shifts = 0.25 * (np.arange(len(values)) - (len(values) - 1) / 2)
  for (name, (mean, low, high)), shift in zip(values.items(), shifts, strict=True):
    axes.errorbar(
      mean,
      rows + shift,
      xerr=style.errors(mean, low, high),
      linestyle='',
      marker=MARKERS[name],
      markersize=4,
      color=COLORS[name],
      label=NAMES[name],
    )
  axes.set_yticks(rows, labels)
  axes.locator_params(axis='x', nbins=4)
  axes.set_ylim(len(labels) - 0.5, -0.5)
