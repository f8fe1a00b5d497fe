"""Projects how long the sweeps at the size `small` take on two CPU cores.

Work is counted in training images. The rate of a network, in images per second, is the median over its students in
docs/results/*.csv, or that of RATES if there are none. An image that a teacher predicts counts as a third of a
training image. Evaluation and compilation are left out.
"""

import csv
import dataclasses
import functools
import statistics
from collections.abc import Mapping

from etils import epath
from ml_collections import ConfigDict

from kdjax import config as config_lib
from kdjax import data

ROOT = epath.Path(__file__).parents[2]
SMALL = (
  'fig1_gan.py:small',
  'fig2_mnist.py:small',
  'fig2_mnist.py:small_steps',
  'fig3_data.py:small',
  'fig4_recycling.py:small',
  'fig4_recycling.py:small_temperature',
  'fig5_train_agreement.py:small',
  'fig6a_optimizers.py:small',
  'fig6b_lambda.py:small',
  'fig9_temperature.py:small',
  'fig10_ensemble_size.py:small',
  'fig11_measures.py:small',
  'fig12_capacity.py:small',
  'fig13_vgg.py:small',
  'fig14_alpha.py:small',
  'table1_initialisation.py:small',
  'table2_imdb.py:small',
)
# Training images per second on one core, and the width of the network. They follow from the durations of
# fig13_vgg.py:smoke (23 minutes), table2_imdb.py:smoke (11 minutes) and, for LeNet, fig2_mnist.py:small.
RATES = {'vgg': (460.0, 8), 'bilstm': (600.0, 32), 'lenet': (2000.0, 16)}
GAN_SECONDS = 240.0  # for the small SN-GAN on MNIST
PASS = 1 / 3  # the cost of a pass without gradients, in training steps
NUM_TRAIN = {'mnist': 60_000}  # where a recipe takes the whole set
NUM_CORES = 2


@dataclasses.dataclass(frozen=True)
class Work:
  """The trainings of a sweep. Shared teachers and students count once."""

  model: str
  num_students: int
  num_members: int  # teachers in all
  images: float  # training images, as if all networks had the width 1
  num_gans: int


@functools.cache
def work(spec: str) -> Work:
  """The work of the sweep FILE.py:ARGUMENT of configs/paper."""
  path = str(ROOT / 'configs' / 'paper' / spec)
  configs, _ = config_lib.sweep_configs(path, config_lib.load_sweep(path), [])
  students = {config_lib.student_fingerprint(config): config for config in configs}
  teachers = _largest(configs, config_lib.teacher_fingerprint)
  predictions = _largest(configs, config_lib.predictions_fingerprint)
  gans = {config_lib.gan_fingerprint(config) for config in configs if config_lib.needs_gan(config)}
  images = 0.0
  for config in students.values():
    width = config_lib.student_model(config).width
    images += width**2 * _trained(config.student, _num_distilled(config))
  for config in teachers:
    num_members, learned = config.teacher.num_members, _part(config, config.teacher.examples)
    images += config.model.width**2 * num_members * _trained(config.teacher, learned)
  for config in predictions:
    num_views = config.teacher.num_members * config.predictions.num_views
    images += config.model.width**2 * PASS * num_views * _num_distilled(config)
  num_members = sum(config.teacher.num_members for config in teachers)
  return Work(configs[0].model.name, len(students), num_members, images, len(gans))


def rates(folder: epath.Path) -> dict[str, float]:
  """Training images per second on one core at width 1, by network: measured in `folder`, else RATES."""
  found = {name: rate * width**2 for name, (rate, width) in RATES.items()}
  measured: dict[str, list[float]] = {}
  for path in folder.glob('*.csv'):
    rows = list(csv.DictReader(path.read_text().splitlines()))
    spec = str(ROOT / rows[0]['command'].split('--config=')[1].split()[0])
    configs, _ = config_lib.sweep_configs(spec, config_lib.load_sweep(spec), [])
    for row in rows:
      config = configs[int(row['run'])]
      images = config.model.width**2 * _trained(config.student, _num_distilled(config))
      measured.setdefault(config.model.name, []).append(images / float(row['seconds']))
  return found | {name: statistics.median(of) for name, of in measured.items()}


def hours(work: Work, rates: Mapping[str, float]) -> float:
  """The projected hours of a sweep in two processes on two cores."""
  seconds = work.images / rates[work.model] + work.num_gans * GAN_SECONDS
  return seconds / NUM_CORES / 3600


def _largest(configs, fingerprint) -> list[ConfigDict]:
  """The config with the largest ensemble for each value of a fingerprint."""
  found: dict[str, ConfigDict] = {}
  for config in sorted(configs, key=lambda config: config.teacher.num_members):
    found[fingerprint(config)] = config
  return list(found.values())


def _trained(section: ConfigDict, num_examples: int) -> int:
  """The training images of a teacher or student, over all steps."""
  return config_lib.num_steps(section, num_examples) * section.batch_size


def _part(config: ConfigDict, part: tuple[int, ...]) -> int:
  """The number of training examples in (start, stop), or in the whole set for ()."""
  return data.part_size(config.dataset.num_train or NUM_TRAIN[config.dataset.name], part)


def _num_distilled(config: ConfigDict) -> int:
  return _part(config, config.predictions.examples) + config_lib.num_extra(config)
