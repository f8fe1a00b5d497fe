"""Figures 4 and 5 (middle): teachers learn D0; students are distilled on D0, D1 or both.

    python launch.py --config=configs/paper/fig4_recycling.py --sweep          # a GPU node, days; not run
    python launch.py --config=configs/paper/fig4_recycling.py:temperature --sweep    # its right half
    python launch.py --config=configs/paper/fig4_recycling.py:small --sweep    # 18 minutes on one core
    python launch.py --config=configs/paper/fig4_recycling.py:small_temperature --sweep

D0 and D1 are class-balanced halves of the training set, others in each trial. In the paper D0, which the teachers know by
heart, gives higher accuracy and lower fidelity than D1, and both together are best. With one --workdir for
both halves, the second finds its three teachers trained.
"""

from ml_collections import ConfigDict

from configs.paper import recipes
from kdjax.config.sweep import Point, Sweep

NUM_MEMBERS = {False: (1, 3, 5), True: (1, 3)}  # True: small
TEMPERATURES = (1.0, 4.0, 8.0, 16.0)


def get_config(arg: str = '') -> ConfigDict:
  recipes.check(arg, 'small', 'temperature', 'small_temperature')
  config = recipes.cifar100()
  num_train = 50_000
  if 'small' in arg:
    recipes.shrink(config)
    num_train = config.dataset.num_train
    config.teacher.num_epochs *= 2  # as many steps on half of the data
  config.teacher.examples = (0, num_train // 2)
  return config


def get_sweep(arg: str = '') -> Sweep:
  num_train = get_config(arg).dataset.num_train or 50_000
  parts = {'D0': (0, num_train // 2), 'D1': (num_train // 2, num_train), 'D0 and D1': ()}
  points = []
  for name, part in parts.items():
    fields = {'predictions.examples': part}
    if 'temperature' in arg:
      fields |= {'teacher.num_members': 3}
      points += [Point(fields | {'student.temperature': t}, t, name) for t in TEMPERATURES]
    else:
      members = NUM_MEMBERS['small' in arg]
      points += [Point(fields | {'teacher.num_members': m}, m, name) for m in members]
  return Sweep(
    title='Figure 4: teachers learn D0, students are distilled on D0, D1 or both',
    x_label='temperature τ' if 'temperature' in arg else 'teachers in the ensemble, m',
    points=points,
    panels=(
      recipes.AGREEMENT,
      recipes.INDEPENDENT,
      recipes.ACCURACY,
      recipes.KL,
      recipes.TRAIN_AGREEMENT,
      recipes.LAST_EPOCH,
    ),
    trials=2 if 'small' in arg else 3,
    caption='The paper: D0 gives higher accuracy and lower fidelity than D1; both together are best, and '
    'agreement tops out near 85 %.',
  )
