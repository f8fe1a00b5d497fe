"""Figure, caption and table of `analysis.parts.decomposition`.

Axes: S set, G group of students or of directions, B bin.
"""

import itertools

import numpy as np

from kdjax import intervals
from kdjax.report import figures

from ..decomposition import GROUPS as DIRECTIONS
from ..decomposition import MIN_STUDENTS
from . import style
from .style import Arrays, Axes, Figure

TERMS = {
  'of_mean': ("bias: KL of students' mean", style.TEACHER),
  'variance': ('variance over seeds', style.STUDENT),
}
GROUPS = {  # colour and marker
  'student': (style.STUDENT, 'o'),
  'λ = 1': (style.TEACHER, 's'),
  'twice the width': (style.GREEN, '^'),
  'independent': (style.CONTROL, 'D'),
}
SETS = {'seen': 'seen views', 'fresh': 'fresh views', 'test': 'test'}


def draw_decomposition(arrays: Arrays) -> Figure:
  """Four panels: bias and variance, KL by set and group, the residual, and disagreement by margin."""
  figure = style.blank(6.4)
  (bias, kl), (residual, margin) = figure.subplots(2, 2)
  _draw_bias(bias, arrays)
  _draw_kl(kl, arrays)
  _draw_residual(residual, arrays)
  _draw_margin(margin, arrays)
  style.title(bias, 'a', 'bias and variance', ncols=1)
  style.title(kl, 'b', 'KL by students and data')
  style.title(residual, 'c', 'residual p − q', ncols=1)
  style.title(margin, 'd', 'disagreement by margin')
  return figure


def _draw_bias(axes: Axes, arrays: Arrays) -> None:
  """Stacked bars; the interval of each term is drawn at its upper end."""
  places, base = np.arange(len(arrays['sets'])), 0.0
  if 'heskes/mean' not in arrays:
    return _say(axes, 'one student:\nvariance unknown')
  for shift, (term, (label, color)) in zip((-0.1, 0.1), TERMS.items(), strict=True):
    value, low, high = style.estimate(arrays, f'heskes/{term}')
    axes.bar(places, value, 0.6, bottom=base, color=color, alpha=0.75, label=label)
    error = style.errors(value, low, high)
    axes.errorbar(places + shift, base + value, yerr=error, fmt='none', color=style.INK, capsize=3)
    base = base + value
  _label_sets(axes, arrays)


def _draw_kl(axes: Axes, arrays: Arrays) -> None:
  places, num_groups = np.arange(len(arrays['sets'])), len(arrays['groups'])
  for index, name in enumerate(arrays['groups']):
    color, marker = GROUPS[str(name)]
    value, low, high = style.estimate(arrays, 'kl', index)
    shift = 0.12 * (index - (num_groups - 1) / 2)
    look = {'fmt': marker, 'color': color, 'markersize': 5, 'capsize': 2}
    label = f'{name} (n = {arrays["group_sizes"][index]})'
    axes.errorbar(places + shift, value, yerr=style.errors(value, low, high), **look, label=label)
  values = arrays['kl'][arrays['kl'] > 0]
  if values.size and values.max() > figures.WIDE * values.min():
    axes.set_yscale('log')
  _label_sets(axes, arrays)


def _draw_residual(axes: Axes, arrays: Arrays) -> None:
  if 'residual/shares' not in arrays:
    return _say(axes, 'not defined for this optimizer\nor this many classes')
  places = np.arange(len(DIRECTIONS))
  bars = (
    (-0.2, 'shares', style.STUDENT, 'of the residual, ‖p − q‖²'),
    (0.2, 'directions', style.CONTROL, 'control: of all directions'),
  )
  for shift, key, color, label in bars:
    value, low, high = style.estimate(arrays, f'residual/{key}', scale=100)
    axes.bar(places + shift, value, 0.4, color=color, alpha=0.75, label=label)
    look = {'fmt': 'none', 'color': style.INK, 'capsize': 3}
    axes.errorbar(places + shift, value, yerr=style.errors(value, low, high), **look)
  axes.set_xticks(places, DIRECTIONS)
  axes.set_ylim(0, 105)
  axes.set_xlabel('eigendirections of the tangent kernel')
  axes.set_ylabel('share (%)')


def _draw_margin(axes: Axes, arrays: Arrays) -> None:
  edges = arrays['margin/edges']
  num_bins = len(edges) - 1
  for shift, name in ((-0.08, 'student'), (0.08, 'independent')):
    if f'margin/{name}' in arrays:
      color, marker = GROUPS[name]
      value, low, high = style.estimate(arrays, f'margin/{name}', scale=100)
      look = {'fmt': f'{marker}-', 'color': color, 'markersize': 5, 'capsize': 2}
      error = style.errors(value, low, high)
      axes.errorbar(np.arange(num_bins) + shift, value, yerr=error, **look, label=name)
  labels = [f'{low:g}–{high:g}' for low, high in itertools.pairwise(edges)]
  axes.set_xticks(np.arange(num_bins), labels, rotation=35, ha='right')
  axes.set_ylim(0, 105)
  axes.set_xlabel("teacher's margin, test")
  axes.set_ylabel('disagreement (%)')


def _say(axes: Axes, text: str) -> None:
  axes.set_axis_off()
  axes.text(0.5, 0.5, text, ha='center', va='center', transform=axes.transAxes)


def _label_sets(axes: Axes, arrays: Arrays) -> None:
  axes.set_xticks(np.arange(len(arrays['sets'])), [SETS[str(name)] for name in arrays['sets']])
  axes.set_ylabel('KL(teacher ‖ student) (nats)')


# Caption and table.


def caption_decomposition(arrays: Arrays) -> str:
  panels = []
  if 'heskes/mean' in arrays:
    panels.append('a: bias and variance over seeds (Heskes 1998)')
  panels.append('b: KL by data (n: students)')
  if 'residual/shares' in arrays:
    over = 'students' if arrays['residual/over_students'] else 'sets of examples'
    panels.append(f'c: residual along learned (λ Σ η > 1) and other directions, over 3 {over}')
  panels.append("d: disagreement by the teacher's margin (Wilson)")
  return (
    f'{"; ".join(panels)}. n = {int(arrays["num_examples"].max())} examples. 95 % intervals over students '
    f'if there are {MIN_STUDENTS} or more, else over examples ({int(arrays["num_students"])} here).'
  )


def table_decomposition(arrays: Arrays) -> list[list[str]]:
  """Every number of the figure, one per row."""
  rows = [['Quantity', 'where', 'students', 'value']]
  sets = [SETS[str(name)] for name in arrays['sets']]
  count = str(arrays['num_students'])
  terms = {'mean': 'mean KL (nats)'} | {key: f'{label} (nats)' for key, (label, _) in TERMS.items()}
  for place, where in enumerate(sets):
    for term, label in terms.items():
      if term == 'mean' or 'heskes/mean' in arrays:
        rows.append([label, where, count, f'{arrays[f"plain/{term}"][place]:.3g}'])
      if 'heskes/mean' in arrays:
        rows.append([label, where, '∞', intervals.text(arrays, f'heskes/{term}', place)])
  there = [str(name) for name in arrays['groups']]
  for name in GROUPS:
    if name not in there:
      rows.append([f'KL, {name} (nats)', '', '0', 'not in the workdir'])
      continue
    group = there.index(name)
    size = str(arrays['group_sizes'][group])
    for place, where in enumerate(sets):
      rows.append([f'KL, {name} (nats)', where, size, intervals.text(arrays, 'kl', (group, place))])
    if 'fresh_less_seen' in arrays:
      value = intervals.text(arrays, 'fresh_less_seen', group)
      rows.append([f'KL, {name} (nats)', 'fresh − seen', size, value])
  if 'residual/shares' in arrays:
    size = f'{min(int(arrays["num_students"]), 3)}' if arrays['residual/over_students'] else '1'
    for key, label in (('shares', '‖p − q‖² (%)'), ('directions', 'directions (%)')):
      for place, name in enumerate(DIRECTIONS):
        text = intervals.text(arrays, f'residual/{key}', place, 100)
        rows.append([label, name, size, text])
  edges = arrays['margin/edges']
  for name in ('student', 'independent'):
    if f'margin/{name}' in arrays:
      for place in np.flatnonzero(arrays['margin/counts']):
        where = f'{edges[place]:g}–{edges[place + 1]:g}, n = {arrays["margin/counts"][place]}'
        text = intervals.text(arrays, f'margin/{name}', place, 100)
        rows.append([f'disagreement, {name} (%)', where, '1', text])
  return rows
