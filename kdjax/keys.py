"""Random numbers as pure functions of a seed, the name of a stream, and indices.

No key is carried or split. Equal arguments give equal numbers on any device, in any batch and after any
restart.
"""

import hashlib
import zlib

import jax
import numpy as np


def stream(seed: int | jax.Array, name: str, *indices: int | jax.Array) -> jax.Array:
  """The key of the stream `name` at `indices`; works inside jit and vmap."""
  # Other implementations of keys make vmapped draws depend on the batch.
  key = jax.random.fold_in(jax.random.key(seed, impl='threefry2x32'), zlib.crc32(name.encode()))
  for index in indices:
    key = jax.random.fold_in(key, index)
  return key


def numpy_rng(seed: int, name: str, *indices: int) -> np.random.Generator:
  """A NumPy generator for draws on the host, such as the order of the examples."""
  # Without the number of indices, no index and the index 0 would give the same generator.
  entropy = [seed, zlib.crc32(name.encode()), len(indices), *indices]
  return np.random.Generator(np.random.Philox(seed=entropy))


def derive_seed(seed: int, name: str, index: int) -> int:
  """A seed in [0, 2³¹) for a component with streams of its own, such as one ensemble member."""
  digest = hashlib.sha256(f'{seed}/{name}/{index}'.encode()).digest()
  return int.from_bytes(digest[:4], 'big') >> 1
