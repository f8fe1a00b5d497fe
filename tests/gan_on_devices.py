"""Takes a few steps of a GAN on all devices and saves the results; test_gan.py runs it on one and on two."""

import pathlib
from functools import partial

import jax
import numpy as np
from ml_collections import ConfigDict

from kdjax import data
from kdjax.gan import steps as gan_steps
from kdjax.stages import gan
from kdjax.train import devices

SEED = 3
SECTION = ConfigDict(
  {
    'num_steps': 3,
    'batch_size': 8,
    'num_discriminator_steps': 2,
    'latent_size': 5,
    'generator_width': 6,
    'discriminator_width': 4,
    'learning_rate': 1e-3,
    'final_learning_rate': 1e-4,
    'flip': True,
  }
)


def main(out: str | pathlib.Path) -> None:
  rng = np.random.RandomState(0)
  images_NHWC = rng.randint(0, 256, (40, 8, 8, 1)).astype(np.uint8)
  split = data.Split(images_NHWC, np.zeros(40, np.int32))
  networks = gan_steps.make_gan(SECTION, (8, 8, 1))
  step = devices.parallel(partial(gan_steps.gan_step, gan=networks), donate=True)
  state = devices.replicate(gan_steps.init_state(networks, SEED))
  found = {}
  for i, arguments in enumerate(gan.batches(split, SECTION, SEED, 0)):
    state, metrics = step(state, *arguments)
    for name in metrics.names:
      found[f'{i}/{name}'] = np.asarray(metrics[name])
  sample = partial(
    gan_steps.sample_step, generator=networks.generator, latent_size=networks.latent_size
  )
  batch = devices.shard({'indices': np.arange(8, dtype=np.int32)})
  found['samples'] = devices.unshard(
    devices.parallel(sample, sharded_output=True)(state.generator, batch, SEED)
  ).astype(np.int32)
  for path, leaf in jax.tree_util.tree_leaves_with_path(state):
    found[f'state{jax.tree_util.keystr(path)}'] = np.asarray(leaf)
  found['num_devices'] = np.array(jax.local_device_count())
  np.savez(out, **found)
