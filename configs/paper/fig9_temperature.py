"""Figure 9: temperature and ensemble size, teachers and students on half of CIFAR-100 (ResNet-20).

    python launch.py --config=configs/paper/fig9_temperature.py --sweep          # GPUs, days; not run
    python launch.py --config=configs/paper/fig9_temperature.py:small --sweep    # 4 minutes on one core, after fig4

Each trial has another half. The paper: τ = 4 is best for accuracy, and agreement gains no more from there on.
"""

from ml_collections import ConfigDict

from configs.paper import recipes
from kdjax.config.sweep import Point, Sweep

NUM_MEMBERS = {'': (1, 3, 5), 'small': (1, 3)}
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
  recipes.check(arg, 'small')
  config = recipes.cifar100(depth=20)
  half = (0, 25_000)
  if arg:
    recipes.shrink(config)
    half = (0, config.dataset.num_train // 2)
    config.teacher.num_epochs *= 2  # as many steps on half of the data
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
    panels=(recipes.ACCURACY, recipes.AGREEMENT, recipes.INDEPENDENT),
    trials=2 if arg else 3,
    paper={} if arg else paper,
  )
