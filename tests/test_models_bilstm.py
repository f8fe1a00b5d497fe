"""The LSTM for texts: a forward pass in NumPy, padding, gradients."""

import functools

import jax
import numpy as np
import pytest
from numpy_layers import QUICK, apply, assert_logits, dense, random_variables

from kdjax import models

VOCABULARY_SIZE = 30
MODEL = models.BiLSTM(num_classes=3, vocabulary_size=VOCABULARY_SIZE, width=4)
LENGTHS = (1, 2, 5, 12, 9)
MAX_TOKENS = 12


def texts(max_tokens=MAX_TOKENS):
  rng = np.random.default_rng(0)
  tokens_BT = np.zeros((len(LENGTHS), max_tokens), np.int32)
  for row, length in zip(tokens_BT, LENGTHS, strict=True):
    row[:length] = rng.integers(1, VOCABULARY_SIZE, length)
  return tokens_BT


def make_variables():
  return random_variables(MODEL, texts(), low=-0.4, high=0.5)


def sigmoid(x):
  return 1 / (1 + np.exp(-x))


def lstm(x_TC, params):
  """The states h after each token (Hochreiter & Schmidhuber 1997, with Gers' forget gate)."""
  c = h = np.zeros(4)
  states = []
  for x in x_TC:
    i, f, g, o = (
      x @ params[f'i{gate}']['kernel'] + dense(h, params[f'h{gate}']) for gate in 'ifgo'
    )
    c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
    h = sigmoid(o) * np.tanh(c)
    states.append(h)
  return np.array(states)


def features_by_hand(variables, tokens_T):
  """Of one text without padding: its mean embedding, and the final states of both layers."""
  params = variables['params']
  x_TC = params['Embed_0']['embedding'][tokens_T]
  features = {'embedding': x_TC.mean(0)}
  for layer in ('layer1', 'layer2'):
    forward_TC = lstm(x_TC, params[f'{layer}_forward'])
    backward_TC = lstm(x_TC[::-1], params[f'{layer}_backward'])
    features[layer] = np.concatenate([forward_TC[-1], backward_TC[-1]])
    x_TC = np.concatenate([forward_TC, backward_TC[::-1]], axis=1)
  return features


def logits_by_hand(variables, tokens_BT):
  final_BC = [
    features_by_hand(variables, tokens_T[:length])['layer2']
    for tokens_T, length in zip(tokens_BT, LENGTHS, strict=True)
  ]
  return dense(np.array(final_BC), variables['params']['Dense_0'])


def test_logits_are_those_of_numpy():
  variables = make_variables()
  assert_logits(apply(MODEL, variables, texts())[0], logits_by_hand, variables, texts())


def test_features_are_those_of_numpy():
  variables, tokens_BT = make_variables(), texts()
  _, features = apply(MODEL, variables, tokens_BT)
  for b, length in enumerate(LENGTHS):
    for name, expected in features_by_hand(variables, tokens_BT[b, :length]).items():
      np.testing.assert_allclose(features[name][b], expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize('max_tokens', [50, 100])
def test_the_amount_of_padding_changes_nothing(max_tokens):
  """Neither logits nor features; 12 tokens are the longest text with no padding at all."""
  variables = make_variables()
  expected = apply(MODEL, variables, texts())
  jax.tree.map(
    functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6),
    apply(MODEL, variables, texts(max_tokens)),
    expected,
  )


def test_an_empty_text_is_one_token_of_padding():
  variables = make_variables()
  expected = dense(features_by_hand(variables, [0])['layer2'], variables['params']['Dense_0'])
  for max_tokens in (1, 20):
    logits_BC, _ = apply(MODEL, variables, np.zeros((1, max_tokens), np.int32))
    np.testing.assert_allclose(logits_BC[0], expected, rtol=1e-4)


def test_every_weight_has_a_gradient_but_the_padding_has_none():
  tokens_BT = texts()

  def loss(params):
    logits_BC, _ = MODEL.apply({'params': params}, tokens_BT, train=True)
    return -jax.nn.log_softmax(logits_BC)[:, 0].mean()

  gradient = jax.jit(jax.grad(loss), compiler_options=QUICK)(make_variables()['params'])
  for path, leaf in jax.tree_util.tree_leaves_with_path(gradient):
    assert np.all(np.isfinite(leaf)) and np.any(leaf), path
  is_changed = np.any(gradient['Embed_0']['embedding'], axis=1)
  assert set(np.flatnonzero(is_changed)) == set(tokens_BT[tokens_BT > 0])


def test_initial_embeddings_have_deviation_one():
  @jax.jit  # without which the cells too would be computed
  def init(key):
    return models.init(MODEL, key, (MAX_TOKENS,), 'int32')['params']['Embed_0']['embedding']

  embedding = np.asarray(init(jax.random.key(0)))
  # The standard error of a deviation is 1 / √2n of it.
  assert abs(np.std(embedding) - 1) < 4 / np.sqrt(2 * embedding.size)
