"""Digits, two members and a student, every size so small that all stages take seconds."""

from ml_collections import ConfigDict

from configs import digits_resnet


def get_config() -> ConfigDict:
  config = digits_resnet.get_config()
  config.dataset.num_train = 200
  config.dataset.num_val = 50
  config.model.name = 'tests.small_network:Small'
  config.teacher.num_members = 2
  config.teacher.examples = config.predictions.examples = ()
  config.teacher.num_epochs = 4
  config.teacher.batch_size = 64
  config.predictions.num_views = 3
  config.student.num_epochs = 8
  config.student.batch_size = 48  # does not divide 200: batches reach into the next epoch
  config.student.keep_checkpoints = (0.0, 0.5)
  config.training.num_logs = 10
  config.training.num_evals = 4
  config.training.num_checkpoints = 2
  config.evaluation.independent_seed = None
  config.evaluation.num_bootstrap = 50
  config.evaluation.batch_size = 64
  config.evaluation.num_views = 2
  return config
