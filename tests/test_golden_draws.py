"""The numbers of every random draw, on which stored artefacts depend.

All are integers, or far enough from the next number that no version of XLA and no processor matters.
"""

import ast
import functools
import pathlib
import zlib
from types import SimpleNamespace as Fake
from unittest import mock

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import steps_on_devices
from ml_collections import ConfigDict
from tiny_data import section
from viewed import inputs_of, labels_of, make_batch

import kdjax
from kdjax import data, intervals, keys, models
from kdjax.data import views
from kdjax.gan import steps as gan_steps
from kdjax.models import resnet50
from kdjax.predictions.encodings import TopK
from kdjax.stages import evaluation, gan, teachers
from kdjax.stages.role import Role
from kdjax.train.inputs import Inputs, training_batch

CHANGED = (
  'A draw gives other numbers than it did. That is legitimate only together with a higher '
  'ARTEFACT_VERSION of kdjax/config/fingerprints.py, since stored predictions and trained weights belong to the old ones; for '
  'bootstrap and CKA with a higher evaluation.VERSION. Then write the new numbers here.'
)
TOLERANCE = 2e-3


def summary(tree) -> float:
  """One number that another draw of any of the arrays changes by far more than TOLERANCE."""
  values = np.concatenate([np.ravel(x).astype(np.float64) for x in jax.tree.leaves(tree)])
  return float((values * np.sin(np.arange(1, len(values) + 1))).sum())


def weights(name, shape, dtype=np.float32, vocabulary_size=None):
  fields = {'name': name, 'depth': 8, 'width': 4, 'norm': 'batch', 'dtype': 'float32'}
  fields['shortcut'] = 'activated'
  model = models.build(ConfigDict(fields), 10, vocabulary_size)
  role = Fake(model=model, input_shape=shape, input_dtype=dtype)
  with mock.patch.object(resnet50, 'BLOCKS_PER_STAGE', (2, 1)):  # quicker to compile
    return summary(Role.init_variables(role, 3)['params'])


@functools.cache
def gan_state():
  fields = {
    'num_steps': 2,
    'num_discriminator_steps': 1,
    'latent_size': 2,
    'generator_width': 4,
    'discriminator_width': 4,
    'learning_rate': 1e-3,
    'final_learning_rate': 0.0,
    'flip': False,
  }
  return gan_steps.init_state(gan_steps.make_gan(ConfigDict(fields), (8, 8, 1)), 3)


def samples():
  generator = Fake(apply=lambda variables, latents_BZ, train: latents_BZ / 4)
  batch = {'indices': np.arange(3)}
  return gan_steps.sample_step(None, batch, 3, generator=generator, latent_size=2)


def gan_flips():
  images_NHWC = np.tile(np.uint8([0, 255]), 12).reshape(12, 1, 1, 2, 1)
  indices = np.arange(12)[:, None]
  batch = {'inputs': images_NHWC, 'indices': indices, 'epochs': np.full_like(indices, 2)}
  return bits(np.asarray(gan_steps.real_images(batch, 3, 0, True))[:, 0, 0, 0] > 0)


def bits(values) -> list[int]:
  """Truth values, eight a number."""
  return np.packbits(np.asarray(values)).tolist()


def dropout_in_vgg():
  """Which units of one example VGG-16's two dropouts keep."""
  masks = []

  def intercept(call, arguments, keywords, context):
    module, x = context.module, arguments[0]
    if isinstance(module, nn.Dropout):
      masks.append(call(jnp.ones_like(x), **keywords) > 0)
    elif isinstance(module, nn.Conv | nn.Dense):
      return jnp.zeros((*x.shape[:-1], module.features))
    return x if isinstance(module, nn.Dropout | nn.BatchNorm) else call(*arguments, **keywords)

  images, key = jnp.zeros((1, 32, 32, 3)), keys.stream(3, 'dropout', 1, 0)
  with nn.intercept_methods(intercept):
    models.VGG16(10, 4).apply({}, images, train=True, rngs={'dropout': key})
  return [n for mask in masks for n in bits(mask)]


def view(name):
  levels = np.round((inputs_of((name,), make_batch()) + 1) * 127.5).astype(np.uint8)
  return zlib.crc32(levels.tobytes())


def inputs() -> Inputs:
  pixels = np.arange(40, dtype=np.uint8)[:, None, None, None]
  split = data.Split(pixels, np.arange(40, dtype=np.int32) % 10)
  seen = views.make_view(('mixup',), None)
  return Inputs(split, seen, 3, has_partners=True)


def met(where):
  batch = inputs().batch(np.arange(8, dtype=np.int32), np.full(8, 2, np.int32))
  return where(batch).tolist()


def record():
  found = inputs().record(2)
  return [int(found['draws'][:8], 16), zlib.crc32(bytes.fromhex(found['levels']))]


def cka():
  chosen = []

  def features(model, variables, inputs, indices_N):
    chosen.extend(indices_N.tolist())
    return {}

  experiment = Fake(
    data=Fake(inputs={'test': Fake(split=range(40))}),
    config=Fake(evaluation=Fake(num_cka_examples=6), teacher=Fake(num_members=0)),
    student=Fake(model=None),
    predictor=Fake(features=features),
  )
  evaluation._cka(experiment, Fake(variables=None))
  return chosen


def sampled_checksum():
  pixels = np.arange(3000, dtype=np.uint16).view(np.uint8).reshape(3000, 1, 1, 2)
  found = data.checksum({'train': data.Split(pixels, np.zeros(3000, np.int32))}, sampled=True)
  return [int(found.removeprefix(data.SAMPLED)[:8], 16)]


def classes_drawn(estimator):
  """Draws of 1,000 equally probable classes, for the first and last example that share a generator, and the next."""
  encoding = TopK(3, estimator, 1000, seed=3)
  return encoding.encode(np.full((3, 1000), np.log(1e-3)), 1, 2, np.array([0, 255, 256])).ravel()


# CRC-32 of the images in 8 bits.
IMAGES = {
  'flip': 3779639250,
  'vertical_flip': 3266551705,
  'crop': 3582620736,
  'rotation': 3143262880,
  'brightness': 2210645476,
  'contrast': 3620418821,
  'saturation': 2293724977,
  'hue': 866984338,
  'color_jitter': 3705514957,
  'mixup': 2870686148,
  'noise': 587455191,
}

# Functions that draw. No artefact depends on the examples that --verify predicts again, or on the halves of
# the training set whose distance is the floor of a GAN's.
CALLS = ('stream', 'numpy_rng', 'derive_seed', 'draw_latents')
NO_ARTEFACT = {'halves', 'verify/'}
# A stream, or how its name begins, and perhaps a word more: a function that draws, and what it must give.
DRAWS = {
  # Random numbers from a seed and names.
  'keys stream': (
    lambda: jax.random.key_data(keys.stream(0, 'view/crop', 1, 2)).tolist(),
    [734216644, 1246352783],
  ),
  'keys numpy_rng': (
    lambda: keys.numpy_rng(0, 'order', 3).permutation(10).tolist(),
    [3, 9, 4, 8, 7, 1, 5, 6, 2, 0],
  ),
  'keys derive_seed': (
    lambda: [keys.derive_seed(0, 'member', 0), keys.derive_seed(7, 'member', 3)],
    [1063616514, 779905561],
  ),
  'member': (
    lambda: [teachers.member_seed(Fake(config=Fake(seed=3, teacher=Fake(source=''))), 1)],
    [901720767],
  ),
  # Initial weights.
  'init resnet': (lambda: weights('resnet', (8, 8, 1)), 0.085),
  'init resnet50': (lambda: weights('resnet50', (8, 8, 3)), 9.952),
  'init lenet': (lambda: weights('lenet', (16, 16, 1)), -3.594),
  'init vgg': (lambda: weights('vgg', (32, 32, 3)), 4.31),
  'init bilstm': (lambda: weights('bilstm', (7,), np.int32, 20), -2.01),
  'dropout': (
    lambda: bits(steps_on_devices.dropout_masks((3, 1))[0] > 1),
    [139, 56, 85, 137, 188, 247, 2, 80],
  ),
  'dropout vgg': (dropout_in_vgg, [139, 56, 85, 137, 6, 41, 25, 147]),
  # Data.
  'order': (
    lambda: np.stack(training_batch(3, 10, 8, 1)).ravel().tolist(),
    [6, 1, 9, 7, 2, 8, 6, 4, 0, 0, 1, 1, 1, 1, 1, 1],
  ),
  'subset': (
    lambda: data.balanced_order(np.repeat([0, 1, 2], 4)).tolist(),
    [10, 1, 7, 5, 9, 3, 4, 8, 2, 6, 0, 11],
  ),
  'digits': (
    lambda: data.load(section())['test'].labels_N[:12].tolist(),
    [2, 6, 8, 3, 6, 2, 1, 6, 5, 5, 8, 7],
  ),
  'extra': (
    lambda: data.load_extra('digits', section(), (8, 8, 1), 4).sum((1, 2, 3)).tolist(),
    [5165, 4002, 3856, 4321],
  ),
  'checksum': (sampled_checksum, [377514917]),
  # Views.
  **{f'view/{name}': (functools.partial(view, name), crc) for name, crc in IMAGES.items()},
  'view/noise labels': (lambda: labels_of(('noise',), make_batch()), [-1, 0, 9, 3, 1, 7]),
  'view/partners': (
    lambda: met(lambda batch: batch['partners']['indices']),
    [25, 20, 22, 15, 13, 9, 37, 32],
  ),
  'record': (record, [2452815639, 1396069934]),
  # Stored classes.
  'top_k': (lambda: classes_drawn('sampled'), [256, 676, 893, 13, 230, 660, 168, 202, 940]),
  'top_k systematic': (
    lambda: classes_drawn('systematic'),
    [85, 418, 752, 259, 593, 926, 313, 646, 980],
  ),
  # The GAN.
  'gan': (lambda: [gan.seed_of(Fake(config=Fake(gan=Fake(seed=3))))], [1535363874]),
  'generator': (lambda: summary(gan_state().generator), -6.079),
  'discriminator': (lambda: summary(gan_state().discriminator), -2.194),
  'gan/flip': (gan_flips, [4, 128]),
  'gan/training': (
    lambda: gan_steps.draw_latents(3, 2, 'gan/training', np.arange(3), 5, 1).ravel().tolist(),
    [1.06, 0.239, -0.967, 1.473, -0.805, 0.027],
  ),
  'gan/latent': (lambda: samples().ravel().tolist(), [67, 75, 111, 167, 110, 131]),
  # The evaluation.
  'bootstrap': (
    lambda: intervals.bootstrap_interval(np.arange(10.0), 20, keys.numpy_rng(0, 'bootstrap')),
    [3.085, 5.505],
  ),
  'cka': (cka, [5, 9, 10, 17, 24, 39]),
}


@pytest.mark.parametrize('name', DRAWS)
def test_golden(name):
  draw, expected = DRAWS[name]
  np.testing.assert_allclose(draw(), expected, rtol=0, atol=TOLERANCE, err_msg=CHANGED)


def test_every_draw_is_in_the_table():
  """Every stream that kdjax names, and every augmentation."""
  places = pathlib.Path(kdjax.__file__).parent.rglob('*.py')
  named = {name for path in places for name in streams_of(ast.parse(path.read_text()))}
  named |= {f'view/{name}' for name in views.NAMES}
  assert {'order', 'view/', 'gan/latent'} <= named  # else nothing would be missing
  missing = {name for name in named if not any(key.startswith(name) for key in DRAWS)}
  assert missing == NO_ARTEFACT, 'Add a new draw to DRAWS.'


def streams_of(tree: ast.Module) -> set[str]:
  """The names in calls that draw; of those put together, how they begin."""
  found = set()
  for call in ast.walk(tree):
    if isinstance(call, ast.Call) and ast.unparse(call.func).split('.')[-1] in CALLS:
      for argument in call.args:
        first = argument.values[0] if isinstance(argument, ast.JoinedStr) else argument
        if isinstance(first, ast.Constant) and isinstance(first.value, str):
          found.add(first.value)
  return found
