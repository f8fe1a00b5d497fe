"""Figure 9: temperature and ensemble size, on half of CIFAR-100 (ResNet-20).

    python launch.py --config=configs/paper/fig9_temperature.py --sweep          # GPUs, days; not run
    python launch.py --config=configs/paper/fig9_temperature.py:small --sweep    # 32 students; hours: docs/results.md
    python launch.py --config=configs/paper/fig9_temperature.py:smoke --sweep    # 4 minutes on one core

Each trial has another half. The paper: τ = 4 is best for accuracy, and a higher τ does not raise agreement.

`:small` was not run yet. Its teachers take as many steps on 2,500 images as those of other figures on 5,000, and
students half as many.
"""

from ml_collections import ConfigDict

from kdjax.config.sweep import EQUAL, Claim, Point, Sweep
from kdjax.intervals import HIGHER, LOWER

from . import recipes

NUM_MEMBERS = {'': (1, 3, 5), 'small': (1, 3), 'smoke': (1, 3)}
TEMPERATURES = (1.0, 4.0, 8.0, 16.0)
ACCURACY = (
  (59.38, 61.33, 59.87, 59.16),
  (59.65, 62.78, 62.12, 61.38),
  (60.25, 63.21, 62.18, 61.45),
)
AGREEMENT = (
  (58.04, 65.31, 65.24, 65.27),
  (63.91, 72.77, 72.38, 71.56),
  (67.16, 74.77, 75.32, 74.92),
)


def get_config(arg: str = '') -> ConfigDict:
  config = recipes.cifar100(arg, depth=20)
  if arg:
    config.teacher.num_epochs *= 2  # as many steps on half of the data
  half = (0, (config.dataset.num_train or 50_000) // 2)
  config.teacher.examples = config.predictions.examples = half
  return config


def get_sweep(arg: str = '') -> Sweep:
  paper = {recipes.ACCURACY.measure: {}, recipes.AGREEMENT.measure: {}}
  for m, accuracy, agreement in zip(NUM_MEMBERS[''], ACCURACY, AGREEMENT, strict=True):
    paper[recipes.ACCURACY.measure] |= recipes.values(f'm = {m}', TEMPERATURES, accuracy)
    paper[recipes.AGREEMENT.measure] |= recipes.values(f'm = {m}', TEMPERATURES, agreement)
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
  series, i = f'm = {m}', NUM_MEMBERS[''].index(m)
  (accuracy_1, accuracy_4, _, accuracy_16) = ACCURACY[i]
  (agreement_1, agreement_4, _, agreement_16) = AGREEMENT[i]
  one, four, sixteen = ((series, tau) for tau in (1.0, 4.0, 16.0))
  accuracy, agreement = recipes.ACCURACY.measure, recipes.AGREEMENT.measure
  return [
    Claim(
      f'{series}: τ = 4 gives a higher agreement than τ = 1',
      *(agreement, four, one, HIGHER),
      paper=round(agreement_4 - agreement_1, 2),
    ),
    Claim(
      f'{series}: agreement gains no more: τ = 16 is within 2 points of τ = 4',
      *(agreement, sixteen, four, EQUAL),
      margin=2.0,
      paper=round(agreement_16 - agreement_4, 2),
    ),
    Claim(
      f'{series}: τ = 4 gives a higher accuracy than τ = 1',
      *(accuracy, four, one, HIGHER),
      paper=round(accuracy_4 - accuracy_1, 2),
    ),
    Claim(
      f'{series}: τ = 16 gives a lower accuracy than τ = 4',
      *(accuracy, sixteen, four, LOWER),
      paper=round(accuracy_16 - accuracy_4, 2),
    ),
  ]
