"""Self-distillation of an ensemble of pre-activation ResNets on CIFAR (Sections 4 to 6, Figure 3).

    python launch.py --config=configs/cifar_resnet.py                                  # CIFAR-10
    python launch.py --config=configs/cifar_resnet.py --config.dataset.name=cifar100 \
        --config.model.depth=56                                                        # Figure 3
    python launch.py --config=configs/cifar_resnet.py:smoke                            # two CPU cores

The full recipe needs a GPU or a TPU. `:smoke` shrinks every size, and finishes all stages on real CIFAR-10 in
under ten minutes on two CPU cores. Its numbers only show that the pipeline works.
"""

from ml_collections import ConfigDict

from kdjax.config import base


def get_config(arg: str = '') -> ConfigDict:
  base.check_argument(arg, 'smoke')
  config = base.get_config()
  if arg:
    config.dataset.num_train = 5000
    config.dataset.num_test = 2000
    config.model.depth = 8
    config.model.width = 8
    config.teacher.num_members = 2
    config.teacher.num_epochs = 15
    config.teacher.batch_size = 128
    config.predictions.num_views = 5
    config.student.num_epochs = 20
    config.evaluation.num_views = 2
    config.training.num_evals = 6
    config.training.num_checkpoints = 6
  return config
