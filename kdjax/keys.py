"""Every random number: seed → stream name → indices. No key is ever carried or split.

Equal arguments give equal numbers on any device, in any batch and after any restart.
"""

import hashlib
import zlib

import jax
import numpy as np


def stream(seed: int | jax.Array, name: str, *indices: int | jax.Array) -> jax.Array:
  """The key of stream `name` at `indices`. Works inside jit and vmap."""
  # Named, since under other implementations vmapped draws depend on the batch.
  key = jax.random.fold_in(jax.random.key(seed, impl='threefry2x32'), zlib.crc32(name.encode()))
  for index in indices:
    key = jax.random.fold_in(key, index)
  return key


def numpy_rng(seed: int, name: str, *indices: int) -> np.random.Generator:
  """The same idea for numbers that are drawn on the host, such as the order of the examples."""
  # The count tells no index from an index 0, which NumPy would not.
  entropy = [seed, zlib.crc32(name.encode()), len(indices), *indices]
  return np.random.Generator(np.random.Philox(seed=entropy))


def derive_seed(seed: int, name: str, index: int) -> int:
  """A seed in [0, 2³¹) for a part that has streams of its own, such as one ensemble member."""
  digest = hashlib.sha256(f'{seed}/{name}/{index}'.encode()).digest()
  return int.from_bytes(digest[:4], 'big') >> 1
