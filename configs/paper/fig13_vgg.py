"""Figure 13: the distillation data of Figure 3 for VGG-16 (CIFAR-100, m = 5), at τ = 1.

    python launch.py --config=configs/paper/fig13_vgg.py --sweep          # a GPU node, days; not run
    python launch.py --config=configs/paper/fig13_vgg.py:small --sweep    # 12 students; hours: docs/results.md
    python launch.py --config=configs/paper/fig13_vgg.py:smoke --sweep    # 23 minutes on one core

The paper: more varied data lowers the NLL, and agreement rises from 81.5 to 84.5 % (mixup). `:small` has half of
the kinds of data and was not run yet. Its networks are a quarter as wide as the paper's and may learn too little
to show the effect: at the smoke size, teachers have a test accuracy of 21 % (chance: 10 %).
"""

from ml_collections import ConfigDict

from kdjax.config import base
from kdjax.config.sweep import Claim, Point, Sweep
from kdjax.intervals import HIGHER, LOWER

from .. import cifar_vgg
from . import recipes

PAPER = {  # accuracy, NLL, agreement
  'baseline': (72.8, 1.6, 81.5),
  'rotation': (72.6, 1.3, 82.5),
  'vertical flip': (72.9, 1.3, 83.5),
  'colour jitter': (74.1, 1.2, 83.5),
  'combined': (72.3, 1.0, 84.0),
  'mixup': (74.0, 1.2, 84.5),
}
FEW = ('baseline', 'combined', 'mixup')  # in `:small`, since all six would take nine hours
PANELS = (recipes.ACCURACY, recipes.NLL, recipes.AGREEMENT)


def get_config(arg: str = '') -> ConfigDict:
  base.check_argument(arg, *recipes.SIZES)
  config = cifar_vgg.get_config('smoke' if arg else '')
  if not arg:
    config.dataset.name = 'cifar100'
  config.student.temperature = 1.0
  if arg == 'small':
    config.update_from_flattened_dict(recipes.VGG_SMALL)
  return config


def get_sweep(arg: str = '') -> Sweep:
  paper = {
    panel.measure: recipes.values('', PAPER, [numbers[i] for numbers in PAPER.values()])
    for i, panel in enumerate(PANELS)
  }
  return Sweep(
    title='Figure 13: distillation data for VGG-16',
    x_label='distillation data',
    points=[
      Point(recipes.DISTILLATION_DATA[name], name) for name in (FEW if arg == 'small' else PAPER)
    ],
    panels=PANELS,
    trials=recipes.TRIALS[arg],
    paper={} if arg else paper,
    claims=[
      Claim(text, panel.measure, ('', name), ('', 'baseline'), direction, paper=effect)
      for text, panel, name, direction, effect in (
        ('mixup raises agreement', recipes.AGREEMENT, 'mixup', HIGHER, 3.0),
        ('all three augmentations raise agreement', recipes.AGREEMENT, 'combined', HIGHER, 2.5),
        ('all three augmentations lower the NLL', recipes.NLL, 'combined', LOWER, -0.6),
      )
    ],
  )
