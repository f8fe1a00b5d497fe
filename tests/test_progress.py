"""Progress bars on a terminal of 80 columns."""

import io
import re

from rich.console import Console

from kdjax.runtime import progress

METRICS = 'loss 12.345 accuracy 0.123 agreement 0.456'


def last_frame(monkeypatch, name, total, unit) -> str:
  """The last state of a bar's line, without colours."""
  screen = io.StringIO()
  monkeypatch.setattr(progress, 'console', Console(file=screen, width=80, force_terminal=True))
  with progress.bar(name, total, unit) as show:
    show(total, METRICS)
  lines = re.sub(r'\x1b\[[0-9;?]*[a-zA-Z]', '', screen.getvalue()).splitlines()
  return next(line for line in reversed(lines) if line.strip())


def test_metrics_are_cut_and_not_the_count_and_the_time(monkeypatch):
  for name, total, unit in (
    ('student', 1234, 'steps'),
    ('independent student', 123_456, 'steps'),
    ('independent teacher 12', 1_000_000, 'steps'),
    ('independent predictions', 100_000, 'views'),
    ('trajectory', 100, 'checkpoints'),
  ):
    line = last_frame(monkeypatch, name, total, unit)
    assert len(line) <= 80
    assert line.startswith(f'{name} ')
    assert re.search(rf' {total}/{total} {unit} 0:00:00 ', line), line
    shown = line.rpartition('0:00:00 ')[2].strip()
    assert shown == METRICS or (shown.endswith('…') and METRICS.startswith(shown[:-1])), line
