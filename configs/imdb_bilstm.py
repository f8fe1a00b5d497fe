"""Bidirectional LSTMs on IMDB reviews (Table 2).

    python launch.py --config=configs/imdb_bilstm.py          # a GPU, hours
    python launch.py --config=configs/imdb_bilstm.py:smoke    # two CPU cores, minutes

The paper's recipe (Appendix A): two layers, embedding 128, cell 70, the first 100 tokens of a review without
tokens seen fewer than 10 times, batches of 100, 100 epochs, learning rate 0.01, weight decay 0.001. A review
has one view: itself.
"""

from ml_collections import ConfigDict

from kdjax.config import base


def get_config(arg: str = '') -> ConfigDict:
  base.check_argument(arg, 'smoke')
  config = base.get_config()
  config.dataset.name = 'imdb_reviews'
  config.model.name = 'bilstm'
  config.model.width = 70
  for section in (config.teacher, config.student):
    section.num_epochs = 100
    section.batch_size = 100
    section.learning_rate = 1e-2
    section.weight_decay = 1e-3
  config.teacher.augmentation = config.predictions.augmentation = ()
  config.predictions.num_views = 1
  config.student.temperature = 1.0
  config.evaluation.num_views = 1
  if arg:
    config.dataset.num_train = 10_000
    config.dataset.num_test = 2000
    config.model.width = 32
    config.teacher.num_members = 2
    for section in (config.teacher, config.student):
      section.num_epochs = 4
      section.optimizer = 'adam'  # needs fewer epochs than SGD
      section.learning_rate = 2e-3
      section.weight_decay = 0.0
    config.training.num_evals = 4
    config.training.num_checkpoints = 4
  return config
