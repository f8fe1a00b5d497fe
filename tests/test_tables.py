"""Tables of a made-up result, and numbers as text."""

import pytest
import rich.console
from reported_run import RESULT, SPLIT

from kdjax.report import formats, tables


def printed(result):
  console = rich.console.Console(width=80)
  with console.capture() as capture:
    console.print(*tables.terminal(result))
  return capture.get()


def test_the_terminal_has_every_number_within_80_columns():
  text = printed(RESULT)
  assert '…' not in text and max(map(len, text.splitlines())) <= 80
  lines = [line.split() for line in text.splitlines()]
  assert ['test', '(6)'] in lines
  assert lines.count(['student', '87.67', '0.0432', '97.12', '0.1250', '3.45']) == 2
  assert lines.count(['member', '1', '93.00', '0.3200', '72.00', '0.8200', '2.00']) == 2
  lines = [' '.join(line) for line in lines]
  assert 'agreement (%) 87.67 76.54 +11.13 +7.00 to +15.00 higher' in lines
  assert 'KL (nats) 0.0432 0.0478 −0.0046 −0.0125 to +0.0018 cannot be told' in lines
  assert 'Cohen’s κ 0.8000 – – – cannot be told' in lines


def test_every_measure_of_the_terminal_fits_into_a_line():
  widest = {'mean': -0.98765, 'interval': [-0.98765, -0.87654], 'verdict': 'cannot be told'}
  test = {
    'fidelity': dict.fromkeys(tables.LABELS, 0.98765),
    'independent': dict.fromkeys(tables.LABELS, 0.98765),
    'difference': dict.fromkeys(tables.LABELS, widest),
  }
  text = printed({'splits': {'test': SPLIT | test}})
  lines = [line for line in text.splitlines() if 'cannot be told' in line]
  assert len(lines) == len(tables.LABELS)
  for line, label in zip(lines, tables.LABELS.values(), strict=True):
    assert line.strip().startswith(label) and len(line) <= 80


def test_without_an_independent_student_there_is_nothing_to_compare():
  alone = {key: of for key, of in SPLIT.items() if key not in ('independent', 'difference')}
  assert len(tables.terminal({'splits': {'test': alone}})) == 1
  assert tables.answer(alone).startswith(
    'Unknown: the student agrees with its teacher on 87.67 % (85'
  )


@pytest.mark.parametrize(
  ('agreement', 'kl', 'words'),
  [
    ('higher', 'lower', ('Yes: ', 'is lower than')),
    ('lower', 'higher', ('No, less: ', 'is higher than')),
    ('cannot be told', 'cannot be told', ('No difference was found: ', 'cannot be told from')),
  ],
)
def test_the_answer_is_the_verdict(agreement, kl, words):
  verdicts = {'top1_agreement': {'verdict': agreement}, 'predictive_kl': {'verdict': kl}}
  text = tables.answer(SPLIT | {'difference': verdicts})
  assert text.startswith(words[0]) and words[1] in text


@pytest.mark.parametrize(
  ('value', 'percent', 'sign', 'text'),
  [
    (100, True, False, '100.00'),
    (99.996, True, False, '99.99'),
    (99.9949, True, False, '99.99'),
    (100.004, False, False, '100.0040'),
    (-0.001, True, True, '+0.00'),
    (-1.5, False, True, '−1.5000'),
    (None, True, False, '–'),
  ],
)
def test_numbers(value, percent, sign, text):
  assert formats.number(value, percent, sign) == text


@pytest.mark.parametrize(
  ('fraction', 'text'), [(1, '100.0 %'), (0.9999, '99.9 %'), (0.9994, '99.9 %'), (0.5, '50.0 %')]
)
def test_only_a_fraction_of_1_is_100_percent(fraction, text):
  assert formats.percent(fraction) == text


def test_intervals():
  assert formats.interval([-0.5, 99.999], True, sign=True) == '−0.50 to +99.99'
  assert formats.interval(None, True) == '–'
