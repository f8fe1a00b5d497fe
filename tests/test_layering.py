"""The allowed imports. Data flow in one direction, and so do imports."""

import ast
import graphlib
import os
import pathlib
import subprocess
import sys

ROOT = pathlib.Path(__file__).parents[1]

# A wing of kdjax is a module or a folder. It imports only from wings of earlier lines.
WINGS = [
  ['errors', 'keys', 'intervals', 'metrics'],
  ['runtime'],
  ['losses', 'models'],
  ['data'],
  ['train'],
  ['predictions', 'gan'],
  ['config'],
  ['report'],
  ['stages'],
  ['interface'],
]
DEPTH = {wing: depth for depth, wings in enumerate(WINGS) for wing in wings}
# Stricter rules: the module or wing imports only from these and from its own wing.
ONLY = {
  **{wing: set() for wing in WINGS[0]},
  'runtime': {'errors'},
  # Plugins find models and losses of a user by name.
  'losses': {'runtime.plugins'},
  'models': {'errors', 'runtime.plugins'},
  'data': {'errors', 'keys', 'runtime.plugins'},
  'train': {'data', 'errors', 'keys', 'losses', 'models', 'runtime'},
  'predictions': {'errors', 'losses', 'runtime', 'train'},
  'predictions.encodings': {'keys'},
  'predictions.functions': {'errors', 'runtime'},
  'predictions.store': {'errors', 'losses', 'runtime'},
  # The networks and steps of a GAN know no file.
  'gan': {'data.augmentations', 'keys', 'models', 'train.steps'},
  # One step knows no file, and what maps a step over devices knows no step.
  'train.steps': {'keys', 'losses', 'models', 'data.views'},
  'train.devices': {'errors', 'models', 'runtime.hosts'},
  # The report reads what the stages wrote, and runs without them.
  'report': {
    'config.claims',
    'config.sweep',
    'data',
    'errors',
    'intervals',
    'losses',
    'metrics',
    'runtime',
  },
}
# The rules for analysis/, where a package counts as one module. The mathematics knows no run and no file.
ANALYSIS = {
  'geometry': set(),
  'paths': set(),
  'permutations': set(),
  'activations': {'permutations'},
  'alignment': {'activations', 'permutations'},
  'estimates': set(),
  'decomposition': set(),
  'matching': {
    'activations',
    'alignment',
    'measure',
    'part',
    'paths',
    'permutations',
    'runs',
    'surface',
  },
  'lanczos': set(),
  'trajectory': {'estimates', 'geometry'},
  'curvature': {'estimates', 'lanczos'},
  'surface': {'estimates'},
  'figures': {'decomposition', 'lanczos'},
  'runs': set(),
  'part': {'runs'},
  'measure': {'runs', 'surface'},
  'basins': {'curvature', 'geometry', 'part', 'paths', 'surface'},
}
ANALYSIS['parts'] = set(ANALYSIS)
ANALYSIS['runner'] = {'figures', 'part', 'parts', 'runs'}
ANALYSIS['__main__'] = {'figures', 'part', 'parts', 'runner', 'runs'}
ANALYSIS['contrast'] = {'part', 'runner', 'runs'}
MATHEMATICS = (
  'geometry',
  'paths',
  'permutations',
  'activations',
  'alignment',
  'estimates',
  'decomposition',
  'lanczos',
  'curvature',
  'surface',
  'trajectory',
)
HEAVY = {'tensorflow', 'torch'}  # may be missing, and take seconds to import


def imported_modules(text, package=''):
  """Dotted names of all imports in a file of `package`, also in functions."""
  found = set()
  for node in ast.walk(ast.parse(text)):
    if isinstance(node, ast.Import):
      found |= {alias.name for alias in node.names}
    elif isinstance(node, ast.ImportFrom):
      above = package.split('.')[: len(package.split('.')) + 1 - node.level] if node.level else []
      module = '.'.join([*above, *filter(None, [node.module])])
      found |= {f'{module}.{alias.name}' for alias in node.names}
  return found


def test_imports_are_found_in_all_their_forms():
  text = """
import kdjax.a
import kdjax.b as b, numpy as np
from kdjax import c, d as e
from kdjax.f import g
from . import x
from ..y import z

def function():
  from kdjax.h import i
  import tensorflow.io
"""
  found = imported_modules(text, 'analysis.parts')
  assert imports_of(text) == {'a', 'b', 'c', 'd', 'f.g', 'h.i'}
  assert {'numpy', 'tensorflow.io', 'analysis.parts.x', 'analysis.y.z'} <= found


def dotted(path):
  """'train.steps' of kdjax/train/steps.py, and 'train' of kdjax/train/__init__.py."""
  parts = path.relative_to(ROOT / 'kdjax').with_suffix('').parts
  return '.'.join(part for part in parts if part != '__init__')


def imports_of(text):
  """The names that a file imports from kdjax: 'train.steps.State' of `from kdjax.train.steps import State`."""
  names = [name.split('.') for name in imported_modules(text)]
  return {'.'.join(name[1:]) for name in names if name[0] == 'kdjax'}


PATHS = {dotted(path): path for path in sorted((ROOT / 'kdjax').rglob('*.py'))}
IMPORTS = {module: imports_of(path.read_text()) for module, path in PATHS.items() if module}


def wing_of(module):
  return module.partition('.')[0]


def is_inside(name, places):
  return any(name == place or name.startswith(f'{place}.') for place in places)


def test_every_module_belongs_to_a_wing():
  assert {wing_of(module) for module in IMPORTS} == set(DEPTH), 'Put a new wing into WINGS.'
  folder = ROOT / 'analysis'
  places = {path.relative_to(folder).parts[0].removesuffix('.py') for path in folder.rglob('*.py')}
  assert places - {'__init__'} == set(ANALYSIS), 'Put a new module into ANALYSIS.'


def test_a_module_imports_only_from_the_wings_above_its_own():
  wrong = set()
  for module, names in IMPORTS.items():
    own = wing_of(module)
    above = {wing for wing, depth in DEPTH.items() if depth < DEPTH[own]}
    allowed = ONLY.get(module, ONLY.get(own, above)) | {own, '__version__'}
    wrong |= {(module, name) for name in names if not is_inside(name, allowed)}
  assert wrong == set()


def test_no_module_imports_itself_by_way_of_others():
  graph = {
    module: {other for other in IMPORTS if other != module and is_imported(other, names)}
    for module, names in IMPORTS.items()
  }
  assert 'train.steps' in graph['train.loop']
  assert len(list(graphlib.TopologicalSorter(graph).static_order())) == len(IMPORTS)


def is_imported(module, names):
  """Whether one of the names is the module or something in it, and not in a module of its own."""
  return any(
    name == module or (name.rpartition('.')[0] == module and name not in IMPORTS) for name in names
  )


def test_an_analysis_imports_only_what_it_may():
  outside = {'config', 'runtime.files', 'predictions', 'stages'}
  wrong = set()
  for module, allowed in ANALYSIS.items():
    path = ROOT / 'analysis' / module
    for file in sorted(path.rglob('*.py')) if path.is_dir() else [path.with_suffix('.py')]:
      text, folder = file.read_text(), '.'.join(file.relative_to(ROOT).parts[:-1])
      names = [name.split('.') for name in imported_modules(text, folder)]
      own = {name[1] for name in names if name[0] == 'analysis'}
      wrong |= {(module, name) for name in own - allowed - {module}}
      if module in MATHEMATICS:
        wrong |= {(module, name) for name in imports_of(text) if is_inside(name, outside)}
  assert wrong == set()


def test_the_pipeline_knows_nothing_of_analysis_tests_and_configs():
  for path in PATHS.values():
    packages = {name.partition('.')[0] for name in imported_modules(path.read_text())}
    assert not packages & {'analysis', 'tests', 'configs', 'launch'}, path


def test_nothing_imports_tensorflow_or_torch():
  folders = ('kdjax', 'analysis', 'configs')
  paths = [ROOT / 'launch.py', *(path for f in folders for path in (ROOT / f).rglob('*.py'))]
  assert len(paths) > len(PATHS)
  for path in paths:
    packages = {name.split('.')[0] for name in imported_modules(path.read_text())}
    assert not packages & HEAVY, path.name


def test_what_is_loaded_by_an_import():
  """The package and the flags load no JAX, the first use sets XLA's flags, and nothing needs TensorFlow or PyTorch."""
  everything = ', '.join(['launch', *(f'kdjax.{name}' for name in IMPORTS)])
  program = f"""
import os, sys, kdjax
assert {{'distil', 'open', 'views'}} <= set(dir(kdjax)) and not hasattr(kdjax, 'distill')
assert not {{'jax', 'kdjax.interface'}} & set(sys.modules)
import kdjax.interface.command_line
assert not {{'jax', 'flax', 'scipy'}} & set(sys.modules)
kdjax.fidelity, kdjax.errors.UserError
assert 'xla_gpu_deterministic_ops' in os.environ['XLA_FLAGS']
sys.modules['torch'] = None  # tensorboardX imports it where it is installed
import {everything}
assert kdjax.open is kdjax.interface.opened.open
assert kdjax.distil is kdjax.interface.distillation.distil
assert not ({HEAVY} - {{'torch'}}) & set(sys.modules)
"""
  environ = {k: v for k, v in os.environ.items() if k != 'XLA_FLAGS'} | {'PYTHONPATH': str(ROOT)}
  done = subprocess.run(
    [sys.executable, '-c', program], env=environ, capture_output=True, text=True
  )
  assert done.returncode == 0, done.stderr
