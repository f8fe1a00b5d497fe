"""Every field of every experiment, with its default: the paper's CIFAR recipe (Appendix A).

The `get_config(arg='')` of a config file calls the one of this file and changes some fields. Fields that may
be None are placeholders or references. Of the durations (`num_epochs`, `num_steps`, `num_examples`) exactly
one is set; the others are None.
"""

import functools
import pickle

from ml_collections import ConfigDict, FieldReference
from ml_collections.config_dict import placeholder


def get_config() -> ConfigDict:
  return pickle.loads(_pickled())  # takes a fifth of the time of `_defaults`


def check_argument(arg: str, *allowed: str) -> None:
  """Raises ValueError if `arg`, the ARGUMENT of --config=FILE.py:ARGUMENT, is neither empty nor allowed."""
  if arg and arg not in allowed:
    names = ', '.join(map(repr, filter(None, allowed)))
    raise ValueError(f'unknown argument {arg!r}; allowed: {names}')


@functools.cache
def _pickled() -> bytes:
  return pickle.dumps(_defaults())


def _defaults() -> ConfigDict:
  config = ConfigDict()
  config.seed = 0  # every random number follows from it; trials of a sweep differ in it

  config.dataset = ConfigDict()
  # 'digits' (embedded), any classification set of TFDS, 'folder', 'arrays' (an .npz file), or
  # 'module:function' of a function that returns arrays (docs/extending.md).
  config.dataset.name = 'cifar10'
  # The folder of TFDS (None: TFDS_DATA_DIR, then ~/tensorflow_datasets), or for 'folder' the one with
  # train/CLASS/* and test/CLASS/*.
  config.dataset.data_dir = placeholder(str)
  config.dataset.path = placeholder(str)  # for 'arrays': the .npz file, with x_train, y_train, ...
  # The size of a class-balanced subset, which is always the same; None: all.
  config.dataset.num_train = placeholder(int)
  # Chooses the class-balanced parts of `teacher.examples` and `predictions.examples`. None: `seed`, so trials
  # and independent students have parts of their own.
  config.dataset.subset_seed = placeholder(int)
  config.dataset.num_val = 0  # held out of the training set, to choose hyperparameters on
  config.dataset.num_test = placeholder(int)  # how many test examples; None: all
  config.dataset.image_size = placeholder(int)  # images are resized and cropped to it; None: as is
  # Whether images stay on disk and are decoded during training, for sets larger than memory.
  config.dataset.streaming = False
  config.dataset.num_workers = 0  # of streaming: processes that decode; 0: a thread for each core
  config.dataset.max_tokens = 100  # of a text; the rest is cut off
  config.dataset.min_count = 10  # of a token in the training texts; rarer ones are dropped

  config.model = ConfigDict()
  # 'resnet' (pre-activation, for small images), 'lenet', 'vgg' (16), 'resnet50', 'bilstm' (texts), or
  # 'module:class' of a linen module.
  config.model.name = 'resnet'
  config.model.options = ConfigDict()  # arguments of your own linen module, by name
  config.model.depth = 20  # resnet: 6n+2 has basic blocks; 9n+2 from 56 on bottleneck blocks
  # The filters of the first stage, doubled in each later one; bilstm: the size of the cell.
  config.model.width = 16
  config.model.norm = 'batch'  # resnet and resnet50: 'batch' or 'layer'
  # resnet: a projection shortcut reads a block's input after norm and ReLU ('activated', He et al. 2016)
  # or before them ('raw', as in the paper's public code).
  config.model.shortcut = 'activated'
  # The type in which layers compute: 'float32' or 'bfloat16'. Weights, logits and losses are always float32.
  config.model.dtype = 'float32'

  config.teacher = ConfigDict()
  # Where the predictions come from. '': members are trained here, by the fields below. 'module:attribute': a
  # function (images) -> logits, or a list of them as members. 'file': logits in `path`. 'workdir': trained
  # members in `path`. Only '' and 'workdir' have weights. See docs/extending.md, "A teacher".
  config.teacher.source = ''
  # For 'file': an .npz file or a zarr folder. For 'workdir': OTHER/teachers/FINGERPRINT of another workdir.
  # For 'module:attribute': a file or folder that the function reads, if any. Fingerprints cover its content.
  config.teacher.path = placeholder(str)
  # `source` of the independent teacher, which is trained here only if `teacher.source` is ''.
  config.teacher.independent_source = ''
  config.teacher.independent_path = placeholder(str)  # `path` of the independent teacher
  config.teacher.num_members = 5  # m, the size of the ensemble
  # Whether each device trains a member of its own, which is faster for small models. Otherwise all devices
  # train one member after the other.
  config.teacher.members_in_parallel = False
  # The training examples, as (start, stop) in class-balanced order; (): all.
  config.teacher.examples = ()
  _duration(config.teacher, num_epochs=200)  # 0: an untrained teacher, as a control
  config.teacher.batch_size = 256  # examples in a step, over all devices
  _optimizer(config.teacher, learning_rate=0.1, final_learning_rate=0.0, nesterov=False)
  # In this order: 'flip', 'vertical_flip', 'crop', 'rotation', 'brightness', 'contrast', 'saturation', 'hue',
  # 'color_jitter', or 'module:function'.
  config.teacher.augmentation = ('crop', 'flip')
  config.teacher.keep_checkpoints = ()  # fractions of training whose checkpoints are kept

  config.predictions = ConfigDict()
  config.predictions.mode = 'stored'  # 'stored', or 'online': run the teachers beside the student
  config.predictions.num_views = 300  # student epoch e reads view e mod num_views
  # How log_probs are stored: 'float16', 'bfloat16', 'float32' or 'top_k'. 'top_k' keeps `top_k` classes of
  # each example of the distillation data, and float16 for the unaugmented splits.
  config.predictions.dtype = 'float16'
  config.predictions.top_k = placeholder(int)  # k, for 'top_k'
  # For 'top_k': 'tail' (the k most probable classes; the others share the rest), 'truncated' (the others have
  # 0), 'sampled' or 'systematic' (k random draws, an unbiased estimate, for a cross_entropy at temperature
  # 1). See kdjax/predictions/encodings.py.
  config.predictions.top_k_estimator = 'tail'
  # The training examples of the distillation data, as teacher.examples; (0, 0): none, only `extra`.
  config.predictions.examples = ()
  # Names as in teacher.augmentation, and also 'mixup' and 'noise', in this order.
  config.predictions.augmentation = ('crop', 'flip')
  config.predictions.extra = ''  # where unlabelled images come from: a TFDS set, a folder, or 'gan'
  config.predictions.num_extra = placeholder(int)  # how many images of `extra` are in each epoch
  config.predictions.augment_extra = True  # whether images of `extra` are augmented, too

  config.student = ConfigDict()
  config.student.seed = placeholder(int)  # init and data order; None: `seed`. Views follow `seed`
  _duration(config.student, num_epochs=300)
  config.student.batch_size = 128  # examples in a step, over all devices
  _optimizer(config.student, learning_rate=5e-2, final_learning_rate=1e-6, nesterov=True)
  # 'cross_entropy' (with the teacher), 'reverse_kl', 'symmetric_kl', 'standardised_kl', 'decoupled', 'dist',
  # 'brier', 'logit_mse', 'hard_labels' (the teacher's classes), 'cka' (of features), or 'module:function'.
  config.student.loss = 'cross_entropy'
  config.student.loss_options = ConfigDict()  # arguments of the loss by name; see kdjax/losses/
  config.student.temperature = 4.0  # τ, which divides the logits of student and teacher
  config.student.final_temperature = placeholder(float)  # τ falls to it geometrically; None: fixed
  config.student.alpha = 0.0  # α, the weight of the true labels where known; 1: labels only
  config.student.init_lambda = 0.0  # λ: 0 starts at random, 1 at the first member's weights
  config.student.init_from = 'final'  # which of the member's weights: 'final' or 'initial'
  # Fractions of training whose checkpoints are kept for the analysis; the last one always is.
  config.student.keep_checkpoints = (0.0, 0.1, 0.25, 0.5, 0.75)
  config.student.model = ConfigDict()  # None: as the field of the same name of `model`
  config.student.model.name = placeholder(str)  # None: model.name
  config.student.model.options = ConfigDict()  # merged into model.options if the names are equal
  config.student.model.depth = placeholder(int)  # None: model.depth
  config.student.model.width = placeholder(int)  # None: model.width
  config.student.model.norm = placeholder(str)  # None: model.norm
  config.student.model.shortcut = placeholder(str)  # None: model.shortcut
  config.student.model.dtype = placeholder(str)  # None: model.dtype

  config.augmentation = ConfigDict()
  config.augmentation.crop_padding = 4  # pixels of black on each side before a random crop
  config.augmentation.rotation_degrees = 20.0  # the largest angle, in both directions
  config.augmentation.rotation_interpolation = 'bilinear'  # or 'nearest', torchvision's default
  config.augmentation.brightness = 0.2  # the largest change, as a fraction
  config.augmentation.contrast = 0.2  # the largest change, as a fraction
  config.augmentation.saturation = 0.2  # the largest change, as a fraction
  config.augmentation.hue = 0.2  # the largest shift, in turns of the colour wheel
  config.augmentation.noise_probability = 0.2  # the probability that 'noise' replaces an image

  config.gan = ConfigDict()  # SN-GAN, trained only if predictions.extra = 'gan'
  config.gan.seed = 0  # not `seed`, so all students of a sweep share the GAN
  config.gan.num_steps = 100_000  # of the generator
  config.gan.batch_size = 128  # examples in a step, over all devices
  config.gan.num_discriminator_steps = 5  # for each step of the generator
  config.gan.latent_size = 128  # dimensions of the generator's input
  config.gan.generator_width = 256  # filters of each stage of the generator
  config.gan.discriminator_width = 128  # filters of each stage of the discriminator
  config.gan.learning_rate = 2e-4  # of both networks at the first step
  config.gan.final_learning_rate = 1e-6  # of both networks at the last step; linear in between
  config.gan.flip = True  # whether the real images are flipped at random
  # How many images are kept; `predictions.num_extra` is at most this.
  config.gan.num_samples = 50_000

  config.training = ConfigDict()
  config.training.num_logs = 100  # how often a training logs
  config.training.num_evals = 20  # how often a training evaluates
  config.training.num_checkpoints = 20  # how often it saves; a killed run resumes from the newest
  # How many steps of a teacher or student are one call to the device. None: 1 on a CPU, else 10. Results for
  # 1 and for more differ by rounding.
  config.training.steps_per_dispatch = placeholder(int)

  config.evaluation = ConfigDict()
  config.evaluation.batch_size = 512  # examples in a batch without gradients, over all devices
  config.evaluation.num_views = 5  # views of the distillation data that result.json averages over
  # The seed of the independent teacher and its student, the baseline of fidelity; None: no baseline. With a
  # teacher.source, teacher.independent_source names the independent teacher.
  config.evaluation.independent_seed = FieldReference(1000)
  config.evaluation.num_bootstrap = 1000  # resamples for each interval
  # The number of test examples for the CKA of features, which needs a teacher with weights; 0: no CKA.
  config.evaluation.num_cka_examples = 0

  config.lock()  # a misspelt field raises an error
  for section in (config.model.options, config.student.model.options, config.student.loss_options):
    section.unlock()  # these take any fields
  return config


def _duration(section: ConfigDict, num_epochs: int) -> None:
  section.num_epochs = FieldReference(num_epochs, field_type=int)  # the duration; 0: no training
  section.num_steps = placeholder(int)  # the duration in steps, if num_epochs is None
  section.num_examples = placeholder(int)  # the duration in examples, if num_epochs is None


def _optimizer(
  section: ConfigDict, learning_rate: float, final_learning_rate: float, nesterov: bool
) -> None:
  section.optimizer = 'sgd'  # 'sgd', 'adam', 'adamw', 'muon', or 'module:function'
  section.warmup_epochs = 0.0  # in which the learning rate rises linearly from 0 to `learning_rate`
  section.learning_rate = learning_rate  # the largest one, which follows the warm-up
  section.final_learning_rate = final_learning_rate  # at the last step, reached by a cosine
  section.momentum = 0.9  # of SGD and Muon; β1 of Adam and AdamW
  section.beta2 = 0.999  # of Adam and AdamW
  section.nesterov = nesterov  # of SGD and Muon
  section.weight_decay = 1e-4  # L2 in the gradient (sgd, adam), or decoupled (adamw, muon)
