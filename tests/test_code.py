"""The definitions that a digest of code covers."""

import itertools
import textwrap

import pytest

from kdjax import config as config_lib
from kdjax.config import code, fingerprints
from kdjax.runtime import plugins

_COUNT = itertools.count()


def digests(folder, text, root='f', **others):
  """Digests by name; '@' stands for the module, whose name is new each time."""
  name = f'covered_{next(_COUNT)}'
  for suffix, other in {'': text, **others}.items():
    content = textwrap.dedent(other).replace('@', name)
    (folder / f'{name}{suffix}.py').write_text(content)
  plugins.add_folder(folder)
  found = code.digests((f'{name}:{root}',))
  return {key.replace(name, '@'): value for key, value in found.items()}


BASE = """
import math
import numpy as np
WIDTH = 3
UNUSED = 4
def g(x):
  return x + WIDTH
def f(x: int) -> int:
  '''Doubles.'''
  return np.sqrt(g(x)) + math.pi
def other(x):
  return UNUSED
"""


def test_what_is_reached_is_covered_and_nothing_else(tmp_path):
  assert digests(tmp_path, BASE).keys() == {'@.f', '@.g', '@.WIDTH'}


@pytest.mark.parametrize(
  ('old', 'new', 'changed'),
  [
    ('WIDTH = 3', 'WIDTH = 5', {'@.WIDTH'}),
    ('x + WIDTH', 'x - WIDTH', {'@.g'}),
    ('x + WIDTH', '(x + WIDTH)  # more', set()),
    ("'''Doubles.'''", "'''Trebles.'''", set()),
    ('f(x: int) -> int', 'f(x)', set()),
    ('UNUSED = 4', 'UNUSED = 5', set()),
    ('return UNUSED', 'return 7', set()),
    ('UNUSED = 4', 'UNUSED = 4\nnp.seterr()', {'@.f', '@.g', '@.WIDTH'}),
  ],
)
def test_an_edit_changes_the_digest_of_its_definition(tmp_path, old, new, changed):
  before, after = digests(tmp_path, BASE), digests(tmp_path, BASE.replace(old, new))
  assert {name for name in after if before.get(name) != after[name]} == changed


@pytest.mark.parametrize(
  'text',
  [
    'import @_b\ndef f(x):\n  return @_b.g(x)',
    'import @_b as b\ndef f(x):\n  return b.g(x)',
    'from @_b import g as h\ndef f(x):\n  return h(x)',
    'from @_b import *\ndef f(x):\n  return g(x)',
    'def f(x):\n  from @_b import g\n  return g(x)',
    'import @_b\nclass f(@_b.g):\n  pass',
    'import @_b\nf = @_b.g(3)',
    'try:\n  from @_b import g\nexcept ImportError:\n  g = None\ndef f(x):\n  return g(x)',
  ],
)
def test_imports_are_followed_in_all_their_forms(tmp_path, text):
  found = digests(tmp_path, text, _b='def g(x):\n  return x\n')
  assert '@_b.g' in found


def test_modules_that_import_each_other_are_followed_once(tmp_path):
  texts = (
    'from @_b import g, h\ndef f(x):\n  return g(h(x))',
    'from @_c import g, h',
    'from @_b import g',
  )
  found = digests(tmp_path, texts[0], _b=texts[1], _c=f'{texts[2]}\ndef h(x):\n  return x\n')
  assert found.keys() == {'@.f', '@_c.h'}  # g is defined nowhere


def test_packages_are_followed(tmp_path):
  package = tmp_path / 'covered_package' / 'inner'
  package.mkdir(parents=True)
  (package / 'nets.py').write_text(
    'from ..base import g\nfrom . import near\ndef f(x):\n  return g(near.h(x))'
  )
  (package / 'near.py').write_text('def h(x):\n  return x')
  (package.parent / 'base.py').write_text('def g(x):\n  return x')
  plugins.add_folder(tmp_path)
  found = code.digests(('covered_package.inner.nets:f',))
  assert found.keys() == {
    'covered_package.inner.nets.f',
    'covered_package.inner.near.h',
    'covered_package.base.g',
  }


@pytest.mark.parametrize(
  ('text', 'edited'),
  [
    ('def f(x):\n  return 1\nf = abs(f)', 'def f(x):\n  return 2\nf = abs(f)'),
    ('f = [3]\nf += [4]', 'f = [5]\nf += [4]'),
    (
      'try:\n  from no import f\nexcept ImportError:\n  f = 1',
      'try:\n  from no import f\nexcept ImportError:\n  f = 2',
    ),
    ('f = 1\ndef g():\n  import json as f', 'f = 2\ndef g():\n  import json as f'),
  ],
)
def test_all_statements_that_bind_a_name_count(tmp_path, text, edited):
  before, after = digests(tmp_path, text), digests(tmp_path, edited)
  assert before.keys() == after.keys() and before['@.f'] != after['@.f']


def test_a_root_that_kdjax_does_not_define_is_an_error():
  with pytest.raises(LookupError, match=r'kdjax.losses defines no missing'):
    code.digests(('kdjax.losses:missing',))


def test_what_the_code_of_kdjax_counts():
  """Code that decides numbers counts; scheduling, storing, analyses and reports do not."""
  config, _ = config_lib.load('configs/cifar_resnet.py')
  covered = {a: set(fingerprints.code_record(config, a)['code']) for a in ('teacher', 'student')}
  assert covered['teacher'] >= {
    'kdjax.models._resnet',
    'kdjax.models.resnet.PreActResNet',
    'kdjax.models.resnet._shortcut',
    'kdjax.models.layers.BatchNorm',
    'kdjax.models.convolution.convolve',
    'kdjax.train.steps.teacher_step',
    'kdjax.train.steps._update',
    'kdjax.train.optimizers._sgd',
    'kdjax.data.augmentations.crop',
    'kdjax.train.inputs._permutations',
    'kdjax.data.views.augmented',
    'kdjax.keys.stream',
    'kdjax.losses.on_logits.cross_entropy',
  }
  assert not {'kdjax.models.lenet.LeNet5', 'kdjax.data.augmentations.rotation'} & covered['teacher']
  assert covered['student'] - covered['teacher'] >= {
    'kdjax.losses.on_logits.distillation',
    'kdjax.losses.on_logits.temperature_at',
    'kdjax.train.steps.student_step',
  }
  others = {'on_logits.brier', 'on_logits.dist', 'on_features.cka'}
  assert not {f'kdjax.losses.{name}' for name in others} & covered['student']
  config.student.loss, config.predictions.mode = 'cka', 'online'
  online = set(fingerprints.code_record(config, 'student')['code'])
  assert online - covered['student'] == {
    *('kdjax.losses.on_features.cka', 'kdjax.losses.on_features._linear_cka'),
    *('kdjax.losses.on_features._centred_gram', 'kdjax.losses.on_features._one_device'),
    *('kdjax.losses.on_features.MIN_EXAMPLES', 'kdjax.losses.on_features._SMALL'),
    *('kdjax.train.steps.ensemble_step', 'kdjax.train.steps.featured_student_step'),
    *('kdjax.train.steps._ensemble', 'kdjax.losses.on_logits.ensemble_log_probs'),
  }
  wings = {name.split('.')[1] for name in covered['student']}
  assert wings == {'data', 'keys', 'losses', 'models', 'train'}
