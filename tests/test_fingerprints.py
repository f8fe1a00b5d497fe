"""Fingerprints: which artefacts each field of a config can change."""

import copy
import functools

from conftest import ROOT

from kdjax import config as config_lib
from kdjax.config import fingerprints as fingerprints_lib
from kdjax.data import views

DIGITS = str(ROOT / 'configs' / 'digits_resnet.py')
CIFAR = str(ROOT / 'configs' / 'cifar_resnet.py')


@functools.cache
def _loaded(spec, overrides):
  config, problems = config_lib.load(spec, overrides)
  assert problems == []
  return config


def load(*overrides, spec=CIFAR):
  return copy.deepcopy(_loaded(spec, overrides))


NONE = ()
STUDENT = ('student',)
PREDICTIONS = ('predictions', 'student')
ALL = ('teacher', 'predictions', 'student')
# Other values for the fields of a model and of a training.
MODEL = {
  'name': 'lenet',
  'options': {'width': 8},
  'depth': 56,
  'width': 8,
  'norm': 'layer',
  'shortcut': 'raw',
  'dtype': 'bfloat16',
}
TRAINING = {
  'num_epochs': 201,
  'num_steps': 10,
  'num_examples': 10,
  'batch_size': 64,
  'optimizer': 'adam',
  'warmup_epochs': 1.0,
  'learning_rate': 0.2,
  'final_learning_rate': 0.01,
  'momentum': 0.8,
  'beta2': 0.9,
  'weight_decay': 1e-3,
}
# Each field: another value for it, and the artefacts that it can change in the paper's recipe.
FIELDS = {
  'seed': (1, ALL),
  'dataset.name': ('cifar100', ALL),
  'dataset.data_dir': ('elsewhere', NONE),
  'dataset.path': ('elsewhere.npz', NONE),
  'dataset.num_train': (1000, ALL),
  'dataset.subset_seed': (1, NONE),
  'dataset.num_val': (1000, ALL),
  'dataset.num_test': (1000, PREDICTIONS),
  'dataset.image_size': (16, ALL),
  'dataset.streaming': (True, NONE),
  'dataset.num_workers': (2, NONE),
  'dataset.max_tokens': (50, ALL),
  'dataset.min_count': (5, ALL),
  **{f'model.{name}': (value, ALL) for name, value in MODEL.items()},
  'teacher.source': ('file', ALL),
  'teacher.path': ('elsewhere.npz', NONE),  # without a source
  'teacher.independent_source': ('file', NONE),
  'teacher.independent_path': ('elsewhere.npz', NONE),
  'teacher.num_members': (6, STUDENT),  # members can be added to an ensemble
  'teacher.members_in_parallel': (True, ALL),
  'teacher.examples': ((0, 100), ALL),
  **{f'teacher.{name}': (value, ALL) for name, value in TRAINING.items()},
  'teacher.nesterov': (True, ALL),
  'teacher.augmentation': (('flip', 'crop'), ALL),
  'teacher.keep_checkpoints': ((0.5,), ALL),
  'predictions.mode': ('online', PREDICTIONS),
  'predictions.num_views': (200, STUDENT),  # views can be added to a store
  'predictions.dtype': ('float32', PREDICTIONS),
  'predictions.top_k': (5, NONE),
  'predictions.top_k_estimator': ('sampled', NONE),
  'predictions.examples': ((0, 100), PREDICTIONS),
  'predictions.augmentation': ((), PREDICTIONS),
  'predictions.extra': ('svhn_cropped', PREDICTIONS),
  'predictions.num_extra': (100, NONE),
  'predictions.augment_extra': (False, NONE),
  'student.seed': (1, STUDENT),
  **{f'student.{name}': (value, STUDENT) for name, value in TRAINING.items()},
  'student.nesterov': (False, STUDENT),
  'student.loss': ('brier', STUDENT),
  'student.loss_options': ({'weight': 2.0}, STUDENT),
  'student.temperature': (1.0, STUDENT),
  'student.final_temperature': (1.0, STUDENT),
  'student.alpha': (0.1, STUDENT),
  'student.init_lambda': (0.5, STUDENT),
  'student.init_from': ('initial', STUDENT),
  'student.keep_checkpoints': ((), STUDENT),
  **{f'student.model.{name}': (value, STUDENT) for name, value in MODEL.items()},
  'augmentation.crop_padding': (2, ALL),
  'augmentation.rotation_degrees': (10.0, NONE),
  'augmentation.rotation_interpolation': ('nearest', NONE),
  'augmentation.brightness': (0.1, NONE),
  'augmentation.contrast': (0.1, NONE),
  'augmentation.saturation': (0.1, NONE),
  'augmentation.hue': (0.1, NONE),
  'augmentation.noise_probability': (0.1, NONE),
  'gan.seed': (1, NONE),
  'gan.num_steps': (10, NONE),
  'gan.batch_size': (64, NONE),
  'gan.num_discriminator_steps': (1, NONE),
  'gan.latent_size': (64, NONE),
  'gan.generator_width': (32, NONE),
  'gan.discriminator_width': (32, NONE),
  'gan.learning_rate': (1e-4, NONE),
  'gan.final_learning_rate': (0.0, NONE),
  'gan.flip': (False, NONE),
  'gan.num_samples': (10, NONE),
  'training.num_logs': (50, NONE),
  'training.num_evals': (50, NONE),
  'training.num_checkpoints': (50, NONE),
  'training.steps_per_dispatch': (2, NONE),
  'evaluation.batch_size': (256, NONE),
  # result.json repeats these.
  'evaluation.num_views': (4, NONE),
  'evaluation.independent_seed': (2, NONE),
  'evaluation.num_bootstrap': (100, NONE),
  'evaluation.num_cka_examples': (100, NONE),
}


def fingerprints(config):
  return {name: getattr(config_lib, f'{name}_fingerprint')(config) for name in ALL}


def test_every_field_has_a_decision():
  assert set(FIELDS) == set(config_lib.leaves(load())), (
    'Say in FIELDS which artefacts a new field can change, and see that kdjax.config agrees.'
  )


def test_a_field_changes_the_fingerprints_of_the_artefacts_that_it_can_change():
  for field, (value, artefacts) in FIELDS.items():
    assert changed_artefacts(load(), field, value) == artefacts, field


def changed_artefacts(config, field, value):
  before = fingerprints(config)
  assert config_lib.leaves(config)[field] != value
  config.update_from_flattened_dict({field: value})
  after = fingerprints(config)
  return tuple(name for name in ALL if after[name] != before[name])


# Fields that count only if another field uses them.


AUGMENTATION_FIELDS = {
  'crop': {'crop_padding'},
  'flip': set(),
  'rotation': {'rotation_degrees', 'rotation_interpolation'},
  'brightness': {'brightness'},
  'color_jitter': {'brightness', 'contrast', 'saturation', 'hue'},
  'mixup': set(),
  'noise': {'noise_probability'},
}


def test_a_field_of_an_augmentation_counts_where_the_augmentation_is_used():
  plain = load(('teacher.augmentation', '()'), ('predictions.augmentation', '()'))
  fields = [field for field in FIELDS if field.startswith('augmentation.')]
  for section, artefacts in (('teacher', ALL), ('predictions', PREDICTIONS)):
    for name, used in AUGMENTATION_FIELDS.items():
      if section == 'teacher' and name in views.UNLABELLED:
        continue
      plain[section].augmentation = (name,)
      for field in fields:
        expected = artefacts if field.removeprefix('augmentation.') in used else NONE
        config = copy.deepcopy(plain)
        assert changed_artefacts(config, field, FIELDS[field][0]) == expected, (
          section,
          name,
          field,
        )
    plain[section].augmentation = ()


GAN_FIELDS = [field for field in FIELDS if field.startswith('gan.')]


def test_fields_of_the_gan_count_where_its_images_are_used():
  for field in GAN_FIELDS:
    # More samples do not change the first ones.
    expected = NONE if field == 'gan.num_samples' else PREDICTIONS
    found = changed_artefacts(load(('predictions.extra', 'gan')), field, FIELDS[field][0])
    assert found == expected, field


def test_fields_that_count_where_another_field_has_a_value():
  extra, top_k = ('predictions.extra', 'svhn_cropped'), ('predictions.dtype', 'top_k')
  online = 'predictions.mode', 'online'
  for field, overrides, artefacts in [
    ('predictions.num_extra', [extra], PREDICTIONS),
    ('predictions.augment_extra', [extra], PREDICTIONS),
    ('predictions.top_k', [top_k], PREDICTIONS),
    ('predictions.top_k', [top_k, online], NONE),
    ('predictions.top_k_estimator', [top_k], PREDICTIONS),
    ('predictions.top_k_estimator', [top_k, online], NONE),
    # Where a part is taken.
    ('dataset.subset_seed', [('teacher.examples', '(0, 200)')], ALL),
    ('dataset.subset_seed', [('predictions.examples', '(0, 200)')], PREDICTIONS),
    ('dataset.subset_seed', [('predictions.examples', '(0, 0)')], NONE),
  ]:
    found = changed_artefacts(load(*overrides), field, FIELDS[field][0])
    assert found == artefacts, (field, overrides)


def test_the_subset_is_that_of_the_seed_unless_another_is_set():
  """So `seed` alone gives trials and independent students their own parts."""
  config = load(('teacher.examples', '(0, 200)'))
  assert config_lib.subset_seed(config) == 0
  assert config_lib.subset_seed(config_lib.independent(config)) == 1000
  before = fingerprints(config)
  config.dataset.subset_seed = 0
  assert fingerprints(config) == before
  assert config_lib.subset_seed(config_lib.independent(config)) == 0


def test_a_gan_is_shared_by_all_teachers_and_students_of_a_data_set():
  def changes(field):
    config = load()
    config.update_from_flattened_dict({field: FIELDS[field][0]})
    return config_lib.gan_fingerprint(config) != config_lib.gan_fingerprint(load())

  assert {field for field in FIELDS if changes(field)} == {
    *[field for field in GAN_FIELDS if field != 'gan.num_samples'],
    'dataset.name',
    'dataset.num_train',
    'dataset.num_val',
    'dataset.image_size',
    'dataset.max_tokens',
    'dataset.min_count',
  }


# The independent student.


def test_the_independent_experiment_shares_nothing_but_is_the_run_of_that_seed():
  other = fingerprints(config_lib.independent(load()))  # independent_seed is 1000 by default
  assert not set(other.values()) & set(fingerprints(load()).values())
  assert other == fingerprints(load(('seed', '1000'), ('evaluation.independent_seed', 'None')))


# In other spellings, versions and processes.


def test_a_fingerprint_does_not_depend_on_how_a_value_is_written():
  spelt_out = load(('student.model.depth', '20'), ('student.model.name', 'resnet'))
  assert fingerprints(spelt_out) == fingerprints(load())
  one, other = load(('student.temperature', '1')), load(('student.temperature', '1.0'))
  assert fingerprints(one) == fingerprints(other)


def test_a_higher_artefact_version_changes_every_fingerprint(monkeypatch):
  before = fingerprints(load())
  monkeypatch.setattr(fingerprints_lib, 'ARTEFACT_VERSION', fingerprints_lib.ARTEFACT_VERSION + 1)
  after = fingerprints(load())
  assert not set(before.values()) & set(after.values())
