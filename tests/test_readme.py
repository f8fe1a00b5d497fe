"""What the README says can be done: its commands run, its snippet runs, its links lead somewhere."""

import pathlib
import re
import shlex

import checked_config
import pytest
from conftest import ROOT, TINY, copied

from analysis.parts import PARTS
from kdjax import config as config_lib
from kdjax import validation
from tests import launched

README = (ROOT / 'README.md').read_text()
COMMANDS = sorted(set(re.findall(r'^(?:\|.*?`)?(python launch\.py[^`\n]*)', README, re.MULTILINE)))


def flags_of(command: str) -> list[str]:
  return shlex.split(command)[2:]


def test_nothing_is_left_open():
  assert '@@' not in README


def test_there_are_commands():
  assert 'python launch.py' in COMMANDS
  assert len(COMMANDS) >= 7


@pytest.mark.parametrize('command', COMMANDS)
def test_every_command_is_valid(command, monkeypatch):
  monkeypatch.chdir(ROOT)
  checked_config.pretend(monkeypatch)
  flags = dict(flag.removeprefix('--').partition('=')[::2] for flag in flags_of(command))
  spec = str(ROOT / flags.pop('config', 'configs/digits_resnet.py'))
  overrides = [(f.removeprefix('config.'), v) for f, v in flags.items() if f.startswith('config.')]
  others = {flag for flag in flags if not flag.startswith('config.')}
  assert others <= {'stages', 'workdir', 'verify', 'sweep'}
  if 'sweep' in flags:
    sweep = config_lib.load_sweep(spec)
    configs, problems = config_lib.sweep_configs(spec, sweep, overrides)
    validation.check_sweep(configs, 1, problems)
  else:
    config, problems = config_lib.load(spec, overrides)
    validation.check(config, num_devices=1, problems=problems)


def test_the_commands_for_digits_run_one_after_the_other(finished, tmp_path):
  """As they stand there, but for the sizes. Another temperature trains a student and nothing else."""
  copied(finished, tmp_path)
  before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob('*') if path.is_file()}
  bash = '\n'.join(re.findall(r'```bash\n(.*?)```', README, re.DOTALL))
  commands = [c for c in bash.splitlines() if c.startswith('python launch.py')]
  for flag in ('--config.student.temperature=1', '--verify'):
    assert any(flag in command for command in commands)
  for command in commands:
    done = launched.run(tmp_path, *flags_of(command), f'--config={TINY}')
    assert done.returncode == 0, f'{command}: {done.stderr}'
  assert {path: path.stat().st_mtime_ns for path in before} == before
  made = {path for path in tmp_path.rglob('*') if path.is_file()} - set(before)
  assert {path.relative_to(tmp_path).parts[0] for path in made} == {
    'students',
    'report.html',
    'results.csv',
  }
  assert len((tmp_path / 'results.csv').read_text().splitlines()) == 1 + 2


def test_the_snippet_runs_on_a_finished_run(finished):
  (snippet,) = re.findall(r'```python\n(.*?)```', README, re.DOTALL)
  assert "'runs/digits_resnet'" in snippet
  names = {}
  exec(snippet.replace("'runs/digits_resnet'", f"'{finished.workdir}'"), names)
  assert names['logits_NC'].shape == (360, 10)
  assert set(names['teacher']) == {'params', 'batch_stats'}


def test_the_parts_of_the_analysis_are_those_that_there_are():
  rows = re.findall(r'^\| ((?:`\w+`(?:, )?)+) \|', README, re.MULTILINE)
  assert [name for row in rows for name in re.findall(r'`(\w+)`', row)] == list(PARTS)


def test_every_command_of_the_analysis_is_valid():
  commands = re.findall(r'^python -m analysis (.*)', README, re.MULTILINE)
  assert len(commands) == 2
  for command in commands:
    folder, *flags = command.split()
    assert folder == 'runs/digits_resnet'
    done = launched.analyse('/no/such/folder', *flags)
    assert done.returncode == 1 and 'Traceback' not in done.stderr
    assert done.stderr.endswith('there is no such folder; give a workdir or a student in it\n')


def test_every_path_that_it_names_exists():
  paths = re.findall(r'`((?:kdjax|configs|tests|analysis)/[\w./]+)`', README)
  links = re.findall(r'\]\((?!https?://)([^)]+)\)', README)
  assert len(paths) > 5
  assert [p for p in paths + links if not (ROOT / pathlib.Path(p)).exists()] == []
