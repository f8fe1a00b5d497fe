"""Figures of surfaces over planes in weight space: filled contours in true aspect.

A panel draws values_YX at x = xs[column], y = ys[row]. Axes: Y X grid, K corner, T checkpoint.
"""

import dataclasses
import itertools
import string
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from . import style
from .style import Arrays, Axes, Figure

NUM_LEVELS = 12
LOG_FROM = 3  # a scale is logarithmic if the largest value is this many times the smallest
LOG_SPAN = 1e5  # largest ratio of a logarithmic scale; a KL that is 0 up to rounding has no colours
NEGATIVE = 1e-3  # a value below −NEGATIVE times the largest is no rounding error
LABEL_STEP = 0.11  # between labels of checkpoints, as a fraction of the panel's height


@dataclasses.dataclass(frozen=True)
class Panel:
  """One surface."""

  key: str  # of the values
  title: str
  unit: str
  percent: bool = False  # whether to draw fractions in percent; other values can get a log scale


@dataclasses.dataclass(frozen=True)
class Corner:
  """Label and marker of named weights."""

  label: str
  marker: str
  color: str
  edge: str = 'white'


CORNERS = {
  'student': Corner('student', 'o', style.STUDENT),
  'initial': Corner('initial student', '^', 'white', style.INK),
  'sibling': Corner('sibling student', 'v', style.STUDENT),
  'independent': Corner('independent student', 'P', style.CONTROL),
}


def looks(names: Sequence[str]) -> list[Corner]:
  """The looks of up to three networks, by their names in `Study.names`."""
  markers = iter('sDp')
  return [
    CORNERS[name] if name in CORNERS else Corner(name, next(markers), style.TEACHER)
    for name in map(str, names)
  ]


def draw(arrays: Arrays, panels: Sequence[Panel], labels: tuple[str, str]) -> Figure:
  """Panels in two columns, row by row, with corners and, if it is there, the student's path.

  Args:
    arrays: 'xs', 'ys' and the panels' values_YX; 'corners/names' and 'corners/xy' of shape (K, 2); and, for
      a path whose ends are corners, 'path/xy' (T, 2) and 'path/height' (T,).
    labels: those of the two axes.
  """
  aspect = np.ptp(arrays['ys']) / np.ptp(arrays['xs'])
  side = style.WIDTH / 2 - 1.1  # the rest is for labels and colour bars
  height = min(side * aspect, side)
  num_rows = -(-len(panels) // 2)
  figure = style.blank((height + 0.4) * num_rows + 1.2)
  all_axes = figure.subplots(num_rows, 2, sharex=True, sharey=True).ravel()
  for axes, letter, panel in zip(all_axes, string.ascii_lowercase, panels, strict=False):
    axes.grid(False)
    axes.set_aspect('equal')
    style.title(axes, letter, f'{panel.title} ({panel.unit})', ncols=0)
    _fill(axes, arrays, panel)
    add_corners(axes, looks(arrays['corners/names']), arrays['corners/xy'])
    if 'path/xy' in arrays:
      _add_path(axes, arrays)
  if 'path/xy' in arrays:
    _label_heights(all_axes[0], arrays)
  figure.supxlabel(labels[0])
  figure.supylabel(labels[1])
  style.legend(figure, all_axes[0], ncols=3)
  return figure


def _fill(axes: Axes, arrays: Arrays, panel: Panel) -> None:
  """Draws filled contours with a colour bar; dark means close to the teacher, or accurate."""
  values_YX = np.ma.masked_invalid(arrays[panel.key] * (100 if panel.percent else 1))
  if not values_YX.count():
    axes.text(0.5, 0.5, 'no finite value', transform=axes.transAxes, ha='center', va='center')
    return
  scale = scale_of(values_YX, log=not panel.percent)
  filled = contours(axes, arrays, values_YX, scale, 'viridis_r' if panel.percent else 'viridis')
  # Inset axes keep the bar as high as the panel in its true aspect.
  set_ticks(axes.figure.colorbar(filled, cax=axes.inset_axes([1.04, 0, 0.06, 1])), scale)


class Scale(NamedTuple):
  """The colour scale of contours."""

  levels: np.ndarray  # ascending
  norm: Any  # None if the scale is linear
  floored: bool  # whether values lie below the first level


def scale_of(values: np.ma.MaskedArray, log: bool) -> Scale:
  """The scale of values: logarithmic if `log` and the positive values span enough, else linear."""
  from matplotlib.colors import LogNorm

  low, high = float(values.min()), float(values.max())
  if log and high > 0 and low > -NEGATIVE * high:
    least = max(float(values[values > 0].min()), high / LOG_SPAN)
    if high > LOG_FROM * least:
      return Scale(np.geomspace(least, high, NUM_LEVELS), LogNorm(least, high), low < least)
  if high - low <= 1e-6 * abs(high):  # contours need levels that differ
    low, high = low - 0.5, high + 0.5
  return Scale(np.linspace(low, high, NUM_LEVELS), None, False)


def contours(
  axes: Axes, arrays: Arrays, values_YX: np.ma.MaskedArray, scale: Scale, color_map: str
) -> Any:
  """Draws filled contours over arrays['xs'] and arrays['ys']; returns them, for a colour bar."""
  axes.set_facecolor('0.8')  # shows where values are not finite
  return axes.contourf(
    arrays['xs'],
    arrays['ys'],
    np.ma.maximum(values_YX, scale.levels[0] / 2) if scale.floored else values_YX,  # log 0: no hole
    levels=scale.levels,
    norm=scale.norm,
    cmap=color_map,
    extend='min' if scale.floored else 'neither',
  )


def set_ticks(bar: Any, scale: Scale) -> None:
  """Puts at most six ticks on a colour bar."""
  from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator

  is_wide = scale.levels[-1] > 50 * scale.levels[0]
  subs = (1.0,) if is_wide else (1.0, 2.0, 5.0)
  bar.locator = LogLocator(subs=subs, numticks=6) if scale.norm else MaxNLocator(5)
  bar.minorlocator = NullLocator()
  bar.formatter = '{x:g}'
  bar.update_ticks()


def add_corners(axes: Axes, corners: Sequence[Corner], xy_K2: np.ndarray) -> None:
  """Marks named weights on a plane."""
  for look, xy in zip(corners, xy_K2, strict=True):
    axes.plot(
      *xy,
      look.marker,
      color=look.color,
      markeredgecolor=look.edge,
      markersize=9,
      linestyle='none',
      label=look.label,
      zorder=4,
    )


def _add_path(axes: Axes, arrays: Arrays) -> None:
  """Draws the student's path through its kept checkpoints, in white where they lie off the plane."""
  axes.plot(*arrays['path/xy'].T, color='white', linewidth=1.5, zorder=2)
  off_T = is_off_plane(arrays)[1:-1]
  for chosen_T, face, label in (
    (~off_T, style.STUDENT, 'checkpoint (its distance)'),
    (off_T, 'white', 'checkpoint off the plane'),
  ):
    if chosen_T.any():
      axes.plot(
        *arrays['path/xy'][1:-1][chosen_T].T,
        'o',
        markerfacecolor=face,
        markeredgecolor=style.INK,
        markersize=5,
        label=label,
        zorder=5,
      )


def _label_heights(axes: Axes, arrays: Arrays) -> None:
  """Writes each checkpoint's distance from the plane in a column beside the path."""
  from matplotlib.patheffects import withStroke

  xy_T2, height_T = arrays['path/xy'][1:-1], arrays['path/height'][1:-1]
  xs, ys = arrays['xs'], arrays['ys']
  to_the_left = len(xy_T2) and xy_T2[:, 0].mean() > (xs[0] + xs[-1]) / 2
  side = -1 if to_the_left else 1
  places_T = _spread(xy_T2[:, 1], LABEL_STEP * (ys[-1] - ys[0]))
  edge = xy_T2[:, 0].min() if to_the_left else xy_T2[:, 0].max()
  for xy, y, height in zip(xy_T2, places_T, height_T, strict=True):
    text = axes.annotate(
      f'{height:.2g}',
      xy,
      (edge + side * 0.1 * (xs[-1] - xs[0]), y),
      arrowprops={'arrowstyle': '-', 'color': 'white', 'linewidth': 0.6},
      color='white',
      ha='right' if to_the_left else 'left',
      va='center',
      zorder=6,
    )
    text.set_path_effects([withStroke(linewidth=2, foreground=style.INK)])


def _spread(values_T: np.ndarray, step: float) -> np.ndarray:
  """Moves values apart to at least `step`, keeping their order and mean."""
  order_T = np.argsort(values_T, kind='stable')
  spread_T = np.array(values_T, np.float64)
  for before, after in itertools.pairwise(order_T):
    spread_T[after] = max(spread_T[after], spread_T[before] + step)
  return spread_T + (np.mean(values_T) - np.mean(spread_T) if len(values_T) else 0)


def is_off_plane(arrays: Arrays) -> np.ndarray:
  """Whether each checkpoint is farther from the plane than half a step of the grid, of shape (T,)."""
  return arrays['path/height'] > (arrays['xs'][1] - arrays['xs'][0]) / 2
