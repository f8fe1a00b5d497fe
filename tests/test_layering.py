"""Who may import whom. Data flows one way, and so do the imports."""

import ast
import os
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[1]

# A module may import from the layers above its own, and from nothing else of this repository.
LAYERS = [
  ['errors', 'keys', 'progress', 'prefetch', 'figures', 'formats', 'xla_flags', 'intervals'],
  ['hosts', 'compiler', 'sweep', 'tables'],
  ['augmentations', 'models', 'losses', 'optimizers', 'metrics', 'similarity'],
  ['files', 'data', 'views', 'gan_networks', 'events', 'comparison', 'sweep_figure'],
  ['steps', 'devices', 'checkpoint', 'store', 'config', 'report', 'sweep_report'],
  ['inputs', 'training', 'gan_steps', 'rules'],
  ['validation'],
  ['run'],
  ['teachers'],
  ['gan', 'predictions'],
  ['student', 'verification'],
  ['independent'],
  ['evaluation'],
  ['stages'],
  ['launch'],
]
LAYER = {module: depth for depth, modules in enumerate(LAYERS) for module in modules}
# Stricter than the layers.
ONLY = {
  # Mathematics that knows nothing of a run, nor of each other.
  **{module: set() for module in LAYERS[2]},
  'views': {'augmentations', 'keys'},
  'data': {'errors', 'keys'},
  'gan_networks': {'models'},
  'gan_steps': {'augmentations', 'gan_networks', 'keys', 'models', 'steps'},
  # One step knows no file.
  'steps': {'keys', 'losses', 'models', 'views'},
  # What maps a step knows none.
  'devices': {'errors', 'hosts', 'models'},
  'inputs': {'data', 'devices', 'hosts', 'keys', 'steps', 'views'},
  'compiler': {'errors', 'xla_flags'},
  # They know files, but not what is in them.
  'files': {'errors', 'hosts'},
  'checkpoint': {'errors', 'files', 'hosts'},
  'store': {'errors', 'files'},
  'events': {'errors'},
  'training': {
    'checkpoint',
    'devices',
    'errors',
    'events',
    'files',
    'hosts',
    'prefetch',
    'progress',
    'steps',
  },
  'config': {'errors', 'files', 'sweep', 'views'},
  # The report reads what the stages wrote, and runs without them.
  'report': {'errors', 'files', 'data', 'losses', 'metrics', 'figures', 'formats', 'tables'},
  'tables': {'formats'},
  'sweep': {'intervals'},
  'sweep_figure': {'figures', 'sweep'},
  'sweep_report': {'figures', 'files', 'formats', 'sweep', 'sweep_figure'},
  'comparison': {'intervals', 'metrics'},
}
# The same for analysis/; packages count as one. The mathematics knows no run and no file.
ANALYSIS = {
  'geometry': set(),
  'paths': set(),
  'permutations': set(),
  'alignment': {'permutations'},
  'nulls': set(),
  'decomposition': set(),
  'matching': {'alignment', 'measure', 'part', 'paths', 'permutations', 'runs'},
  'lanczos': set(),
  'trajectory': set(),
  'curvature': {'lanczos', 'trajectory'},
  'surface': set(),
  'figures': {'decomposition', 'lanczos'},
  'runs': set(),
  'part': {'runs'},
  'measure': {'runs', 'surface'},
  'basins': {'curvature', 'geometry', 'measure', 'part', 'paths'},
}
ANALYSIS['parts'] = set(ANALYSIS)
ANALYSIS['runner'] = {'part', 'parts', 'runs'}
ANALYSIS['__main__'] = {'part', 'parts', 'runner', 'runs'}
MATHEMATICS = (
  'geometry',
  'paths',
  'permutations',
  'alignment',
  'nulls',
  'decomposition',
  'lanczos',
  'curvature',
  'surface',
  'trajectory',
)
HEAVY = {'tensorflow', 'torch'}  # may be missing, and take seconds to import


def text_of(module, package='kdjax'):
  """The code of a module; of a package, that of all its files."""
  path = ROOT / 'launch' if module == 'launch' else ROOT / package / module
  paths = sorted(path.rglob('*.py')) if path.is_dir() else [path.with_suffix('.py')]
  return '\n'.join(path.read_text() for path in paths)


def imported_modules(text):
  """Dotted names of all that is imported anywhere in a file, in functions too."""
  found = set()
  for node in ast.walk(ast.parse(text)):
    if isinstance(node, ast.Import):
      found |= {alias.name for alias in node.names}
    elif isinstance(node, ast.ImportFrom):
      assert node.level == 0, 'imports are absolute here'
      found |= {f'{node.module}.{alias.name}' for alias in node.names}
  return found


def imported_siblings(text, package='kdjax'):
  """Modules of kdjax, of the names in 'kdjax.module' and 'kdjax.module.name'."""
  names = [name.split('.') for name in imported_modules(text)]
  return {name[1] for name in names if name[0] == package}


def test_imports_are_found_in_all_their_forms():
  text = """
import kdjax.a
import kdjax.b as b, numpy as np
from kdjax import c, d as e
from kdjax.f import g

def function():
  from kdjax.h import i
  import tensorflow.io
"""
  assert imported_siblings(text) == set('abcdfh')
  assert {'numpy', 'tensorflow.io'} <= imported_modules(text)


def modules_of(package):
  folder = ROOT / package
  paths = {path.relative_to(folder).parts[0] for path in folder.rglob('*.py')}
  return {path.removesuffix('.py') for path in paths} - {'__init__'}


def test_every_module_has_a_layer():
  modules = modules_of('kdjax') | {'launch'}
  assert modules == set(LAYER), 'Put a new module into LAYERS: what may it import, and who it?'
  assert modules_of('analysis') == set(ANALYSIS), 'Put a new module into ANALYSIS.'


@pytest.mark.parametrize('module', ANALYSIS)
def test_an_analysis_imports_only_what_it_may(module):
  text = text_of(module, 'analysis')
  assert imported_siblings(text, 'analysis') <= ANALYSIS[module] | {module}
  if module in MATHEMATICS:
    assert not imported_siblings(text) & {'run', 'config', 'files', 'student', 'teachers', 'stages'}


@pytest.mark.parametrize('module', LAYER)
def test_a_module_imports_only_from_the_layers_above_it(module):
  above = {name for name, depth in LAYER.items() if depth < LAYER[module]}
  allowed = ONLY.get(module, above) | {module}  # the files of a package import from each other
  assert imported_siblings(text_of(module)) <= allowed


@pytest.mark.parametrize('module', LAYER)
def test_the_pipeline_knows_nothing_of_analysis_tests_and_configs(module):
  packages = {name.split('.')[0] for name in imported_modules(text_of(module))}
  assert not packages & {'analysis', 'tests', 'configs', 'launch'}


def test_nothing_imports_tensorflow_or_torch():
  folders = ('kdjax', 'analysis', 'configs')
  paths = [ROOT / 'launch.py', *(path for f in folders for path in (ROOT / f).rglob('*.py'))]
  assert len(paths) > len(LAYER)
  for path in paths:
    packages = {name.split('.')[0] for name in imported_modules(path.read_text())}
    assert not packages & HEAVY, path.name


def test_importing_everything_loads_neither_tensorflow_nor_torch():
  names = ', '.join('launch' if name == 'launch' else f'kdjax.{name}' for name in LAYER)
  result = subprocess.run(
    [sys.executable, '-c', f'import sys, {names}\nprint(*{HEAVY} & set(sys.modules))'],
    env=os.environ | {'PYTHONPATH': str(ROOT)},
    capture_output=True,
    text=True,
    check=True,
  )
  assert result.stdout.split() == []
