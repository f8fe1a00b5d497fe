"""Checkpoints of a training, written by Orbax in the background and verified by digests."""

import contextlib
import hashlib
import signal
import sys
import threading
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from orbax.checkpoint import checkpoint_managers as policies
from orbax.checkpoint import multihost

from kdjax.errors import DamageError, StorageError, UserError
from kdjax.runtime import files, hosts


class Checkpoints:
  """The checkpoints of one training: `folder/<step>`. Use as a context manager.

  The newest checkpoint and those of `keep_steps` are kept. Nothing is written or deleted but by `save`; to read
  alone, use `create=False`, with which the folder must exist.
  A checkpoint has a digest of its arrays, since a file with a flipped bit may still be readable, and the
  log of the training so far, from which a lost log is restored. With several hosts, all call every method;
  each writes a part of every array, and reads all.
  """

  def __init__(self, folder: epath.Path, keep_steps: Iterable[int] = (), create: bool = True):
    self.folder = folder
    keep = [policies.LatestN(n=1), policies.CustomSteps(steps=sorted(keep_steps))]
    options = ocp.CheckpointManagerOptions(
      preservation_policy=policies.AnyPreservationPolicy(keep),
      create=create,
      async_options=ocp.AsyncOptions(barrier_sync_fn=_barrier),
    )
    self._manager = ocp.CheckpointManager(folder, options=options)

  def __enter__(self) -> 'Checkpoints':
    return self

  def __exit__(self, _: type[BaseException] | None, error: BaseException | None, *__) -> None:
    # Closing would wait forever for a host that failed. Without it, a write that is under way does not count.
    if error is None or hosts.is_known_to_all(error):
      with self._writing():
        self._manager.close()  # waits for the writes that are under way

  @property
  def steps(self) -> list[int]:
    return sorted(self._manager.all_steps())

  def save(self, step: int, state: Any, log: Sequence[dict[str, Any]] = ()) -> None:
    """Copies the state and returns; the files are written in the background.

    Args:
      log: the rows so far.

    Raises:
      StorageError: the checkpoint before could not be written.
    """
    beside = {'sha256': digest(state), 'log': list(log), 'log_sha256': _log_digest(log)}
    with self._writing(), _uninterrupted():
      self._manager.save(
        step,
        args=ocp.args.Composite(
          state=ocp.args.StandardSave(hosts.replicated(state)), digest=ocp.args.JsonSave(beside)
        ),
        force=True,
      )

  def restore(self, like: Any, step: int | None = None) -> Any:
    """The state of a step (the newest by default) as arrays of NumPy, in the structure of `like`.

    Args:
      like: a tree of arrays or of `jax.ShapeDtypeStruct`.

    Raises:
      DamageError: the checkpoint is missing or unreadable, or is not what was saved.
      StorageError: reading is refused, for example for lack of permission.
    """
    template = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), like)
    saved = self._read(
      step, state=ocp.args.StandardRestore(template), digest=ocp.args.JsonRestore()
    )
    if saved.digest.get('sha256') != digest(saved.state):
      raise self._damage(step, 'is damaged: its arrays are not those that were saved')
    return saved.state

  def log(self, step: int | None = None) -> list[dict[str, Any]]:
    """The rows of the log that were saved with a step (the newest by default).

    Raises:
      DamageError: they cannot be read, or are not what was saved.
    """
    beside = self._read(step, digest=ocp.args.JsonRestore()).digest
    if 'log' not in beside or beside.get('log_sha256') != _log_digest(beside['log']):
      raise self._damage(step, 'is damaged: its log is not the one that was saved')
    return beside['log']

  def _read(self, step: int | None, **arguments: Any) -> Any:
    step = self._manager.latest_step() if step is None else step
    if step not in self.steps:
      raise self._damage(step, 'is missing or was never finished')
    try:
      return self._manager.restore(step, args=ocp.args.Composite(**arguments))
    except Exception as error:
      if hosts.is_loss(error):
        raise
      if files.is_refused(error):
        raise files.refusal(self.folder, error) from error
      raise self._damage(step, f'cannot be read ({_one_line(error)})') from error

  def _damage(self, step: int | None, what: str) -> DamageError:
    place = self.folder / str(self._manager.latest_step() if step is None else step)
    return DamageError(
      f'checkpoint {place} {what}. Delete that folder and run again: training goes on from the '
      'checkpoint before it, or from the start if there is none.'
    )

  @contextlib.contextmanager
  def _writing(self) -> Iterator[None]:
    try:
      yield
    except UserError:
      raise
    except Exception as error:  # such as Orbax's OSError for a full disk, which names no file
      if hosts.is_loss(error):
        raise
      raise StorageError(
        f'{self.folder}: a checkpoint could not be written ({_one_line(error)}). Make room or fix the '
        'disk, and run the same command again: it resumes from the last checkpoint.'
      ) from error


@contextlib.contextmanager
def _uninterrupted() -> Iterator[None]:
  """Delays Ctrl-C until the end, since Orbax waits five minutes for a save that was interrupted."""
  if threading.current_thread() is not threading.main_thread():  # Ctrl-C interrupts the main thread
    yield
    return
  received: list[int] = []
  handler = signal.signal(signal.SIGINT, lambda number, _: received.append(number))
  try:
    yield
  finally:
    signal.signal(signal.SIGINT, handler or signal.SIG_DFL)  # None: not installed by Python
  if received:
    signal.raise_signal(signal.SIGINT)


def _barrier(*, key: str, timeout_ms: int) -> None:
  """Like Orbax's barrier, but raises the error of this host if its write has failed."""
  if (error := sys.exc_info()[1]) is not None:
    raise error
  try:
    multihost.get_barrier_sync_fn()(key=key, timeout_ms=timeout_ms)
  except jax.errors.JaxRuntimeError as error:
    raise RuntimeError(str(error)) from error  # Orbax passes it on unchanged, for `hosts.is_loss`


def _one_line(error: Exception) -> str:
  return ' '.join(str(error).split())


def _log_digest(rows: Sequence[dict[str, Any]]) -> str:
  return files.checksum(files.json_lines(rows))


def digest(tree: Any) -> str:
  """SHA-256 over the paths, types, shapes and bytes of all arrays."""
  sha = hashlib.sha256()
  for path, leaf in jax.tree_util.tree_leaves_with_path(jax.device_get(tree)):
    sha.update(f'{jax.tree_util.keystr(path)} {leaf.dtype} {leaf.shape}'.encode())
    sha.update(np.ascontiguousarray(leaf))
  return sha.hexdigest()
