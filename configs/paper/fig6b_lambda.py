"""Figure 6b: a student matches its teacher if it starts near it, and not if it starts far away.

    python launch.py --config=configs/paper/fig6b_lambda.py --sweep          # a GPU, a day; not run
    python launch.py --config=configs/paper/fig6b_lambda.py:small --sweep    # 40 students; hours: docs/results.md
    python launch.py --config=configs/paper/fig6b_lambda.py:smoke --sweep    # about 20 minutes on one core

The student of a ResNet-20 with LayerNorm starts at λ θ_t + (1 − λ) θ_r, between random weights and its teacher's.
The paper: agreement on the distillation data is about 80 % at λ = 0, about 95 % or less at 0.25, and near 100 % from
0.375 on. Two series share λ = 0:

- "rate as configured": students differ only in their start. A high rate drives a student away from its teacher,
  even one that starts at the teacher.
- "rate times 1 − λ": the learning rate starts at 1 − λ times the configured one, as in the paper's public code,
  but not in its text. So the student that starts at its teacher hardly moves: its rate is the final one, 1e-6.
  This series is comparable with the paper's curve, but mixes the start with the rate.

In `:small`, the student has the paper's regime: from a random start, agreement ends at about the paper's level, 80 %
(four trials), far from chance and from 100 %. So a student that starts nearer can gain as much as in the paper. The teacher does not have the paper's regime: it classifies 48 to 49 % of the augmented training
images correctly; see `recipes.py`. Each of the four trials has another teacher and other random weights.
"""

from ml_collections import ConfigDict

from kdjax.config.sweep import EQUAL, Claim, Point, Sweep
from kdjax.intervals import HIGHER, LOWER

from . import recipes

FEW = (0.0, 0.25, 0.375, 0.5, 1.0)
LAMBDAS = {'': (0.0, 0.125, 0.25, 0.375, 0.5, 0.75, 1.0), 'small': FEW, 'smoke': FEW}
CONFIGURED, SCALED = 'rate as configured', 'rate times 1 − λ'


def get_config(arg: str = '') -> ConfigDict:
  return recipes.cifar100(arg, depth=20, num_members=1, norm='layer')


def get_sweep(arg: str = '') -> Sweep:
  student = get_config(arg).student
  points = [Point({'student.init_lambda': x}, x, CONFIGURED) for x in LAMBDAS[arg]]
  for x in LAMBDAS[arg]:
    rate = max((1 - x) * student.learning_rate, student.final_learning_rate)
    scaled = {'student.learning_rate': rate} if x else {}  # at λ = 0, the rate is as configured
    points.append(Point({'student.init_lambda': x} | scaled, x, SCALED))
  paper = recipes.values(SCALED, (0.0, 0.375), (80.0, 100.0))
  return Sweep(
    title='Figure 6b: starting between random weights and the teacher',
    x_label='λ (0: random, 1: the teacher)',
    points=points,
    panels=(
      recipes.TRAIN_AGREEMENT,
      recipes.TRAIN_KL,
      recipes.LAST_EPOCH,
      recipes.AGREEMENT,
      recipes.ACCURACY,
    ),
    trials=recipes.TRIALS[arg],
    caption='The learning rate starts as configured, or at 1 − λ times that, as in the '
    "paper's public code. The paper's values belong to the latter.",
    paper={} if arg else {recipes.TRAIN_AGREEMENT.measure: paper},
    claims=_claims(),
  )


def _claims() -> list[Claim]:
  """The claims of Section 6.1: for the rate as configured, and for the scaled rate with the paper's effects."""
  agreement, kl, accuracy = (
    panel.measure for panel in (recipes.TRAIN_AGREEMENT, recipes.TRAIN_KL, recipes.ACCURACY)
  )
  random, near = (CONFIGURED, 0.0), (CONFIGURED, 0.5)
  text = 'λ = {} gives a higher agreement on the distillation data than a random start'
  claims = [
    Claim(text.format(f'{x:g}'), agreement, (CONFIGURED, x), random, HIGHER)
    for x in (0.5, 0.375, 0.25, 1.0)
  ]
  claims += [
    Claim(
      'from a random start agreement on the distillation data stays below 90 %',
      *(agreement, random, 90.0, LOWER),
      paper=-10.0,
    ),
    Claim(
      'beyond the threshold the start matters no more: λ = 1 is within 2 points of λ = 0.5',
      *(agreement, (CONFIGURED, 1.0), near, EQUAL),
      margin=2.0,
    ),
    Claim(
      'λ = 0.5 reaches a lower KL on the distillation data than a random start',
      *(kl, near, random, LOWER),
    ),
    Claim(
      'the closest match does not generalise better: accuracy at λ = 0.5 is within 1 point of λ = 0',
      *(accuracy, near, random, EQUAL),
      margin=1.0,
    ),
  ]
  claims += [
    Claim(
      f'{SCALED}: {text.format(f"{x:g}")}',
      *(agreement, (SCALED, x), (SCALED, 0.0), HIGHER),
      paper=effect,
    )
    for x, effect in ((0.25, None), (0.375, 20.0), (0.5, 20.0), (1.0, 20.0))
  ]
  text = (
    f'{SCALED}: λ = 0.5 matches its teacher, with an agreement on the distillation data above 95 %'
  )
  return [*claims, Claim(text, agreement, (SCALED, 0.5), 95.0, HIGHER, paper=5.0)]
