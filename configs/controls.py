"""Controls: agreement without distillation, and with a teacher that has learned nothing.

    python launch.py --config=configs/controls.py --sweep          # CIFAR-100, ResNet-56; GPUs; not run
    python launch.py --config=configs/controls.py:small --sweep    # 12 students; 1 hour on one core (estimated)
    python launch.py --config=configs/controls.py:smoke --sweep    # about 8 minutes on one core

Three students of the same recipe, each with its independent student: one distilled from a trained teacher
(the baseline), one that learns only the labels (α = 1) of the same images, and one distilled from a teacher
of random weights. Labels alone show how much two networks agree because both are right. The untrained teacher
shows whether a student can copy a function that has nothing to do with the labels.
"""

from ml_collections import ConfigDict

from kdjax.config.sweep import Claim, Point, Sweep
from kdjax.intervals import LOWER

from .paper import recipes

CONTROLS = {
  'distillation': {},
  'labels only': {'student.alpha': 1.0},
  'untrained teacher': {'teacher.num_epochs': 0},
}


def get_config(arg: str = '') -> ConfigDict:
  return recipes.cifar100(arg, num_members=1)


def get_sweep(arg: str = '') -> Sweep:
  return Sweep(
    title='Controls: distillation, labels only and an untrained teacher',
    x_label='the student learns from',
    points=[Point(fields, name) for name, fields in CONTROLS.items()],
    panels=(
      recipes.AGREEMENT,
      recipes.KL,
      recipes.ACCURACY,
      recipes.TEACHER,
      recipes.TRAIN_AGREEMENT,
    ),
    trials=recipes.TRIALS[arg],
    caption='Agreement of each student, and of its independent student, with the teacher. Labels only: the '
    'same images and recipe with α = 1.',
    claims=[
      Claim(
        'ours: labels alone give a lower agreement than distillation',
        *(recipes.AGREEMENT.measure, ('', 'labels only'), ('', 'distillation'), LOWER),
      )
    ],
  )
