"""Figure 5: with more distillation data, students fail to match their teacher on the training set too.

    python launch.py --config=configs/paper/fig5_train_agreement.py --sweep          # a GPU node; not run
    python launch.py --config=configs/paper/fig5_train_agreement.py:small --sweep    # 10 minutes on one core, after fig3

The paper (CIFAR-100, ResNet-56, m = 1): near 100 % train agreement without, 95 % with 50,000 GAN images,
80 to 90 % with rotation, vertical flip or jitter, and 60 % with all three. Here at τ = 4.
"""

from ml_collections import ConfigDict

from configs.paper import recipes
from kdjax.sweep import Point, Sweep

DATA = ('baseline', 'rotation', 'vertical flip', 'colour jitter', 'combined')
PAPER = {'baseline': 100.0, 'combined': 60.0, '50k GAN images': 95.0}


def get_config(arg: str = '') -> ConfigDict:
  recipes.check(arg, 'small')
  config = recipes.cifar100(num_members=1)
  return recipes.shrink(config) if arg else config


def get_sweep(arg: str = '') -> Sweep:
  points = [Point(recipes.DISTILLATION_DATA[name], name) for name in DATA]
  if not arg:
    fields = {'predictions.extra': 'gan', 'predictions.num_extra': 50_000}
    points.append(Point(fields, '50k GAN images'))
  return Sweep(
    title='Figure 5: agreement on the training set',
    x_label='distillation data',
    points=points,
    panels=(
      recipes.TRAIN_AGREEMENT,
      recipes.AGREEMENT,
      recipes.INDEPENDENT,
      recipes.ACCURACY,
    ),
    trials=2 if arg else 3,
    caption='The paper: 80 to 90 % with rotation, vertical flip or colour jitter.',
    paper={}
    if arg
    else {recipes.TRAIN_AGREEMENT.measure: {('', name): value for name, value in PAPER.items()}},
  )
