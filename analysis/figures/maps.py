"""Figures and captions of maps: principal components, and predictors by their distances.

matplotlib is imported when a figure is drawn. Axes: T checkpoint, K predictor or component.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from kdjax import intervals
from kdjax.report import figures

if TYPE_CHECKING:
  from matplotlib.axes import Axes
  from matplotlib.figure import Figure

Arrays = Mapping[str, np.ndarray]

# Distances, and the Euclidean ones that are mapped.
MAPS = {'disagreement': '1 − agreement', 'jensen_shannon': '√JS'}
MAPPED = {'disagreement': '√(1 − agreement)', 'jensen_shannon': '√JS'}
TEACHER = figures.COLORS['teacher']
LOOKS = {  # marker, face, legend
  'checkpoint': ('o', figures.COLORS['student'], 'student, by step'),
  'ensemble': ('*', TEACHER, 'ensemble'),
  'teacher': ('s', TEACHER, 'teacher, by number'),
  'sibling': ('v', 'white', 'sibling student'),
  'independent': ('D', '0.6', 'independent student'),
}


def draw_pca(arrays: Arrays) -> 'Figure':
  with figures.style('pca'):
    figure = figures.blank((7.2, 3.4))
    left, right = figure.subplots(1, 2, width_ratios=[1.3, 1])
    explained_K, xy_T2 = arrays['explained'], arrays['coords'][:, :2]
    left.plot(*xy_T2.T, '-o', color=figures.COLORS['student'], markersize=5)
    _label_steps(left, xy_T2, arrays['steps'])
    left.set_aspect('equal', adjustable='datalim')
    left.locator_params(nbins=5)
    left.set_xlabel(f'component 1 ({100 * explained_K[0]:.3g} %)')
    left.set_ylabel(f'component 2 ({100 * explained_K[1]:.3g} %)')
    count = min(len(explained_K), 5)
    places = np.arange(1, count + 1)
    for side, key, color, label in (
      (-0.2, 'explained', figures.COLORS['student'], 'student'),
      (0.2, 'null', '0.6', 'random walk'),
    ):
      right.bar(places + side, 100 * arrays[key][:count], 0.4, color=color, label=label)
    right.set_xticks(places)
    right.set_xlabel('component')
    right.set_ylabel('variance explained (%)')
    right.legend()
    return figure


def draw_predictions(arrays: Arrays) -> 'Figure':
  with figures.style('predictions'):
    figure = figures.blank((8.4, 8.0))
    (upper, lower) = figure.subplots(2, 2, height_ratios=[1, 1.1])
    for axes, (name, label) in zip(upper, MAPPED.items(), strict=True):
      _draw_map(axes, arrays, name, label)
    _draw_matrix(lower[0], arrays)
    _draw_distances(lower[1], arrays)
    handles, labels = upper[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc='outside upper center', ncols=3, handletextpad=0.3)
    return figure


def _draw_map(axes: 'Axes', arrays: Arrays, name: str, label: str) -> None:
  xy_K2, kinds = arrays[f'{name}/coords'], arrays['kinds']
  path_T2 = xy_K2[kinds == 'checkpoint']
  axes.plot(*path_T2.T, '-', color=figures.COLORS['student'], linewidth=1, zorder=1)
  for kind, (marker, color, legend) in LOOKS.items():
    if (kinds == kind).any():
      size = 11 if kind == 'ensemble' else 6
      look = {'color': color, 'markeredgecolor': figures.COLORS['ink'], 'markeredgewidth': 0.6}
      axes.plot(*xy_K2[kinds == kind].T, marker, markersize=size, **look, label=legend)
  steps = [str(text).removeprefix('step ') for text in arrays['names'][kinds == 'checkpoint']]
  _label_steps(axes, path_T2, steps)
  members = arrays['names'][kinds == 'teacher']
  for member, xy in zip(members, xy_K2[kinds == 'teacher'], strict=True):
    number = str(member).removeprefix('teacher ')
    axes.annotate(number, xy, (6, -3), textcoords='offset points', fontsize=9, color=TEACHER)
  axes.set_aspect('equal', adjustable='datalim')
  axes.locator_params(nbins=5)
  axes.set_title(f'{label}; {100 * float(arrays[f"{name}/kept"]):.0f} % kept', fontsize=12)
  axes.set_xlabel(f'first axis, in {label}')
  axes.set_ylabel(f'second axis, in {label}')


def _label_steps(axes: 'Axes', xy_T2: np.ndarray, steps: np.ndarray) -> None:
  """Labels the last point, and each other whose label does not touch one that is there."""
  label_2 = np.array([0.13, 0.07]) * max(axes.dataLim.size)
  labelled_K2 = np.zeros((0, 2))
  for xy, step in reversed(list(zip(xy_T2, steps, strict=True))):
    if (np.abs(labelled_K2 - xy) >= label_2).any(axis=1).all():
      axes.annotate(f'{step}', xy, (0, 5), textcoords='offset points', fontsize=9, ha='center')
      labelled_K2 = np.concatenate([labelled_K2, xy[None]])


def _draw_matrix(axes: 'Axes', arrays: Arrays) -> None:
  from matplotlib.colors import PowerNorm

  axes.grid(False)
  image = axes.imshow(arrays['jensen_shannon'], cmap='viridis', norm=PowerNorm(0.5, vmin=0))
  axes.figure.colorbar(image, ax=axes, label='√JS', shrink=0.7)
  places = np.arange(len(arrays['names']))
  axes.set_xticks(places, arrays['names'], rotation=90, fontsize=8)
  axes.set_yticks(places, arrays['names'], fontsize=8)


def _draw_distances(axes: 'Axes', arrays: Arrays) -> None:
  """Of all but the ensemble to it, with intervals."""
  others = arrays['kinds'] != 'ensemble'
  ensemble = int(np.flatnonzero(~others)[0])
  places = np.arange(others.sum())[::-1]
  for shift, marker, color, (name, label) in zip(
    (0.15, -0.15),
    'os',
    (figures.COLORS['ink'], TEACHER),
    MAPS.items(),
    strict=True,
  ):
    value, low, high = (arrays[name + end][others, ensemble] for end in intervals.ENDS)
    axes.errorbar(
      value,
      places + shift,
      xerr=np.maximum([value - low, high - value], 0),
      fmt=marker,
      color=color,
      markersize=4,
      label=label,
    )
  axes.set_yticks(places, arrays['names'][others], fontsize=8)
  axes.set_xlabel('distance to the ensemble')
  # Both what is near 0 and the start, near 1, are to be seen.
  axes.set_xscale('function', functions=(lambda x: np.sqrt(np.maximum(x, 0)), np.square))
  axes.set_xticks([0, 0.01, 0.05, 0.2, 0.5, 1], ['0', '.01', '.05', '.2', '.5', '1'])
  axes.set_xlim(0, 1)
  axes.legend(loc='lower left', bbox_to_anchor=(0, 1), ncols=2, fontsize=10)


# Captions.


def caption_pca(arrays: Arrays) -> str:
  return (
    f'Principal components of the {len(arrays["steps"])} kept checkpoints in weight space, labelled by step, '
    'beside those of a random walk in high dimension, which has no structure, observed at the same steps '
    '(many even steps: 60.8 and 15.2 %; Antognini & Sohl-Dickstein 2018).'
  )


def table_pca(arrays: Arrays) -> list[list[str]]:
  rows = [['Component', 'explained (%)', 'random walk (%)']]
  for k, (found, null) in enumerate(zip(arrays['explained'], arrays['null'], strict=True), 1):
    rows.append([str(k), f'{100 * found:.1f}', f'{100 * null:.1f}'])
  return rows


def caption_predictions(arrays: Arrays) -> str:
  is_mapped = not np.isnan(arrays['jensen_shannon/coords']).any()
  without = '' if is_mapped else ', without the random start, which is far from all'
  return (
    f'Predictors by their distance on {int(arrays["num_examples"])} test examples: 1 − top-1 agreement, and '
    f'√ of the mean Jensen–Shannon divergence in bits. Above, classical scaling to a plane{without}; what is '
    'near on it may be far. Below, the distances themselves, with 95 % bootstraps over examples.'
  )


def table_predictions(arrays: Arrays) -> list[list[str]]:
  """Distances to the ensemble, and what the planes keep."""
  others = arrays['kinds'] != 'ensemble'
  ensemble = int(np.flatnonzero(~others)[0])
  rows = [['To the ensemble', *MAPS.values()]]
  for k in np.flatnonzero(others):
    distances = [intervals.text(arrays, name, (k, ensemble)) for name in MAPS]
    rows.append([str(arrays['names'][k]), *distances])
  kept = [f'{100 * float(arrays[f"{name}/kept"]):.0f} %' for name in MAPS]
  return [*rows, ['of squared distances, the plane keeps', *kept]]
