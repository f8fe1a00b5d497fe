"""Permutation specs of all models, and alignment by weights, by activations and by the loss."""

import functools
import itertools
import math

import flax.linen as nn
import jax
import numpy as np
import pytest
import scipy.optimize
from flax.traverse_util import flatten_dict, unflatten_dict
from ml_collections import ConfigDict
from numpy_layers import abstract_variables, apply

from analysis import alignment, permutations
from analysis.activations import group_activations
from kdjax import models
from kdjax.models import resnet50, vgg

NUM_CLASSES = 5
SHORT = (2, 1)  # blocks or convolutions by stage, which has all kinds of layers


@pytest.fixture(scope='module', autouse=True)
def short_models():
  with pytest.MonkeyPatch.context() as patch:
    for module in (resnet50, permutations):
      patch.setattr(module, 'BLOCKS_PER_STAGE', SHORT)
    for module in (vgg, permutations):
      patch.setattr(module, 'CONVS_PER_STAGE', SHORT)
    yield


def make_images(side, count=12):
  return np.random.default_rng(0).normal(scale=2, size=(count, side, side, 3)).astype(np.float32)


def make_tokens():
  """Token sequences of different lengths; one is empty."""
  tokens = np.random.default_rng(0).integers(1, 20, (8, 6)).astype(np.int32)
  return np.where(np.arange(6) < np.array([6, 6, 5, 4, 3, 1, 0, 6])[:, None], tokens, 0)


def preact(block, blocks_per_stage, width, norm):
  return models.PreActResNet(NUM_CLASSES, block, blocks_per_stage, width, norm)


# Groups of units by model. The stem's stream continues through stage 1; each block has one more group.
COUNTS = {
  'lenet': 2 + 2,
  'vgg': 3 + 2,
  'basic': 3 + 6,
  'bottleneck': 4 + 2 * 3,
  'resnet50': 3 + 2 * 3,
  'bilstm': 1 + 4,
}
# Name: model, inputs. LeNet and VGG flatten 2x2 positions.
CASES = {
  'lenet': (models.LeNet5(NUM_CLASSES), make_images(16, 24)),
  'vgg': (models.VGG16(NUM_CLASSES, 2), make_images(8, 8)),
  'basic': (preact(models.BasicBlock, 2, 4, 'batch'), make_images(8)),
  'basic_layer': (preact(models.BasicBlock, 1, 4, 'layer'), make_images(8)),
  'bottleneck': (preact(models.BottleneckBlock, 1, 2, 'batch'), make_images(8)),
  'resnet50': (models.ResNet50(NUM_CLASSES, 2, 'batch'), make_images(32)),
  'resnet50_layer': (models.ResNet50(NUM_CLASSES, 2, 'layer'), make_images(32)),
  'bilstm': (models.BiLSTM(NUM_CLASSES, 20, 6), make_tokens()),
}
QUICK_CASES = ['lenet', 'vgg', 'basic', 'basic_layer', 'bilstm']


def make_variables(model, inputs, seed=0):
  """Variables like trained ones: usual sizes, no two units alike, statistics other than 0 and 1."""
  rng = np.random.default_rng(seed)

  def draw(path, leaf):
    name, noise = path[-1].key, rng.normal(size=leaf.shape)
    if name == 'kernel':
      noise *= math.sqrt(2 / math.prod(leaf.shape[:-1]))
    elif name == 'var':
      noise = rng.uniform(0.5, 1.5, leaf.shape)
    elif name in ('bias', 'mean', 'scale'):
      noise = (name == 'scale') + 0.4 * noise
    return noise.astype(np.float32)

  shapes = abstract_variables(model, inputs.shape[1:], inputs.dtype)
  return jax.tree_util.tree_map_with_path(draw, shapes)


@functools.cache
def make_case(name, seed=0):
  model, inputs = CASES[name]
  variables = make_variables(model, inputs, seed)
  return model, inputs, variables, permutations.spec_for(model, variables['params'])


def make_copy(spec, variables, seed=0):
  """A copy with every unit moved and random signs, and the permutations that undo this."""
  planted, inverse = {}, {}
  drawn = alignment.random_permutations(spec, np.random.default_rng(seed))
  for group, (order, signs) in drawn.items():
    indices = np.empty_like(order)
    indices[order] = np.roll(order, 1)
    planted[group] = alignment.Units(indices, signs)
    back = np.argsort(indices)
    inverse[group] = alignment.Units(back, signs[back])
  return alignment.apply(spec, planted, variables), inverse


@functools.cache
def make_permuted(name):
  """A case's permuted copy, and the permutations that undo it."""
  *_, variables, spec = make_case(name)
  return make_copy(spec, variables)


def inner_product(tree, other):
  products = jax.tree.map(lambda x, y: np.vdot(np.float64(x), np.float64(y)), tree, other)
  return math.fsum(jax.tree.leaves(products))


def logits_of(model, variables, inputs):
  return np.asarray(apply(model, variables, inputs)[0])


def assert_same(tree, other):
  jax.tree.map(np.testing.assert_array_equal, tree, other)


# Specs.


@pytest.mark.parametrize('name', CASES)
def test_every_axis_is_fixed_or_made_of_groups(name):
  _, _, variables, spec = make_case(name)
  assert len(spec.sizes) == len(spec.outputs) == COUNTS.get(name, len(spec.sizes))
  flat = flatten_dict(variables)
  assert set(spec.axes) == set(flat)
  fixed = set()
  for path, array in flat.items():
    assert len(spec.axes[path]) == array.ndim
    for axis, (groups, length) in enumerate(zip(spec.axes[path], array.shape, strict=True)):
      assert not groups or sum(spec.sizes[group] for group in groups) == length
      if not groups and axis >= array.ndim - 2:  # the axes before are height and width
        fixed.add((*path, axis))
  stem = {'vgg': 'stage1_conv1', 'resnet50': 'stem', 'resnet50_layer': 'stem'}.get(name, 'Conv_0')
  first = ('Embed_0', 'embedding', 0) if name == 'bilstm' else (stem, 'kernel', 2)
  head = 'Dense_2' if name == 'lenet' else 'Dense_0'
  inputs_and_classes = {first, (head, 'kernel', 1), (head, 'bias', 0)}
  assert fixed == {('params', *place) for place in inputs_and_classes}
  flipping = [group for group in spec.sizes if spec.flips(group)]
  assert flipping == (list(spec.sizes) if name == 'bilstm' else [])


def test_all_models_have_a_spec():
  config = ConfigDict(
    {'depth': 8, 'width': 2, 'norm': 'batch', 'shortcut': 'activated', 'dtype': 'float32'}
  )
  for name in models.MODELS:
    config.name = name
    model = models.build(config, NUM_CLASSES, vocabulary_size=20)
    assert type(model) in permutations.SPECS


def test_a_spec_that_does_not_fit_is_refused():
  model, inputs, variables, _ = make_case('lenet')
  with pytest.raises(ValueError, match='which units of Dense may be permuted'):
    permutations.spec_for(nn.Dense(3), variables['params'])
  extra = variables['params'] | {'Dense_3': variables['params']['Dense_2']}
  with pytest.raises(ValueError, match='Dense_3'):
    permutations.spec_for(model, extra)
  narrow = make_variables(model, inputs)['params']
  narrow['Conv_1']['kernel'] = narrow['Conv_1']['kernel'][:, :, :3]
  with pytest.raises(ValueError, match='is of shape'):
    permutations.spec_for(model, narrow)


# Permuted networks.


@pytest.mark.parametrize('name', CASES)
def test_permutations_change_the_weights_but_not_the_function(name):
  model, inputs, variables, spec = make_case(name)
  expected = logits_of(model, variables, inputs)
  assert (
    np.ptp(expected, axis=0).min() > 0.02 * np.abs(expected).max()
  )  # outputs depend on the inputs
  permuted, _ = make_permuted(name)
  assert jax.tree.map(np.shape, permuted) == jax.tree.map(np.shape, variables)
  logits = logits_of(model, permuted, inputs)
  np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-5 * np.abs(expected).max())
  # Every array matters: leaving a single one as it was changes the function.
  flat, original = flatten_dict(permuted), flatten_dict(variables)
  changed = [path for path in flat if not np.array_equal(flat[path], original[path])]
  assert set(changed) == {path for path, axes in spec.axes.items() if any(axes)}
  for path, axes in spec.axes.items():  # inputs and classes stay where they are
    moved = tuple(axis for axis, groups in enumerate(axes) if groups)
    sums = [np.abs(arrays[path]).sum(moved) for arrays in (flat, original)]  # signs may change
    np.testing.assert_allclose(*sums, rtol=1e-4, atol=1e-4)
  for path in changed[:: max(1, len(changed) // 30)]:
    broken = {name: {} for name in variables} | unflatten_dict(flat | {path: original[path]})
    change = np.abs(logits_of(model, broken, inputs) - expected).max()
    assert change > 2e-4 * np.abs(expected).max(), path


def test_a_permutation_gives_the_old_index_of_each_unit():
  *_, variables, spec = make_case('lenet')
  order = alignment.Units(np.array([2, 0, 1, *range(3, 16)]), np.ones(16))
  swapped = alignment.identity(spec) | {'conv2': order}
  params, old = alignment.apply(spec, swapped, variables)['params'], variables['params']
  np.testing.assert_array_equal(params['Conv_1']['bias'][:3], old['Conv_1']['bias'][[2, 0, 1]])
  kernel, old_kernel = params['Dense_0']['kernel'], old['Dense_0']['kernel']
  for position in range(4):
    rows = 16 * position + np.array([2, 0, 1])
    np.testing.assert_array_equal(kernel[16 * position :][:3], old_kernel[rows])
  assert_same(params['Conv_0'], old['Conv_0'])


# Weight matching.


@pytest.mark.parametrize('name', CASES)
def test_weight_matching_undoes_a_permutation(name):
  _, _, variables, spec = make_case(name)
  permuted, inverse = make_permuted(name)
  found = alignment.weight_matching(
    spec, variables['params'], permuted['params'], np.random.default_rng(0)
  )
  assert_same(found, inverse)
  assert_same(alignment.apply(spec, found, permuted), variables)


@functools.cache
def match(name, start_at_random=False):
  """Matches two independent networks: (spec, target params, params, permutations)."""
  _, _, target, spec = make_case(name, seed=0)
  _, _, other, _ = make_case(name, seed=1)
  found = alignment.weight_matching(
    spec, target['params'], other['params'], np.random.default_rng(0), start_at_random
  )
  return spec, target['params'], other['params'], found


def aligned_product(spec, target, params, found):
  aligned = alignment.apply(spec, found, {'params': params})['params']
  return inner_product(target, aligned)


@pytest.mark.parametrize('name', QUICK_CASES)
def test_weight_matching_of_independent_networks_raises_the_inner_product(name):
  spec, target, params, found = match(name)
  before, after = inner_product(target, params), aligned_product(spec, target, params, found)
  assert after > before + 0.05 * inner_product(target, target)
  *_, other = match(name, start_at_random=True)
  assert aligned_product(spec, target, params, other) > before
  assert any(
    (a.indices_U != b.indices_U).any() for a, b in zip(other.values(), found.values(), strict=True)
  )


@pytest.mark.parametrize('name', ['basic', 'basic_layer', 'bilstm'])
def test_weight_matching_ends_where_no_swap_of_two_units_gains(name):
  spec, target, params, found = match(name)
  best = aligned_product(spec, target, params, found)
  gains = []
  for group, size in spec.sizes.items():
    for i, j in itertools.combinations(range(min(size, 12)), 2):
      order = np.arange(size)
      order[[i, j]] = [j, i]
      swapped = alignment.Units(*(x[order] for x in found[group]))
      gains.append(aligned_product(spec, target, params, found | {group: swapped}) - best)
  # The quadratic problem of recurrent weights is solved approximately.
  allowed = 0.04 * len(gains) if name == 'bilstm' else 0
  assert np.sum(np.array(gains) > 1e-9 * best) <= allowed
  assert np.mean(gains) < -1e-3 * best


def test_recurrent_weights_are_matched_where_the_linearised_step_loses():
  target = np.array([[3, 2, 2], [3, -2, -2], [2, -2, 1]])
  other = np.array([[0, -1, 2], [0, 1, -3], [3, 2, -3]])
  spec = permutations.Spec({('params', 'kernel'): (('cell',), ('cell',))}, {'cell': 3}, {})
  linearised = target @ other.T + target.T @ other  # at the identity
  step = scipy.optimize.linear_sum_assignment(linearised, maximize=True)[1]
  products = {
    order: np.sum(target * other[np.ix_(order, order)])
    for order in itertools.permutations(range(3))
  }
  assert products[tuple(step)] < products[0, 1, 2] == 5 < max(products.values()) == 20
  found = alignment.weight_matching(
    spec, {'kernel': target}, {'kernel': other}, np.random.default_rng(0)
  )
  assert products[tuple(found['cell'].indices_U)] == 20


def test_weight_matching_of_a_network_with_itself_and_with_nothing():
  *_, variables, spec = make_case('lenet')
  params = variables['params']
  match_to = lambda target: alignment.weight_matching(
    spec, target, params, np.random.default_rng(0)
  )
  assert_same(match_to(params), alignment.identity(spec))
  found = match_to(jax.tree.map(np.zeros_like, params))  # ends although all similarities are 0
  assert {group: len(units.indices_U) for group, units in found.items()} == spec.sizes


# Activation matching.


@pytest.mark.parametrize('name', CASES)
def test_activation_matching_undoes_a_permutation(name):
  model, inputs, variables, spec = make_case(name)
  permuted, inverse = make_permuted(name)
  target, other = (group_activations(model, v, inputs, spec) for v in (variables, permuted))
  found = alignment.activation_matching(spec, target, other)
  num_dead = 0
  for group, size in spec.sizes.items():
    # Dead units cannot be told apart, nor units that respond to the same single example.
    alive = np.sum(np.abs(target[group]) > 1e-3, axis=0) > 2
    num_dead += size - alive.sum()
    for of_found, of_inverse in zip(found[group], inverse[group], strict=True):
      np.testing.assert_array_equal(of_found[alive], of_inverse[alive], err_msg=group)
    np.testing.assert_array_equal(np.sort(found[group].indices_U), np.arange(size))
  assert num_dead < 0.5 * sum(spec.sizes.values())


def test_activations_are_what_the_next_layer_reads():
  model, inputs, variables, spec = make_case('lenet')
  activations = group_activations(model, variables, inputs, spec)
  _, features = apply(model, variables, inputs)
  for layer in ('dense1', 'dense2'):
    np.testing.assert_allclose(activations[layer], features[layer], rtol=1e-4, atol=1e-5)
  conv1 = activations['conv1'].reshape(24, 8, 2, 8, 2, 6).mean((2, 4))
  np.testing.assert_allclose(conv1, features['conv1'], rtol=1e-4, atol=1e-5)


def test_activations_of_a_stream_are_those_after_its_last_block():
  model, inputs, variables, spec = make_case('basic')
  activations = group_activations(model, variables, inputs, spec)
  _, features = apply(model, variables, inputs)
  for group, feature in {'stem': 'stage1', 'stage2': 'stage2', 'stage3': 'stage3'}.items():
    expected = features[feature].reshape(-1, spec.sizes[group])
    np.testing.assert_allclose(activations[group], expected, rtol=1e-4, atol=1e-4)
  assert min(activations['stem'].min(), activations['stage3'].min()) < 0
  assert activations['stage1_block1_conv1'].min() == 0


def test_activations_of_texts_leave_out_padding():
  model, tokens, variables, spec = make_case('bilstm')
  activations = group_activations(model, variables, tokens, spec)
  assert {len(rows) for rows in activations.values()} == {6 + 6 + 5 + 4 + 3 + 1 + 0 + 6}
  _, features = apply(model, variables, tokens)
  np.testing.assert_allclose(activations['embedding'][:6].mean(0), features['embedding'][0], 1e-4)
  final = np.concatenate(
    [
      activations['layer2_forward'][5],
      activations['layer2_backward'][0],
    ]  # states after the whole text
  )
  np.testing.assert_allclose(final, features['layer2'][0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
  ('scales', 'shifts'), [((1, 1), (0, 0)), ((100, 0.1), (0, 0)), ((1, 1), (5, -5))]
)
def test_activation_matching_uses_correlations(scales, shifts):
  rows = np.random.default_rng(0).normal(size=(200, 3))
  basis, _ = np.linalg.qr(rows - rows.mean(0))
  target = basis[:, :2]
  # Correlations of 0.8 + 0.1 in order and of 0.7 + 0.6 crosswise; the third unit of both is dead.
  other = basis @ np.array([[0.8, 0.7], [0.6, 0.1], [0, math.sqrt(0.5)]])
  target, other = (
    np.insert(units * np.array(scales) + np.array(shifts), 2, 0.1, axis=1)
    for units in (target, other)
  )
  spec = permutations.Spec({}, {'units': 3}, {})
  found = alignment.activation_matching(spec, {'units': target}, {'units': other})
  np.testing.assert_array_equal(found['units'].indices_U, [1, 0, 2])
  with pytest.raises(ValueError, match='mismatch'):
    alignment.activation_matching(spec, {'units': target}, {'units': other[:100]})


# Alignment by the loss.

TOY = permutations.Spec(
  {('params', 'into'): ((), ('units',)), ('params', 'out'): (('units',), ())}, {'units': 8}, {}
)


RNG = np.random.default_rng(3)
TARGET = {'params': {'into': RNG.normal(size=(2, 8)), 'out': RNG.normal(size=(8, 2))}}
OTHER, INVERSE = make_copy(TOY, TARGET)  # units in another order


def slope(aligned, _):
  """The gradient of ‖network − target‖² / 2."""
  return jax.tree.map(np.subtract, aligned['params'], TARGET['params'])


def test_a_learned_alignment_goes_down_the_loss():
  """The planted order has the lowest loss."""
  seen = []

  def gradient(aligned, step):
    seen.append(step)
    return slope(aligned, step)

  start, rng = alignment.identity(TOY), np.random.default_rng(0)
  found = list(alignment.learned(TOY, start, OTHER, gradient, 40, rng))
  assert seen == list(range(40))
  assert_same(found[-1], INVERSE)
  assert not np.array_equal(found[0]['units'].indices_U, INVERSE['units'].indices_U)
  # Without a gradient the alignment does not change.
  flat = lambda aligned, _: jax.tree.map(np.zeros_like, aligned['params'])
  for stays in alignment.learned(TOY, INVERSE, OTHER, flat, 3, rng):
    assert_same(stays, INVERSE)


def toy_best(height, restarts=2, num_steps=40):
  return alignment.best_alignment(
    TOY,
    TARGET,
    OTHER,
    np.random.default_rng(0),
    height=height,
    activations=lambda variables: {'units': np.random.default_rng(5).normal(size=(50, 8))},
    gradient=slope,
    restarts=restarts,
    num_steps=num_steps,
  )


def test_the_best_alignment_has_the_lowest_loss_halfway():
  distance = lambda x: sum(np.sum(difference**2) for difference in slope(x, 0).values())
  best = toy_best(distance)
  assert list(best.candidates) == list(best.heights)
  assert list(best.candidates) == [
    'as they are',
    'weights',
    'activations',
    'weights, restart 1',
    'weights, restart 2',
    'learned',
  ]
  assert_same(best.candidates[best.name], INVERSE)
  assert best.heights[best.name] == min(best.heights.values()) == pytest.approx(0, abs=1e-12)
  assert best.heights['as they are'] > 1  # and matching noise does not help
  assert best.heights['activations'] > 1
  # A loss that is lowest for the network as it is leaves it so.
  best = toy_best(lambda x: -distance(x), 0, 0)
  assert best.name in ('as they are', 'activations')
  assert list(best.candidates) == ['as they are', 'weights', 'activations']
