"""Every field of every experiment, with its default: the paper's CIFAR recipe (Appendix A).

A config file's `get_config(arg='')` calls this one and changes what its experiment changes. Fields
that are None are optional. Durations (`num_epochs`, `num_steps`, `num_examples`) are alternatives:
exactly one of the three is set, the others are None.
"""

from ml_collections import ConfigDict, FieldReference
from ml_collections.config_dict import placeholder


def get_config() -> ConfigDict:
  config = ConfigDict()
  config.seed = 0  # every random number follows from it

  config.dataset = ConfigDict()
  config.dataset.name = 'cifar10'  # 'digits' (embedded) or any TFDS image classification set
  config.dataset.data_dir = placeholder(
    str
  )  # of TFDS; None: TFDS_DATA_DIR, then ~/tensorflow_datasets
  config.dataset.num_train = placeholder(int)  # class-balanced subset; None: all
  config.dataset.num_val = 0  # held out of the training set; choices are made there
  config.dataset.num_test = placeholder(int)  # None: all

  config.model = ConfigDict()
  config.model.name = 'resnet'  # 'resnet' (pre-activation) or 'lenet'
  config.model.depth = 20  # resnet: 6n+2 has basic blocks; 9n+2 from 56 on bottleneck blocks
  config.model.width = 16  # resnet: filters of the first stage, doubled in each later one
  config.model.norm = 'batch'  # resnet: 'batch' or 'layer'

  config.teacher = ConfigDict()
  config.teacher.num_members = 5  # m, the size of the ensemble
  _duration(config.teacher, num_epochs=200)
  config.teacher.batch_size = 256  # over all devices
  config.teacher.learning_rate = 0.1  # cosine from here ...
  config.teacher.final_learning_rate = 0.0  # ... to here
  config.teacher.momentum = 0.9
  config.teacher.nesterov = False
  config.teacher.weight_decay = 1e-4  # L2, coupled: its gradient passes through the momentum
  config.teacher.augmentation = ('crop', 'flip')  # of kdjax.views.AUGMENTATIONS, in this order
  config.teacher.keep_checkpoints = ()  # fractions of training whose checkpoints are kept

  config.predictions = ConfigDict()
  config.predictions.mode = 'stored'  # 'stored', or 'online': run the teachers beside the student
  config.predictions.num_views = 300  # student epoch e reads view e mod num_views
  config.predictions.dtype = (
    'float16'  # of the stored log-probabilities: float16, bfloat16, float32
  )
  config.predictions.augmentation = ('crop', 'flip')  # of the distillation data

  config.student = ConfigDict()
  config.student.seed = placeholder(int)  # init and data order; None: `seed`. Views follow `seed`
  _duration(config.student, num_epochs=300)
  config.student.batch_size = 128
  config.student.learning_rate = 5e-2
  config.student.final_learning_rate = 1e-6
  config.student.momentum = 0.9
  config.student.nesterov = True
  config.student.weight_decay = 1e-4
  config.student.temperature = 4.0  # τ
  config.student.alpha = 0.0  # α, the weight of the true labels
  config.student.init_lambda = 0.0  # λ: 0 starts at random, 1 at the first member's final weights
  config.student.keep_checkpoints = (0.0, 0.1, 0.25, 0.5, 0.75)
  config.student.model = ConfigDict()  # overrides `model`, field by field
  config.student.model.name = placeholder(str)
  config.student.model.depth = placeholder(int)
  config.student.model.width = placeholder(int)
  config.student.model.norm = placeholder(str)

  config.augmentation = ConfigDict()
  config.augmentation.crop_padding = 4  # pixels of zeros on each side before a random crop

  config.training = ConfigDict()  # how often, in times over a whole training
  config.training.num_logs = 100
  config.training.num_evals = 20
  config.training.num_checkpoints = 20  # a killed run goes on from the newest

  config.evaluation = ConfigDict()
  config.evaluation.batch_size = 512
  config.evaluation.num_views = 5  # views of the distillation data that result.json averages over

  config.lock()  # a misspelt field raises
  return config


def _duration(section: ConfigDict, num_epochs: int) -> None:
  section.num_epochs = FieldReference(num_epochs, field_type=int)
  section.num_steps = placeholder(int)
  section.num_examples = placeholder(int)
