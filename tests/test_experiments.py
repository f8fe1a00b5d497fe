"""Every built-in experiment: its config, its sweep, its commands and the paper's numbers."""

import ast
import functools
import re
import shlex

import checked_config
import pytest
from checked_config import ROOT
from etils import epath

from kdjax import config as config_lib
from kdjax.config import claims, validation
from kdjax.config import sweep as sweep_lib
from kdjax.errors import ConfigError
from kdjax.interface import flags
from kdjax.intervals import Estimate
from kdjax.stages import pipeline
from kdjax.stages.experiment import Experiment
from kdjax.train import trackers

NO_EXPERIMENTS = {'__init__', 'fig8_teachers', 'in_order', 'recipes', 'results', 'times'}
FILES = {
  path.stem: str(path.relative_to(ROOT))
  for path in sorted([*ROOT.glob('configs/*.py'), *ROOT.glob('configs/paper/*.py')])
  if path.stem not in NO_EXPERIMENTS
}
SWEEPS = [name for name, file in FILES.items() if '/paper/' in file or name == 'controls']
NO_SMALL = {'anchor', 'table2_imagenet'}
OWN_TASK = {'fig2_mnist', 'table2_imdb'}  # smaller sizes have the paper's data and numbers


def sizes(name):
  """The arguments that shrink an experiment."""
  if name == 'digits_resnet':
    return []
  return ['small', 'smoke'] if name in SWEEPS and name not in NO_SMALL else ['smoke']


def specs(name):
  """Every size of an experiment, the full one first."""
  return [FILES[name], *(f'{FILES[name]}:{size}' for size in sizes(name))]


@pytest.fixture(autouse=True, scope='module')
def data_sets():
  with pytest.MonkeyPatch.context() as monkeypatch:
    monkeypatch.chdir(ROOT)
    checked_config.pretend(monkeypatch)
    yield


@functools.cache
def loaded(spec, overrides=()):
  return config_lib.load(spec, overrides)


@functools.cache
def runs_of(spec):
  """The sweep and the config of each of its runs, which tests only read."""
  sweep = config_lib.load_sweep(spec)  # raises the problems of the sweep itself
  configs, problems = config_lib.sweep_configs(spec, sweep, [])
  assert problems == []
  return sweep, configs


@functools.cache
def student_of(spec, index):
  """The fingerprint of the student of a run."""
  return config_lib.student_fingerprint(runs_of(spec)[1][index])


# They are valid.


@pytest.mark.parametrize('name', FILES)
def test_configs_are_valid_and_name_their_arguments(name):
  for spec in specs(name):
    for num_devices in (1, 2):
      config, problems = loaded(spec)
      validation.check(config, num_devices, problems)
  if sizes(name):
    with pytest.raises(ConfigError, match=f"unknown argument 'tiny'; allowed: '{sizes(name)[0]}'"):
      config_lib.load(f'{FILES[name]}:tiny')


@pytest.mark.parametrize('name', SWEEPS)
def test_every_point_of_a_sweep_is_valid_and_is_another_student(name):
  """Series may share points with the same fields. Trials differ only in seeds, so two are enough."""
  for spec in specs(name):
    sweep, configs = runs_of(spec)
    assert len(configs) == len(sweep.points) * sweep.trials
    validation.check_sweep(configs[: len(sweep.points)], 2, [])
    runs = sweep_lib.expand(sweep)[: 2 * len(sweep.points)]
    students = {student_of(spec, run.index) for run in runs}
    assert len(students) == len({frozenset(run.fields.items()) for run in runs}), spec
    if name == 'anchor':  # has one trial and no independent student
      continue
    for config in configs[: len(sweep.points)]:
      other = config_lib.independent(config)
      assert other.seed != config.seed
      assert config_lib.student_fingerprint(other) in students, spec
      # Trials on a part of the training set have different parts.
      assert config_lib.subset_seed(other) != config_lib.subset_seed(config)


@pytest.mark.parametrize('name', SWEEPS)
def test_small_is_the_papers_regime(name):
  """`small` has four trials, and a fresh view for each epoch if the data is augmented."""
  if 'small' not in sizes(name):
    return
  sweep, configs = runs_of(f'{FILES[name]}:small')
  assert sweep.trials == (3 if name == 'fig2_mnist' else 4)  # the former has the paper's trials
  for config in configs:
    if config.predictions.augmentation:
      assert config.predictions.num_views >= config.student.num_epochs >= 40
      assert config.teacher.num_epochs == 0 or config.teacher.num_epochs >= 40


# Their claims and the paper's numbers.


def mean_of_paper(sweep, claim, second=None):
  value = sweep.paper.get(second or claim.measure, {}).get(claim.first)
  return value[0] if isinstance(value, tuple) else value


@pytest.mark.parametrize('name', SWEEPS)
def test_the_papers_effect_is_the_difference_of_its_numbers(name):
  """Checks claims about two numbers of the paper. At every size, a claim holds for the paper's effect."""
  sweep, _ = runs_of(FILES[name])
  assert sweep.claims and len({claim.text for claim in sweep.claims}) == len(sweep.claims)
  for claim in sweep.claims:
    first, second = mean_of_paper(sweep, claim), claim.second
    if isinstance(second, tuple):
      second = sweep.paper.get(claim.measure, {}).get(second)
      second = second[0] if isinstance(second, tuple) else second
    elif isinstance(second, str):
      second = mean_of_paper(sweep, claim, second)
    if first is not None and second is not None and claim.paper is not None:
      assert claim.paper == pytest.approx(first - second, abs=0.006), claim.text
  for claim in [claim for spec in specs(name) for claim in runs_of(spec)[0].claims]:
    if claim.paper is not None:
      effect = Estimate(claim.paper, claim.paper - 1e-6, claim.paper + 1e-6)
      assert claims.verdict(claim, effect) == claims.HOLDS, claim.text


@pytest.mark.parametrize('name', SWEEPS)
def test_numbers_of_the_paper_are_in_the_unit_of_their_panel(name):
  """Agreement and accuracy in percent, KL and NLL in nats, CKA in [0, 1]; smaller sizes have them for OWN_TASK."""
  full, _ = runs_of(FILES[name])
  scales = {panel.measure: panel.scale for panel in full.panels}
  for measure, values in full.paper.items():
    means = [value[0] if isinstance(value, tuple) else value for value in values.values()]
    assert all(50 < m <= 100 if scales[measure] == 100 else 0 < m < 2 for m in means), measure
  for spec in specs(name)[1:]:
    small, _ = runs_of(spec)
    keys = {point.key for point in small.points}
    kept = {m: {key: of[key] for key in of if key in keys} for m, of in full.paper.items()}
    assert small.paper == (kept if name in OWN_TASK else {}), spec


# Their commands.


def commands(file):
  text = ast.get_docstring(ast.parse((ROOT / file).read_text())).replace('\\\n', ' ')
  lines = [line.strip().partition('#')[0] for line in text.splitlines()]
  return [shlex.split(line) for line in lines if line.startswith('python ')]


@pytest.mark.parametrize('name', FILES)
def test_the_docstring_has_the_commands_of_the_experiment(name):
  found = set()
  for _, program, *options in commands(FILES[name]):
    assert program == 'launch.py'
    values = dict(flag.removeprefix('--').partition('=')[::2] for flag in options)
    spec = values.pop('config', 'configs/digits_resnet.py')
    found.add(spec)
    assert ('sweep' in values) == (name in SWEEPS)
    assert values.pop('sweep', '') == ''
    assert all(name.startswith('config.') for name in values)
    overrides = tuple((name.removeprefix('config.'), value) for name, value in values.items())
    config, problems = loaded(spec, overrides)
    validation.check(config, 1, problems)
  assert found >= set(specs(name))


def test_launch_explains_every_flag_and_stage():
  launch = (ROOT / 'kdjax' / 'interface' / 'flags.py').read_text()
  defined = re.findall(r"flags\.DEFINE_\w+\(\s*'(\w+)'", launch)
  explained = re.findall(r'^  --(\w+)', launch, re.MULTILINE)
  handled = {'help', 'help_config'}  # before absl parses
  assert set(explained) == {*defined, *handled} >= {'config', 'sweep'}
  assert f'a subset of {",".join(pipeline.STAGES)}\n' in flags.help_text()
  assert f'any of {",".join(trackers.TRACKERS)}, besides' in flags.help_text()


# Artefacts that trials and points share.

# Full sweeps: the numbers of distinct teachers (of any ensemble size), GANs, predictions and students.
SHARED = {
  'anchor': (1, 0, 1, 2),
  'controls': (6, 0, 6, 9),  # trained and untrained teachers
  'fig1_gan': (3, 1, 15, 45),  # m in 1, 3, 5; 0 and 4 numbers of images
  'fig2_mnist': (3, 0, 12, 12),
  'fig3_data': (3, 1, 27, 33),  # baseline and mixup at two temperatures
  'fig4_recycling': (3, 0, 9, 27),  # m in 1, 3, 5; D0, D1 and both
  'fig5_train_agreement': (3, 0, 15, 45),  # m in 1, 3, 5
  'fig6a_optimizers': (3, 0, 3, 27),
  'fig6b_lambda': (3, 0, 3, 39),  # two series, which share λ = 0
  'fig9_temperature': (3, 0, 3, 36),
  'fig10_ensemble_size': (3, 0, 3, 36),
  'fig11_measures': (3, 1, 27, 99),  # those of fig3_data, with m in 1, 3, 5
  'fig12_capacity': (6, 0, 6, 12),  # two depths of the teacher
  'fig13_vgg': (3, 0, 18, 18),
  'fig14_alpha': (3, 0, 3, 45),
  'table1_initialisation': (10, 0, 10, 20),
  'table2_imagenet': (2, 0, 2, 6),
  'table2_imdb': (3, 0, 3, 9),
}


# The paper's recipes and numbers, copied a second time.


def section(section, /, **fields):
  return {f'{section}.{field}': value for field, value in fields.items()}


CIFAR = (
  {'dataset.name': 'cifar100'}
  | section('teacher', num_epochs=200, batch_size=256, weight_decay=1e-4)
  | section('teacher', learning_rate=0.1, final_learning_rate=0.0)
  | section('student', num_epochs=300, batch_size=128, weight_decay=1e-4, alpha=0.0)
  | section('student', learning_rate=5e-2, final_learning_rate=1e-6)
)
RESNET_56 = CIFAR | section('model', name='resnet', depth=56, norm='batch')
RESNET_20 = CIFAR | section('model', name='resnet', depth=20)
GAN = (
  section('gan', num_steps=100_000, batch_size=128, num_discriminator_steps=5, latent_size=128)
  | section('gan', generator_width=256, discriminator_width=128)
  | section('gan', learning_rate=2e-4, final_learning_rate=1e-6)
)
AUGMENTATION = section('augmentation', crop_padding=4, rotation_degrees=20.0, noise_probability=0.2)
AUGMENTATION |= section('augmentation', brightness=0.2, contrast=0.2, saturation=0.2, hue=0.2)
SELF = section('teacher', num_members=1)
HALF = section('teacher', examples=(0, 25_000))
TAU_1 = section('student', temperature=1.0)
RECIPES = {
  'anchor': {'dataset.name': 'cifar10', 'dataset.num_train': None, 'model.norm': 'layer'}
  | SELF
  | section('teacher', num_epochs=30, batch_size=256, learning_rate=0.1)
  | section('student', num_epochs=60, batch_size=128, learning_rate=5e-2, temperature=4.0),
  'controls': RESNET_56 | SELF,
  'fig1_gan': RESNET_56 | GAN | TAU_1,
  'fig2_mnist': {'dataset.name': 'mnist', 'model.name': 'lenet'}
  | section('teacher', num_members=1, examples=(0, 200), num_epochs=100),
  'fig3_data': RESNET_56 | GAN | AUGMENTATION | section('teacher', num_members=5),
  'fig4_recycling': RESNET_56 | HALF | section('student', temperature=4.0),
  'fig5_train_agreement': RESNET_56 | AUGMENTATION | TAU_1,
  'fig6a_optimizers': RESNET_20 | SELF | {'model.norm': 'layer', 'student.weight_decay': 0.0},
  'fig6b_lambda': RESNET_20 | SELF | {'model.norm': 'layer'},
  'fig9_temperature': RESNET_20 | HALF | section('predictions', examples=(0, 25_000)),
  'fig10_ensemble_size': RESNET_56 | TAU_1,
  'fig11_measures': RESNET_56 | GAN | AUGMENTATION,
  'fig12_capacity': CIFAR,  # its points set the depths
  'fig13_vgg': CIFAR
  | AUGMENTATION
  | TAU_1
  | {'model.name': 'vgg'}
  | section('teacher', num_members=5, learning_rate=0.05),  # not 0.1
  'fig14_alpha': RESNET_56 | TAU_1,
  'table1_initialisation': RESNET_20 | SELF | {'model.norm': 'batch'},
  'table2_imagenet': {'model.name': 'resnet50', 'dataset.image_size': 224}
  | section('teacher', num_epochs=90, batch_size=1024, weight_decay=1e-4)
  | section('student', num_epochs=90, warmup_epochs=5.0, learning_rate=0.1, weight_decay=0.0),
  'table2_imdb': section('model', name='bilstm', width=70)
  | section('dataset', max_tokens=100, min_count=10)
  | section('teacher', batch_size=100, learning_rate=1e-2)
  | section('student', num_epochs=100, weight_decay=1e-3),
}


ACCURACY = 'splits.test.student.accuracy'
TEACHER = 'splits.test.teacher.accuracy'
NLL = 'splits.test.student.nll'
AGREEMENT = 'splits.test.fidelity.top1_agreement'
KL = 'splits.test.fidelity.predictive_kl'
TRAIN = 'splits.distillation.fidelity.top1_agreement'
LAST_EPOCH = 'splits.distillation.last_epoch.top1_agreement'
CKA = 'cka.stage{}.member_0'.format
M, TAU, ALPHA, RATE = (
  'teacher.num_members',
  'student.temperature',
  'student.alpha',
  'student.learning_rate',
)
LAMBDA, START, EPOCHS = 'student.init_lambda', 'student.init_from', 'student.num_epochs'
PART, NAMES = 'predictions.examples', 'predictions.augmentation'
EXTRA, COUNT, AUGMENTED = (f'predictions.{f}' for f in ('extra', 'num_extra', 'augment_extra'))
COMBINED = ('crop', 'flip', 'rotation', 'vertical_flip', 'color_jitter')
# (sweep, series, x): fields of the point, and the paper's values.
POINTS = {
  ('anchor', '', 0.5): ({LAMBDA: 0.5, 'model.depth': 20, 'predictions.num_views': 60}, {}),
  ('controls', '', 'labels only'): ({ALPHA: 1.0, 'teacher.num_epochs': 200}, {}),
  ('controls', '', 'untrained teacher'): ({ALPHA: 0.0, 'teacher.num_epochs': 0}, {}),
  ('fig1_gan', 'm = 1', 37_500): (
    {M: 1, EXTRA: 'gan', COUNT: 37_500, AUGMENTED: False},
    {AGREEMENT: 74.0, ACCURACY: 71.2},
  ),
  ('fig1_gan', 'm = 1', 50_000): ({COUNT: 50_000}, {TRAIN: 95}),
  ('fig1_gan', 'm = 3', 0): ({M: 3, EXTRA: ''}, {AGREEMENT: 77}),
  ('fig2_mnist', '', 'MNIST 60k'): ({PART: (0, 60_000)}, {AGREEMENT: 99}),
  ('fig2_mnist', '', 'EMNIST 175k'): (
    {PART: (0, 0), EXTRA: 'emnist/byclass', COUNT: 174_483},
    {AGREEMENT: 99},
  ),
  ('fig2_mnist', '', 'EMNIST 700k'): ({COUNT: 697_932}, {AGREEMENT: 99}),
  ('fig3_data', '', 'baseline, τ = 1'): (
    {TAU: 1.0, NAMES: ('crop', 'flip')},
    {ACCURACY: 72.5, AGREEMENT: 79},
  ),
  ('fig3_data', '', 'mixup'): (
    {TAU: 4.0, NAMES: ('crop', 'flip', 'mixup')},
    {ACCURACY: 74.5, AGREEMENT: 85.5},
  ),
  ('fig3_data', '', 'GAN'): (
    {EXTRA: 'gan', COUNT: 12_500, AUGMENTED: False, TAU: 4.0},
    {ACCURACY: 74.5, AGREEMENT: 83.5},
  ),
  ('fig3_data', '', 'out of domain'): (
    {EXTRA: 'svhn_cropped', COUNT: 12_500, TAU: 1.0},
    {ACCURACY: 72.5, AGREEMENT: 79.5},
  ),
  ('fig4_recycling', 'D1', 3): ({PART: (25_000, 50_000)}, {}),
  ('fig4_recycling', 'D0 and D1', 5): ({PART: ()}, {}),
  ('fig5_train_agreement', 'm = 1', 'combined'): ({M: 1, TAU: 1.0, NAMES: COMBINED}, {TRAIN: 60}),
  ('fig5_train_agreement', 'm = 5', 'rotation'): ({M: 5, NAMES: ('crop', 'flip', 'rotation')}, {}),
  ('fig6a_optimizers', 'SGD', 5000): ({EPOCHS: 5000, 'student.optimizer': 'sgd'}, {TRAIN: 83.3}),
  ('fig6a_optimizers', 'Adam', 300): ({'student.optimizer': 'adam'}, {}),
  ('fig6b_lambda', 'rate as configured', 1.0): ({LAMBDA: 1.0, RATE: 0.05}, {}),
  ('fig6b_lambda', 'rate times 1 − λ', 0.375): ({LAMBDA: 0.375, RATE: 0.03125}, {TRAIN: 100}),
  ('fig6b_lambda', 'rate times 1 − λ', 1.0): ({LAMBDA: 1.0, RATE: 1e-6}, {}),
  ('fig9_temperature', 'm = 3', 4.0): ({M: 3, TAU: 4.0}, {ACCURACY: 62.78, AGREEMENT: 72.77}),
  ('fig9_temperature', 'm = 5', 16.0): ({M: 5, TAU: 16.0}, {ACCURACY: 61.45, AGREEMENT: 74.92}),
  ('fig10_ensemble_size', '', 12): ({M: 12}, {AGREEMENT: 86, ACCURACY: 75.9, TEACHER: 77.6}),
  ('fig11_measures', 'm = 3', 'mixup'): ({M: 3, TAU: 4.0, NAMES: ('crop', 'flip', 'mixup')}, {}),
  ('fig11_measures', 'm = 1', 'noise'): ({M: 1, TAU: 1.0, NAMES: ('crop', 'flip', 'noise')}, {}),
  ('fig12_capacity', 'larger student', 'ResNet-56'): (
    {'model.depth': 56, 'student.model.depth': 110},
    {},
  ),
  ('fig13_vgg', '', 'combined'): (
    {NAMES: COMBINED, TAU: 1.0},
    {ACCURACY: 72.3, NLL: 1.0, AGREEMENT: 84},
  ),
  ('fig14_alpha', 'm = 5', 0.7): ({M: 5, ALPHA: 0.7}, {AGREEMENT: 77.5}),
  ('table1_initialisation', '', 'random'): (
    {LAMBDA: 0.0},
    {AGREEMENT: (77.17, 0.35), KL: 0.836, CKA(1): 0.939, CKA(3): 0.885},
  ),
  ('table1_initialisation', '', "teacher's initial"): (
    {LAMBDA: 1.0, START: 'initial'},
    {AGREEMENT: (77.10, 0.24), KL: 0.838, CKA(2): 0.937},
  ),
  ('table2_imagenet', '', 3): ({M: 3}, {TEACHER: 76.4, ACCURACY: 75.5, AGREEMENT: 87.8, KL: 0.157}),
  ('table2_imdb', '', 1): ({M: 1}, {TEACHER: 79.36, ACCURACY: 80.35, AGREEMENT: 86.49, KL: 0.124}),
}


@pytest.mark.parametrize('name', SWEEPS)
def test_golden(name):
  """The recipe, the artefacts that runs share, and points with the paper's numbers, for every sweep."""
  spec = FILES[name]
  fields = config_lib.leaves(loaded(spec)[0])
  assert {field: fields[field] for field in RECIPES[name]} == RECIPES[name]
  sweep, configs = runs_of(spec)
  assert SHARED[name] == (
    len({config_lib.teacher_fingerprint(config) for config in configs}),
    len({config_lib.gan_fingerprint(c) for c in configs if config_lib.needs_gan(c)}),
    len({config_lib.predictions_fingerprint(config) for config in configs}),
    len({student_of(spec, index) for index in range(len(configs))}),
  )
  golden = {key: of for key, of in POINTS.items() if key[0] == name}
  assert golden
  places = {run.point.key: run.index for run in reversed(sweep_lib.expand(sweep))}
  for (_, *key), (fields, paper) in golden.items():
    leaves = config_lib.leaves(configs[places[tuple(key)]])
    assert {field: leaves[field] for field in fields} == fields, key
    for measure, value in paper.items():
      assert sweep.paper[measure][tuple(key)] == value, (key, measure)


@pytest.mark.parametrize(
  ('name', 'point', 'num_steps'),
  [
    ('fig3_data', 'baseline', 117_188),
    ('fig3_data', 'noise', 117_188),  # replaces images
    ('fig3_data', 'out of domain', 146_485),  # 300 times 62,500 in batches of 128
    ('fig3_data', 'GAN', 146_485),
    ('fig1_gan', 50_000, 234_375),
    ('fig2_mnist', 'EMNIST 700k', 54_526),  # 10 times 697,932, and none of MNIST
  ],
)
def test_added_images_lengthen_an_epoch(name, point, num_steps, tmp_path):
  sweep, configs = runs_of(FILES[name])
  run = next(run for run in sweep_lib.expand(sweep) if run.point.x == point)
  assert Experiment(configs[run.index], epath.Path(tmp_path)).student.plan.num_steps == num_steps


TRAIN_FIGURES = (
  'fig1_gan',
  'fig3_data',
  'fig4_recycling',
  'fig5_train_agreement',
  'fig6a_optimizers',
  'fig6b_lambda',
  'fig12_capacity',
)


def test_train_agreement_is_on_the_distillation_data_at_the_end_and_over_the_last_epoch():
  for name in TRAIN_FIGURES:
    sweep, _ = runs_of(FILES[name])
    assert {TRAIN, LAST_EPOCH} <= {panel.measure for panel in sweep.panels}


def test_the_table_of_deviations_names_existing_switches():
  text = (ROOT / 'docs' / 'deviations.md').read_text()
  switches = dict(re.findall(r'`(\w+\.\w+)(?:=([^`]+))?`', text))
  overrides = [(field, value) for field, value in switches.items() if value]
  config, problems = config_lib.load('configs/cifar_resnet.py', overrides)
  validation.check(config, 1, problems)
  assert len(overrides) == 4 and set(switches) <= set(config_lib.leaves(config))
