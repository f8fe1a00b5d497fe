"""The index and results.csv of made-up runs with known numbers."""

import json
import os
import re
import shutil
import subprocess

import pytest
from etils import epath
from pages import Page
from reported_run import CONFIG, OTHER, RESULT, SPLIT, STUDENT, Run, without_baseline

from kdjax.report import figures, index

THIRD = 'ccc333'
HEADINGS = ['independent student', 'difference', 'verdict']
AGREEMENT = ['87.67', '76.54', '+11.13 (+7.00 to +15.00)', 'higher']
KL = ['0.0432', '0.0478', '−0.0046 (−0.0125 to +0.0018)', 'cannot be told']


def indexed(folder) -> Run:
  """Three students that differ in temperature and loss; one has a page and one no independent student."""
  run = Run(epath.Path(folder))
  run.page.write_text('<p>the page</p>')
  student = CONFIG['student'] | {'temperature': 10.0, 'loss': '<i>Mine</i>'}
  run.put(THIRD, 'config.json', json.dumps(CONFIG | {'student': student}))
  run.put(THIRD, 'result.json', without_baseline(0.905))
  assert run.write_index() is True
  return run


@pytest.fixture(scope='module')
def written(tmp_path_factory) -> Run:
  """An index that tests only read."""
  return indexed(tmp_path_factory.mktemp('written'))


@pytest.fixture
def run(tmp_path) -> Run:
  return indexed(tmp_path)


def named(loss, temperature):
  """The name of a student, in which no line begins with an equals sign."""
  return f'loss\u00a0= {loss}, temperature\u00a0= {temperature}'


def test_the_index_has_a_row_for_each_student_and_a_column_for_what_differs(written):
  page = Page(written.index.read_text())
  differing = ['student.loss', 'student.temperature']
  fidelity = ['agreement (%)', *HEADINGS, 'KL (nats)', *HEADINGS, 'accuracy (%)']
  nothing = ['–', '–', '–']
  assert page.tables == [
    [
      ['student', *fidelity, *differing],
      [
        f'{named("<i>Mine</i>", 10.0)}{THIRD}',
        *('90.50', *nothing, '0.0432', *nothing, '97.12'),
        *('<i>Mine</i>', '10.0'),
      ],
      [
        f'{named("cross_entropy", 1.0)}{OTHER}',
        *(*AGREEMENT, *KL, '97.12', 'cross_entropy', '1.0'),
      ],
      [
        f'{named("cross_entropy", 4.0)}{STUDENT}',
        *(*AGREEMENT, *KL, '97.12', 'cross_entropy', '4.0'),
      ],
    ]
  ]
  assert 'of another teacher does? Yes: 2; Unknown: 1.' in page.text
  assert 'Distillation on shapes: 3 students' in page.text


def test_what_is_sorted_by_are_numbers(written):
  keys = re.findall(r'<t[dh][^>]* data-key="([^"]*)">', written.index.read_text())
  size = len(keys) // 3
  third, other, student = (keys[i : i + size] for i in range(0, 3 * size, size))
  assert third == [
    named('&lt;i&gt;Mine&lt;/i&gt;', 10.0),
    *('0.905', '', '', '', '0.0432', '', '', '', '0.9712', '&lt;i&gt;Mine&lt;/i&gt;', '10.0'),
  ]
  assert other[1:] == [
    *('0.8767', '0.7654', '0.1113', 'higher', '0.0432', '0.0478', '-0.0046', 'cannot be told'),
    *('0.9712', 'cross_entropy', '1.0'),
  ]
  assert student[-1] == '4.0'


def test_links_lead_to_the_pages_that_are_there(run):
  links = [link for link in Page(run.index.read_text()).references if link != 'data:,']
  assert links == [f'students/{STUDENT}/report.html']
  (run.students / THIRD / 'report.html').write_text('')
  assert run.write_index() is True
  links = [link for link in Page(run.index.read_text()).references if link != 'data:,']
  assert links == [f'students/{name}/report.html' for name in (THIRD, STUDENT)]
  assert all((run.workdir / link).exists() for link in links)


def test_the_index_needs_nothing_from_elsewhere_and_escapes(written):
  text = written.index.read_text()
  assert not re.search(r'https?://|@import|<script [^>]*src|url\((?!#)|<i>', text)
  assert text.count('&lt;i&gt;Mine&lt;/i&gt;') == 5  # name and cell with their keys, and a choice
  choices = re.findall(r'<option[^>]*>(.*?)</option>', text)  # in the order of their values
  assert choices == [
    *('any', '&lt;i&gt;Mine&lt;/i&gt;', 'cross_entropy'),
    *('any', '1.0', '4.0', '10.0'),
  ]


def test_fields_of_any_kind_are_shown():
  assert index._field(None) == index.Cell('–', None)
  assert index._field('') == index.Cell("''", "''")
  assert index._field(['crop', 'flip']) == index.Cell('(crop, flip)', '(crop, flip)')
  assert index._field(True) == index.Cell('True', 'True')
  names = ['model.width', 'student.model.width', 'seed']
  assert [index._short(name, names) for name in names] == names
  assert index._short('model.depth', names) == 'depth'


def test_the_index_of_a_single_student_is_its_page(tmp_path, monkeypatch):
  monkeypatch.setattr(figures, 'svg', lambda *_: '')
  run = Run(epath.Path(tmp_path))
  (run.students / OTHER / 'result.json').unlink()
  assert run.write() is True and run.write_index() is True
  page, index_page = (Page(path.read_text()) for path in (run.page, run.index))
  assert index_page.tables == page.tables
  assert index_page.text == page.text.replace('All students of this folder ', '')
  assert set(page.references) - set(index_page.references) == {'../../report.html'}
  assert len(run.rows()) == 1
  assert run.write_index() is False
  environment = run.students / STUDENT / 'environment.json'
  environment.unlink()
  assert run.write() is True and run.write_index() is True  # its page has changed
  assert 'trained on 2026' not in run.index.read_text()


def test_the_index_is_written_again_if_anything_changes(run):
  other = run.students / OTHER
  changes = {
    'result': lambda: run.put(OTHER, 'result.json', without_baseline(0.5)),
    'config': lambda: run.put(OTHER, 'config.json', json.dumps(CONFIG)),
    'page': run.page.unlink,
    'index': lambda: run.index.write_text(run.index.read_text().replace('87.67', '87.68')),
    'table': run.table.unlink,
    'student': (other / 'result.json').unlink,
  }
  for change, make in changes.items():
    make()
    assert run.write_index() is True, change
    assert len(run.rows()) == (2 if change == 'student' else 3)
    assert '87.68' not in run.index.read_text()
    assert run.write_index() is False, change


def test_the_same_students_give_the_same_bytes(run):
  def state():
    return [(path.read_bytes(), os.stat(path).st_mtime_ns) for path in (run.index, run.table)]

  before = state()
  assert run.write_index() is False and state() == before
  run.index.unlink()
  assert run.write_index() is True
  assert run.index.read_bytes() == before[0][0]


def test_results_csv(written):
  first, second, third = written.rows()
  assert [row['fingerprint'] for row in (first, second, third)] == [STUDENT, OTHER, THIRD]
  assert (first['student.temperature'], second['student.temperature']) == ('4.0', '1.0')
  assert first['predictions.augmentation'] == '(crop, flip)'
  assert first['dataset.data_dir'] == ''
  assert float(first['test.student.accuracy']) == 0.9712
  assert float(first['test.teacher.nll']) == 0.0625
  assert float(first['distillation.fidelity.top1_agreement']) == 0.9911
  assert first['test.intervals.fidelity.top1_agreement.high'] == '0.9002'
  assert first['test.difference.predictive_kl.interval.low'] == '-0.0125'
  assert first['test.difference.predictive_kl.verdict'] == 'cannot be told'
  assert first['test.difference.cohens_kappa.mean'] == ''
  assert third['test.difference.predictive_kl.verdict'] == ''


def test_results_csv_has_the_columns_of_all_students(run):
  validated = {'splits': {'val': SPLIT, **RESULT['splits']}}
  run.put(OTHER, 'result.json', json.dumps(validated))
  run.write_index()
  first, second, _ = run.rows()
  assert first['val.student.accuracy'] == ''
  assert float(second['val.student.accuracy']) == 0.9712


CHROMIUM = shutil.which('chromium') or shutil.which('google-chrome')


ALL = [THIRD, OTHER, STUDENT]
# Actions in a browser, and the students that it then shows, in order. Headings count from 0.
ACTIONS = {
  '': ALL,
  'heads[11].click();': [OTHER, STUDENT, THIRD],  # by temperature: 1, 4, 10
  'heads[11].click(); heads[11].click();': [THIRD, STUDENT, OTHER],
  'heads[1].click();': [OTHER, STUDENT, THIRD],  # by agreement
  'heads[3].click(); heads[3].click();': [OTHER, STUDENT, THIRD],  # which THIRD lacks
  'form.elements.words.value = "MINE";': [THIRD],
  'selects[1].value = "4.0";': [STUDENT],
  'selects[0].value = "cross_entropy";': [OTHER, STUDENT],
  'selects[0].value = "<i>Mine</i>"; selects[1].value = "4.0";': [],
}


@pytest.mark.skipif(CHROMIUM is None, reason='needs a browser')
def test_rows_are_sorted_and_filtered_in_a_browser(written, tmp_path):
  script = """<script>
    const first = [...rows], shown = [];
    for (const act of [ACTIONS]) {
      form.reset();
      heads.forEach(head => head.removeAttribute('aria-sort'));
      rows.splice(0, rows.length, ...first);
      body.append(...rows);
      act();
      form.oninput();
      const names = [...body.rows].filter(row => !row.hidden).map(row => row.querySelector('code').textContent);
      shown.push([names, form.querySelector('output').value]);
    }
    document.body.textContent = JSON.stringify(shown);
  </script></body>""".replace('ACTIONS', ', '.join(f'() => {{{act}}}' for act in ACTIONS))
  page = tmp_path / 'driven.html'
  page.write_text(written.index.read_text().replace('</body>', script))
  how = ['--headless', '--no-sandbox', '--disable-gpu', '--dump-dom']
  command = [CHROMIUM, *how, f'--user-data-dir={tmp_path / "browser"}', f'file://{page}']
  shown = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120).stdout
  (body,) = re.findall(r'<body[^>]*>(.*)</body>', shown, re.DOTALL)
  found = dict(zip(ACTIONS, json.loads(body), strict=True))
  assert found == {act: [of, f'{len(of)} of 3 students'] for act, of in ACTIONS.items()}
