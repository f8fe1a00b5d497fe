"""The results that are kept in docs/results, and the tables that are made from them."""

import csv

import pytest
from checked_config import ROOT
from etils import epath

from configs.paper import results
from kdjax import config as config_lib
from kdjax.config import sweep as sweep_lib
from kdjax.errors import MissingInputError
from kdjax.runtime import files
from kdjax.stages import evaluation
from kdjax.stages.experiment import Experiment

SPEC = 'configs/paper/fig10_ensemble_size.py:smoke'  # m = 1, 2, 4; two trials
NAME = 'fig10_ensemble_size_smoke'
MARKERS = '# Title\n\n<!-- results: {} -->\nold\n<!-- end of results -->\nend\n'


def pretend_finished(workdir, indices):
  """Writes what a student's stages leave: agreement 70 + m % in trial 0 and 71 + 2 m % in trial 1."""
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
    rows = [
      {'step': 10, 'examples_per_second': 128.0},
      {'step': 15, 'examples_per_second': 64.0},
    ]
    (this.folders.student / 'metrics.jsonl').write_bytes(files.json_lines(rows))


@pytest.fixture
def kept(tmp_path, monkeypatch):
  """A folder whose docs/results has a sweep of which one run, of m = 4, is missing."""
  monkeypatch.chdir(ROOT)
  pretend_finished(epath.Path(tmp_path) / 'runs', (0, 1, 2, 3, 4))
  root = epath.Path(tmp_path) / 'root'
  results.collect(SPEC, epath.Path(tmp_path) / 'runs', root / 'docs' / 'results', 'JAX 1')
  return root


def test_a_row_for_each_finished_run_with_the_command_that_repeats_it(kept):
  folder = kept / 'docs' / 'results'
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


def test_a_partial_sweep_is_reported_and_says_what_is_missing(kept):
  summary = files.read_json(kept / 'docs' / 'results' / f'{NAME}.json')
  assert (summary['num_runs'], summary['num_finished']) == (6, 5)
  (agreement, *_) = summary['claims']
  # m = 4 against m = 1, in trial 0 alone: 74 − 71.
  assert agreement['effect'] == {'mean': pytest.approx(3), 'low': None, 'high': None}
  assert (agreement['n'], agreement['verdict'], agreement['paper']) == (1, 'not decided', 8.5)
  text = results.updated(MARKERS.format('claims'), kept)
  assert text.startswith('# Title') and text.endswith('<!-- end of results -->\nend\n')
  assert 'old' not in text
  assert '5 of 6 runs' in text and f'![Figure 10: ensemble size](results/{NAME}.png)' in text
  assert '| +3.00 | – | +8.5 | 1 | not decided |' in text
  assert 'Without a result yet' not in text  # every point has one


def test_points_without_a_result_are_named(tmp_path, monkeypatch):
  monkeypatch.chdir(ROOT)
  workdir, root = epath.Path(tmp_path) / 'runs', epath.Path(tmp_path)
  pretend_finished(workdir, (0,))
  results.collect(SPEC, workdir, root / 'docs' / 'results', '')
  assert 'Without a result yet: 2; 4.' in results.updated(MARKERS.format('claims'), root)


def test_without_a_finished_run_nothing_is_written(tmp_path, monkeypatch):
  monkeypatch.chdir(ROOT)
  with pytest.raises(MissingInputError, match='no run of configs/paper/fig10'):
    results.collect(SPEC, epath.Path(tmp_path), epath.Path(tmp_path) / 'out', '')
  assert not (tmp_path / 'out').exists()


def test_headlines_have_the_first_claim_of_each_sweep(kept):
  lines = results.updated(MARKERS.format('headlines'), kept).splitlines()
  assert lines[2:7] == [
    '<!-- results: headlines -->',
    '|  | claim | effect | 95 % interval | paper | n | verdict |',
    '| --- | --- | --- | --- | --- | --- | --- |',
    '| Figure 10 | agreement, test (%): higher for m = 4 than for m = 1 | +3.00 | – | +8.5 | 1 | not decided |',
    '<!-- end of results -->',
  ]


@pytest.mark.parametrize('name', results.PAGES)
def test_pages_are_up_to_date(name):
  """If this fails: python -m configs.paper.results."""
  text = (ROOT / name).read_text()
  assert text == results.updated(text, epath.Path(ROOT))


def test_results_that_are_kept_are_of_sweeps_as_they_are_now():
  """The claims of each summary are those of its config; its runs can be repeated."""
  for path in epath.Path(ROOT / 'docs' / 'results').glob('*.csv'):
    rows = list(csv.DictReader(path.read_text().splitlines()))
    spec = str(ROOT / rows[0]['command'].split('--config=')[1].split()[0])
    sweep = config_lib.load_sweep(spec)
    runs = sweep_lib.expand(sweep)
    for row in rows:
      run = runs[int(row['run'])]
      assert (row['series'], row['x']) == (run.point.series, str(run.point.x))
    claims = files.read_json(path.with_suffix('.json'))['claims']
    assert [claim['text'] for claim in claims] == [claim.text for claim in sweep.claims]
