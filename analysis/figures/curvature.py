"""Figures of curvature: spectra as sticks and densities, and traces and mismatch.

matplotlib is imported when a figure is drawn. Axes: K probe, T Lanczos step, G grid, L layer.
"""

import itertools
from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from analysis import lanczos
from kdjax import intervals
from kdjax.report import figures

if TYPE_CHECKING:
  from matplotlib.axes import Axes
  from matplotlib.figure import Figure

Arrays = Mapping[str, np.ndarray]

POINTS = {'initial': 'initial student', 'student': 'student', 'teacher 0': 'teacher 0'}
OBJECTIVES = {'distillation': "student's loss", 'cross_entropy': 'cross-entropy'}
OPERATORS = {'hessian': 'Hessian H', 'ggn': 'Gauss-Newton G'}

COLORS = {'hessian': '#009e73', 'ggn': '#cc79a7', 'mismatch': figures.COLORS['ink']}
LINES = {'hessian': '-', 'ggn': '--'}
MARKERS = {'hessian': 'o', 'ggn': 's', 'mismatch': 'D'}
NAMES = OPERATORS | {'mismatch': 'mismatch'}
GRID = 600
DRAWN_LAYERS = 12
WIDTH = 1 / 150  # of the drawn Gaussians, as a fraction of the range of eigenvalues


def draw_spectra(arrays: Arrays) -> 'Figure':
  """A panel for each point (row) and objective (column), densities of H and G over eigenvalues."""
  points, objectives = arrays['points'], arrays['objectives']
  with figures.style('curvature'):
    figure = figures.blank((1.2 + 3.6 * len(objectives), 0.9 + 2.3 * len(points)))
    panels = figure.subplots(len(points), len(objectives), squeeze=False)
    for (row, point), (column, objective) in itertools.product(
      enumerate(points), enumerate(objectives)
    ):
      axes = panels[row, column]
      _draw_density(axes, arrays, f'{point}/{objective}')
      axes.set_title(f'{POINTS[str(point)]}, {OBJECTIVES[str(objective)]}', fontsize=11)
    for axes in panels[:, 0]:
      axes.set_ylabel('eigenvalues\nper unit of λ')
    for axes in panels[-1]:
      axes.set_xlabel('eigenvalue λ')
    figure.legend(*panels[0, 0].get_legend_handles_labels(), loc='outside upper center', ncols=2)
    return figure


def _draw_density(axes: 'Axes', arrays: Arrays, place: str) -> None:
  """Eigenvalues as sticks, and of all others means over probes as lines and their range as bands."""
  rules = {
    name: [arrays[f'{place}/{name}/{key}'] for key in ('nodes', 'weights')] for name in OPERATORS
  }
  found = {name: arrays[f'{place}/{name}/found'] for name in OPERATORS}
  used = [nodes_KT[weights_KT > 0] for nodes_KT, weights_KT in rules.values()]
  everything = np.concatenate([*used, *found.values(), [0.0]])
  low, high = np.nanmin(everything), np.nanmax(everything)
  width = max(WIDTH * (high - low), np.finfo(np.float32).tiny)
  one = 1 / (width * np.sqrt(2 * np.pi))  # the height of a single eigenvalue
  grid_G = np.linspace(low - 6 * width, high + 6 * width, GRID)
  num_parameters = float(arrays['num_parameters'])
  for name, label in OPERATORS.items():
    counts_KG = num_parameters * lanczos.density(*rules[name], grid_G, width)
    style = {'color': COLORS[name], 'linestyle': LINES[name]}
    axes.plot(grid_G, counts_KG.mean(axis=0), linewidth=1.6, label=label, **style)
    axes.fill_between(
      grid_G,
      counts_KG.min(axis=0),
      counts_KG.max(axis=0),
      color=COLORS[name],
      alpha=0.2,
      linewidth=0,
    )
    sticks = found[name][~np.isnan(found[name])]
    axes.vlines(sticks, one / 1000, one, linewidth=1.4, **style)
  axes.set_yscale('log')
  axes.set_ylim(one / 1000, 3 * num_parameters * one)


def draw_traces(arrays: Arrays) -> 'Figure':
  """Above mismatch and traces at all points; below traces of layers, a row for each objective."""
  points, objectives = list(arrays['points']), list(arrays['objectives'])
  heights = [
    *2 * [0.75 + 0.3 * len(points)],
    *(1.2 + 0.24 * len(_largest(arrays, o)) for o in objectives),
  ]
  of_points = [POINTS[str(point)] for point in points]
  with figures.style('curvature_traces'):
    figure = figures.blank((8.6, 0.4 + sum(heights)))
    mismatch, traces, *below = figure.subfigures(2 + len(objectives), 1, height_ratios=heights)
    for part, series, title in (
      (mismatch, {'mismatch': 'mismatch'}, '‖H − G‖ / ‖G‖'),
      (traces, {name: f'{name}/trace' for name in OPERATORS}, 'trace'),
    ):
      panels = part.subplots(1, len(objectives), squeeze=False, sharey=True)[0]
      for axes, objective in zip(panels, objectives, strict=True):
        places = [f'{point}/{objective}' for point in points]
        _draw_rows(axes, of_points, _values(arrays, places, series))
        axes.set_title(f'{OBJECTIVES[str(objective)]}', fontsize=11)
        axes.set_xlabel(title)
    series = {name: f'{name}/layers' for name in OPERATORS}
    for part, objective in zip(below, objectives, strict=True):
      part.suptitle(f'{OBJECTIVES[str(objective)]}, by layer', fontsize=11)
      largest = _largest(arrays, objective)
      labels = [str(arrays[f'{points[0]}/{objective}/layers'][layer]) for layer in largest]
      for axes, point in zip(
        part.subplots(1, len(points), squeeze=False, sharey=True)[0], points, strict=True
      ):
        values = _values(arrays, [f'{point}/{objective}'], series)
        _draw_rows(axes, labels, {key: x[:, 0, largest] for key, x in values.items()})
        axes.set_title(POINTS[str(point)], fontsize=11)
        axes.set_xlabel('trace')
    figure.legend(*panels[0].get_legend_handles_labels(), loc='outside upper center', ncols=2)
    return figure


def _values(arrays: Arrays, places: list[str], series: dict[str, str]) -> dict[str, np.ndarray]:
  """For each of the series {name: key}: (mean, low, high) of each place, shape (3, places, ...)."""
  return {
    name: np.array([[arrays[f'{place}/{key}{end}'] for place in places] for end in intervals.ENDS])
    for name, key in series.items()
  }


def _largest(arrays: Arrays, objective: str) -> np.ndarray:
  """The layers whose H has the largest trace at any point, in the order of the parameters."""
  traces = [np.abs(arrays[f'{point}/{objective}/hessian/layers']) for point in arrays['points']]
  relative = np.max([x / max(x.max(), np.finfo(np.float32).tiny) for x in traces], axis=0)
  return np.sort(np.argsort(-relative)[:DRAWN_LAYERS])


def _draw_rows(axes: 'Axes', labels: list[str], values: dict[str, np.ndarray]) -> None:
  """A row for each label, the first on top, with the values of all series and their intervals."""
  rows = np.arange(len(labels))
  axes.axvline(0, color=figures.COLORS['ink'], linewidth=0.8)
  shifts = 0.25 * (np.arange(len(values)) - (len(values) - 1) / 2)
  for (name, (mean, low, high)), shift in zip(values.items(), shifts, strict=True):
    axes.errorbar(
      mean,
      rows + shift,
      xerr=[mean - low, high - mean],
      linestyle='',
      marker=MARKERS[name],
      markersize=4,
      color=COLORS[name],
      label=NAMES[name],
    )
  axes.set_yticks(rows, labels)
  axes.set_ylim(len(labels) - 0.5, -0.5)
