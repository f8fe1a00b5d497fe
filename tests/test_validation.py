"""Validation of single fields: each rule with a value that breaks it, and the extreme values that it allows."""

import checked_config
import pytest
from checked_config import load, problems_of

from kdjax import config as config_lib
from kdjax.config import rules, validation
from kdjax.errors import ConfigError
from kdjax.runtime import files, plugins

# A value that breaks each rule of rules.RULES.
BROKEN = {
  'seed': -1,
  'dataset.num_train': 0,
  'dataset.subset_seed': -1,
  'dataset.num_val': -1,
  'dataset.num_test': 0,
  'dataset.image_size': 0,
  'dataset.max_tokens': 0,
  'dataset.num_workers': -1,
  'dataset.min_count': 0,
  'model.name': 'transformer',
  'model.options': {'a': b'x'},
  'model.depth': 21,
  'model.width': 0,
  'model.norm': 'group',
  'model.shortcut': 'identity',
  'model.dtype': 'float16',
  'teacher.source': 'files',
  'teacher.independent_source': 'trained',
  'teacher.num_members': 0,
  'teacher.examples': (5,),
  'teacher.num_epochs': -1,
  'teacher.num_steps': -5,
  'teacher.num_examples': -1,
  'teacher.batch_size': 0,
  'teacher.optimizer': 'sgdm',
  'teacher.warmup_epochs': -1.0,
  'teacher.learning_rate': 0.0,
  'teacher.final_learning_rate': -0.1,
  'teacher.momentum': 1.0,
  'teacher.beta2': 1.0,
  'teacher.weight_decay': -1e-4,
  'teacher.augmentation': ('crop', 'rotate'),
  'teacher.keep_checkpoints': (0.5, 1.0),
  'predictions.mode': 'saved',
  'predictions.num_views': 0,
  'predictions.dtype': 'float64',
  'predictions.top_k': 0,
  'predictions.top_k_estimator': 'top_p',
  'predictions.examples': (10, 10),
  'predictions.augmentation': ('shear',),
  'predictions.num_extra': 0,
  'student.seed': 2**31,
  'student.num_epochs': 0,
  'student.num_steps': 0,
  'student.num_examples': 0,
  'student.batch_size': -128,
  'student.optimizer': 'lion',
  'student.warmup_epochs': float('nan'),
  'student.learning_rate': float('inf'),
  'student.final_learning_rate': float('nan'),
  'student.momentum': -0.1,
  'student.beta2': -0.1,
  'student.weight_decay': float('inf'),
  'student.keep_checkpoints': ('half',),
  'student.loss': 'mse',
  'student.loss_options': {'a': 1j},
  'student.temperature': 0.0,
  'student.final_temperature': 1e4,
  'student.alpha': 1.1,
  'student.init_lambda': 1.5,
  'student.init_from': 'middle',
  'student.model.name': 'ResNet',
  'student.model.options': {'a': {1, 2}},
  'student.model.depth': 2,
  'student.model.width': 0,
  'student.model.norm': 'none',
  'student.model.shortcut': 'none',
  'student.model.dtype': 'float64',
  'augmentation.crop_padding': -1,
  'augmentation.rotation_degrees': 181.0,
  'augmentation.rotation_interpolation': 'bicubic',
  'augmentation.brightness': 1.1,
  'augmentation.contrast': -0.1,
  'augmentation.saturation': 2.0,
  'augmentation.hue': 0.6,
  'augmentation.noise_probability': 1.1,
  'gan.seed': -1,
  'gan.num_steps': 0,
  'gan.batch_size': 0,
  'gan.num_discriminator_steps': 0,
  'gan.latent_size': 0,
  'gan.generator_width': 0,
  'gan.discriminator_width': 0,
  'gan.learning_rate': 0.0,
  'gan.final_learning_rate': -1e-6,
  'gan.num_samples': 0,
  'training.num_logs': 0,
  'training.num_evals': 0,
  'training.num_checkpoints': 0,
  'training.steps_per_dispatch': 0,
  'evaluation.batch_size': 0,
  'evaluation.num_views': 0,
  'evaluation.independent_seed': -1,
  'evaluation.num_bootstrap': 0,
  'evaluation.num_cka_examples': 3,
}
ANY_OF_THEIR_TYPE = {
  'dataset.streaming',
  'dataset.name',
  'dataset.path',
  'dataset.data_dir',  # gs:// needs a package
  'teacher.path',
  'teacher.independent_path',
  'teacher.members_in_parallel',
  'teacher.nesterov',
  'student.nesterov',
  'predictions.extra',  # another check looks for it
  'predictions.augment_extra',
  'gan.flip',
}
# Extreme values that rules allow.
ALLOWED = {
  'seed': (0, 2**31 - 1),
  'dataset.num_train': (50_000,),
  'dataset.num_test': (10_000,),
  'dataset.num_val': (49_999,),
  'model.depth': (110,),
  'model.name': ('lenet', 'vgg'),
  'model.shortcut': ('raw',),
  'teacher.num_epochs': (0,),
  'augmentation.rotation_interpolation': ('nearest',),
  'teacher.momentum': (0.0,),
  'teacher.augmentation': ((), ('flip', 'crop')),
  'teacher.examples': ((0, 50_000),),
  'predictions.dtype': ('bfloat16',),
  'predictions.examples': ((49_999, 50_000),),
  'predictions.augmentation': (('noise', 'crop', 'mixup', 'color_jitter'),),
  'student.alpha': (0.0, 1.0),
  'student.init_lambda': (1.0,),
  'student.final_learning_rate': (0.0,),
  'student.keep_checkpoints': ((), (0.0, 0.999)),
  'student.optimizer': ('muon',),
  'student.loss': ('logit_mse',),
  'student.final_temperature': (0.01,),
  'student.warmup_epochs': (299.9,),
  'augmentation.crop_padding': (0, 31),
  'augmentation.hue': (0.5,),
  'augmentation.rotation_degrees': (180.0,),
  'augmentation.noise_probability': (0.0,),
  'evaluation.num_cka_examples': (0, 4),
  'evaluation.independent_seed': (None, 2),
}


@pytest.fixture(autouse=True)
def prepare_arguments(monkeypatch):
  """The `prepare` arguments of all calls of the replaced `data.describe`."""
  return checked_config.pretend(monkeypatch)


# One rule at a time.


def test_every_field_has_a_rule_and_every_rule_is_broken_once():
  assert set(rules.RULES) == set(config_lib.leaves(load()))
  assert set(BROKEN) | ANY_OF_THEIR_TYPE == set(rules.RULES), (
    'Give every rule a value that breaks it, in BROKEN.'
  )


def test_all_broken_rules_are_reported_at_once():
  config = load(fields=BROKEN | {'predictions.extra': 'gan'})
  problems = problems_of(config, problems=['student.tau = 1: no such field'])
  assert problems[0] == 'student.tau = 1: no such field'
  expected = {f'{f} = {value!r}: allowed: {rules.RULES[f][1]}' for f, value in BROKEN.items()}
  assert expected <= set(problems)
  with pytest.raises(ConfigError, match=f'has {len(problems) - 1} problems;') as error:
    validation.check(config, 1)
  assert all(f'\n  {problem}' in str(error.value) for problem in expected)


@pytest.mark.parametrize('field', ALLOWED)
def test_extreme_values_are_valid(field):
  for value in ALLOWED[field]:
    validation.check(load(fields={field: value}), num_devices=1)


def test_a_wrong_name_is_reported_with_the_allowed_names():
  (problem,) = problems_of(load(fields={'student.optimizer': 'lion'}))
  assert (
    problem
    == f"student.optimizer = 'lion': allowed: one of sgd, adam, adamw, muon, or {plugins.FORM}"
  )
  (problem,) = problems_of(load(fields={'teacher.augmentation': ('mixup',)}))  # takes the labels
  assert problem == (
    "teacher.augmentation = ('mixup',): allowed: any of flip, vertical_flip, crop, rotation, "
    f'brightness, contrast, saturation, hue, color_jitter, or {plugins.FORM}, each once, or ()'
  )
  (problem,) = problems_of(load(fields={'teacher.augmentation': ('crop', 'crop')}))
  assert problem.startswith("teacher.augmentation = ('crop', 'crop'): ")


@pytest.mark.parametrize('value', [(1, 2, 3), (-1, 5), (3, 2), (0, 1.5), (False, True), ('a', 'b')])
def test_a_part_is_a_start_and_a_later_stop(value):
  (problem,) = problems_of(load(fields={'predictions.examples': value}))
  assert problem.startswith(f'predictions.examples = {value!r}: allowed: (start, stop)')


def test_only_optional_fields_may_be_none():
  optional = {f for f in config_lib.leaves(load()) if config_lib.is_optional(load(), f)}
  fields = dict.fromkeys(optional) | {'teacher.num_steps': 10, 'student.num_examples': 10_000}
  validation.check(load(fields=fields), num_devices=1)
  needed = [field for field in config_lib.leaves(load()) if field not in optional]
  problems = problems_of(load(fields=dict.fromkeys(needed)))
  for field in needed:
    assert any(problem.startswith(f'{field} = None: not optional') for problem in problems), field


def test_a_config_that_lacks_or_adds_fields_is_reported():
  config = load()
  with config.unlocked():
    del config.student['momentum']
    config.student.temprature = 1.0
    config.student.tau = None
  problems = problems_of(config)
  assert len(problems) == 3
  assert problems[0].startswith('student.momentum: missing')
  assert problems[1].startswith('student.tau = None: no such field')
  assert problems[2].startswith('student.temprature = 1.0: no such field')


def test_a_data_set_is_prepared_only_if_all_else_is_right(prepare_arguments):
  validation.check(load(), 1)
  problems_of(load(fields={'seed': -1}))
  assert problems_of(load(), problems=['x = 1: no such field']) == ['x = 1: no such field']
  assert prepare_arguments == [True, False, False]
  problems = problems_of(load(fields={'dataset.name': 'stl10', 'seed': -1}))
  assert [p.partition(':')[0] for p in problems] == ['seed = -1', "dataset.name = 'stl10'"]


def test_data_on_gs_needs_a_package(monkeypatch):
  monkeypatch.setattr(files.importlib.util, 'find_spec', lambda name: None)
  (problem,) = problems_of(load(fields={'dataset.data_dir': 'gs://bucket/sets'}))
  assert problem.startswith("dataset.data_dir = 'gs://bucket/sets': allowed: a folder; gs:// needs")
