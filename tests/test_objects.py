"""Names and digests of objects that cannot be imported, such as those of a notebook."""

import itertools
import linecache
import subprocess
import sys

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import ROOT, tiny_run

from kdjax import models
from kdjax.config import code, fingerprints, objects
from kdjax.config.objects import Objects
from kdjax.errors import UserError
from kdjax.runtime import given, plugins

_COUNT = itertools.count()


@pytest.fixture(autouse=True)
def no_objects():
  given.forget()
  yield
  given.forget()


def cell(text, **variables):
  """The variables of a notebook after one cell."""
  file = f'<cell {next(_COUNT)}>'
  linecache.cache[file] = len(text), None, text.splitlines(keepends=True), file
  names = {'__name__': '__main__', **variables}
  exec(compile(text, file, 'exec'), names)
  return names


NET = """
import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from kdjax.models import layers

SCALE = 2.0
TABLE = np.arange(3)
UNUSED = 1
DEPTH = 2
FACTOR = 1

def activation(x):
  return nn.relu(x) * SCALE

def other(x):
  return UNUSED

class Base(nn.Module):
  num_classes: int

class Net(Base):
  width: int = 4
  act: object = nn.relu
  depth = DEPTH

  @nn.compact
  def __call__(self, x, train):
    '''Logits.'''
    mean = x.mean() + TABLE[0]
    x = layers.BatchNorm(train)(activation(nn.Dense(self.width)(x)))
    return self.last(x)

  def last(self, x, factor=FACTOR):
    return nn.Dense(self.num_classes)(x)
"""
EDITS = [
  ('nn.relu(x) * SCALE', 'nn.tanh(x) * SCALE', {'activation'}),
  ('nn.relu(x) * SCALE', '(nn.relu(x)) * SCALE  # a comment', set()),
  ('activation(x):', 'activation(x: float) -> float:', set()),
  ("'''Logits.'''", "'''Something else.'''", set()),
  ('SCALE = 2.0', 'SCALE = 3.0', {'activation'}),
  ('np.arange(3)', 'np.arange(3) + 1', {'Net'}),
  ('UNUSED = 1', 'UNUSED = 2', set()),
  ('DEPTH = 2', 'DEPTH = 3', {'Net'}),  # in the body of the class
  ('FACTOR = 1', 'FACTOR = 5', {'Net'}),  # a default
  ('width: int = 4', 'width: int = 5', {'Net'}),
  ('num_classes: int', 'num_classes: int = 3', {'Base', 'Net'}),
  ('nn.Dense(self.num_classes)(x)', 'nn.Dense(self.num_classes)(x + 1)', {'Net'}),
  ('class Net(', 'mean = print\nclass Net(', set()),  # a variable of a function is no global one
]


@pytest.mark.parametrize(('old', 'new', 'changed'), EDITS)
def test_an_edit_of_a_cell_changes_the_digest_of_its_definition(old, new, changed):
  assert old in NET
  before = objects.digests(cell(NET)['Net'])
  after = objects.digests(cell(NET.replace(old, new))['Net'])
  assert 'kdjax.models.layers.BatchNorm' in before  # and the code of kdjax that it uses
  found = {name for name in before | after if before.get(name) != after.get(name)}
  assert {name.rpartition('.')[2] for name in found} == changed


def test_a_class_with_plain_fields_is_named_by_the_class():
  net = cell(NET)['Net']
  found = Objects().model(net(10, width=3))
  assert found == {'name': 'kdjax.runtime.given:Net', 'options': {'width': 3}}
  assert plugins.find('kdjax.runtime.given:Net', 'model.name') is net
  assert code.digests(('kdjax.runtime.given:Net',)) == objects.digests(net)


def test_another_module_is_named_as_it_is():
  net = cell(NET)['Net']
  names = [Objects().model(net(10, act=act)) for act in (nn.tanh, nn.gelu, nn.tanh)]
  assert names[0] == names[2] != names[1]
  section = tiny_run('.').config.model
  with section.ignore_type():
    section.update(names[1])
  assert models.own_module(models.build(section, 10)) == net(10, act=nn.gelu)


def test_what_can_be_imported_keeps_its_name():
  assert Objects().name(models.resnet_block) == 'kdjax.models.resnet:resnet_block'
  lenet = models.LeNet5(10, jnp.bfloat16)
  expected = {'name': 'kdjax.models.lenet:LeNet5', 'options': {}, 'dtype': 'bfloat16'}
  assert Objects().model(lenet) == expected


CONTENTS = [
  ('lambda x: x + {}', (1, 2)),
  ('functools.partial(f, {})', (1, 2)),
  ('(lambda y: lambda x: f(x, y))({})', (np.zeros(2), np.ones(2))),
  ('[f, lambda x: {}]', (1, 2)),
  ('Teacher({}).predict', (1, 2)),
  ('Teacher(jnp.full(2, {})).predict', (1, 2)),
  ('optax.adam({}).update', (1e-3, 1e-4)),
  ('decorated({})(f)', (1, 2)),
  ('jax.jit(lambda x: x + {})', (1, 2)),
]


@pytest.mark.parametrize(('text', 'values'), CONTENTS)
def test_the_content_of_an_object_counts(text, values):
  """Different values have different digests; equal values have equal ones."""
  found = []
  for value in (*values, values[0]):
    names = cell(
      'import functools, jax, optax, jax.numpy as jnp\n'
      'def f(x, y=0):\n  return x + y\n'
      'def decorated(factor):\n'
      '  def decorate(f):\n'
      '    @functools.wraps(f)\n'
      '    def wrapper(x):\n'
      '      return factor * f(x)\n'
      '    return wrapper\n'
      '  return decorate\n'
      'class Teacher:\n'
      '  def __init__(self, x): self.x = x\n'
      '  def predict(self, images): return images * self.x\n'
      f'found = {text.format("value" if isinstance(value, np.ndarray) else value)}\n',
      value=value,
    )
    found.append(objects.digests(names['found']))
  assert found[0] == found[2] != found[1]


def test_one_name_stands_for_one_object_of_a_call():
  first, second = (cell(f'def f(x):\n  return x + {i}')['f'] for i in range(2))
  names = Objects()
  assert names.name(first) == names.name(first) == 'kdjax.runtime.given:f'
  with pytest.raises(UserError, match='two different objects are called f'):
    names.name(second)
  assert Objects().name(second) == 'kdjax.runtime.given:f'  # the cell was edited
  assert plugins.find('kdjax.runtime.given:f', '') is second


def test_an_edited_cell_changes_the_digest_that_fingerprints_use():
  seen = []
  for i in (0, 1, 1):
    name = Objects().name(cell(f'def f(x):\n  return x + {i}')['f'])
    seen.append(code.digest((name,)))
  assert seen[0] != seen[1] == seen[2]
  assert fingerprints.code.digests((name,)).keys() == {
    'kdjax.runtime.given.f',
    'kdjax.runtime.given.f:value',
  }


def test_what_cannot_be_digested_is_refused():
  names = cell('import threading\nlock = threading.Lock()\ndef f(x):\n  return lock')
  with pytest.raises(UserError, match=r'given\.f\.lock: the content of lock cannot be digested'):
    Objects().name(names['f'])
  names = {'__name__': '__main__'}
  exec('def f(x):\n  return x', names)  # as typed at Python's prompt
  with pytest.raises(UserError, match='f: its source cannot be read'):
    Objects().name(names['f'])
  with pytest.raises(UserError, match='the name is taken'):
    Objects().name(cell('def give(x):\n  return x')['give'])


def test_an_object_that_was_not_given_here_is_named():
  with pytest.raises(UserError, match=r'kdjax\.runtime\.given:Net: this object .* Pass it again'):
    plugins.find('kdjax.runtime.given:Net', 'model.name')


def test_a_script_has_the_same_digests_in_every_process(tmp_path):
  script = tmp_path / 'script.py'
  more = 'from kdjax.config.objects import *\nprint(digests(Net), Objects().model(Net(3)))'
  script.write_text(NET + more)
  done = subprocess.run(
    [sys.executable, script],
    cwd=ROOT,
    env={'PYTHONPATH': str(ROOT), 'PYTHONHASHSEED': '1'},  # ours is another
    capture_output=True,
    text=True,
    check=True,
  )
  net = cell(NET)['Net']
  found = objects.digests(net)
  assert 'kdjax.runtime.given.activation' in found
  assert done.stdout == f'{found} {Objects().model(net(3))}\n'
