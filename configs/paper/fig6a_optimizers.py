"""Figure 6a: neither longer training nor another optimizer makes the student match its teacher.

    python launch.py --config=configs/paper/fig6a_optimizers.py --sweep          # GPUs, days; not run
    python launch.py --config=configs/paper/fig6a_optimizers.py:small --sweep    # 24 students; hours: docs/results.md
    python launch.py --config=configs/paper/fig6a_optimizers.py:smoke --sweep    # 24 minutes on one core

ResNet-20 with LayerNorm, self-distillation on CIFAR-100 without weight decay. Agreement is on the augmented
distillation data: at the end, and as a mean over the last epoch, as in the paper's public code. The paper has SGD
and Adam; Muon is ours.

`:small` was run in four trials (docs/results.md), with teachers and data as in `fig6b_lambda.py:small`. After 40
epochs of SGD students agree with their teacher on 80.1 % of the distillation data, after 160 on 85.4 %, and independent
students on 69 to 70 %, so agreement is far from chance and from 100 %, and not yet flat. Learning rates were not tuned.
"""

from ml_collections import ConfigDict

from kdjax.config.sweep import EQUAL, Claim, Point, Sweep
from kdjax.intervals import HIGHER, LOWER

from . import recipes

OPTIMIZERS = {
  'SGD': {},
  'Adam': {'student.optimizer': 'adam', 'student.learning_rate': 1e-3, 'student.nesterov': False},
  'Muon': {'student.optimizer': 'muon', 'student.learning_rate': 1e-2},
}
NUM_EPOCHS = {'': (300, 1000, 5000), 'small': (40, 160), 'smoke': (10, 30)}
PAPER = recipes.values('SGD', (300, 5000), (78.95, 83.3))


def get_config(arg: str = '') -> ConfigDict:
  config = recipes.cifar100(arg, depth=20, num_members=1, norm='layer')
  config.student.weight_decay = 0.0
  config.predictions.num_views = max(NUM_EPOCHS[arg])  # fresh augmentation throughout
  if not arg:
    config.predictions.mode = 'online'  # stored, 5,000 views would take 50 GB
  return config


def get_sweep(arg: str = '') -> Sweep:
  return Sweep(
    title='Figure 6a: optimizers and budgets',
    x_label='epochs of the student',
    points=[
      Point(fields | {'student.num_epochs': num_epochs}, num_epochs, name)
      for name, fields in OPTIMIZERS.items()
      for num_epochs in NUM_EPOCHS[arg]
    ],
    panels=(recipes.TRAIN_AGREEMENT, recipes.LAST_EPOCH, recipes.AGREEMENT),
    trials=recipes.TRIALS[arg],
    paper={} if arg else {recipes.TRAIN_AGREEMENT.measure: PAPER},
    claims=_claims(NUM_EPOCHS[arg]),
  )


def _claims(num_epochs: tuple[int, ...]) -> list[Claim]:
  measure, short, long = recipes.TRAIN_AGREEMENT.measure, num_epochs[0], num_epochs[-1]
  before = num_epochs[-2]
  return [
    Claim(
      f'more epochs help: {long} against {short} with SGD',
      *(measure, ('SGD', long), ('SGD', short), HIGHER),
      paper=4.35,
    ),
    Claim(
      f'but they help little: {long} epochs of SGD are within 3 points of {before}',
      *(measure, ('SGD', long), ('SGD', before), EQUAL),
      margin=3.0,
      paper=2.0,  # from 1,000 to 5,000 epochs
    ),
    Claim(
      f'but the match stays far from perfect: agreement after {long} epochs of SGD < 95 %',
      *(measure, ('SGD', long), 95.0, LOWER),
      paper=-11.7,
    ),
    Claim(
      f'Adam is worse than SGD after {short} epochs',
      *(measure, ('Adam', short), ('SGD', short), LOWER),
    ),
  ]
