"""Numbers as text, for tables and pages."""

from collections.abc import Sequence

NOTHING = '–'  # stands for a missing value


def number(value: float | None, percent: bool, sign: bool = False) -> str:
  """The value of a measure as text: two decimals for percent, four for any other number.

  Only exactly 100 percent becomes 100: 99.996 becomes 99.99. None becomes NOTHING.
  """
  return NOTHING if value is None else _fixed(value, 2 if percent else 4, percent, sign)


def percent(fraction: float) -> str:
  """A fraction as percent: '87.7 %' for 0.877. Only a fraction of exactly 1 becomes 100."""
  return f'{_fixed(100 * fraction, 1, True, False)} %'


def interval(ends: Sequence[float] | None, percent: bool, sign: bool = False) -> str:
  """An interval as text: '0.7000 to 0.8000', or NOTHING for None."""
  return NOTHING if ends is None else ' to '.join(number(end, percent, sign) for end in ends)


def _fixed(value: float, digits: int, percent: bool, sign: bool) -> str:
  if percent and value < 100 <= round(value, digits):
    value = 100 - 10**-digits
  text = f'{value:+z.{digits}f}' if sign else f'{value:z.{digits}f}'  # z: −0.00 is 0.00
  return text.replace('-', '−')
