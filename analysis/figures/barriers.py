"""Figures and captions of barriers: matrices of pairs, curves along paths, bars by layer.

matplotlib is imported when a figure is drawn. Axes: K network, Q pair, V variant of a path, T position
on it, L layer, C change of a layer.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from analysis.figures import SAME_BASIN, one_basin
from kdjax import intervals
from kdjax.intervals import ENDS
from kdjax.report import figures

if TYPE_CHECKING:
  from matplotlib.axes import Axes
  from matplotlib.figure import Figure

Arrays = Mapping[str, np.ndarray]

PAIRS_IN_A_BAND = 6
# Of Okabe & Ito's palette those that stand for neither teacher nor student, with lines that differ too.
LOOKS = (('#888888', ':'), ('#56b4e9', '--'), ('#009e73', '-.'), ('#cc79a7', '-'))
# What of the arrays is shown along a path, and of a layer: key, label, factor.
CURVES = (
  ('distillation/loss', 'distillation loss', 1),
  ('test/predictive_kl', 'KL, test (nats)', 1),
  ('test/top1_agreement', 'agreement, test (%)', 100),
)
BARS = (
  ('test/predictive_kl', 'change of the KL, test (nats)', 1),
  ('test/top1_agreement', 'change of the agreement, test (points)', 100),
)


# Matrices.


def draw_barriers(arrays: Arrays) -> 'Figure':
  """One matrix for each variant in a common colour scale, one of the accuracy, and all alignments."""
  names, variants = [str(x) for x in arrays['names']], arrays['variants']
  num_columns = -(-len(variants) // 2) + 1
  width, height = max(0.52 * len(names), 2.2), max(0.36 * len(names), 1.8)
  figure = figures.blank((num_columns * width + 1.8, 2 * (height + 1.2) + 1.2))
  all_axes = figure.subplots(2, num_columns)
  loss_axes, (error_axes, spread_axes) = all_axes[:, :-1].ravel(), all_axes[:, -1]
  for axes in loss_axes[len(variants) :]:
    axes.set_axis_off()
  top = max(float(np.nanmax(arrays['loss'])), 1e-9)
  for v, (axes, variant) in enumerate(zip(loss_axes, variants, strict=False)):
    axes.set_title(f'loss:\n{variant}', fontsize=11)
    image = _draw_matrix(axes, names, arrays['pairs'], arrays['loss'][:, v], top, 'viridis')
  label = f'barrier of the loss ({arrays["loss_unit"]})'
  figure.colorbar(image, ax=all_axes[:, :-1], location='bottom', label=label, aspect=40)
  error_axes.set_title(f'accuracy:\n{variants[-1]}', fontsize=11)
  percent_Q = 100 * arrays['error'][:, -1]
  top = max(float(np.nanmax(percent_Q)), 1e-9)
  image = _draw_matrix(error_axes, names, arrays['pairs'], percent_Q, top, 'cividis')
  label = 'fall of the test\naccuracy (points)'
  figure.colorbar(image, ax=error_axes, location='bottom', label=label, aspect=20)
  _draw_alignments(spread_axes, arrays)
  return figure


def _draw_alignments(axes: 'Axes', arrays: Arrays) -> None:
  """Every pair's loss halfway after each alignment; the chosen one has a ring."""
  if 'alignments/halfway' not in arrays:
    axes.set_axis_off()
    return
  looks = {
    'as they are': ('x', '#888888'),
    'activations': ('^', '#009e73'),
    'learned': ('*', '#cc79a7'),
  }
  for q, (names, values) in enumerate(
    zip(arrays['alignments/names'], arrays['alignments/halfway'], strict=True)
  ):
    for name, value in zip(names, values, strict=True):
      marker, color = looks.get(str(name), ('o', '#56b4e9'))  # weights, and their restarts
      label = 'weights' if marker == 'o' else str(name)
      axes.plot(value, q, marker, color=color, markersize=5, label=label)
      if name == arrays['alignments/chosen'][q]:
        axes.plot(value, q, 'o', color=figures.COLORS['ink'], markersize=9, markerfacecolor='none')
  pairs = [' – '.join(str(arrays['names'][k]) for k in pair) for pair in arrays['pairs']]
  axes.set_yticks(range(len(pairs)), pairs, fontsize=7)
  axes.invert_yaxis()
  axes.set_title('all alignments', fontsize=11)
  axes.set_xlabel(f'loss halfway above the ends ({arrays["loss_unit"]})', fontsize=9)
  handles, labels = axes.get_legend_handles_labels()
  unique = dict(zip(labels, handles, strict=True))
  axes.legend(unique.values(), unique, fontsize=8)


def _draw_matrix(
  axes: 'Axes',
  names: Sequence[str],
  pairs_Q2: np.ndarray,
  values_Q: np.ndarray,
  top: float,
  color_map: str,
) -> Any:
  """The lower triangle of a symmetric matrix, with the numbers in the cells."""
  values_KK = np.full((len(names),) * 2, np.nan)
  values_KK[pairs_Q2[:, 1], pairs_Q2[:, 0]] = values_Q
  shown_KK = values_KK[1:, :-1]  # the first network has no row, the last no column
  image = axes.imshow(shown_KK, cmap=color_map, vmin=0, vmax=top, aspect='auto')
  for (row, column), value in np.ndenumerate(shown_KK):
    if not np.isnan(value):
      color = 'white' if value < 0.6 * top else 'black'
      axes.text(column, row, _short(value), ha='center', va='center', color=color, fontsize=9)
  axes.set_xticks(range(len(names) - 1), names[:-1], rotation=90)
  axes.set_yticks(range(len(names) - 1), names[1:])
  axes.grid(False)
  axes.spines[:].set_visible(False)
  axes.tick_params(length=0)
  return image


def _short(value: float) -> str:
  """Four characters at most, for a cell."""
  return f'{value:.1f}' if value >= 0.095 else f'{value:.2f}' if value >= 0.005 else '0'


def caption_barriers(arrays: Arrays) -> str:
  return (
    'Barriers on the straight line between two networks: the most by which the distillation loss rises, or '
    f'the test accuracy falls, from the line between its ends. {_how(arrays)}'
  )


def table_barriers(arrays: Arrays) -> list[list[str]]:
  """Each pair in each variant, and whether its ends share a basin; then the spread over alignments."""
  unit, percent = arrays['loss_unit'], 100 * SAME_BASIN
  heading = [
    'Pair',
    'variant',
    f'loss ({unit})',
    'accuracy (%)',
    f'one basin (within {percent:g} %)?',
  ]
  rows = [heading]
  for q, v in np.ndindex(arrays['loss'].shape):
    a, b = (str(arrays['names'][k]) for k in arrays['pairs'][q])
    rows.append([f'{a}, {b}', str(arrays['variants'][v]), *_cells(arrays, (q, v))])
  if 'alignments/halfway' not in arrays:
    return [*rows, [str(arrays['no_alignment']), '', '', '', '']]
  rows.append(['Loss halfway above the ends', 'chosen', 'its value', 'weights, by restart', 'all'])
  for pair, names, values, chosen in zip(
    arrays['pairs'],
    *(arrays[f'alignments/{key}'] for key in ('names', 'halfway', 'chosen')),
    strict=True,
  ):
    spread = lambda kept_A, values=values: (
      f'{values[kept_A].min():.3g} to {values[kept_A].max():.3g}'
    )
    rows.append(
      [
        ', '.join(str(arrays['names'][k]) for k in pair),
        str(chosen),
        f'{values[names == chosen][0]:.3g}',
        spread(np.char.startswith(names, 'weights')),
        spread(names != 'as they are'),
      ]
    )
  return rows


def _cells(arrays: Arrays, place: tuple[int, int]) -> list[str]:
  """Barriers of loss and accuracy with their intervals, and the verdict."""
  return [
    intervals.text(arrays, 'loss', place),
    intervals.text(arrays, 'error', place, 100),
    one_basin(arrays['error/low'][place], arrays['error/high'][place]),
  ]


def _how(arrays: Arrays) -> str:
  distillation, test = arrays['num_examples']
  reestimated = any('re-estimated' in str(name) for name in arrays['variants'])
  statistics = (
    " Re-estimated: BatchNorm's statistics are those of each point." if reestimated else ''
  )
  return f'{_aligned(arrays)}{statistics} {distillation} distillation, {test} test examples.'


def _aligned(arrays: Arrays) -> str:
  if 'alignment_examples' not in arrays:
    return 'No alignment.'
  chosen, overlap = arrays['alignment_examples']
  among = f' ({overlap} of them measured, too)' if overlap else ''
  return f'Aligned: units permuted, as is best on {chosen} other examples{among}.'


# Curves.


def draw_paths(arrays: Arrays) -> 'Figure':
  """A column for each pair, a row for each measure, a line for each variant; many pairs in bands."""
  num_pairs = len(arrays['pair_names'])
  num_bands = -(-num_pairs // PAIRS_IN_A_BAND)
  num_columns = -(-num_pairs // num_bands)
  figure = figures.blank((2.5 * num_columns + 1.2, 6.7 * num_bands + 0.5))
  bands = figure.subfigures(num_bands, squeeze=False)[:, 0]
  for band, start in zip(bands, range(0, num_pairs, num_columns), strict=True):
    _draw_band(band, arrays, range(start, min(start + num_columns, num_pairs)), num_columns)
  handles, labels = figure.axes[0].get_legend_handles_labels()
  figure.legend(handles, labels, loc='outside upper center', ncols=min(4, len(labels)))
  return figure


def _draw_band(figure: Any, arrays: Arrays, places: range, num_columns: int) -> None:
  """The pairs at some places of Q, side by side."""
  all_axes = figure.subplots(len(CURVES), num_columns, sharey='row', squeeze=False)
  for axes in all_axes[:, len(places) :].ravel():
    axes.set_axis_off()
  all_axes = all_axes[:, : len(places)]
  for row, (key, label, factor) in enumerate(CURVES):
    unit = f' ({arrays["loss_unit"]})' if key.endswith('/loss') else ''
    all_axes[row, 0].set_ylabel(f'{label}{unit}')
    for q, axes in zip(places, all_axes[row], strict=True):
      _draw_curves(axes, arrays, key, q, factor)
    if key.endswith('kl') and np.min(arrays[f'{key}/low'][places]) > 0:
      all_axes[row, 0].set_yscale('log')
  for axes in all_axes[:-1].ravel():
    axes.set_xticks([0, 0.5, 1], [])
  for axes, (a, b) in zip(all_axes[-1], arrays['pair_names'][places], strict=True):
    axes.set_xticks([0, 0.5, 1], [str(a), '', str(b)])
    for text, side in zip(axes.get_xticklabels()[::2], ('left', 'right'), strict=True):
      text.set_horizontalalignment(side)


def _draw_curves(axes: 'Axes', arrays: Arrays, key: str, q: int, factor: float) -> None:
  for v, (variant, (color, line)) in enumerate(zip(arrays['variants'], LOOKS, strict=False)):
    mean_T, low_T, high_T = (factor * arrays[f'{key}{end}'][q, v] for end in ENDS)
    axes.plot(arrays['ts'], mean_T, line, color=color, linewidth=2, label=str(variant))
    axes.fill_between(arrays['ts'], low_T, high_T, color=color, alpha=0.25, linewidth=0)


def caption_paths(arrays: Arrays) -> str:
  return (
    f'Along paths between networks, with 95 % bands. The curve is a quadratic Bezier (Garipov et al. 2018), '
    f'trained for {arrays["bezier_steps"]} steps on examples that include the measured distillation '
    f'examples. {_how(arrays)}'
  )


def table_paths(arrays: Arrays) -> list[list[str]]:
  unit, percent = arrays['loss_unit'], 100 * SAME_BASIN
  heading = ['Barrier', 'path', f'loss ({unit})', 'accuracy (%)', f'within {percent:g} %?']
  return [
    heading,
    *(
      [f'{a} to {b}', str(variant), *_cells(arrays, (q, v))]
      for q, (a, b) in enumerate(arrays['pair_names'])
      for v, variant in enumerate(arrays['variants'])
    ),
  ]


# Bars.


def draw_layers(arrays: Arrays) -> 'Figure':
  """Layers from top to bottom in order of depth, with a bar for each change."""
  layers, changes = arrays['layers'], arrays['changes']
  figure = figures.blank((9, 0.55 * len(layers) + 1.6))
  all_axes = figure.subplots(1, len(BARS), sharey=True)
  rows_L = np.arange(len(layers))
  for axes, (key, label, factor) in zip(all_axes, BARS, strict=True):
    for c, (change, (color, _)) in enumerate(zip(changes, LOOKS, strict=False)):
      mean_L, low_L, high_L = (factor * arrays[f'{key}{end}'][c] for end in ENDS)
      place_L = rows_L + 0.21 * (c - (len(changes) - 1) / 2)
      axes.barh(place_L, mean_L, 0.2, color=color, label=str(change))
      ink = figures.COLORS['ink']
      axes.hlines(place_L, low_L, high_L, color=ink, linewidth=1)
    axes.axvline(0, color=figures.COLORS['ink'], linewidth=1)
    axes.set_xlabel(label)
    axes.locator_params(axis='x', nbins=5)
    axes.grid(visible=False, axis='y')
  all_axes[0].set_yticks(rows_L, [str(name) for name in layers])
  all_axes[0].invert_yaxis()
  handles, labels = all_axes[0].get_legend_handles_labels()
  figure.legend(handles, labels, loc='outside upper center', ncols=len(changes))
  return figure


def caption_layers(arrays: Arrays) -> str:
  return (
    'What changes if one layer of the student moves to that of teacher 0, halfway or all the way. Lines are '
    f'95 % bootstraps of paired differences over {arrays["num_examples"][1]} test examples. BatchNorm is '
    f're-estimated. {_aligned(arrays)}'
  )


def table_layers(arrays: Arrays) -> list[list[str]]:
  key, agreement = 'test/predictive_kl', 'test/top1_agreement'
  student = [
    intervals.text(arrays, f'student/{name}', (), factor)
    for name, factor in ((key, 1), (agreement, 100))
  ]
  rows = [['Layer', 'change', 'KL (nats)', 'agreement (%)'], ['none', 'the student', *student]]
  for layer, c in np.ndindex(arrays[key].T.shape):
    change = [
      intervals.text(arrays, name, (c, layer), f) for name, f in ((key, 1), (agreement, 100))
    ]
    rows.append([str(arrays['layers'][layer]), str(arrays['changes'][c]), *change])
  return rows
