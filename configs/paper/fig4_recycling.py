"""Figures 4 and 5 (middle): teachers learn D0; students are distilled on D0, D1 or both.

    python launch.py --config=configs/paper/fig4_recycling.py --sweep          # a GPU node, days; not run
    python launch.py --config=configs/paper/fig4_recycling.py:temperature --sweep    # its right half
    python launch.py --config=configs/paper/fig4_recycling.py:small --sweep    # 24 students; 2 hours on one core (estimated)
    python launch.py --config=configs/paper/fig4_recycling.py:small_temperature --sweep    # 48 students; 3 hours on one core (estimated)
    python launch.py --config=configs/paper/fig4_recycling.py:smoke --sweep
    python launch.py --config=configs/paper/fig4_recycling.py:smoke_temperature --sweep

D0 and D1 are class-balanced halves of the training set, others in each trial. In the paper D0, which the teachers know by
heart, gives higher accuracy and lower fidelity than D1, and both together are best. With one --workdir for
both halves, the second finds its three teachers trained.
"""

from ml_collections import ConfigDict

from kdjax.config.sweep import Claim, Point, Sweep
from kdjax.intervals import HIGHER, LOWER

from . import recipes

NUM_MEMBERS = {'': (1, 3, 5), 'small': (1, 3), 'smoke': (1, 3)}
ARGUMENTS = ('small', 'smoke', 'temperature', 'small_temperature', 'smoke_temperature')
TEMPERATURES = (1.0, 4.0, 8.0, 16.0)


def get_config(arg: str = '') -> ConfigDict:
  size, _ = _parts(arg)
  config = recipes.cifar100()
  num_train = 50_000
  if size:
    recipes.resize(config, size)
    num_train = config.dataset.num_train
    config.teacher.num_epochs *= 2  # as many steps on half of the data
  config.teacher.examples = (0, num_train // 2)
  return config


def _parts(arg: str) -> tuple[str, bool]:
  """The size, and whether the sweep is of temperatures, of 'small_temperature' and the like."""
  recipes.check(arg, *ARGUMENTS)
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
      recipes.TRAIN_AGREEMENT,
      recipes.LAST_EPOCH,
    ),
    trials=recipes.TRIALS[size],
    caption='The paper: D0 gives higher accuracy and lower fidelity than D1; both together are best, and '
    'agreement tops out near 85 %.',
    claims=[claim for x in sorted({point.x for point in points}) for claim in _claims(x)],
  )


def _claims(x: float) -> list[Claim]:
  at = f', at {x:g} on the axis'
  agreement, accuracy = recipes.AGREEMENT.measure, recipes.ACCURACY.measure
  return [
    Claim(f'D0 gives a higher accuracy than D1{at}', accuracy, ('D0', x), ('D1', x), HIGHER),
    Claim(f'D0 gives a lower agreement than D1{at}', agreement, ('D0', x), ('D1', x), LOWER),
    Claim(
      f'both together give a higher agreement than D1{at}',
      *(agreement, ('D0 and D1', x), ('D1', x), HIGHER),
    ),
  ]
