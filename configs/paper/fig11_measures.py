"""Figure 11: Figure 3 in full, with every measure for a range of ensemble sizes (CIFAR-100, ResNet-56).

    python launch.py --config=configs/paper/fig11_measures.py --sweep          # a GPU node, days; not run
    python launch.py --config=configs/paper/fig11_measures.py:small --sweep    # 32 students; 4 hours on one core, after fig3 (estimated)
    python launch.py --config=configs/paper/fig11_measures.py:smoke --sweep    # about half an hour on one core

In the paper a larger ensemble is easier to agree with whatever the distillation data, and independent students often
have nearly as good a test agreement. The smaller sizes have four kinds of data and m = 1 and 3.
"""

from ml_collections import ConfigDict

from kdjax.config.sweep import Claim, Point, Sweep, independent_measure
from kdjax.intervals import HIGHER

from . import fig3_data, recipes

NUM_MEMBERS = {'': (1, 3, 5), 'small': (1, 3), 'smoke': (1, 3)}
FEW = ('baseline', 'combined', 'mixup', 'noise')  # kinds of data of the smaller sizes


def get_config(arg: str = '') -> ConfigDict:
  return fig3_data.get_config(arg)


def get_sweep(arg: str = '') -> Sweep:
  data = [p for p in fig3_data.get_sweep(arg).points if not arg or p.x in FEW]
  members = NUM_MEMBERS[arg]
  return Sweep(
    title='Figure 11: distillation data and ensemble size',
    x_label='distillation data, at τ = 1 but for ' + ', '.join(fig3_data.AT_TAU_4),
    points=[
      Point(dict(p.fields) | {'teacher.num_members': m}, p.x, f'm = {m}')
      for m in members
      for p in data
    ],
    panels=(
      recipes.ACCURACY,
      recipes.NLL,
      recipes.ECE,
      recipes.AGREEMENT,
      recipes.KL,
      recipes.TRAIN_AGREEMENT,
    ),
    trials=recipes.TRIALS[arg],
    claims=[claim for p in data for claim in _claims(p.x, members[0], members[-1])],
  )


def _claims(data: str, few: int, many: int) -> list[Claim]:
  agreement = recipes.AGREEMENT.measure
  return [
    Claim(
      f'{data}: agreement is higher for m = {many} than for m = {few}',
      *(agreement, (f'm = {many}', data), (f'm = {few}', data), HIGHER),
    ),
    Claim(
      f'{data}, m = {few}: the student agrees more than the independent student',
      *(agreement, (f'm = {few}', data), independent_measure(agreement), HIGHER),
    ),
  ]
