"""Figure 12: a student larger than its teacher agrees with it a little more (CIFAR-100).

    python launch.py --config=configs/paper/fig12_capacity.py --sweep          # GPUs, days; not run
    python launch.py --config=configs/paper/fig12_capacity.py:small --sweep    # 8 students; hours: docs/results.md
    python launch.py --config=configs/paper/fig12_capacity.py:smoke --sweep    # 4 minutes on one core

The paper: 2 to 3 points of agreement, for ResNet-20 → 56 and 56 → 110. In the smaller sizes the student is wider
instead of deeper. `:small` was run (docs/results.md): twice as wide, it gains 3.6 points.
"""

from ml_collections import ConfigDict

from kdjax.config.sweep import Claim, Point, Sweep
from kdjax.intervals import HIGHER

from . import recipes

LARGER = {20: 56, 56: 110}  # depths
SAME, LARGE = 'student as the teacher', 'larger student'


def get_config(arg: str = '') -> ConfigDict:
  return recipes.cifar100(arg, num_members=1 if arg else 5)


def get_sweep(arg: str = '') -> Sweep:
  if arg:
    width = get_config(arg).model.width
    teachers = {f'ResNet-8, width {width}': ({}, {'student.model.width': 2 * width})}
  else:
    teachers = {
      f'ResNet-{depth}': ({'model.depth': depth}, {'student.model.depth': larger})
      for depth, larger in LARGER.items()
    }
  points = []
  for name, (teacher, larger) in teachers.items():
    points.append(Point(teacher, name, SAME))
    points.append(Point(teacher | larger, name, LARGE))
  return Sweep(
    title='Figure 12: capacity',
    x_label='teacher',
    points=points,
    panels=(recipes.AGREEMENT, recipes.TRAIN_AGREEMENT, recipes.LAST_EPOCH, recipes.ACCURACY),
    trials=recipes.TRIALS[arg],
    caption='The paper: the larger student gains 2 to 3 points of agreement.',
    claims=[
      Claim(
        f'{name}: a larger student agrees more',
        *(recipes.AGREEMENT.measure, (LARGE, name), (SAME, name), HIGHER),
        paper=2.5,
      )
      for name in teachers
    ],
  )
