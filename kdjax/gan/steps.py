"""SN-GAN's state and its pure steps, with the hinge loss (Miyato et al. 2018).

As in `train/steps.py`, a step sees one device's share of a batch, and sums are over all devices. Axes: B
batch of one device, K discriminator step, Z latent, F feature, H W C image.
"""

import dataclasses
import functools

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import optax
from ml_collections import ConfigDict, FrozenConfigDict

from kdjax import keys, models
from kdjax.data import augmentations
from kdjax.gan import networks as gan_networks
from kdjax.models import AXIS_NAME
from kdjax.train.steps import Batch, Metrics, Variables


class GanState(flax.struct.PyTreeNode):
  """Everything that a GAN's training changes."""

  step: jax.Array  # of the generator
  generator: Variables
  discriminator: Variables  # its 'batch_stats' are the vectors of the power iterations
  generator_opt: optax.OptState
  discriminator_opt: optax.OptState


@dataclasses.dataclass(frozen=True)
class Gan:
  """The static part of a training: the networks, their optimizers, and the settings of a step."""

  generator: nn.Module
  discriminator: nn.Module
  generator_optimizer: optax.GradientTransformation
  discriminator_optimizer: optax.GradientTransformation
  num_discriminator_steps: int
  latent_size: int
  flip: bool


def make_gan(section: ConfigDict, image_shape_HWC: tuple[int, int, int]) -> Gan:
  """The GAN that the config section `gan` describes, for images of one shape.

  Equal arguments give the same object, so that equal steps are compiled once.
  """
  return _make_gan(FrozenConfigDict(section), tuple(image_shape_HWC))


@functools.lru_cache
def _make_gan(section: FrozenConfigDict, image_shape_HWC: tuple[int, int, int]) -> Gan:
  def adam(num_updates):
    rate = optax.linear_schedule(section.learning_rate, section.final_learning_rate, num_updates)
    return optax.adam(rate, b1=0.0, b2=0.9)

  return Gan(
    gan_networks.Generator(image_shape_HWC, section.generator_width),
    gan_networks.Discriminator(section.discriminator_width),
    adam(section.num_steps),
    adam(section.num_steps * section.num_discriminator_steps),
    section.num_discriminator_steps,
    section.latent_size,
    section.flip,
  )


def init_state(gan: Gan, seed: int) -> GanState:
  """Fresh networks; the seed alone decides them."""
  image_shape_HWC = gan.generator.image_shape_HWC
  generator = models.init(gan.generator, keys.stream(seed, 'generator'), (gan.latent_size,))
  discriminator = models.init(
    gan.discriminator, keys.stream(seed, 'discriminator'), image_shape_HWC
  )
  return GanState(
    jnp.zeros((), jnp.int32),
    generator,
    discriminator,
    gan.generator_optimizer.init(generator['params']),
    gan.discriminator_optimizer.init(discriminator['params']),
  )


def discriminator_loss(real_B: jax.Array, fake_B: jax.Array) -> jax.Array:
  """The hinge loss of the scores of real and generated images, by pair (Miyato et al., Section 4)."""
  return nn.relu(1 - real_B) + nn.relu(1 + fake_B)


def generator_loss(fake_B: jax.Array) -> jax.Array:
  """The loss of the scores of generated images, by image (Miyato et al., Section 4)."""
  return -fake_B


def gan_step(
  state: GanState, batch: Batch, seed: jax.Array, *, gan: Gan
) -> tuple[GanState, Metrics]:
  """K steps of the discriminator on new images each, then one step of the generator.

  Args:
    batch: 'inputs' (B, K, H, W, C), real images in uint8; their 'indices' and 'epochs' (B, K), which decide
      their flips; and 'positions' (B,) in the batch over all devices, which decide the latents of a step.
  """
  count = jnp.asarray(jax.lax.psum(len(batch['positions']), AXIS_NAME))

  def latents(k):
    return draw_latents(seed, gan.latent_size, 'gan/training', batch['positions'], state.step, k)

  loss = jnp.zeros(())
  for k in range(gan.num_discriminator_steps):
    real_BHWC = real_images(batch, seed, k, gan.flip)
    state, loss_k = _discriminator_update(state, real_BHWC, latents(k), count, gan)
    loss += loss_k
  state, generator_loss, gradient_norm = _generator_update(
    state, latents(gan.num_discriminator_steps), count, gan
  )
  metrics = {
    'loss': (loss, count * gan.num_discriminator_steps),  # of the discriminator
    'generator_loss': (generator_loss, count),
    'gradient_norm': (gradient_norm, 1),  # of the generator, through the discriminator
  }
  return state.replace(step=state.step + 1), Metrics.from_sums(metrics)


def _discriminator_update(
  state: GanState, real_BHWC: jax.Array, latents_BZ: jax.Array, count: jax.Array, gan: Gan
) -> tuple[GanState, jax.Array]:
  """The next state, and the sum of the loss over the batch."""
  # BatchNorm's running statistics follow the generator's own steps alone.
  fake_BHWC, _ = gan.generator.apply(
    state.generator, latents_BZ, train=True, mutable=['batch_stats']
  )
  # One call for both, so that an update takes one power iteration.
  images_BHWC = jnp.concatenate([real_BHWC, fake_BHWC])

  def mean_loss(params):
    variables = state.discriminator | {'params': params}
    scores, updated = gan.discriminator.apply(
      variables, images_BHWC, train=True, mutable=['batch_stats']
    )
    total = discriminator_loss(*jnp.split(scores, 2)).sum()
    return total / count, (total, updated['batch_stats'])

  params = state.discriminator['params']
  gradient, (total, batch_stats) = jax.grad(mean_loss, has_aux=True)(params)
  gradient, total = jax.lax.psum((gradient, total), AXIS_NAME)
  updates, opt_state = gan.discriminator_optimizer.update(gradient, state.discriminator_opt)
  params = optax.apply_updates(params, updates)
  discriminator = {'params': params, 'batch_stats': batch_stats}
  return state.replace(discriminator=discriminator, discriminator_opt=opt_state), total


def _generator_update(
  state: GanState, latents_BZ: jax.Array, count: jax.Array, gan: Gan
) -> tuple[GanState, jax.Array, jax.Array]:
  """The next state, the sum of the loss over the batch, and the norm of the gradient."""

  def mean_loss(params):
    variables = state.generator | {'params': params}
    fake_BHWC, updated = gan.generator.apply(
      variables, latents_BZ, train=True, mutable=['batch_stats']
    )
    scores_B = gan.discriminator.apply(state.discriminator, fake_BHWC, train=False)
    total = generator_loss(scores_B).sum()
    return total / count, (total, updated['batch_stats'])

  params = state.generator['params']
  gradient, (total, batch_stats) = jax.grad(mean_loss, has_aux=True)(params)
  gradient, total = jax.lax.psum((gradient, total), AXIS_NAME)
  updates, opt_state = gan.generator_optimizer.update(gradient, state.generator_opt)
  params = optax.apply_updates(params, updates)
  generator = {'params': params, 'batch_stats': batch_stats}
  state = state.replace(generator=generator, generator_opt=opt_state)
  return state, total, optax.tree.norm(gradient)


def real_images(batch: Batch, seed: jax.Array, k: int, flip: bool) -> jax.Array:
  """images_BHWC of the k-th discriminator step, in [−1, 1]."""

  def flipped(image_HWC, index, epoch):
    return augmentations.flip(keys.stream(seed, 'gan/flip', epoch, index), image_HWC)

  images_BHWC = augmentations.unit_cube(batch['inputs'][:, k])
  if not flip:
    return images_BHWC
  return jax.vmap(flipped)(images_BHWC, batch['indices'][:, k], batch['epochs'][:, k])


def draw_latents(
  seed: jax.Array, size: int, name: str, indices_B: jax.Array, *first: int | jax.Array
) -> jax.Array:
  """Standard normal latents_BZ, each from its own key: the stream at (*first, index)."""
  draw = lambda index: jax.random.normal(keys.stream(seed, name, *first, index), (size,))
  return jax.vmap(draw)(indices_B)


def sample_step(
  variables: Variables, batch: Batch, seed: jax.Array, *, generator: nn.Module, latent_size: int
) -> jax.Array:
  """The uint8 images_BHWC with the numbers `indices` (B,), with BatchNorm's running statistics."""
  latents_BZ = draw_latents(seed, latent_size, 'gan/latent', batch['indices'])
  images_BHWC = generator.apply(variables, latents_BZ, train=False)
  return jnp.round((images_BHWC + 1) * 127.5).astype(jnp.uint8)


def features_step(
  variables: Variables, batch: Batch, seed: jax.Array, *, model: nn.Module
) -> jax.Array:
  """features_BF, the inputs of a classifier's last layer, for uint8 images (`inputs`)."""
  del seed
  _, features = model.apply(variables, augmentations.unit_cube(batch['inputs']), train=False)
  return list(features.values())[-1]
