"""Takes a few steps of a GAN on all devices and saves the results; test_gan.py runs it on one and on two."""

import itertools
import pathlib
from functools import partial

import jax
import numpy as np
from ml_collections import ConfigDict

from kdjax import data
from kdjax.config import base
from kdjax.gan import steps as gan_steps
from kdjax.stages import gan
from kdjax.train import devices

SHAPE = (8, 8, 1)
NUM_STEPS, NUM_SAMPLES = 3, 100


def section(**fields) -> ConfigDict:
  """A small `gan` section; that of a run is the same, so that both share their programs."""
  section = base.get_config().gan
  defaults = {
    'num_steps': 150,
    'batch_size': 16,
    'num_discriminator_steps': 1,
    'latent_size': 6,
    'generator_width': 12,
    'discriminator_width': 8,
    'learning_rate': 1e-3,
    'final_learning_rate': 1e-4,
    'flip': False,
    'num_samples': NUM_SAMPLES,
  }
  section.update(defaults | fields)
  return section


def random_split(num_examples: int = 30) -> data.Split:
  images = np.random.RandomState(0).randint(0, 256, (num_examples, *SHAPE)).astype(np.uint8)
  return data.Split(images, np.zeros(num_examples, np.int32))


def main(out: str | pathlib.Path) -> None:
  fields = section(num_discriminator_steps=2, flip=True)
  networks = gan_steps.make_gan(fields, SHAPE)
  step = devices.parallel(partial(gan_steps.gan_step, gan=networks), donate=True)
  state = devices.replicate(gan_steps.init_state(networks, seed=0))
  found = {}
  batches = gan.batches(random_split(), fields, seed=0, start=0)
  for i, arguments in enumerate(itertools.islice(batches, NUM_STEPS)):
    state, metrics = step(state, *arguments)
    for name in metrics.names:
      found[f'{i}/{name}'] = np.asarray(metrics[name])
  sample = partial(
    gan_steps.sample_step, generator=networks.generator, latent_size=networks.latent_size
  )
  batch = devices.shard({'indices': np.arange(8, dtype=np.int32)})
  found['samples'] = devices.unshard(
    devices.parallel(sample, sharded_output=True)(state.generator, batch, 0)
  ).astype(np.int32)
  for path, leaf in jax.tree_util.tree_leaves_with_path(state):
    found[f'state{jax.tree_util.keystr(path)}'] = np.asarray(leaf)
  found['num_devices'] = np.array(jax.local_device_count())
  np.savez(out, **found)
