"""README.md and docs/: commands and snippets run, links and paths exist."""

import json
import re
import shlex

import checked_config
import pytest
from conftest import ROOT, TINY, copied

import kdjax
from analysis.parts import PARTS
from kdjax import config as config_lib
from kdjax.config import validation
from kdjax.data.arrays import digits
from tests import launched
from tests.small_network import Small

PAGES = {path: path.read_text() for path in [ROOT / 'README.md', *sorted(ROOT.glob('docs/*.md'))]}
README, TEXT = PAGES[ROOT / 'README.md'], '\n'.join(PAGES.values())
COMMANDS = sorted(
  {
    command.strip(' &')
    for command in re.findall(r'(?:^|`|^\w+=\d )(python launch\.py[^`\n]*)', TEXT, re.MULTILINE)
  }
)


def flags_of(command: str) -> list[str]:
  return shlex.split(command)[2:]


def test_readme_is_one_page_and_nothing_is_left_open():
  assert '@@' not in TEXT
  assert len(README.splitlines()) <= 150
  assert 'python launch.py' in COMMANDS and len(COMMANDS) >= 7


# The file of docs/extending.md is written and run by test_user_code.py.
@pytest.mark.parametrize('command', [c for c in COMMANDS if 'mine_config.py' not in c])
def test_every_command_is_valid(command, monkeypatch):
  monkeypatch.chdir(ROOT)
  checked_config.pretend(monkeypatch)
  flags = dict(flag.removeprefix('--').partition('=')[::2] for flag in flags_of(command))
  spec = str(ROOT / flags.pop('config', 'configs/digits_resnet.py'))
  overrides = [(f.removeprefix('config.'), v) for f, v in flags.items() if f.startswith('config.')]
  swept = [(f.removeprefix('sweep.'), v) for f, v in flags.items() if f.startswith('sweep.')]
  others = {flag for flag in flags if not flag.startswith(('config.', 'sweep.'))}
  assert others <= {'stages', 'workdir', 'verify', 'sweep', 'help', 'help_config'}
  if 'sweep' in flags or swept:
    sweep = config_lib.sweep_from_flags('swept', swept)[0] if swept else config_lib.load_sweep(spec)
    configs, problems = config_lib.sweep_configs(spec, sweep, overrides)
    validation.check_sweep(configs, 1, problems)
  else:
    config, problems = config_lib.load(spec, overrides)
    validation.check(config, num_devices=1, problems=problems)


def test_the_commands_for_digits_run_one_after_the_other(finished, tmp_path):
  """The commands run with smaller sizes. Another temperature trains only a student."""
  copied(finished, tmp_path)
  before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob('*') if path.is_file()}
  bash = '\n'.join(re.findall(r'```bash\n(.*?)```', TEXT, re.DOTALL))
  commands = [c for c in bash.splitlines() if c.startswith('python launch.py')]
  for flag in ('--config.student.temperature=1', '--verify'):
    assert any(flag in command for command in commands)
  of_digits = [  # test_experiments.py runs the files of other experiments
    [f'--config={TINY}', f'--workdir={tmp_path}', *flags_of(command)]
    for command in commands
    if '--config=' not in command
  ]
  for done in launched.run_each(*of_digits):
    assert done.returncode == 0, done
  assert {path: path.stat().st_mtime_ns for path in before} == before
  made = {path for path in tmp_path.rglob('*') if path.is_file()} - set(before)
  assert {path.relative_to(tmp_path).parts[0] for path in made} == {
    'students',
    'report.html',
    'results.csv',
  }
  assert len((tmp_path / 'results.csv').read_text().splitlines()) == 1 + 2


def test_the_snippets_run(finished, monkeypatch, tmp_path):
  """The first one makes its config only: `test_api` distils."""
  first, second = re.findall(r'```python\n(.*?)```', README, re.DOTALL)
  x, y = digits()['train']
  names = {'Net': Small, 'predict': lambda images: images[:, :2, :5, 0].reshape(-1, 10)}
  names |= {'x_train': x[:80], 'y_train': y[:80], 'x_test': x[80:90], 'y_test': y[80:90]}
  value = {'splits': {'test': {'fidelity': {'top1_agreement': 0.5}}}}
  monkeypatch.setattr(kdjax, 'distil', lambda **given: kdjax.make_config(**given) and value)
  monkeypatch.chdir(tmp_path)
  exec(first, names)
  assert (tmp_path / 'runs' / 'mine' / 'data').exists()
  exec(second.replace("'runs/digits_resnet'", f"'{finished.workdir}'"), names)
  (path,) = finished.workdir.glob('students/*/result.json')
  assert len(names['students']) == 1
  assert names['students'][0].result['splits'] == json.loads(path.read_text())['splits']


def test_the_documented_parts_of_the_analysis_are_all_parts():
  rows = re.findall(
    r'^\| ((?:`\w+`(?:, )?)+) \|', PAGES[ROOT / 'docs' / 'analysis.md'], re.MULTILINE
  )
  assert [name for row in rows for name in re.findall(r'`(\w+)`', row)] == list(PARTS)


def test_every_command_of_the_analysis_is_valid():
  commands = re.findall(r'^python -m analysis (.*)', TEXT, re.MULTILINE)
  assert len(commands) >= 2
  split = [shlex.split(command, comments=True) for command in commands]
  assert all(folder.startswith('runs/') for folder, *_ in split)
  for flags in {tuple(flags) for _, *flags in split}:
    done = launched.analyse('/no/such/folder', *flags)
    assert done.returncode == 1 and 'Traceback' not in done.stderr
    assert done.stderr.endswith('there is no such folder; give a workdir or a student in it\n')


@pytest.mark.parametrize('page', PAGES, ids=lambda page: page.name)
def test_every_path_and_link_exists(page):
  paths = re.findall(r'`((?:kdjax|configs|tests|analysis)/[\w./]+)`', PAGES[page])
  links = re.findall(r'\]\((?!https?://)([^)]+)\)', PAGES[page])
  assert [path for path in paths if not (ROOT / path).exists()] == []
  assert [link for link in links if not (page.parent / link).exists()] == []
