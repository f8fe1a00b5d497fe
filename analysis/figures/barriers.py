"""Figures and captions of barriers: matrices of pairs, curves along paths, bars by layer.

matplotlib is imported when a figure is drawn. Axes: K network, Q pair, V variant of a path, T position
on it, L layer, C change of a layer.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from analysis.figures import SAME_BASIN
from kdjax import figures, intervals
from kdjax.intervals import ENDS

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
  """One matrix for each variant in a common colour scale, and one of the accuracy."""
  names, variants = [str(x) for x in arrays['names']], arrays['variants']
  num_columns = (len(variants) + 1) // 2
  width, height = 0.52 * len(names), 0.36 * len(names)
  figure = figures.blank((num_columns * width + 1.4, 2 * (height + 0.4) + 2.2))
  all_axes = figure.subplots(2, num_columns, sharex=True, sharey=True)
  *loss_axes, error_axes = all_axes.ravel()
  top = max(float(np.nanmax(arrays['loss'])), 1e-9)
  for v, (axes, variant) in enumerate(zip(loss_axes, variants, strict=True)):
    axes.set_title(f'loss:\n{variant}', fontsize=11)
    image = _draw_matrix(axes, names, arrays['pairs'], arrays['loss'][:, v], top, 'viridis')
  label = f'barrier of the loss ({arrays["loss_unit"]})'
  figure.colorbar(image, ax=all_axes[:, :-1], location='bottom', label=label, aspect=40)
  lowest = _lowest(arrays, _chief(arrays))
  error_axes.set_title(f'accuracy:\n{variants[lowest]}', fontsize=11)
  percent_Q = 100 * arrays['error'][:, lowest]
  top = max(float(np.nanmax(percent_Q)), 1e-9)
  image = _draw_matrix(error_axes, names, arrays['pairs'], percent_Q, top, 'cividis')
  label = 'fall of the test accuracy (points)'
  figure.colorbar(image, ax=all_axes[:, -1:], location='bottom', label=label, aspect=20)
  return figure


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
  chief = _chief(arrays)
  lowest = _lowest(arrays, chief)
  widest, widest_error = (
    np.nanmax(arrays[f'{key}/high'] - arrays[f'{key}/low']) / 2 for key in ('loss', 'error')
  )
  others = '; '.join(
    _said(arrays, q, _lowest(arrays, q))
    for q in range(len(arrays['pairs']))
    if _is_reference(arrays, q)
  )
  return (
    'Barriers on the straight line between networks: the most that the distillation loss rises above '
    f'the line between its ends. {_said(arrays, chief, 0)}, and where accuracy '
    f'falls least {_said(arrays, chief, lowest, named=False)}: {_verdict(arrays, chief, lowest)} '
    f'{f"For comparison, where accuracy falls least: {others}. " if others else ""}'
    f'{_how(arrays)} Half the width of an interval is at most {widest:.2g} {arrays["loss_unit"]} of the '
    f'loss and {100 * widest_error:.2g} points of the accuracy.'
  )


def _chief(arrays: Arrays) -> int:
  """The pair of student and teacher 0; without a teacher, the student's first."""
  names = [str(x) for x in arrays['names']]
  pairs = [{names[i], names[j]} for i, j in arrays['pairs']]
  wanted = [{'student', other} for other in ('teacher 0', 'sibling', 'independent', 'initial')]
  return next(pairs.index(pair) for pair in wanted if pair in pairs)


def _is_reference(arrays: Arrays, q: int) -> bool:
  pair = {str(arrays['names'][k]) for k in arrays['pairs'][q]}
  return q != _chief(arrays) and pair in ({'teacher 0', 'teacher 1'}, {'student', 'sibling'})


def _lowest(arrays: Arrays, q: int) -> int:
  """The variant with the least fall of accuracy; of equals, that with the lowest barrier."""
  return min(
    range(len(arrays['variants'])), key=lambda v: (arrays['error'][q, v], arrays['loss'][q, v])
  )


def _said(arrays: Arrays, q: int, v: int, named: bool = True) -> str:
  """'student and teacher 0: 3.1 [2.9, 3.3] (as they are; accuracy falls by 4 % [2, 6])'."""
  a, b = (str(arrays['names'][k]) for k in arrays['pairs'][q])
  who = f'{a} and {b}: ' if named else ''
  error = intervals.text(arrays, 'error', (q, v), 100)
  loss = intervals.text(arrays, 'loss', (q, v))
  return f'{who}{loss} ({arrays["variants"][v]}; accuracy falls by {error} %)'


def _verdict(arrays: Arrays, q: int, v: int) -> str:
  low, high = arrays['error/low'][q, v], arrays['error/high'][q, v]
  bound = f'within {100 * SAME_BASIN:g} % (Frankle et al. 2020)'
  if high <= SAME_BASIN:
    modulo = ' modulo permutation' if 'matched' in str(arrays['variants'][v]) else ''
    return f'they lie in one basin{modulo}, {bound}.'
  if low > SAME_BASIN:
    return f'no permutation that was found puts them into one basin, {bound}.'
  return f'whether they lie in one basin, {bound}, cannot be told from so few examples.'


def _how(arrays: Arrays) -> str:
  distillation, test = arrays['num_examples']
  reestimated = any('re-estimated' in str(name) for name in arrays['variants'])
  statistics = (
    " Re-estimated: BatchNorm's statistics are those of each point." if reestimated else ''
  )
  return (
    f'Matched: the units of the second network are permuted to resemble those of the first.{statistics} '
    f'{distillation} distillation and {test} test examples; 95 % bootstraps over examples.'
  )


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
  pairs = [
    f'{a} to {b}: '
    + ', '.join(
      f'{variant} {intervals.text(arrays, "loss", (q, v))}{_on_test(arrays, q, v)}'
      for v, variant in enumerate(arrays['variants'])
    )
    for q, (a, b) in enumerate(arrays['pair_names'][:PAIRS_IN_A_BAND])
  ]
  if more := len(arrays['pair_names']) - len(pairs):
    pairs.append(f'and {more} more pairs, whose numbers are in the .npz')
  return (
    'Along paths between networks; shades are intervals. Barriers of the distillation loss: '
    f'{"; ".join(pairs)}. The curve is a quadratic Bezier (Garipov et al. 2018) whose middle was trained '
    f'for {arrays["bezier_steps"]} steps on distillation examples, those of the first row among them, '
    f'so that the test set is its judge. {_how(arrays)}'
  )


def _on_test(arrays: Arrays, q: int, v: int) -> str:
  """What says how good a curve is that was trained on the examples of its loss."""
  if not str(arrays['variants'][v]).startswith('curve'):
    return ''
  return f' (test accuracy falls by {intervals.text(arrays, "error", (q, v), 100)} %)'


# Bars.


def draw_layers(arrays: Arrays) -> 'Figure':
  """Layers from top to bottom in order of depth, with a bar for each change."""
  layers, changes = arrays['layers'], arrays['changes']
  figure = figures.blank((9, 0.55 * len(layers) + 1.6))
  all_axes = figure.subplots(1, len(BARS), sharey=True)
  rows_L = np.arange(len(layers))
  for axes, (key, label, factor) in zip(all_axes, BARS, strict=True):
    for c, (change, (color, _)) in enumerate(zip(changes, LOOKS[1:], strict=False)):
      mean_L, low_L, high_L = (factor * arrays[f'{key}{end}'][c] for end in ENDS)
      place_L = rows_L + 0.27 * (c - (len(changes) - 1) / 2)
      axes.barh(place_L, mean_L, 0.25, color=color, label=str(change))
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
  key = 'test/predictive_kl'
  replaced = [str(x) for x in arrays['changes']].index('replaced, matched')
  most, least = (pick(np.abs(arrays[key][replaced])) for pick in (np.argmax, np.argmin))
  said = lambda layer: f'{arrays["layers"][layer]} {intervals.text(arrays, key, (replaced, layer))}'
  student = ', '.join(
    f'{intervals.text(arrays, f"student/{key}", (), factor)}{unit}'
    for key, factor, unit in (
      ('test/predictive_kl', 1, ' nats'),
      ('test/top1_agreement', 100, ' %'),
    )
  )
  return (
    'The student with one layer moved to that of teacher 0, halfway or all the way, against the student '
    f'itself (KL to the ensemble and agreement: {student}). Replaced and matched, the KL changes most by '
    f'{said(most)} and least by {said(least)} nats. Matched: the units of the teacher are first permuted '
    "to resemble the student's, by their weights. BatchNorm's statistics, if there are any, are "
    're-estimated at each point. Intervals are of the paired differences, 95 % bootstraps over '
    f'{arrays["num_examples"][1]} test examples.'
  )
