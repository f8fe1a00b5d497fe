"""Several processes that run one experiment together.

All processes run the same program in the same order, each on its own devices. Here a process counts as a
host, although one machine may run several. The main process decides everything that depends on files and
broadcasts the decision, which is also a barrier. It alone writes small shared files. With one process,
nothing here costs time. Axes: H host, B batch.
"""

import hashlib
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from kdjax.errors import ConfigError, UserError

AUTO = 'auto'  # JAX finds the coordinator from the cluster's environment variables
JOIN_SECONDS = 300  # how long a process waits for the others to start
HEARTBEAT_SECONDS = 60  # a process that is silent for longer counts as lost, and all others end
SHUTDOWN_SECONDS = 10  # how long a process waits at its end for the others
MAX_ERROR_BYTES = 2**14  # the largest error message that is broadcast

_NO, _YES, _FAILED = range(3)
# Substrings that identify the error of a collective whose peer is lost.
_LOSS = ('Gloo', 'NCCL', 'Connection', 'coordination service', 'CoordinationService')


def problems(
  coordinator: str | None, num_processes: int | None, process_id: int | None
) -> list[str]:
  """The problems with the flags of a run on several hosts, one line each."""
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
  """Joins the other processes. Call it before any other use of JAX. Without a coordinator, this process is alone.

  Raises:
    ConfigError: the flags are wrong, the other processes did not start in time, or this is one of several
      hosts of a TPU pod and no coordinator was given.
  """
  if found := problems(coordinator, num_processes, process_id):
    raise ConfigError(*found)
  if coordinator is None:
    if jax.process_count() > 1:  # only a TPU pod is multi-process without `initialize`
      raise ConfigError(
        f'--coordinator: missing; this is one of {jax.process_count()} hosts: --coordinator={AUTO}'
      )
    return
  # JAX's preemption service would intercept SIGTERM, which is to end the process at once.
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
    raise ConfigError(f'--coordinator = {coordinator!r}: cannot join ({error})') from error
  if jax.device_count() != count() * jax.local_device_count():
    raise ConfigError(
      f'process {index()} has {jax.local_device_count()} of {jax.device_count()} devices in {count()} '
      'processes; allowed: the same number in each'
    )


def count() -> int:
  """The number of processes."""
  return jax.process_count() if jax.distributed.is_initialized() else 1


def index() -> int:
  """The number of this process, from 0."""
  return jax.process_index() if jax.distributed.is_initialized() else 0


def is_main() -> bool:
  """Whether this is the process that writes shared files, takes locks and shows progress."""
  return index() == 0


def share(batch_size: int) -> slice:
  """The rows of a batch that this host's devices hold, in the order of `jax.pmap`."""
  rows = batch_size // count()
  return slice(index() * rows, (index() + 1) * rows)


def devices() -> list[jax.Device]:
  """The devices of all hosts, in the order of `jax.pmap`: grouped by host."""
  return [device for host in range(count()) for device in jax.local_devices(host)]


def gather(value: Any) -> np.ndarray:
  """The value of each host, stacked along a first axis H. All hosts must call this."""
  return multihost_utils.process_allgather(np.asarray(value))


def barrier() -> None:
  """Waits until all hosts have called it. Files that the main host wrote before are then complete."""
  decide(lambda: True)


def decide(function: Callable[[], bool]) -> bool:
  """Calls the function in the main process and returns its result on all hosts. All hosts must call this.

  Raises:
    UserError, OSError: the function's error; on other hosts, a UserError with its message.
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
    text = multihost_utils.broadcast_one_to_all(padded).tobytes().rstrip(b'\0')
    error = failure or UserError(text.decode(errors='replace'))
    error.known_to_all = True
    raise error
  return answer == _YES


def require_same(text: str, what: str) -> None:
  """Raises ConfigError on all hosts if the text differs between hosts. All hosts must call it."""
  if count() == 1:
    return
  digests_H = gather(np.frombuffer(hashlib.sha256(text.encode()).digest(), np.uint8))
  others = np.flatnonzero((digests_H != digests_H[:1]).any(axis=1))
  if len(others):
    numbers = ', '.join(map(str, others))
    raise ConfigError(
      f'{what}: process {numbers} has other values than process 0; allowed: the same on all hosts'
    )


def is_known_to_all(error: Exception) -> bool:
  """Whether all processes raise this error. If so, none waits for another."""
  return count() == 1 or getattr(error, 'known_to_all', False)


def is_loss(error: Exception) -> bool:
  """Whether a collective failed because another process ended. JAX has no type for this error."""
  return isinstance(error, (RuntimeError, ValueError)) and any(word in str(error) for word in _LOSS)


def replicated(tree: Any) -> Any:
  """The tree with arrays replicated over all devices, which Orbax can save.

  Args:
    tree: arrays that are equal on all hosts.
  """
  if count() == 1:
    return tree
  mesh = jax.sharding.Mesh(np.array(devices()), ('devices',))
  return multihost_utils.host_local_array_to_global_array(tree, mesh, jax.sharding.PartitionSpec())
