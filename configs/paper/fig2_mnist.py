"""Figure 2: self-distillation on MNIST, where agreement can be had: LeNet-5 from 200 examples.

    python launch.py --config=configs/paper/fig2_mnist.py --sweep          # with EMNIST; a GPU, minutes
    python launch.py --config=configs/paper/fig2_mnist.py:small --sweep    # 26 minutes on one core

The teacher learns 200 examples for 100 epochs and gets 84 to 86 % of the test set right. In the paper its
student, distilled on all of MNIST, agrees with it on over 99 %. `:small` has the full recipe and leaves
out just EMNIST. The paper does not say for how long the student trains: here for 10 epochs.
"""

from ml_collections import ConfigDict

from configs.paper import recipes
from kdjax.sweep import Point, Sweep

NUM_EXAMPLES = (15_000, 30_000, 60_000)
NUM_EMNIST = 697_932  # training images of emnist/byclass


def get_config(arg: str = '') -> ConfigDict:
  recipes.check(arg, 'small')
  return recipes.mnist()


def get_sweep(arg: str = '') -> Sweep:
  points = [Point({'predictions.examples': (0, n)}, f'{n // 1000}k') for n in NUM_EXAMPLES]
  if not arg:
    for percent in (25, 50, 100):
      fields = {
        'predictions.extra': 'emnist/byclass',
        'predictions.num_extra': NUM_EMNIST * percent // 100,
      }
      points.append(Point(fields, f'60k + {percent} % of EMNIST'))
  return Sweep(
    title='Figure 2: LeNet-5 distilled on MNIST from a teacher of 200 examples',
    x_label='distillation data',
    points=points,
    panels=(recipes.AGREEMENT, recipes.ACCURACY, recipes.TEACHER, recipes.INDEPENDENT),
    trials=3,
    caption='The paper: over 99 % agreement and 84 to 86 % accuracy with 60k and more.',
    paper={recipes.AGREEMENT.measure: {('', p.x): 99.0 for p in points if p.x.startswith('60k')}},
  )
