"""Figure 12: a student larger than its teacher agrees with it a little more (CIFAR-100).

    python launch.py --config=configs/paper/fig12_capacity.py --sweep          # GPUs, days; not run
    python launch.py --config=configs/paper/fig12_capacity.py:small --sweep    # 4 minutes on one core, after fig5

The paper: 2 to 3 points of agreement, for ResNet-20 → 56 and 56 → 110. `:small` widens instead.
"""

from ml_collections import ConfigDict

from configs.paper import recipes
from kdjax.config.sweep import Point, Sweep

LARGER = {20: 56, 56: 110}  # depths


def get_config(arg: str = '') -> ConfigDict:
  recipes.check(arg, 'small')
  config = recipes.cifar100()
  if arg:
    recipes.shrink(config)
    config.teacher.num_members = 1
  return config


def get_sweep(arg: str = '') -> Sweep:
  if arg:
    teachers = {'ResNet-8, width 8': ({}, {'student.model.width': 16})}
  else:
    teachers = {
      f'ResNet-{depth}': ({'model.depth': depth}, {'student.model.depth': larger})
      for depth, larger in LARGER.items()
    }
  points = []
  for name, (teacher, larger) in teachers.items():
    points.append(Point(teacher, name, 'student as the teacher'))
    points.append(Point(teacher | larger, name, 'larger student'))
  return Sweep(
    title='Figure 12: capacity',
    x_label='teacher',
    points=points,
    panels=(
      recipes.AGREEMENT,
      recipes.INDEPENDENT,
      recipes.TRAIN_AGREEMENT,
      recipes.LAST_EPOCH,
      recipes.ACCURACY,
    ),
    trials=2 if arg else 3,
    caption='The paper: the larger student gains 2 to 3 points of agreement.',
  )
