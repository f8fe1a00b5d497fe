"""Batches of a GAN's training, split over the devices."""

from collections.abc import Iterator

import numpy as np
from ml_collections import ConfigDict

from kdjax import data
from kdjax.runtime import hosts
from kdjax.train import devices
from kdjax.train.steps import Batch


def batches(
  split: data.Split, section: ConfigDict, seed: int, start: int
) -> Iterator[tuple[Batch, int]]:
  """The arguments of `gan.steps.gan_step` beside the state, for steps start, start + 1, ... of the generator."""
  size, per_step = section.batch_size, section.num_discriminator_steps
  order = data.training_batches(seed, len(split), size * per_step, section.num_steps, start)
  positions_B, share = np.arange(size, dtype=np.int32), hosts.share(size)
  for flat in order:
    # The devices share out each discriminator step's images, however many devices there are.
    batch = {name: x.reshape(per_step, size).T[share] for name, x in flat.items()}
    batch |= {'inputs': split.inputs_N[batch['indices']], 'positions': positions_B[share]}
    yield devices.shard(batch), seed
