"""Validation of fields that depend on other fields, the data, the model or the devices, and of sweeps."""

import checked_config
import jax
import pytest
from checked_config import load, problems_of, problems_of_sweep

from kdjax.config import validation
from kdjax.train import optimizers


@pytest.fixture(autouse=True)
def prepare_arguments(monkeypatch):
  """The `prepare` arguments of all calls of the replaced `data.describe`."""
  return checked_config.pretend(monkeypatch)


NAMES = ('crop', 'contrast', 'saturation', 'hue', 'color_jitter')
GAN = {'predictions.extra': 'gan', 'predictions.num_extra': 1}
NUM_EXTRA, CKA = 'predictions.num_extra', 'evaluation.num_cka_examples'
UNLABELLED = [
  {'predictions.augmentation': ('noise',), 'augmentation.noise_probability': 1.0},
  {'predictions.examples': (0, 0), 'predictions.extra': 'mnist', NUM_EXTRA: 60_000},
]
# (fields, the beginning of the only problem)
TOGETHER = [
  # Durations.
  (
    {'teacher.num_epochs': None},
    'teacher.num_epochs/num_steps/num_examples: none of them; allowed: ',
  ),
  (
    {'student.num_epochs': 2, 'student.num_steps': 3, 'student.num_examples': 4},
    'student.num_epochs/num_steps/num_examples: num_epochs = 2, num_steps = 3, num_examples = 4; all',
  ),
  (
    {'teacher.num_epochs': 10**9},
    'teacher.num_epochs = 1000000000: gives 195312500000 steps of 256',
  ),
  (  # two billion epochs
    {'student.num_epochs': None, 'student.num_steps': 10**9, 'student.batch_size': 100_000},
    'student.num_steps = 1000000000: gives 1000000000 steps of 100000',
  ),
  # Sizes.
  (
    {'dataset.num_train': 49_000, 'dataset.num_val': 1001},
    'dataset.num_train = 49000, dataset.num_val = 1001: allowed: together at most the 50000 training '
    "examples of dataset.name = 'cifar10'",
  ),
  ({'dataset.num_val': 50_000}, 'dataset.num_train = None, dataset.num_val = 50000: '),
  ({'dataset.num_test': 10_001}, 'dataset.num_test = 10001: allowed: at most the 10000 test ex'),
  *(
    (
      {'dataset.num_train': 1000, f'{section}.examples': (500, 1001)},
      f'{section}.examples = (500, 1001): allowed: up to the 1000 training examples that dataset.num',
    )
    for section in ('teacher', 'predictions')
  ),
  ({'dataset.num_test': 3, CKA: 10}, f'{CKA} = 10: allowed: 0, with 3 test examples'),
  ({'dataset.num_test': 9, CKA: 10}, f'{CKA} = 10: allowed: up to 9, with 9 test examples'),
  # Added images.
  ({'predictions.extra': 'svhn_cropped'}, 'predictions.num_extra = None: '),
  ({'predictions.extra': 'gan'}, 'predictions.num_extra = None: '),
  ({NUM_EXTRA: 5}, 'predictions.num_extra = 5: has no effect'),
  (
    {'predictions.extra': 'svhn_cropped', NUM_EXTRA: 73_258},
    'predictions.num_extra = 73258: allowed: at most the 73257 images',
  ),
  (GAN | {NUM_EXTRA: 50_001}, f'{NUM_EXTRA} = 50001: allowed: at most the gan.num_samples = 50000'),
  ({'predictions.extra': 'shvn', NUM_EXTRA: 5}, "predictions.extra = 'shvn': not there"),
  ({'predictions.extra': 's3://bucket', NUM_EXTRA: 1}, "predictions.extra = 's3://bucket'"),
  ({'predictions.examples': (0, 0)}, 'predictions.examples = (0, 0): leaves nothing to distil on'),
  (
    GAN | {'dataset.name': 'odd'},
    "predictions.extra = 'gan': the GAN cannot make images of 33 pix",
  ),
  (
    GAN | {'gan.num_steps': 10**9},
    'gan.num_steps = 1000000000: with gan.num_discriminator_steps = 5 gives 5000000000 steps',
  ),
  (GAN | {'dataset.num_train': 3}, 'dataset.num_train = 3: allowed with'),
  (GAN | {'dataset.num_test': 1}, 'dataset.num_test = 1: allowed with'),
  (
    GAN | {'dataset.streaming': True},
    "dataset.streaming = True: predictions.extra = 'gan' needs all images in mem",
  ),
  # Augmentations.
  *(
    (
      {'dataset.name': 'satellite', f'{section}.augmentation': NAMES},
      f'{section}.augmentation = {NAMES!r}: contrast, saturation, hue, color_jitter need images '
      'with 1 or 3 channels; those of satellite have 13',
    )
    for section in ('teacher', 'predictions')
  ),
  *(
    (
      {'dataset.name': 'satellite'} | fields,
      f'{field} needs images with 1, 3, 4 channels; those of satellite have 13',
    )
    for fields, field in (
      ({'dataset.image_size': 16}, 'dataset.image_size = 16:'),
      (GAN, "predictions.extra = 'gan':"),
    )
  ),
  ({'augmentation.crop_padding': 32}, 'augmentation.crop_padding = 32: allowed: less than the 32'),
  # Students.
  *(
    (
      {'student.loss': loss, 'student.final_temperature': 1.0},
      f'student.final_temperature = 1.0: the loss {loss} has no temperature',
    )
    for loss in ('hard_labels', 'logit_mse')
  ),
  *(
    (fields | {'student.alpha': 0.5}, 'student.alpha = 0.5: no example has a label; allowed: 0')
    for fields in UNLABELLED
  ),
  (
    {'predictions.augmentation': ('crop', 'mixup'), 'student.alpha': 0.1},
    "student.alpha = 0.1: with 'mixup' in predictions.augmentation, an image has no single true label",
  ),
  (
    {'student.init_from': 'initial'},
    "student.init_from = 'initial': has no effect at student.in",
  ),
  *(
    (
      {f'student.model.{field}': value, 'student.init_lambda': 0.5},
      'student.init_lambda = 0.5: mixes the weights',
    )
    for field, value in (('depth', 56), ('width', 8), ('norm', 'layer'))
  ),
  *(
    ({field: 1000}, 'evaluation.independent_seed = 1000: the same as seed or student.seed')
    for field in ('seed', 'student.seed')
  ),
]


@pytest.mark.parametrize(('fields', 'start'), TOGETHER)
def test_fields_that_do_not_go_together_are_reported(fields, start):
  (problem,) = problems_of(load(fields=fields))
  assert problem.startswith(start)


def test_fields_that_go_together_are_valid():
  for fields in (
    {'predictions.extra': 'svhn_cropped', NUM_EXTRA: 73_257},
    GAN | {NUM_EXTRA: 50_000},
    {'dataset.name': 'satellite', 'teacher.augmentation': ('flip', 'rotation', 'brightness')},
    {'student.loss': 'brier', 'student.final_temperature': 1.0},
    {'predictions.augmentation': ('noise',), 'student.alpha': 0.1},
    {'student.init_from': 'initial', 'student.init_lambda': 1.0},
    {'student.model.depth': 20, 'student.init_lambda': 0.5},  # the teacher's, spelt out
    {'student.model.depth': 56},  # from random weights
    {'dataset.num_test': 4, CKA: 4},
  ):
    validation.check(load(fields=fields), 1)


def test_texts_have_no_augmentation_no_gan_and_no_streaming():
  extra = {'predictions.extra': 'imdb_reviews', 'predictions.num_extra': 50_000}
  validation.check(load('imdb_bilstm.py', extra), 1)
  wrong = {
    'teacher.augmentation': ('flip',),
    'predictions.augmentation': ('mixup',),
    'dataset.streaming': True,
    'predictions.extra': 'gan',
  }
  problems = problems_of(load('imdb_bilstm.py', extra | wrong))
  for field, start in {
    'teacher.augmentation': "('flip',): is for images, and imdb_reviews has texts",
    'predictions.augmentation': "('mixup',): is for images, and imdb_reviews has texts",
    'dataset.streaming': 'True: is for images, and imdb_reviews has texts',
    'predictions.extra': "'gan': makes images, and imdb_reviews has texts",
  }.items():
    assert any(problem.startswith(f'{field} = {start}') for problem in problems), field


def test_a_warm_up_ends_before_the_training():
  of_examples = {'teacher.num_epochs': None, 'teacher.num_examples': 20_000}
  of_student = {'student.num_epochs': None, 'student.num_examples': 20_000}
  with_extra = {'predictions.extra': 'mnist', NUM_EXTRA: 2000}
  for section, fields, epochs in [
    ('teacher', {'teacher.num_epochs': 10}, 10),
    ('student', {'student.num_epochs': 10}, 10),
    # 20,000 examples are 10 epochs of 2,000, and 5 of 4,000.
    ('teacher', of_examples | {'teacher.examples': (0, 2000)}, 10),
    ('student', of_student | with_extra | {'predictions.examples': (0, 2000)}, 5),
  ]:
    name = f'{section}.warmup_epochs'
    fields = fields | {f'{section}.batch_size': 50}
    (problem,) = problems_of(load(fields=fields | {name: float(epochs)}))
    assert problem == (
      f'{name} = {epochs}.0: allowed: less than the {epochs} epochs of the whole training'
    )
    validation.check(load(fields=fields | {name: epochs - 0.1}), 1)


def test_a_warm_up_leaves_a_step_for_what_follows():
  fields = {'dataset.num_train': 100, 'student.num_epochs': 1, 'student.batch_size': 10}
  (problem,) = problems_of(load(fields=fields | {'student.warmup_epochs': 0.96}))  # 10 of 10 steps
  assert problem.startswith('student.warmup_epochs = 0.96: allowed: less than the 1 epochs')
  config = load(fields=fields | {'student.warmup_epochs': 0.94})
  validation.check(config, 1)
  assert optimizers.learning_rate(config.student, num_steps=10, warmup_steps=9)(9) == 0.05
  with pytest.raises(ValueError):
    optimizers.learning_rate(config.student, num_steps=10, warmup_steps=10)


def test_batches_are_split_evenly_over_the_devices():
  problems = problems_of(load(fields=GAN), num_devices=3)
  assert [p.partition(': allowed: a multiple of the 3 devices')[0] for p in problems] == [
    'teacher.batch_size = 256',
    'student.batch_size = 128',
    'evaluation.batch_size = 512',
    'gan.batch_size = 128',
  ]


@pytest.mark.parametrize(('backend', 'version'), [('cpu', (0, 10, 2)), ('gpu', (0, 12, 0))])
@pytest.mark.parametrize('field', ['model', 'student.model'])
def test_vgg_in_bfloat16_is_refused_where_xla_is_wrong(field, backend, version, monkeypatch):
  wrong = load('cifar_vgg.py', {f'{field}.dtype': 'bfloat16'})
  monkeypatch.setattr(jax, 'default_backend', lambda: 'cpu')
  monkeypatch.setattr(jax, '__version_info__', (0, 11, 0))
  (problem,) = problems_of(wrong)
  assert problem.startswith(f"{field}.dtype = 'bfloat16': on a CPU, XLA of JAX ")
  validation.check(load(fields={f'{field}.dtype': 'bfloat16'}), 1)  # a ResNet
  monkeypatch.setattr(jax, 'default_backend', lambda: backend)
  monkeypatch.setattr(jax, '__version_info__', version)
  validation.check(wrong, 1)


# Models.

MODELS = ('model.name', 'student.model.name')


@pytest.mark.parametrize(
  ('field', 'model', 'smallest'), [(MODELS[0], 'lenet', 12), (MODELS[1], 'vgg', 32)]
)
def test_some_models_need_larger_images_than_the_digits(field, model, smallest):
  (problem,) = problems_of(load('digits_resnet.py', {field: model}))
  assert problem.startswith(f'{field} = {model!r}: ') and f'at least {smallest} pixels' in problem
  assert 'have 8' in problem


@pytest.mark.parametrize('field', MODELS)
def test_texts_and_images_have_different_models(field):
  (problem,) = problems_of(load(fields={field: 'bilstm'}))
  assert problem == (
    f"{field} = 'bilstm': takes texts, and cifar10 has images. "
    'Allowed: resnet, lenet, vgg, resnet50'
  )
  (problem,) = problems_of(load('imdb_bilstm.py', {field: 'lenet'}))
  assert problem == (
    f"{field} = 'lenet': takes images, and imdb_reviews has texts. Allowed: bilstm"
  )


def test_cka_needs_a_feature_that_both_models_have():
  fields = {'model.depth': 8, 'student.model.name': 'lenet', 'evaluation.num_cka_examples': 10}
  (problem,) = problems_of(load(fields=fields))
  assert problem.startswith('evaluation.num_cka_examples = 10: resnet has the features pooled, ')
  assert problem.endswith('and lenet conv1, conv2, dense1, dense2: none in common; allowed: 0')
  validation.check(load(fields=fields | {'student.model.name': 'vgg'}), 1)  # stages
  validation.check(load(fields=fields | {'model.name': 'vgg'}), 1)  # hidden layers


def test_a_field_that_a_model_does_not_have_is_not_set():
  for fields, name in (
    ({'student.model.width': 32}, 'lenet'),
    ({'student.model.depth': 56}, 'lenet'),
    ({'student.model.norm': 'layer'}, 'lenet'),
    ({'student.model.shortcut': 'raw'}, 'lenet'),
    ({'model.shortcut': 'raw'}, 'lenet'),
    ({'student.model.name': 'vgg', 'student.model.depth': 56}, 'vgg'),
    ({'student.model.name': 'vgg', 'student.model.norm': 'batch'}, 'vgg'),
    ({'student.model.name': 'resnet50', 'student.model.depth': 56}, 'resnet50'),
    ({'model.norm': 'layer'}, 'lenet'),
    ({'model.norm': 'layer', 'student.model.name': 'vgg'}, 'lenet'),
  ):
    (problem,) = problems_of(load('cifar_resnet.py', {'model.name': 'lenet'} | fields))
    field, value = next((f, v) for f, v in fields.items() if f != 'student.model.name')
    assert problem.startswith(f'{field} = {value!r}: {name} has no {field.rpartition(".")[2]}')


def test_a_student_sets_the_fields_of_its_own_model():
  for fields in (
    {'student.model.name': 'resnet', 'student.model.depth': 8, 'student.model.norm': 'layer'},
    {'student.model.name': 'resnet', 'model.norm': 'layer'},  # the student's, too
    {'student.model.name': 'vgg', 'student.model.width': 8},
  ):
    validation.check(load(fields={'model.name': 'lenet'} | fields), 1)


# Sweeps.


def test_a_problem_of_several_runs_is_reported_once_with_the_first_of_them():
  wrong = [
    load(),
    load(fields={'seed': -1}),
    load(fields={'seed': -1, 'model.width': 0}),
    load(fields={'model.width': 0, 'student.alpha': 2.0}),
  ]
  problems = problems_of_sweep(wrong, problems=['student.tau = 1: no such field'])
  starts = ['student.tau = 1: ', 'run 1: seed = -1: ', 'run 2: model.width = 0: ']
  starts.append('run 3: student.alpha = 2.0: ')
  for problem, start in zip(problems, starts, strict=True):
    assert problem.startswith(start)
  problems = problems_of_sweep([load(fields={'dataset.name': 'stl10'})] * 3)
  assert problems == ["run 0: dataset.name = 'stl10': not there"]
  (problem, *_) = problems_of_sweep([load()], num_devices=3)
  assert problem.startswith('run 0: teacher.batch_size = 256: allowed: a multiple of the 3 devices')


def test_runs_of_a_sweep_do_not_replace_each_others_results():
  runs = [{'evaluation.num_bootstrap': 50}, {}, {'evaluation.batch_size': 64}]
  (problem,) = problems_of_sweep([load(fields=fields) for fields in [*runs, {'seed': 2} | runs[0]]])
  default = load().evaluation.num_bootstrap
  assert problem.startswith(f'run 1: evaluation.num_bootstrap = {default}: ')
  assert 'result of run 0, which is of the same student with 50;' in problem


def test_a_sweep_that_is_wrong_prepares_no_data_set(prepare_arguments):
  validation.check_sweep([load(), load(fields={'seed': 2})], 1, [])
  assert prepare_arguments == [True, True]
  for configs, problems in [
    ([load()], ['x = 1: no such field']),
    ([load(fields={'seed': -1})], []),
  ]:
    prepare_arguments.clear()
    problems_of_sweep([*configs, load()], problems=problems)
    assert prepare_arguments == [False, False]
