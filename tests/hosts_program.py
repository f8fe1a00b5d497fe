"""A program that several processes run together. Each saves its findings.

Each process has its own folder/<process>/ and shares the rest of the folder with the others. With `is_refused`
the main process may not write, and all end as launch.py does.
"""

import json
import pathlib
import resource
from functools import partial
from unittest import mock

import jax
import numpy as np
import optax
import steps_on_devices
from absl import app
from etils import epath

from kdjax import data, losses, models
from kdjax.data import views
from kdjax.errors import DamageError, UserError
from kdjax.interface import command_line, commands
from kdjax.runtime import files, hosts
from kdjax.train import devices, steps
from kdjax.train.checkpoint import Checkpoints, digest
from kdjax.train.inputs import Inputs

BATCH_SIZE = 8
STATE = {'w': np.arange(12000, dtype=np.float32).reshape(300, 40), 'step': np.array(7, np.int32)}
LARGEST = 2000  # bytes of a file of the main process; the state takes more


def numbered() -> Inputs:
  """Inputs with their indices as labels."""
  split = data.Split(np.zeros((40, 2, 2, 1), np.uint8), np.arange(40, dtype=np.int32))
  return Inputs(split, views.make_view((), None), 0, 1)


def told(function) -> str:
  """The message of the error that a function raises."""
  try:
    function()
  except UserError as error:
    return str(error)
  return 'no error'


def fail() -> bool:
  raise DamageError(f'seen by process {hosts.index()}: λ')


def decisions() -> dict:
  asked = []

  def answer(value: bool) -> bool:
    asked.append(hosts.index())
    return value

  answers = [hosts.decide(partial(answer, value)) for value in (True, False)]
  return {
    'answers': answers,
    'asked': asked,
    'failure': told(lambda: hosts.decide(fail)),
    'same': told(lambda: hosts.require_same('text', 'the flags')),
    'other': told(lambda: hosts.require_same(f'text {hosts.index()}', 'the flags')),
  }


def shared_files(folder: epath.Path) -> dict:
  own = folder / str(hosts.index())
  files.write_text(folder / 'shared.txt', f'process {hosts.index()}')
  hosts.barrier()
  with files.lock(folder / 'free') as free, files.lock(folder / 'taken', wait=False) as taken:
    locks = [free, taken]
  return {
    'text': (folder / 'shared.txt').read_text(),
    'locks': locks,
    'shared': told(lambda: files.require_shared(folder)),
    'not shared': told(lambda: files.require_shared(own)),
    'left over': sorted(path.name for path in own.iterdir()),
  }


def loaded() -> dict[str, list]:
  """The indices of a batch that this process loads, and a step's outputs for the whole batch."""
  inputs = numbered()
  batch = next(inputs.training(0, BATCH_SIZE, 1, 0))
  step = devices.parallel(partial(steps.labels_step, view=inputs.view), gathered_output=True)
  outputs = devices.unshard(step({}, batch, inputs.seed))
  return {'indices': devices.unshard(batch['indices']).tolist(), 'outputs': outputs.tolist()}


def stepped(name: str) -> dict[str, np.ndarray]:
  """State and metrics of a teacher's step and then a student's, with a map of `devices.MAPS`.

  The student's step runs its teacher and compares features over the batch. The learning rate is 1 and the
  network is smooth, so that results differ by rounding alone.
  """
  model, optimizer = steps_on_devices.Network(steps_on_devices.CLASSES), optax.sgd(1.0)
  how = {
    'model': model,
    'optimizer': optimizer,
    'view': views.make_view(('flip',), steps_on_devices.AUGMENTATION),
  }
  on_features = {'loss': losses.LOSSES['cka'], 'temperature': lambda _: 4.0, 'alpha': 0.0}
  start, member = (models.init(model, jax.random.key(i), (8, 8, 1)) for i in range(2))
  kinds = (
    (partial(steps.teacher_step, **how), 0),
    (partial(steps.featured_student_step, teacher=model, **how, **on_features), (0, [member])),
  )
  share, found = hosts.share(steps_on_devices.BATCH), {}
  state = devices.replicate(steps.init_state(start, optimizer))
  for i, (step, common) in enumerate(kinds):
    with mock.patch.object(devices, 'MAP', name):
      mapped = devices.parallel(step, donate=True)
    batch = {key: x_B[share] for key, x_B in steps_on_devices.batch(i).items()}
    state, metrics = mapped(state, devices.shard(batch), common)
    for path, leaf in jax.tree_util.tree_leaves_with_path((state, metrics)):
      found[f'{i}{jax.tree_util.keystr(path)}'] = np.asarray(leaf)
  return found


def checkpointed(folder: epath.Path) -> str:
  with Checkpoints(folder / 'checkpoints') as checkpoints:
    checkpoints.save(7, devices.replicate(STATE))
  with Checkpoints(folder / 'checkpoints', create=False) as checkpoints:
    return digest(checkpoints.restore(jax.eval_shape(lambda: STATE)))


def refused(folder: epath.Path) -> None:
  if hosts.is_main():
    resource.setrlimit(resource.RLIMIT_FSIZE, (LARGEST, LARGEST))
  with Checkpoints(folder / 'refused') as checkpoints:
    for step in (1, 2):  # the second finds that the first was not written
      checkpoints.save(step, devices.replicate(STATE))


def main(
  folder: pathlib.Path,
  coordinator: str,
  num_processes: int,
  process_id: int,
  is_refused: bool = False,
) -> None:
  hosts.initialise(coordinator, num_processes, process_id)
  if is_refused:
    commands._run = partial(refused, epath.Path(folder))
    app.run(command_line.main, argv=['launch.py'])
  own = folder / str(process_id)
  own.mkdir()
  found = decisions() | shared_files(epath.Path(folder)) | loaded()
  found['digest'] = checkpointed(epath.Path(folder))
  of_maps = {
    f'{name}/{key}': value for name in devices.MAPS for key, value in stepped(name).items()
  }
  np.savez(own / 'stepped.npz', **of_maps)
  (own / 'found.json').write_text(json.dumps(found))
