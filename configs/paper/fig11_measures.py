"""Figure 11: Figure 3 with all measures, for a range of ensemble sizes (CIFAR-100, ResNet-56).

    python launch.py --config=configs/paper/fig11_measures.py --sweep          # a GPU node, days; not run
    python launch.py --config=configs/paper/fig11_measures.py:small --sweep    # 32 students; hours: docs/results.md
    python launch.py --config=configs/paper/fig11_measures.py:smoke --sweep    # about half an hour on one core

In the paper, a larger ensemble is easier to agree with for all distillation data, and independent students often
have nearly the same test agreement. The smaller sizes have four kinds of data and m = 1 and 3; the --workdir of
`fig3_data.py` has their teachers and half of their students.

`:small` was run in four trials (docs/results.md), with the teachers of Figure 3. Students of three teachers agree with
them on 78 to 83 % of the test set and independent students on 75 to 79 %, with one teacher on 74 to 79 % and on 68 to
71 %, so an effect can show.
"""

from ml_collections import ConfigDict

from kdjax.config.sweep import EQUAL, Claim, Point, Sweep, independent_measure
from kdjax.intervals import HIGHER, LOWER

from . import fig3_data, recipes

NUM_MEMBERS = {'': (1, 3, 5), 'small': (1, 3), 'smoke': (1, 3)}
CLOSEST = 'mixup'  # has the highest agreement in the paper; at τ = 4 like the baseline
FEW = ('baseline', 'combined', 'mixup', 'noise')  # kinds of data of the smaller sizes


def get_config(arg: str = '') -> ConfigDict:
  return fig3_data.get_config(arg)


def get_sweep(arg: str = '') -> Sweep:
  data = [p for p in fig3_data.get_sweep(arg).points if not arg or p.x in FEW]
  members = NUM_MEMBERS[arg]
  return Sweep(
    title='Figure 11: distillation data and ensemble size',
    x_label=f'distillation data (τ = 4: {", ".join(fig3_data.AT_TAU_4)}; others: τ = 1)',
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
  """The claims of Figure 11 about one kind of data; for mixup, the closest match, also one about calibration."""
  agreement = recipes.AGREEMENT.measure
  claims = [
    Claim(
      f'{data}: agreement is higher for m = {many} than for m = {few}',
      *(agreement, (f'm = {many}', data), (f'm = {few}', data), HIGHER),
    )
  ]
  claims += [
    Claim(
      f'{data}, m = {m}: the independent student agrees nearly as well, within 3 points',
      *(agreement, (f'm = {m}', data), independent_measure(agreement), EQUAL),
      margin=3.0,
    )
    for m in (few, many)
  ]
  if data == CLOSEST:
    claims.append(
      Claim(
        f'm = {many}: {data}, whose students agree most, gives a better calibration than the baseline',
        *(recipes.ECE.measure, (f'm = {many}', data), (f'm = {many}', 'baseline'), LOWER),
      )
    )
  return claims
