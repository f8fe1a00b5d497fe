"""The results in docs/results, and the tables that follow from them."""

import csv
import dataclasses
import json
import shutil

import pytest
from checked_config import ROOT
from etils import epath

from configs.paper import results, times
from kdjax import config as config_lib
from kdjax.config import sweep as sweep_lib
from kdjax.errors import MissingInputError, UserError
from kdjax.report import figures, sweep_page
from kdjax.runtime import files
from kdjax.stages import evaluation
from kdjax.stages.experiment import Experiment

SPEC = 'configs/paper/fig10_ensemble_size.py:smoke'  # m = 1, 2, 4; two trials
NAME = 'fig10_ensemble_size_smoke'
MARKERS = '# Title\n\n<!-- results: {} -->\nold\n<!-- end of results -->\nend\n'


def pretend_finished(workdir, indices):
  """Writes the files of a student's stages: agreement 70 + m % in trial 0 and 71 + 2 m % in trial 1."""
  sweep = config_lib.load_sweep(SPEC)
  configs, _ = config_lib.sweep_configs(SPEC, sweep, [])
  for run in sweep_lib.expand(sweep):
    if run.index not in indices:
      continue
    this = Experiment(configs[run.index], workdir)
    agreement = 0.70 + 0.01 * run.trial + 0.01 * run.point.x * (1 + run.trial)
    test = {
      'fidelity': {'top1_agreement': agreement},
      'independent': {'top1_agreement': agreement - 0.05},
      'student': {'accuracy': 0.5},
      'teacher': {'accuracy': 0.5},
    }
    settings = dict(this.config.evaluation.to_dict())
    del settings['batch_size']
    content = {
      'version': evaluation.VERSION,
      'fingerprints': {'student': this.folders.student.name},
      'evaluation': settings,
      'splits': {'test': test},
    }
    files.write_json(this.folders.student / 'result.json', content)
    (this.folders.student / 'logits.npz').write_bytes(b'')
    # 10 steps of 64 at 128 examples a second, and 5 at 64: 5 s and 5 s.
    rows = [{'step': 10, 'examples_per_second': 128.0}, {'step': 15, 'examples_per_second': 64.0}]
    (this.folders.student / 'metrics.jsonl').write_bytes(files.json_lines(rows))


@pytest.fixture(autouse=True, scope='module')
def in_root():
  with pytest.MonkeyPatch.context() as monkeypatch:
    monkeypatch.chdir(ROOT)
    yield


@pytest.fixture(scope='module')
def collected(tmp_path_factory):
  """A folder whose docs/results has a sweep without one run, of m = 4. Tests only read it."""
  folder = epath.Path(tmp_path_factory.mktemp('collected'))
  pretend_finished(folder / 'runs', (0, 1, 2, 3, 4))
  results.collect(SPEC, folder / 'runs', folder / 'root' / 'docs' / 'results', 'JAX 1')
  return folder / 'root'


@pytest.fixture
def csv_path(collected, tmp_path):
  """The csv of a copy that a test may change."""
  shutil.copytree(collected, tmp_path, dirs_exist_ok=True)
  return epath.Path(tmp_path) / 'docs' / 'results' / f'{NAME}.csv'


def test_a_row_for_each_finished_run_with_the_command_that_repeats_it(collected):
  folder = collected / 'docs' / 'results'
  assert {path.name for path in folder.iterdir()} == {f'{NAME}.{s}' for s in results.KEPT}
  rows = list(csv.DictReader((folder / f'{NAME}.csv').read_text().splitlines()))
  assert [(row['run'], row['x'], row['seed']) for row in rows] == [
    *(('0', '1', '0'), ('1', '2', '0'), ('2', '4', '0')),
    *(('3', '1', '1'), ('4', '2', '1')),
  ]
  last = rows[-1]
  assert float(last['splits.test.fidelity.top1_agreement']) == pytest.approx(0.75)
  assert float(last['splits.test.independent.top1_agreement']) == pytest.approx(0.70)
  assert (last['seconds'], last['environment']) == ('10', 'JAX 1')
  assert last['evaluation.independent_seed'] == '0' and len(last['fingerprint.student']) == 12
  assert last['command'] == f'python launch.py --config={SPEC} --sweep_index=4'


def test_a_partial_sweep_is_reported_and_says_what_is_missing(collected):
  summary = files.read_json(collected / 'docs' / 'results' / f'{NAME}.json')
  assert (summary['num_runs'], summary['num_finished']) == (6, 5)
  (agreement, *_) = summary['claims']
  # m = 4 against m = 1, in trial 0 alone: 74 − 71.
  assert agreement['effect'] == {'mean': pytest.approx(3), 'low': None, 'high': None}
  assert (agreement['n'], agreement['verdict'], agreement['paper']) == (1, 'not decided', None)
  text = results.updated(MARKERS.format('claims'), collected)
  assert text.startswith('# Title') and text.endswith('<!-- end of results -->\nend\n')
  assert 'old' not in text
  assert '5 of 6 runs' in text and f'![Figure 10: ensemble size](results/{NAME}.png)' in text
  assert '| +3.00 | – | – | 1 | not decided |' in text
  assert 'Without a result yet' not in text  # every point has one


def test_points_without_a_result_are_named(csv_path, tmp_path, monkeypatch):
  monkeypatch.setattr(figures, 'image', lambda *_: b'')
  csv_path.write_text('\n'.join(csv_path.read_text().splitlines()[:2]))
  results.redraw(csv_path)
  text = results.updated(MARKERS.format('claims'), epath.Path(tmp_path))
  assert 'Without a result yet: 2; 4.' in text


def test_without_a_finished_run_nothing_is_written(tmp_path):
  with pytest.raises(MissingInputError, match='no run of configs/paper/fig10'):
    results.collect(SPEC, epath.Path(tmp_path), epath.Path(tmp_path) / 'out', '')
  assert not (tmp_path / 'out').exists()


def test_headlines_have_the_first_claim_of_each_sweep(collected):
  lines = results.updated(MARKERS.format('headlines'), collected).splitlines()
  assert lines[2:7] == [
    '<!-- results: headlines -->',
    '|  | claim | effect | 95 % interval | paper | n | verdict |',
    '| --- | --- | --- | --- | --- | --- | --- |',
    '| Figure 10 | agreement, test (%): higher for m = 4 than for m = 1 | +3.00 | – | – | 1 | not decided |',
    '<!-- end of results -->',
  ]


def test_pages_are_up_to_date():
  """If this fails: python -m configs.paper.results."""
  for name in results.PAGES:
    text = (ROOT / name).read_text()
    assert text == results.updated(text, epath.Path(ROOT)), name


def test_results_are_made_again_from_the_csv(csv_path):
  """The files equal those of `collect`. Claims follow from the config and the csv, not from the old summary."""
  before = {path.name: path.read_bytes() for path in csv_path.parent.iterdir()}
  csv_path.with_suffix('.json').write_text('{}')
  csv_path.with_suffix('.png').unlink()
  results.redraw(csv_path)
  assert {path.name: path.read_bytes() for path in csv_path.parent.iterdir()} == before


def test_a_csv_of_removed_points_is_refused(csv_path):
  csv_path.write_text(csv_path.read_text().replace('\n1,,2,0,', '\n1,,3,0,'))
  with pytest.raises(UserError, match="run 1 is at '', x = 3, trial 0; "):
    results.redraw(csv_path)


def test_kept_summaries_follow_from_their_csv_and_config():
  """If this fails: python -m configs.paper.results."""
  paths = list((ROOT / 'docs' / 'results').glob('*.csv'))
  assert paths
  for path in paths:
    _, _, sweep, found = results.read(epath.Path(path))
    kept = files.read_json(epath.Path(path.with_suffix('.json')))
    assert kept == json.loads(json.dumps(sweep_page.summary(sweep, found))), path


# Times.

# One trial of two points: two students and a teacher of 40 epochs of 5,000 images, and predictions of 40 views.
IMAGES = 16**2 * 40 * 5000


def test_the_work_of_a_sweep():
  """Figure 6b: 4 teachers and their predictions; 9 students per trial, since two series share λ = 0."""
  work = times.work('fig6b_lambda.py:small')
  assert (work.model, work.num_students, work.num_members, work.num_gans) == ('resnet', 36, 4, 0)
  assert work.images == pytest.approx(IMAGES * (36 + 4 + 4 / 3))
  # The larger student of Figure 12 is twice as wide.
  wide = times.work('fig12_capacity.py:small')
  assert wide.images == pytest.approx(IMAGES * (4 + 4 * 4 + 4 + 4 / 3))


def test_hours_are_those_of_the_measured_rate(tmp_path):
  """The student of the csv reads 200,000 images in 400 s; two cores are twice as fast."""
  header = 'run,seconds,command'
  command = 'python launch.py --config=configs/paper/fig6b_lambda.py:small --sweep_index=0'
  (tmp_path / 'x.csv').write_text(f'{header}\n0,400,{command}\n')
  rates = times.rates(epath.Path(tmp_path))
  assert rates['resnet'] == pytest.approx(IMAGES / 400)
  assert rates['lenet'] == 2000 * 16**2
  work = times.Work('resnet', 9, 0, 9 * IMAGES, 0)
  assert times.hours(work, rates) == pytest.approx(9 * 400 / 2 / 3600)
  with_gan = dataclasses.replace(work, num_gans=1)
  assert times.hours(with_gan, rates) == pytest.approx((9 * 400 + 240) / 2 / 3600)


def test_every_small_sweep_takes_at_most_six_hours():
  rates = times.rates(epath.Path(ROOT / 'docs' / 'results'))
  hours = {spec: times.hours(times.work(spec), rates) for spec in times.SMALL}
  assert {spec: time for spec, time in hours.items() if not 0.1 < time < 6} == {}
  named = {spec.partition(':')[0] for spec in times.SMALL}
  there = {path.name for path in (ROOT / 'configs' / 'paper').glob('*_*.py')}
  assert there - named == {'__init__.py', 'fig8_teachers.py', 'in_order.py', 'table2_imagenet.py'}
