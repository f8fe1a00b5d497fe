"""Figure 6b: a student that starts near enough to its teacher matches it; from afar it does not.

    python launch.py --config=configs/paper/fig6b_lambda.py --sweep          # a GPU, a day; not run
    python launch.py --config=configs/paper/fig6b_lambda.py:small --sweep    # 12 minutes on one core, after fig6a

The student of a ResNet-20 with LayerNorm starts at λ θ_t + (1 − λ) θ_r, between random weights and its
teacher's. The paper: train agreement is about 80 % at λ = 0 and near 100 % from 0.375 on.
"""

from ml_collections import ConfigDict

from configs.paper import recipes
from kdjax.sweep import Panel, Point, Sweep

LAMBDAS = {'': (0.0, 0.125, 0.25, 0.375, 0.5, 0.75, 1.0), 'small': (0.0, 0.25, 0.375, 0.5, 1.0)}
TRAIN_KL = Panel('splits.train.fidelity.predictive_kl', 'KL to the teacher, train (nats)')


def get_config(arg: str = '') -> ConfigDict:
  recipes.check(arg, 'small')
  config = recipes.cifar100(depth=20, num_members=1)
  if arg:
    recipes.shrink(config)
  config.model.norm = 'layer'
  return config


def get_sweep(arg: str = '') -> Sweep:
  paper = recipes.values('', (0.0, 0.25, 0.375), (80.0, 95.0, 100.0))
  return Sweep(
    title='Figure 6b: starting between random weights and the teacher',
    x_label='λ (0: random, 1: the teacher)',
    points=[Point({'student.init_lambda': value}, value) for value in LAMBDAS[arg]],
    panels=(recipes.TRAIN_AGREEMENT, TRAIN_KL, recipes.AGREEMENT, recipes.INDEPENDENT),
    trials=2 if arg else 3,
    paper={} if arg else {recipes.TRAIN_AGREEMENT.measure: paper},
  )
