"""Table 2, ImageNet: ResNet-50 from ensembles of ResNet-50.

    python launch.py --config=configs/paper/table2_imagenet.py --sweep    # a host with 8 GPUs; not run
    python launch.py --config=configs/paper/table2_imagenet.py:smoke --sweep    # 4 minutes on one core

There are two trials, each the baseline of the other. `:smoke` only shows that everything runs, on 300 images of
CIFAR-10. There is no `:small`: on two cores, a ResNet-50 cannot learn enough to show the effect.
"""

from ml_collections import ConfigDict

from kdjax.config import base
from kdjax.config.sweep import Sweep

from .. import imagenet_resnet
from . import recipes

NUM_MEMBERS = {'': (1, 3, 5), 'smoke': (1,)}
PAPER = {
  recipes.TEACHER: (74.8, 76.4, 76.7),
  recipes.ACCURACY: (75.3, 75.5, 75.6),
  recipes.AGREEMENT: (85.5, 87.8, 88.4),
  recipes.KL: (0.217, 0.157, 0.142),
}


def get_config(arg: str = '') -> ConfigDict:
  base.check_argument(arg, 'smoke')
  return imagenet_resnet.get_config(arg)


def get_sweep(arg: str = '') -> Sweep:
  return recipes.table_2(
    'Table 2: ImageNet, ResNet-50', NUM_MEMBERS[arg], PAPER, trials=2, has_paper=not arg
  )
