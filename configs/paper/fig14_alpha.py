"""Figure 14: true labels in the loss, with weight α, lower the agreement (CIFAR-100, ResNet-56, τ = 1).

    python launch.py --config=configs/paper/fig14_alpha.py --sweep          # GPUs, days; not run
    python launch.py --config=configs/paper/fig14_alpha.py:small --sweep    # 24 students; hours: docs/results.md
    python launch.py --config=configs/paper/fig14_alpha.py:smoke --sweep    # 15 minutes on one core

In the paper, agreement falls from α = 0 to 0.7: by 0.2 points with one teacher, 0.8 with three, 1.0 with five.

`:small` was run in four trials (docs/results.md), with the teachers of Figure 10. They classify 54 to 57 % of the test
set correctly, and their students at α = 0 agree with them on 78 % (m = 1) and 82 % of it, independent students on 71
and 78 %. There the effect is 25 and 6 times as large as in the paper.
"""

from ml_collections import ConfigDict

from kdjax.config.sweep import Claim, Point, Sweep
from kdjax.intervals import LOWER

from . import recipes

ALPHAS = {'': (0.0, 0.1, 0.3, 0.5, 0.7), 'small': (0.0, 0.3, 0.7), 'smoke': (0.0, 0.3, 0.7)}
NUM_MEMBERS = {'': (1, 3, 5), 'small': (1, 3), 'smoke': (1, 3)}
PAPER = {1: (72.6, 72.4), 3: (77.2, 76.4), 5: (78.5, 77.5)}  # agreement at the first and last α


def get_config(arg: str = '') -> ConfigDict:
  return recipes.cifar100(arg, temperature=1.0)


def get_sweep(arg: str = '') -> Sweep:
  paper = {}
  for m, ends in PAPER.items():
    paper |= recipes.values(f'm = {m}', (ALPHAS[''][0], ALPHAS[''][-1]), ends)
  return Sweep(
    title='Figure 14: true labels',
    x_label='weight of the true labels, α',
    points=[
      Point({'teacher.num_members': m, 'student.alpha': alpha}, alpha, f'm = {m}')
      for m in NUM_MEMBERS[arg]
      for alpha in ALPHAS[arg]
    ],
    panels=(recipes.AGREEMENT, recipes.ACCURACY),
    trials=recipes.TRIALS[arg],
    paper={} if arg else {recipes.AGREEMENT.measure: paper},
    claims=[
      Claim(
        f'm = {m}: α = 0.7 gives a lower agreement than α = 0',
        *(recipes.AGREEMENT.measure, (f'm = {m}', 0.7), (f'm = {m}', 0.0), LOWER),
        paper=round(PAPER[m][1] - PAPER[m][0], 2),
      )
      for m in NUM_MEMBERS[arg]
    ],
  )
