"""Takes a few student steps on all devices there are, and saves what comes out.

Run by test_steps.py with different numbers of CPU devices: python tests/steps_on_devices.py OUT.npz
"""

import sys
from functools import partial

import jax
import numpy as np
from ml_collections import ConfigDict

from kdjax import models, steps, views

SEED, BATCH, CLASSES = 3, 16, 4
SECTION = ConfigDict(
  {
    'learning_rate': 0.1,
    'final_learning_rate': 0.0,
    'momentum': 0.9,
    'nesterov': True,
    'weight_decay': 1e-3,
  }
)
AUGMENTATION = ConfigDict({'crop_padding': 1})


def batch(step: int) -> dict[str, np.ndarray]:
  rng = np.random.RandomState(step)
  return {
    'images': rng.randint(0, 256, (BATCH, 8, 8, 1)).astype(np.uint8),
    'labels': rng.randint(0, CLASSES, BATCH).astype(np.int32),
    'indices': np.arange(BATCH, dtype=np.int32),
    'views': np.full(BATCH, step, np.int32),
  }


def main(out: str) -> None:
  model = models.PreActResNet(CLASSES, models.BasicBlock, 1, 4, 'batch')
  optimizer = steps.make_optimizer(SECTION, 10)
  view = views.make_view(('crop', 'flip'), AUGMENTATION)
  step = steps.parallel(
    partial(
      steps.student_step,
      model=model,
      optimizer=optimizer,
      view=view,
      temperature=4.0,
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
    for name, (total, count) in metrics.items():
      found[f'{i}/{name}'] = np.array([total, count])
  found['logits'] = steps.unshard(predict(state.variables, steps.shard(batch(0)), SEED))
  for path, leaf in jax.tree_util.tree_leaves_with_path(state):
    found[f'state{jax.tree_util.keystr(path)}'] = np.asarray(leaf)
  found['num_devices'] = np.array(jax.local_device_count())
  np.savez(out, **found)


if __name__ == '__main__':
  main(sys.argv[1])
