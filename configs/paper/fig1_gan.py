"""Figures 1 and 5 (left): GAN images added to the distillation data (CIFAR-100, ResNet-56, τ = 1).

    python launch.py --config=configs/paper/fig1_gan.py --sweep          # a GPU node, days; not run
    python launch.py --config=configs/paper/fig1_gan.py:small --sweep    # 12 students; hours: docs/results.md
    python launch.py --config=configs/paper/fig1_gan.py:smoke --sweep    # minutes

The paper: GAN images raise agreement on the test set, but not accuracy, and lower agreement on the distillation
data to 95 %. They are added to each epoch, neither cropped nor flipped. Two cores cannot train a GAN on CIFAR, so
the smaller sizes have another task: LeNet-5 on 2,000 images of MNIST and samples of a small SN-GAN. The GAN learns
all 60,000 images, so it adds data that the student does not have.

The regime of `:small`: teachers learn 200 examples and have a test accuracy of 86 % (chance: 10 %), so that there is
something to match beside the labels. Without GAN images the student agrees with its teacher on 94.6 % of the test set
and 99.9 % of the distillation data, an independent student on 83.1 and 81.3 %: both effects can show.
"""

from collections.abc import Sequence

from ml_collections import ConfigDict

from kdjax.config import base
from kdjax.config.sweep import Claim, Point, Sweep
from kdjax.intervals import HIGHER, LOWER

from . import recipes

NUM_GAN = {'': (0, 12_500, 25_000, 37_500, 50_000), 'small': (0, 2000, 6000), 'smoke': (0, 2000)}
NUM_MEMBERS = {'': (1, 3, 5), 'small': (1,), 'smoke': (1,)}
PAPER = {
  recipes.AGREEMENT.measure: recipes.values('m = 1', NUM_GAN[''], (72.5, 73.5, 73.8, 74.0, 74.5))
  | recipes.values('m = 3', (0, 50_000), (77.0, 80.0)),
  recipes.ACCURACY.measure: recipes.values('m = 1', NUM_GAN[''], (72.0, 72.5, 71.8, 71.2, 71.0)),
  recipes.TEACHER.measure: recipes.values('m = 3', (0,), (76.0,)),
  recipes.TRAIN_AGREEMENT.measure: recipes.values('m = 1', (50_000,), (95.0,)),
}


def get_config(arg: str = '') -> ConfigDict:
  base.check_argument(arg, *recipes.SIZES)
  if not arg:
    return recipes.cifar100(temperature=1.0)  # the values equal those of Figure 14 at α = 0
  return recipes.mnist_gan(arg)


def get_sweep(arg: str = '') -> Sweep:
  points = []
  for m in NUM_MEMBERS[arg]:
    for n in NUM_GAN[arg]:
      images = recipes.gan(n) if n else {}
      points.append(Point({'teacher.num_members': m} | images, n, f'm = {m}'))
  return Sweep(
    title='Figure 1: GAN images in the distillation data',
    x_label='GAN images added',
    points=points,
    panels=(
      recipes.AGREEMENT,
      recipes.ACCURACY,
      recipes.TRAIN_AGREEMENT,
      recipes.LAST_EPOCH,
      recipes.TEACHER,
    ),
    trials=recipes.TRIALS[arg],
    paper={} if arg else PAPER,
    claims=_claims(NUM_GAN[arg][-1], NUM_MEMBERS[arg]),
  )


def _claims(most: int, num_members: Sequence[int]) -> list[Claim]:
  """The claims of Section 1: fidelity rises, but accuracy falls with one teacher and rises with three."""
  agreement, accuracy, train = recipes.AGREEMENT, recipes.ACCURACY, recipes.TRAIN_AGREEMENT
  claims = [
    ('m = 1', 'raise agreement on the test set', agreement, HIGHER, 2.0),
    ('m = 1', 'lower accuracy', accuracy, LOWER, -1.0),
    ('m = 1', 'lower agreement on the distillation data', train, LOWER, -5.0),
  ]
  if 3 in num_members:
    claims += [
      ('m = 3', 'raise agreement on the test set', agreement, HIGHER, 3.0),
      ('m = 3', 'raise accuracy', accuracy, HIGHER, None),
    ]
  return [
    Claim(
      f'{of}: {most} GAN images {text}',
      *(panel.measure, (of, most), (of, 0), direction),
      paper=effect,
    )
    for of, text, panel, direction, effect in claims
  ]
