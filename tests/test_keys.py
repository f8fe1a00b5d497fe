"""Random streams: what they depend on, and that they never change."""

import itertools

import jax
import numpy as np
import pytest

from kdjax import keys

STREAMS = {
  'jax': lambda *arguments: tuple(jax.random.key_data(keys.stream(*arguments)).tolist()),
  'numpy': lambda *arguments: tuple(keys.numpy_rng(*arguments).integers(2**32, size=2).tolist()),
}
CHANGED = (
  'A random stream gives other numbers than it did. That is legitimate only together with a higher '
  'config.ARTEFACT_VERSION, since stored predictions and trained weights follow from these numbers.'
)


@pytest.mark.parametrize('kind', STREAMS)
def test_streams_differ_by_seed_name_and_every_index(kind):
  arguments = [
    *itertools.product((0, 1, 2**31 - 1), ('order', 'view/crop'), (0, 1, 2), (0, 1, 50_000)),
    *itertools.product((0, 1), ('order', 'view/crop'), (3, 4)),
  ]
  assert len({STREAMS[kind](*a) for a in arguments}) == len(arguments)


@pytest.mark.parametrize('kind', STREAMS)
def test_an_index_of_zero_is_not_a_missing_index(kind):
  assert STREAMS[kind](1, 'order') != STREAMS[kind](1, 'order', 0)


@pytest.mark.parametrize('kind', STREAMS)
def test_equal_arguments_give_equal_numbers(kind):
  first = STREAMS[kind](3, 'order', 1)
  STREAMS[kind](3, 'order', 2)  # nothing is carried from one call to the next
  assert STREAMS[kind](3, 'order', 1) == first


def test_stream_golden():
  assert STREAMS['jax'](0, 'view/crop', 1, 2) == (734216644, 1246352783), CHANGED


def test_permutation_golden():
  order = keys.numpy_rng(0, 'order', 3).permutation(10).tolist()
  assert order == [3, 9, 4, 8, 7, 1, 5, 6, 2, 0], CHANGED


def test_derived_seed_golden():
  seeds = [keys.derive_seed(0, 'member', 0), keys.derive_seed(7, 'member', 3)]
  assert seeds == [1063616514, 779905561], CHANGED


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
