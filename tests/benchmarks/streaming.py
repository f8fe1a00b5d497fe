"""Images in memory against images that stay on disk: python -m tests.benchmarks.streaming

Memory of training inputs against the number of examples; images a second by the number of processes, of
small images and of such as ImageNet's; and what follows from that for ImageNet. Two minutes on two cores.
The sets are JPEGs that look like nothing, in the layout of TFDS, in a temporary folder; reading them is
reading from memory, so that a disk may be slower.
"""

import dataclasses
import io
import os
import pathlib
import tempfile
import time
from collections.abc import Iterator

import numpy as np
import PIL.Image
from rich.table import Table

from kdjax import data
from kdjax.data import streaming, tfds_sets
from kdjax.data.views import make_view
from kdjax.runtime import progress
from kdjax.train.inputs import Inputs
from tests.benchmarks import timing
from tests.tiny_data import image_feature, label_feature, section, write_tfds

SIZES = (2000, 8000, 32_000)
BATCH, NUM_BATCHES = 128, 100  # of each measurement of memory
WORKERS = (0, 1, 2)
DISTINCT = 32  # images of a set; the others repeat them
IMAGENET = 1_281_167
IMAGENET_CLASSES = 1000
FLOAT16, FLOAT32 = 2, 4


@dataclasses.dataclass(frozen=True)
class Kind:
  """The images of a set."""

  name: str
  height: int
  width: int
  image_size: int | None
  num_timed: int


SMALL = Kind('64 x 64', 64, 64, None, 16_384)
LARGE = Kind('400 x 500 to 224 x 224', 400, 500, 224, 1024)


def photo(height: int, width: int, seed: int) -> bytes:
  """A JPEG of about half a byte a pixel, as the files of ImageNet are."""
  rng = np.random.RandomState(seed)
  coarse = rng.randint(0, 256, (height // 16, width // 16, 3)).astype(np.uint8)
  smooth = np.asarray(PIL.Image.fromarray(coarse).resize((width, height)), np.float32)
  noisy = smooth + 14 * rng.randn(height, width, 1)
  content = io.BytesIO()
  PIL.Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(content, 'JPEG', quality=90)
  return content.getvalue()


def write(data_dir: pathlib.Path, kind: Kind, num: int) -> int:
  """Writes a set of so many examples. Returns the bytes of an image, on average."""
  photos = [photo(kind.height, kind.width, seed) for seed in range(DISTINCT)]
  records = [{'image': photos[i % DISTINCT], 'label': i % 3} for i in range(num)]
  shape = (kind.height, kind.width) if kind.image_size is None else (-1, -1)
  features = {'image': image_feature(*shape, 3), 'label': label_feature(3)}
  write_tfds(data_dir, features, {'train': records, 'test': records[:1]})
  return sum(map(len, photos)) // DISTINCT


def inputs_of(data_dir: pathlib.Path, kind: Kind, **fields) -> Inputs:
  config = section(name='tiny', data_dir=str(data_dir), image_size=kind.image_size, **fields)
  return Inputs(data.load(config)['train'], make_view((), None), seed=0)


def memory(data_dir: pathlib.Path, is_streamed: bool) -> int:
  """Bytes that loading a set and going through batches takes, on top of the program itself."""
  inputs_of(data_dir, SMALL, num_train=3, num_test=1)  # the libraries
  before = timing.peak_bytes()
  inputs = inputs_of(data_dir, SMALL, streaming=is_streamed)
  for _ in inputs.training(0, BATCH, NUM_BATCHES, 0):
    pass
  return timing.peak_bytes() - before


@dataclasses.dataclass(frozen=True)
class Speed:
  first_seconds: float  # until the first batch is there
  images_per_second: float  # after it


def speed(data_dir: pathlib.Path, kind: Kind, num_workers: int) -> Speed:
  streaming.MIN_ROWS_FOR_WORKERS = 0
  inputs = inputs_of(data_dir, kind, streaming=True, num_workers=num_workers)
  start = time.perf_counter()
  batches = inputs.training(0, BATCH, kind.num_timed // BATCH + 1, 0)
  next(batches)
  first = time.perf_counter()
  num_images = BATCH * sum(1 for _ in batches)
  rate = num_images / (time.perf_counter() - first)
  return Speed(first - start, rate)


def label_seconds(data_dir: pathlib.Path, num: int) -> float:
  """For the label of one example: it lies beside the image, so the images are read too."""
  source = tfds_sets.Tfds('tiny', str(data_dir))
  source.labels('train')  # opens the files
  return timing.seconds(lambda: source.labels('train')) / num


def memory_rows(folder: pathlib.Path) -> Iterator[tuple[str, ...]]:
  for num in SIZES:
    write(folder / str(num), SMALL, num)
    taken = [timing.alone(memory, folder / str(num), is_streamed) for is_streamed in (False, True)]
    yield (f'{num:,}', *(f'{size / 1e6:,.0f}' for size in taken))


def imagenet(num_bytes: int, of_label: float, speeds: dict[int, Speed]) -> Iterator[str]:
  """An estimate for it: from bytes of an image, seconds for a label, and speeds by processes."""
  rate, threads = speeds[1].images_per_second, speeds[0].images_per_second
  hours = IMAGENET / rate / 3600
  yield f'an epoch of {IMAGENET:,} images: {hours:.2f} hours with one process ({rate:,.0f} images/s)'
  yield f'with the threads of {os.cpu_count()} cores: {IMAGENET / threads / 3600:.2f} hours'
  yield f'with 32 processes on cores of their own, if they scale: {60 * hours / 32:.1f} minutes'
  gigabytes = IMAGENET * num_bytes / 1e9
  yield f'labels, at each start: {of_label * IMAGENET / 60:.1f} minutes, in which {gigabytes:.0f} GB are read'
  view = IMAGENET * IMAGENET_CLASSES
  yield f'a stored view of a member, float16: {view * FLOAT16 / 1e9:.2f} GB before compression'
  yield f'log-probabilities of a view in memory, float32: {view * FLOAT32 / 1e9:.1f} GB'
  images = IMAGENET * 224 * 224 * 3
  yield f'the images in memory instead: {images / 1e9:.0f} GB'


def main() -> None:
  with tempfile.TemporaryDirectory() as temporary:
    folder = pathlib.Path(temporary)
    table = Table(title='Training inputs of 64 x 64 pixels: peak memory above the program, MB')
    for heading in ('examples', 'in memory', 'streamed'):
      table.add_column(heading, justify='right')
    for row in memory_rows(folder):
      table.add_row(*row)
    progress.console.print(table)
    table = Table(title=f'Streamed, on {os.cpu_count()} cores')
    for heading in ('images', 'bytes', 'processes', 'images/s', 'first batch, s'):
      table.add_column(heading, justify='right')
    for kind in (SMALL, LARGE):
      place = folder / str(kind.height)
      num_bytes = write(place, kind, kind.num_timed)
      of_label = label_seconds(place, kind.num_timed)
      speeds = {workers: timing.alone(speed, place, kind, workers) for workers in WORKERS}
      for workers, of in speeds.items():
        processes = str(workers) if workers else '0 (threads)'
        values = f'{of.images_per_second:,.0f}', f'{of.first_seconds:.1f}'
        table.add_row(kind.name, f'{num_bytes:,}', processes, *values)
    progress.console.print(table)
    progress.console.print('ImageNet, from these figures:')
    for line in imagenet(num_bytes, of_label, speeds):
      progress.console.print(f'  {line}')


if __name__ == '__main__':
  main()
