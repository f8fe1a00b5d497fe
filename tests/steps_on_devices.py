"""Takes a few student steps on all devices there are, and saves what comes out.

Beside that, the masks that dropout draws. test_steps.py does it on one CPU device and on more.
"""

import pathlib
from functools import partial

import flax.linen as nn
import jax
import numpy as np
import optax
from ml_collections import ConfigDict

from kdjax import losses, models, optimizers, steps, views

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
AUGMENTATION = ConfigDict({'crop_padding': 1, 'noise_probability': 0.3})
NUM_UNITS = 64  # that dropout drops or not


def batch(step: int) -> dict[str, np.ndarray]:
  rng = np.random.RandomState(step)
  return {
    'inputs': rng.randint(0, 256, (BATCH, 8, 8, 1)).astype(np.uint8),
    'labels': rng.randint(0, CLASSES, BATCH).astype(np.int32),
    'indices': np.arange(BATCH, dtype=np.int32),
    'views': np.full(BATCH, step, np.int32),
  }


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
  update = steps.parallel(partial(steps.teacher_step, model=model, optimizer=optimizer, view=clean))
  start = steps.init_state(models.init(model, jax.random.key(0), (8, 8, 1)), optimizer)
  one_each = {name: x[:1].repeat(num_devices, axis=0) for name, x in batch(0).items()}
  one_each['labels'] = np.arange(num_devices, dtype=np.int32)
  masks = []
  for seed, step in seeds_and_steps:
    state, _ = update(start.replace(step=np.int32(step)), steps.shard(one_each), seed)
    gradient_KC = -np.asarray(state.params['Dense_0']['kernel'])
    masks.append(num_devices * (gradient_KC[:, -1:] - gradient_KC[:, :-1]).T)
  return masks


def main(out: str | pathlib.Path) -> None:
  model = models.PreActResNet(CLASSES, models.BasicBlock, 1, 4, 'batch')
  optimizer = optimizers.make_optimizer(SECTION, 10)
  view = views.make_view(('crop', 'flip', 'noise'), AUGMENTATION)  # which takes labels away
  step = steps.parallel(
    partial(
      steps.student_step,
      model=model,
      optimizer=optimizer,
      view=view,
      loss=losses.LOSSES['kl'],
      temperature=partial(losses.temperature_at, num_steps=4, start=4.0, final=1.0),
      alpha=0.3,
    ),
    num_sharded=2,
    donate=True,
  )
  predict = steps.parallel(partial(steps.predict_step, model=model, view=view), sharded_output=True)
  variables = models.init(model, jax.random.key(0), (8, 8, 1))
  state = steps.replicate(steps.init_state(variables, optimizer))
  found = {}
  for i in range(4):
    logits = np.random.RandomState(i).randn(BATCH, CLASSES).astype(np.float32)
    teacher = steps.shard(jax.nn.log_softmax(logits))
    state, metrics = step(state, steps.shard(batch(i)), teacher, SEED)
    for name in metrics.names:
      found[f'{i}/{name}'] = np.asarray(metrics[name])
  found['logits'] = steps.unshard(predict(state.variables, steps.shard(batch(0)), SEED))
  for path, leaf in jax.tree_util.tree_leaves_with_path(state):
    found[f'state{jax.tree_util.keystr(path)}'] = np.asarray(leaf)
  found['dropout_masks'] = np.stack(dropout_masks((SEED, 0), (SEED, 1), (SEED + 1, 0), (SEED, 0)))
  found['num_devices'] = np.array(jax.local_device_count())
  np.savez(out, **found)
