"""Figure 5 (right): students match their teacher less on harder distillation data (τ = 1).

    python launch.py --config=configs/paper/fig5_train_agreement.py --sweep          # a GPU node; not run
    python launch.py --config=configs/paper/fig5_train_agreement.py:small --sweep    # 20 students; hours: docs/results.md
    python launch.py --config=configs/paper/fig5_train_agreement.py:smoke --sweep    # 10 minutes on one core

The paper (CIFAR-100, ResNet-56): near 100 % agreement on plain distillation data, 80 to 90 % with rotation,
vertical flip or jitter, and 60 % with all three (m = 1). The left panel shows the students of `fig1_gan.py`, the
middle one those of `fig4_recycling.py`. Both files have the same measure and claims about it.

`:small` was run (docs/results.md). Its baseline reaches 79.3 %, not 100 %: after 40 epochs neither students nor
teachers have memorised the data (`recipes.py`). Effects are 3 to 6 points, in place of the paper's 15 to 40. Longer
training was not tried.
"""

from ml_collections import ConfigDict

from kdjax.config.sweep import Claim, Point, Sweep
from kdjax.intervals import HIGHER, LOWER

from . import recipes

DATA = ('baseline', 'rotation', 'vertical flip', 'colour jitter', 'combined')
NUM_MEMBERS = {'': (1, 3, 5), 'small': (1,), 'smoke': (1,)}
PAPER = {'baseline': 100.0, 'combined': 60.0}  # m = 1


def get_config(arg: str = '') -> ConfigDict:
  return recipes.cifar100(arg, temperature=1.0)


def get_sweep(arg: str = '') -> Sweep:
  return Sweep(
    title='Figure 5: agreement on the distillation data',
    x_label='distillation data',
    points=[
      Point(recipes.DISTILLATION_DATA[name] | {'teacher.num_members': m}, name, f'm = {m}')
      for m in NUM_MEMBERS[arg]
      for name in DATA
    ],
    panels=(recipes.TRAIN_AGREEMENT, recipes.LAST_EPOCH, recipes.AGREEMENT, recipes.ACCURACY),
    trials=recipes.TRIALS[arg],
    caption='The paper: 80 to 90 % with rotation, vertical flip or colour jitter.',
    paper={}
    if arg
    else {recipes.TRAIN_AGREEMENT.measure: recipes.values('m = 1', PAPER, PAPER.values())},
    claims=_claims(),
  )


def _claims() -> list[Claim]:
  plain, train = ('m = 1', 'baseline'), recipes.TRAIN_AGREEMENT.measure
  claims = [
    Claim(
      f'{name}: lower agreement on the distillation data than the baseline',
      *(train, ('m = 1', name), plain, LOWER),
      paper=effect,
    )
    for name, effect in zip(DATA[1:], (-15.0, -15.0, -15.0, -40.0), strict=True)
  ]
  claims += [
    Claim(
      f'all three augmentations: lower agreement on the distillation data than {name} alone',
      *(train, ('m = 1', 'combined'), ('m = 1', name), LOWER),
      paper=-25.0,
    )
    for name in DATA[1:-1]
  ]
  text = 'all three augmentations raise agreement on the test set'
  return [*claims, Claim(text, recipes.AGREEMENT.measure, ('m = 1', 'combined'), plain, HIGHER)]
