"""bfloat16: what is computed in it, what stays float32, and how far the results are apart."""

from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import copied
from ml_collections import ConfigDict
from numpy_layers import QUICK, abstract_variables, apply, random_variables

from analysis import measure, runs
from kdjax import config as config_lib
from kdjax import files, models, student

CLASSES, VOCABULARY = 10, 20
SHAPES = {'resnet': (8, 8, 3), 'lenet': (12, 12, 3), 'vgg': (32, 32, 3), 'resnet50': (32, 32, 3)}
CASES = [*[(name, 'batch') for name in SHAPES], ('resnet', 'layer'), ('bilstm', 'batch')]


def build(name, norm, dtype):
  section = {
    'name': name,
    'depth': 8,
    'width': 4,
    'norm': norm,
    'shortcut': 'activated',
    'dtype': dtype,
  }
  return models.build(ConfigDict(section), CLASSES, VOCABULARY)


def inputs_of(name):
  rng = np.random.default_rng(0)
  if name == 'bilstm':
    return rng.integers(1, VOCABULARY, (8, 6)).astype(np.int32)
  return rng.uniform(-1, 1, (8, *SHAPES[name])).astype(np.float32)


def gradient(model, variables, inputs):
  """(gradient of a loss, everything that a training pass returns), as on one device."""

  def loss(params, x):
    (logits_BC, features), updates = model.apply(
      variables | {'params': params},
      x,
      train=True,
      mutable=['batch_stats'],
      rngs={'dropout': jax.random.key(1)},
    )
    return jnp.mean(jax.nn.logsumexp(logits_BC, -1)), (logits_BC, features, updates)

  of_device = jax.vmap(jax.grad(loss, has_aux=True), in_axes=(None, 0), axis_name=models.AXIS_NAME)
  return of_device(variables['params'], inputs[None])


@pytest.mark.parametrize(('name', 'norm'), CASES)
def test_logits_of_bfloat16_are_close_to_those_of_float32(name, norm):
  if models.is_miscomputed(ConfigDict({'name': name, 'dtype': 'bfloat16'})):
    pytest.skip('XLA of this JAX computes it wrongly on a CPU; validation refuses it')
  inputs = inputs_of(name)
  variables = random_variables(build(name, norm, 'float32'), inputs, -0.4, 0.4)
  (found, _), (expected, _) = (
    apply(build(name, norm, dtype), variables, inputs) for dtype in ('bfloat16', 'float32')
  )
  error = np.linalg.norm(found - expected) / np.linalg.norm(expected)
  assert 1e-4 < error < 0.05


@pytest.mark.parametrize(('name', 'norm'), CASES)
def test_all_that_is_kept_or_returned_is_float32(name, norm):
  model, inputs = build(name, norm, 'bfloat16'), inputs_of(name)
  variables = abstract_variables(model, inputs.shape[1:], inputs.dtype)
  returned = jax.eval_shape(lambda v: gradient(model, v, inputs), variables)
  assert {x.dtype.name for x in jax.tree.leaves((variables, returned))} == {'float32'}


@pytest.mark.parametrize('name', ['lenet', 'bilstm'])
def test_gradients_are_finite(name):
  inputs, model = inputs_of(name), build(name, 'batch', 'bfloat16')
  variables = random_variables(model, inputs)
  found, _ = jax.jit(gradient, static_argnums=0, compiler_options=QUICK)(model, variables, inputs)
  for path, leaf in jax.tree_util.tree_leaves_with_path(found):
    assert np.isfinite(leaf).all() and np.any(leaf), path


def products(jaxpr) -> Iterator[str]:
  """The dtypes of what every convolution and matrix product takes, in order of the program."""
  for equation in jaxpr.eqns:
    if equation.primitive.name in ('conv_general_dilated', 'dot_general'):
      yield '+'.join(sorted({x.aval.dtype.name for x in equation.invars}))
    for value in equation.params.values():
      inside = getattr(value, 'jaxpr', value)
      if hasattr(inside, 'eqns'):
        yield from products(inside)


@pytest.mark.parametrize(('name', 'norm'), CASES)
def test_every_product_but_that_of_the_last_layer_is_of_bfloat16(name, norm):
  model, inputs = build(name, norm, 'bfloat16'), inputs_of(name)
  variables = abstract_variables(model, inputs.shape[1:], inputs.dtype)
  traced = jax.make_jaxpr(lambda v: model.apply(v, inputs, train=False)[0])(variables)
  *found, last = products(traced.jaxpr)
  assert set(found) == {'bfloat16'}
  assert len(found) == {'lenet': 4, 'resnet': 9, 'vgg': 15, 'resnet50': 53, 'bilstm': 8}[name]
  assert last == 'float32'


def test_a_student_of_bfloat16_learns_and_is_analysed_in_float32(finished, tmp_path):
  run = copied(finished, tmp_path, student__model__dtype='bfloat16')
  assert config_lib.student_fingerprint(run.config) != finished.student_folder.name
  assert run.predictions_folder.name == finished.predictions_folder.name
  assert student.run(run)
  variables = student.load(run)
  assert {x.dtype.name for x in jax.tree.leaves(variables)} == {'float32'}
  found, expected = (
    [row['train/loss'] for row in files.read_json_lines(r.student_folder / 'metrics.jsonl')]
    for r in (run, finished)
  )
  assert found[-1] < found[0]
  assert found == pytest.approx(expected, rel=2e-3)
  assert found != expected
  study = runs.load(run.student_folder)
  assert study.same_architecture
  measured = measure.Measure(study, 32)
  assert (study.run.student_model.dtype, measured.model.dtype) == (jnp.bfloat16, jnp.float32)
