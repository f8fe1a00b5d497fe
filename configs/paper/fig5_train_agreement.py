"""Figure 5 (right): the harder the distillation data, the less students match their teacher on it (τ = 1).

    python launch.py --config=configs/paper/fig5_train_agreement.py --sweep          # a GPU node; not run
    python launch.py --config=configs/paper/fig5_train_agreement.py:small --sweep    # 10 minutes on one core, after fig3

The paper (CIFAR-100, ResNet-56): near 100 % agreement on plain distillation data, 80 to 90 % with rotation,
vertical flip or jitter, and 60 % with all three (m = 1). Its left panel is of the students of `fig1_gan.py`,
the middle one of those of `fig4_recycling.py`; both files show the same measure.
"""

from ml_collections import ConfigDict

from configs.paper import recipes
from kdjax.config.sweep import Point, Sweep

DATA = ('baseline', 'rotation', 'vertical flip', 'colour jitter', 'combined')
NUM_MEMBERS = {'': (1, 3, 5), 'small': (1,)}
PAPER = {'baseline': 100.0, 'combined': 60.0}  # m = 1


def get_config(arg: str = '') -> ConfigDict:
  recipes.check(arg, 'small')
  config = recipes.cifar100()
  if arg:
    recipes.shrink(config)
  config.student.temperature = 1.0
  return config


def get_sweep(arg: str = '') -> Sweep:
  return Sweep(
    title='Figure 5: agreement on the distillation data',
    x_label='distillation data',
    points=[
      Point(recipes.DISTILLATION_DATA[name] | {'teacher.num_members': m}, name, f'm = {m}')
      for m in NUM_MEMBERS[arg]
      for name in DATA
    ],
    panels=(
      recipes.TRAIN_AGREEMENT,
      recipes.LAST_EPOCH,
      recipes.AGREEMENT,
      recipes.INDEPENDENT,
      recipes.ACCURACY,
    ),
    trials=2 if arg else 3,
    caption='The paper: 80 to 90 % with rotation, vertical flip or colour jitter.',
    paper={}
    if arg
    else {recipes.TRAIN_AGREEMENT.measure: recipes.values('m = 1', PAPER, PAPER.values())},
  )
