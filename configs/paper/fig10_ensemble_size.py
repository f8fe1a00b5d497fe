"""Figure 10: larger ensembles are easier to agree with (CIFAR-100, ResNet-56, τ = 1).

    python launch.py --config=configs/paper/fig10_ensemble_size.py --sweep          # GPUs, days; not run
    python launch.py --config=configs/paper/fig10_ensemble_size.py:small --sweep    # 12 students; hours: docs/results.md
    python launch.py --config=configs/paper/fig10_ensemble_size.py:smoke --sweep    # 5 minutes on one core

Every ensemble is the beginning of the largest, so twelve teachers serve all twelve students.

`:small` was run with m = 1, 2 and 4 in four trials (docs/results.md). One teacher classifies 54 to 57 % of the test set
correctly, four together 58 to 59 %. The student of one teacher agrees with it on 78.0 % of the test set, and an
independent student on 71.1 %, so an effect can show.
"""

from ml_collections import ConfigDict

from kdjax.config.sweep import Claim, Point, Sweep
from kdjax.intervals import HIGHER

from . import recipes

NUM_MEMBERS = {'': tuple(range(1, 13)), 'small': (1, 2, 4), 'smoke': (1, 2, 4)}
PAPER = {
  recipes.AGREEMENT: (77.5, 86.0),
  recipes.ACCURACY: (74.0, 75.9),
  recipes.TEACHER: (71.0, 77.6),
}


def get_config(arg: str = '') -> ConfigDict:
  return recipes.cifar100(arg, temperature=1.0)


def get_sweep(arg: str = '') -> Sweep:
  paper = {panel.measure: recipes.values('', (1, 12), ends) for panel, ends in PAPER.items()}
  return Sweep(
    title='Figure 10: ensemble size',
    x_label='teachers in the ensemble, m',
    points=[Point({'teacher.num_members': m}, m) for m in NUM_MEMBERS[arg]],
    panels=tuple(PAPER),
    trials=recipes.TRIALS[arg],
    paper={} if arg else paper,
    claims=[
      Claim(
        f'{panel.label}: higher for m = {NUM_MEMBERS[arg][-1]} than for m = 1',
        *(panel.measure, ('', NUM_MEMBERS[arg][-1]), ('', 1), HIGHER),
        paper=None if arg else round(ends[1] - ends[0], 2),  # for m = 12
      )
      for panel, ends in PAPER.items()
    ],
  )
