"""The notebooks run as they are, and what they show is what the run found."""

import base64
import contextlib
import dataclasses
import importlib.util
import io
import pathlib
import re
import subprocess
import sys
import types

import jax
import matplotlib.pyplot as plt
import nbformat
import numpy as np
import PIL.Image
import pytest
from conftest import ROOT, copied
from etils import epath
from matplotlib.figure import Figure

from analysis import runs
from analysis.parts import PARTS
from kdjax import config as config_lib
from kdjax import metrics
from kdjax.runtime import files
from kdjax.stages import evaluation, pipeline
from kdjax.stages.experiment import Experiment
from tests import notebooks
from tests.notebooks import FROM_PYTHON, INSPECT, STORY

PICTURE = PIL.Image.new('RGB', (3, 2), 'red')  # of an analysis that was done before


def source(cell: str) -> str:
  return next(c.source for c in notebooks.read(INSPECT).cells if c.id == cell)


class Executed:
  """The notebook after its execution, and the run that it looked at."""

  def __init__(self, notebook: nbformat.NotebookNode, run: Experiment):
    self.run, self.result = run, evaluation.result(run)
    self.outputs = {c.id: c.outputs for c in notebook.cells if c.cell_type == 'code'}

  def printed(self, cell: str) -> str:
    return ''.join(o.text for o in self.outputs[cell] if o.get('name') == 'stdout')

  def shown(self, cell: str, kind: str) -> list[str]:
    return [o.data[kind] for o in self.outputs[cell] if kind in o.get('data', {})]

  def image(self, cell: str) -> PIL.Image.Image:
    (encoded,) = self.shown(cell, 'image/png')
    return PIL.Image.open(io.BytesIO(base64.b64decode(encoded)))


def state_of(folder) -> dict[str, tuple[int, int]]:
  """All that is in a folder, with sizes and times."""
  found = {path: path.stat() for path in pathlib.Path(folder).rglob('*')}
  return {str(path): (stat.st_size, stat.st_mtime_ns) for path, stat in found.items()}


@pytest.fixture(scope='module')
def executed(finished, tmp_path_factory) -> Executed:
  run = copied(finished, tmp_path_factory.mktemp('notebook') / 'workdir')
  analyses = runs.load(run.workdir).folder
  analyses.mkdir(parents=True)
  PICTURE.save(analyses / 'earlier.png')
  files.write_json(
    analyses / 'earlier.json', {'title': 'An earlier part', 'caption': 'It found 3.'}
  )
  before = state_of(run.workdir)
  notebook = notebooks.execute(INSPECT, {'KDJAX_WORKDIR': str(run.workdir)})
  assert state_of(run.workdir) == before  # it may be a bucket that cannot be written to
  return Executed(notebook, run)


# Outputs.


def test_it_finds_the_student_and_its_checkpoints(executed):
  outputs = [o for of_cell in executed.outputs.values() for o in of_cell]
  stderr = ''.join(o.text for o in outputs if o.get('name') == 'stderr')
  assert all('plane: ' in line for line in stderr.splitlines())  # progress; no warning
  steps = runs.load(executed.run.workdir).steps
  printed = executed.printed('load')
  assert f'student {executed.run.folders.student.name}, of 2 teachers' in printed
  assert f'{len(steps)} checkpoints of the student: after the steps {steps}' in printed
  lines = executed.printed('checkpoints').splitlines()
  assert [line.partition(':')[0] for line in lines] == [f'step {step}' for step in steps]


def as_result_has_it(executed: Executed) -> tuple[str, str]:
  """Agreement and KL on the test set as the notebook writes them."""
  test = executed.result['splits']['test']
  values, intervals = test['fidelity'], test['intervals']['fidelity']
  low, high = intervals['top1_agreement']
  agreement = f'{100 * values["top1_agreement"]:.2f} % ({100 * low:.2f} to {100 * high:.2f})'
  low, high = intervals['predictive_kl']
  return agreement, f'{values["predictive_kl"]:.4f} nats ({low:.4f} to {high:.4f})'


def test_fidelity_that_it_reads_and_computes_is_that_of_the_result(executed):
  agreement, kl = as_result_has_it(executed)
  assert f'agreement {agreement}\n' in executed.printed('metrics')
  of_student, _, of_teacher = executed.printed('predictions').partition('teacher 0')
  assert f'agreement with the ensemble {agreement}\n' in of_student
  assert f'KL from the ensemble        {kl}\n' in of_student
  last = executed.printed('checkpoints').splitlines()[-1]
  assert last.endswith(f'agreement {agreement}, KL {kl}')
  # The member's own logits; those of the result were rounded by the store, so that ties may differ.
  member = executed.result['splits']['test']['members'][0]
  found = [float(x) for x in re.findall(r' ([\d.]+) (?:%|nats) \(', of_teacher)]
  expected = [100 * member['accuracy'], 100 * member['top1_agreement'], member['predictive_kl']]
  np.testing.assert_allclose(found[:2], expected[:2], atol=1)
  np.testing.assert_allclose(found[2], expected[2], atol=2e-4)


def test_the_table_is_that_of_the_terminal(executed):
  (table,) = executed.shown('metrics', 'text/html')
  test = executed.result['splits']['test']
  for who in ('student', 'teacher'):
    assert f'{100 * test[who]["accuracy"]:.2f}' in table
    assert f'{test[who]["nll"]:.4f}' in table


def test_distances(executed):
  study = runs.load(executed.run.workdir)
  points = {'initial': study.student(0), 'student': study.student()}
  points |= {f'teacher {i}': study.member(i) for i in range(2)}
  flat = [
    np.concatenate([x.ravel() for x in jax.tree.leaves(p['params'])]) for p in points.values()
  ]
  lines = executed.printed('weights').splitlines()
  assert re.split(r'  +', lines[0].strip()) == list(points)
  for name, row, line in zip(points, flat, lines[1:], strict=True):
    cells = re.split(r'  +', line.strip())
    assert cells[0] == name
    expected = [np.linalg.norm(row - other) for other in flat]
    np.testing.assert_allclose([float(cell) for cell in cells[1:]], expected, atol=0.006)


def test_the_ends_of_the_line_are_corners_of_the_plane(executed):
  """Both are measured on the same examples, one point at a time and as one of many."""
  (text,) = executed.shown('plane', 'text/markdown')
  for name in ('teacher 0', 'student'):
    on_line = re.search(rf'{name}: ([\d.]+) nats \(([\d.]+) to ([\d.]+)', executed.printed('line'))
    (row,) = [line for line in text.splitlines() if line.startswith(f'| {name} ')]
    corner = re.search(r'([\d.]+) \[([\d.]+), ([\d.]+)\]', row.split('|')[3])
    line, corner = ([float(x) for x in match.groups()] for match in (on_line, corner))
    assert line[0] > 0.001
    np.testing.assert_allclose(line, corner, rtol=0.01, atol=1e-4)


def test_figures(executed):
  panels = {'curves': 3, 'examples': 2 * 5, 'checkpoints': 3, 'line': 3}
  for cell, count in panels.items():
    assert f'with {count} Axes' in executed.shown(cell, 'text/plain')[0]
  for cell in (*panels, 'plane'):
    pixels = np.asarray(executed.image(cell).convert('L'))
    assert min(pixels.shape) > 200
    assert pixels.std() > 10
    assert pixels[0, 0] == 255  # legible in a dark notebook too


def test_what_was_analysed_before_is_shown(executed):
  assert executed.shown('rest', 'text/markdown') == ['### An earlier part\n\nIt found 3.']
  image = executed.image('rest')
  assert image.size == PICTURE.size and image.getpixel((0, 0)) == (255, 0, 0)


def test_distillation_from_a_notebook(tmp_path):
  notebook = notebooks.execute(FROM_PYTHON, {'KDJAX_WORKDIR': str(tmp_path), 'KDJAX_EPOCHS': '1'})
  outputs = {c.id: c.outputs for c in notebook.cells if c.cell_type == 'code'}
  text = {
    cell: ''.join(o.get('text', '') + o.get('data', {}).get('text/plain', '') for o in found)
    for cell, found in outputs.items()
  }
  (path,) = tmp_path.glob('students/*/result.json')
  test = files.read_json(epath.Path(path))['splits']['test']
  shown = outputs['distil'][-1].data['text/plain']
  assert shown.startswith(f'Result of the student {path.parent.name}')
  for name in ('distil', 'fidelity'):
    assert f'{100 * test["fidelity"]["top1_agreement"]:.2f}' in text[name]
  assert f"'{test['difference']['top1_agreement']['verdict']}'" in text['fidelity']
  assert "'kernel': (64, 32)" in text['open']
  assert "'student.model.name'" not in text['open']
  assert '(512, 8, 8, 1) float32 (512, 10)' in text['elsewhere']
  assert 'teachers: done' not in text['again']  # the class of the notebook has the same fingerprint


def test_the_story_is_that_of_the_kept_results(monkeypatch):
  """Its outputs are those of docs/results. If this fails: python -m tests.notebooks."""
  cells = [cell for cell in notebooks.read(STORY).cells if cell.cell_type == 'code']
  stored = {
    cell.id: (
      ''.join(o.text for o in cell.outputs if o.get('name') == 'stdout'),
      sum('image/png' in o.get('data', {}) for o in cell.outputs),
    )
    for cell in cells
  }
  monkeypatch.setattr(plt, 'show', lambda: None)
  names, again = {}, {}
  for cell in cells:
    with contextlib.redirect_stdout(io.StringIO()) as printed:
      exec(cell.source, names)
    again[cell.id] = printed.getvalue(), len(plt.get_fignums())
    plt.close('all')
  assert again == stored
  assert sum(count for _, count in again.values()) == 2
  rows = (ROOT / 'docs' / 'results' / 'fig6b_lambda_small.csv').read_text().splitlines()
  first = dict(zip(rows[0].split(','), rows[1].split(','), strict=False))
  agreement = 100 * float(first['splits.test.fidelity.top1_agreement'])
  assert f'agreement with its teacher, test images:   {agreement:.1f} %' in again['student'][0]


# Cells that do something else elsewhere.


def test_a_plane_that_was_measured_is_drawn(tmp_path, monkeypatch):
  figure, drawn, shown = Figure(), [], []
  part = dataclasses.replace(
    PARTS['plane'],
    compute=lambda *_: pytest.fail('it was measured again'),
    draw=lambda arrays: drawn.append(arrays) or figure,
    caption=lambda arrays: f'{arrays["x"].sum()}',
    table=lambda arrays: [['network', 'loss'], ['student', '0.5']],
    unavailable=lambda study: None,
  )
  monkeypatch.setitem(PARTS, 'plane', part)
  files.write_arrays(tmp_path / 'plane.npz', {'x': np.arange(4)})
  study = types.SimpleNamespace(folder=tmp_path)
  names = {'study': study, 'files': files, 'Markdown': str, 'display': lambda *x: shown.extend(x)}
  exec(source('plane'), names)
  assert drawn[0]['x'].tolist() == [0, 1, 2, 3]
  assert shown == [figure, '6\n\n| network | loss |\n| --- | --- |\n| student | 0.5 |']


def test_texts_are_not_drawn(capsys):
  """The test set of a run on reviews: tokens instead of images."""
  split = types.SimpleNamespace(inputs_N=np.zeros((7, 5), np.int32))
  description = types.SimpleNamespace(class_names=('neg', 'pos'))
  names = {
    'np': np,
    'metrics': metrics,
    'study': types.SimpleNamespace(
      experiment=types.SimpleNamespace(data=types.SimpleNamespace(description=description))
    ),
    'test': types.SimpleNamespace(split=split),
    'student_NC': np.zeros((7, 2)),
    'ensemble_NC': np.full((7, 2), np.log(0.5)),
  }
  exec(source('examples'), names)  # has no plt to draw with
  assert capsys.readouterr().out == 'The examples are texts, which are not drawn.\n'


def test_a_student_alone_has_no_line(capsys):
  """A student of another architecture than its teacher, without initial weights and siblings."""
  exec(source('line'), {'np': np, 'points': {'student': {}}})
  assert 'no line to draw' in capsys.readouterr().out


def test_installation_where_kdjax_is_missing_and_only_there(monkeypatch):
  commands = []
  monkeypatch.setattr(subprocess, 'run', lambda command, check: commands.append(command))
  monkeypatch.setattr(sys, 'path', sys.path.copy())
  exec(source('install'), {})
  assert commands == []
  monkeypatch.setattr(importlib.util, 'find_spec', lambda name: None)
  exec(source('install'), {})
  (clone, install) = commands
  assert clone[:3] == ['git', 'clone', f'https://github.com/{notebooks.repository()}']
  assert install[:4] == [sys.executable, '-m', 'pip', 'install'] and clone[3] in install
  assert sys.path[0] == str(pathlib.Path(clone[3]).resolve())


@pytest.mark.parametrize(('own', 'found'), [('', []), ('', ['result.json']), ('gs://a/b', [])])
def test_the_default_experiment_is_trained_where_there_is_no_workdir(own, found, monkeypatch):
  calls = []
  monkeypatch.setattr(pipeline, 'run', lambda *arguments: calls.append(arguments))
  monkeypatch.setattr(pathlib.Path, 'glob', lambda *_: iter(found))
  monkeypatch.setenv('KDJAX_WORKDIR', own)
  names = {'pathlib': pathlib}
  exec(source('train').removeprefix('%matplotlib inline\n'), names)
  default = ROOT / 'runs' / 'digits_resnet'
  assert names['WORKDIR'] == (own or default)
  assert len(calls) == (not own and not found)
  if calls:
    ((config, workdir, stages),) = calls
    assert str(config) == str(config_lib.load(str(ROOT / 'configs' / 'digits_resnet.py'))[0])
    assert workdir == epath.Path(default) and stages == list(pipeline.STAGES)


# The files.


@pytest.mark.parametrize('path', [INSPECT, FROM_PYTHON], ids=lambda path: path.name)
def test_outputs_are_those_of_the_code_without_paths_or_foreign_addresses(path):
  notebook = notebooks.read(path)
  nbformat.validate(notebook)
  assert set(notebook.metadata) == {'kernelspec', 'kdjax'}
  assert notebook.metadata.kernelspec.name == 'python3'
  digest = {'code': notebooks.code_digest(notebook)}
  assert notebook.metadata.kdjax == digest, 'Run python -m tests.notebooks'
  code = [cell for cell in notebook.cells if cell.cell_type == 'code']
  assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
  assert sum(bool(cell.outputs) for cell in code) > len(code) / 2
  outputs = [output for cell in code for output in cell.outputs]
  assert not [o for o in outputs if o.output_type == 'error']
  log = ''.join(o.text for o in outputs if o.get('name') == 'stderr').splitlines()
  assert all(notebooks.LOG_LINE.match(line) for line in log)
  pictures = [o.data['image/png'] for o in outputs if 'image/png' in o.get('data', {})]
  assert all(len(encoded) < 80_000 for encoded in pictures)
  assert not any(cell.metadata for cell in notebook.cells)
  texts = [cell.source for cell in notebook.cells]
  for output in outputs:
    texts += [output.get('text', '')]
    texts += [x for kind, x in output.get('data', {}).items() if kind.startswith('text/')]
  for text in texts:
    assert not re.search(r'(?:^|[\'"`\s(=])~?/\w+/\w', text, re.MULTILINE)  # an absolute path
    own = text.replace(f'https://github.com/{notebooks.repository()}', '')
    assert not re.search(r'https?:|gs://\w', own)


def test_the_address_of_the_repository_is_that_of_setup_py(monkeypatch):
  readme = (ROOT / 'README.md').read_text()
  place = f'{notebooks.repository()}/blob/main/{INSPECT.relative_to(ROOT)}'
  assert f'(https://colab.research.google.com/github/{place})' in readme
  for text in (readme, INSPECT.read_text(), FROM_PYTHON.read_text()):
    assert notebooks.addressed(text) == text, 'Run python -m tests.notebooks'
  monkeypatch.setattr(notebooks, 'repository', lambda: 'me/fork')
  assert '(https://colab.research.google.com/github/me/fork/blob/main/' in notebooks.addressed(
    readme
  )
  assert "REPOSITORY = 'https://github.com/me/fork'\n" in notebooks.addressed(source('install'))


def test_a_stored_notebook_has_no_warnings_and_no_folder_of_this_machine():
  buffer = io.BytesIO()
  PIL.Image.effect_noise((40, 40), 99).save(buffer, 'PNG')
  encoded = base64.b64encode(buffer.getvalue()).decode()
  outputs = [
    nbformat.v4.new_output('stream', name='stderr', text='/x/y.py: UserWarning\n12:00:00 done\n'),
    nbformat.v4.new_output('stream', name='stderr', text='UserWarning\n'),
    nbformat.v4.new_output('display_data', {'text/plain': 'in /x/runs/a', 'image/png': encoded}),
  ]
  notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell('1', outputs=outputs)])
  notebook.metadata = nbformat.from_dict({'kernelspec': {'name': 'python3'}, 'widgets': {}})
  (cell,) = notebooks.stored(notebook, {'/x/': ''}).cells
  assert [o.get('text') for o in cell.outputs] == ['12:00:00 done\n', None]
  data = cell.outputs[1].data
  assert data['text/plain'] == 'in runs/a' and len(data['image/png']) < len(encoded)
  assert set(notebook.metadata) == {'kernelspec', 'kdjax'}
