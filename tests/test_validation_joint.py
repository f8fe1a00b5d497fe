"""Validation of what ties fields to one another, to the data, the devices and the runs of a sweep."""

import checked_config
import jax
import pytest
from checked_config import load, problems_of, problems_of_sweep

from kdjax import config as config_lib
from kdjax import optimizers, validation


@pytest.fixture(autouse=True)
def prepare_arguments(monkeypatch):
  """What `data.describe`, which is replaced, was told about preparing the data set."""
  return checked_config.pretend(monkeypatch)


@pytest.mark.parametrize('section', ['teacher', 'student'])
@pytest.mark.parametrize(
  ('values', 'shown'),
  [
    ((None, None, None), 'none of them'),
    ((2, 3, None), 'num_epochs = 2, num_steps = 3'),
    ((2, 3, 4), 'num_epochs = 2, num_steps = 3, num_examples = 4'),
  ],
)
def test_exactly_one_duration_is_set(section, values, shown):
  fields = {f'{section}.{d}': v for d, v in zip(config_lib.DURATIONS, values, strict=True)}
  (problem,) = problems_of(load(fields=fields))
  assert problem.startswith(f'{section}.num_epochs/num_steps/num_examples: {shown}; allowed: ')


@pytest.mark.parametrize(
  ('num_train', 'num_val'), [(50_001, 0), (None, 50_000), (49_000, 1001), (1, 60_000)]
)
def test_training_and_validation_examples_fit_the_set(num_train, num_val):
  fields = {'dataset.num_train': num_train, 'dataset.num_val': num_val}
  (problem,) = problems_of(load(fields=fields))
  assert problem.startswith(f'dataset.num_train = {num_train}, dataset.num_val = {num_val}: ')
  assert "the 50000 training examples of dataset.name = 'cifar10'" in problem


def test_test_examples_fit_the_set():
  (problem,) = problems_of(load(fields={'dataset.num_test': 10_001}))
  assert problem.startswith('dataset.num_test = 10001: ')
  assert problem.endswith("the 10000 test examples of dataset.name = 'cifar10'")


@pytest.mark.parametrize(
  ('field', 'value'),
  [
    ('teacher.augmentation', ('flip',)),
    ('predictions.augmentation', ('mixup',)),
  ],
)
def test_texts_have_no_augmentation(field, value):
  (problem,) = problems_of(load('imdb_bilstm.py', {field: value}))
  assert problem.startswith(f'{field} = {value!r}: is for images, and imdb_reviews has texts')


def test_texts_have_texts_beside_them_and_no_gan():
  fields = {'predictions.extra': 'imdb_reviews', 'predictions.num_extra': 50_000}
  validation.check(load('imdb_bilstm.py', fields), 1)
  (problem,) = problems_of(load('imdb_bilstm.py', fields | {'predictions.extra': 'gan'}))
  assert problem.startswith("predictions.extra = 'gan': makes images, and imdb_reviews has texts")


@pytest.mark.parametrize('loss', ['hard_labels', 'logit_mse'])
def test_a_temperature_falls_where_there_is_one(loss):
  fields = {'student.loss': loss, 'student.final_temperature': 1.0}
  (problem,) = problems_of(load(fields=fields))
  assert problem.startswith('student.final_temperature = 1.0: ') and loss in problem
  validation.check(load(fields=fields | {'student.loss': 'brier'}), 1)


@pytest.mark.parametrize(
  'fields',
  [
    {'predictions.augmentation': ('noise',), 'augmentation.noise_probability': 1.0},
    {'predictions.replacement': 'mnist', 'predictions.replaced': 1.0},
  ],
)
def test_labels_count_where_some_are_left(fields):
  (problem,) = problems_of(load(fields=fields | {'student.alpha': 0.5}))
  assert problem == 'student.alpha = 0.5: no example keeps its label; allowed: 0'
  validation.check(load(fields=fields), 1)


def test_cka_needs_test_examples():
  fields = {'dataset.num_test': 3, 'evaluation.num_cka_examples': 10}
  (problem,) = problems_of(load(fields=fields))
  assert problem.startswith('evaluation.num_cka_examples = 10: allowed: 0, with 3 test examples')
  (problem,) = problems_of(load(fields=fields | {'dataset.num_test': 9}))
  assert problem.startswith(
    'evaluation.num_cka_examples = 10: allowed: up to 9, with 9 test examples'
  )
  validation.check(load(fields=fields | {'dataset.num_test': 10}), 1)
  fields = {'dataset.num_test': 4, 'evaluation.num_cka_examples': 4}
  validation.check(load(fields=fields), 1)


@pytest.mark.parametrize('field', ['teacher.augmentation', 'predictions.augmentation'])
def test_colour_augmentations_are_of_grey_and_rgb_images(field):
  names = ('crop', 'contrast', 'saturation', 'hue', 'color_jitter')
  several = {'dataset.name': 'satellite', field: names}
  (problem,) = problems_of(load(fields=several))
  assert problem.startswith(f'{field} = {names!r}: contrast, saturation, hue, color_jitter are of')
  assert '13' in problem
  others = ('flip', 'vertical_flip', 'crop', 'rotation', 'brightness')
  validation.check(load(fields=several | {field: others}), 1)
  validation.check(load(fields={field: names}), 1)
  validation.check(load('digits_resnet.py', {field: names}), 1)


# Parts of the training set, and images beside it.


@pytest.mark.parametrize('section', ['teacher', 'predictions'])
def test_parts_lie_in_the_training_set(section):
  fields = {'dataset.num_train': 1000, f'{section}.examples': (500, 1001)}
  (problem,) = problems_of(load(fields=fields))
  assert problem == (
    f'{section}.examples = (500, 1001): allowed: up to the 1000 training examples that '
    "dataset.num_train and dataset.num_val leave of dataset.name = 'cifar10'"
  )


@pytest.mark.parametrize(
  ('extra', 'num_extra', 'start'),
  [
    ('svhn_cropped', None, 'predictions.num_extra = None: '),
    ('gan', None, 'predictions.num_extra = None: '),
    ('', 5, 'predictions.num_extra = 5: of what?'),
    ('svhn_cropped', 73_258, 'predictions.num_extra = 73258: allowed: at most the 73257 images'),
    ('gan', 50_001, 'predictions.num_extra = 50001: allowed: at most the gan.num_samples = 50000'),
    ('shvn', 5, "predictions.extra = 'shvn': not there"),
  ],
)
def test_extra_images_are_there_and_as_many(extra, num_extra, start):
  fields = {'predictions.extra': extra, 'predictions.num_extra': num_extra}
  (problem,) = problems_of(load(fields=fields))
  assert problem.startswith(start)


def test_a_gan_grows_images_whose_sides_can_be_halved():
  fields = {'dataset.name': 'odd', 'predictions.replacement': 'gan'}
  (problem,) = problems_of(load(fields=fields))
  assert problem.startswith('predictions.extra, predictions.replacement: the GAN cannot grow')
  assert '33 pixels' in problem


@pytest.mark.parametrize(('extra', 'num_extra'), [('svhn_cropped', 73_257), ('gan', 50_000)])
def test_as_many_extra_images_as_there_are(extra, num_extra):
  fields = {'predictions.extra': extra, 'predictions.num_extra': num_extra}
  validation.check(load(fields=fields), 1)


def test_images_in_the_place_of_others_are_there():
  validation.check(load(fields={'predictions.replacement': 'mnist'}), 1)
  (problem,) = problems_of(load(fields={'predictions.replacement': 'nmist'}))
  assert problem == "predictions.replacement = 'nmist': not there"


# Students and their baseline.


def test_a_mixture_has_no_true_label():
  fields = {'predictions.augmentation': ('crop', 'mixup'), 'student.alpha': 0.1}
  (problem,) = problems_of(load(fields=fields))
  assert problem.startswith('student.alpha = 0.1: ') and 'mixup' in problem
  # Where noise is, the others still have theirs.
  validation.check(load(fields=fields | {'predictions.augmentation': ('noise',)}), 1)


def test_initial_weights_of_the_teacher_need_lambda():
  (problem,) = problems_of(load(fields={'student.init_from': 'initial'}))
  assert problem.startswith("student.init_from = 'initial': ") and 'init_lambda' in problem
  fields = {'student.init_from': 'initial', 'student.init_lambda': 1.0}
  validation.check(load(fields=fields), 1)


def test_the_independent_student_has_another_seed():
  (problem,) = problems_of(load(fields={'seed': 1000}))
  assert problem.startswith('evaluation.independent_seed = 1000: the same as seed')
  (problem,) = problems_of(load(fields={'student.seed': 1000}))
  assert problem.startswith('evaluation.independent_seed = 1000: the same')
  validation.check(load(fields={'seed': 1, 'evaluation.independent_seed': 0}), 1)
  validation.check(load(fields={'seed': 1, 'evaluation.independent_seed': None}), 1)


@pytest.mark.parametrize(
  ('section', 'fields', 'epochs'),
  [
    ('teacher', {'teacher.num_epochs': 10}, 10),
    ('student', {'student.num_epochs': 10}, 10),
    # 20,000 of 2,000 are 10 epochs, and of 4,000 are 5.
    (
      'teacher',
      {'teacher.num_epochs': None, 'teacher.num_examples': 20_000, 'teacher.examples': (0, 2000)},
      10,
    ),
    (
      'student',
      {
        'student.num_epochs': None,
        'student.num_examples': 20_000,
        'predictions.examples': (0, 2000),
        'predictions.extra': 'mnist',
        'predictions.num_extra': 2000,
      },
      5,
    ),
  ],
)
def test_a_warm_up_ends_before_the_training(section, fields, epochs):
  fields = fields | {f'{section}.batch_size': 50}
  (problem,) = problems_of(load(fields=fields | {f'{section}.warmup_epochs': float(epochs)}))
  assert problem == (
    f'{section}.warmup_epochs = {epochs}.0: allowed: less than the {epochs} epochs of the whole '
    'training'
  )
  validation.check(load(fields=fields | {f'{section}.warmup_epochs': epochs - 0.1}), 1)


def test_a_warm_up_leaves_a_step_for_what_follows():
  fields = {'dataset.num_train': 100, 'student.num_epochs': 1, 'student.batch_size': 10}
  (problem,) = problems_of(load(fields=fields | {'student.warmup_epochs': 0.96}))  # 10 of 10 steps
  assert problem.startswith('student.warmup_epochs = 0.96: allowed: less than the 1 epochs')
  config = load(fields=fields | {'student.warmup_epochs': 0.94})
  validation.check(config, 1)
  assert optimizers.learning_rate(config.student, num_steps=10, warmup_steps=9)(9) == 0.05
  with pytest.raises(ValueError):
    optimizers.learning_rate(config.student, num_steps=10, warmup_steps=10)


# Devices.


def test_batches_are_split_evenly_over_the_devices():
  problems = problems_of(load(), num_devices=3)
  assert [p.partition(':')[0] for p in problems] == [
    'teacher.batch_size = 256',
    'student.batch_size = 128',
    'evaluation.batch_size = 512',
  ]
  assert all('3 devices' in problem for problem in problems)


@pytest.mark.parametrize(('backend', 'version'), [('cpu', (0, 10, 2)), ('gpu', (0, 12, 0))])
@pytest.mark.parametrize('field', ['model', 'student.model'])
def test_vgg_in_bfloat16_is_for_where_it_is_computed_rightly(field, backend, version, monkeypatch):
  wrong = load('cifar_vgg.py', {f'{field}.dtype': 'bfloat16'})
  monkeypatch.setattr(jax, 'default_backend', lambda: 'cpu')
  monkeypatch.setattr(jax, '__version_info__', (0, 11, 0))
  (problem,) = problems_of(wrong)
  assert problem.startswith(f"{field}.dtype = 'bfloat16': on a CPU, XLA of JAX ")
  validation.check(load(fields={f'{field}.dtype': 'bfloat16'}), 1)  # a ResNet
  monkeypatch.setattr(jax, 'default_backend', lambda: backend)
  monkeypatch.setattr(jax, '__version_info__', version)
  validation.check(wrong, 1)


def test_so_are_those_of_a_gan_that_is_trained():
  problems = problems_of(load(fields={'predictions.replacement': 'gan'}), num_devices=3)
  assert problems[-1].startswith('gan.batch_size = 128: allowed: a multiple of the 3 devices')


@pytest.mark.parametrize('other', [('depth', 56), ('width', 8), ('norm', 'layer')])
def test_a_student_of_another_kind_cannot_start_from_the_teacher(other):
  field = f'student.model.{other[0]}'
  (problem,) = problems_of(load(fields={field: other[1], 'student.init_lambda': 0.5}))
  assert problem.startswith('student.init_lambda = 0.5: ')
  validation.check(load(fields={field: other[1]}), 1)  # from random weights it can


def test_a_student_model_that_is_spelt_out_may_start_from_the_teacher():
  validation.check(load(fields={'student.model.depth': 20, 'student.init_lambda': 0.5}), 1)


# Sweeps.


def test_a_problem_of_several_runs_is_told_once_with_the_first_of_them():
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


def test_a_data_set_that_is_not_there_is_told_once():
  problems = problems_of_sweep([load(fields={'dataset.name': 'stl10'})] * 3)
  assert problems == ["run 0: dataset.name = 'stl10': not there"]


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


def test_every_run_of_a_sweep_is_for_the_devices():
  (problem, *_) = problems_of_sweep([load()], num_devices=3)
  assert problem.startswith('run 0: teacher.batch_size = 256: allowed: a multiple of the 3 devices')


# What would overflow, or leave nothing to judge by.


@pytest.mark.parametrize(
  ('fields', 'start'),
  [
    (
      {'teacher.num_epochs': 10**9},
      'teacher.num_epochs = 1000000000: are 195312500000 steps of 256',
    ),
    (
      {'student.num_epochs': None, 'student.num_steps': 10**9, 'student.batch_size': 100_000},
      'student.num_steps = 1000000000: are 1000000000 steps of 100000',  # two billion epochs
    ),
    (
      {'predictions.replacement': 'gan', 'gan.num_steps': 10**9},
      'gan.num_steps = 1000000000: with gan.num_discriminator_steps = 5 are 5000000000 steps',
    ),
    (
      {'predictions.replacement': 'gan', 'dataset.num_train': 3},
      'dataset.num_train = 3: allowed with',
    ),
    (
      {'predictions.replacement': 'gan', 'dataset.num_test': 1},
      'dataset.num_test = 1: allowed with',
    ),
    (
      {'predictions.extra': 's3://bucket', 'predictions.num_extra': 1},
      "predictions.extra = 's3://bucket'",
    ),
    ({'dataset.data_dir': '\0'}, "dataset.data_dir = '\\x00': allowed: a folder"),
  ],
)
def test_numbers_and_places_that_cannot_be_are_told(fields, start):
  (problem,) = problems_of(load(fields=fields))
  assert problem.startswith(start)
