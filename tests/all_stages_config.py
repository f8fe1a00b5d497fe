"""The tiny config with what else there is: a GAN whose images are added, and an independent student."""

from ml_collections import ConfigDict

from tests import tiny_config


def get_config() -> ConfigDict:
  config = tiny_config.get_config()
  config.teacher.num_members = 1
  config.predictions.extra = 'gan'
  config.predictions.num_extra = 40
  config.gan.num_steps = 40
  config.gan.num_discriminator_steps = 1
  config.gan.batch_size = 16
  config.gan.generator_width = 4
  config.gan.discriminator_width = 4
  config.gan.num_samples = 40
  config.evaluation.independent_seed = 1
  return config
