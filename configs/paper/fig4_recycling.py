"""Figures 4 and 5 (middle): teachers learn D0; students are distilled on D0, D1 or both.

    python launch.py --config=configs/paper/fig4_recycling.py --sweep          # a GPU node, days; not run
    python launch.py --config=configs/paper/fig4_recycling.py:temperature --sweep    # the right half of Figure 4
    python launch.py --config=configs/paper/fig4_recycling.py:small --sweep    # 24 students; hours: docs/results.md
    python launch.py --config=configs/paper/fig4_recycling.py:small_temperature --sweep    # 48 students
    python launch.py --config=configs/paper/fig4_recycling.py:smoke --sweep
    python launch.py --config=configs/paper/fig4_recycling.py:smoke_temperature --sweep

D0 and D1 are class-balanced halves of the training set, different in each trial. In the paper, D0, which the
teachers have memorised, gives higher accuracy, lower fidelity and worse calibration than D1, and both together are
best. Agreement on the distillation data is the middle panel of Figure 5. If both halves of Figure 4 share a
--workdir, the second finds its three teachers trained.

`:small` was run (docs/results.md). Its teachers take as many steps on 2,500 images as those of the other figures on
5,000, and have memorised D0 only in part: they classify 68 to 72 % of its augmented images correctly, and 51 to 54 % of
the test set. Students of both halves take twice as many steps as the others. `:small_temperature` was not run.
"""

from collections.abc import Sequence

from ml_collections import ConfigDict

from kdjax.config import base
from kdjax.config.sweep import Claim, Point, Sweep
from kdjax.intervals import HIGHER, LOWER

from . import recipes

NUM_MEMBERS = {'': (1, 3, 5), 'small': (1, 3), 'smoke': (1, 3)}
ARGUMENTS = ('small', 'smoke', 'temperature', 'small_temperature', 'smoke_temperature')
TEMPERATURES = (1.0, 4.0, 8.0, 16.0)


def get_config(arg: str = '') -> ConfigDict:
  size, _ = _parts(arg)
  config = recipes.cifar100(size)
  if size:
    config.teacher.num_epochs *= 2  # as many steps on half of the data
  config.teacher.examples = (0, (config.dataset.num_train or 50_000) // 2)
  return config


def _parts(arg: str) -> tuple[str, bool]:
  """The size and whether the sweep is over temperatures: ('small', True) for 'small_temperature'."""
  base.check_argument(arg, *ARGUMENTS)
  return arg.removesuffix('temperature').rstrip('_'), arg.endswith('temperature')


def get_sweep(arg: str = '') -> Sweep:
  size, of_temperature = _parts(arg)
  num_train = get_config(arg).dataset.num_train or 50_000
  parts = {'D0': (0, num_train // 2), 'D1': (num_train // 2, num_train), 'D0 and D1': ()}
  points = []
  for name, part in parts.items():
    fields = {'predictions.examples': part}
    if of_temperature:
      fields |= {'teacher.num_members': 3}
      points += [Point(fields | {'student.temperature': t}, t, name) for t in TEMPERATURES]
    else:
      members = NUM_MEMBERS[size]
      points += [Point(fields | {'teacher.num_members': m}, m, name) for m in members]
  return Sweep(
    title='Figure 4: teachers learn D0, students are distilled on D0, D1 or both',
    x_label='temperature τ' if of_temperature else 'teachers in the ensemble, m',
    points=points,
    panels=(
      recipes.AGREEMENT,
      recipes.ACCURACY,
      recipes.KL,
      recipes.ECE,
      recipes.TRAIN_AGREEMENT,
      recipes.LAST_EPOCH,
    ),
    trials=recipes.TRIALS[size],
    caption='The paper: D0 gives higher accuracy and lower fidelity than D1; both together are best, and '
    'agreement reaches about 85 %.',
    claims=_claims(sorted({point.x for point in points}), of_temperature),
  )


def _claims(xs: Sequence[float], of_temperature: bool) -> list[Claim]:
  """The claims about Figure 4, and about the middle panel of Figure 5, whose axis is m."""
  agreement, accuracy, ece, train = (
    panel.measure
    for panel in (recipes.AGREEMENT, recipes.ACCURACY, recipes.ECE, recipes.TRAIN_AGREEMENT)
  )
  claims, both = [], 'D0 and D1'
  for x in xs:
    at = f'{"τ" if of_temperature else "m"} = {x:g}'
    claims += [
      Claim(f'{at}: {text}', measure, (first, x), (second, x), direction)
      for text, measure, first, second, direction in (
        ('D0 gives a higher accuracy than D1', accuracy, 'D0', 'D1', HIGHER),
        ('D0 gives a lower agreement than D1', agreement, 'D0', 'D1', LOWER),
        ('both halves give a higher agreement than D1', agreement, both, 'D1', HIGHER),
        ('both halves give a higher accuracy than D0', accuracy, both, 'D0', HIGHER),
        ('D0 gives a worse calibration (ECE) than D1', ece, 'D0', 'D1', HIGHER),
      )
    ]
    if not of_temperature:
      text = 'both halves give a lower agreement on the distillation data than D0'
      claims.append(Claim(f'{at}: {text}', train, (both, x), ('D0', x), LOWER))
  text = f'agreement stays far from perfect: below 95 % with both halves at {at}'
  return [*claims, Claim(text, agreement, (both, xs[-1]), 95.0, LOWER, paper=-10.0)]
