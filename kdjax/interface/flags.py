"""The flags of the command line and its help. Imports no JAX, so the help appears at once."""

import ast
import pathlib
import re
import sys

from absl import app, flags

from kdjax.runtime.plugins import EXPERIMENTS

HELP = """\
Usage: python launch.py [--config=EXPERIMENT] [--config.FIELD=VALUE ...] [FLAGS]

What to run
  --config=FILE.py[:ARGUMENT]   the experiment, or NAME[.py:ARGUMENT] of one listed below (default: digits_resnet)
  --config.FIELD=VALUE          overrides a field
  --help_config                 prints every field with its default and its meaning
  --workdir=DIR                 where everything is written, on gs:// too (default: runs/<config name>)
  --stages=A,B                  a subset of {stages}
  --trackers=A,B                sends trainings and results to any of wandb,mlflow,trackio, besides TensorBoard
  --verify                      checks the stored predictions against the teachers; runs no stage

Sweeps
  --sweep                       runs and draws the sweep that the experiment defines; several processes and
                                several sweeps may share one workdir
  --sweep.FIELD=V1,V2,...       runs the experiment once for each value of a field; with several of these
                                flags, once for each combination
  --sweep_index=I               runs one trial of one point, by its number in --list: for a job array
  --list                        prints the runs of the sweep with their numbers, and which are done; runs nothing

Several hosts (the same command on each, in a workdir that all see)
  --coordinator=auto            on a TPU pod, SLURM, Open MPI or Kubernetes
  --coordinator=HOST:PORT       elsewhere: a free port of process 0
  --num_processes=N             the number of processes
  --process_id=I                the number of this process, 0 to N - 1: the only flag that differs

Other
  --allow_wrong_xla             skips the probe that finds out whether this XLA computes wrong results
  --help                        prints this text
"""

STAGE_NAMES = ('teachers', 'gan', 'predictions', 'student', 'independent', 'evaluation', 'report')

CONFIG = flags.DEFINE_string(
  'config', str(EXPERIMENTS / 'digits_resnet.py'), 'FILE.py or FILE.py:ARGUMENT.'
)
WORKDIR = flags.DEFINE_string('workdir', None, 'Default: runs/<config name>.')
STAGES = flags.DEFINE_list('stages', list(STAGE_NAMES), 'Which stages to run.')
TRACKERS = flags.DEFINE_list('trackers', [], 'Which trackers take trainings and results.')
SWEEP = flags.DEFINE_bool('sweep', False, 'Run every point of the sweep.')
LIST = flags.DEFINE_bool('list', False, 'Print the runs of the sweep; run nothing.')
SWEEP_INDEX = flags.DEFINE_integer('sweep_index', None, 'Run one trial of one point of the sweep.')
VERIFY = flags.DEFINE_bool('verify', False, 'Check the stored predictions; run no stage.')
ALLOW_WRONG_XLA = flags.DEFINE_bool('allow_wrong_xla', False, "Skip the probe of XLA's results.")
COORDINATOR = flags.DEFINE_string('coordinator', None, 'auto, or HOST:PORT of process 0.')
NUM_PROCESSES = flags.DEFINE_integer('num_processes', None, 'The number of processes.')
PROCESS_ID = flags.DEFINE_integer('process_id', None, 'The number of this process, from 0.')

OVERRIDES: list[tuple[str, str | None]] = []
SWEPT: list[tuple[str, str | None]] = []  # the --sweep.FIELD=VALUES


def parse_flags(argv: list[str]) -> list[str]:
  """Parses all flags. --config.FIELD and --sweep.FIELD stay text, so all wrong ones are reported at once."""
  rest, arguments = [], list(argv)
  for names, text in (
    ({'--help', '-h', '-help'}, help_text),
    ({'--help_config'}, config_help_text),
  ):
    if names & set(arguments):
      print(text())
      sys.exit(0)
  while arguments:
    argument = arguments.pop(0)
    for prefix, found in (('--config.', OVERRIDES), ('--sweep.', SWEPT)):
      if argument.startswith(prefix):
        field, equals, value = argument.removeprefix(prefix).partition('=')
        if not equals:  # the value is the next argument, unless this is a flag
          value = arguments.pop(0) if arguments and not arguments[0].startswith('--') else None
        found.append((field, value))
        break
    else:
      rest.append(argument)
  return app.parse_flags_with_usage(rest)


def help_text() -> str:
  """The flags, and the experiments with the first sentence of their docstrings."""
  lines = [HELP.format(stages=','.join(STAGE_NAMES)), 'Experiments']
  for path in sorted(EXPERIMENTS.rglob('*.py')):
    tree = ast.parse(path.read_text())
    if any(isinstance(node, ast.FunctionDef) and node.name == 'get_config' for node in tree.body):
      about = (ast.get_docstring(tree) or '').partition('\n')[0]
      lines.append(f'  {path.relative_to(EXPERIMENTS).with_suffix("").as_posix():<30} {about}')
  return '\n'.join(lines)


def config_help_text() -> str:
  """A line 'name = default' for each config field, followed by its comment."""
  from kdjax import config as config_lib
  from kdjax.config import base

  comments = _comments(pathlib.Path(base.__file__))
  lines = []
  for name, value in config_lib.leaves(base.get_config()).items():
    lines.append(f'{name} = {value!r}')
    field = name.rpartition('.')[-1]
    text = comments.get(f'config.{name}') or comments[f'section.{field}']
    lines.append(f'    {text}')
  return '\n'.join(lines)


def _comments(path: pathlib.Path) -> dict[str, str]:
  """{'config.student.loss': the comment above or behind its assignment}, for every attribute."""
  source, found = path.read_text(encoding='utf-8'), {}
  lines = source.splitlines()
  by_line = [match and match[1] for match in (re.search(r'(?:^|\s)# ?(.*)$', x) for x in lines)]
  for node in ast.walk(ast.parse(source)):
    if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Attribute):
      first = node.lineno - 1
      while lines[first - 1].lstrip().startswith('#'):
        first -= 1
      texts = filter(None, by_line[first : node.end_lineno])
      found[ast.unparse(node.targets[0])] = ' '.join(texts)
  return found
