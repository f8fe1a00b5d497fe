"""The figure and caption of `analysis.parts.lambdas`. matplotlib is imported when a figure is drawn.

Axes: L λ, S student of one λ, Y X grid.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from analysis.figures import SAME_BASIN
from analysis.figures.basins import SETS, draw_interval, how, verdicts
from kdjax import intervals
from kdjax.report import figures

if TYPE_CHECKING:
  from matplotlib.axes import Axes
  from matplotlib.figure import Figure

Arrays = Mapping[str, np.ndarray]

# BatchNorm's statistics on the line to the teacher: colour and line of the barrier.
STATISTICS = {
  'raw': (figures.COLORS['ink'], 's--'),
  're-estimated': (figures.COLORS['teacher'], 'o-'),
}
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


def draw_lambdas(arrays: Arrays) -> 'Figure':
  """Above, fidelity and barriers to the teacher against λ; below, the planes with one colour scale."""
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
  *of_fidelity, barrier = figure.subplots(1, 3)
  for axes, (name, label, scale) in zip(of_fidelity, panels, strict=True):
    for of, (color, line) in SETS.items():
      draw_interval(axes, arrays, 'lambdas', f'final/{of}/{name}', scale, color, line, of)
      several_L = arrays['num_students'] > 1
      dots_LS = scale * arrays[f'students/{of}/{name}'][several_L]
      axes.plot(arrays['lambdas'][several_L], dots_LS, '_', color=color, alpha=0.5)
    axes.set_xlabel('λ of the initial student')
    axes.set_ylabel(label)
  for name, (color, line) in STATISTICS.items():
    if f'barrier/{name}/test/accuracy' in arrays:
      key = f'barrier/{name}/test/accuracy'
      draw_interval(barrier, arrays, 'lambdas', key, 100, color, line, name)
  barrier.axhline(100 * SAME_BASIN, color=figures.COLORS['ink'], linewidth=1, linestyle=':')
  barrier.set_ylim(bottom=0)
  barrier.set_xlabel('λ of the initial student')
  barrier.set_ylabel('barrier: accuracy (%)')
  barrier.legend(fontsize=9)
  handles, labels = figure.axes[0].get_legend_handles_labels()
  figure.legend(handles, labels, loc='outside upper left', ncols=2)


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
  several = (arrays['num_students'] > 1).any()
  of = " over examples, or Student's t over students (dashes)" if several else ''
  return (
    'Students that start at λ teacher + (1 − λ) random (paper, Figure 6b, c): fidelity, and the barrier of '
    'the test accuracy on the line to the teacher. Below, the loss on planes through teacher, random weights '
    f'and each final student. {how(arrays, of, "on planes")}'
  )


def table_lambdas(arrays: Arrays) -> list[list[str]]:
  statistics = [name for name in STATISTICS if f'barrier/{name}/test/accuracy' in arrays]
  heading = [
    'λ',
    'students',
    'KL, test (nats)',
    'agreement, test (%)',
    'agreement, distillation (%)',
  ]
  for name in statistics:
    heading += [f'accuracy barrier, {name} (%)', 'one basin?']
  rows = [heading]
  for i, value in enumerate(arrays['lambdas']):
    row = [
      f'{value:g}',
      str(arrays['num_students'][i]),
      intervals.text(arrays, 'final/test/predictive_kl', i),
      intervals.text(arrays, 'final/test/top1_agreement', i, 100),
      intervals.text(arrays, 'final/distillation/top1_agreement', i, 100),
    ]
    for name in statistics:
      key = f'barrier/{name}/test/accuracy'
      row += [intervals.text(arrays, key, i, 100), verdicts(arrays, key)[i]]
    rows.append(row)
  return rows
