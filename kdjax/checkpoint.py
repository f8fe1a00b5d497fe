"""Checkpoints through Orbax: asynchronous, kept along the trajectory, and never trusted unchecked."""

import hashlib
from collections.abc import Iterable
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from orbax.checkpoint import checkpoint_managers as policies

from kdjax.errors import DamageError


class Checkpoints:
  """The checkpoints of one training: `folder/<step>`. Use as a context manager.

  The newest stays, and those of `keep_steps`; with `read_only`, nothing is touched. Beside each state
  lies the digest of its arrays, since not every flipped bit of a file breaks its format.
  """

  def __init__(self, folder: epath.Path, keep_steps: Iterable[int] = (), read_only: bool = False):
    self.folder = folder
    keep = [policies.LatestN(n=1), policies.CustomSteps(steps=sorted(keep_steps))]
    options = ocp.CheckpointManagerOptions(
      preservation_policy=policies.AnyPreservationPolicy(keep),
      create=not read_only,
      read_only=read_only,
    )
    self._manager = ocp.CheckpointManager(folder, options=options)

  def __enter__(self) -> 'Checkpoints':
    return self

  def __exit__(self, *_) -> None:
    self._manager.close()  # waits for the writes that are under way

  @property
  def steps(self) -> list[int]:
    return sorted(self._manager.all_steps())

  def save(self, step: int, state: Any) -> None:
    """Copies the state and returns; the files are written in the background."""
    self._manager.save(
      step,
      args=ocp.args.Composite(
        state=ocp.args.StandardSave(state), digest=ocp.args.JsonSave({'sha256': digest(state)})
      ),
      force=True,
    )

  def restore(self, like: Any, step: int | None = None) -> Any:
    """The state of a step (the newest by default) as arrays of NumPy, in the structure of `like`.

    Args:
      like: a tree of arrays or of `jax.ShapeDtypeStruct`.

    Raises:
      DamageError: it is missing, cannot be read, or is not what was saved.
    """
    step = self._manager.latest_step() if step is None else step
    place = self.folder / str(step)
    mend = (
      'Delete that folder and run again: training goes on from the checkpoint before it, or from the '
      'start if there is none.'
    )
    if step not in self.steps:
      raise DamageError(f'checkpoint {place} is missing or was never finished. {mend}')
    template = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), like)
    try:
      saved = self._manager.restore(
        step,
        args=ocp.args.Composite(
          state=ocp.args.StandardRestore(template), digest=ocp.args.JsonRestore()
        ),
      )
    except Exception as error:
      raise DamageError(f'checkpoint {place} cannot be read ({error}). {mend}') from error
    if saved.digest != {'sha256': digest(saved.state)}:
      raise DamageError(f'checkpoint {place} is damaged: its arrays are not those saved. {mend}')
    return saved.state


def digest(tree: Any) -> str:
  """SHA-256 over the paths, types, shapes and bytes of all arrays."""
  sha = hashlib.sha256()
  for path, leaf in jax.tree_util.tree_leaves_with_path(jax.device_get(tree)):
    sha.update(f'{jax.tree_util.keystr(path)} {leaf.dtype} {leaf.shape}'.encode())
    sha.update(np.ascontiguousarray(leaf))
  return sha.hexdigest()
