"""Figure 9: temperature and ensemble size, on half of CIFAR-100 (ResNet-20).

    python launch.py --config=configs/paper/fig9_temperature.py --sweep          # GPUs, days; not run
    python launch.py --config=configs/paper/fig9_temperature.py:small --sweep    # 32 students; hours: docs/results.md
    python launch.py --config=configs/paper/fig9_temperature.py:smoke --sweep    # 4 minutes on one core

Each trial has another half. The paper: τ = 4 is best for accuracy, and a higher τ raises agreement by at
most 0.6 points.

In `:small`, teachers take as many steps on 2,500 images as those of other figures on 5,000, and students half as many.
At τ = 1 a student agrees with one teacher on 68 % of the test set and an independent student on 60 % (three teachers:
73 and 64 %; chance: 10 %), so both effects can show.
"""

from ml_collections import ConfigDict

from kdjax.config.sweep import EQUAL, Claim, Point, Sweep
from kdjax.intervals import HIGHER, LOWER

from . import recipes

NUM_MEMBERS = {'': (1, 3, 5), 'small': (1, 3), 'smoke': (1, 3)}
TEMPERATURES = (1.0, 4.0, 8.0, 16.0)
PAPER = {  # {measure: {m: values at TEMPERATURES}}
  recipes.ACCURACY.measure: {
    1: (59.38, 61.33, 59.87, 59.16),
    3: (59.65, 62.78, 62.12, 61.38),
    5: (60.25, 63.21, 62.18, 61.45),
  },
  recipes.AGREEMENT.measure: {
    1: (58.04, 65.31, 65.24, 65.27),
    3: (63.91, 72.77, 72.38, 71.56),
    5: (67.16, 74.77, 75.32, 74.92),
  },
}


def get_config(arg: str = '') -> ConfigDict:
  config = recipes.cifar100(arg, depth=20)
  if arg:
    config.teacher.num_epochs *= 2  # as many steps on half of the data
  half = (0, (config.dataset.num_train or 50_000) // 2)
  config.teacher.examples = config.predictions.examples = half
  return config


def get_sweep(arg: str = '') -> Sweep:
  paper = {measure: {} for measure in PAPER}
  for measure, by_m in PAPER.items():
    for m, numbers in by_m.items():
      paper[measure] |= recipes.values(f'm = {m}', TEMPERATURES, numbers)
  return Sweep(
    title='Figure 9: temperature',
    x_label='temperature τ',
    points=[
      Point({'teacher.num_members': m, 'student.temperature': tau}, tau, f'm = {m}')
      for m in NUM_MEMBERS[arg]
      for tau in TEMPERATURES
    ],
    panels=(recipes.ACCURACY, recipes.AGREEMENT),
    trials=recipes.TRIALS[arg],
    paper={} if arg else paper,
    claims=[claim for m in NUM_MEMBERS[arg] for claim in _claims(m)],
  )


def _claims(m: int) -> list[Claim]:
  agreement, accuracy = recipes.AGREEMENT.measure, recipes.ACCURACY.measure
  paper = {measure: dict(zip(TEMPERATURES, PAPER[measure][m], strict=True)) for measure in PAPER}
  return [
    Claim(
      f'm = {m}: {text}',
      *(measure, (f'm = {m}', first), (f'm = {m}', second), direction, margin),
      paper=round(paper[measure][first] - paper[measure][second], 2),
    )
    for text, measure, first, second, direction, margin in (
      ('τ = 4 gives a higher agreement than τ = 1', agreement, 4.0, 1.0, HIGHER, 0.0),
      (
        'agreement gains no more: τ = 16 is within 2 points of τ = 4',
        agreement,
        16.0,
        4.0,
        EQUAL,
        2.0,
      ),
      ('τ = 4 gives a higher accuracy than τ = 1', accuracy, 4.0, 1.0, HIGHER, 0.0),
      ('τ = 16 gives a lower accuracy than τ = 4', accuracy, 16.0, 4.0, LOWER, 0.0),
    )
  ]
