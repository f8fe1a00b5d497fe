"""Recipes, sizes, distillation data and measures that the figures share."""

from collections.abc import Mapping, Sequence

from ml_collections import ConfigDict

from kdjax.config import base
from kdjax.config.sweep import Claim, Panel, Point, Sweep
from kdjax.intervals import HIGHER, LOWER

ACCURACY = Panel('splits.test.student.accuracy', 'student accuracy, test (%)', 100)
TEACHER = Panel('splits.test.teacher.accuracy', 'teacher accuracy, test (%)', 100)
NLL = Panel('splits.test.student.nll', 'student NLL, test (nats)')
ECE = Panel('splits.test.student.ece', 'student ECE, test (%)', 100)
AGREEMENT = Panel('splits.test.fidelity.top1_agreement', 'agreement, test (%)', 100)
KL = Panel('splits.test.fidelity.predictive_kl', 'KL to the teacher, test (nats)')
# "Train" agreement is on the distillation data, with augmentation (Section 6.1). The paper's public code takes the
# mean over the last epoch, in train mode: LAST_EPOCH.
TRAIN_AGREEMENT = Panel(
  'splits.distillation.fidelity.top1_agreement', 'agreement, distillation data (%)', 100
)
TRAIN_KL = Panel('splits.distillation.fidelity.predictive_kl', 'KL, distillation data (nats)')
LAST_EPOCH = Panel(
  'splits.distillation.last_epoch.top1_agreement', 'agreement, last epoch in train mode (%)', 100
)

NUM_SYNTHETIC = 12_500  # one for 4 images of CIFAR (Appendix A.1)
# The distillation data of Figures 3, 5 and 13 (Section 5.1), as fields.
DISTILLATION_DATA = {
  'baseline': {},
  'rotation': {'predictions.augmentation': ('crop', 'flip', 'rotation')},
  'vertical flip': {'predictions.augmentation': ('crop', 'flip', 'vertical_flip')},
  'colour jitter': {'predictions.augmentation': ('crop', 'flip', 'color_jitter')},
  'combined': {
    'predictions.augmentation': ('crop', 'flip', 'rotation', 'vertical_flip', 'color_jitter')
  },
  'mixup': {'predictions.augmentation': ('crop', 'flip', 'mixup')},
  'noise': {'predictions.augmentation': ('crop', 'flip', 'noise')},
  'out of domain': {'predictions.extra': 'svhn_cropped', 'predictions.num_extra': NUM_SYNTHETIC},
}


def gan(num_images: int) -> dict[str, object]:
  """Fields that add GAN images, without crops and flips, as in the paper's public code."""
  return {
    'predictions.extra': 'gan',
    'predictions.num_extra': num_images,
    'predictions.augment_extra': False,
  }


DISTILLATION_DATA['GAN'] = gan(NUM_SYNTHETIC)


def cifar100(
  size: str = '',
  depth: int = 56,
  num_members: int = 5,
  temperature: float = 4.0,
  norm: str = 'batch',
) -> ConfigDict:
  """The paper's recipe (Appendix A) for CIFAR-100, in a size of SIZES. base.py has it for CIFAR-10."""
  base.check_argument(size, *SIZES)
  config = base.get_config()
  config.dataset.name = 'cifar100'
  config.model.depth, config.model.norm = depth, norm
  config.teacher.num_members = num_members
  config.student.temperature = temperature
  config.update_from_flattened_dict(SIZES[size])
  return config


# The smaller sizes of the full recipe, for real data and two CPU cores. `smoke` shows in minutes that a sweep runs; its
# networks have hardly begun to learn. `small` comes as near to the paper's regime as two cores can. It differs from
# `smoke` in smaller images, a wider network and four times the epochs, with fresh augmentation throughout. Measured in
# the runs of Figure 6b (LayerNorm, four trials, docs/results/fig6b_lambda_small.csv):
# - From a random start, the agreement on the test set rises by 0.15 to 0.45 points in the last 8 of 40 epochs. The
#   learning rate goes to 0 then, so this does not show that a longer schedule would not help.
# - An effect can show: agreement on the distillation data is 79.5 to 81.1 % (the paper: about 80), between the 67.6 to
#   71.7 % of independent students and 100 %. Chance is 10 %.
# - Unlike in the paper, the teacher has not memorised its training set: its accuracy is 48 to 49 % on the augmented
#   training images and 42 to 44 % on the test set, so its predictions are flatter.
# Most figures have BatchNorm. In Figure 5 (four trials) its teachers classify 60 to 63 % of the augmented training images
# and 56 % of the test set correctly. At τ = 1 agreement on the test set changes by −0.2 to 0.4 points in the last 8 of
# 40 epochs, and by up to 1.1 where the data are hardest.
SMOKE = {
  'dataset.name': 'cifar10',
  'dataset.num_train': 4000,
  'dataset.num_test': 2000,
  'model.depth': 8,
  'model.width': 8,
  'teacher.num_epochs': 10,
  'teacher.batch_size': 64,
  'teacher.learning_rate': 0.05,
  'predictions.num_views': 5,
  'student.num_epochs': 10,
  'student.batch_size': 64,
  'student.keep_checkpoints': (),
  'evaluation.num_views': 2,
  'training.num_evals': 2,
  'training.num_checkpoints': 4,
}
SMALL = SMOKE | {
  'dataset.num_train': 5000,
  'dataset.num_test': 4000,
  'dataset.image_size': 16,
  'model.width': 16,
  'teacher.num_epochs': 40,
  'predictions.num_views': 40,
  'student.num_epochs': 40,
  'student.keep_checkpoints': (0.0, 0.1, 0.25, 0.5, 0.75),
  'training.num_evals': 5,
  'training.num_checkpoints': 8,
}
# VGG-16: the smoke recipe of configs/cifar_vgg.py, twice as wide and five times as long, with fresh augmentation.
VGG_SMALL = {
  'model.width': 16,
  'teacher.num_epochs': 40,
  'predictions.num_views': 40,
  'student.num_epochs': 40,
}
SIZES = {'': {}, 'small': SMALL, 'smoke': SMOKE}
TRIALS = {'': 3, 'small': 4, 'smoke': 2}


def mnist(size: str = '') -> ConfigDict:
  """LeNet-5 on MNIST; `small` is the full recipe. The teacher learns only 200 examples, so it makes errors."""
  config = base.get_config()
  config.dataset.name = 'mnist'
  config.model.name = 'lenet'
  config.teacher.num_members = 1
  config.teacher.examples = (0, 200)
  config.teacher.num_epochs = 100
  config.teacher.batch_size = 50
  config.teacher.learning_rate = 0.05
  config.teacher.augmentation = ()
  config.predictions.augmentation = ()
  config.predictions.num_views = 1
  config.student.num_epochs = 10
  config.student.batch_size = 128
  config.student.temperature = 1.0
  config.student.keep_checkpoints = ()
  config.evaluation.num_views = 1
  if size == 'smoke':
    config.dataset.num_test = 2000
    config.teacher.num_epochs = 20
    config.student.num_epochs = 1
  return config


def mnist_gan(size: str) -> ConfigDict:
  """LeNet-5 distilled on 2,000 images of MNIST and those of a GAN that two CPU cores train in minutes."""
  config = mnist()
  config.predictions.examples = (0, 2000)
  config.student.num_epochs = None
  config.student.num_steps = 1000  # for any size of its data
  config.gan.num_steps = 1000
  config.gan.batch_size = 32
  config.gan.num_discriminator_steps = 1
  config.gan.generator_width = 32
  config.gan.discriminator_width = 32
  config.gan.learning_rate = 2e-3
  config.gan.final_learning_rate = 2e-4
  config.gan.flip = False
  config.gan.num_samples = 6000
  if size == 'smoke':
    config.student.num_steps = 200
    config.gan.num_steps = 100
    config.gan.num_samples = 2000
  return config


def values(series: str, xs: Sequence, numbers: Sequence) -> dict:
  """The paper's values of one series, in the form of `Sweep.paper`."""
  return {(series, x): number for x, number in zip(xs, numbers, strict=True)}


def table_2(
  title: str,
  num_members: Sequence[int],
  numbers: Mapping[Panel, Sequence[float]],
  trials: int,
  has_paper: bool = True,
) -> Sweep:
  """A sweep of Table 2, over the size of the ensemble.

  The claims: a larger ensemble is easier to match; a student beats one teacher, but not an ensemble.

  Args:
    num_members: the sizes of the ensembles, the first of the paper's.
    numbers: the paper's values for its sizes, by panel.
    has_paper: whether the sweep shows the paper's values.
  """
  last, size = len(num_members) - 1, f'm = {num_members[-1]}'
  rows = [('one teacher: the student is more accurate', ACCURACY, 0, TEACHER, 0, HIGHER)]
  if last:
    rows = [
      (f'agreement is higher for {size} than for m = 1', AGREEMENT, last, AGREEMENT, 0, HIGHER),
      (f'KL to the teacher is lower for {size} than for m = 1', KL, last, KL, 0, LOWER),
      *rows,
      (
        f'{size}: the student is less accurate than its teachers',
        ACCURACY,
        last,
        TEACHER,
        last,
        LOWER,
      ),
    ]
  claims = [
    Claim(
      text,
      *(panel.measure, ('', num_members[i])),
      *(other.measure if other is TEACHER else ('', num_members[j]), direction),
      paper=round(numbers[panel][i] - numbers[other][j], 3),
    )
    for text, panel, i, other, j, direction in rows
  ]
  paper = {
    panel.measure: values('', num_members, of[: len(num_members)]) for panel, of in numbers.items()
  }
  return Sweep(
    title=title,
    x_label='teachers in the ensemble, m',
    points=[Point({'teacher.num_members': m}, m) for m in num_members],
    panels=tuple(numbers),
    trials=trials,
    paper=paper if has_paper else {},
    claims=claims,
  )
