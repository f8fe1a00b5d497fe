"""The report of a made-up run with known numbers."""

import base64
import html
import json
import os
import re
import sys

import numpy as np
import pytest
from conftest import ROOT
from etils import epath
from pages import Page
from reported_run import (
  CONFIG,
  LABELS,
  OTHER,
  QUALITY,
  RESULT,
  STUDENT,
  TEACHER_PROBS,
  Run,
  log_text,
  without_baseline,
)

from kdjax import data, errors
from kdjax.report import figures


def texts_of(figure, title) -> str:
  """A quicker `figures.svg`, with only the labels."""
  axes = figure.axes[0]
  legend = axes.get_legend()
  texts = [axes.get_ylabel(), *(text.get_text() for text in (legend.texts if legend else ()))]
  return f'<svg>{html.escape(" | ".join([title, *texts]))}</svg>'


@pytest.fixture
def run(tmp_path, monkeypatch) -> Run:
  """A run that a test may change and write. Its figures have only labels."""
  monkeypatch.setattr(figures, 'svg', texts_of)
  return Run(epath.Path(tmp_path))


@pytest.fixture(scope='module')
def written(tmp_path_factory) -> Run:
  """A run whose report was written with figures. Tests only read it."""
  run = Run(epath.Path(tmp_path_factory.mktemp('written')))
  assert run.write() is True
  return run


@pytest.fixture(scope='module')
def page(written) -> Page:
  return Page(written.page.read_text())


def test_headline_table_holds_every_number(page):
  student = ['student', '87.67', '0.0432', '97.12', '0.1250', '3.45']
  ensemble = ['ensemble', '–', '–', '98.34', '0.0625', '1.23']
  independent = ['independent student', '76.54', '0.0478', '–', '–', '–']
  members = [
    ['member 0', '92.00', '0.3100', '71.00', '0.8100', '1.00'],
    ['member 1', '93.00', '0.3200', '72.00', '0.8200', '2.00'],
  ]
  assert page.tables[0] == [
    ['', 'agreement (%)', 'KL (nats)', 'accuracy (%)', 'NLL (nats)', 'ECE (%)'],
    ['Train, 6 examples'],
    *members,
    ensemble,
    student,
    independent,
    ['Test, 6 examples'],
    *members,
    ensemble,
    student,
    independent,
    ['Distillation views, 6 examples'],
    ensemble,
    ['student', '99.11', *student[2:]],
    independent,
  ]


AGREEMENT = [
  'agreement (%)',
  '87.67 (85.01 to 90.02)',
  '76.54 (70.00 to 99.99)',
  '+11.13 (+7.00 to +15.00)',
  'higher',
]
KL = [
  'KL (nats)',
  '0.0432 (0.0402 to 0.0455)',
  '0.0478 (0.0300 to 0.0500)',
  '−0.0046 (−0.0125 to +0.0018)',
  'cannot be told',
]
KAPPA = ['Cohen’s κ', '0.8000 (0.7000 to 0.9000)', '–', '–', 'cannot be told']
HEADINGS = ['', 'student', 'independent student', 'difference', 'verdict']


def test_fidelity_has_its_controls_intervals_and_verdicts(page):
  assert page.tables[1] == [
    HEADINGS,
    ['Test examples: all (6)'],
    AGREEMENT,
    KL,
    ['Test examples: misclassified by the teacher (2)'],
    ['agreement (%)', '50.00', '–', '–', '–'],
    ['KL (nats)', '0.7000 (0.6000 to 0.8000)', '–', '–', '–'],
  ]


def test_every_measure_of_fidelity_on_every_split(page):
  on_views = ['agreement (%)', '99.11 (85.01 to 90.02)', *AGREEMENT[2:]]
  assert page.tables[2] == [
    HEADINGS,
    ['train (6)'],
    *(AGREEMENT, KL, KAPPA),
    ['test (6)'],
    *(AGREEMENT, KL, KAPPA),
    ['distillation views (6)'],
    *(on_views, KL, KAPPA),
  ]


def test_without_an_independent_student_the_page_says_what_is_missing(run):
  run.put(STUDENT, 'result.json', without_baseline())
  run.write()
  page = Page(run.page.read_text())
  assert 'Unknown: the student agrees with its teacher on 87.67 %' in page.text
  assert page.tables[1][2] == ['agreement (%)', AGREEMENT[1], '–', '–', '–']
  assert 'an independent student on' not in page.text and 'level line' not in page.text


def test_cka_by_feature_and_member(page):
  assert page.tables[3] == [['feature', 'member 0', 'member 1'], ['stage1', '0.988', '–']]


def test_analyses_of_the_student_come_in_their_order(run):
  assert run.write() is True
  assert 'Landscape' not in run.page.read_text()
  folder = run.workdir / 'analysis' / STUDENT
  folder.mkdir(parents=True)
  for place, name in ((1, 'a_curve'), (0, 'b_plane')):
    about = {'place': place, 'title': f'Title {name}', 'caption': f'Says <{name}>.', 'checks': {}}
    (folder / f'{name}.json').write_text(json.dumps(about))
    (folder / f'{name}.png').write_bytes(name.encode())
  assert run.write() is True
  text = run.page.read_text()
  assert text.index('Title b_plane') < text.index('Title a_curve')
  assert 'Says &lt;b_plane&gt;.' in text
  assert f'data:image/png;base64,{base64.b64encode(b"b_plane").decode()}' in text
  assert run.write() is False
  (folder / 'a_curve.png').write_bytes(b'another')
  assert run.write() is True
  assert base64.b64encode(b'another').decode() in run.page.read_text()
  folder.rename(run.workdir / 'analysis' / OTHER)
  assert run.write() is True
  assert 'Landscape' not in run.page.read_text()


def test_samples_of_the_gan(run):
  folder = run.workdir / 'gans' / 'ddd444'
  folder.mkdir(parents=True)
  (folder / 'samples.png').write_bytes(b'a picture')
  (folder / 'quality.json').write_text(json.dumps(QUALITY))
  assert run.write(gan_folder=folder) is True
  assert run.write(gan_folder=folder) is False
  page = Page(run.page.read_text())
  assert 'samples to test images 12.3 , training to test images 0.567' in page.text
  assert f'data:image/png;base64,{base64.b64encode(b"a picture").decode()}' in page.references
  (folder / 'samples.png').write_bytes(b'another')
  assert run.write(gan_folder=folder) is True


def test_texts_have_no_pictures(run):
  tokens = data.Split(np.ones((6, 5), np.int32), np.array(LABELS, np.int32))
  run.test_split = lambda: tokens
  assert run.write() is True
  page = Page(run.page.read_text())
  assert 'Test example 4 ' in page.text
  assert not [r for r in page.references if r.startswith('data:image')]


def test_answer_in_words(page):
  assert (
    'than a student of another teacher does? Yes: it agrees with its teacher on 87.67 % (85.01 to 90.02) of '
    'the test examples, a student of another teacher on 76.54 % (70.00 to 99.99). Its KL of 0.0432 nats '
    '(0.0402 to 0.0455) cannot be told from the other’s, 0.0478 nats (0.0300 to 0.0500).'
    in page.text
  )
  assert 'agrees with its teacher on 99.1 % (an independent student on 76.5 %). Its' in page.text
  assert (
    'accuracy is 97.1 %, that of the teacher, an ensemble of 2 networks, is 98.3 %' in page.text
  )


def test_the_foot_says_where_the_student_was_trained(page, run):
  assert (
    'trained on 2026-11-30 in 1,234 s by kdjax 0.1.0 (commit 0123456789ab, with changes), Python 3.12.1, '
    'jax 0.12.0, flax 0.12.1, on 8 × H200 (EPYC), 2 hosts.' in page.text
  )
  assert 'launch.py --config=shapes.py' in page.text
  (run.students / STUDENT / 'environment.json').unlink()
  run.write()
  assert 'Python 3.12.1' not in Page(run.page.read_text()).text


def test_page_is_self_contained_and_well_formed(written, page):
  text = written.page.read_text()
  assert len(page.ids) == len(set(page.ids)) > 0
  assert page.references
  for reference in page.references:
    if reference == '../../report.html':  # the index
      continue
    assert reference.startswith(('#', 'data:')), reference
    assert not reference.startswith('#') or reference[1:] in page.ids
  assert not re.search(r'https?://|@import|<script|url\((?!#)', text)
  assert text.count('<svg') == 6


@pytest.mark.parametrize(
  ('values', 'labels'),
  [((1, 5), ['1', '5']), ((0.02, 0.5), ['0.03', '0.1', '0.3']), ((1e-8, 1), ['1e-06', '0.01'])],
)
def test_axes_have_labels_at_any_scale(values, labels):
  svg = figures.loss([[{'epoch': v, 'train/loss': v} for v in values]], 'student', 'Loss', '')
  assert set(labels) <= {text.strip() for text in Page(svg).texts}


def test_the_loss_has_its_own_unit(run):
  student = CONFIG['student'] | {'loss': 'logit_mse'}
  run.put(STUDENT, 'config.json', json.dumps(CONFIG | {'student': student}))
  run.write()
  text = run.page.read_text()
  assert text.count('loss (squared logits)') == 1  # the student's
  assert text.count('loss (nats)') == 1  # the members'


def test_curves_of_fidelity_have_the_level_of_the_independent_student(page):
  assert page.texts.count('independent, test') == 2
  assert page.text.count('The level line is the trained independent student on test.') == 2


def test_members_that_are_missing_are_left_out_of_the_page(run):
  run.members[0].rmtree()
  assert run.write() is True
  assert run.page.read_text().count('member, test') == 1
  (run.workdir / 'teachers').rmtree()
  assert run.write() is True
  text = run.page.read_text()
  assert text.count('<svg') == 5 and 'member, test' not in text


def test_up_to_date_does_nothing(run, monkeypatch):
  run.write()
  before = run.page.read_bytes(), os.stat(run.page).st_mtime_ns
  monkeypatch.setitem(sys.modules, 'matplotlib', None)  # an import of it raises
  assert run.write() is False
  assert before == (run.page.read_bytes(), os.stat(run.page).st_mtime_ns)
  assert run.num_loads == 1


def test_matplotlib_is_not_imported_before_it_is_needed():
  paths = list((ROOT / 'kdjax').rglob('*.py'))
  assert len(paths) > 50
  for path in paths:
    assert not re.search(r'^(import|from) matplotlib', path.read_text(), re.MULTILINE), path


def test_other_inputs_are_written_again(run):
  run.write()
  page = run.page
  changes = {
    'result': lambda: run.put(STUDENT, 'result.json', json.dumps(RESULT | {'cka': {}})),
    'config': lambda: run.put(STUDENT, 'config.json', json.dumps(CONFIG | {'seed': 1})),
    'environment': (run.students / STUDENT / 'environment.json').unlink,
    'student log': lambda: run.put(STUDENT, 'metrics.jsonl', log_text(fidelity=False)),
    'member log': lambda: (run.members[1] / 'metrics.jsonl').write_text(log_text(fidelity=True)),
    'page': page.unlink,
    'one letter': lambda: page.write_text(page.read_text().replace('KL', 'kl', 1)),
  }
  for change, make in changes.items():
    make()
    assert run.write() is True, change
    assert run.write() is False, change


def test_a_page_is_about_its_student_alone(run):
  run.write()
  (run.students / STUDENT / 'logits.npz').copy(run.students / OTHER / 'logits.npz')
  run.put(OTHER, 'metrics.jsonl', log_text(fidelity=False))
  assert run.write() is False
  assert run.write(OTHER) is True
  pages = [Page((run.students / name / 'report.html').read_text()) for name in (STUDENT, OTHER)]
  assert [f'Student {name}' in page.text for page in pages for name in (STUDENT, OTHER)] == [
    *(True, False),
    *(False, True),
  ]


def test_same_inputs_same_bytes(run):
  """The page without figures, which test_sweep_page.py checks."""
  run.write()
  before = run.page.read_bytes()
  run.page.unlink()
  run.write()
  assert run.page.read_bytes() == before


def test_disagreements_largest_kl_first(page):
  assert page.examples == [
    'True class fox Teacher cat 98.0 % Student fox ✓ 98.0 % KL 4.447 nats',
    'True class <b>dog</b> Teacher <b>dog</b> ✓ 70.0 % Student cat 65.0 % KL 0.485 nats',
    'True class cat Teacher cat ✓ 51.0 % Student <b>dog</b> 51.0 % KL 0.002 nats',
  ]
  assert 'On 3 of 6 test examples' in page.text


def test_no_disagreement_shows_the_largest_kl(run):
  run.put_logits([[60, 35, 5], *TEACHER_PROBS[1:]])
  run.write()
  page = Page(run.page.read_text())
  assert "class is the ensemble's on every test example" in page.text
  assert len(page.examples) == 6
  assert page.examples[0].startswith('True class cat Teacher cat ✓ 90.0 % Student cat ✓ 60.0 %')


def test_markup_in_names_is_escaped(run):
  config = CONFIG | {'dataset': {'name': '<i>shapes</i>'}}
  run.put(STUDENT, 'config.json', json.dumps(config))
  run.write()
  text = run.page.read_text()
  assert '<b>dog' not in text and '<i>shapes' not in text
  assert '&lt;b&gt;dog&lt;/b&gt;' in text and '&lt;i&gt;shapes' in text


def test_damaged_logits_name_the_file(run):
  path = run.students / STUDENT / 'logits.npz'
  path.write_bytes(path.read_bytes()[:100])
  with pytest.raises(errors.DamageError, match=r'logits\.npz is damaged'):
    run.write()
  assert not run.page.exists()
