"""Figures, captions and tables of `analysis.parts.trajectory`.

Axes: L layer (the first entry is all layers), T checkpoint.
"""

from functools import partial
from typing import Any

import numpy as np

from kdjax import intervals
from kdjax.intervals import ENDS

from . import style
from .style import Arrays, Axes, Figure

SETS = {'distillation': ('o-', 0.0), 'test': ('^--', 0.015)}  # marker with line, and shift
TEACHERS = {'raw': ('s--', 'teacher 0'), 'aligned': ('o-', 'teacher 0, aligned')}
NULLS = {  # line and label
  'permuted': ('-', 'teacher 0, permuted at random'),
  'unrelated': ('--', 'unrelated teachers'),
  'unrelated, aligned': ('-.', 'unrelated teachers, aligned'),
  'origin': (':', 'origin'),
}


def compared(arrays: Arrays) -> list[tuple[str, str]]:
  """The available (teacher, null) pairs, with the strictest null of each teacher first."""
  return [(t, n) for t in TEACHERS for n in NULLS if f'excess/{t}/{n}' in arrays]


def _chief(arrays: Arrays, teacher: str) -> str:
  """The strictest null of a teacher."""
  return next(null for name, null in compared(arrays) if name == teacher)


def draw_trajectory(arrays: Arrays) -> Figure:
  """Distances with their nulls, the excess by layer, and KL and disagreement, against steps."""
  figure = style.blank(7.0)
  (far, near), (kl, disagreement) = figure.subplots(2, 2)
  steps_T, teachers = arrays['steps'], _teachers(arrays)
  for name in teachers:
    line, label = TEACHERS[name]
    values_T = arrays[f'distance/{name}'][:, 0]
    far.plot(steps_T, values_T, line, color=style.TEACHER, label=f'to {label}')
  _draw_nulls(far, arrays)
  for key, line, label in (
    ('length', '^-', 'path length'),
    ('displacement', '^--', 'from the start'),
  ):
    far.plot(steps_T, arrays[key][:, 0], line, color=style.STUDENT, label=label)
  far.set_ylim(bottom=0)
  _finish(far, 'distance (units of the weights)')
  chief = _draw_excess(near, arrays, teachers[-1], 'distance − null')
  for name, (line, shift) in SETS.items():
    moved = arrays | {'steps': steps_T + shift * np.ptp(steps_T)}
    for end, source in zip(ENDS, ('', '/high', '/low'), strict=True):
      moved[f'disagreement{end}'] = 100 - 100 * arrays[f'{name}/top1_agreement{source}']
    for axes, key in ((kl, f'{name}/predictive_kl'), (disagreement, 'disagreement')):
      style.draw_interval(axes, moved, 'steps', key, line, style.STUDENT, name)
  kl.set_yscale('log', nonpositive='mask')
  _finish(kl, 'KL (nats)')
  # Shows values near 0 and the initial student near 100.
  disagreement.set_yscale('function', functions=(lambda x: np.sqrt(np.maximum(x, 0)), np.square))
  disagreement.set_yticks([0, 1, 5, 20, 50, 100])
  disagreement.set_ylim(0, 100)
  _finish(disagreement, '100 − agreement (%)')
  style.legend(figure, far, ncols=3)
  style.title(far, 'a', 'distances and nulls', ncols=0)
  style.title(near, 'b', chief, ncols=0)
  style.title(kl, 'c', 'KL to the ensemble')
  style.title(disagreement, 'd', 'disagreement')
  return figure


def draw_gradients(arrays: Arrays) -> Figure:
  """Norm, signal-to-noise ratio and cosines with their nulls, and the excess by layer, against steps."""
  figure = style.blank(8.6)
  teachers = _teachers(arrays)
  above, middle, below = figure.subfigures(3, 1, height_ratios=[1, 1.2, 1.4])
  (norm, snr), cosine = above.subplots(1, 2), middle.subplots()
  by_layer = below.subplots(1, len(teachers), squeeze=False)[0]
  overall = {key: x[:, 0] for key, x in arrays.items() if x.ndim == 2}
  overall['steps'] = arrays['steps']
  draw = partial(style.draw_interval, arrays=overall, x='steps')
  draw(norm, key='norm', line='o-', color=style.STUDENT, label='mean gradient')
  draw(norm, key='noise', line='s--', color=style.CONTROL, label='noise in it')
  norm.set_ylim(bottom=0)
  _finish(norm, 'norm (loss / weights)')
  draw(snr, key='snr', line='o-', color=style.STUDENT)
  snr.axhline(0, color=style.INK, linewidth=0.8)
  _finish(snr, 'SNR of one example')
  for name in teachers:
    line, label = TEACHERS[name]
    draw(cosine, key=f'cosine/{name}', line=line, color=style.TEACHER, label=label)
  _draw_nulls(cosine, arrays)
  cosine.axhline(0, color=style.INK, linewidth=0.8)
  _finish(cosine, 'cosine')
  style.title(norm, 'a', 'gradient norm')
  style.title(snr, 'b', 'signal-to-noise ratio', ncols=0)
  style.title(cosine, 'c', 'cosine of −gradient with the direction to', ncols=2)
  for axes, name, letter in zip(by_layer, teachers, 'de', strict=False):
    style.title(axes, letter, _draw_excess(axes, arrays, name, 'cosine − null'), ncols=0)
  return figure


def _teachers(arrays: Arrays) -> list[str]:
  """The teachers to compare with; without an alignment, only 'raw'."""
  return list(dict.fromkeys(name for name, _ in compared(arrays)))


def _draw_nulls(axes: Axes, arrays: Arrays) -> None:
  """Draws the means of the nulls with the range of their draws."""
  for name, (line, label) in NULLS.items():
    if f'null/{name}' not in arrays:
      continue
    values_KT = np.atleast_3d(arrays[f'null/{name}'].T).T[..., 0]
    axes.plot(
      arrays['steps'], values_KT.mean(0), line, color=style.CONTROL, linewidth=1.5, label=label
    )
    lowest_T, highest_T = values_KT.min(0), values_KT.max(0)
    axes.fill_between(
      arrays['steps'], lowest_T, highest_T, color=style.CONTROL, alpha=0.25, linewidth=0
    )


def _draw_excess(axes: Axes, arrays: Arrays, teacher: str, label: str) -> str:
  """Draws the excess over the chief null by layer and checkpoint, with a dot if its interval excludes 0.

  Returns: the title, which says what is compared.
  """
  null = _chief(arrays, teacher)
  key = f'excess/{teacher}/{null}'
  values_TL = arrays[key]
  limit = np.nan_to_num(np.abs(values_TL)).max(initial=1e-3)
  _heat(axes, arrays, values_TL, label, cmap='RdBu', vmin=-limit, vmax=limit)
  away_TL = (arrays[f'{key}/low'] > 0) | (arrays[f'{key}/high'] < 0)
  axes.plot(*np.nonzero(away_TL), '.', color=style.INK, markersize=4)
  name = 'aligned' if teacher == 'aligned' else TEACHERS[teacher][1]
  return f'{name} − {null.removesuffix(", aligned")}'


def _finish(axes: Axes, ylabel: str) -> None:
  axes.set_xlabel('training step')
  axes.set_ylabel(ylabel)


def _heat(axes: Axes, arrays: Arrays, values_TL: np.ndarray, label: str, **colors: Any) -> None:
  """Draws layers from top to bottom and checkpoints from left to right; missing values are grey."""
  axes.grid(False)
  axes.set_facecolor('0.8')
  values_LT = np.ma.masked_invalid(values_TL.T)
  image = axes.imshow(values_LT, aspect='auto', interpolation='nearest', **colors)
  axes.figure.colorbar(image, ax=axes, label=label)
  axes.set_xticks(range(len(arrays['steps'])), arrays['steps'], rotation=45, ha='right')
  axes.set_yticks(range(len(arrays['layers'])), arrays['layers'])
  axes.axhline(0.5, color='white', linewidth=2)
  axes.set_xlabel('training step')


# Captions and tables.


def caption_trajectory(arrays: Arrays) -> str:
  return (
    'a: distance of the student to teacher 0, nulls (mean and range over draws), and length of its path at '
    'the kept checkpoints. b: distance minus null by layer; dots: the interval excludes 0. c, d: fidelity, '
    "95 % bootstraps over examples. Aligned: units permuted to match the final student's."
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
    f'Distillation gradient from {int(arrays["num_batches"])} batches of {int(arrays["batch_size"])} '
    'examples, with 95 % jackknives over batches. b: ‖G‖² / tr Σ (McCandlish et al. 2018). c: cosine of '
    '−gradient with the direction to teacher 0 and to nulls (mean and range over draws). d, e: cosine minus '
    'null by layer; dots: the interval excludes 0.'
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
  """Rows that compare each teacher at the last checkpoint with each of its nulls."""
  rows = []
  for teacher, null in compared(arrays):
    key = f'excess/{teacher}/{null}'
    _, low, high = style.estimate(arrays, key, (-1, 0))
    nulls_K = np.atleast_1d(arrays[f'null/{null}'][..., -1, 0])
    count = f' ({len(nulls_K)})' if null != 'origin' else ''
    rows.append(
      [
        f'{TEACHERS[teacher][1]}; null: {NULLS[null][1]}{count}',
        _number(arrays[f'{kind}/{teacher}'][-1, 0]),
        f'{nulls_K.mean():.4g}',
        _with_interval(arrays, key, -1),
        intervals.verdict(low, high),
      ]
    )
  return rows


def _lacking(arrays: Arrays) -> list[list[str]]:
  """Rows that name missing nulls and alignments."""
  rows = []
  if 'null/unrelated' not in arrays:
    rows.append(['no unrelated teacher; evaluation.independent_seed trains some', '', '', '', ''])
  if 'no_alignment' in arrays:
    rows.append([str(arrays['no_alignment']), '', '', '', ''])
  return rows


def _number(value: float) -> str:
  return 'undefined' if np.isnan(value) else f'{value:.4g}'


def _with_interval(arrays: Arrays, key: str, place: int) -> str:
  value, low, high = style.estimate(arrays, key, (place, 0))
  if np.isnan(value):
    return 'undefined'
  if np.isnan(low):
    return f'{value:.2g} [one draw]'
  return f'{value:.2g} [{low:.2g}, {high:.2g}]'
