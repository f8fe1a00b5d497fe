"""Figures and captions of `analysis.parts.basins`. matplotlib is imported when a figure is drawn.

Axes: K fork, P pair of ends, S start.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from analysis.figures import SAME_BASIN, one_basin
from kdjax import intervals
from kdjax.report import figures

if TYPE_CHECKING:
  from matplotlib.axes import Axes
  from matplotlib.figure import Figure

Arrays = Mapping[str, np.ndarray]

SETS = {'distillation': (figures.COLORS['ink'], 's--'), 'test': (figures.COLORS['student'], 'o-')}
DIRECTIONS = {
  'random': ('#009e73', 'o'),
  'sharp': (figures.COLORS['student'], '^'),
  'flat': (figures.COLORS['teacher'], 's'),
}
ASIDE = {'random': 0.95, 'sharp': 1.0, 'flat': 1 / 0.95}  # so that no error bar hides another


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
        draw_interval(axes, arrays, 'epochs', key, scale, color, line, of)
        axes.plot(arrays['epochs'], scale * arrays[f'{key}/pairs'], '_', color=color, alpha=0.5)
    axes.set_ylabel(label)
    axes.set_ylim(bottom=0)
  axes = all_axes[1, 0]
  axes.set_ylim(
    top=max(axes.get_ylim()[1], 120 * SAME_BASIN)
  )  # the line, and its label, are to be seen
  axes.axhline(100 * SAME_BASIN, color=figures.COLORS['ink'], linewidth=1, linestyle=':')
  axes.annotate(
    'stable below',
    (1, 100 * SAME_BASIN),
    xycoords=('axes fraction', 'data'),
    ha='right',
    va='bottom',
    fontsize=10,
  )
  axes = all_axes[1, 1]
  color, line = SETS['test']
  draw_interval(axes, arrays, 'epochs', 'agreement', 100, color, line, None)
  axes.plot(arrays['epochs'], 100 * arrays['agreement/pairs'], '_', color=color, alpha=0.5)
  axes.set_ylabel('agreement of ends (%)')
  some_K = arrays['diverged'].any(axis=1)
  for axes in all_axes.ravel():
    _mark_diverged(axes, arrays['epochs'][some_K])
  figure.supxlabel(f'epochs before the fork, of {arrays["num_epochs"]:.3g}', fontsize=12)
  figure.legend(*all_axes[0, 0].get_legend_handles_labels(), loc='outside upper left', ncols=2)
  return figure


def caption_forks(arrays: Arrays) -> str:
  count = int(arrays['num_continuations'])
  return (
    f'From kept checkpoints the training goes on {count} times with other orders of the examples, to the '
    'end of its schedule (Frankle et al. 2020). Mean barriers between these ends and the student (dashes: '
    f'pairs). Crosses: diverged. {how(arrays)}'
  )


def table_forks(arrays: Arrays) -> list[list[str]]:
  heading = ['Step of the fork', 'KL barrier, test (nats)', 'accuracy barrier, test (%)']
  rows = [[*heading, 'agreement of ends (%)', 'diverged', 'one basin?']]
  for k, step in enumerate(arrays['steps']):
    cells = [
      intervals.text(arrays, 'barrier/test/predictive_kl', k),
      intervals.text(arrays, 'barrier/test/accuracy', k, 100),
      intervals.text(arrays, 'agreement', k, 100),
      f'{arrays["diverged"][k].sum()} of {arrays["num_continuations"]}',
    ]
    rows.append([str(step), *cells, verdicts(arrays, 'barrier/test/accuracy')[k]])
  stable = stable_from(verdicts(arrays, 'barrier/test/accuracy'))
  share = lambda k: f'step {arrays["steps"][k]} ({100 * arrays["fractions"][k]:.3g} % of training)'
  answer = 'no fork' if stable is None else share(stable)
  return [*rows, ['one basin from', answer, '', '', '', '']]


def verdicts(arrays: Arrays, key: str) -> list[str]:
  """`one_basin` of each entry of a barrier of the accuracy."""
  ends = (np.ravel(arrays[f'{key}/{end}']) for end in ('low', 'high'))
  return [one_basin(low, high) for low, high in zip(*ends, strict=True)]


def stable_from(verdicts_K: list[str]) -> int | None:
  """The first fork from which on all ends are in one basin; None if there is none."""
  others = [k for k, verdict in enumerate(verdicts_K) if verdict != 'yes']
  first = others[-1] + 1 if others else 0
  return first if first < len(verdicts_K) else None


def _mark_diverged(axes: 'Axes', places: np.ndarray) -> None:
  """Crosses at the bottom, for trainings that have no end to be drawn."""
  if len(places):
    bottom = np.full(len(places), 0.04)
    look = {'color': figures.COLORS['ink'], 'transform': axes.get_xaxis_transform()}
    axes.plot(places, bottom, 'x', markersize=6, label='diverged', **look)


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
      draw_interval(axes, of, 'radii', f'after/test/{key}', scale, color, f'{marker}-', name)
    ratio = of['distance/after'] / of['distance/before']
    distance.plot(of['radii'], ratio, f'{marker}-', color=color)
    draw_interval(barrier, of, 'radii', 'barrier/test/accuracy', 100, color, f'{marker}-', None)
  _draw_controls(arrays, kl, agreement, distance, barrier)
  gone_S = np.isnan(arrays['distance/after'])
  for axes in all_axes.ravel():
    _mark_diverged(axes, np.unique(arrays['radii'][gone_S & (arrays['radii'] > 0)]))
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
  return (
    f"Teacher 0's weights are moved by a radius and distilled again for {arrays['num_epochs']:g} epochs, by "
    "the student's schedule in that time. Lines: after it; dotted: before it. Crosses: diverged. "
    f'{how(arrays, where="everywhere")}'
  )


def table_returns(arrays: Arrays) -> list[list[str]]:
  heading = ['Direction', 'radius', 'curvature', 'distance after / before', 'KL, test (nats)']
  rows = [[*heading, 'accuracy barrier, test (%)', 'one basin?']]
  for s, (name, radius) in enumerate(zip(arrays['directions'], arrays['radii'], strict=True)):
    ratio = arrays['distance/after'][s] / arrays['distance/before'][s] if radius else np.nan
    moved = [str(name), f'{radius:g}', f'{arrays["curvatures"][s]:.3g}']
    cells = [
      *(moved if radius else ['none', '0', '']),
      '' if np.isnan(ratio) else f'{ratio:.3g}',
      intervals.text(arrays, 'after/test/predictive_kl', s),
      intervals.text(arrays, 'barrier/test/accuracy', s, 100),
      verdicts(arrays, 'barrier/test/accuracy')[s],
    ]
    gone = np.isnan(arrays['distance/after'][s])
    rows.append([*cells[:3], 'diverged', '', '', ''] if gone else cells)
  return rows


# In common.


def draw_interval(
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
  mean, low, high = (scale * arrays[f'{key}{end}'] for end in intervals.ENDS)
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


def how(arrays: Arrays, of: str = '', where: str = 'between trained networks') -> str:
  """On what, with which statistics and which errors it was measured; `of` says whose errors."""
  distillation, test = arrays['num_examples']
  text = f'{distillation} distillation, {test} test examples; 95 % bootstraps{of}.'
  return text + (f' BatchNorm is re-estimated {where}.' if arrays['reestimated'] else '')
