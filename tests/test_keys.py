"""Random streams: what they depend on. test_golden_draws.py has the numbers."""

import itertools

import jax
import numpy as np
import pytest

from kdjax import keys

STREAMS = {
  'jax': lambda *arguments: tuple(jax.random.key_data(keys.stream(*arguments)).tolist()),
  'numpy': lambda *arguments: tuple(keys.numpy_rng(*arguments).integers(2**32, size=2).tolist()),
}


@pytest.mark.parametrize('kind', STREAMS)
def test_streams_follow_from_seed_name_and_every_index(kind):
  """An index of zero is not a missing index."""
  arguments = [
    *itertools.product((0, 1, 2**31 - 1), ('order', 'view/crop'), (0, 1, 2), (0, 1, 50_000)),
    *itertools.product((0, 1), ('order', 'view/crop'), (0, 3, 4)),
    *itertools.product((0, 1), ('order', 'view/crop')),
  ]
  found = [STREAMS[kind](*a) for a in arguments]
  assert len(set(found)) == len(arguments)
  # Nothing is carried from one call to the next.
  assert [STREAMS[kind](*a) for a in reversed(arguments[-16:])] == found[:-17:-1]


def test_derived_seeds_differ_and_fit_31_bits():
  arguments = itertools.product(range(5), ('member', 'other'), range(100))
  seeds = [keys.derive_seed(*a) for a in arguments]
  assert len(set(seeds)) == len(seeds)
  assert min(seeds) >= 0 and max(seeds) < 2**31
  assert max(seeds) > 2**30  # the upper half of the range is used


@pytest.mark.parametrize('seed', [0, 2**31 - 1])
def test_stream_is_the_same_inside_jit_and_vmap(seed):
  indices = np.arange(3, dtype=np.int32)

  @jax.jit
  def data(seed, indices):
    return jax.vmap(lambda i: jax.random.key_data(keys.stream(seed, 'view/flip', 4, i)))(indices)

  expected = [STREAMS['jax'](seed, 'view/flip', 4, i) for i in range(3)]
  np.testing.assert_array_equal(data(seed, indices), expected)
