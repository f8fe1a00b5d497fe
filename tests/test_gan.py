from functools import partial

import flax.linen as nn
import gan_on_devices
import jax
import jax.numpy as jnp
import numpy as np
import PIL.Image
import pytest
import scipy.linalg
from conftest import copied, tiny_run
from gan_on_devices import NUM_SAMPLES, SHAPE, random_split, section

from kdjax import keys, models
from kdjax.data import augmentations
from kdjax.errors import MissingInputError
from kdjax.gan import steps as gan_steps
from kdjax.gan.quality import frechet_distance, grid
from kdjax.runtime import files
from kdjax.stages import gan, teachers
from kdjax.train import devices
from kdjax.train.inputs import training_batch
from tests import launched


@pytest.fixture(scope='module')
def one_step():
  """(networks, state, batch, seed) and the (state, metrics) of a step, which is compiled once."""
  networks = gan_steps.make_gan(section(), SHAPE)
  state = gan_steps.init_state(networks, 0)
  batch, seed = next(gan.batches(random_split(), section(), 0, 0))
  step = devices.parallel(partial(gan_steps.gan_step, gan=networks), donate=True)
  return (networks, state, batch, seed), step(devices.replicate(state), batch, seed)


def sampler(networks):
  """sample(variables, indices) → uint8 images."""
  step = partial(
    gan_steps.sample_step, generator=networks.generator, latent_size=networks.latent_size
  )
  step = devices.parallel(step, sharded_output=True)
  return lambda variables, indices: devices.unshard(
    step(variables, devices.shard({'indices': np.asarray(indices, np.int32)}), 5)
  )


# Losses and steps.


def test_an_update_of_the_discriminator_takes_one_power_iteration(one_step):
  (_, state, _, _), (after, _) = one_step
  block = 'DiscriminatorBlock_1'
  kernel = np.asarray(state.discriminator['params'][block]['Conv_0']['kernel']).reshape(-1, 8)
  u = state.discriminator['batch_stats'][block]['SpectralNorm_0']['Conv_0/kernel/u'][0]
  expected = kernel.T @ (kernel @ u)
  found = after.discriminator['batch_stats'][block]['SpectralNorm_0']['Conv_0/kernel/u'][0]
  np.testing.assert_allclose(found, expected / np.linalg.norm(expected), rtol=1e-4, atol=1e-6)


def test_hinge_losses():
  real, fake = jnp.array([2.0, 0.5, -1.0]), jnp.array([-3.0, -0.25, 1.0])
  np.testing.assert_allclose(gan_steps.discriminator_loss(real, fake), [0, 0.5 + 0.75, 2 + 2])
  np.testing.assert_allclose(gan_steps.generator_loss(fake), [3, 0.25, -1])


def test_adam_has_no_momentum_and_both_learning_rates_fall_linearly():
  networks = gan_steps.make_gan(section(num_steps=4, num_discriminator_steps=3), SHAPE)
  for optimizer, num_updates in [
    (networks.generator_optimizer, 4),
    (networks.discriminator_optimizer, 12),
  ]:
    state, found, update = optimizer.init(jnp.zeros(())), [], jax.jit(optimizer.update)
    for _ in range(num_updates + 1):
      change, state = update(jnp.ones(()), state)
      found.append(-float(change))
    np.testing.assert_allclose(found, np.linspace(1e-3, 1e-4, num_updates + 1), rtol=1e-4)
  # After gradients 1 and −1, β1 = 0 and β2 = 0.9: √v̂ = 1, and the update follows the last gradient.
  optimizer = gan_steps.make_gan(section(final_learning_rate=1e-3), SHAPE).generator_optimizer
  state = optimizer.init(jnp.zeros(()))
  _, state = optimizer.update(jnp.asarray(1.0), state)
  update, _ = optimizer.update(jnp.asarray(-3.0), state)
  np.testing.assert_allclose(update, 1e-3 * 3 / np.sqrt((0.09 + 0.1 * 9) / 0.19), rtol=1e-4)


def test_a_step_reports_the_losses_of_its_networks(one_step):
  """The first discriminator loss is that of the initial networks, the generator's of the new one."""
  (networks, state, batch, seed), (after, metrics) = one_step
  flat = {name: devices.unshard(x) for name, x in batch.items()}

  @jax.jit
  def generate(k):
    latents = gan_steps.draw_latents(seed, 6, 'gan/training', flat['positions'], 0, k)
    apply = partial(networks.generator.apply, train=True, mutable=['batch_stats'])
    images, _ = jax.vmap(apply, (None, 0), axis_name=models.AXIS_NAME)(
      state.generator, latents[None]
    )
    return images[0]

  score = jax.jit(lambda variables, x: networks.discriminator.apply(variables, x, train=False))
  real = augmentations.unit_cube(flat['inputs'][:, 0])
  real_scores = score(state.discriminator, real)
  fake_scores = score(state.discriminator, generate(0))
  expected = np.maximum(1 - real_scores, 0) + np.maximum(1 + fake_scores, 0)
  assert metrics['loss'][1] == 16 and metrics['generator_loss'][1] == 16
  np.testing.assert_allclose(metrics['loss'][0], expected.sum(), rtol=1e-4)
  expected = -score(after.discriminator, generate(1)).sum()
  np.testing.assert_allclose(metrics['generator_loss'][0], expected, rtol=1e-3, atol=1e-4)
  assert after.step == 1
  assert metrics['gradient_norm'][0] > 0


def test_a_step_takes_its_discriminator_steps_in_order_over_new_images():
  """Each column of a batch is the next piece of the order, from whatever step training resumes."""
  fields = section(num_discriminator_steps=3, num_steps=4, batch_size=4)
  flat = [training_batch(9, 30, 4, step)[0] for step in range(12)]
  for start in (0, 2):
    found = list(gan.batches(random_split(), fields, 9, start))
    assert len(found) == 4 - start
    for i, (batch, seed) in enumerate(found, start):
      assert seed == 9
      indices = devices.unshard(batch['indices'])
      for k in range(3):
        np.testing.assert_array_equal(indices[:, k], flat[3 * i + k])
      np.testing.assert_array_equal(
        devices.unshard(batch['inputs']), random_split().inputs_N[indices]
      )


def test_flips_follow_the_example_and_the_epoch():
  split = random_split()
  indices = np.arange(30).reshape(15, 2)
  batch = {
    'inputs': split.inputs_N[indices],
    'indices': indices,
    'epochs': np.full_like(indices, 4),
  }
  clean = np.asarray(augmentations.unit_cube(batch['inputs'][:, 1]))
  np.testing.assert_array_equal(gan_steps.real_images(batch, 0, 1, False), clean)
  flipped = jax.jit(lambda batch: gan_steps.real_images(batch, 0, 1, True))
  found = np.asarray(flipped(batch))
  as_is = (found == clean).all((1, 2, 3))
  assert 3 < as_is.sum() < 12
  np.testing.assert_array_equal(found[~as_is], clean[~as_is][:, :, ::-1])
  backwards = {name: x[::-1] for name, x in batch.items()}
  np.testing.assert_array_equal(flipped(backwards), found[::-1])
  later = batch | {'epochs': batch['epochs'] + 1}
  assert (np.asarray(flipped(later)) != found).any()


@pytest.fixture(scope='module')
def on_devices(tmp_path_factory):
  out = tmp_path_factory.mktemp('devices') / 'out.npz'
  return {count: launched.saved_on_devices(gan_on_devices, count, out) for count in (1, 2)}


def test_two_devices_give_what_one_gives(on_devices):
  """Losses, gradients, both networks, their statistics, both optimizers and samples."""
  assert len(on_devices[1]) > 60
  for name, expected in on_devices[1].items():
    tolerance = 1 if name == 'samples' else 2e-5  # a rounded pixel may go either way
    np.testing.assert_allclose(
      on_devices[2][name], expected, rtol=2e-4, atol=tolerance, err_msg=name
    )


# Samples.


def test_a_sample_depends_on_its_index_alone():
  networks = gan_steps.make_gan(section(), SHAPE)
  variables, sample = gan_steps.init_state(networks, 0).generator, sampler(networks)
  expected = sample(variables, range(12)).astype(int)
  assert len(np.unique(expected, axis=0)) == 12
  order = np.random.RandomState(0).permutation(12)
  np.testing.assert_allclose(sample(variables, order), expected[order], atol=1)
  np.testing.assert_allclose(sample(variables, [7, 3]), expected[[7, 3]], atol=1)


def test_samples_have_the_scale_of_real_images():
  class Ramp(nn.Module):
    @nn.compact
    def __call__(self, x, train):
      return augmentations.unit_cube(jnp.arange(256, dtype=jnp.uint8)).reshape(1, 16, 16, 1)

  found = gan_steps.sample_step(
    {}, {'indices': np.zeros(1, int)}, 0, generator=Ramp(), latent_size=1
  )
  assert found.dtype == jnp.uint8
  np.testing.assert_array_equal(found.reshape(-1), np.arange(256))


# Quality.


def with_moments(mean, covariance, num_examples=200, seed=0):
  """Numbers that have exactly this mean and covariance."""
  x = np.random.RandomState(seed).randn(num_examples, len(mean))
  x -= x.mean(0)[None]
  white = x @ np.linalg.inv(np.linalg.cholesky(np.cov(x, rowvar=False))).T
  return white @ np.linalg.cholesky(covariance).T + np.asarray(mean)[None]


def test_frechet_distance_of_gaussians_on_different_axes():
  rng = np.random.RandomState(2)
  first, second = (a @ a.T + 0.1 * np.eye(4) for a in rng.randn(2, 4, 4))
  x, y = with_moments(np.zeros(4), first), with_moments(np.full(4, 0.5), second, seed=1)
  root = scipy.linalg.sqrtm(first @ second).real
  expected = 4 * 0.25 + np.trace(first + second - 2 * root)
  np.testing.assert_allclose(frechet_distance(x, y), expected, rtol=1e-8)


def test_frechet_distance_of_a_set_from_itself_is_zero():
  x = np.random.RandomState(0).randn(50, 6)
  x[:, 5] = x[:, 4]  # a singular covariance, as features that are always zero have it
  assert abs(frechet_distance(x, x[::-1])) < 1e-9


# The stage.


def tiny_fields(**fields):
  return {f'gan__{name}': value for name, value in section(**fields).items()}


@pytest.fixture(scope='module')
def trained(finished, tmp_path_factory):
  """The finished teachers, and a GAN of 150 steps."""
  folder = tmp_path_factory.mktemp('gan')
  assert not gan.STAGE.run(copied(finished, folder, **tiny_fields()))  # no samples are wanted
  run = tiny_run(folder, predictions__extra='gan', predictions__num_extra=4, **tiny_fields())
  for missing in (lambda: run.data.gan_samples(1), lambda: gan.quality(run)):
    with pytest.raises(MissingInputError, match='--stages=gan'):
      missing()
  assert gan.STAGE.run(run)
  return run


def test_a_finished_stage_does_nothing(trained):
  before = {path.name: path.stat().mtime for path in trained.folders.gan.iterdir()}
  assert not gan.STAGE.run(trained)
  assert before == {path.name: path.stat().mtime for path in trained.folders.gan.iterdir()}


def test_samples_and_their_grid_are_those_of_the_trained_generator(trained):
  found = trained.data.gan_samples(NUM_SAMPLES)
  assert found.shape == (NUM_SAMPLES, 8, 8, 1) and found.dtype == np.uint8
  assert len(np.unique(found, axis=0)) > 90
  np.testing.assert_array_equal(trained.data.gan_samples(3), found[:3])
  picture = grid(found[:64])
  assert picture.shape == (8 * 8, 8 * 8, 1)
  np.testing.assert_array_equal(picture[8:16, 16:24], found[8 + 2])
  with PIL.Image.open(trained.folders.gan / 'samples.png') as image:
    np.testing.assert_array_equal(np.asarray(image), picture[..., 0])


def test_the_last_row_of_a_grid_ends_in_black():
  images = np.random.RandomState(0).randint(1, 256, (10, 2, 3, 3)).astype(np.uint8)
  picture = grid(images)
  assert picture.shape == (2 * 2, 8 * 3, 3)
  np.testing.assert_array_equal(picture[2:, 3:6], images[9])
  assert not picture[2:, 6:].any()


def test_the_generator_learns_the_digits(trained):
  """The Fréchet distance of the pixels falls far below the start's."""
  seed = keys.derive_seed(trained.config.gan.seed, 'gan', 0)
  networks = gan_steps.make_gan(section(), SHAPE)
  pixels = lambda images: images.reshape(len(images), -1) / 255
  distance = lambda images: frechet_distance(
    pixels(images), pixels(trained.data.splits['train'].inputs_N)
  )
  before = sampler(networks)(gan_steps.init_state(networks, seed).generator, range(NUM_SAMPLES))
  assert distance(trained.data.gan_samples(NUM_SAMPLES)) < distance(before) / 3


def test_the_log_has_the_losses_and_the_learning_rate(trained):
  rows = files.read_json_lines(trained.folders.gan / 'metrics.jsonl')
  assert [row['step'] for row in rows][-3:] == [135, 137, 150]  # the last epoch has 13 steps
  for row in rows:
    assert np.isfinite(
      [row['train/loss'], row['train/generator_loss'], row['train/gradient_norm']]
    ).all()
    assert row['learning_rate'] == pytest.approx(1e-3 - 9e-4 * row['step'] / 150)


def test_quality_is_measured_in_the_features_of_the_teacher(trained):
  quality = gan.quality(trained)
  assert quality['num_images'] == {'samples': NUM_SAMPLES, 'train': 200, 'test': 360}
  model, variables = trained.teacher.model, teachers.load(trained, 0)

  sets = [trained.data.gan_samples(NUM_SAMPLES)]
  sets += [trained.data.splits[name].inputs_N for name in ('train', 'test')]
  features = jax.jit(lambda x: model.apply(variables, augmentations.unit_cube(x), train=False)[1])
  last = np.asarray(features(np.concatenate(sets))['last'])
  of_samples, train, test = np.split(last, [NUM_SAMPLES, NUM_SAMPLES + 200])
  distances = quality['frechet_distance_teacher_features']
  assert quality['num_features'] == train.shape[1]
  for name, (x, y) in {
    'samples_train': (of_samples, train),
    'samples_test': (of_samples, test),
    'train_test': (train, test),
  }.items():
    np.testing.assert_allclose(distances[name], frechet_distance(x, y), rtol=1e-3)
  assert 0 < distances['train_halves'] < distances['samples_train']


def test_more_samples_can_be_drawn_later(trained, monkeypatch):
  """The generator is kept, and its first samples are the same."""
  first, folder = trained.data.gan_samples(NUM_SAMPLES), trained.folders.gan
  monkeypatch.setitem(trained.config.gan, 'num_samples', 130)
  with pytest.raises(MissingInputError, match='130 samples, and there are 100'):
    trained.data.gan_samples(130)
  trained_at = (folder / 'complete.json').stat().mtime
  assert gan.STAGE.run(trained)
  assert (folder / 'complete.json').stat().mtime == trained_at
  np.testing.assert_array_equal(trained.data.gan_samples(130)[:NUM_SAMPLES], first)


def test_a_gan_needs_a_teacher_before_its_first_step(tmp_path):
  run = tiny_run(tmp_path, predictions__extra='gan', **tiny_fields())
  with pytest.raises(MissingInputError, match='--stages=teachers'):
    gan.STAGE.run(run)
  assert not run.folders.gan.exists()
