"""Figures, captions and tables of `analysis.parts.basins`.

Axes: K fork, P pair of ends, S start.
"""

import numpy as np

from kdjax import intervals

from . import style
from .style import Arrays, Axes, Figure

SETS = {'distillation': (style.INK, 's--'), 'test': (style.STUDENT, 'o-')}
DIRECTIONS = {
  'random': (style.GREEN, 'o'),
  'sharp': (style.STUDENT, '^'),
  'flat': (style.TEACHER, 's'),
}
ASIDE = {'random': 0.95, 'sharp': 1.0, 'flat': 1 / 0.95}  # keeps error bars apart


# Forks.


def draw_forks(arrays: Arrays) -> Figure:
  """Barriers between ends, their agreement and their common mismatches, against the epoch of the fork."""
  figure = style.blank(5.4)
  all_axes = figure.subplots(2, 2, sharex=True).ravel()
  panels = (
    ('loss', f'barrier of the loss ({arrays["loss_unit"]})', 1),
    ('predictive_kl', 'barrier of the KL (nats)', 1),
    ('accuracy', 'barrier of the accuracy (%)', 100),
  )
  for axes, (name, label, scale) in zip(all_axes, panels, strict=False):
    for of, (color, line) in SETS.items():
      key = f'barrier/{of}/{name}'
      if not np.isnan(arrays[key]).all():
        style.draw_interval(axes, arrays, 'epochs', key, line, color, of, scale)
        pairs = scale * arrays[f'{key}/pairs']
        axes.plot(arrays['epochs'], pairs, '_', color=color, alpha=0.5)
    axes.set_ylim(bottom=0)
    axes.set_ylabel(label)
  style.draw_threshold(all_axes[2])
  color, line = SETS['test']
  ends = all_axes[3]
  style.draw_interval(ends, arrays, 'epochs', 'agreement', line, color, 'predictions', 100)
  ends.plot(arrays['epochs'], 100 * arrays['agreement/pairs'], '_', color=color, alpha=0.5)
  repeated = (arrays, 'epochs', 'repeated', '^:', style.PINK, 'mismatches', 100)
  style.draw_interval(ends, *repeated)
  ends.set_ylabel('shared by ends, test (%)')
  some_K = arrays['diverged'].any(axis=1)
  texts = ('loss', 'KL to the teacher', 'accuracy', 'shared by two ends')
  for axes, letter, text in zip(all_axes, 'abcd', texts, strict=True):
    _mark_diverged(axes, arrays['epochs'][some_K])
    style.title(axes, letter, text)
  label = f'epoch of the fork, of {arrays["num_epochs"]:.3g}'
  figure.supxlabel(label)
  return figure


def caption_forks(arrays: Arrays) -> str:
  count = int(arrays['num_continuations'])
  return (
    f'Training is continued {count} times from each kept checkpoint in other orders (Frankle et al. 2020). '
    'Mean barriers between ends and the student, and on the whole test set their agreement and '
    'mismatches that another end repeats; dashes: single pairs; crosses: diverged. '
    f'{how(arrays)}'
  )


def table_forks(arrays: Arrays) -> list[list[str]]:
  heading = ['Fork at step', 'KL barrier, test (nats)', 'accuracy barrier, test (%)']
  shares = ['agreement of ends (%)', 'mismatch (%)', 'of which repeated (%)']
  rows = [[*heading, *shares, 'diverged', 'one basin?']]
  for k, step in enumerate(arrays['steps']):
    cells = [
      intervals.text(arrays, 'barrier/test/predictive_kl', k),
      intervals.text(arrays, 'barrier/test/accuracy', k, 100),
      *(intervals.text(arrays, key, k, 100) for key in ('agreement', 'mismatch', 'repeated')),
      f'{arrays["diverged"][k].sum()} of {arrays["num_continuations"]}',
    ]
    rows.append([str(step), *cells, verdicts(arrays, 'barrier/test/accuracy')[k]])
  stable = stable_from(verdicts(arrays, 'barrier/test/accuracy'))
  share = lambda k: f'step {arrays["steps"][k]} ({100 * arrays["fractions"][k]:.3g} % of training)'
  answer = 'no fork' if stable is None else share(stable)
  return [*rows, ['one basin from', answer, *[''] * 6]]


def verdicts(arrays: Arrays, key: str) -> list[str]:
  """`style.one_basin` for each entry of a barrier of the accuracy."""
  ends = (np.ravel(arrays[f'{key}/{end}']) for end in ('low', 'high'))
  return [style.one_basin(low, high) for low, high in zip(*ends, strict=True)]


def stable_from(verdicts_K: list[str]) -> int | None:
  """The first fork from which on all ends share a basin; None if there is none."""
  others = [k for k, verdict in enumerate(verdicts_K) if verdict != 'yes']
  first = others[-1] + 1 if others else 0
  return first if first < len(verdicts_K) else None


def _mark_diverged(axes: Axes, places: np.ndarray) -> None:
  """Marks trainings that diverged with crosses at the bottom."""
  if len(places):
    bottom = np.full(len(places), 0.04)
    look = {'color': style.INK, 'transform': axes.get_xaxis_transform()}
    axes.plot(places, bottom, 'x', markersize=6, label='diverged', **look)


# Returns.


def draw_returns(arrays: Arrays) -> Figure:
  """KL, agreement, distance and barrier against the radius of the perturbation."""
  figure = style.blank(5.6)
  all_axes = figure.subplots(2, 2, sharex=True).ravel()
  kl, agreement, distance, barrier = all_axes
  for name, (color, marker) in DIRECTIONS.items():
    chosen = (arrays['directions'] == name) & (arrays['radii'] > 0)
    of = {key: arrays[key][chosen] for key in arrays if arrays[key].shape[:1] == chosen.shape}
    of['radii'] = of['radii'] * ASIDE[name]
    line, is_few = f'{marker}-', len(of['radii']) <= style.FEW_POINTS
    for axes, key, scale in ((kl, 'predictive_kl', 1), (agreement, 'top1_agreement', 100)):
      before = scale * of[f'before/test/{key}']
      hollow = {'alpha': 0.6, 'markerfacecolor': 'none'}
      axes.plot(of['radii'], before, marker if is_few else f'{marker}:', color=color, **hollow)
      style.draw_interval(axes, of, 'radii', f'after/test/{key}', line, color, name, scale)
    ratio = of['distance/after'] / of['distance/before']
    distance.plot(of['radii'], ratio, marker if is_few else line, color=color)
    style.draw_interval(barrier, of, 'radii', 'barrier/test/accuracy', line, color, None, 100)
  _draw_controls(arrays, kl, agreement, distance, barrier)
  gone_S = np.isnan(arrays['distance/after'])
  texts = ('KL to the ensemble', 'agreement', 'distance to the teacher', 'barrier to the teacher')
  for axes, letter, text in zip(all_axes, 'abcd', texts, strict=True):
    _mark_diverged(axes, np.unique(arrays['radii'][gone_S & (arrays['radii'] > 0)]))
    style.title(axes, letter, text, ncols=0)
  label = "radius of the perturbation relative to the norm of the teacher's weights"
  figure.supxlabel(label)
  style.legend(figure, kl, ncols=3)
  return figure


def _draw_controls(
  arrays: Arrays, kl: Axes, agreement: Axes, distance: Axes, barrier: Axes
) -> None:
  """Draws row 0, the unperturbed control, and sets up the axes."""
  look = {'color': style.CONTROL, 'linestyle': '--', 'linewidth': 1.5}
  kl.axhline(arrays['after/test/predictive_kl'][0], label='control: unperturbed', **look)
  kl.plot(
    [], [], 'o:', color=style.INK, alpha=0.6, markerfacecolor='none', label='before distillation'
  )
  agreement.axhline(100 * arrays['after/test/top1_agreement'][0], **look)
  barrier.axhline(100 * arrays['barrier/test/accuracy'][0], **look)
  radii = np.unique(arrays['radii'][1:])
  distance.plot(radii, arrays['distance/after'][0] / (radii * arrays['norm']), **look)
  distance.axhline(1, color=style.INK, linewidth=1, linestyle=':')
  for axes in (kl, distance):
    axes.set_yscale('log')
    axes.yaxis.set_major_formatter(lambda value, _: f'{value:g}')
    axes.yaxis.set_minor_formatter(lambda value, _: '')
  kl.set_xscale('log')
  kl.set_xticks(radii, [f'{radius:g}' for radius in radii], minor=False)
  kl.set_xticks([], minor=True)
  style.draw_threshold(barrier)
  kl.set_ylabel('KL, test (nats)')
  agreement.set_ylabel('agreement, test (%)')
  distance.set_ylabel('distance after / before')
  barrier.set_ylabel('accuracy barrier, test (%)')


def caption_returns(arrays: Arrays) -> str:
  return (
    "Teacher 0's weights are perturbed and distilled again for "
    f"{arrays['num_epochs']:g} epochs by the student's shortened schedule. Filled: after, hollow: before "
    'distillation; dashed: control from the unperturbed teacher; dotted black in d: one basin below; '
    f'crosses: diverged. {how(arrays, where="everywhere")}'
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


# Shared.


def how(arrays: Arrays, over: str = 'examples', where: str = 'between trained networks') -> str:
  """The number of examples, the kind of interval, and the BatchNorm statistics.

  Args:
    over: what the intervals are over.
    where: where BatchNorm statistics are re-estimated.
  """
  distillation, test = arrays['num_examples']
  text = f'n = {distillation} distillation, {test} test examples; 95 % bootstraps over {over}.'
  return text + (f' BatchNorm is re-estimated {where}.' if arrays['reestimated'] else '')
