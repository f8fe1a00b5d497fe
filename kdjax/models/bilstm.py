"""A bidirectional LSTM for texts (Hochreiter & Schmidhuber 1997; paper, Appendix A: IMDB)."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from kdjax.models.layers import Features, classify

NUM_LAYERS = 2
EMBEDDING_SIZE = 128


class BiLSTM(nn.Module):
  """Two bidirectional layers, and a linear layer on the final states of both directions of the second.

  Tokens_BT are int32 in [0, vocabulary_size). 0 is padding, which follows a text; its length has no effect. An
  empty text counts as a single token of padding.
  """

  num_classes: int
  vocabulary_size: int
  width: int  # units of a cell, for each direction; the paper's have 70
  dtype: Any = jnp.float32  # of the gates; the states of the cells are float32

  @nn.compact
  def __call__(self, tokens_BT: jax.Array, train: bool) -> tuple[jax.Array, Features]:
    del train
    lengths_B = jnp.maximum(jnp.sum(tokens_BT != 0, axis=1), 1)
    embed = nn.Embed(
      self.vocabulary_size,
      EMBEDDING_SIZE,
      embedding_init=nn.initializers.normal(1.0),
      dtype=self.dtype,
    )
    x_BTC = embed(tokens_BT)
    is_text_BT1 = (jnp.arange(x_BTC.shape[1])[None] < lengths_B[:, None])[..., None]
    features = {'embedding': jnp.mean(x_BTC, axis=1, where=is_text_BT1)}
    for layer in range(NUM_LAYERS):
      name = f'layer{layer + 1}'
      forward, backward = (
        nn.RNN(nn.OptimizedLSTMCell(self.width, dtype=self.dtype, name=f'{name}_{direction}'))
        for direction in ('forward', 'backward')
      )
      carries, x_BTC = nn.Bidirectional(forward, backward)(
        x_BTC, seq_lengths=lengths_B, return_carry=True
      )
      (_, forward_BC), (_, backward_BC) = carries
      final_BC = jnp.concatenate([forward_BC, backward_BC], axis=-1)
      features[name] = final_BC
    return classify(self.num_classes, final_BC, features)
