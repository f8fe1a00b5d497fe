"""The style that all figures of the analysis share.

Functions that draw give sizes in inches for a figure of WIDTH and no size of text; both are of the style that
the figure is drawn in. matplotlib is imported when a figure is drawn.
"""

import contextlib
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from kdjax import intervals
from kdjax.report import figures

if TYPE_CHECKING:
  from matplotlib.axes import Axes
  from matplotlib.figure import Figure
else:
  Axes = Figure = Any

Arrays = Mapping[str, np.ndarray]

WIDTH = 7.0  # inches
SCREEN, PAPER = 'screen', 'paper'
# Names of styles → the width in inches, and the points of small text and of titles and labels.
STYLES = {SCREEN: (WIDTH, 9, 11), PAPER: (5.5, 8, 8)}
INK, TEACHER, STUDENT = (figures.COLORS[name] for name in ('ink', 'teacher', 'student'))
GREEN, PINK, SKY = '#009e73', '#cc79a7', '#56b4e9'  # Okabe & Ito's, for other series
CONTROL = '0.45'  # the grey of nulls and controls
FEW_POINTS = 3  # series of up to so many points are drawn without a line

# Networks share a basin if the error rises by less than this between them (Frankle et al. 2020, Section 2).
SAME_BASIN = 0.02

_ANSWERS = {intervals.LOWER: 'yes', intervals.HIGHER: 'no', intervals.UNDECIDED: 'cannot be told'}


@contextlib.contextmanager
def drawing(salt: str, name: str = SCREEN) -> Iterator[None]:
  """A context that draws in one of STYLES; `salt` makes the ids of an SVG repeatable."""
  import matplotlib.style

  width, small, normal = STYLES[name]
  larger = ('axes.labelsize', 'axes.titlesize', 'figure.labelsize', 'legend.title_fontsize')
  settings = {'figure.figsize': (width, width), 'font.size': small} | dict.fromkeys(larger, normal)
  with figures.style(salt), matplotlib.style.context(settings):
    yield


def blank(height: float) -> Figure:
  """An empty figure; `height` is in inches, for a figure of WIDTH."""
  import matplotlib

  width = matplotlib.rcParams['figure.figsize'][0]
  return figures.blank((width, height * width / WIDTH))


def one_basin(low: float, high: float) -> str:
  """Whether a barrier of the test accuracy with the interval [low, high] leaves its ends in one basin.

  Returns: 'yes' if the whole interval is below SAME_BASIN, 'no' if it is above, else 'cannot be told'.
  """
  return _ANSWERS[intervals.verdict(low, high, SAME_BASIN)]


def title(axes: Axes, letter: str, text: str, ncols: int = 2) -> None:
  """Puts the panel's letter and title above it, and a legend of its labels below the title.

  Args:
    ncols: columns of the legend; 0 draws none.
  """
  text = rf'$\mathbf{{{letter}}}$  {text}'
  handles = axes.get_legend_handles_labels()[0] if ncols else []
  if not handles:
    axes.set_title(text, loc='left')
    return
  axes.legend(
    title=text,
    alignment='left',
    loc='lower left',
    bbox_to_anchor=(0, 1.01),
    borderpad=0.2,
    columnspacing=1,
    handlelength=1.6,
    handletextpad=0.5,
    labelspacing=0.3,
    ncols=ncols,
  )


def legend(figure: Any, axes: Axes, ncols: int, **look: Any) -> None:
  """Puts a legend of the labels of one panel above a figure or subfigure."""
  labels = axes.get_legend_handles_labels()
  figure.legend(*labels, loc='outside upper left', ncols=ncols, **look)


def errors(value: np.ndarray, low: np.ndarray, high: np.ndarray) -> np.ndarray:
  """Lengths of error bars, of shape (2, ...); an end on the wrong side of the value gives 0."""
  return np.maximum([value - low, high - value], 0)


def estimate(
  arrays: Arrays, key: str, place: Any = (), scale: float = 1
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """scale · (value, low, high) of arrays[key] at a place, by default whole arrays."""
  return tuple(scale * arrays[f'{key}{end}'][place] for end in intervals.ENDS)


def draw_interval(
  axes: Axes,
  arrays: Arrays,
  x: str,
  key: str,
  line: str,
  color: str,
  label: str | None = None,
  scale: float = 1,
) -> None:
  """Draws scale · arrays[key] against arrays[x], with error bars from `key/low` to `key/high`.

  Args:
    line: marker and line style as matplotlib's `fmt`, such as 'o-'.
  """
  mean, low, high = estimate(arrays, key, scale=scale)
  axes.errorbar(
    arrays[x],
    mean,
    errors(mean, low, high),
    fmt=line[:1] if len(mean) <= FEW_POINTS else line,
    color=color,
    linewidth=1.5,
    markersize=5,
    capsize=2,
    label=label,
  )


def draw_threshold(axes: Axes) -> None:
  """Marks SAME_BASIN in a panel of barriers in percent; the axis starts at 0 and includes the mark."""
  axes.axhline(100 * SAME_BASIN, color=INK, linewidth=1, linestyle=':', label='one basin below')
  axes.set_ylim(0, max(axes.get_ylim()[1], 150 * SAME_BASIN))
