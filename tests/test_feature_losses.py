"""Losses on features of student and teacher: values, steps, training and refusals."""

import shutil
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from conftest import tiny_run
from ml_collections import ConfigDict
from scipy.special import log_softmax, softmax
from users_code import Project

import kdjax
from analysis.measure import Measure
from analysis.runs import Study
from kdjax import losses, metrics, models
from kdjax.config import validation
from kdjax.data import views
from kdjax.data.arrays import digits
from kdjax.errors import ConfigError, UserError
from kdjax.stages import evaluation, student, teachers
from kdjax.train import devices, steps

BATCH, CLASSES, TAU, WEIGHT = 6, 3, 2.0, 5.0


def unbiased_hsic(k_NN, l_NN):
  """Song et al. (2012), equation 5."""
  n = len(k_NN)
  k_NN, l_NN = (x - np.diag(np.diag(x)) for x in (k_NN, l_NN))
  ones_N = np.ones(n)
  outer = (ones_N @ k_NN @ ones_N) * (ones_N @ l_NN @ ones_N) / ((n - 1) * (n - 2))
  cross = 2 / (n - 2) * (ones_N @ k_NN @ l_NN @ ones_N)
  return (np.trace(k_NN @ l_NN) + outer - cross) / (n * (n - 3))


def reference_cka(x_NX, y_NMX):
  """CKA of features with the mean of the kernels of several members, in float64."""
  x_NF = np.float64(x_NX).reshape(len(x_NX), -1)
  members = np.moveaxis(np.float64(y_NMX), 1, 0)
  members = members.reshape(*members.shape[:2], -1)
  kernels = x_NF @ x_NF.T, np.mean([y_NF @ y_NF.T for y_NF in members], axis=0)
  (xx, xy), (_, yy) = [[unbiased_hsic(one, other) for other in kernels] for one in kernels]
  return xy / np.sqrt(xx * yy)


def made(seed=0, batch=BATCH):
  """Logits of student and teacher, and features of another shape of each."""
  rng = np.random.default_rng(seed)
  draw = lambda *shape: rng.normal(size=shape).astype(np.float32)
  x_BX = draw(batch, 2, 3)
  y_BMX = np.stack([x_BX.reshape(batch, -1) @ draw(6, 4) + draw(batch, 4) for _ in range(2)], 1)
  return draw(batch, CLASSES), log_softmax(draw(batch, CLASSES), axis=-1), x_BX + 3, y_BMX


def value(logits_BC, teacher_BC, x_BX, y_BMX, **options):
  loss = losses.make('cka', {'student_feature': 'x', 'teacher_feature': 'y', **options})
  features = {'student_features': {'x': x_BX}, 'teacher_features': {'y': y_BMX}}
  return losses.apply(loss, logits_BC, teacher_BC, TAU, labels_B=None, **features)


# The loss.


@jax.jit
def with_gradients(logits_BC, teacher_BC, x_BX, y_BMX):
  """losses_B, and the gradients of their mean by logits and features of the student."""
  mean = lambda z, x: jnp.mean(value(z, teacher_BC, x, y_BMX, weight=WEIGHT))
  losses_B = value(logits_BC, teacher_BC, x_BX, y_BMX, weight=WEIGHT)
  return losses_B, jax.grad(mean, (0, 1))(logits_BC, x_BX)


@pytest.mark.parametrize('seed', range(3))
def test_cka_and_its_gradient_are_added_to_the_distillation_loss(seed):
  """The gradient by finite differences."""
  logits_BC, teacher_BC, x_BX, y_BMX = made(seed)
  distance = 1 - reference_cka(x_BX, y_BMX)
  assert 0.05 < distance < 1.5
  plain = lambda z_BC: losses.distillation(z_BC, teacher_BC, TAU)
  found_B, (of_logits, gradient) = with_gradients(logits_BC, teacher_BC, x_BX, y_BMX)
  np.testing.assert_allclose(found_B, plain(logits_BC) + WEIGHT * distance, rtol=1e-5)
  expected = jax.grad(lambda z_BC: plain(z_BC).mean())(logits_BC)
  np.testing.assert_allclose(of_logits, expected, rtol=1e-5, atol=1e-7)
  for place in np.ndindex(x_BX.shape):
    moved = [np.float64(x_BX) for _ in range(2)]
    moved[0][place] += 1e-5
    moved[1][place] -= 1e-5
    above, below = (-WEIGHT * reference_cka(x, y_BMX) for x in moved)
    np.testing.assert_allclose(gradient[place], (above - below) / 2e-5, rtol=1e-3, atol=1e-4)
  assert np.abs(gradient).max() > 0.01


def test_cka_of_one_member_is_that_of_the_evaluation():
  logits_BC, teacher_BC, x_BX, y_BMX = made()
  found_B, _ = with_gradients(logits_BC, teacher_BC, x_BX, y_BMX[:, :1])
  plain_B = losses.distillation(logits_BC, teacher_BC, TAU)
  expected = WEIGHT * (1 - metrics.linear_cka(x_BX, y_BMX[:, 0]))
  np.testing.assert_allclose(found_B - plain_B, np.full(BATCH, expected), rtol=1e-4)


def test_equal_features_are_at_distance_0_and_constant_ones_at_1():
  """Rotation, scale and translation make no difference; all gradients are finite."""
  logits_BC, teacher_BC, x_BX, _ = made()
  rotation, _ = np.linalg.qr(np.random.default_rng(1).normal(size=(6, 6)))
  y_BMX = (7 * x_BX.reshape(BATCH, 6) @ rotation - 2).astype(np.float32)[:, None]
  plain_B = losses.distillation(logits_BC, teacher_BC, TAU)
  found_B, (_, gradient) = with_gradients(logits_BC, teacher_BC, x_BX, y_BMX)
  np.testing.assert_allclose(found_B, plain_B, rtol=1e-5, atol=1e-5)
  np.testing.assert_allclose(gradient, np.zeros_like(gradient), atol=1e-5)
  found_B, (_, gradient) = with_gradients(logits_BC, teacher_BC, np.ones_like(x_BX), y_BMX)
  np.testing.assert_allclose(found_B, plain_B + WEIGHT, rtol=1e-5)
  assert np.isfinite(gradient).all()


def test_a_batch_that_is_too_small_is_refused():
  with pytest.raises(ValueError, match='needs 4 examples or more, and a batch has 3'):
    value(*made(batch=3))


# The step.


class Net(nn.Module):
  """Logits and named features. 'costly' and 'other' are features that no test reads."""

  num_classes: int
  width: int = 4

  @nn.compact
  def __call__(self, x, train):
    hidden = nn.tanh(nn.Dense(self.width)(x.reshape(len(x), -1)))
    features = {'costly': jnp.cos(hidden), 'hidden': hidden, 'other': jnp.arctan2(hidden, 2.0)}
    return nn.Dense(self.num_classes)(hidden), features


CLEAN = views.make_view((), ConfigDict({'crop_padding': 0}))
STUDENT, TEACHER = Net(CLASSES), Net(CLASSES, width=7)
OPTIONS = {'student_feature': 'hidden', 'teacher_feature': 'hidden', 'weight': WEIGHT}


def batch(seed=0):
  rng = np.random.default_rng(seed)
  return {
    'inputs': rng.integers(0, 256, (BATCH, 2, 2, 1)).astype(np.uint8),
    'labels': rng.integers(0, CLASSES, BATCH).astype(np.int32),
    'indices': np.arange(BATCH, dtype=np.int32),
    'views': np.zeros(BATCH, np.int32),
  }


def initial(model, seed):
  return models.init(model, jax.random.key(seed), (2, 2, 1))


def made_step(loss, optimizer):
  """The step of a loss, and whether it runs the members."""
  how = {'optimizer': optimizer, 'view': CLEAN, 'temperature': lambda _: TAU, 'alpha': 0.0}
  if 'teacher_features' in losses.needs(loss):
    return partial(steps.featured_student_step, teacher=TEACHER, model=STUDENT, loss=loss, **how)
  return partial(steps.student_step, model=STUDENT, loss=loss, **how)


def test_a_step_descends_the_loss_on_the_features_of_its_members():
  optimizer, members = optax.sgd(0.5), [initial(TEACHER, seed) for seed in (1, 2)]
  state = steps.init_state(initial(STUDENT, 0), optimizer)
  inputs = batch()['inputs'] / np.float32(127.5) - 1
  teacher = jax.jit(partial(TEACHER.apply, train=False))
  outputs = [teacher(member, inputs) for member in members]
  y_BMF = np.stack([features['hidden'] for _, features in outputs], axis=1)
  teacher_BC = np.log(np.mean([softmax(logits_BC, axis=-1) for logits_BC, _ in outputs], axis=0))

  def mean_loss(params):
    logits_BC, features = STUDENT.apply({'params': params}, inputs, train=True)
    return value(logits_BC, teacher_BC, features['hidden'], y_BMF, weight=WEIGHT).mean()

  loss, gradient = jax.jit(jax.value_and_grad(mean_loss))(state.params)
  step = devices.parallel(made_step(losses.make('cka', OPTIONS), optimizer))
  after, metrics = step(state, devices.shard(batch()), (0, members))
  np.testing.assert_allclose(metrics['loss'][0] / BATCH, loss, rtol=1e-5)
  expected = jax.tree.map(lambda p, g: p - 0.5 * g, state.params, gradient)
  jax.tree.map(partial(np.testing.assert_allclose, atol=1e-5), after.params, expected)
  assert after.params.keys() == state.params.keys()


def test_several_steps_in_one_call_are_those_steps():
  optimizer, members = optax.sgd(0.5), [initial(TEACHER, 1)]
  step = made_step(losses.make('cka', OPTIONS), optimizer)
  batches = [devices.shard(batch(seed)) for seed in range(3)]
  first = state = steps.init_state(initial(STUDENT, 0), optimizer)
  found = []
  for one in batches:
    state, metrics = devices.parallel(step)(state, one, (0, members))
    found.append(metrics['loss'])
  several = devices.parallel(partial(steps.multi_step, step=step))
  at_once, metrics = several(first, devices.stack(batches), (0, members))
  np.testing.assert_allclose(metrics['loss'], found, rtol=1e-5)
  jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-6), at_once, state)


@pytest.mark.parametrize(
  ('loss', 'computed'),
  [('cross_entropy', set()), ('cka', set()), ('costly', {'cosine'})],
)
def test_features_that_a_loss_does_not_read_are_not_computed(loss, computed):
  """A loss without features compiles to a program without them, and one with features to its own."""
  optimizer = optax.sgd(0.5)
  features = {'costly': 'costly', 'cka': 'hidden'}.get(loss)
  options = {} if features is None else OPTIONS | {'teacher_feature': features}
  made = losses.make('cross_entropy' if features is None else 'cka', options)
  state = steps.init_state(initial(STUDENT, 0), optimizer)
  teacher = devices.shard(np.zeros((BATCH, CLASSES), np.float32))
  arguments = (teacher, 0) if features is None else ((0, [initial(TEACHER, 1)]),)
  step = devices.parallel(made_step(made, optimizer), num_sharded=2 - (features is not None))
  text = step.lower(state, devices.shard(batch()), *arguments).compile().as_text()
  assert 'tanh' in text
  assert {name for name in ('cosine', 'atan2') if f' {name}(' in text} == computed


# Training.


def run_of(workdir, width=8, **fields):
  """A tiny run of `Net` on digits, whose teachers all such runs of a workdir share."""
  options = fields.pop('loss_options', {})
  fields = {
    'model__name': f'{__name__}:Net',
    'predictions__mode': 'online',
    'student__loss': 'cka',
    'teacher__num_epochs': 30,
    'student__num_epochs': 16,
    'student__learning_rate': 0.01,
    'student__keep_checkpoints': (0.5,),
    'training__num_evals': 1,
    'training__num_checkpoints': 1,
    'evaluation__num_cka_examples': 200,
  } | fields
  run = tiny_run(workdir, **fields)
  run.config.model.options = ConfigDict({'width': 24})
  run.config.student.model.options = ConfigDict({'width': width})
  if run.config.student.loss == 'cka':
    run.config.student.loss_options = ConfigDict(OPTIONS | options)
  return run


@pytest.fixture(scope='module')
def workdir(tmp_path_factory):
  """A workdir with a student that is trained with the weight 0, and one with the weight 10."""
  workdir = tmp_path_factory.mktemp('features')
  for weight in (0.0, 10.0):
    run = run_of(workdir, loss_options={'weight': weight})
    if weight:
      validation.check(run.config, jax.device_count())
    for stage in (teachers.STAGE, student.STAGE, evaluation.STAGE):
      stage.run(run)
  return workdir


def test_training_with_the_weight_raises_the_similarity_to_the_teacher(workdir):
  found = []
  for weight in (0.0, 10.0):
    run = run_of(workdir, loss_options={'weight': weight})
    found.append(np.mean(list(evaluation.result(run)['cka']['hidden'].values())))
  without, with_weight = found
  assert with_weight > without + 0.15, found


def test_without_weight_the_student_is_that_of_the_plain_loss(workdir):
  plain = run_of(workdir, student__loss='cross_entropy')
  student.STAGE.run(plain)
  found = student.load(run_of(workdir, loss_options={'weight': 0.0}))['params']
  expected = student.load(plain)['params']
  jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-3, atol=1e-4), found, expected)


def test_an_interrupted_training_goes_on(workdir, tmp_path):
  run = run_of(workdir, loss_options={'weight': 10.0})
  shutil.copytree(workdir, tmp_path, dirs_exist_ok=True)
  other = run_of(tmp_path, loss_options={'weight': 10.0})
  shutil.rmtree(other.folders.student / 'checkpoints' / str(run.student.plan.num_steps))
  assert student.STAGE.run(other)
  jax.tree.map(np.testing.assert_array_equal, student.load(other), student.load(run))


def test_every_option_makes_another_student(workdir):
  runs = [run_of(workdir)] + [
    run_of(workdir, loss_options={name: other})
    for name, other in (('weight', 2.0), ('student_feature', 'a'), ('teacher_feature', 'a'))
  ]
  assert len({run.folders.student for run in runs}) == len(runs)
  assert len({run.folders.member(0) for run in runs}) == 1


def test_an_analysis_has_the_predictions_but_not_the_loss(workdir):
  study = Study(run_of(workdir, loss_options={'weight': 10.0}))
  measured = Measure(study, 20)
  assert sum(len(batch['labels']) for batch in measured.batches('test')) == 20
  with pytest.raises(UserError, match=r"cannot be measured: student.loss = 'cka' needs features"):
    measured.variables(study.student())


# Refusals, before anything runs.

FEATURES = (
  'features of the student: costly, hidden, other; features of the teacher: costly, hidden, other'
)
CASES = [
  (
    {'student_feature': 'pooled'},
    {},
    "student.loss_options.student_feature = 'pooled': the student has no such feature; allowed: costly, "
    f'hidden, other ({FEATURES})',
  ),
  (
    {'teacher_feature': ['hidden']},
    {},
    "student.loss_options.teacher_feature = ['hidden']: the teacher has no such feature; allowed: costly",
  ),
  (  # 3 views of 200 examples of 2 members with 24 values in 2 bytes
    {},
    {'predictions__mode': 'stored'},
    "predictions.mode = 'stored': the store has no features, and student.loss = 'cka' needs those of the "
    "teacher; allowed: 'online', which runs the members beside the student. Storing hidden would take "
    '57,600 bytes: 3 views x 200 examples x 2 members x 24 values x 2 bytes',
  ),
  ({}, {'student__batch_size': 3}, 'CKA needs 4 examples or more, and a batch has 3'),
  ({'weight': np.inf}, {}, 'gives [inf inf inf inf]'),
  ({'weight': 'much'}, {}, 'raised TypeError'),
  (
    {'feature': 'hidden'},
    {},
    'cka has no feature; allowed: student_feature, teacher_feature, weight',
  ),
  (
    {},
    {'teacher__source': f'{__name__}:predict', 'teacher__num_members': 1},
    "student.loss = 'cka': needs a teacher's weights, to compute its features, and teacher.source = "
    f"'{__name__}:predict' has only predictions; allowed: a loss without teacher_features",
  ),
  (
    {},
    {
      'teacher__source': 'workdir',
      'teacher__path': '/a',
      'teacher__num_members': 1,
      'evaluation__independent_seed': 5,
      'teacher__independent_source': f'{__name__}:predict',
    },
    f"teacher.independent_source = '{__name__}:predict' has only predictions",
  ),
]


def predict(images):
  return np.zeros((len(images), 10), np.float32)


@pytest.mark.parametrize(('options', 'fields', 'told'), CASES)
def test_what_does_not_fit_is_refused(tmp_path, options, fields, told):
  run = run_of(tmp_path, **{'evaluation__num_cka_examples': 0} | fields)
  run.config.student.loss_options = ConfigDict(OPTIONS | options)
  with pytest.raises(ConfigError) as error:
    validation.check(run.config, 1)
  texts = [text for text in error.value.problems if not text.startswith('teacher.path')]
  assert len(texts) == 1 and told in texts[0], error.value.problems


MORE = """

def reads(student, teacher, temperature, *, student_features, teacher_features):
  x, y = student_features['hidden'], teacher_features['nope'][:, 0]
  return ((x - y) ** 2).mean(-1)

def own(student, teacher, temperature, *, student_features, weight=1.0):
  return (student - teacher).sum(-1) ** 2 + weight * (student_features['hidden'] ** 2).sum(-1)

class Wrong(Net):
  @nn.compact
  def __call__(self, x, train):
    x = nn.Dense(self.num_classes)(x.reshape(len(x), -1))
    return x, {'hidden': x, 'mean': x.mean()}
"""


@pytest.fixture(scope='module')
def project(tmp_path_factory):
  return Project(tmp_path_factory.mktemp('project'), MORE)


def of_user(project, loss, model='@Featured', **fields):
  fields = {'student__loss_options': {}, 'model__name': model, 'student__loss': loss} | fields
  return project.config(**fields)


def test_a_users_loss_on_features_of_the_student_works_from_the_store(project):
  config = of_user(project, '@own', student__loss_options="{'weight': 2.0}")
  validation.check(config, 1)
  assert losses.find(config.student.loss).options == {'weight': 1.0}


@pytest.mark.parametrize(
  ('loss', 'model', 'told'),
  [
    ('@reads', '@Featured', "raised KeyError: 'nope' ("),
    ('@reads', '@Featured', '; features of the student: hidden; features of the teacher: hidden'),
    ('@own', '@Net', '; features of the student: none; features of the teacher: none'),
    (
      '@own',
      '@Wrong',
      "the feature 'mean' of the student has the shape () for two examples; needed",
    ),
  ],
)
def test_a_users_loss_that_reads_missing_features_is_refused(project, loss, model, told):
  config = of_user(project, loss, model, predictions__mode='online')
  with pytest.raises(ConfigError, match=r'student\.loss') as error:
    validation.check(config, 1)
  assert told in error.value.problems[0]


def test_the_bytes_are_those_of_all_features_for_a_loss_that_names_none(project):
  """3 views of 64 examples of 2 members with 5 values in 2 bytes."""
  (problem,) = problems_of(of_user(project, '@reads'))
  assert problem.endswith(
    'take 3,840 bytes: 3 views x 64 examples x 2 members x 5 values x 2 bytes'
  )


def problems_of(config):
  with pytest.raises(ConfigError) as error:
    validation.check(config, 1)
  return error.value.problems


# The interface for Python.


def test_distil_takes_the_loss_if_the_teacher_is_a_module(tmp_path):
  x, y = digits()['train']
  how = {
    'student': Net(10),
    'train': (x[:60], y[:60]),
    'test': (x[60:80], y[60:80]),
    'workdir': tmp_path,
    'num_epochs': 2,
  }
  fields = {'student.loss': 'cka', 'student.loss_options': OPTIONS}
  online = {'config': fields | {'predictions.mode': 'online'}}
  made = kdjax.make_config(teacher=Net(10, width=7), **how, **online)
  assert made.student.loss_options.to_dict() == OPTIONS
  with pytest.raises(ConfigError, match=r"predictions.mode = 'stored'.*allowed: 'online'"):
    kdjax.make_config(teacher=Net(10, width=7), **how, config=fields)
  with pytest.raises(ConfigError, match=r"student.loss = 'cka': needs a teacher's weights"):
    kdjax.make_config(teacher=lambda images: jnp.zeros((len(images), 10)), **how, **online)
