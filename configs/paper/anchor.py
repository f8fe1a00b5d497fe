"""Anchor: two students of Figure 6b at real size, on all of CIFAR-10 at 32 x 32 pixels.

    python launch.py --config=configs/paper/anchor.py --sweep          # 6 hours on two cores (projected); not run
    python launch.py --config=configs/paper/anchor.py:smoke --sweep    # minutes

ResNet-20 with LayerNorm and the paper's batch sizes and learning rates, but a shorter schedule: one teacher of
30 epochs (the paper: 200), students of 60 epochs (300) at λ = 0 and λ = 0.5. The same command resumes an
interrupted run. `--config.evaluation.independent_seed=1` adds an independent student, and doubles the time. One
trial decides no claim. `:smoke` is that of `recipes.py`, on 4,000 images.
"""

from ml_collections import ConfigDict

from kdjax.config import base
from kdjax.config.sweep import Claim, Point, Sweep
from kdjax.intervals import HIGHER, LOWER

from . import recipes

NUM_EPOCHS = 60  # of a student
LAMBDAS = (0.0, 0.5)


def get_config(arg: str = '') -> ConfigDict:
  base.check_argument(arg, 'smoke')
  config = recipes.cifar100(arg, depth=20, num_members=1, norm='layer')
  config.evaluation.independent_seed = None
  if not arg:
    config.dataset.name = 'cifar10'
    config.teacher.num_epochs = 30
    config.student.num_epochs = config.predictions.num_views = NUM_EPOCHS
  return config


def get_sweep(arg: str = '') -> Sweep:
  measure = recipes.TRAIN_AGREEMENT.measure
  return Sweep(
    title='Anchor: Figure 6b on all of CIFAR-10, 32 x 32',
    x_label='λ (0: random, 1: the teacher)',
    points=[Point({'student.init_lambda': x}, x) for x in LAMBDAS],
    panels=(
      recipes.TRAIN_AGREEMENT,
      recipes.LAST_EPOCH,
      recipes.AGREEMENT,
      recipes.ACCURACY,
      recipes.TEACHER,
    ),
    claims=[
      Claim(
        'λ = 0.5 gives a higher agreement on the distillation data than a random start',
        *(measure, ('', 0.5), ('', 0.0), HIGHER),
      ),
      Claim(
        'from a random start agreement on the distillation data stays below 90 %',
        *(measure, ('', 0.0), 90.0, LOWER),
        paper=-10.0,
      ),
    ],
  )
