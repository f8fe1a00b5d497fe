"""Figures, captions and tables of `analysis.parts.maps`: principal components, and predictors by distance.

Axes: T checkpoint, K predictor or component.
"""

import numpy as np

from kdjax import intervals

from . import style
from .style import Arrays, Axes, Figure

# Distances, and the Euclidean ones that are mapped.
MAPS = {'disagreement': '1 − agreement', 'jensen_shannon': '√JS'}
MAPPED = {'disagreement': '√(1 − agreement)', 'jensen_shannon': '√JS'}
LOOKS = {  # marker, face, legend
  'checkpoint': ('o', style.STUDENT, 'student, by step'),
  'ensemble': ('*', style.TEACHER, 'ensemble'),
  'teacher': ('s', style.TEACHER, 'teacher'),
  'sibling': ('v', 'white', 'sibling student'),
  'independent': ('D', style.CONTROL, 'independent student'),
}


def draw_pca(arrays: Arrays) -> Figure:
  """The first two coordinates of the checkpoints, and the variance explained by each component."""
  figure = style.blank(3.3)
  left, right = figure.subplots(1, 2, width_ratios=[1.3, 1])
  explained_K, xy_T2 = arrays['explained'], arrays['coords'][:, :2]
  left.plot(*xy_T2.T, '-o', color=style.STUDENT, markersize=5)
  _label_steps(left, xy_T2, arrays['steps'], np.zeros((0, 2)))
  left.set_aspect('equal', adjustable='datalim')
  left.margins(0.15)
  left.locator_params(nbins=5)
  left.set_xlabel(f'component 1 ({100 * explained_K[0]:.3g} %)')
  left.set_ylabel(f'component 2 ({100 * explained_K[1]:.3g} %)')
  count = min(len(explained_K), 5)
  places = np.arange(1, count + 1)
  for side, key, color, label in (
    (-0.2, 'explained', style.STUDENT, 'student'),
    (0.2, 'null', style.CONTROL, 'control: random walk'),
  ):
    right.bar(places + side, 100 * arrays[key][:count], 0.4, color=color, label=label)
  right.set_xticks(places)
  right.set_xlabel('component')
  right.set_ylabel('variance explained (%)')
  style.title(left, 'a', 'checkpoints, by step')
  style.title(right, 'b', 'explained variance')
  return figure


def draw_predictions(arrays: Arrays) -> Figure:
  """Two maps, the matrix of distances, and the distances to the ensemble with intervals."""
  figure = style.blank(7.0)
  upper, lower = figure.subplots(2, 2, height_ratios=[1, 1.1])
  for axes, letter, (name, label) in zip(upper, 'ab', MAPPED.items(), strict=True):
    _draw_map(axes, arrays, name, label)
    kept = 100 * float(arrays[f'{name}/kept'])
    style.title(axes, letter, f'{label}, {kept:.0f} % kept', ncols=0)
  _draw_matrix(lower[0], arrays)
  _draw_distances(lower[1], arrays)
  style.title(lower[0], 'c', 'all distances', ncols=0)
  style.title(lower[1], 'd', 'distance to the ensemble')
  style.legend(figure, upper[0], ncols=3, handletextpad=0.3)
  return figure


def _draw_map(axes: Axes, arrays: Arrays, name: str, label: str) -> None:
  xy_K2, kinds = arrays[f'{name}/coords'], arrays['kinds']
  path_T2 = xy_K2[kinds == 'checkpoint']
  axes.plot(*path_T2.T, '-', color=style.STUDENT, linewidth=1, zorder=1)
  for kind, (marker, color, legend) in LOOKS.items():
    if (kinds == kind).any():
      size = 11 if kind == 'ensemble' else 6
      look = {'color': color, 'markeredgecolor': style.INK, 'markeredgewidth': 0.6}
      axes.plot(*xy_K2[kinds == kind].T, marker, markersize=size, **look, label=legend)
  steps = [str(text).removeprefix('step ') for text in arrays['names'][kinds == 'checkpoint']]
  _label_steps(axes, path_T2, steps, xy_K2[kinds != 'checkpoint'])

  axes.set_aspect('equal', adjustable='datalim')
  axes.margins(0.12)
  axes.locator_params(nbins=5)
  axes.set_xlabel(f'first axis, in {label}')
  axes.set_ylabel(f'second axis, in {label}')


def _label_steps(axes: Axes, xy_T2: np.ndarray, steps: np.ndarray, taken_K2: np.ndarray) -> None:
  """Labels every point that is not close to a labelled point or to one of `taken_K2`, last first."""
  label_2 = np.array([0.13, 0.07]) * max(axes.dataLim.size)
  labelled_K2 = taken_K2
  for xy, step in reversed(list(zip(xy_T2, steps, strict=True))):
    if (np.abs(labelled_K2 - xy) >= label_2).any(axis=1).all():
      axes.annotate(f'{step}', xy, (0, 5), textcoords='offset points', ha='center')
      labelled_K2 = np.concatenate([labelled_K2, xy[None]])


def _draw_matrix(axes: Axes, arrays: Arrays) -> None:
  from matplotlib.colors import PowerNorm

  axes.grid(False)
  image = axes.imshow(arrays['jensen_shannon'], cmap='viridis', norm=PowerNorm(0.5, vmin=0))
  axes.figure.colorbar(image, ax=axes, label='√JS (√bits)', shrink=0.7)
  places = np.arange(len(arrays['names']))
  axes.set_xticks(places, arrays['names'], rotation=90)
  axes.set_yticks(places, arrays['names'])


def _draw_distances(axes: Axes, arrays: Arrays) -> None:
  """Draws the distances of all other predictors to the ensemble, with intervals."""
  others = arrays['kinds'] != 'ensemble'
  ensemble = int(np.flatnonzero(~others)[0])
  places = np.arange(others.sum())[::-1]
  for shift, marker, color, (name, label) in zip(
    (0.15, -0.15), 'os', (style.INK, style.TEACHER), MAPS.items(), strict=True
  ):
    value, low, high = style.estimate(arrays, name, (others, ensemble))
    bars = {'xerr': style.errors(value, low, high), 'fmt': marker, 'color': color, 'markersize': 4}
    axes.errorbar(value, places + shift, label=label, **bars)
  axes.set_yticks(places, arrays['names'][others])
  axes.set_xlabel('distance, square-root scale')
  # Shows values near 0 and the initial student near 1.
  axes.set_xscale('function', functions=(lambda x: np.sqrt(np.maximum(x, 0)), np.square))
  ticks = ['0', '.05', '.2', '.5', '1']
  axes.set_xticks([float(tick) for tick in ticks], ticks)
  axes.set_xlim(0, 1)


# Captions and tables.


def caption_pca(arrays: Arrays) -> str:
  return (
    f'Principal components of the {len(arrays["steps"])} kept checkpoints in weight space, and of a random '
    'walk in high dimension, which has no structure, observed at the same steps (for many even steps 60.8 '
    'and 15.2 %; Antognini & Sohl-Dickstein 2018).'
  )


def table_pca(arrays: Arrays) -> list[list[str]]:
  rows = [['Component', 'explained (%)', 'random walk (%)']]
  for k, (found, null) in enumerate(zip(arrays['explained'], arrays['null'], strict=True), 1):
    rows.append([str(k), f'{100 * found:.1f}', f'{100 * null:.1f}'])
  return rows


def caption_predictions(arrays: Arrays) -> str:
  is_mapped = not np.isnan(arrays['jensen_shannon/coords']).any()
  without = '' if is_mapped else ', without the distant random initial student'
  return (
    f'Predictors by distance on n = {int(arrays["num_examples"])} test examples: 1 − top-1 agreement, and √ of '
    f'the mean Jensen–Shannon divergence in bits. a, b: classical scaling to a plane{without}; near points '
    'can be far apart. c, d: the distances, with 95 % bootstraps over examples.'
  )


def table_predictions(arrays: Arrays) -> list[list[str]]:
  """Distances to the ensemble, repeated mismatches, and the fraction that the planes keep."""
  others = arrays['kinds'] != 'ensemble'
  ensemble = int(np.flatnonzero(~others)[0])
  rows = [['To the ensemble', *MAPS.values(), "repeats of the student's mismatches (%)"]]
  for k in np.flatnonzero(others):
    distances = [intervals.text(arrays, name, (k, ensemble)) for name in MAPS]
    rows.append([str(arrays['names'][k]), *distances, intervals.text(arrays, 'repeated', k, 100)])
  kept = [f'{100 * float(arrays[f"{name}/kept"]):.0f} %' for name in MAPS]
  return [*rows, ['kept by the plane', *kept, '']]
