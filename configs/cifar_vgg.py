"""VGG-16 on CIFAR, self-distilled from an ensemble of five (Figure 13).

    python launch.py --config=configs/cifar_vgg.py                                    # CIFAR-10; a GPU
    python launch.py --config=configs/cifar_vgg.py --config.dataset.name=cifar100     # CIFAR-100; a GPU
    python launch.py --config=configs/cifar_vgg.py:smoke                              # two CPU cores

The recipe is the paper's for ResNets, except that teachers have a lower learning rate: without BatchNorm, 0.1
is too high. `:smoke` is an eighth as wide. It uses Adam, since SGD does not train so narrow a net.
"""

from ml_collections import ConfigDict

from kdjax.config import base


def get_config(arg: str = '') -> ConfigDict:
  base.check_argument(arg, 'smoke')
  config = base.get_config()
  config.model.name = 'vgg'
  config.model.width = 64
  config.teacher.learning_rate = 0.05
  if arg:
    config.dataset.num_train = 4000
    config.dataset.num_test = 2000
    config.model.width = 8
    config.teacher.num_members = 2
    config.predictions.num_views = 4
    for section in (config.teacher, config.student):
      section.num_epochs = 8
      section.batch_size = 32
      section.optimizer = 'adam'
      section.learning_rate = 1e-3
    config.evaluation.num_views = 2
    config.training.num_evals = 5
    config.training.num_checkpoints = 5
  return config
