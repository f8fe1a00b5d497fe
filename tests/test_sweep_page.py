"""The files, tables and page of made-up sweeps with known numbers."""

import csv
import dataclasses
import re
import subprocess
import sys

import numpy as np
import PIL.Image
import pytest
import rich.console
from etils import epath
from made_sweep import (
  AGREEMENT,
  CKA,
  HALF,
  NAMED_RESULTS,
  NAMES,
  NUMBERS,
  PAIRED,
  RESULTS,
  result,
  written,
)

from kdjax.config.sweep import Claim
from kdjax.report import figures, sweep_figure, sweep_page
from kdjax.runtime import files

CLAIM = Claim('τ = 16 <helps>', AGREEMENT, ('m = 1', 16), ('m = 1', 1), 'higher', paper=-2.5)
CLAIMED = dataclasses.replace(NUMBERS, claims=[CLAIM])


@pytest.fixture(scope='module')
def files_of(tmp_path_factory):
  """The files of a sweep with all figures. Tests only read them."""
  return written(tmp_path_factory.mktemp('files'))


@pytest.fixture
def page(tmp_path, monkeypatch):
  """A function that writes a sweep, with quick, empty figures, and returns its page."""
  monkeypatch.setattr(sweep_figure, 'draw', lambda *_, **__: None)
  monkeypatch.setattr(figures, 'image', lambda *_, **__: b'<svg></svg>')
  return lambda *args, **options: written(tmp_path, *args, **options)['html'].read_text()


def page_table(text):
  rows = re.findall(r'<tr.*?</tr>', text, re.DOTALL)
  return [re.findall(r'<t[hd][^>]*>(?:<span>)?(.*?)(?:</span>)?</t[hd]>', row) for row in rows]


def printed(sweep, results):
  console = rich.console.Console(width=80)
  with console.capture() as capture:
    console.print(*sweep_page.terminal_tables(sweep, results))
  text = capture.get()
  assert '…' not in text
  return [' '.join(line.split()) for line in text.splitlines()]


def test_csv_has_a_row_for_each_finished_run(page, tmp_path):
  page(results=PAIRED, notes={3: {'seconds': 12}}, command=lambda run: f'do {run.index}')
  rows = list(csv.DictReader((tmp_path / 'sweep.csv').read_text().splitlines()))
  assert [row['run'] for row in rows] == ['0', '1', '2', '3', '4', '5', '6']
  assert rows[3] == {
    **{'run': '3', 'series': 'm = 3', 'x': '1', 'trial': '0', 'seconds': '12', 'command': 'do 3'},
    **{'seed': '0', 'evaluation.independent_seed': '1', CKA: ''},
    **{AGREEMENT: '0.62', AGREEMENT.replace('fidelity', 'independent'): '0.59'},
    **{f'fingerprint.{name}': '' for name in ('teacher', 'predictions', 'student')},
  }


def test_json_golden():
  summary = sweep_page.summary(CLAIMED, PAIRED)
  assert [summary[name] for name in ('title', 'num_runs', 'num_finished')] == [NUMBERS.title, 8, 7]
  assert len(summary['points']) == 4 * 2
  first, blank, second, missing = (summary['points'][i] for i in (0, 1, 2, 6))
  assert [first[name] for name in ('series', 'x', 'measure', 'label', 'count')] == [
    *('m = 1', 16, AGREEMENT, 'agreement (%)', 2)
  ]
  assert (first['mean'], first['std']) == pytest.approx((65, 2**0.5))
  assert first['independent']['mean'] == pytest.approx(61)
  expected = {'mean': 4, 'low': 4 - HALF, 'high': 4 + HALF}
  assert first['difference'] == pytest.approx(expected, abs=1e-3)
  assert (second['paper_mean'], second['paper_std']) == (58.04, 0.5)
  assert (missing['std'], missing['num_pairs']) == (None, 1)
  assert missing['difference'] == {'mean': pytest.approx(3), 'low': None, 'high': None}
  assert (blank['mean'], blank['count'], blank['difference']) == (None, 0, None)
  # 64 − 57 and 66 − 59 points: equal differences have no interval.
  (claim,) = summary['claims']
  assert claim['effect'] == {'mean': pytest.approx(7), 'low': None, 'high': None}
  assert (claim['n'], claim['verdict'], claim['num_needed']) == (2, 'not decided', None)
  assert (claim['first'], claim['second']) == (('m = 1', 16), ('m = 1', 1))


def test_claims_are_on_the_page_and_the_terminal(page):
  """Effects of 7 and 5 points: 6 ± 12.7062; three trials of their spread would give 6 ± 3.513."""
  results = {**RESULTS, 4: result(0.64)}
  cells = ['+6.00', '−6.71 to +18.71', '−2.5', '2', 'not decided (n = 3)']
  assert page_table(page(CLAIMED, results).split('<h2>Claims')[1])[:2] == [
    ['claim', 'effect', '95 % interval', 'paper', 'n', 'verdict'],
    ['τ = 16 &lt;helps&gt;', *cells],
  ]
  lines = printed(CLAIMED, results)
  assert lines[lines.index('Figure 9: <τ> & m: claims') :][4:7] == [
    'τ = 16 <helps> +6.00 (−6.71 to +18.71)',
    'paper −2.5, n = 2',
    'not decided (n = 3)',
  ]


def test_page_golden(files_of):
  text = files_of['html'].read_text()
  assert page_table(text) == [
    ['temperature τ', 'agreement (%)', 'paper', 'CKA', 'trials'],
    ['m = 1'],
    ['16', '65.00 ± 1.41', '–', '–', '2'],
    ['1', '58.00 ± 1.41', '58.04 ± 0.5', '–', '2'],
    ['m = 3'],
    ['16', '72.00 ± 2.83', '71.56', '–', '2'],
    ['1', '62.00', '–', '–', '1 of 2'],
  ]
  plain = ' '.join(text.split())
  assert '7 of 8 runs are finished.' in plain
  assert '# run 7: m = 3, temperature τ 1, trial 1 do 7' in plain
  assert text.count('# run') == 1 and 'Claims' not in text
  assert not re.search(r'https?://|@import|<script|url\((?!#)', text)
  assert text.count('<svg') == 1 and 'var(--series-2)' in text
  assert '<τ>' not in text and '<CIFAR' not in text
  assert '<h1>Figure 9: &lt;τ&gt; &amp; m</h1>' in text
  assert 'aria-label="Figure 9: &lt;τ&gt; &amp; m"' in text


def test_page_of_a_finished_sweep_names_no_missing_runs(page):
  text = page(NAMES, NAMED_RESULTS)
  assert '2 of 2 runs are finished.' in text
  assert 'Missing' not in text and 'deviation' not in text
  assert page_table(text)[1:] == [['baseline', '79.00', '–', '1'], ['mixup', '83.50', '83.5', '1']]


def test_page_says_what_the_interval_is_over(page):
  text = page(results=PAIRED, command=lambda run: f'do <{run.index}>')
  assert 'do &lt;7&gt;' in text
  plain = ' '.join(text.split())
  assert (
    'Values are means over up to n&nbsp;=&nbsp;2 trials, which differ in <code>seed</code>, ±'
    in plain
  )
  assert 'one standard deviation, which shaded bands show in the figure.' in plain
  assert (
    'is over the n trials (Student&#39;s t' in plain or "the n trials (Student's t, paired" in plain
  )
  values, differences = text.split('<h2>Student minus')
  assert page_table(values)[0][1:4] == ['agreement (%)', 'independent student', 'paper']
  assert page_table(values)[2] == ['16', '65.00 ± 1.41', '61.00 ± 0.00', '–', '–', '2']
  assert page_table(differences) == [
    ['temperature τ', 'difference', '95 % interval', 'verdict', 'n'],
    ['agreement (points)'],
    ['m = 1, 16', '+4.00', '−8.71 to +16.71', 'cannot be told', '2'],
    ['m = 1, 1', '+4.00', '−8.71 to +16.71', 'cannot be told', '2'],
    ['m = 3, 16', '+4.00', '−8.71 to +16.71', 'cannot be told', '2'],
    ['m = 3, 1', '+3.00', '–', 'cannot be told', '1'],
  ]


def test_the_page_links_to_existing_pages_of_students(page, tmp_path):
  results = {i: of | {'fingerprints': {'student': f'run{i}'}} for i, of in RESULTS.items()}
  assert 'report.html' not in page(results=results)
  for i in (1, 3, 5):
    files.write_text(epath.Path(tmp_path) / 'students' / f'run{i}' / 'report.html', '')
  text = page(results=results)
  values = [re.sub('<.*?>', '', row[-1]) for row in page_table(text) if len(row) > 1]
  assert values == ['students', '', 'trial 0 trial 1', '', 'trial 0']
  links = re.findall('href="([^"]*html)">(trial .)', text)
  assert links == [
    ('students/run1/report.html', 'trial 0'),
    ('students/run5/report.html', 'trial 1'),
    ('students/run3/report.html', 'trial 0'),
  ]
  assert '<a href="report.html">All students' in text


def test_without_results_all_is_written(page, tmp_path):
  assert '0 of 8 runs are finished.' in page(results={})
  kinds = ('csv', 'html', 'json', 'pdf', 'png')
  assert sorted(path.name for path in tmp_path.iterdir()) == [f'sweep.{kind}' for kind in kinds]


def test_the_figure_for_a_paper_is_narrow_and_its_text_small(files_of):
  """The page box of the PDF, in points: two columns of panels, 5.2 inches."""
  pdf = files_of['pdf'].read_bytes()
  box = re.search(rb'/MediaBox \[ ?0 0 ([0-9.]+) ([0-9.]+) ?\]', pdf)
  assert float(box[1]) == pytest.approx(72 * 5.18)
  assert sweep_figure.PAPER_POINTS == 8
  assert pdf.startswith(b'%PDF') and b'CreationDate' not in pdf


def test_png_has_a_white_background_and_colours(files_of):
  image = np.asarray(PIL.Image.open(files_of['png']).convert('RGBA'))
  assert image[0, 0].tolist() == image[-1, -1].tolist() == [255] * 4
  for color in list(sweep_figure.COLORS.values())[:2]:
    assert (image == [*bytes.fromhex(color[1:]), 255]).all(-1).any()


def test_same_inputs_same_bytes_in_another_process(files_of, tmp_path):
  code = f'from tests.made_sweep import written; written({str(tmp_path)!r})'
  root = epath.Path(__file__).parent.parent
  subprocess.run([sys.executable, '-c', code], check=True, cwd=root)
  for path in files_of.values():
    assert (tmp_path / path.name).read_bytes() == path.read_bytes(), path.name


def test_terminal_tables():
  lines = printed(NUMBERS, RESULTS)
  start = lines.index('Figure 9: <τ> & m: agreement (%)')
  assert 'temperature τ agreement (%) paper trials' in lines[start:]
  assert 'm = 1, 16 65.00 ± 1.41 – 2' in lines
  assert 'm = 1, 1 58.00 ± 1.41 58.04 ± 0.5 2' in lines
  assert 'm = 3, 16 72.00 ± 2.83 71.56 2' in lines
  assert 'm = 3, 1 62.00 – 1 of 2' in lines
  assert 'm = 1, 16 – 2' in lines[lines.index('Figure 9: <τ> & m: CKA') :]
  lines = printed(NUMBERS, PAIRED)
  assert 'm = 1, 1 58.00 ± 1.41 54.00 ± 0.00 58.04 ± 0.5 2' in lines
  assert 'student − independent student: agreement (points)' in lines
  assert 'm = 1, 16 +4.00 −8.71 to +16.71 cannot be told 2' in lines
  assert 'm = 3, 1 +3.00 – cannot be told 1' in lines
