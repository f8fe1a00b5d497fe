"""The figure, table and page of made-up sweeps with known numbers."""

import csv
import dataclasses
import functools
import io
import re
import subprocess
import sys

import numpy as np
import PIL.Image
import pytest
import rich.console
from etils import epath
from matplotlib.colors import to_hex

from kdjax.config import sweep as sweep_lib
from kdjax.config.sweep import Claim, Panel, Point, Sweep
from kdjax.report import figures, sweep_figure, sweep_page
from kdjax.runtime import files

AGREEMENT = 'splits.test.fidelity.top1_agreement'
CKA = 'splits.test.cka.stage1'
PANELS = (Panel(AGREEMENT, 'agreement (%)', 100), Panel(CKA, 'CKA'))
NUMBERS = Sweep(
  'Figure 9: <τ> & m',
  'temperature τ',
  [Point({'student.temperature': float(x)}, x, m) for m in ('m = 1', 'm = 3') for x in (16, 1)],
  PANELS,
  trials=2,
  caption='Half of <CIFAR-100>.',
  paper={AGREEMENT: {('m = 1', 1): (58.04, 0.5), ('m = 3', 16): 71.56}},
)
NAMES = Sweep(
  'Figure 3',
  'data',
  [Point({}, x) for x in ('baseline', 'mixup')],
  PANELS[:1],
  paper={AGREEMENT: {('', 'mixup'): 83.5}},
)
# The agreement of each run: m = 1 at τ = 16 and 1, m = 3 at τ = 16 and 1, in two trials. The last run is missing.
AGREEMENTS = [0.64, 0.57, 0.70, 0.62, 0.66, 0.59, 0.74]


def result(agreement):
  return {'splits': {'test': {'fidelity': {'top1_agreement': agreement}}}}


RESULTS = {i: result(value) for i, value in enumerate(AGREEMENTS)}
# The same with independent students, which are 3 points lower in the first trial and 5 in the second.
PAIRED = {
  i: {
    'splits': {
      'test': {
        'fidelity': {'top1_agreement': value},
        'independent': {'top1_agreement': value - (0.03 if i < 4 else 0.05)},
      }
    }
  }
  for i, value in enumerate(AGREEMENTS)
}
# 4 ± 12.706 · √2 / √2 points; m = 3 at τ = 1 has one pair.
HALF = 12.7062
NAMED_RESULTS = {0: result(0.79), 1: result(0.835)}


def written(folder, sweep=NUMBERS, results=RESULTS, **options):
  paths = sweep_page.write(epath.Path(folder), 'sweep', sweep, results, **options)
  return {path.suffix[1:]: path for path in paths}


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


def drawn(sweep, results):
  with figures.style(sweep.title):
    return sweep_figure.draw(sweep, sweep_lib.summarise(sweep, results))


@functools.cache
def shared(name):
  """A figure that tests only read."""
  return drawn(*{'numbers': (NUMBERS, RESULTS), 'paired': (NUMBERS, PAIRED)}[name])


def points(axes, hollow):
  """{colour: (xs, ys)} of the hollow markers, or of the others."""
  return {
    line.get_color(): tuple(
      np.round(np.asarray(data, float), 6).tolist() for data in line.get_data()
    )
    for line in axes.lines
    if line.get_marker() in sweep_figure.MARKERS
    and (line.get_markerfacecolor() == 'none') == hollow
  }


def bars(axes):
  """The ends of all drawn error bars, sorted."""
  lines = [of for of in axes.collections if hasattr(of, 'get_segments')]
  ends = [segment for bars in lines for segment in bars.get_segments()]
  return sorted(np.round(end, 6).tolist() for end in ends if np.size(end))


def bands(axes):
  """{colour: {x: (low, high)}} of the shaded bands where they have a width."""
  found = {}
  for band in axes.collections:
    if not hasattr(band, 'get_segments'):
      ends = {}
      for x, y in np.round(np.concatenate([path.vertices for path in band.get_paths()]), 6):
        ends.setdefault(x, set()).add(y)
      found[to_hex(band.get_facecolor()[0])] = {
        x: (min(ys), max(ys)) for x, ys in ends.items() if len(ys) > 1
      }
  return found


def page_table(text):
  rows = re.findall(r'<tr.*?</tr>', text, re.DOTALL)
  return [re.findall(r'<t[hd][^>]*>(?:<span>)?(.*?)(?:</span>)?</t[hd]>', row) for row in rows]


def test_lines_bands_and_bars_are_the_means_and_deviations():
  results = {**RESULTS, 7: result(0.66)}
  axes = drawn(NUMBERS, results).axes[0]
  blue, red = list(sweep_figure.COLORS.values())[:2]
  assert points(axes, hollow=False) == {blue: ([1, 16], [58, 65]), red: ([1, 16], [64, 72])}
  assert points(axes, hollow=True) == {blue: ([1], [58.04]), red: ([16], [71.56])}
  std = np.sqrt(2)  # of 57 and 59; those of 62 and 66, 70 and 74 are twice as much
  expected = {
    blue: {1: (58 - std, 58 + std), 16: (65 - std, 65 + std)},
    red: {1: (64 - 2 * std, 64 + 2 * std), 16: (72 - 2 * std, 72 + 2 * std)},
  }
  for color, band in bands(axes).items():
    for x, ends in expected[color].items():
      assert band[x] == pytest.approx(ends, abs=1e-5)
  assert bars(axes) == [[[1, 57.54], [1, 58.54]]]  # the paper's


def test_a_single_point_has_bars_in_place_of_a_band():
  sweep = dataclasses.replace(NUMBERS, points=NUMBERS.points[:1], paper={})
  axes = drawn(sweep, {0: result(0.64), 1: result(0.66)}).axes[0]
  std = np.sqrt(2)
  assert bars(axes) == np.round([[[16, 65 - std], [16, 65 + std]]], 6).tolist()
  assert bands(axes) == {}


@pytest.mark.parametrize(
  ('sweep', 'axis'),
  [(NUMBERS, 1), (dataclasses.replace(NUMBERS, points=[Point({}, x) for x in 'ab']), 0)],
  ids=['numbers', 'names'],
)
def test_the_difference_has_a_panel_with_intervals(sweep, axis):
  results = PAIRED if sweep is NUMBERS else {**PAIRED, 2: PAIRED[4], 3: PAIRED[5]}
  figure = drawn(dataclasses.replace(sweep, paper={}), results)
  assert len(figure.axes) == len(sweep.panels) + 1
  axes = figure.axes[2]
  label = (axes.get_xlabel, axes.get_ylabel)[axis]()
  assert label == 'student − independent:\nagreement (points)'
  ends = sorted((low[axis], high[axis]) for low, high in bars(axes))
  assert len(ends) == (3 if sweep is NUMBERS else 2)
  if sweep is NUMBERS:
    assert np.allclose(ends, [(4 - HALF, 4 + HALF)] * 3, atol=1e-3)
  low, high = (axes.get_xlim, axes.get_ylim)[axis]()
  assert low < min(ends)[0] < max(ends)[1] < high
  (legend,) = figure.legends
  assert 'independent student' in [text.get_text() for text in legend.get_texts()]


def test_the_independent_student_is_drawn_for_every_measure_of_fidelity():
  first, second, _ = shared('paired').axes
  crosses = [line for line in first.lines if line.get_marker() == 'x']
  ys = [np.round(line.get_ydata().astype(float), 6).tolist() for line in crosses]
  assert ys == [[54, 61], [59, 68]]
  assert not [line for line in second.lines if line.get_marker() == 'x']


def test_named_points_are_read_from_above():
  axes = drawn(NAMES, NAMED_RESULTS).axes[0]
  blue = sweep_figure.COLORS['series-1']
  assert points(axes, hollow=True) == {blue: ([83.5], [1])}
  assert points(axes, hollow=False) == {blue: ([79.0, 83.5], [0, 1])}
  assert [label.get_text() for label in axes.get_yticklabels()] == ['baseline', 'mixup']
  assert axes.get_ylim() == (1.5, -0.5)
  assert axes.get_xlabel() == 'agreement (%)'


def test_a_measure_without_results_is_a_blank_panel():
  first, second = shared('numbers').axes
  assert (first.get_title(), second.get_title()) == ('', 'no result yet')
  assert [axes.get_title('left') for axes in (first, second)] == ['a', 'b']
  assert points(second, hollow=False) == {}
  assert [axes.get_title() for axes in drawn(NUMBERS, {}).axes] == ['no result yet'] * 2


@pytest.mark.parametrize(
  ('xs', 'scale', 'labels'),
  [
    ((1, 4, 8, 16), 'log', ['1', '4', '8', '16']),
    ((0, 12500, 25000, 37500, 50000), 'linear', ['0', '12500', '25000', '37500', '50000']),
    ((0.0, 0.125, 0.25, 0.375, 0.5, 1.0), 'linear', ['0', '0.25', '0.5', '1']),
    (tuple(range(1, 13)), 'linear', ['1', '3', '5', '7', '9', '11']),
    ((300, 1000, 5000), 'log', ['300', '1000', '5000']),
    ((3,), 'linear', ['3']),
  ],
  ids=str,
)
def test_x_labels_are_the_sweeps_own_where_they_fit(xs, scale, labels):
  sweep = Sweep('x', 'x', [Point({}, x) for x in xs], PANELS[:1])
  axes = drawn(sweep, {i: result(0.5 + 0.01 * i) for i in range(len(xs))}).axes[0]
  assert axes.get_xscale() == scale
  assert [label.get_text() for label in axes.get_xticklabels()] == labels
  assert {*axes.get_xticks(), *axes.get_xticks(minor=True)} == set(xs)  # a tick at every point


def test_the_figure_says_what_its_bands_are_and_of_how_many_trials():
  bands = 'Bands: mean ± one standard deviation over n = {} trials.'
  for sweep, results, text in (
    (NUMBERS, RESULTS, bands.format('1 to 2')),
    (NUMBERS, {**RESULTS, 7: result(0.66)}, bands.format(2)),
    (NAMES, NAMED_RESULTS, ''),  # one trial has no spread
    (NUMBERS, PAIRED, 'independent: mean and 95 % interval over trials, paired.'),
    (dataclasses.replace(NAMES, trials=2), {0: result(0.7), 2: result(0.8)}, 'Bars: mean'),
  ):
    said = sweep_figure.spread_text(sweep, sweep_lib.summarise(sweep, results))
    assert text in said if text else said == ''
  assert bands.format('1 to 2') in ' '.join(shared('numbers')._supxlabel.get_text().split())


def test_the_figure_for_a_paper_is_narrow_and_its_text_small(files_of):
  """The page box of the PDF, in points: two columns of panels, 5.2 inches."""
  pdf = files_of['pdf'].read_bytes()
  box = re.search(rb'/MediaBox \[ ?0 0 ([0-9.]+) ([0-9.]+) ?\]', pdf)
  assert float(box[1]) == pytest.approx(72 * 5.18)
  assert sweep_figure.PAPER_POINTS == 8
  assert pdf.startswith(b'%PDF') and b'CreationDate' not in pdf


def test_one_series_without_the_papers_values_needs_no_legend():
  sweep = Sweep('x', 'x', [Point({}, 1), Point({}, 2)], PANELS[:1])
  assert drawn(sweep, RESULTS).legends == []


@pytest.mark.parametrize(
  ('sweep', 'labels'),
  [(NUMBERS, ['m = 1', 'm = 3', 'paper']), (NAMES, ['measured', 'paper'])],
  ids=['series', 'names'],
)
def test_panels_and_legend_do_not_overlap(sweep, labels):
  """Four panels, in two rows."""
  panels = [Panel(AGREEMENT, f'measure {i}', 100) for i in range(4)]
  figure = drawn(dataclasses.replace(sweep, panels=panels), RESULTS)
  figure.get_layout_engine().execute(figure)
  assert len(figure.axes) == 4
  (legend,) = figure.legends
  assert [text.get_text() for text in legend.get_texts()] == labels
  boxes = [legend.get_window_extent(), *(axes.get_tightbbox() for axes in figure.axes)]
  pairs = [(a, b) for i, a in enumerate(boxes) for b in boxes[:i]]
  assert not any(a.overlaps(b) for a, b in pairs)


@pytest.mark.parametrize(('x_label', 'num_panels'), [('data', 1), ('data, ' * 20, 4)])
def test_the_x_label_is_once_on_the_left_of_the_names(x_label, num_panels):
  panels = [Panel(AGREEMENT, f'panel {i}', 100) for i in range(num_panels)]
  sweep = dataclasses.replace(NAMES, x_label=x_label, panels=panels)
  figure = drawn(sweep, NAMED_RESULTS)
  figure.get_layout_engine().execute(figure)
  label = figure._supylabel.get_window_extent()
  assert 0 <= label.y0 < label.y1 <= figure.bbox.height
  names = [name for axes in figure.axes for name in axes.get_yticklabels() if name.get_visible()]
  assert {name.get_text() for name in names} == {'baseline', 'mixup'}
  assert 0 <= label.x0 < label.x1 <= min(name.get_window_extent().x0 for name in names)
  assert not any(axes.get_ylabel() for axes in figure.axes)


CLAIM = Claim('τ = 16 <helps>', AGREEMENT, ('m = 1', 16), ('m = 1', 1), 'higher', paper=-2.5)
CLAIMED = dataclasses.replace(NUMBERS, claims=[CLAIM])


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
  assert '# run 7: m = 3, temperature τ 1, trial 1 python launch.py --config.student' in plain
  assert '--config.seed=1 --config.evaluation.independent_seed=0' in plain
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


def test_png_has_a_white_background_and_colours(files_of):
  image = np.asarray(PIL.Image.open(files_of['png']).convert('RGBA'))
  assert image[0, 0].tolist() == image[-1, -1].tolist() == [255] * 4
  for color in list(sweep_figure.COLORS.values())[:2]:
    assert (image == [*bytes.fromhex(color[1:]), 255]).all(-1).any()


def test_a_file_is_what_savefig_writes_and_later_files_keep_the_layout():
  buffer = io.BytesIO()
  with figures.style(NAMES.title):
    rows = sweep_lib.summarise(NAMES, NAMED_RESULTS)
    of_matplotlib, ours = (sweep_figure.draw(NAMES, rows) for _ in range(2))
    of_matplotlib.savefig(buffer, facecolor='white', dpi=200, metadata={'Software': None})
    assert figures.image(ours, 'png') == buffer.getvalue()
    place = ours.axes[0].get_position().bounds
    assert place == pytest.approx(of_matplotlib.axes[0].get_position().bounds)
    ours.axes[0].set_xlabel('three\nmore\nlines')
    figures.image(ours, 'svg')
    assert ours.axes[0].get_position().bounds == place


def test_same_inputs_same_bytes_in_another_process(files_of, tmp_path):
  code = f'from tests.test_sweep_figure import written; written({str(tmp_path)!r})'
  root = epath.Path(__file__).parent.parent
  subprocess.run([sys.executable, '-c', code], check=True, cwd=root)
  for path in files_of.values():
    assert (tmp_path / path.name).read_bytes() == path.read_bytes(), path.name


def printed(sweep, results):
  console = rich.console.Console(width=80)
  with console.capture() as capture:
    console.print(*sweep_page.terminal_tables(sweep, results))
  text = capture.get()
  assert '…' not in text
  return [' '.join(line.split()) for line in text.splitlines()]


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
