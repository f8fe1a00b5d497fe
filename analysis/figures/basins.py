"""Figures and captions of `analysis.parts.basins`. matplotlib is imported when a figure is drawn.

Axes: K fork, P pair of ends, S start.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from analysis.figures import SAME_BASIN
from kdjax import figures, intervals

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
  first, last = 0, len(arrays['steps']) - 1
  key = 'barrier/test/accuracy'
  count = int(arrays['num_continuations'])
  text = (
    f'From each kept checkpoint the training goes on {count} times with other orders of the examples, '
    'and the same views, to the end of its schedule (Frankle et al. 2020). Drawn is the mean barrier on '
    f'the lines between these ends and the student; dashes are the {count * (count + 1) // 2} pairs. '
    f'In KL on the test set it is {intervals.text(arrays, "barrier/test/predictive_kl", first)} nats from step '
    f'{arrays["steps"][first]} and {intervals.text(arrays, "barrier/test/predictive_kl", last)} from step '
    f'{arrays["steps"][last]}; the ends predict the same class on {intervals.text(arrays, "agreement", first, 100)} '
    f'and {intervals.text(arrays, "agreement", last, 100)} % of the test set. '
  )
  if arrays['diverged'].any():
    texts = [
      f'{row.sum()} of {count} from step {step}'
      for step, row in zip(arrays['steps'], arrays['diverged'], strict=True)
      if row.any()
    ]
    text += f'Continuations that diverged, which are left out (crosses): {", ".join(texts)}. '
  stable = stable_from(arrays[key])
  if stable is None:
    text += (
      f'Even the last fork loses {intervals.text(arrays, key, last, 100)} % of accuracy on the way.'
    )
  else:
    text += (
      f'From step {arrays["steps"][stable]} on ({100 * arrays["fractions"][stable]:.3g} % of training) '
      f'less than {100 * SAME_BASIN:g} % of test accuracy is lost on the way, which is called stable.'
    )
  return f'{text} {how(arrays)}'


def stable_from(barriers_K: np.ndarray) -> int | None:
  """The first fork from which on all barriers in accuracy are below `SAME_BASIN`."""
  unstable = np.flatnonzero(~(np.asarray(barriers_K) < SAME_BASIN))
  first = unstable[-1] + 1 if len(unstable) else 0
  return int(first) if first < len(barriers_K) else None


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
        f'{intervals.text(arrays, "after/test/predictive_kl", row)} nats and a barrier of '
        f'{intervals.text(arrays, "barrier/test/accuracy", row, 100)} % of accuracy'
      )
  gone_S = np.isnan(arrays['distance/after'])
  gone = [
    f'{name} {radius:g}'
    for name, radius in zip(arrays['directions'][gone_S], arrays['radii'][gone_S], strict=True)
  ]
  diverged = f'Diverged (crosses): {", ".join(gone)}. ' if gone else ''
  stable = int((arrays['barrier/test/accuracy'][1:] < SAME_BASIN).sum())
  return (
    f"The first teacher's weights are moved by a radius and distilled again for {arrays['num_epochs']:g} "
    "epochs, by the student's schedule in that time. Random directions are filter-normalised, sharp is "
    'the top eigenvector of the Hessian of the distillation loss of '
    f'{arrays["num_curvature_examples"]} examples, and flat has next to no curvature. {diverged}From a radius of {largest:g}, on the test set: {"; ".join(texts)}. '
    f'From the teacher itself the KL is {intervals.text(arrays, "after/test/predictive_kl", 0)} nats. {stable} of '
    f'{len(arrays["radii"]) - 1} ends are joined to the teacher by a line that loses less than '
    f'{100 * SAME_BASIN:g} % of test accuracy. {how(arrays, where="everywhere, at the ends, too")}'
  )


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
  text = (
    f'Measured on {distillation} distillation and {test} test examples, the same everywhere; '
    f'intervals{of} are 95 % bootstraps over examples.'
  )
  if arrays['reestimated']:
    text += f" BatchNorm's statistics are re-estimated {where}."
  return text
