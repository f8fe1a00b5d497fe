"""The stage after the teachers: SN-GAN, a generator of unlabelled images (Miyato et al. 2018).

It is trained on the training set, with the hinge loss. Then `samples.npz` holds images of which image
i is a pure function of the config and i, and `quality.json` says how far they are from real ones.
Axes: B batch, N example, F feature, H W C image.
"""

import io
from collections.abc import Callable, Iterator
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
from kdjax.gan.steps import Gan
from kdjax.runtime import files, hosts
from kdjax.stages import teachers
from kdjax.stages.run import Run
from kdjax.train import devices, loop
from kdjax.train.checkpoint import Checkpoints
from kdjax.train.steps import Batch, Variables

GRID = 8  # rows and columns of samples.png


def run(run: Run) -> bool:
  """Trains, samples and judges where samples are wanted. Returns whether there was anything to do.

  Raises:
    MissingInputError: there is no teacher to judge the samples with.
  """
  if not config_lib.needs_gan(run.config):
    return False
  with files.lock(run.gan_folder):
    if is_complete(run):
      run.write_config(run.gan_folder)
      return False
    teacher = teachers.load(run, 0)  # raises before hours of work, not after
    if not loop.is_complete(run.gan_folder):
      _train(run)
    _write_samples(run)
    hosts.barrier()
    _write_quality(run, teacher)
    return True


def require(run: Run) -> None:
  """Raises MissingInputError if samples are wanted and not all there."""
  if config_lib.needs_gan(run.config) and not is_complete(run):
    raise MissingInputError(
      f'the GAN is not trained: {run.gan_folder} should have {run.config.gan.num_samples} samples. '
      'Run the same command with --stages=gan first.'
    )


def is_complete(run: Run) -> bool:
  """Whether there are as many samples as are wanted. quality.json, written last, knows."""

  def is_written() -> bool:
    files_there = [(run.gan_folder / name).exists() for name in ('samples.npz', 'quality.json')]
    return all(files_there) and (
      quality(run)['num_images']['samples'] >= run.config.gan.num_samples
    )

  return hosts.decide(is_written)


def batches(
  split: data.Split, section: ConfigDict, seed: int, start: int
) -> Iterator[tuple[Batch, int]]:
  """What `gan_steps.gan_step` takes beside the state, for the generator's steps start, start + 1, ..."""
  size, per_step = section.batch_size, section.num_discriminator_steps
  order = data.training_batches(seed, len(split), size * per_step, section.num_steps, start)
  positions_B, share = np.arange(size, dtype=np.int32), hosts.share(size)
  for flat in order:
    # The devices share out each discriminator step's images, however many devices there are.
    batch = {name: x.reshape(per_step, size).T[share] for name, x in flat.items()}
    batch |= {'inputs': split.inputs_N[batch['indices']], 'positions': positions_B[share]}
    yield devices.shard(batch), seed


def _seed(run: Run) -> int:
  return keys.derive_seed(run.config.gan.seed, 'gan', 0)


def _train(run: Run) -> None:
  section, seed = run.config.gan, _seed(run)
  gan = gan_steps.make_gan(section, run.description.input_shape)
  plan = loop.make_plan(
    section.num_steps,
    section.batch_size * section.num_discriminator_steps,
    run.sizes['train'],
    keep_checkpoints=(),
    **run.config.training,
  )
  run.begin(run.gan_folder, 'teacher')
  loop.fit(
    run.gan_folder,
    'GAN',
    plan,
    like=jax.eval_shape(lambda: gan_steps.init_state(gan, 0)),
    init=lambda: gan_steps.init_state(gan, seed),
    step=devices.parallel(partial(gan_steps.gan_step, gan=gan), donate=True),
    inputs=lambda start: batches(run.splits['train'], section, seed, start),
    evaluate=lambda state: {},
    learning_rate=optax.linear_schedule(
      section.learning_rate, section.final_learning_rate, section.num_steps
    ),
  )


def _load_generator(run: Run, gan: Gan) -> Variables:
  folder = run.gan_folder
  run.begin(folder, 'teacher')
  step = files.read_json(folder / 'complete.json')['step']
  with Checkpoints(folder / 'checkpoints', read_only=True) as checkpoints:
    state = checkpoints.restore(jax.eval_shape(lambda: gan_steps.init_state(gan, 0)), step)
  return devices.replicate(state.generator)


def _in_batches(
  step: Callable, variables: Variables, array_N: np.ndarray, name: str, batch_size: int, seed: int
) -> np.ndarray:
  """What a step gives for each of the N, in order. The last batch is filled up with its first."""
  step = devices.parallel(step, gathered_output=True)
  found = []
  for start in range(0, len(array_N), batch_size):
    array_B = array_N[start : start + batch_size]
    count = len(array_B)
    padded_B = np.concatenate([array_B, np.repeat(array_B[:1], batch_size - count, axis=0)])
    batch = devices.shard({name: padded_B[hosts.share(batch_size)]})
    found.append(devices.unshard(step(variables, batch, seed))[:count])
  return np.concatenate(found)


# Samples.


def _write_samples(run: Run) -> None:
  """Writes samples.npz, and samples.png for the eye."""
  section, batch_size = run.config.gan, run.config.evaluation.batch_size
  gan = gan_steps.make_gan(section, run.description.input_shape)
  step = partial(gan_steps.sample_step, generator=gan.generator, latent_size=section.latent_size)
  path = run.gan_folder / 'samples.npz'
  # What is there stays: computed in other batches, a pixel could come out one level off.
  pieces = [files.read_arrays(path)['images_NHWC']] if path.exists() else []
  indices_N = np.arange(sum(map(len, pieces)), section.num_samples, dtype=np.int32)
  if len(indices_N):
    generator = _load_generator(run, gan)
    pieces.append(_in_batches(step, generator, indices_N, 'indices', batch_size, _seed(run)))
  images_NHWC = np.concatenate(pieces)
  files.write_arrays(path, {'images_NHWC': images_NHWC})
  grid_HWC = grid(images_NHWC[: GRID * GRID])
  image = PIL.Image.fromarray(grid_HWC[..., 0] if grid_HWC.shape[-1] == 1 else grid_HWC)
  buffer = io.BytesIO()
  image.save(buffer, 'PNG')
  files.write_bytes(run.gan_folder / 'samples.png', buffer.getvalue())


def grid(images_NHWC: np.ndarray) -> np.ndarray:
  """Rows of eight; the last row ends in black."""
  count, height, width, channels = images_NHWC.shape
  rows = -(-count // GRID)
  padded = np.zeros((rows * GRID, height, width, channels), np.uint8)
  padded[:count] = images_NHWC
  tiles = padded.reshape(rows, GRID, height, width, channels)
  return tiles.transpose(0, 2, 1, 3, 4).reshape(rows * height, GRID * width, channels)


# Quality.


def frechet_distance(x_NF: np.ndarray, y_NF: np.ndarray) -> float:
  """Of the Gaussians with the means and covariances of two sets of features (Heusel et al. 2017).

  |μ_x − μ_y|² + Tr(Σ_x + Σ_y − 2 (Σ_x Σ_y)^½), squared as in the FID. It grows as the sets shrink, so
  compare distances of sets of like sizes.
  """
  x_NF, y_NF = np.asarray(x_NF, np.float64), np.asarray(y_NF, np.float64)
  mean_x_F, mean_y_F = x_NF.mean(0), y_NF.mean(0)
  covariance_x_FF, covariance_y_FF = (np.atleast_2d(np.cov(z, rowvar=False)) for z in (x_NF, y_NF))
  # The eigenvalues of Σ_x Σ_y are the squares of these singular values.
  shared_F = np.linalg.svd(_root(covariance_x_FF) @ _root(covariance_y_FF), compute_uv=False)
  traces = np.trace(covariance_x_FF) + np.trace(covariance_y_FF)
  return float(np.sum((mean_x_F - mean_y_F) ** 2) + traces - 2 * shared_F.sum())


def _root(covariance_FF: np.ndarray) -> np.ndarray:
  eigenvalues_F, vectors_FF = np.linalg.eigh(covariance_FF)
  return (vectors_FF * np.sqrt(eigenvalues_F.clip(0))[None]) @ vectors_FF.T


def quality(run: Run) -> dict[str, Any]:
  """The content of quality.json.

  Raises:
    MissingInputError: the GAN is not trained.
  """
  path = run.gan_folder / 'quality.json'
  if not path.exists():
    raise MissingInputError(
      f'the GAN is not trained: there is no {path}. Run the same command with --stages=gan first.'
    )
  return files.read_json(path)


def _write_quality(run: Run, teacher: Variables) -> None:
  """Fréchet distances in the features of the first teacher, and those of real images as the floor."""
  step = partial(gan_steps.features_step, model=run.teacher_model)

  def features(images_NHWC):
    batch_size = run.config.evaluation.batch_size
    return _in_batches(step, teacher, images_NHWC, 'inputs', batch_size, _seed(run))

  of_samples = features(run.gan_samples())
  of_train = features(run.splits['train'].inputs_N)
  of_test = features(run.splits['test'].inputs_N)
  order_N = keys.numpy_rng(_seed(run), 'halves').permutation(len(of_train))
  halves = np.array_split(of_train[order_N], 2)
  distances = {
    'samples_train': frechet_distance(of_samples, of_train),
    'samples_test': frechet_distance(of_samples, of_test),
    'train_test': frechet_distance(of_train, of_test),
    'train_halves': frechet_distance(*halves),
  }
  counts = {'samples': len(of_samples), 'train': len(of_train), 'test': len(of_test)}
  files.write_json(
    run.gan_folder / 'quality.json',
    {
      'num_images': counts,
      'teacher': {'fingerprint': config_lib.teacher_fingerprint(run.config), 'member': 0},
      'num_features': of_train.shape[1],
      'frechet_distance_teacher_features': distances,
    },
  )
