"""Figures and captions of the training as a path. matplotlib is imported when a figure is drawn.

Axes: L layer (the first is all of them), T checkpoint.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from kdjax import figures, intervals
from kdjax.intervals import ENDS

if TYPE_CHECKING:
  from matplotlib.axes import Axes
  from matplotlib.figure import Figure

Arrays = Mapping[str, np.ndarray]

SETS = {'distillation': ('-', 'o', 0.0), 'test': ('--', '^', 0.015)}  # line, marker, shift
TEACHERS = {
  'raw': ('s', '--', 'teacher 0'),
  'aligned': ('o', '-', 'teacher 0, aligned'),
}


def draw_trajectory(arrays: Arrays) -> 'Figure':
  with figures.style('trajectory'):
    figure = figures.blank((8.4, 7.4))
    (far, near), (kl, disagreement) = figure.subplots(2, 2)
    steps_T = arrays['steps']
    for name, (marker, line, label) in TEACHERS.items():
      color = figures.COLORS['teacher']
      values_T = arrays[f'distance/{name}'][:, 0]
      far.plot(steps_T, values_T, line, marker=marker, color=color, label=f'to {label}')
    for key, line in (('length', '-'), ('displacement', '--')):
      label = {'length': 'path length', 'displacement': 'from the start'}[key]
      color = figures.COLORS['student']
      far.plot(steps_T, arrays[key][:, 0], line, marker='^', color=color, label=label)
    _finish(far, 'distance in weight space')
    far.set_ylim(bottom=0)
    with np.errstate(divide='ignore', invalid='ignore'):
      relative_TL = arrays['distance/aligned'] / arrays['teacher_norm'][None]
    _heat(near, arrays, relative_TL, "distance / teacher's norm", cmap='viridis', vmin=0)
    near.set_title('to teacher 0, aligned', fontsize=12)
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
    axes = figure.subplot_mosaic(
      [['norm', 'snr'], ['cosine', 'cosine'], ['raw', 'aligned']], height_ratios=[1, 1, 1.4]
    )
    overall = {key: x[:, 0] for key, x in arrays.items() if x.ndim == 2}
    overall['steps'] = arrays['steps']
    _errors(axes['norm'], overall, 'norm', '-', 'mean of all examples')
    _errors(axes['norm'], overall, 'noise', '--', 'noise in it', color='0.5', marker='s')
    axes['norm'].set_ylim(bottom=0)
    _finish(axes['norm'], 'gradient norm')
    _errors(axes['snr'], overall, 'snr', '-', None)
    axes['snr'].axhline(0, color=figures.COLORS['ink'], linewidth=0.8)
    _finish(axes['snr'], 'SNR of one example')
    for name, (marker, line, label) in TEACHERS.items():
      color = figures.COLORS['teacher']
      _errors(axes['cosine'], overall, f'cosine/{name}', line, label, color=color, marker=marker)
    axes['cosine'].axhline(0, color=figures.COLORS['ink'], linewidth=0.8)
    _finish(axes['cosine'], 'cosine of −gradient with\nthe direction to')
    limit = max(
      np.nan_to_num(np.abs(arrays[f'cosine/{name}'])).max(initial=1e-3) for name in TEACHERS
    )
    for name, (_, _, label) in TEACHERS.items():
      values_TL = arrays[f'cosine/{name}']
      _heat(axes[name], arrays, values_TL, 'cosine', cmap='RdBu', vmin=-limit, vmax=limit)
      away_TL = (arrays[f'cosine/{name}/low'] > 0) | (arrays[f'cosine/{name}/high'] < 0)
      places = np.nonzero(away_TL)
      axes[name].plot(*places, '.', color=figures.COLORS['ink'], markersize=4)
      axes[name].set_title(f'to {label}', fontsize=12)
    return figure


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


def _finish(axes: 'Axes', ylabel: str) -> None:
  axes.set_xlabel('training step')
  axes.set_ylabel(ylabel)
  if axes.get_legend_handles_labels()[0]:
    axes.legend(loc='lower left', bbox_to_anchor=(0, 1.0), ncols=2, fontsize=9)


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


# Captions.


def caption_trajectory(arrays: Arrays) -> str:
  first, last = (int(arrays['steps'][place]) for place in (0, -1))
  to = {name: arrays[f'distance/{name}'][:, 0] for name in TEACHERS}
  cosine = {name: arrays[f'cosine/{name}'][-1, 0] for name in TEACHERS}
  fidelity = [
    f'{name} {intervals.text(arrays, f"{name}/{key}", -1, scale)}{unit}'
    for key, scale, unit in (('predictive_kl', 1, ' nats'), ('top1_agreement', 100, ' %'))
    for name in SETS
  ]
  return (
    f'From step {first} to step {last}, the distance in weight space to teacher 0 goes from '
    f'{to["raw"][0]:.3g} to {to["raw"][-1]:.3g}; from {to["aligned"][0]:.3g} to {to["aligned"][-1]:.3g} if its '
    'units are permuted to match those of the final student, which changes no prediction (Ainsworth et '
    f'al. 2023). The path through {len(arrays["steps"])} kept checkpoints has the length '
    f'{arrays["length"][-1, 0]:.3g}, the straight line {arrays["displacement"][-1, 0]:.3g}. At the end, the cosine '
    f'of the weights with those of the teacher is {cosine["raw"]:.2g}, aligned {cosine["aligned"]:.2g}; KL to the '
    f'ensemble: {", ".join(fidelity[:2])}; agreement: {", ".join(fidelity[2:])}. Intervals: 95 % bootstrap over '
    'examples, with the running statistics of BatchNorm; distances have no sampling error.'
  )


def caption_gradients(arrays: Arrays) -> str:
  ends = (0, -1)
  snr = [_with_interval(arrays, 'snr', place) for place in ends]
  signal_T = 1 - (arrays['noise'][:, 0] / arrays['norm'][:, 0]) ** 2
  signal = ' and '.join(f'{100 * max(share, 0):.0f} %' for share in signal_T[[0, -1]])
  cosine = {name: [_with_interval(arrays, f'cosine/{name}', i) for i in ends] for name in TEACHERS}
  chance = 1 / np.sqrt(arrays['sizes'])
  temperature_T = arrays['temperature']
  schedule = ''
  if np.ptp(temperature_T) > 0:
    schedule = f'; with the τ of each step, from {temperature_T[0]:.3g} to {temperature_T[-1]:.3g}'
  return (
    'The gradient of the distillation loss at the kept checkpoints, as in training (BatchNorm takes the '
    f"batch's statistics; without weight decay{schedule}), from {int(arrays['num_batches'])} batches of "
    f'{int(arrays["batch_size"])} examples. Signal to noise, ‖G‖² / tr Σ for one example (McCandlish et al. '
    f'2018): {snr[0]} at first, {snr[1]} at last; so of the squared norm of their mean {signal} are signal, '
    'and the cosines of the mean are those of the true gradient times the root of that share. Cosine of −gradient with the direction to teacher '
    f'0: {cosine["raw"][0]}, then {cosine["raw"][1]}; to its aligned copy {cosine["aligned"][0]}, then '
    f'{cosine["aligned"][1]}. Random directions have a standard deviation of {chance[0]:.2g} for all weights and '
    f'up to {chance.max():.2g} for a layer. Intervals: 95 % jackknife over batches; dots mark those without 0, '
    'by chance one in twenty.'
  )


def _with_interval(arrays: Arrays, key: str, place: int) -> str:
  value, low, high = (arrays[key + end][place, 0] for end in ENDS)
  if np.isnan(value):
    return 'undefined (the direction or the gradient is 0)'
  return f'{value:.2g} [{low:.2g}, {high:.2g}]'
