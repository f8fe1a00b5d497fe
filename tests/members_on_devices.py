"""Trains two members in parallel, on all devices there are, and prints their digests.

test_teachers.py does it on two CPU devices.
"""

import json
import pathlib

import jax
from conftest import tiny_run

from kdjax.stages import teachers
from kdjax.train import devices
from kdjax.train.checkpoint import digest

FIELDS = {  # of the tiny config; the smallest sizes, since each device compiles for itself
  'teacher__num_epochs': 1,
  'training__num_evals': 1,
  'training__num_checkpoints': 1,
}


def main(workdir: pathlib.Path) -> None:
  run = tiny_run(workdir, **FIELDS, teacher__members_in_parallel=True)
  used, replicate = [], devices.replicate

  def watched(tree, device=None):
    used.append(None if device is None else device.id)
    return replicate(tree, device)

  devices.replicate = watched
  teachers.STAGE.run(run)
  digests = [digest(teachers.load(run, i)) for i in range(run.config.teacher.num_members)]
  used = [device for device in used if device is not None]
  print(json.dumps({'digests': digests, 'used': used, 'devices': jax.local_device_count()}))
