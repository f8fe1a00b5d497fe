"""Mapping of steps over the devices of all hosts, and the transfer of trees to and from the devices.

A step is a pure function of one device's share of a batch and of one copy of everything else
(`train/steps.py`). `parallel` maps it, the other functions bring its arguments into the form that it takes, and
`ahead` makes them while the devices work. No other module maps.
Axes: D device of this host, B batch, K step.
"""

import collections
import dataclasses
import functools
import os
from collections.abc import Callable, Hashable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from kdjax.errors import ConfigError, UserError
from kdjax.models import AXIS_NAME
from kdjax.runtime import hosts

T = TypeVar('T')

MAP = os.environ.get('KDJAX_MAP', 'pmap')  # what `parallel` maps with, a name of MAPS
STEPS_KEPT = 32  # mapped steps in the cache; a run and its baseline have some 15


def parallel(
  step: Callable,
  *,
  num_sharded: int = 1,
  sharded_output: bool = False,
  gathered_output: bool = False,
  donate: bool = False,
  device: jax.Device | None = None,
) -> Callable:
  """Maps a step over the devices of all hosts.

  Two partials of the same function with equal arguments give the same mapped step, which is compiled
  once. So an experiment, its independent baseline and the points of a sweep share their programs.

  All hosts call the mapped step, each with its own share of the batch. `MAP` chooses what it is mapped
  with; the bits are the same. The default is 'pmap', which this project is required to use. It is
  supported, in maintenance mode; since JAX 0.10 it is `jit` of `shard_map` inside. 'shard_map' skips its
  Python code. Microseconds a call, nearly all of it dispatch, on one CPU device
  (`tests/benchmarks/dispatch.py`, median of nine, beside other work):

    state (arrays)     JAX 0.10.1: pmap, shard_map     JAX 0.12: pmap, shard_map
    small (2)               233            54              336            83
    ResNet-20 (162)        2015          1493             2723          1514

  Args:
    step: a function, or a partial of one: (state or variables, `num_sharded` arguments from `shard`, seed) →
      outputs. The last argument may be a tree that contains the seed; each device gets a copy.
    sharded_output: whether outputs differ between devices. They get a leading device axis, as inputs have;
      otherwise one copy is returned.
    gathered_output: as `sharded_output`, with the outputs of the devices of all hosts.
    donate: whether the first argument's memory is reused. It must not be used after the call.
    device: the only device to use, with whole batches (`for_one_device`); None for all devices.

  Raises:
    ConfigError: there is no such map.
  """
  if MAP not in MAPS:
    raise ConfigError(f'KDJAX_MAP = {MAP!r}: allowed: {", ".join(MAPS)}')
  if gathered_output and hosts.count() > 1:
    step = partial(_gathered, step)
  elif gathered_output:
    sharded_output = True
  return _mapped(MAP, _Step(_key(step), step), num_sharded, sharded_output, donate, device)


@dataclasses.dataclass(frozen=True)
class _Step:
  """A step that equals any other with the same key."""

  key: Hashable
  function: Callable = dataclasses.field(compare=False)


def _key(x: Any) -> Hashable:
  """A key that is equal for partials of the same function and arguments, which JAX treats as different.

  An argument without a hash, such as an array, equals only itself. The cached step keeps it alive.
  """
  if not isinstance(x, partial):
    return x if isinstance(x, Hashable) else ('id', id(x))
  keywords = sorted(x.keywords.items())
  return x.func, *map(_key, x.args), *((name, _key(value)) for name, value in keywords)


@functools.lru_cache(STEPS_KEPT)
def _mapped(name: str, step: _Step, *how: Any) -> Callable:
  return MAPS[name](step.function, *how)


def _pmap(
  step: Callable, num_sharded: int, sharded_output: bool, donate: bool, device: jax.Device | None
) -> Callable:
  return jax.pmap(
    step,
    axis_name=AXIS_NAME,
    in_axes=(None, *[0] * num_sharded, None),
    out_axes=0 if sharded_output else None,
    donate_argnums=(0,) if donate else (),
    devices=None if device is None else [device],
  )


def _shard_map(
  step: Callable, num_sharded: int, sharded_output: bool, donate: bool, device: jax.Device | None
) -> Callable:
  mesh = Mesh(np.array(hosts.devices() if device is None else [device]), (AXIS_NAME,))
  in_specs = (_ONE, *[_SHARDED] * num_sharded, _ONE)
  out_specs = _SHARDED if sharded_output else _ONE

  def on_one_device(first, *rest):
    *batches, seed = rest
    outputs = step(first, *jax.tree.map(partial(jnp.squeeze, axis=0), batches), seed)
    return jax.tree.map(lambda x: x[None], outputs) if sharded_output else outputs

  mapped = jax.jit(
    jax.shard_map(
      on_one_device, mesh=mesh, in_specs=in_specs, out_specs=out_specs, check_vma=False
    ),
    in_shardings=tuple(NamedSharding(mesh, spec) for spec in in_specs),
    donate_argnums=(0,) if donate else (),
  )

  def on_all_hosts(*arguments):  # JAX takes parts of global arrays
    as_arrays = jax.tree.map(lambda x: x if hasattr(x, 'shape') else np.asarray(x), arguments)
    parts = multihost_utils.host_local_array_to_global_array(as_arrays, mesh, in_specs)
    return multihost_utils.global_array_to_host_local_array(mapped(*parts), mesh, out_specs)

  return mapped if hosts.count() == 1 or device is not None else on_all_hosts


MAPS = {'pmap': _pmap, 'shard_map': _shard_map}
_ONE, _SHARDED = PartitionSpec(), PartitionSpec(AXIS_NAME)


def _gathered(step: Callable, *arguments: Any) -> Any:
  return jax.lax.all_gather(step(*arguments), AXIS_NAME)


def replicate(tree: Any, device: jax.Device | None = None) -> Any:
  """Puts a copy of every array on each of this host's devices, or on `device` alone.

  The copies are laid out as the outputs of steps, so that a step is compiled once. With arrays of the host
  it would be compiled for the first call, and again for the second.
  """
  mesh = Mesh(np.array(jax.local_devices() if device is None else [device]), (AXIS_NAME,))
  # Through the host: JAX would otherwise use the original as one of the copies, and donation would delete it.
  return jax.device_put(jax.device_get(tree), NamedSharding(mesh, _ONE), may_alias=False)


def shard(tree: Any) -> Any:
  """Splits the leading axis of every array over this host's devices: (B, ...) → (D, B / D, ...).

  Each host has its own share of a batch (`hosts.share`).

  Raises:
    UserError: the examples cannot be split. Configs are checked before; a finished student may be opened on
      another number of devices.
  """
  num_devices = jax.local_device_count()

  def split(x: np.ndarray | jax.Array) -> np.ndarray | jax.Array:
    if len(x) % num_devices:
      raise UserError(
        f'a batch of {len(x)} examples cannot be split over {num_devices} devices; use fewer, for example by '
        'CUDA_VISIBLE_DEVICES=0'
      )
    return x.reshape(num_devices, len(x) // num_devices, *x.shape[1:])

  return jax.tree.map(split, tree)


def unshard(array: jax.Array) -> np.ndarray:
  """The inverse of `shard` for one array, on the host."""
  array = np.asarray(array)
  return array.reshape(-1, *array.shape[2:])


def for_one_device(tree: Any) -> Any:
  """Changes a batch from `shard` for use by one device: (D, B / D, ...) → (1, B, ...)."""
  return jax.tree.map(lambda x: x.reshape(1, -1, *x.shape[2:]), tree)


def stack(batches: Sequence[Any]) -> Any:
  """K batches from `shard` as one argument of `steps.multi_step`: (D, B / D, ...) → (D, K, B / D, ...).

  Arrays of the host are stacked there, so that one array goes to the devices instead of K.
  """

  def stacked(*of_steps):
    return (np if isinstance(of_steps[0], np.ndarray) else jnp).stack(of_steps, axis=1)

  return jax.tree.map(stacked, *batches)


def ahead(items: Iterator[T], count: int) -> Iterator[T]:
  """Yields the same items in the same order; up to `count` are made before they are needed.

  One thread makes all of them, one after the other. An error of an item is raised when its turn comes.
  """
  thread, end = ThreadPoolExecutor(1, 'ahead'), object()
  make = lambda: thread.submit(next, items, end)
  try:
    waiting = collections.deque(make() for _ in range(count))
    while (item := waiting.popleft().result()) is not end:
      waiting.append(make())
      yield item
  finally:
    thread.shutdown(cancel_futures=True)
