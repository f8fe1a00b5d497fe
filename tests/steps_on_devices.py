"""Takes a few student steps on all devices, with each of `devices.MAPS` if there are several, and saves the results.

It saves the masks that dropout draws, too. test_devices.py runs it on 1 and on 4 CPU devices.
"""

import pathlib
from functools import partial
from unittest import mock

import flax.linen as nn
import jax
import numpy as np
import optax
from ml_collections import ConfigDict

from kdjax import losses, models
from kdjax.data import views
from kdjax.train import devices, optimizers, steps

SEED, BATCH, CLASSES = 3, 16, 4
SECTION = ConfigDict(
  {
    'optimizer': 'sgd',
    'learning_rate': 0.1,
    'final_learning_rate': 0.0,
    'momentum': 0.9,
    'beta2': 0.999,
    'nesterov': True,
    'weight_decay': 1e-3,
  }
)
AUGMENTATION = ConfigDict({'noise_probability': 0.3})
NUM_UNITS = 64  # that dropout drops or not


def batch(step: int) -> dict[str, np.ndarray]:
  rng = np.random.RandomState(step)
  return {
    'inputs': rng.randint(0, 256, (BATCH, 8, 8, 1)).astype(np.uint8),
    'labels': rng.randint(0, CLASSES, BATCH).astype(np.int32),
    'indices': np.arange(BATCH, dtype=np.int32),
    'views': np.full(BATCH, step, np.int32),
  }


class Network(nn.Module):
  """One of each layer that differs between devices, without rectifiers: it is smooth in its weights."""

  num_classes: int

  @nn.compact
  def __call__(self, x, train):
    x = nn.Conv(4, (3, 3), use_bias=False)(x)
    x = nn.tanh(models.NORMS['batch'](train)()(x))
    pooled = x.mean((1, 2))
    return nn.Dense(self.num_classes)(pooled), {'pooled': pooled}


class Dropped(nn.Module):
  """Logits of all units, each either dropped or worth 2, through weights that start at 0."""

  num_classes: int

  @nn.compact
  def __call__(self, x, train):
    units = nn.Dropout(0.5, deterministic=not train)(np.ones((len(x), NUM_UNITS), np.float32))
    return nn.Dense(self.num_classes, use_bias=False, kernel_init=nn.initializers.zeros)(units), {}


def dropout_masks(*seeds_and_steps: tuple[int, int]) -> list[np.ndarray]:
  """masks_DK of the units, of one example on each device, read from the gradient of their weights.

  Example d of D has the label d, of D + 1 classes. All logits are 0, so D times the gradient is
  sum_d mask_d / (D + 1) for a class, less mask_d for class d.
  """
  num_devices = jax.local_device_count()
  model, optimizer = Dropped(num_devices + 1), optax.sgd(1.0)
  clean = views.make_view((), AUGMENTATION)
  update = devices.parallel(
    partial(steps.teacher_step, model=model, optimizer=optimizer, view=clean)
  )
  start = steps.init_state(models.init(model, jax.random.key(0), (8, 8, 1)), optimizer)
  one_each = {name: x[:1].repeat(num_devices, axis=0) for name, x in batch(0).items()}
  one_each['labels'] = np.arange(num_devices, dtype=np.int32)
  masks = []
  for seed, step in seeds_and_steps:
    state, _ = update(start.replace(step=np.int32(step)), devices.shard(one_each), seed)
    gradient_KC = -np.asarray(state.params['Dense_0']['kernel'])
    masks.append(num_devices * (gradient_KC[:, -1:] - gradient_KC[:, :-1]).T)
  return masks


def trained() -> dict[str, np.ndarray]:
  """The logs and states of five steps, predictions, and the masks of dropout. Noise takes labels away."""
  model = Network(CLASSES)
  optimizer = optimizers.make_optimizer(SECTION, 10)
  clean, view = (views.make_view(names, AUGMENTATION) for names in ((), ('flip', 'noise')))
  # The first loss sees each example alone, the others the whole batch. The last one sees features.
  one, other, featured = (
    devices.parallel(
      partial(
        kind,
        model=model,
        optimizer=optimizer,
        view=view,
        loss=losses.LOSSES[name],
        temperature=partial(losses.temperature_at, num_steps=4, start=4.0, final=1.0),
        alpha=0.3,
      ),
      num_sharded=num_sharded,
      donate=True,
    )
    for name, kind, num_sharded in (
      ('cross_entropy', steps.student_step, 2),
      ('dist', steps.student_step, 2),
      ('cka', partial(steps.featured_student_step, teacher=model), 1),
    )
  )
  predict = partial(steps.predict_step, model=model, view=clean)
  variables = models.init(model, jax.random.key(0), (8, 8, 1))
  state = devices.replicate(steps.init_state(variables, optimizer))
  found = {}
  members = [models.init(model, jax.random.key(i), (8, 8, 1)) for i in (1, 2)]
  for i in range(5):
    logits = np.random.RandomState(i).randn(BATCH, CLASSES).astype(np.float32)
    teacher = devices.shard(jax.nn.log_softmax(logits))
    if i < 4:
      step = one if i < 3 else other
      state, metrics = step(state, devices.shard(batch(i)), teacher, SEED)
    else:
      state, metrics = featured(state, devices.shard(batch(i)), (SEED, members))
    for name in metrics.names:
      found[f'{i}/{name}'] = np.asarray(metrics[name])
  for path, leaf in jax.tree_util.tree_leaves_with_path(state):
    found[f'state{jax.tree_util.keystr(path)}'] = np.asarray(leaf)
  sharded, last = devices.shard(batch(0)), jax.local_devices()[-1]
  on_all = devices.parallel(predict, gathered_output=True)(state.variables, sharded, SEED)
  found['logits'] = devices.unshard(on_all)
  # The variables are those that were donated, as copies.
  on_last = devices.parallel(predict, sharded_output=True, device=last)(
    devices.replicate(variables, last), devices.for_one_device(sharded), SEED
  )
  assert on_last.devices() == {last}
  found['logits of the last device'] = devices.unshard(on_last)
  found['dropout_masks'] = np.stack(dropout_masks((SEED, 0), (SEED, 1), (SEED + 1, 0), (SEED, 0)))
  return found


def main(out: str | pathlib.Path) -> None:
  found = {}
  for name in devices.MAPS if jax.local_device_count() > 1 else ['pmap']:
    with mock.patch.object(devices, 'MAP', name):
      found |= {f'{name}/{key}': value for key, value in trained().items()}
  np.savez(out, num_devices=jax.local_device_count(), **found)
