"""The tables of one result.json, as rows of cells for pages and as tables for a terminal of 80 columns.

A cell holds a number or a word. Fidelity is always shown beside the independent student's.
"""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rich import box
from rich.table import Table

from kdjax import intervals
from kdjax.report import formats
from kdjax.report.formats import NOTHING

SPLITS = {  # in the order of the tables
  'train': 'train',
  'val': 'validation',
  'test': 'test',
  'distillation': 'distillation views',
}
# The measures' names in result.json and their labels in the tables. Fidelity comes first, since a phone shows
# only the first columns.
MEASURES = {
  'top1_agreement': 'agreement (%)',
  'predictive_kl': 'KL (nats)',
  'accuracy': 'accuracy (%)',
  'nll': 'NLL (nats)',
  'ece': 'ECE (%)',
}
FINER = {
  'cohens_kappa': 'Cohen’s κ',
  'total_variation': 'TV distance',
  'top5_agreement': 'top-5 (%)',
  'rank_correlation': 'rank corr.',
}
FIDELITY = ('top1_agreement', 'predictive_kl')  # the two main measures of fidelity
LABELS = MEASURES | FINER
ANSWERS = {  # the verdict on agreement, student against independent student
  intervals.HIGHER: 'Yes',
  intervals.LOWER: 'No, less',
  intervals.UNDECIDED: 'No difference was found',
}
UNKNOWN = 'Unknown'  # without an independent student
KL_ANSWERS = {
  intervals.HIGHER: 'is higher than',
  intervals.LOWER: 'is lower than',
  intervals.UNDECIDED: 'cannot be told from',
}


@dataclasses.dataclass(frozen=True)
class Group:
  """Rows of a table under one heading."""

  title: str
  num_examples: int
  rows: list[tuple[str, list[str]]]  # the row's name and its cells


def headline(result: Mapping[str, Any], names: Iterable[str]) -> list[Group]:
  """The MEASURES of members, ensemble, student and independent student, by split."""
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
  """Agreement and KL on all test examples, and on the examples that the teacher misclassifies."""
  test = result['splits']['test']
  groups = [
    _fidelity('all', test, FIDELITY),
    _fidelity('misclassified by the teacher', test.get('teacher_wrong', {}), FIDELITY),
  ]
  return [group for group in groups if group.rows]


def finer(result: Mapping[str, Any]) -> list[Group]:
  """Every measure of fidelity on every split."""
  splits = result['splits']
  return [_fidelity(SPLITS[name], splits[name], LABELS) for name in SPLITS if name in splits]


def _fidelity(title: str, values: Mapping[str, Any], keys: Iterable[str]) -> Group:
  """A row for each measure: student, independent student, their difference, and the verdict."""
  rows = []
  for key in keys:
    if key in values.get('fidelity', {}):
      models = [  # such as '97.10 (96.40 to 97.80)'
        _with_ends(key, values.get(who, {}).get(key), values['intervals'].get(who, {}).get(key))
        for who in ('fidelity', 'independent')
      ]
      rows.append((LABELS[key], [*models, *difference_cells(values, key)]))
  return Group(title, values.get('num_examples', 0), rows)


def difference_cells(values: Mapping[str, Any], key: str) -> list[str]:
  """Cells of student minus independent student: difference with interval, verdict.

  For example ['+0.28 (−0.56 to +1.11)', 'cannot be told'].
  """
  found = values.get('difference', {}).get(key)
  if found is None:
    return [NOTHING, NOTHING]
  return [_with_ends(key, found['mean'], found['interval'], sign=True), found['verdict']]


QUESTION = 'Does the student match its teacher more than a student of another teacher does?'


def answer(values: Mapping[str, Any]) -> str:
  """The answer to QUESTION on one split: the verdicts on agreement and KL, with their intervals.

  Args:
    values: one split of result.json.
  """
  if 'difference' not in values:
    return (
      f'{UNKNOWN}: the student agrees with its teacher on {_estimate(values, "fidelity", "top1_agreement")}, and '
      'no independent student was trained to compare it with.'
    )
  agreement, kl = (values['difference'][key]['verdict'] for key in FIDELITY)
  own, other = (_estimate(values, who, 'top1_agreement') for who in ('fidelity', 'independent'))
  own_kl, other_kl = (
    _estimate(values, who, 'predictive_kl') for who in ('fidelity', 'independent')
  )
  return (
    f'{ANSWERS[agreement]}: it agrees with its teacher on {own} of the test examples, a student of another '
    f'teacher on {other}. Its KL of {own_kl} {KL_ANSWERS[kl]} the other’s, {other_kl}.'
  )


def answers(tests: Iterable[Mapping[str, Any]]) -> str:
  """How many students have each answer to QUESTION, by the verdict on agreement: 'Yes: 3; Unknown: 1.'.

  Args:
    tests: the test split of each result.json.
  """
  counts = dict.fromkeys([*ANSWERS.values(), UNKNOWN], 0)
  for test in tests:
    found = test.get('difference', {}).get('top1_agreement')
    counts[ANSWERS[found['verdict']] if found else UNKNOWN] += 1
  return '; '.join(f'{answer}: {count}' for answer, count in counts.items() if count) + '.'


def _estimate(values: Mapping[str, Any], who: str, key: str) -> str:
  """A measure with unit and interval: '99.20 % (98.10 to 100.00)', '0.1250 nats (0.1000 to 0.1500)'."""
  unit = '%' if '%' in LABELS[key] else 'nats'
  text, ends = _number(key, values[who][key]), values['intervals'].get(who, {}).get(key)
  return f'{text} {unit}' + (f' ({_interval(key, ends, sign=False)})' if ends else '')


def terminal(result: Mapping[str, Any]) -> Sequence[Table]:
  """The headline table on train and test, and a table of all measures of fidelity on test."""
  first = Table(box=box.SIMPLE, padding=(0, 1, 0, 0), pad_edge=False)
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
  """The value in the unit of its label, and whether the unit is percent."""
  percent = '%' in LABELS[key]
  return (100 * value if percent and value is not None else value), percent
