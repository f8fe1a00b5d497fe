"""Stage 'gan': SN-GAN, a generator of unlabelled images (Miyato et al. 2018).

It is trained on the training set with the hinge loss. samples.npz then holds images; image i is a pure
function of the config and i. quality.json has their distance to real images. Axes: N example, H W C
image.
"""

import io
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import jax
import numpy as np
import optax
import PIL.Image
from ml_collections import ConfigDict

from kdjax import config as config_lib
from kdjax import data, keys
from kdjax.errors import MissingInputError
from kdjax.gan import steps as gan_steps
from kdjax.gan.quality import GRID, frechet_distance, grid
from kdjax.runtime import files, hosts
from kdjax.stages import teachers
from kdjax.stages.experiment import Experiment
from kdjax.stages.stage import Job, Stage
from kdjax.train import devices, loop
from kdjax.train.inputs import pad, training_batch
from kdjax.train.steps import Batch, Variables


def _jobs(experiment: Experiment) -> Sequence[Job]:
  folder, count = experiment.folders.gan, experiment.config.gan.num_samples
  if not config_lib.needs_gan(experiment.config):
    return []
  return [
    Job(
      folder,
      is_complete=partial(_is_complete, experiment),
      make=partial(_make, experiment),
      missing=f'the GAN is not trained: {folder} should have {count} samples.',
      provenance=experiment.data.training,
      artefact='gan',
    )
  ]


STAGE = Stage('gan', _jobs, requires=lambda experiment: [teachers.STAGE])


def _is_complete(experiment: Experiment) -> bool:
  """Whether there are enough samples. quality.json is written last."""
  folder = experiment.folders.gan

  def is_written() -> bool:
    if not all((folder / name).exists() for name in ('samples.npz', 'quality.json')):
      return False
    return quality(experiment)['num_images']['samples'] >= experiment.config.gan.num_samples

  return hosts.decide(is_written)


def _make(experiment: Experiment) -> None:
  teacher = teachers.load(experiment, 0)  # raises before hours of work
  if not loop.is_complete(experiment.folders.gan):
    _train(experiment)
  _write_samples(experiment)
  hosts.barrier()
  _write_quality(experiment, teacher)


def seed_of(experiment: Experiment) -> int:
  return keys.derive_seed(experiment.config.gan.seed, 'gan', 0)


def _gan(experiment: Experiment) -> gan_steps.Gan:
  return gan_steps.make_gan(experiment.config.gan, experiment.data.description.input_shape)


def _train(experiment: Experiment) -> None:
  section, seed, gan = experiment.config.gan, seed_of(experiment), _gan(experiment)
  plan = loop.make_plan(
    section.num_steps,
    section.batch_size * section.num_discriminator_steps,
    experiment.data.sizes['train'],
    keep_checkpoints=(),
    **experiment.config.training,
  )
  loop.fit(
    experiment.folders.gan,
    'GAN',
    plan,
    like=jax.eval_shape(lambda: gan_steps.init_state(gan, 0)),
    init=lambda: gan_steps.init_state(gan, seed),
    step=devices.parallel(partial(gan_steps.gan_step, gan=gan), donate=True),
    inputs=partial(batches, experiment.data.splits['train'], section, seed),
    evaluate=lambda state: {},
    learning_rate=optax.linear_schedule(
      section.learning_rate, section.final_learning_rate, section.num_steps
    ),
    run=experiment.tracked(f'GAN {experiment.folders.gan.name}', experiment.folders.gan),
  )


def batches(
  split: data.Split, section: ConfigDict, seed: int, start: int
) -> Iterator[tuple[Batch, int]]:
  """The arguments of `gan_step` beside the state, for steps start, start + 1, ... of the generator."""
  size, per_step = section.batch_size, section.num_discriminator_steps
  positions_B, share = np.arange(size, dtype=np.int32), hosts.share(size)
  for step in range(start, section.num_steps):
    order = training_batch(seed, len(split), size * per_step, step)
    # The devices share the images of each discriminator step, so their number changes nothing.
    indices, epochs = (x.reshape(per_step, size).T[share] for x in order)
    batch = {'indices': indices, 'epochs': epochs, 'inputs': split.inputs_N[indices]}
    yield devices.shard(batch | {'positions': positions_B[share]}), seed


def _in_batches(array_N: np.ndarray, name: str, batch_size: int) -> Iterator[tuple[Batch, int]]:
  """Batches of one array, named `name`, in order, and how many examples of each count."""
  for indices_B, count in zip(*pad(np.arange(len(array_N)), batch_size), strict=True):
    yield devices.shard({name: array_N[indices_B[hosts.share(batch_size)]]}), count


# Samples.


def _write_samples(experiment: Experiment) -> None:
  """Writes samples.npz, and samples.png to look at."""
  section, folder, predictor = experiment.config.gan, experiment.folders.gan, experiment.predictor
  path = folder / 'samples.npz'
  # Existing samples are kept: computed in other batches, a pixel could differ by one level.
  pieces = [files.read_arrays(path)['images_NHWC']] if path.exists() else []
  indices_N = np.arange(sum(map(len, pieces)), section.num_samples, dtype=np.int32)
  if len(indices_N):
    gan = _gan(experiment)
    step = partial(gan_steps.sample_step, generator=gan.generator, latent_size=section.latent_size)
    state = loop.restore(folder, jax.eval_shape(lambda: gan_steps.init_state(gan, 0)))
    generator = devices.replicate(state.generator)
    indices = _in_batches(indices_N, 'indices', predictor.batch_size)
    pieces.append(predictor.outputs(step, generator, indices, seed_of(experiment)))
  images_NHWC = np.concatenate(pieces)
  files.write_arrays(path, {'images_NHWC': images_NHWC})
  grid_HWC = grid(images_NHWC[: GRID * GRID])
  image = PIL.Image.fromarray(grid_HWC[..., 0] if grid_HWC.shape[-1] == 1 else grid_HWC)
  buffer = io.BytesIO()
  image.save(buffer, 'PNG')
  files.write_bytes(folder / 'samples.png', buffer.getvalue())


# Quality.


def quality(experiment: Experiment) -> dict[str, Any]:
  """The content of quality.json.

  Raises:
    MissingInputError: the GAN is not trained.
  """
  path = experiment.folders.gan / 'quality.json'
  if not path.exists():
    raise MissingInputError(
      f'the GAN is not trained: there is no {path}. Run the same command with --stages=gan first.'
    )
  return files.read_json(path)


def _write_quality(experiment: Experiment, teacher: Variables) -> None:
  """Writes Fréchet distances in features of the first teacher; those between real images are the floor."""
  predictor, splits = experiment.predictor, experiment.data.splits
  step, seed = partial(gan_steps.features_step, model=experiment.teacher.model), seed_of(experiment)

  def features(images_NHWC):
    images = _in_batches(images_NHWC, 'inputs', predictor.batch_size)
    return predictor.outputs(step, teacher, images, seed)

  features_of = {
    'samples': features(experiment.data.gan_samples()),
    'train': features(splits['train'].inputs_N),
    'test': features(splits['test'].inputs_N),
  }
  samples, train, test = features_of.values()
  order_N = keys.numpy_rng(seed, 'halves').permutation(len(train))
  distances = {
    'samples_train': frechet_distance(samples, train),
    'samples_test': frechet_distance(samples, test),
    'train_test': frechet_distance(train, test),
    'train_halves': frechet_distance(*np.array_split(train[order_N], 2)),
  }
  files.write_json(
    experiment.folders.gan / 'quality.json',
    {
      'num_images': {name: len(found) for name, found in features_of.items()},
      'teacher': {'fingerprint': config_lib.teacher_fingerprint(experiment.config), 'member': 0},
      'num_features': train.shape[1],
      'frechet_distance_teacher_features': distances,
    },
  )
