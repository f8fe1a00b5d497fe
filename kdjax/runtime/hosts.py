"""Several processes that run one experiment together: who they are, and how they stay together.

They run the same program in the same order, each on devices of its own (a process is a host here, though
one host may run several). So a choice that depends on files is made by the main process and told to the
others, which makes it a barrier too; and small shared files are written by the main process alone. With
one process all of this costs nothing. Axes: H host, B batch.
"""

import hashlib
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from kdjax.errors import ConfigError, UserError

AUTO = 'auto'  # the coordinator that JAX finds by the cluster's environment
JOIN_SECONDS = 300  # that a process waits for the others to start
HEARTBEAT_SECONDS = 60  # of silence after which a process counts as dead, and all others end
SHUTDOWN_SECONDS = 10  # that a process which ends waits for the others to end
MAX_ERROR_BYTES = 2**14  # of a message that is told to the others

_NO, _YES, _FAILED = range(3)
# Words of the libraries that carry collectives, and of the service that watches over the processes.
_LOSS = ('Gloo', 'NCCL', 'Connection', 'coordination service', 'CoordinationService')


def problems(
  coordinator: str | None, num_processes: int | None, process_id: int | None
) -> list[str]:
  """What is wrong with the flags that say who runs together, a line each."""
  given = {'--num_processes': num_processes, '--process_id': process_id}
  missing = [flag for flag, value in given.items() if value is None]
  if coordinator in (None, AUTO):
    return [
      f'{flag} = {value}: allowed: only with --coordinator=HOST:PORT'
      for flag, value in given.items()
      if value is not None
    ]
  found = []
  host, _, port = coordinator.rpartition(':')
  if not (host and port.isdecimal() and 0 < int(port) < 2**16):
    found.append(
      f'--coordinator = {coordinator!r}: allowed: {AUTO!r}, or HOST:PORT of process 0, with a free port'
    )
  found += [f'{flag}: missing; --coordinator=HOST:PORT needs it' for flag in missing]
  if num_processes is not None and num_processes < 1:
    found.append(f'--num_processes = {num_processes}: allowed: at least 1')
  elif not missing and not 0 <= process_id < num_processes:
    found.append(f'--process_id = {process_id}: allowed: 0 to {num_processes - 1}')
  return found


def initialise(coordinator: str | None, num_processes: int | None, process_id: int | None) -> None:
  """Joins the other processes. To be called before any other use of JAX; with no coordinator, alone.

  Raises:
    ConfigError: the flags are wrong, the others did not come, or this is one of several hosts and the
      flags do not say so.
  """
  if found := problems(coordinator, num_processes, process_id):
    raise ConfigError(found)
  if coordinator is None:
    if jax.process_count() > 1:  # only a TPU pod is one without being told
      raise ConfigError(
        [
          f'--coordinator: missing; this is one of {jax.process_count()} hosts: --coordinator={AUTO}'
        ]
      )
    return
  # A SIGTERM ends a process, as without others; JAX would wait for someone to ask it about that.
  jax.config.update('jax_enable_preemption_service', False)
  try:
    jax.distributed.initialize(
      None if coordinator == AUTO else coordinator,
      num_processes,
      process_id,
      initialization_timeout=JOIN_SECONDS,
      heartbeat_timeout_seconds=HEARTBEAT_SECONDS,
      shutdown_timeout_seconds=SHUTDOWN_SECONDS,
      cluster_detection_method=None if coordinator == AUTO else 'deactivate',
    )
  except (ValueError, RuntimeError) as error:
    raise ConfigError([f'--coordinator = {coordinator!r}: cannot join ({error})']) from error
  if jax.device_count() != count() * jax.local_device_count():
    raise ConfigError(
      [
        f'process {index()} has {jax.local_device_count()} of {jax.device_count()} devices in {count()} '
        'processes; allowed: the same number in each'
      ]
    )


def count() -> int:
  return jax.process_count() if jax.distributed.is_initialized() else 1


def index() -> int:
  return jax.process_index() if jax.distributed.is_initialized() else 0


def is_main() -> bool:
  """Whether this is the process that writes shared files, takes locks and shows progress."""
  return index() == 0


def share(batch_size: int) -> slice:
  """This host's rows of a batch: those that its devices hold, in the order of `jax.pmap`."""
  rows = batch_size // count()
  return slice(index() * rows, (index() + 1) * rows)


def devices() -> list[jax.Device]:
  """The devices of all hosts, in the order of `jax.pmap`: one host's stand together."""
  return [device for host in range(count()) for device in jax.local_devices(host)]


def gather(value: Any) -> np.ndarray:
  """values_H of an array or number that each host has its own of. All must call it."""
  return multihost_utils.process_allgather(np.asarray(value))


def barrier() -> None:
  """Waits until all are here: what the main process wrote before is there for all. All must call it."""
  decide(lambda: True)


def decide(function: Callable[[], bool]) -> bool:
  """What the function returns in the main process, the only one that calls it. All must call this.

  Raises:
    UserError, OSError: in the main process what the function raises, in the others with its message.
  """
  if count() == 1:
    return function()
  failure, message = None, b''
  try:
    answer = int(function()) if is_main() else _NO
  except (UserError, OSError) as error:
    answer, failure, message = _FAILED, error, str(error).encode()[:MAX_ERROR_BYTES]
  answer = int(multihost_utils.broadcast_one_to_all(np.int32(answer)))
  if answer == _FAILED:
    padded = np.frombuffer(message.ljust(MAX_ERROR_BYTES, b'\0'), np.uint8)
    told = multihost_utils.broadcast_one_to_all(padded).tobytes().rstrip(b'\0')
    error = failure or UserError(told.decode(errors='replace'))
    error.known_to_all = True
    raise error
  return answer == _YES


def require_same(text: str, what: str) -> None:
  """Raises ConfigError in all if some have another text than the main process. All must call it."""
  if count() == 1:
    return
  digests_H = gather(np.frombuffer(hashlib.sha256(text.encode()).digest(), np.uint8))
  others = np.flatnonzero((digests_H != digests_H[:1]).any(axis=1))
  if len(others):
    numbers = ', '.join(map(str, others))
    raise ConfigError([f'{what}: those of process {numbers} are not those of process 0'])


def is_known_to_all(error: Exception) -> bool:
  """Whether all processes raise it, so that none waits for another; of one process always so."""
  return count() == 1 or getattr(error, 'known_to_all', False)


def is_loss(error: Exception) -> bool:
  """Whether a collective failed because another process ended. JAX has no type for it."""
  return isinstance(error, (RuntimeError, ValueError)) and any(word in str(error) for word in _LOSS)


def replicated(tree: Any) -> Any:
  """Arrays that all hosts have alike, as one array over all devices: what Orbax wants to save."""
  if count() == 1:
    return tree
  mesh = jax.sharding.Mesh(np.array(devices()), ('devices',))
  return multihost_utils.host_local_array_to_global_array(tree, mesh, jax.sharding.PartitionSpec())
