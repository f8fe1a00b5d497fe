"""The report's figures as inline SVG, images as data URIs, and the style that all figures share.

Reads and writes no file. Functions import matplotlib when they draw, so a report that is up to date does not
wait for it. The same input gives the same bytes. Axes: H W C image.
"""

import base64
import contextlib
import dataclasses
import html
import io
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import PIL.Image

if TYPE_CHECKING:
  from matplotlib.axes import Axes
  from matplotlib.figure import Figure

Rows = Sequence[dict[str, Any]]  # of a metrics.jsonl

# Colours that differ for any colour vision. In a page, CSS variables of the same names replace them, so
# figures follow its light and dark schemes.
COLORS = {'ink': '#1c2128', 'teacher': '#0072b2', 'student': '#d55e00'}
LINES = {'train': '--', 'val': ':', 'test': '-'}
SIZE_INCHES = (4.6, 3.5)  # small, so the text is large enough on a phone
IMAGE_PIXELS = 128  # the smallest side of an enlarged image
WIDE = 12  # the ratio of largest to smallest value above which an axis is logarithmic
FEW_POINTS = 25  # curves of at most this many points have markers
# The metadata with matplotlib's version and the time, which files leave out.
METADATA = {
  'png': ('Software',),
  'pdf': ('Creator', 'Producer', 'CreationDate'),
  'svg': ('Creator', 'Date', 'Format', 'Type'),
}


@dataclasses.dataclass(frozen=True)
class _Curve:
  rows: Rows
  key: str
  color: str
  line: str = '-'
  faint: bool = False
  label: str | None = None


def loss(rows_of_runs: Sequence[Rows], color: str, title: str, unit: str) -> str | None:
  """The training loss over epochs. `unit` is '' for none. None if no loss was logged."""
  faint = len(rows_of_runs) > 1
  curves = [_Curve(rows, 'train/loss', color, faint=faint) for rows in rows_of_runs]
  return _draw_curves(title, curves, f'loss ({unit})' if unit else 'loss')


def error(student_rows: Rows, member_rows: Sequence[Rows]) -> str | None:
  """The error of the student and, in faint lines, of the teacher's members, by split.

  The error is 100 % minus the accuracy. It shows differences even at 99 % accuracy.
  """
  curves = [
    _Curve(rows, f'{split}/accuracy', 'teacher', line, True, f'member, {split}' if i == 0 else None)
    for split, line in LINES.items()
    for i, rows in enumerate(member_rows)
  ]
  curves += _by_split(student_rows, 'accuracy', 'student, ' if curves else '')
  return _draw_curves('Error through training', curves, 'error (%)', scale=-100, offset=100)


def agreement(student_rows: Rows, baseline: float | None) -> str | None:
  """The top-1 agreement of the student with its teacher, by split. `baseline` as in `kl`."""
  curves = _by_split(student_rows, 'top1_agreement')
  return _draw_curves('Agreement through training', curves, 'top-1 agreement (%)', 100, baseline)


def kl(student_rows: Rows, baseline: float | None) -> str | None:
  """KL(teacher ‖ student), by split. `baseline` is that of the trained independent student on test, if any."""
  curves = _by_split(student_rows, 'predictive_kl')
  return _draw_curves('KL through training', curves, 'KL (nats)', baseline=baseline)


def reliability(bins: dict[str, dict[str, np.ndarray]]) -> str:
  """Accuracy against confidence, and the fraction of images in each bin below it.

  Args:
    bins: the results of `metrics.reliability` for 'teacher' and 'student'.
  """
  with style('reliability'):
    figure = blank((SIZE_INCHES[0], 1.1 * SIZE_INCHES[1]))
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=[2, 1])
    above.plot([0, 100], [0, 100], color=COLORS['ink'], alpha=0.5, linewidth=1)
    for (name, of), marker, side in zip(bins.items(), 'os', (-1, 1), strict=True):
      filled = of['fraction'] > 0
      above.plot(
        100 * of['confidence'][filled],
        100 * of['accuracy'][filled],
        color=COLORS[name],
        marker=marker,
        markersize=5,
        label='ensemble' if name == 'teacher' else name,
      )
      width = 100 / len(filled)
      centers = width * (np.arange(len(filled)) + 0.5)
      below.bar(centers + side * width / 5, 100 * of['fraction'], width / 2.5, color=COLORS[name])
    above.set_ylabel('accuracy (%)')
    below.set_ylabel('images (%)')
    below.set_xlabel('confidence (%)')
    below.set_xticks(range(0, 101, 20))
    _legend(above)
    return svg(figure, 'Reliability diagram on the test images')


def are_images(inputs_NX: np.ndarray) -> bool:
  """Whether `image_uri` can show the inputs."""
  return inputs_NX.ndim == 4 and inputs_NX.shape[-1] in (1, 3, 4)


def image_uri(image_HWC: np.ndarray) -> str:
  """An image of 1, 3 or 4 channels as a PNG in a data URI; small images are enlarged.

  Args:
    image_HWC: uint8, or float32 in [−1, 1].
  """
  if image_HWC.dtype != np.uint8:
    image_HWC = np.round((image_HWC + 1) * 127.5).astype(np.uint8)
  image = PIL.Image.fromarray(image_HWC[..., 0] if image_HWC.shape[-1] == 1 else image_HWC)
  factor = max(1, -(-IMAGE_PIXELS // min(image.size)))
  buffer = io.BytesIO()
  enlarged = (image.width * factor, image.height * factor)
  image.resize(enlarged, PIL.Image.Resampling.NEAREST).save(buffer, 'PNG')
  return f'data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}'


def _by_split(rows: Rows, name: str, who: str = '') -> list[_Curve]:
  return [
    _Curve(rows, f'{split}/{name}', 'student', line, label=f'{who}{split}')
    for split, line in LINES.items()
  ]


def _draw_curves(
  title: str,
  curves: Sequence[_Curve],
  ylabel: str,
  scale: float = 1,
  baseline: float | None = None,
  offset: float = 0,
) -> str | None:
  """Curves of offset + scale * value for all keys that were logged, and a level line; None without curves."""
  drawn = [curve for curve in curves if any(curve.key in row for row in curve.rows)]
  if not drawn:
    return None
  with style(title):
    figure = blank()
    axes = figure.subplots()
    for curve in drawn:
      rows = [row for row in curve.rows if curve.key in row]
      axes.plot(
        [row['epoch'] for row in rows],
        [offset + scale * row[curve.key] for row in rows],
        color=COLORS[curve.color],
        linestyle=curve.line,
        linewidth=1.2 if curve.faint else 2,
        alpha=0.45 if curve.faint else 1,
        marker='o' if len(rows) <= FEW_POINTS else None,
        markersize=2 if curve.faint else 3.5,
        label=curve.label,
      )
    if baseline is not None:
      level = {'color': COLORS['ink'], 'linestyle': '-.', 'linewidth': 1.2}
      axes.axhline(offset + scale * baseline, **level, label='independent, test')
    axes.set_xlabel('epochs of training')
    axes.set_ylabel(ylabel)
    _log_if_wide(axes)
    _legend(axes)
    return svg(figure, title)


def _log_if_wide(axes: 'Axes') -> None:
  """Sets a log scale, linear near 0, if the values are at least 0 and span more than a decade."""
  from matplotlib.ticker import LogLocator, NullLocator

  values = np.concatenate([line.get_ydata() for line in axes.lines])
  positive = values[values > 0]
  if values.min() >= 0 and len(positive) and WIDE * positive.min() < values.max():
    has_zero = values.min() == 0
    axes.set_yscale('symlog', linthresh=positive.min()) if has_zero else axes.set_yscale('log')
    axes.set_ylabel(f'{axes.get_ylabel()}, log')
    if has_zero:
      axes.set_ylim(bottom=0)
      axes.yaxis.set_major_formatter(lambda value, _: f'{value:g}')
      return
    few_decades = values.max() < 1000 * positive.min()
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 3) if few_decades else (1,)))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(lambda value, _: f'{value:g}')


def _legend(axes: 'Axes') -> None:
  """Puts the legend above the axes, where it hides no data."""
  handles, _ = axes.get_legend_handles_labels()
  if handles:
    ncols = 3 if len(handles) <= 3 else 2
    axes.legend(loc='lower left', bbox_to_anchor=(-0.02, 1.0), ncols=ncols)


def blank(size_inches: tuple[float, float] = SIZE_INCHES) -> 'Figure':
  """A figure without axes."""
  from matplotlib.figure import Figure

  return Figure(size_inches, layout='constrained')


def style(salt: str) -> contextlib.AbstractContextManager:
  """A context with kdjax's style. It ignores the user's matplotlibrc; `salt` makes the ids of an SVG repeatable."""
  import matplotlib.style

  ink = COLORS['ink']
  settings = {
    'axes.edgecolor': ink,
    'axes.grid': True,
    'axes.labelcolor': ink,
    'axes.spines.right': False,
    'axes.spines.top': False,
    'figure.facecolor': 'none',
    'axes.facecolor': 'none',
    'font.size': 12,
    'grid.alpha': 0.2,
    'grid.color': ink,
    'legend.borderaxespad': 0,
    'legend.columnspacing': 1.2,
    'legend.frameon': False,
    'legend.labelcolor': ink,
    'pdf.fonttype': 42,
    'svg.fonttype': 'none',
    'svg.hashsalt': salt,
    'text.color': ink,
    'xtick.color': ink,
    'ytick.color': ink,
  }
  return matplotlib.style.context(settings, after_reset=True)


def image(
  figure: 'Figure', kind: str, dots_per_inch: float = 200, background: str = 'white'
) -> bytes:
  """The content of a PNG, PDF or SVG file of the figure.

  The layout is computed for the first file and kept. `Figure.savefig` would compute it for each file, which
  takes as long as the drawing.

  Args:
    kind: 'png', 'pdf' or 'svg'.
    dots_per_inch: the resolution of a PNG, and of pixel images in a PDF or SVG.
  """
  from matplotlib.backend_bases import get_registered_canvas_class

  figure.set(dpi=dots_per_inch, facecolor=background)
  buffer, canvas = io.BytesIO(), get_registered_canvas_class(kind)(figure)
  getattr(canvas, f'print_{kind}')(buffer, metadata=dict.fromkeys(METADATA[kind]))
  figure.set_layout_engine('none')
  return buffer.getvalue()


def svg(figure: 'Figure', title: str, colors: Mapping[str, str] = COLORS) -> str:
  """The figure as an <svg> element for a page that defines `colors` as CSS variables."""
  text = image(figure, 'svg', background='none').decode()
  text = text[text.index('<svg') :].rstrip()
  text = re.sub(r' xmlns(:xlink)?="[^"]*"', '', text)
  text = re.sub(r'<g id="[^"]*">', '<g>', text)  # figures of one page would share these ids
  for name, color in colors.items():
    text = text.replace(color, f'var(--{name})')
  return text.replace('<svg', f'<svg role="img" aria-label="{html.escape(title)}"', 1)
