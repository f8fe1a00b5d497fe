"""The tables of one result.json: as rows of cells for pages, and as tables for a terminal of 80 columns.

A cell holds a number or a word. Fidelity never stands without the independent student's beside it.
"""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rich import box
from rich.table import Table

from kdjax.report import formats
from kdjax.report.formats import NOTHING

SPLITS = {  # in the order of the tables
  'train': 'train',
  'val': 'validation',
  'test': 'test',
  'distillation': 'distillation views',
}
MEASURES = {  # as result.json names them: as the tables do
  'accuracy': 'accuracy (%)',
  'nll': 'NLL (nats)',
  'ece': 'ECE (%)',
  'top1_agreement': 'agreement (%)',
  'predictive_kl': 'KL (nats)',
}
FINER = {
  'cohens_kappa': 'Cohen’s κ',
  'total_variation': 'TV distance',
  'top5_agreement': 'top-5 (%)',
  'rank_correlation': 'rank corr.',
}
FIDELITY = ('top1_agreement', 'predictive_kl')  # measures of it that are shown first
LABELS = MEASURES | FINER
IN_WORDS = {'top1_agreement': 'agreement with the teacher', 'predictive_kl': 'KL from the teacher'}
UNITS = {'top1_agreement': 'percentage points', 'predictive_kl': 'nats'}
VERDICTS = {  # of intervals.verdict
  'higher': 'is higher than',
  'lower': 'is lower than',
  'cannot be told': 'cannot be told from',
}


@dataclasses.dataclass(frozen=True)
class Group:
  """Rows of a table under one heading."""

  title: str
  num_examples: int
  rows: list[tuple[str, list[str]]]  # the row's name and its cells


def headline(result: Mapping[str, Any], names: Iterable[str]) -> list[Group]:
  """Members, ensemble, student and independent student by split, with the MEASURES in their order."""
  groups = []
  for name in names:
    if name in result['splits']:
      values = result['splits'][name]
      rows = [(f'member {i}', cells(m)) for i, m in enumerate(values.get('members', []))]
      rows.append(('ensemble', cells(values['teacher'])))
      rows.append(('student', cells(values['student'] | values['fidelity'])))
      if 'independent' in values:
        rows.append(('independent student', cells(values['independent'])))
      groups.append(Group(SPLITS[name], values['num_examples'], rows))
  return groups


def cells(values: Mapping[str, float], keys: Iterable[str] = tuple(MEASURES)) -> list[str]:
  return [_number(key, values.get(key)) for key in keys]


def controls(result: Mapping[str, Any]) -> list[Group]:
  """The first measures of fidelity on all test examples, and where the teacher is wrong."""
  test = result['splits']['test']
  groups = [
    _fidelity('all', test, FIDELITY),
    _fidelity('those that the teacher gets wrong', test.get('teacher_wrong', {}), FIDELITY),
  ]
  return [group for group in groups if group.rows]


def finer(result: Mapping[str, Any]) -> list[Group]:
  """Every measure of fidelity on every split."""
  splits = result['splits']
  return [_fidelity(SPLITS[name], splits[name], LABELS) for name in SPLITS if name in splits]


def _fidelity(title: str, values: Mapping[str, Any], keys: Iterable[str]) -> Group:
  """A row for each measure: student, independent student and difference with intervals, and verdict."""
  rows = []
  for key in keys:
    if key in values.get('fidelity', {}):
      models = [_model_cell(values, who, key) for who in ('fidelity', 'independent')]
      rows.append((LABELS[key], [*models, *difference_cells(values, key)]))
  return Group(title, values.get('num_examples', 0), rows)


def _model_cell(values: Mapping[str, Any], who: str, key: str) -> str:
  """'97.10 (96.40 to 97.80)'."""
  mean, ends = values.get(who, {}).get(key), values['intervals'].get(who, {}).get(key)
  return _with_ends(key, mean, ends)


def difference_cells(values: Mapping[str, Any], key: str) -> list[str]:
  """['+0.28 (−0.56 to +1.11)', 'cannot be told'] of student minus independent student."""
  found = values.get('difference', {}).get(key)
  if found is None:
    return [NOTHING, NOTHING]
  return [_with_ends(key, found['mean'], found['interval'], sign=True), found['verdict']]


def conclusions(values: Mapping[str, Any]) -> list[str]:
  """A sentence for each of the first measures: whether student and independent student differ."""
  sentences = []
  for key in FIDELITY:
    found = values.get('difference', {}).get(key)
    if found is not None:
      ends = found['interval']
      with_ends = f', 95 % interval {_interval(key, ends)}' if ends else ''
      sentences.append(
        f'The student’s {IN_WORDS[key]} {VERDICTS[found["verdict"]]} the independent student’s (difference '
        f'{_number(key, found["mean"], sign=True)} {UNITS[key]}{with_ends}).'
      )
  return sentences


def terminal(result: Mapping[str, Any]) -> Sequence[Table]:
  """The headline on train and test, and all measures of fidelity on test, each within 80 columns."""
  first = Table(box=box.SIMPLE)
  first.add_column('split (images)', no_wrap=True)
  for heading in MEASURES.values():
    first.add_column(heading, justify='right')
  for group in headline(result, ('train', 'test')):
    first.add_section()
    first.add_row(f'{group.title} ({group.num_examples:,})', style='bold')
    for name, row in group.rows:
      first.add_row(f'  {name}', *row)
  test = result['splits']['test']
  if 'difference' not in test:
    return [first]
  second = Table(
    box=box.SIMPLE_HEAD,
    padding=(0, 1, 0, 0),
    pad_edge=False,
    show_edge=False,
    title='fidelity on test: student − independent student, 95 % interval',
    title_justify='left',
  )
  for heading in ('', 'student', 'independent', 'diff.', '95 % interval', 'verdict'):
    justify = 'left' if heading in ('', 'verdict') else 'right'
    second.add_column(heading, justify=justify, no_wrap=True)
  for key, found in test['difference'].items():
    models = [_number(key, test[who][key]) for who in ('fidelity', 'independent')]
    difference = _number(key, found['mean'], sign=True), _interval(key, found['interval'])
    second.add_row(LABELS[key], *models, *difference, found['verdict'])
  return [first, second]


def _number(key: str, value: float | None, sign: bool = False) -> str:
  return formats.number(*_scaled(key, value), sign)


def _interval(key: str, ends: Sequence[float] | None, sign: bool = True) -> str:
  if ends is None:
    return NOTHING
  return formats.interval([_scaled(key, end)[0] for end in ends], '%' in LABELS[key], sign)


def _with_ends(
  key: str, value: float | None, ends: Sequence[float] | None, sign: bool = False
) -> str:
  text = _number(key, value, sign)
  return text if ends is None else f'{text} ({_interval(key, ends, sign)})'


def _scaled(key: str, value: float | None) -> tuple[float | None, bool]:
  """The value in the unit of its label, and whether that is percent."""
  percent = '%' in LABELS[key]
  return (100 * value if percent and value is not None else value), percent
