"""Figure, caption and table of `analysis.parts.lambdas`.

Axes: L λ, S student of one λ, Y X grid.
"""

import string
from typing import Any

import numpy as np

from kdjax import intervals

from . import planes, style
from .basins import SETS, how, verdicts
from .planes import Corner
from .style import Arrays, Figure

# Colour and line of the barrier by BatchNorm statistics on the line to the teacher.
STATISTICS = {'raw': (style.INK, 's--'), 're-estimated': (style.TEACHER, 'o-')}
PLANES_IN_A_ROW = 2
PLACES = {
  'teacher': Corner('teacher', 's', style.TEACHER),
  'random': Corner('random weights', 'X', 'white', style.INK),
  'initial': Corner('initial student', '^', 'white', style.INK),
  'student': Corner('final student', 'o', style.STUDENT),
}


def draw_lambdas(arrays: Arrays) -> Figure:
  """Fidelity and barriers to the teacher against λ, above planes with one colour scale."""
  num_planes = len(arrays['lambdas'])
  num_columns = min(num_planes, PLANES_IN_A_ROW)
  num_rows = -(-num_planes // num_columns)
  aspect = np.ptp(arrays['ys']) / np.ptp(arrays['xs'])
  height = num_rows * ((style.WIDTH - 1.4) / max(num_columns, 2) * aspect + 0.4) + 0.9
  figure = style.blank(2.8 + height)
  above, below = figure.subfigures(2, 1, height_ratios=[2.8, height])
  _draw_fidelity(above, arrays)
  all_axes = below.subplots(num_rows, num_columns, sharex=True, sharey=True, squeeze=False)
  values_LYX = np.ma.masked_invalid(arrays['plane/distillation/loss'])
  scale = planes.scale_of(values_LYX, log=True)
  places = [PLACES[str(name)] for name in arrays['places/names']]
  for axes in all_axes.ravel()[num_planes:]:
    axes.set_axis_off()
  for index, axes in enumerate(all_axes.ravel()[:num_planes]):
    axes.grid(False)
    axes.set_aspect('equal')
    style.title(
      axes, string.ascii_lowercase[(3 + index) % 26], f'λ = {arrays["lambdas"][index]:g}', ncols=0
    )
    filled = planes.contours(axes, arrays, values_LYX[index], scale, 'viridis')
    planes.add_corners(axes, places, arrays['places/xy'][index])
  label = f'distillation loss ({arrays["loss_unit"]})'
  planes.set_ticks(below.colorbar(filled, ax=all_axes, label=label, pad=0.01), scale)
  below.supxlabel('distance from the teacher towards the random weights')
  below.supylabel('distance across')
  style.legend(below, all_axes[0, 0], ncols=4, handletextpad=0.2)
  return figure


def _draw_fidelity(figure: Any, arrays: Arrays) -> None:
  panels = (('predictive_kl', 'KL (nats)', 1), ('top1_agreement', 'agreement (%)', 100))
  *fidelity, barrier = all_axes = figure.subplots(1, 3)
  for axes, (name, label, scale) in zip(fidelity, panels, strict=True):
    for of, (color, line) in SETS.items():
      style.draw_interval(axes, arrays, 'lambdas', f'final/{of}/{name}', line, color, of, scale)
      several_L = arrays['num_students'] > 1
      dots_LS = scale * arrays[f'students/{of}/{name}'][several_L]
      axes.plot(arrays['lambdas'][several_L], dots_LS, '_', color=color, alpha=0.5)
    axes.set_ylabel(label)
  for name, (color, line) in STATISTICS.items():
    key = f'barrier/{name}/test/accuracy'
    if key in arrays:
      style.draw_interval(barrier, arrays, 'lambdas', key, line, color, name, 100)
  style.draw_threshold(barrier)
  barrier.set_ylabel('accuracy barrier (%)')
  texts = ('KL to the teacher', 'agreement', 'barrier to the teacher')
  for axes, letter, text in zip(all_axes, 'abc', texts, strict=True):
    axes.set_xlabel('λ of the initial student')
    style.title(axes, letter, text, ncols=1)


def caption_lambdas(arrays: Arrays) -> str:
  several = (arrays['num_students'] > 1).any()
  over = "examples, or Student's t over students (dashes)" if several else 'examples'
  return (
    'Students that start at λ teacher + (1 − λ) random (paper, Figure 6b, c). a, b: fidelity; c: barrier to '
    'the teacher; d on: loss on planes through teacher, random weights and final student. '
    f'{how(arrays, over, "on planes")}'
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
