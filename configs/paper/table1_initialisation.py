"""Table 1: starting at the teacher's own initial weights does not help the student to match it.

    python launch.py --config=configs/paper/table1_initialisation.py --sweep          # a GPU; not run
    python launch.py --config=configs/paper/table1_initialisation.py:small --sweep    # 8 students; hours: docs/results.md
    python launch.py --config=configs/paper/table1_initialisation.py:smoke --sweep    # 8 minutes on one core

ResNet-20 on CIFAR-100, self-distillation, 10 trials. The paper has the CKA of the three stages. Its public code
averages over the wrong axes, so ours is not comparable.

In `:small`, teachers have a test accuracy of 56 % (chance: 10 %), and students agree with them on 79 % of the test set,
independent students on 72 %. Where a student started shows for a while: it changes agreement by 5 points after 10
epochs (`:smoke`) and by 1.1 after the 40 of `:small`. The paper's students train for 300.
"""

from ml_collections import ConfigDict

from kdjax.config.sweep import EQUAL, Claim, Panel, Point, Sweep

from . import recipes

STARTS = {
  'random': {},
  "teacher's initial": {'student.init_lambda': 1.0, 'student.init_from': 'initial'},
}
PAPER = {
  recipes.AGREEMENT.measure: recipes.values('', STARTS, ((77.17, 0.35), (77.10, 0.24))),
  recipes.TEACHER.measure: recipes.values('', STARTS, ((70.52, 0.41), (70.52, 0.41))),
  recipes.KL.measure: recipes.values('', STARTS, (0.836, 0.838)),
  'cka.stage1.member_0': recipes.values('', STARTS, (0.939, 0.951)),
  'cka.stage2.member_0': recipes.values('', STARTS, (0.925, 0.937)),
  'cka.stage3.member_0': recipes.values('', STARTS, (0.885, 0.890)),
}


def get_config(arg: str = '') -> ConfigDict:
  config = recipes.cifar100(arg, depth=20, num_members=1)
  config.evaluation.num_cka_examples = 500
  return config


def get_sweep(arg: str = '') -> Sweep:
  return Sweep(
    title="Table 1: random weights against the teacher's initial weights",
    x_label='the student starts at weights that are',
    points=[Point(fields, name) for name, fields in STARTS.items()],
    panels=(
      recipes.AGREEMENT,
      recipes.KL,
      *[Panel(f'cka.stage{i}.member_0', f'CKA, stage {i}') for i in (1, 2, 3)],
      recipes.TEACHER,
    ),
    trials=recipes.TRIALS[arg] if arg else 10,
    paper={} if arg else PAPER,
    claims=[
      Claim(
        f"the teacher's initial weights do not help: {text}",
        *(panel.measure, ('', "teacher's initial"), ('', 'random'), EQUAL, margin),
        paper=effect,
      )
      for text, panel, margin, effect in (
        ('agreement is within 1 point', recipes.AGREEMENT, 1.0, -0.07),
        ('the KL is within 0.05 nats', recipes.KL, 0.05, 0.002),
      )
    ],
  )
