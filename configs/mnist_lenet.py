"""LeNet-5 on MNIST: an ensemble of three and its student.

python launch.py --config=configs/mnist_lenet.py          # two CPU cores, half an hour; a GPU, minutes
python launch.py --config=configs/mnist_lenet.py:smoke    # two CPU cores, under two minutes
"""

from ml_collections import ConfigDict

from kdjax.config import base


def get_config(arg: str = '') -> ConfigDict:
  base.check_argument(arg, 'smoke')
  config = base.get_config()
  config.dataset.name = 'mnist'
  config.model.name = 'lenet'
  config.augmentation.crop_padding = 2

  config.teacher.num_members = 3
  config.teacher.num_epochs = 20
  config.teacher.batch_size = 128
  config.teacher.learning_rate = 0.01
  config.teacher.augmentation = ('crop',)

  config.predictions.num_views = 20
  config.predictions.augmentation = ('crop',)

  config.student.num_epochs = 20
  config.student.learning_rate = 0.01
  if arg:
    config.dataset.num_train = 2000
    config.dataset.num_test = 1000
    config.teacher.num_members = 2
    config.predictions.num_views = 5
    config.evaluation.num_views = 2
  return config
