"""Figures and captions of the training as a path. matplotlib is imported when a figure is drawn.

Axes: L layer (the first is all of them), T checkpoint.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from kdjax import intervals
from kdjax.intervals import ENDS
from kdjax.report import figures

if TYPE_CHECKING:
  from matplotlib.axes import Axes
  from matplotlib.figure import Figure

Arrays = Mapping[str, np.ndarray]

SETS = {'distillation': ('-', 'o', 0.0), 'test': ('--', '^', 0.015)}  # line, marker, shift
TEACHERS = {
  'raw': ('s', '--', 'teacher 0'),
  'aligned': ('o', '-', 'teacher 0, aligned'),
}
NULLS = {  # line and words
  'permuted': ('-', 'teacher 0, permuted at random'),
  'unrelated': ('--', 'unrelated teachers'),
  'unrelated, aligned': ('-.', 'unrelated teachers, aligned'),
  'origin': (':', 'origin'),
}


def compared(arrays: Arrays) -> list[tuple[str, str]]:
  """The (teacher, null) pairs that there are, those that say most first for each teacher."""
  return [(t, n) for t in TEACHERS for n in NULLS if f'excess/{t}/{n}' in arrays]


def _chief(arrays: Arrays, teacher: str) -> str:
  return next(null for name, null in compared(arrays) if name == teacher)


def draw_trajectory(arrays: Arrays) -> 'Figure':
  with figures.style('trajectory'):
    figure = figures.blank((8.4, 7.8))
    (far, near), (kl, disagreement) = figure.subplots(2, 2)
    steps_T = arrays['steps']
    teachers = _teachers(arrays)
    for name in teachers:
      marker, line, label = TEACHERS[name]
      color = figures.COLORS['teacher']
      values_T = arrays[f'distance/{name}'][:, 0]
      far.plot(steps_T, values_T, line, marker=marker, color=color, label=f'to {label}')
    _draw_nulls(far, arrays)
    for key, line in (('length', '-'), ('displacement', '--')):
      label = {'length': 'path length', 'displacement': 'from the start'}[key]
      color = figures.COLORS['student']
      far.plot(steps_T, arrays[key][:, 0], line, marker='^', color=color, label=label)
    legend = far.get_legend_handles_labels()
    figure.legend(*legend, loc='outside upper center', ncols=3, fontsize=9)
    _finish(far, 'distance in weight space', has_legend=False)
    far.set_ylim(bottom=0)
    _draw_excess(near, arrays, teachers[-1], 'distance − null')
    for name, (line, marker, shift) in SETS.items():
      moved = arrays | {'steps': steps_T + shift * np.ptp(steps_T)}
      for end, source in zip(ENDS, ('', '/high', '/low'), strict=True):
        moved[f'disagreement{end}'] = 100 - 100 * arrays[f'{name}/top1_agreement{source}']
      _errors(kl, moved, f'{name}/predictive_kl', line, name, marker=marker)
      _errors(disagreement, moved, 'disagreement', line, name, marker=marker)
    kl.set_yscale('log', nonpositive='mask')
    _finish(kl, 'KL to the ensemble (nats)')
    # Both what is near 0 and the start, near 100, are to be seen.
    disagreement.set_yscale('function', functions=(lambda x: np.sqrt(np.maximum(x, 0)), np.square))
    disagreement.set_yticks([0, 1, 5, 20, 50, 100])
    disagreement.set_ylim(0, 100)
    _finish(disagreement, '100 − agreement (%)')
    return figure


def draw_gradients(arrays: Arrays) -> 'Figure':
  with figures.style('gradients'):
    figure = figures.blank((8.4, 9.4))
    teachers = _teachers(arrays)
    axes = figure.subplot_mosaic(
      [['norm', 'snr'], ['cosine', 'cosine'], [teachers[0], teachers[-1]]],
      height_ratios=[1, 1, 1.4],
    )
    overall = {key: x[:, 0] for key, x in arrays.items() if x.ndim == 2}
    overall['steps'] = arrays['steps']
    _errors(axes['norm'], overall, 'norm', '-', 'mean')
    _errors(axes['norm'], overall, 'noise', '--', 'noise in it', color='0.5', marker='s')
    axes['norm'].set_ylim(bottom=0)
    _finish(axes['norm'], 'gradient norm')
    _errors(axes['snr'], overall, 'snr', '-', None)
    axes['snr'].axhline(0, color=figures.COLORS['ink'], linewidth=0.8)
    _finish(axes['snr'], 'SNR of one example')
    for name in teachers:
      marker, line, label = TEACHERS[name]
      color = figures.COLORS['teacher']
      _errors(axes['cosine'], overall, f'cosine/{name}', line, label, color=color, marker=marker)
    _draw_nulls(axes['cosine'], arrays)
    axes['cosine'].axhline(0, color=figures.COLORS['ink'], linewidth=0.8)
    legend = axes['cosine'].get_legend_handles_labels()
    figure.legend(*legend, loc='outside upper center', ncols=3, fontsize=9)
    _finish(axes['cosine'], 'cosine of −gradient with\nthe direction to', has_legend=False)
    for name in teachers:
      _draw_excess(axes[name], arrays, name, 'cosine − null')
    return figure


def _teachers(arrays: Arrays) -> list[str]:
  """The teachers that there are: without an alignment, just the raw one."""
  return list(dict.fromkeys(name for name, _ in compared(arrays)))


def _draw_nulls(axes: 'Axes', arrays: Arrays) -> None:
  """The means of the nulls over their draws, with the range of these."""
  for name, (line, label) in NULLS.items():
    if f'null/{name}' not in arrays:
      continue
    values_KT = np.atleast_3d(arrays[f'null/{name}'].T).T[..., 0]
    axes.plot(arrays['steps'], values_KT.mean(0), line, color='0.45', linewidth=1.5, label=label)
    lowest_T, highest_T = values_KT.min(0), values_KT.max(0)
    axes.fill_between(arrays['steps'], lowest_T, highest_T, color='0.45', alpha=0.25, linewidth=0)


def _draw_excess(axes: 'Axes', arrays: Arrays, teacher: str, label: str) -> None:
  """Layers by checkpoints: what is above the chief null, with a dot where the interval leaves 0 out."""
  null = _chief(arrays, teacher)
  key = f'excess/{teacher}/{null}'
  values_TL = arrays[key]
  limit = np.nan_to_num(np.abs(values_TL)).max(initial=1e-3)
  _heat(axes, arrays, values_TL, label, cmap='RdBu', vmin=-limit, vmax=limit)
  away_TL = (arrays[f'{key}/low'] > 0) | (arrays[f'{key}/high'] < 0)
  axes.plot(*np.nonzero(away_TL), '.', color=figures.COLORS['ink'], markersize=4)
  axes.set_title(f'{TEACHERS[teacher][2]} −\n{NULLS[null][1]}', fontsize=10)


def _errors(
  axes: 'Axes',
  arrays: Arrays,
  key: str,
  line: str,
  label: str | None,
  color: str = figures.COLORS['student'],
  marker: str = 'o',
) -> None:
  """Values of shape (T,) with their intervals, against steps."""
  value, low, high = (arrays[key + end] for end in ENDS)
  axes.errorbar(
    arrays['steps'],
    value,
    yerr=np.maximum([value - low, high - value], 0),
    fmt=line,
    marker=marker,
    markersize=4,
    capsize=2,
    color=color,
    label=label,
  )


def _finish(axes: 'Axes', ylabel: str, has_legend: bool = True) -> None:
  axes.set_xlabel('training step')
  axes.set_ylabel(ylabel)
  if has_legend and axes.get_legend_handles_labels()[0]:
    axes.legend(loc='lower left', bbox_to_anchor=(0, 1.0), ncols=2, fontsize=8)


def _heat(axes: 'Axes', arrays: Arrays, values_TL: np.ndarray, label: str, **colors: Any) -> None:
  """Layers from top to bottom, checkpoints from left to right; grey where there is no value."""
  axes.grid(False)
  axes.set_facecolor('0.8')
  values_LT = np.ma.masked_invalid(values_TL.T)
  image = axes.imshow(values_LT, aspect='auto', interpolation='nearest', **colors)
  axes.figure.colorbar(image, ax=axes, label=label)
  axes.set_xticks(range(len(arrays['steps'])), arrays['steps'], rotation=45, fontsize=9)
  axes.set_yticks(range(len(arrays['layers'])), arrays['layers'], fontsize=9)
  axes.axhline(0.5, color='white', linewidth=2)
  axes.set_xlabel('training step')


# Captions and tables.


def caption_trajectory(arrays: Arrays) -> str:
  return (
    'Distance of the student to teacher 0 at the kept checkpoints, beside nulls (mean and range over '
    'draws) and the length of its path; distance minus null by layer, with dots where the interval leaves '
    'out 0; KL and disagreement with the ensemble, 95 % bootstraps over examples. Aligned: the units are '
    "permuted to match the final student's."
  )


def table_trajectory(arrays: Arrays) -> list[list[str]]:
  step = int(arrays['steps'][-1])
  rows = [[f'Distance at step {step} to', 'value', 'null', 'value − null [95 %]', 'verdict']]
  rows += _compared_rows(arrays, 'distance')
  if 'alignments/names' in arrays:
    each = zip(*(arrays[f'alignments/{key}'] for key in ('names', 'distance', 'loss')), strict=True)
    chosen = str(arrays['alignments/chosen'])
    rows += [['Alignment of teacher 0', 'distance', '', 'loss halfway', '']]
    rows += [
      [str(name), f'{distance:.4g}', '', f'{loss:.4g}', 'chosen' if name == chosen else '']
      for name, distance, loss in each
    ]
  return rows + _lacking(arrays)


def caption_gradients(arrays: Arrays) -> str:
  return (
    f'The distillation gradient, from {int(arrays["num_batches"])} batches of '
    f"{int(arrays['batch_size'])} examples, training's size: norm, signal to noise ‖G‖² / tr Σ (McCandlish "
    'et al. 2018), and cosine of −gradient with the direction to teacher 0 and to nulls (mean and range '
    'over draws). Below, cosine minus null by layer; dots: the interval leaves out 0.'
  )


def table_gradients(arrays: Arrays) -> list[list[str]]:
  step = int(arrays['steps'][-1])
  signal_T = 1 - (arrays['noise'][:, 0] / arrays['norm'][:, 0]) ** 2
  rows = [[f'Cosine at step {step} with', 'value', 'null', 'value − null [95 %]', 'verdict']]
  rows += _compared_rows(arrays, 'cosine')
  rows += [['Gradient', 'first', 'last', '', '']]
  cells = [_with_interval(arrays, 'snr', place) for place in (0, -1)]
  rows += [['signal to noise of one example', *cells, '', '']]
  cells = [f'{100 * max(share, 0):.0f} %' for share in signal_T[[0, -1]]]
  rows += [['share of signal in the squared norm', *cells, '', '']]
  if np.ptp(arrays['temperature']) > 0:
    cells = [f'{arrays["temperature"][place]:.3g}' for place in (0, -1)]
    rows += [['τ', *cells, '', '']]
  return rows + _lacking(arrays)


def _compared_rows(arrays: Arrays, kind: str) -> list[list[str]]:
  """Each teacher at the last checkpoint against each of its nulls."""
  rows = []
  for teacher, null in compared(arrays):
    key = f'excess/{teacher}/{null}'
    low, high = (arrays[f'{key}{end}'][-1, 0] for end in ENDS[1:])
    nulls_K = np.atleast_1d(arrays[f'null/{null}'][..., -1, 0])
    count = f' ({len(nulls_K)})' if null != 'origin' else ''
    rows.append(
      [
        f'{TEACHERS[teacher][2]}; null: {NULLS[null][1]}{count}',
        _number(arrays[f'{kind}/{teacher}'][-1, 0]),
        f'{nulls_K.mean():.4g}',
        _with_interval(arrays, key, -1),
        intervals.verdict(low, high),
      ]
    )
  return rows


def _lacking(arrays: Arrays) -> list[list[str]]:
  """What the numbers lack, in one row."""
  rows = []
  if 'null/unrelated' not in arrays:
    rows.append(['no unrelated teacher: evaluation.independent_seed trains some', '', '', '', ''])
  if 'no_alignment' in arrays:
    rows.append([str(arrays['no_alignment']), '', '', '', ''])
  return rows


def _number(value: float) -> str:
  return 'undefined' if np.isnan(value) else f'{value:.4g}'


def _with_interval(arrays: Arrays, key: str, place: int) -> str:
  value, low, high = (arrays[key + end][place, 0] for end in ENDS)
  if np.isnan(value):
    return 'undefined'
  if np.isnan(low):
    return f'{value:.2g} [one draw]'
  return f'{value:.2g} [{low:.2g}, {high:.2g}]'
