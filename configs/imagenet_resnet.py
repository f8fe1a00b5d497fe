"""ResNet-50 on ImageNet-2012, self-distilled from an ensemble (Table 2).

    python launch.py --config=configs/imagenet_resnet.py          # a host with 8 GPUs, days; not run
    python launch.py --config=configs/imagenet_resnet.py:smoke    # one CPU core, 4 minutes; CIFAR-10

The paper's recipe: 90 epochs, batch 1024, SGD with momentum 0.9, 5 epochs of warm-up to 0.1, then cosine;
weight decay 1e-4 for teachers, none for students. Images are streamed: at 224 pixels, the training set would
take 193 GB of memory. The teachers run beside the student: stored predictions for the views of 90 epochs
would take 231 GB per member. `:smoke` shows that everything runs, on images of CIFAR-10.
"""

from ml_collections import ConfigDict

from kdjax.config import base


def get_config(arg: str = '') -> ConfigDict:
  base.check_argument(arg, 'smoke')
  config = base.get_config()
  config.dataset.name = 'imagenet2012'
  config.dataset.image_size = 224
  config.dataset.streaming = True
  config.dataset.num_workers = 32
  config.model.name = 'resnet50'
  config.model.width = 64
  config.augmentation.crop_padding = 28
  for section in (config.teacher, config.student):
    section.num_epochs = 90
    section.batch_size = 1024
    section.warmup_epochs = 5.0
    section.learning_rate = 0.1
    section.final_learning_rate = 0.0
    section.nesterov = False
  config.predictions.num_views = 90
  config.predictions.mode = 'online'
  config.student.weight_decay = 0.0
  config.student.temperature = 1.0
  if arg:
    config.dataset.name = 'cifar10'
    config.dataset.image_size = 64
    config.dataset.num_train = 300
    config.dataset.num_test = 100
    config.model.width = 8
    config.augmentation.crop_padding = 8
    config.teacher.num_members = 1
    config.predictions.num_views = 2
    config.evaluation.num_views = 1
    config.evaluation.batch_size = 100
    for section in (config.teacher, config.student):
      section.num_epochs = 4
      section.batch_size = 50
      section.warmup_epochs = 1.0
      section.keep_checkpoints = ()
  return config
