"""Every experiment that is shipped: its config, its sweep, its commands and the paper's numbers."""

import importlib.util
import inspect
import pathlib
import re
import shlex

import checked_config
import pytest
from checked_config import ROOT

from kdjax import config as config_lib
from kdjax import stages, validation
from kdjax import sweep as sweep_lib
from kdjax.errors import ConfigError

CONFIGS = ROOT / 'configs'
NO_EXPERIMENTS = {'__init__', 'recipes'}
FILES = sorted(
  str(path.relative_to(ROOT))
  for path in [*CONFIGS.glob('*.py'), *CONFIGS.glob('paper/*.py')]
  if path.stem not in NO_EXPERIMENTS
)
NO_ARGUMENT = {'configs/base.py', 'configs/digits_resnet.py'}
SWEEPS = [file for file in FILES if '/paper/' in file]


def argument(file):
  return 'small' if file in SWEEPS else 'smoke'


SMALL = [f'{file}:{argument(file)}' for file in FILES if file not in NO_ARGUMENT]
SPECS = FILES + SMALL
SWEEP_SPECS = [spec for spec in SPECS if '/paper/' in spec]


@pytest.fixture(autouse=True)
def data_sets(monkeypatch):
  monkeypatch.chdir(ROOT)
  checked_config.pretend(monkeypatch)


def runs_of(spec):
  sweep = config_lib.load_sweep(spec)
  configs, problems = config_lib.sweep_configs(spec, sweep, [])
  assert problems == []
  return sweep, configs


# They are valid.


@pytest.mark.parametrize('spec', SPECS)
@pytest.mark.parametrize('num_devices', [1, 2])
def test_configs_are_valid(spec, num_devices):
  config, problems = config_lib.load(spec)
  validation.check(config, num_devices, problems)


@pytest.mark.parametrize('file', [f for f in FILES if f not in NO_ARGUMENT])
def test_an_argument_that_is_not_known_is_told_with_those_that_are(file):
  with pytest.raises(ConfigError, match=f"unknown argument 'tiny'; allowed: '{argument(file)}'"):
    config_lib.load(f'{file}:tiny')


@pytest.mark.parametrize('spec', SWEEP_SPECS)
def test_every_run_of_a_sweep_is_valid_and_is_another_student(spec):
  sweep, configs = runs_of(spec)  # raises what is wrong with the sweep itself
  validation.check_sweep(configs, 2, [])
  assert len({config_lib.student_fingerprint(config) for config in configs}) == len(configs)
  assert len(configs) == len(sweep.points) * sweep.trials


@pytest.mark.parametrize('file', SWEEPS)
def test_a_small_sweep_has_numbers_of_the_paper_only_of_its_own_task(file):
  small, _ = runs_of(f'{file}:small')
  full, _ = runs_of(file)
  assert len(small.points) * small.trials < len(full.points) * full.trials
  if pathlib.Path(file).stem not in ('fig2_mnist', 'table2_imdb'):  # the others have other data
    assert small.paper == {}
    return
  assert set(small.paper) == set(full.paper)
  keys = {point.key for point in small.points}
  for measure, values in full.paper.items():
    assert small.paper[measure] == {key: values[key] for key in values if key in keys}


# Their commands.


def docstring(file):
  module_spec = importlib.util.spec_from_file_location('experiment', ROOT / file)
  module = importlib.util.module_from_spec(module_spec)
  module_spec.loader.exec_module(module)
  return inspect.getdoc(module)


def commands(file):
  text = docstring(file).replace('\\\n', ' ')
  lines = [line.strip().partition('#')[0] for line in text.splitlines()]
  return [shlex.split(line) for line in lines if line.startswith('python ')]


@pytest.mark.parametrize('file', [f for f in FILES if f != 'configs/base.py'])
def test_the_docstring_has_the_commands_of_the_experiment(file):
  specs = []
  for _, program, *flags in commands(file):
    assert program == 'launch.py'
    values = dict(flag.removeprefix('--').partition('=')[::2] for flag in flags)
    specs.append(values.pop('config', 'configs/digits_resnet.py'))
    assert ('sweep' in values) == (file in SWEEPS)
    assert values.pop('sweep', '') == ''
    assert all(name.startswith('config.') for name in values)
    overrides = [(name.removeprefix('config.'), value) for name, value in values.items()]
    config, problems = config_lib.load(specs[-1], overrides)
    validation.check(config, 1, problems)
  assert set(specs) >= {spec for spec in SPECS if spec.partition(':')[0] == file}


def test_launch_explains_every_flag_and_stage():
  launch = (ROOT / 'launch.py').read_text()
  defined = re.findall(r"flags\.DEFINE_\w+\('(\w+)'", launch)
  explained = re.findall(r'^  --(\w+)', launch, re.MULTILINE)
  assert set(explained) == set(defined) >= {'config', 'sweep'}
  assert f'a subset of {",".join(stages.STAGES)}\n' in launch


# What trials and points share.

# Full sweeps: distinct teachers (apart from how many of them), GANs, predictions and students.
SHARED = {
  'fig1_gan': (3, 1, 15, 30),  # m in 1, 3; 0 and 4 numbers of images
  'fig2_mnist': (3, 0, 18, 18),
  'fig3_data': (3, 1, 27, 33),  # baseline and mixup at two temperatures
  'fig4_recycling': (3, 0, 9, 27),  # m in 1, 3, 5; D0, D1 and both
  'fig5_train_agreement': (3, 1, 18, 18),
  'fig6a_optimizers': (3, 0, 3, 27),
  'fig6b_lambda': (3, 0, 3, 21),
  'fig9_temperature': (3, 0, 3, 36),
  'fig10_ensemble_size': (3, 0, 3, 36),
  'fig12_capacity': (6, 0, 6, 12),  # two depths of the teacher
  'fig13_vgg': (3, 0, 18, 18),
  'fig14_alpha': (3, 0, 3, 45),
  'table1_initialisation': (10, 0, 10, 20),
  'table2_imagenet': (2, 0, 2, 6),
  'table2_imdb': (3, 0, 3, 9),
}


def test_every_sweep_has_a_decision_what_it_shares():
  assert set(SHARED) == {pathlib.Path(file).stem for file in SWEEPS}


@pytest.mark.parametrize('name', SHARED)
def test_runs_share_teachers_gans_and_predictions(name):
  _, configs = runs_of(f'configs/paper/{name}.py')
  assert SHARED[name] == (
    len({config_lib.teacher_fingerprint(config) for config in configs}),
    len({config_lib.gan_fingerprint(c) for c in configs if config_lib.needs_gan(c)}),
    len({config_lib.predictions_fingerprint(config) for config in configs}),
    len(configs),
  )


@pytest.mark.parametrize('spec', SWEEP_SPECS)
def test_the_independent_student_of_a_run_is_another_run(spec):
  _, configs = runs_of(spec)
  students = {config_lib.student_fingerprint(config) for config in configs}
  for config in configs:
    assert config.evaluation.independent_seed not in (None, config.seed)
    assert config_lib.student_fingerprint(config_lib.independent(config)) in students


# The paper's recipes and numbers, copied from it once more.

CIFAR = {
  'dataset.name': 'cifar100',
  'teacher.num_epochs': 200,
  'teacher.batch_size': 256,
  'teacher.learning_rate': 0.1,
  'teacher.final_learning_rate': 0.0,
  'teacher.weight_decay': 1e-4,
  'student.num_epochs': 300,
  'student.batch_size': 128,
  'student.learning_rate': 5e-2,
  'student.final_learning_rate': 1e-6,
  'student.weight_decay': 1e-4,
  'student.alpha': 0.0,
}
RESNET_56 = CIFAR | {'model.name': 'resnet', 'model.depth': 56, 'model.norm': 'batch'}
RESNET_20 = CIFAR | {'model.name': 'resnet', 'model.depth': 20}
GAN = {
  'gan.num_steps': 100_000,
  'gan.batch_size': 128,
  'gan.num_discriminator_steps': 5,
  'gan.latent_size': 128,
  'gan.generator_width': 256,
  'gan.discriminator_width': 128,
  'gan.learning_rate': 2e-4,
  'gan.final_learning_rate': 1e-6,
}
AUGMENTATION = {
  'augmentation.crop_padding': 4,
  'augmentation.rotation_degrees': 20.0,
  'augmentation.brightness': 0.2,
  'augmentation.contrast': 0.2,
  'augmentation.saturation': 0.2,
  'augmentation.hue': 0.2,
  'augmentation.noise_probability': 0.2,
}
RECIPES = {
  'fig1_gan': RESNET_56 | GAN | {'student.temperature': 1.0},
  'fig2_mnist': {
    'dataset.name': 'mnist',
    'model.name': 'lenet',
    'teacher.num_members': 1,
    'teacher.examples': (0, 200),
    'teacher.num_epochs': 100,
  },
  'fig3_data': RESNET_56 | GAN | AUGMENTATION | {'teacher.num_members': 5},
  'fig4_recycling': RESNET_56 | {'teacher.examples': (0, 25_000), 'student.temperature': 4.0},
  'fig5_train_agreement': RESNET_56 | GAN | AUGMENTATION | {'teacher.num_members': 1},
  'fig6a_optimizers': RESNET_20
  | {'model.norm': 'layer', 'teacher.num_members': 1, 'student.weight_decay': 0.0},
  'fig6b_lambda': RESNET_20 | {'model.norm': 'layer', 'teacher.num_members': 1},
  'fig9_temperature': RESNET_20
  | {'teacher.examples': (0, 25_000), 'predictions.examples': (0, 25_000)},
  'fig10_ensemble_size': RESNET_56 | {'student.temperature': 1.0},
  'fig12_capacity': CIFAR,  # its points say the depths
  'fig13_vgg': CIFAR
  | AUGMENTATION
  | {'model.name': 'vgg', 'teacher.num_members': 5, 'teacher.learning_rate': 0.05},  # not 0.1
  'fig14_alpha': RESNET_56 | {'student.temperature': 1.0},
  'table1_initialisation': RESNET_20 | {'model.norm': 'batch', 'teacher.num_members': 1},
  'table2_imagenet': {
    'model.name': 'resnet50',
    'dataset.image_size': 224,
    'teacher.num_epochs': 90,
    'student.num_epochs': 90,
    'teacher.batch_size': 1024,
    'student.warmup_epochs': 5.0,
    'student.learning_rate': 0.1,
    'teacher.weight_decay': 1e-4,
    'student.weight_decay': 0.0,
  },
  'table2_imdb': {
    'model.name': 'bilstm',
    'model.width': 70,
    'dataset.max_tokens': 100,
    'dataset.min_count': 10,
    'teacher.batch_size': 100,
    'student.num_epochs': 100,
    'teacher.learning_rate': 1e-2,
    'student.weight_decay': 1e-3,
  },
}


@pytest.mark.parametrize('name', RECIPES)
def test_recipes_golden(name):
  config, _ = config_lib.load(f'configs/paper/{name}.py')
  fields = config_lib.leaves(config)
  assert {field: fields[field] for field in RECIPES[name]} == RECIPES[name]


ACCURACY = 'splits.test.student.accuracy'
TEACHER = 'splits.test.teacher.accuracy'
NLL = 'splits.test.student.nll'
AGREEMENT = 'splits.test.fidelity.top1_agreement'
KL = 'splits.test.fidelity.predictive_kl'
TRAIN = 'splits.train.fidelity.top1_agreement'
# (sweep, series, x): fields of the point, and what the paper has there.
POINTS = {
  ('fig1_gan', 'm = 1', 37_500): (
    {'teacher.num_members': 1, 'predictions.extra': 'gan', 'predictions.num_extra': 37_500},
    {AGREEMENT: 74.0, ACCURACY: 71.2},
  ),
  ('fig1_gan', 'm = 3', 0): ({'teacher.num_members': 3, 'predictions.extra': ''}, {AGREEMENT: 77}),
  ('fig2_mnist', '', '60k'): ({'predictions.examples': (0, 60_000)}, {AGREEMENT: 99}),
  ('fig2_mnist', '', '60k + 25 % of EMNIST'): (
    {'predictions.extra': 'emnist/byclass', 'predictions.num_extra': 174_483},
    {},
  ),
  ('fig3_data', '', 'baseline, τ = 1'): (
    {'student.temperature': 1.0, 'predictions.augmentation': ('crop', 'flip')},
    {ACCURACY: 72.5, AGREEMENT: 79},
  ),
  ('fig3_data', '', 'mixup'): (
    {'student.temperature': 4.0, 'predictions.augmentation': ('crop', 'flip', 'mixup')},
    {ACCURACY: 74.5, AGREEMENT: 85.5},
  ),
  ('fig3_data', '', 'GAN'): (
    {'predictions.replacement': 'gan', 'predictions.replaced': 0.2, 'student.temperature': 4.0},
    {ACCURACY: 74.5, AGREEMENT: 83.5},
  ),
  ('fig3_data', '', 'out of domain'): (
    {'predictions.replacement': 'svhn_cropped', 'student.temperature': 1.0},
    {ACCURACY: 72.5, AGREEMENT: 79.5},
  ),
  ('fig4_recycling', 'D1', 3): ({'predictions.examples': (25_000, 50_000)}, {}),
  ('fig4_recycling', 'D0 and D1', 5): ({'predictions.examples': ()}, {}),
  ('fig5_train_agreement', '', '50k GAN images'): ({'predictions.num_extra': 50_000}, {TRAIN: 95}),
  ('fig6a_optimizers', 'SGD', 5000): (
    {'student.num_epochs': 5000, 'student.optimizer': 'sgd'},
    {TRAIN: 83.3},
  ),
  ('fig6a_optimizers', 'Adam', 300): ({'student.optimizer': 'adam'}, {}),
  ('fig6b_lambda', '', 0.375): ({'student.init_lambda': 0.375}, {TRAIN: 100}),
  ('fig9_temperature', 'm = 3', 4.0): (
    {'teacher.num_members': 3, 'student.temperature': 4.0},
    {ACCURACY: 62.78, AGREEMENT: 72.77},
  ),
  ('fig9_temperature', 'm = 5', 16.0): (
    {'teacher.num_members': 5, 'student.temperature': 16.0},
    {ACCURACY: 61.45, AGREEMENT: 74.92},
  ),
  ('fig10_ensemble_size', '', 12): (
    {'teacher.num_members': 12},
    {AGREEMENT: 86, ACCURACY: 75.9, TEACHER: 77.6},
  ),
  ('fig12_capacity', 'larger student', 'ResNet-56'): (
    {'model.depth': 56, 'student.model.depth': 110},
    {},
  ),
  ('fig13_vgg', '', 'combined'): (
    {
      'predictions.augmentation': ('crop', 'flip', 'rotation', 'vertical_flip', 'color_jitter'),
    },
    {ACCURACY: 72.3, NLL: 1.0, AGREEMENT: 84},
  ),
  ('fig14_alpha', 'm = 5', 0.7): (
    {'teacher.num_members': 5, 'student.alpha': 0.7},
    {AGREEMENT: 77.5},
  ),
  ('table1_initialisation', '', 'random'): (
    {'student.init_lambda': 0.0},
    {
      AGREEMENT: (77.17, 0.35),
      KL: 0.836,
      'cka.stage1.member_0': 0.939,
      'cka.stage3.member_0': 0.885,
    },
  ),
  ('table1_initialisation', '', "teacher's initial"): (
    {'student.init_lambda': 1.0, 'student.init_from': 'initial'},
    {AGREEMENT: (77.10, 0.24), KL: 0.838, 'cka.stage2.member_0': 0.937},
  ),
  ('table2_imagenet', '', 3): (
    {'teacher.num_members': 3},
    {TEACHER: 76.4, ACCURACY: 75.5, AGREEMENT: 87.8, KL: 0.157},
  ),
  ('table2_imdb', '', 1): (
    {'teacher.num_members': 1},
    {TEACHER: 79.36, ACCURACY: 80.35, AGREEMENT: 86.49, KL: 0.124},
  ),
}


def test_every_sweep_has_a_golden_point():
  assert {name for name, *_ in POINTS} == set(SHARED)


@pytest.mark.parametrize('key', POINTS)
def test_points_golden(key):
  name, *point_key = key
  sweep, configs = runs_of(f'configs/paper/{name}.py')
  fields, paper = POINTS[key]
  (run,) = [
    run for run in sweep_lib.expand(sweep) if (run.point.key, run.trial) == (tuple(point_key), 0)
  ]
  leaves = config_lib.leaves(configs[run.index])
  assert {field: leaves[field] for field in fields} == fields
  found = {measure: of.get(tuple(point_key)) for measure, of in sweep.paper.items()}
  for measure, value in paper.items():
    assert found[measure] == value, measure


def test_numbers_of_the_paper_are_in_the_unit_of_their_panel():
  """Percent of agreement and accuracy, nats of KL and NLL, and CKA in [0, 1]."""
  for file in SWEEPS:
    sweep, _ = runs_of(file)
    scales = {panel.measure: panel.scale for panel in sweep.panels}
    for measure, values in sweep.paper.items():
      means = [value[0] if isinstance(value, tuple) else value for value in values.values()]
      assert all(50 < m <= 100 if scales[measure] == 100 else 0 < m < 2 for m in means), measure
