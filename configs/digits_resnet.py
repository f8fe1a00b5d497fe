"""The default: three small ResNets and their student on embedded digits, in minutes and offline.

    python launch.py                                    # two CPU cores: two to three minutes
    python launch.py --config.student.temperature=1     # reuses teachers and predictions

Teachers and student see 200 of the 1,437 training images (8x8 pixels), so they make errors and differ. On the
360 test images, the student agrees with its ensemble on 95.0 %, and with the ensemble of another seed's images
on 91.1 %. The ensemble's test accuracy is 95.3 %, the student's 93.6 %. Digits are not flipped.
"""

from ml_collections import ConfigDict

from kdjax.config import base


def get_config() -> ConfigDict:
  config = base.get_config()
  config.dataset.name = 'digits'
  config.model.depth = 8
  config.model.width = 8
  config.augmentation.crop_padding = 1

  config.teacher.num_members = 3
  config.teacher.examples = (0, 200)
  config.teacher.num_epochs = 60
  config.teacher.batch_size = 128
  config.teacher.augmentation = ('crop',)

  config.predictions.examples = (0, 200)
  config.predictions.num_views = 50
  config.predictions.augmentation = ('crop',)

  config.student.num_epochs = 150
  return config
