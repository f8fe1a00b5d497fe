"""Figures, captions and tables of `analysis.parts.barriers`.

Axes: K network, Q pair, V variant of a path, A alignment, T position on a path, L layer, C change of a
layer.
"""

import string
from collections.abc import Sequence
from typing import Any

import numpy as np

from kdjax import intervals

from . import style
from .style import Arrays, Axes, Figure

PAIRS_IN_A_BAND = 4
LOOKS = (  # of variants and changes
  (style.CONTROL, ':'),
  (style.SKY, '--'),
  (style.GREEN, '-.'),
  (style.PINK, '-'),
)
ALIGNMENTS = {  # marker and colour
  'as they are': ('x', style.CONTROL),
  'weights': ('o', style.SKY),
  'activations': ('^', style.GREEN),
  'learned': ('*', style.PINK),
}
# Key, label and factor of the measures along a path, and of a layer.
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


def draw_barriers(arrays: Arrays) -> Figure:
  """Matrices of the loss barrier by variant, one of the accuracy barrier, and all alignments."""
  names, variants = [str(x) for x in arrays['names']], arrays['variants']
  num_rows, size = -(-len(variants) // 2), len(names) - 1
  heights = [
    num_rows * (0.3 * size + 0.4) + 0.9,
    max(0.3 * size + 0.9, 0.24 * _count(arrays) + 1.5),
  ]
  figure = style.blank(sum(heights))
  above, below = figure.subfigures(2, 1, height_ratios=heights)
  all_axes = above.subplots(num_rows, 2, sharex=True, sharey=True, squeeze=False)
  top = max(float(np.nanmax(arrays['loss'])), 1e-9)
  image = None
  letters = iter(string.ascii_lowercase)
  for v, axes in enumerate(all_axes.ravel()):
    if v == len(variants):
      axes.set_axis_off()
      continue
    image = _draw_matrix(axes, names, arrays['pairs'], arrays['loss'][:, v], top, 'viridis')
    style.title(axes, next(letters), f'loss, {variants[v]}')
  label = f'loss ({arrays["loss_unit"]})'
  above.colorbar(image, ax=all_axes, label=label)
  accuracy, spread = below.subplots(1, 2, width_ratios=(4, 5))
  percent_Q = 100 * arrays['error'][:, -1]
  top = max(float(np.nanmax(percent_Q)), 1e-9)
  image = _draw_matrix(accuracy, names, arrays['pairs'], percent_Q, top, 'cividis')
  label = 'test accuracy (points)'
  below.colorbar(image, ax=accuracy, location='bottom', label=label)
  style.title(accuracy, next(letters), f'accuracy, {variants[-1]}')
  _draw_alignments(spread, arrays)
  style.title(spread, next(letters), 'alignments')
  return figure


def _count(arrays: Arrays) -> int:
  """The number of rows of the panel of alignments."""
  return len(arrays['pairs']) if 'alignments/halfway' in arrays else 0


def _draw_alignments(axes: Axes, arrays: Arrays) -> None:
  """Draws the loss halfway of every pair after each alignment, with a ring around the chosen one."""
  if 'alignments/halfway' not in arrays:
    axes.set_axis_off()
    return
  for q, (names, values) in enumerate(
    zip(arrays['alignments/names'], arrays['alignments/halfway'], strict=True)
  ):
    for name, value in zip(names, values, strict=True):
      kind = str(name).partition(',')[0]  # 'weights, restart 1'
      marker, color = ALIGNMENTS[kind]
      is_first = q == 0 and name == kind
      axes.plot(value, q, marker, color=color, markersize=5, label=kind if is_first else None)
      if name == arrays['alignments/chosen'][q]:
        axes.plot(value, q, 'o', color=style.INK, markersize=9, markerfacecolor='none')
  pairs = [' – '.join(str(arrays['names'][k]) for k in pair) for pair in arrays['pairs']]
  axes.set_yticks(range(len(pairs)), pairs)
  axes.set_ylim(len(pairs) - 0.5, -0.5)  # no marker is cut
  axes.set_xlabel(f'excess loss halfway ({arrays["loss_unit"]})')


def _draw_matrix(
  axes: Axes,
  names: Sequence[str],
  pairs_Q2: np.ndarray,
  values_Q: np.ndarray,
  top: float,
  color_map: str,
) -> Any:
  """Draws the lower triangle of a symmetric matrix, with the numbers in the cells."""
  values_KK = np.full((len(names),) * 2, np.nan)
  values_KK[pairs_Q2[:, 1], pairs_Q2[:, 0]] = values_Q
  shown_KK = values_KK[1:, :-1]  # the first network has no row, the last no column
  image = axes.imshow(shown_KK, cmap=color_map, vmin=0, vmax=top, aspect='auto')
  for (row, column), value in np.ndenumerate(shown_KK):
    if not np.isnan(value):
      color = 'white' if value < 0.6 * top else 'black'
      text = {'ha': 'center', 'va': 'center', 'color': color}
      axes.text(column, row, _short(value), **text)
  axes.set_xticks(range(len(names) - 1), names[:-1], rotation=35, ha='right')
  axes.set_yticks(range(len(names) - 1), names[1:])
  axes.grid(False)
  axes.spines[:].set_visible(False)
  axes.tick_params(length=0)
  return image


def _short(value: float) -> str:
  """Formats a value with four characters at most, for a cell."""
  return f'{value:.1f}' if value >= 0.095 else f'{value:.2f}' if value >= 0.005 else '0'


def caption_barriers(arrays: Arrays) -> str:
  return (
    'Barriers on lines between networks: largest rise of the distillation loss, or fall of the test '
    'accuracy, from the chord. Last panel: loss halfway minus mean of the ends; rings: chosen. '
    f'{_how(arrays)}'
  )


def table_barriers(arrays: Arrays) -> list[list[str]]:
  """Barriers and verdicts of each pair and variant, then the spread over alignments."""
  unit, percent = arrays['loss_unit'], 100 * style.SAME_BASIN
  verdict = f'one basin (within {percent:g} %)?'
  rows = [['Pair', 'variant', f'loss ({unit})', 'accuracy (%)', verdict]]
  for q, v in np.ndindex(arrays['loss'].shape):
    a, b = (str(arrays['names'][k]) for k in arrays['pairs'][q])
    rows.append([f'{a}, {b}', str(arrays['variants'][v]), *_cells(arrays, (q, v))])
  if 'alignments/halfway' not in arrays:
    return [*rows, [str(arrays['no_alignment']), '', '', '', '']]
  rows.append(['Loss halfway − mean of ends', 'chosen', 'value', 'weights, by restart', 'all'])
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
  """Barriers of loss and accuracy with intervals, and the verdict."""
  return [
    intervals.text(arrays, 'loss', place),
    intervals.text(arrays, 'error', place, 100),
    style.one_basin(arrays['error/low'][place], arrays['error/high'][place]),
  ]


def _how(arrays: Arrays) -> str:
  distillation, test = arrays['num_examples']
  reestimated = any('re-estimated' in str(name) for name in arrays['variants'])
  statistics = ' Re-estimated: BatchNorm statistics of each point.' if reestimated else ''
  return f'{_aligned(arrays)}{statistics} n = {distillation} distillation, {test} test examples.'


def _aligned(arrays: Arrays) -> str:
  if 'alignment_examples' not in arrays:
    return 'No alignment.'
  chosen, overlap = arrays['alignment_examples']
  among = f' ({overlap} of them measured too)' if overlap else ''
  return f'Aligned: units permuted, best of several on {chosen} other examples{among}.'


# Curves.


def draw_paths(arrays: Arrays) -> Figure:
  """A column for each pair, a row for each measure, a line for each variant; many pairs in bands."""
  num_pairs = len(arrays['pair_names'])
  num_bands = -(-num_pairs // PAIRS_IN_A_BAND)
  num_columns = -(-num_pairs // num_bands)
  figure = style.blank(5.8 * num_bands + 0.5)
  bands = figure.subfigures(num_bands, squeeze=False)[:, 0]
  for band, start in zip(bands, range(0, num_pairs, num_columns), strict=True):
    _draw_band(band, arrays, range(start, min(start + num_columns, num_pairs)), num_columns)
  style.legend(figure, figure.axes[0], ncols=4)
  return figure


def _draw_band(figure: Any, arrays: Arrays, places: range, num_columns: int) -> None:
  """Draws the pairs at some places of Q side by side."""
  from matplotlib import ticker

  all_axes = figure.subplots(len(CURVES), num_columns, sharey='row', squeeze=False)
  for axes in all_axes[:, len(places) :].ravel():
    axes.set_axis_off()
  all_axes = all_axes[:, : len(places)]
  for row, (key, label, factor) in enumerate(CURVES):
    unit = f'\n({arrays["loss_unit"]})' if key.endswith('/loss') else ''
    all_axes[row, 0].set_ylabel(f'{label}{unit}')
    for q, axes in zip(places, all_axes[row], strict=True):
      _draw_curves(axes, arrays, key, q, factor)
      axes.set_xticks([0, 0.5, 1], [])
    if key.endswith('kl') and np.min(arrays[f'{key}/low'][places]) > 0:
      all_axes[row, 0].set_yscale('log')
      axis = all_axes[row, 0].yaxis
      axis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5)))
      axis.set_major_formatter('{x:g}')
      axis.set_minor_formatter('')
  for q, top, bottom in zip(places, all_axes[0], all_axes[-1], strict=True):
    first, last = (str(name).replace(' ', '\n') for name in arrays['pair_names'][q])
    style.title(top, string.ascii_letters[q % 52], '', ncols=0)
    bottom.set_xticks([0, 0.5, 1], [first, '', last])
    for text, side in zip(bottom.get_xticklabels()[::2], ('left', 'right'), strict=True):
      text.set_horizontalalignment(side)
  figure.supxlabel('position on the path')


def _draw_curves(axes: Axes, arrays: Arrays, key: str, q: int, factor: float) -> None:
  for v, (variant, (color, line)) in enumerate(zip(arrays['variants'], LOOKS, strict=False)):
    mean_T, low_T, high_T = style.estimate(arrays, key, (q, v), factor)
    axes.plot(arrays['ts'], mean_T, line, color=color, linewidth=2, label=str(variant))
    axes.fill_between(arrays['ts'], low_T, high_T, color=color, alpha=0.25, linewidth=0)


def caption_paths(arrays: Arrays) -> str:
  return (
    'Values along paths between networks, with 95 % bootstrap bands over examples. Curve: quadratic Bezier '
    f'(Garipov et al. 2018), trained for {arrays["bezier_steps"]} steps on examples that include the '
    f'measured ones. {_how(arrays)}'
  )


def table_paths(arrays: Arrays) -> list[list[str]]:
  unit, percent = arrays['loss_unit'], 100 * style.SAME_BASIN
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


def draw_layers(arrays: Arrays) -> Figure:
  """Layers from top to bottom in order of depth, with a bar for each change."""
  layers, changes = arrays['layers'], arrays['changes']
  figure = style.blank(0.55 * len(layers) + 1.6)
  all_axes = figure.subplots(1, len(BARS), sharey=True)
  rows_L = np.arange(len(layers))
  for axes, letter, (key, label, factor) in zip(all_axes, 'ab', BARS, strict=True):
    for c, (change, (color, _)) in enumerate(zip(changes, LOOKS, strict=False)):
      mean_L, low_L, high_L = style.estimate(arrays, key, c, factor)
      place_L = rows_L + 0.21 * (c - (len(changes) - 1) / 2)
      axes.barh(place_L, mean_L, 0.2, color=color, label=str(change))
      axes.hlines(place_L, low_L, high_L, color=style.INK, linewidth=1)
    axes.axvline(0, color=style.INK, linewidth=1)
    axes.set_xlabel(label)
    axes.locator_params(axis='x', nbins=5)
    axes.grid(visible=False, axis='y')
    style.title(axes, letter, '', ncols=0)
  all_axes[0].set_yticks(rows_L, [str(name) for name in layers])
  all_axes[0].invert_yaxis()
  style.legend(figure, all_axes[0], ncols=len(changes))
  return figure


def caption_layers(arrays: Arrays) -> str:
  return (
    'Change of the student when one layer moves halfway or all the way to that of teacher 0. Lines: 95 % '
    f'bootstraps of paired differences; n = {arrays["num_examples"][1]} test examples. '
    f'{"BatchNorm is re-estimated. " if arrays["reestimated"] else ""}{_aligned(arrays)}'
  )


def table_layers(arrays: Arrays) -> list[list[str]]:
  key, agreement = 'test/predictive_kl', 'test/top1_agreement'

  def cells(prefix: str, place: tuple) -> list[str]:
    names = ((key, 1), (agreement, 100))
    return [intervals.text(arrays, f'{prefix}{name}', place, factor) for name, factor in names]

  heading = ['Layer', 'change', 'KL (nats)', 'agreement (%)']
  rows = [heading, ['none', 'the student', *cells('student/', ())]]
  for layer, c in np.ndindex(arrays[key].T.shape):
    change = str(arrays['changes'][c])
    rows.append([str(arrays['layers'][layer]), change, *cells('', (c, layer))])
  return rows
