"""Fingerprints: which artefacts each field of a config can change."""

import os
import pathlib
import subprocess
import sys

import pytest

from kdjax import config as config_lib
from kdjax.config import fingerprints as fingerprints_lib
from kdjax.data import views

ROOT = pathlib.Path(__file__).parents[1]
DIGITS = str(ROOT / 'configs' / 'digits_resnet.py')
CIFAR = str(ROOT / 'configs' / 'cifar_resnet.py')


def load(*overrides, spec=CIFAR):
  config, problems = config_lib.load(spec, overrides)
  assert problems == []
  return config


NONE = ()
STUDENT = ('student',)
PREDICTIONS = ('predictions', 'student')
ALL = ('teacher', 'predictions', 'student')
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
  'model.name': ('lenet', ALL),
  'model.options': ({'width': 8}, ALL),
  'model.depth': (56, ALL),
  'model.width': (8, ALL),
  'model.norm': ('layer', ALL),
  'model.shortcut': ('raw', ALL),
  'model.dtype': ('bfloat16', ALL),
  'teacher.source': ('file', ALL),
  'teacher.path': ('elsewhere.npz', NONE),  # without a source
  'teacher.independent_source': ('file', NONE),
  'teacher.independent_path': ('elsewhere.npz', NONE),
  'teacher.num_members': (6, STUDENT),  # members can be added to an ensemble
  'teacher.members_in_parallel': (True, ALL),
  'teacher.examples': ((0, 100), ALL),
  'teacher.num_epochs': (201, ALL),
  'teacher.num_steps': (10, ALL),
  'teacher.num_examples': (10, ALL),
  'teacher.batch_size': (128, ALL),
  'teacher.optimizer': ('adam', ALL),
  'teacher.warmup_epochs': (1.0, ALL),
  'teacher.learning_rate': (0.2, ALL),
  'teacher.final_learning_rate': (0.01, ALL),
  'teacher.momentum': (0.8, ALL),
  'teacher.beta2': (0.9, ALL),
  'teacher.nesterov': (True, ALL),
  'teacher.weight_decay': (1e-3, ALL),
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
  'student.num_epochs': (301, STUDENT),
  'student.num_steps': (10, STUDENT),
  'student.num_examples': (10, STUDENT),
  'student.batch_size': (256, STUDENT),
  'student.optimizer': ('adam', STUDENT),
  'student.warmup_epochs': (1.0, STUDENT),
  'student.learning_rate': (0.1, STUDENT),
  'student.final_learning_rate': (1e-5, STUDENT),
  'student.momentum': (0.8, STUDENT),
  'student.beta2': (0.9, STUDENT),
  'student.nesterov': (False, STUDENT),
  'student.weight_decay': (1e-3, STUDENT),
  'student.loss': ('brier', STUDENT),
  'student.loss_options': ({'weight': 2.0}, STUDENT),
  'student.temperature': (1.0, STUDENT),
  'student.final_temperature': (1.0, STUDENT),
  'student.alpha': (0.1, STUDENT),
  'student.init_lambda': (0.5, STUDENT),
  'student.init_from': ('initial', STUDENT),
  'student.keep_checkpoints': ((), STUDENT),
  'student.model.name': ('lenet', STUDENT),
  'student.model.options': ({'width': 8}, STUDENT),
  'student.model.depth': (56, STUDENT),
  'student.model.width': (8, STUDENT),
  'student.model.norm': ('layer', STUDENT),
  'student.model.shortcut': ('raw', STUDENT),
  'student.model.dtype': ('bfloat16', STUDENT),
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


@pytest.mark.parametrize('field', FIELDS)
def test_a_field_changes_the_fingerprints_of_the_artefacts_that_it_can_change(field):
  value, artefacts = FIELDS[field]
  assert changed_artefacts(load(), field, value) == artefacts


def changed_artefacts(config, field, value):
  before = fingerprints(config)
  assert config_lib.leaves(config)[field] != value
  config.update_from_flattened_dict({field: value})
  after = fingerprints(config)
  return tuple(name for name in ALL if after[name] != before[name])


# Fields that count only where another field makes use of them.


AUGMENTATION_FIELDS = {
  'crop': {'crop_padding'},
  'flip': set(),
  'rotation': {'rotation_degrees', 'rotation_interpolation'},
  'brightness': {'brightness'},
  'color_jitter': {'brightness', 'contrast', 'saturation', 'hue'},
  'mixup': set(),
  'noise': {'noise_probability'},
}
USES = [('teacher', name) for name in AUGMENTATION_FIELDS if name not in views.UNLABELLED]
USES += [('predictions', name) for name in AUGMENTATION_FIELDS]


@pytest.mark.parametrize(('section', 'name'), USES)
def test_a_field_of_an_augmentation_counts_where_the_augmentation_is_used(section, name):
  artefacts = {'teacher': ALL, 'predictions': PREDICTIONS}[section]
  for field, (value, _) in FIELDS.items():
    if field.startswith('augmentation.'):
      config = load(('teacher.augmentation', '()'), ('predictions.augmentation', '()'))
      config[section].augmentation = (name,)
      expected = (
        artefacts if field.removeprefix('augmentation.') in AUGMENTATION_FIELDS[name] else NONE
      )
      assert changed_artefacts(config, field, value) == expected, field


GAN_FIELDS = [field for field in FIELDS if field.startswith('gan.')]


def test_fields_of_the_gan_count_where_its_images_are_used():
  for field in GAN_FIELDS:
    # The first samples stay what they are when there are more.
    expected = NONE if field == 'gan.num_samples' else PREDICTIONS
    found = changed_artefacts(load(('predictions.extra', 'gan')), field, FIELDS[field][0])
    assert found == expected, field


@pytest.mark.parametrize('field', ['predictions.num_extra', 'predictions.augment_extra'])
def test_fields_of_extra_images_count_where_there_are_any(field):
  config = load(('predictions.extra', 'svhn_cropped'))
  assert changed_artefacts(config, field, FIELDS[field][0]) == PREDICTIONS


@pytest.mark.parametrize('field', ['predictions.top_k', 'predictions.top_k_estimator'])
def test_fields_of_top_k_count_where_it_is_stored(field):
  config = load(('predictions.dtype', 'top_k'))
  assert changed_artefacts(config, field, FIELDS[field][0]) == PREDICTIONS
  config = load(('predictions.dtype', 'top_k'), ('predictions.mode', 'online'))
  assert changed_artefacts(config, field, FIELDS[field][0]) == NONE


@pytest.mark.parametrize(
  ('section', 'examples', 'artefacts'),
  [
    ('teacher', (0, 200), ALL),
    ('predictions', (0, 200), PREDICTIONS),
    ('predictions', (0, 0), NONE),
  ],
)
def test_the_subset_seed_counts_where_a_part_is_taken(section, examples, artefacts):
  config = load()
  config[section].examples = examples
  assert changed_artefacts(config, 'dataset.subset_seed', 1) == artefacts


def test_the_subset_is_that_of_the_seed_unless_another_is_set():
  """So trials and independent students take parts of their own, and `seed` alone names them."""
  config = load(('teacher.examples', '(0, 200)'))
  assert config_lib.subset_seed(config) == 0
  assert config_lib.subset_seed(config_lib.independent(config)) == 1000
  before = fingerprints(config)
  config.dataset.subset_seed = 0
  assert fingerprints(config) == before
  assert config_lib.subset_seed(config_lib.independent(config)) == 0


def test_a_gan_is_shared_by_all_teachers_and_students_of_a_data_set():
  fingerprint = config_lib.gan_fingerprint(load())
  assert {field for field in FIELDS if _changes_gan(field, fingerprint)} == {
    *[field for field in GAN_FIELDS if field != 'gan.num_samples'],
    'dataset.name',
    'dataset.num_train',
    'dataset.num_val',
    'dataset.image_size',
    'dataset.max_tokens',
    'dataset.min_count',
  }


def _changes_gan(field, fingerprint):
  config = load()
  config.update_from_flattened_dict({field: FIELDS[field][0]})
  return config_lib.gan_fingerprint(config) != fingerprint


# The independent student.


def test_the_independent_experiment_shares_nothing_but_is_the_run_of_that_seed():
  other = fingerprints(config_lib.independent(load()))  # independent_seed is 1000 by default
  assert not set(other.values()) & set(fingerprints(load()).values())
  assert other == fingerprints(load(('seed', '1000'), ('evaluation.independent_seed', 'None')))


# In other spellings, versions and processes.


def test_what_a_student_model_spells_out_is_not_what_it_is():
  spelt_out = load(('student.model.depth', '20'), ('student.model.name', 'resnet'))
  assert fingerprints(spelt_out) == fingerprints(load())


def test_a_fingerprint_does_not_depend_on_how_a_value_is_written():
  one, other = load(('student.temperature', '1')), load(('student.temperature', '1.0'))
  assert fingerprints(one) == fingerprints(other)


def test_a_higher_artefact_version_changes_every_fingerprint(monkeypatch):
  before = fingerprints(load())
  monkeypatch.setattr(fingerprints_lib, 'ARTEFACT_VERSION', fingerprints_lib.ARTEFACT_VERSION + 1)
  after = fingerprints(load())
  assert not set(before.values()) & set(after.values())


def test_fingerprints_are_the_same_in_another_process():
  script = (
    'from kdjax import config\n'
    f'this, _ = config.load({DIGITS!r})\n'
    'print(config.teacher_fingerprint(this), config.predictions_fingerprint(this), '
    'config.student_fingerprint(this))'
  )
  printed = subprocess.run(
    [sys.executable, '-c', script],
    env=os.environ | {'PYTHONHASHSEED': '1', 'PYTHONPATH': str(ROOT)},  # ours is another
    capture_output=True,
    text=True,
    check=True,
  ).stdout
  assert printed.split() == list(fingerprints(load(spec=DIGITS)).values())
