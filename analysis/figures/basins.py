"""Figures and captions of `analysis.parts.basins`. matplotlib is imported when a figure is drawn.

Axes: K fork, P pair of ends, L λ, Y X grid, S start.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from kdjax import figures

if TYPE_CHECKING:
  from matplotlib.axes import Axes
  from matplotlib.figure import Figure

Arrays = Mapping[str, np.ndarray]

# Frankle et al. 2020, Section 2: networks whose error rises by less between them share a basin.
STABLE = 0.02

SETS = {'distillation': (figures.COLORS['ink'], 's--'), 'test': (figures.COLORS['student'], 'o-')}
DIRECTIONS = {
  'random': ('#009e73', 'o'),
  'sharp': (figures.COLORS['student'], '^'),
  'flat': (figures.COLORS['teacher'], 's'),
}
ASIDE = {'random': 0.95, 'sharp': 1.0, 'flat': 1 / 0.95}  # so that no error bar hides another
NUM_LEVELS = 16
PLANES_IN_A_ROW = 2
LOG_FROM = 3  # a scale is logarithmic if the largest value is this many times the smallest
PLACES = {  # marker, colour and edge
  'teacher': ('s', figures.COLORS['teacher'], 'white'),
  'random': ('X', 'white', figures.COLORS['ink']),
  'initial': ('^', 'white', figures.COLORS['ink']),
  'student': ('o', figures.COLORS['student'], 'white'),
}
LABELS = {'random': 'random weights', 'initial': 'initial student', 'student': 'final student'}


# Forks.


def draw_forks(arrays: Arrays) -> 'Figure':
  """Barriers between ends, and their agreement, against the step at which they parted."""
  figure = figures.blank((7.0, 5.4))
  all_axes = figure.subplots(2, 2, sharex=True)
  panels = (
    ('loss', f'barrier: loss ({arrays["loss_unit"]})', 1),
    ('predictive_kl', 'barrier: KL (nats)', 1),
    ('accuracy', 'barrier: accuracy (%)', 100),
  )
  for axes, (name, label, scale) in zip(all_axes.ravel(), panels, strict=False):
    for of, (color, line) in SETS.items():
      key = f'barrier/{of}/{name}'
      if not np.isnan(arrays[key]).all():
        _interval(axes, arrays, 'epochs', key, scale, color, line, of)
        axes.plot(arrays['epochs'], scale * arrays[f'{key}/pairs'], '_', color=color, alpha=0.5)
    axes.set_ylabel(label)
    axes.set_ylim(bottom=0)
  axes = all_axes[1, 0]
  axes.axhline(100 * STABLE, color=figures.COLORS['ink'], linewidth=1, linestyle=':')
  axes.annotate(
    'stable below',
    (1, 100 * STABLE),
    xycoords=('axes fraction', 'data'),
    ha='right',
    va='bottom',
    fontsize=10,
  )
  axes = all_axes[1, 1]
  color, line = SETS['test']
  _interval(axes, arrays, 'epochs', 'agreement', 100, color, line, None)
  axes.plot(arrays['epochs'], 100 * arrays['agreement/pairs'], '_', color=color, alpha=0.5)
  axes.set_ylabel('agreement of ends (%)')
  figure.supxlabel(f'epochs before the fork, of {arrays["num_epochs"]:.3g}', fontsize=12)
  figure.legend(*all_axes[0, 0].get_legend_handles_labels(), loc='outside upper left', ncols=2)
  return figure


def caption_forks(arrays: Arrays) -> str:
  first, last = 0, len(arrays['steps']) - 1
  key = 'barrier/test/accuracy'
  count = int(arrays['num_continuations'])
  text = (
    f'From each kept checkpoint the training goes on {count} times with other orders of the examples, '
    'and the same views, to the end of its schedule (Frankle et al. 2020). Drawn is the mean barrier on '
    f'the lines between these ends and the student; dashes are the {count * (count + 1) // 2} pairs. '
    f'In KL on the test set it is {_value(arrays, "barrier/test/predictive_kl", first)} nats from step '
    f'{arrays["steps"][first]} and {_value(arrays, "barrier/test/predictive_kl", last)} from step '
    f'{arrays["steps"][last]}; the ends predict the same class on {_value(arrays, "agreement", first, 100)} '
    f'and {_value(arrays, "agreement", last, 100)} % of the test set. '
  )
  stable = stable_from(arrays[key])
  if stable is None:
    text += f'Even the last fork loses {_value(arrays, key, last, 100)} % of accuracy on the way.'
  else:
    text += (
      f'From step {arrays["steps"][stable]} on ({100 * arrays["fractions"][stable]:.3g} % of training) '
      f'less than {100 * STABLE:g} % of test accuracy is lost on the way, which is called stable.'
    )
  return f'{text} {_how(arrays)}'


def stable_from(barriers_K: np.ndarray) -> int | None:
  """The first fork from which on all barriers in accuracy are below `STABLE`."""
  unstable = np.flatnonzero(~(np.asarray(barriers_K) < STABLE))
  first = unstable[-1] + 1 if len(unstable) else 0
  return int(first) if first < len(barriers_K) else None


# λ.


def draw_lambdas(arrays: Arrays) -> 'Figure':
  """Above, fidelity against λ; below, the planes with one colour scale."""
  from matplotlib.colors import LogNorm
  from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator

  num_planes = len(arrays['lambdas'])
  num_columns = min(num_planes, PLANES_IN_A_ROW)
  num_rows = -(-num_planes // num_columns)
  aspect = np.ptp(arrays['ys']) / np.ptp(arrays['xs'])
  width = 7.6
  height = num_rows * ((width - 1.4) / max(num_columns, 2) * aspect + 0.35) + 0.9
  figure = figures.blank((width, 2.9 + height))
  above, below = figure.subfigures(2, 1, height_ratios=[2.9, height])
  _draw_fidelity(above, arrays)
  all_axes = below.subplots(num_rows, num_columns, sharex=True, sharey=True, squeeze=False)
  filled = None
  for index, axes in enumerate(all_axes.ravel()):
    if index >= num_planes:
      axes.set_axis_off()
    else:
      filled = _draw_plane(axes, arrays, index)
  bar = below.colorbar(
    filled, ax=all_axes, label=f'distillation loss ({arrays["loss_unit"]})', pad=0.01
  )
  is_log = isinstance(filled.norm, LogNorm)
  bar.locator = LogLocator(subs=(1, 2, 5), numticks=6) if is_log else MaxNLocator(6)
  bar.minorlocator = NullLocator()
  bar.formatter = '{x:g}'
  bar.update_ticks()
  below.supxlabel('distance from the teacher towards the random weights', fontsize=11)
  below.supylabel('distance across', fontsize=11)
  below.legend(
    *all_axes[0, 0].get_legend_handles_labels(),
    loc='outside upper left',
    ncols=4,
    fontsize=10,
    handletextpad=0.2,
    columnspacing=0.8,
  )
  return figure


def _draw_fidelity(figure: Any, arrays: Arrays) -> None:
  panels = (('predictive_kl', 'KL (nats)', 1), ('top1_agreement', 'agreement (%)', 100))
  for axes, (name, label, scale) in zip(figure.subplots(1, 2), panels, strict=True):
    for of, (color, line) in SETS.items():
      _interval(axes, arrays, 'lambdas', f'final/{of}/{name}', scale, color, line, of)
    axes.set_xlabel('λ of the initial student')
    axes.set_ylabel(label)
  axes = figure.axes[0]
  figure.legend(*axes.get_legend_handles_labels(), loc='outside upper left', ncols=2)


def _draw_plane(axes: 'Axes', arrays: Arrays, index: int) -> Any:
  """The distillation loss; returns what a colour bar needs."""
  from matplotlib.colors import LogNorm

  values_LYX = np.ma.masked_invalid(arrays['plane/distillation/loss'])
  low, high = float(values_LYX.min()), float(values_LYX.max())
  if 0 < LOG_FROM * low < high:
    levels, norm = np.geomspace(low, high, NUM_LEVELS), LogNorm(low, high)
  else:
    levels, norm = np.linspace(low, max(high, low + 1e-6), NUM_LEVELS), None
  axes.grid(False)
  axes.set_aspect('equal')
  axes.set_facecolor('0.8')  # of places where values are not finite
  axes.set_title(f'λ = {arrays["lambdas"][index]:g}', fontsize=11)
  filled = axes.contourf(
    arrays['xs'], arrays['ys'], values_LYX[index], levels=levels, norm=norm, cmap='viridis'
  )
  for name, xy in zip(arrays['places/names'], arrays['places/xy'][index], strict=True):
    marker, color, edge = PLACES[str(name)]
    axes.plot(
      *xy,
      marker,
      color=color,
      markeredgecolor=edge,
      markersize=8,
      linestyle='none',
      label=LABELS.get(str(name), str(name)),
      zorder=3,
    )
  return filled


def caption_lambdas(arrays: Arrays) -> str:
  ends = (0, len(arrays['lambdas']) - 1)
  parts = []
  for name, unit, scale in (('predictive_kl', 'nats', 1), ('top1_agreement', '%', 100)):
    for of in SETS:
      values = [_value(arrays, f'final/{of}/{name}', i, scale) for i in ends]
      what = 'KL' if unit == 'nats' else 'agreement'
      parts.append(f'{what} ({of}) from {values[0]} to {values[1]} {unit}')
  low, high = (arrays['lambdas'][i] for i in ends)
  return (
    'Students that start at λ teacher + (1 − λ) random, with the first member for the teacher (paper, '
    f'Figure 6b, c). From λ = {low:g} to {high:g}: {"; ".join(parts)}. Below, the distillation loss on the '
    'planes through the teacher, the random weights and each final student, on which the initial one '
    f'lies, too. There is one student for each λ. {_how(arrays)}'
  )


# Returns.


def draw_returns(arrays: Arrays) -> 'Figure':
  """KL, agreement, distance and barrier against the radius of the perturbation."""
  figure = figures.blank((7.0, 5.6))
  all_axes = figure.subplots(2, 2, sharex=True)
  kl, agreement, distance, barrier = all_axes.ravel()
  for name, (color, marker) in DIRECTIONS.items():
    chosen = (arrays['directions'] == name) & (arrays['radii'] > 0)
    of = {key: arrays[key][chosen] for key in arrays if arrays[key].shape[:1] == chosen.shape}
    of['radii'] = of['radii'] * ASIDE[name]
    for axes, key, scale in ((kl, 'predictive_kl', 1), (agreement, 'top1_agreement', 100)):
      before = scale * of[f'before/test/{key}']
      axes.plot(of['radii'], before, f'{marker}:', color=color, alpha=0.6, markerfacecolor='none')
      _interval(axes, of, 'radii', f'after/test/{key}', scale, color, f'{marker}-', name)
    ratio = of['distance/after'] / of['distance/before']
    distance.plot(of['radii'], ratio, f'{marker}-', color=color)
    _interval(barrier, of, 'radii', 'barrier/test/accuracy', 100, color, f'{marker}-', None)
  _draw_controls(arrays, kl, agreement, distance, barrier)
  figure.supxlabel("radius of the perturbation, relative to the teacher's norm", fontsize=12)
  figure.legend(*kl.get_legend_handles_labels(), loc='outside upper left', ncols=3)
  return figure


def _draw_controls(
  arrays: Arrays, kl: 'Axes', agreement: 'Axes', distance: 'Axes', barrier: 'Axes'
) -> None:
  """Row 0, which starts at the teacher itself, and the axes."""
  look = {'color': figures.COLORS['ink'], 'linestyle': '--', 'linewidth': 1.2}
  kl.axhline(arrays['after/test/predictive_kl'][0], label='from the teacher itself', **look)
  kl.plot([], [], 'o:', color=look['color'], alpha=0.6, markerfacecolor='none', label='before')
  agreement.axhline(100 * arrays['after/test/top1_agreement'][0], **look)
  barrier.axhline(100 * arrays['barrier/test/accuracy'][0], **look)
  radii = np.unique(arrays['radii'][1:])
  distance.plot(radii, arrays['distance/after'][0] / (radii * arrays['norm']), **look)
  distance.axhline(1, color=figures.COLORS['ink'], linewidth=1, linestyle=':')
  for axes in (kl, distance):
    axes.set_yscale('log')
    axes.yaxis.set_major_formatter(lambda value, _: f'{value:g}')
  kl.set_xscale('log')
  kl.set_xticks(radii, [f'{radius:g}' for radius in radii], minor=False)
  kl.set_xticks([], minor=True)
  barrier.set_ylim(bottom=0)
  kl.set_ylabel('KL, test (nats)')
  agreement.set_ylabel('agreement, test (%)')
  distance.set_ylabel('distance after / before')
  barrier.set_ylabel('barrier: test accuracy (%)')


def caption_returns(arrays: Arrays) -> str:
  ratios = arrays['distance/after'] / np.where(
    arrays['radii'] > 0, arrays['distance/before'], np.nan
  )
  largest = arrays['radii'].max()
  texts = []
  for name in DIRECTIONS:
    (row,) = np.flatnonzero((arrays['directions'] == name) & (arrays['radii'] == largest))
    text = f'{name} (curvature {arrays["curvatures"][row]:.3g})'
    if np.isnan(ratios[row]):
      texts.append(f'{text} diverged')
    else:
      texts.append(
        f'{text} ends at {ratios[row]:.2g} of the distance from which it began, with a KL of '
        f'{_value(arrays, "after/test/predictive_kl", row)} nats and a barrier of '
        f'{_value(arrays, "barrier/test/accuracy", row, 100)} % of accuracy'
      )
  stable = int((arrays['barrier/test/accuracy'][1:] < STABLE).sum())
  return (
    f"The first teacher's weights are moved by a radius and distilled again for {arrays['num_epochs']:g} "
    "epochs, by the student's schedule in that time. Random directions are filter-normalised, sharp is "
    'the top eigenvector of the Hessian of the distillation loss, and flat is uniformly random with the '
    f'top eigenvectors projected out. From a radius of {largest:g}, on the test set: {"; ".join(texts)}. '
    f'From the teacher itself the KL is {_value(arrays, "after/test/predictive_kl", 0)} nats. {stable} of '
    f'{len(arrays["radii"]) - 1} ends are joined to the teacher by a line that loses less than '
    f'{100 * STABLE:g} % of test accuracy. {_how(arrays)}'
  )


# In common.


def _interval(
  axes: 'Axes',
  arrays: Arrays,
  x: str,
  key: str,
  scale: float,
  color: str,
  line: str,
  label: str | None,
) -> None:
  """A line with error bars from `key/low` to `key/high`."""
  mean, low, high = (scale * arrays[f'{key}{end}'] for end in ('', '/low', '/high'))
  bars = np.maximum([mean - low, high - mean], 0)  # a resampled maximum may lie above its mean
  axes.errorbar(
    arrays[x],
    mean,
    bars,
    fmt=line,
    color=color,
    linewidth=1.8,
    markersize=5,
    capsize=2,
    label=label,
  )


def _value(arrays: Arrays, key: str, row: int, scale: float = 1) -> str:
  mean, low, high = (scale * arrays[f'{key}{end}'][row] for end in ('', '/low', '/high'))
  return f'{mean:.3g} [{low:.3g}, {high:.3g}]'


def _how(arrays: Arrays) -> str:
  """On what, with which statistics and which errors it was measured."""
  distillation, test = arrays['num_examples']
  text = (
    f'Measured on {distillation} distillation and {test} test examples, the same everywhere; intervals '
    'are 95 % bootstraps over examples.'
  )
  if arrays['reestimated']:
    text += " BatchNorm's statistics are re-estimated between trained networks."
  return text
