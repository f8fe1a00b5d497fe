import errno
import signal

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
from etils import epath

from kdjax.errors import DamageError, StorageError
from kdjax.train.checkpoint import Checkpoints, digest


def state(value: float) -> dict:
  return {'w': np.full((300, 40), value, np.float32), 'step': np.array(int(value), np.int32)}


LIKE = jax.eval_shape(lambda: state(0))


def written(folder, steps, keep_steps=()) -> epath.Path:
  with Checkpoints(epath.Path(folder), keep_steps) as checkpoints:
    for step in steps:
      checkpoints.save(step, state(step))
  return epath.Path(folder)


def test_the_newest_and_the_kept_checkpoints_are_restored_bit_for_bit(tmp_path):
  folder = written(tmp_path, [0, 10, 20, 30, 40], keep_steps=(0, 20))
  with Checkpoints(folder, keep_steps=(0, 20)) as checkpoints:
    assert checkpoints.steps == [0, 20, 40]
    restored = checkpoints.restore(LIKE)
    assert checkpoints.restore(LIKE, step=20)['step'] == 20
  assert digest(restored) == digest(state(40))
  assert isinstance(restored['w'], np.ndarray)


def test_saving_does_not_see_later_changes(tmp_path):
  """A donated buffer is overwritten by the next step while the files are being written."""
  increment = jax.jit(lambda tree: jax.tree.map(lambda x: x + 1, tree), donate_argnums=0)
  value, steps = jax.device_put(state(0)), range(8)
  with Checkpoints(epath.Path(tmp_path), keep_steps=steps) as checkpoints:
    for step in steps:
      checkpoints.save(step, value)
      value = increment(value)
  with Checkpoints(epath.Path(tmp_path), keep_steps=steps) as checkpoints:
    for step in steps:
      assert (checkpoints.restore(LIKE, step)['w'] == step).all()


@pytest.fixture
def interruptible():
  """Lets Ctrl-C raise KeyboardInterrupt, which workers of pytest-xdist ignore."""
  before = signal.signal(signal.SIGINT, signal.default_int_handler)
  yield
  signal.signal(signal.SIGINT, before)


def test_ctrl_c_does_not_interrupt_a_save(tmp_path, monkeypatch, interruptible):
  with pytest.raises(KeyboardInterrupt), Checkpoints(epath.Path(tmp_path)) as checkpoints:
    save = checkpoints._manager.save

    def interrupted(*args, **kwargs):
      signal.raise_signal(signal.SIGINT)
      save(*args, **kwargs)

    monkeypatch.setattr(checkpoints._manager, 'save', interrupted)
    checkpoints.save(1, state(1))
  with Checkpoints(epath.Path(tmp_path)) as checkpoints:
    assert digest(checkpoints.restore(LIKE)) == digest(state(1))


def data_files(folder):
  return [p for p in folder.rglob('*') if p.is_file() and p.stat().st_size > 0]


def truncated(content: bytes) -> bytes:
  return content[: len(content) // 2]


def with_a_flipped_bit(content: bytes) -> bytes:
  changed = bytearray(content)
  changed[len(content) * 2 // 3] ^= 4
  return bytes(changed)


@pytest.mark.parametrize('damage', [truncated, with_a_flipped_bit])
def test_damage_to_any_file_is_found_or_harmless(tmp_path, damage):
  written(tmp_path, [7])
  found = 0
  for path in data_files(tmp_path / '7'):
    content = path.read_bytes()
    path.write_bytes(damage(content))
    with Checkpoints(epath.Path(tmp_path)) as checkpoints:
      try:
        assert digest(checkpoints.restore(LIKE)) == digest(state(7))
      except DamageError as error:
        assert str(tmp_path / '7') in str(error)
        found += 1
    path.write_bytes(content)
  assert found >= 3  # manifest, data and metadata


def test_arrays_that_are_not_those_saved_are_found(tmp_path):
  """The digest is of another state, as after a flipped bit that breaks no format."""
  written(tmp_path / 'a', [7])
  written(tmp_path / 'b', [8])
  for path in data_files(tmp_path / 'a' / '7' / 'state'):
    path.unlink()
  for path in data_files(tmp_path / 'b' / '8' / 'state'):
    target = tmp_path / 'a' / '7' / 'state' / path.relative_to(tmp_path / 'b' / '8' / 'state')
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_bytes(path.read_bytes())
  with (
    Checkpoints(epath.Path(tmp_path / 'a')) as checkpoints,
    pytest.raises(DamageError, match='its arrays are not those that were saved'),
  ):
    checkpoints.restore(LIKE)


def test_the_digest_sees_values_names_shapes_and_types():
  base = {'a': np.zeros(4, np.float32)}
  others = [
    {'a': np.array([0, 0, 0, -0.0], np.float32)},
    {'b': np.zeros(4, np.float32)},
    {'a': np.zeros((2, 2), np.float32)},
    {'a': np.zeros(4, np.int32)},
  ]
  assert len({digest(tree) for tree in [base, *others]}) == 5
  assert digest({'a': jax.numpy.zeros(4)}) == digest(base)


def test_a_system_error_names_the_folder_and_is_not_called_damage(tmp_path, monkeypatch):
  """An error about damage would advise to delete it."""

  def failing(number, text):
    def fail(*args, **kwargs):
      raise OSError(number, text)  # as Orbax's of a JSON file, which names none

    return fail

  folder = written(tmp_path, [1])
  monkeypatch.setattr(
    ocp.CheckpointManager, 'restore', failing(errno.EMFILE, 'Too many open files')
  )
  with (
    Checkpoints(folder) as checkpoints,
    pytest.raises(StorageError, match=rf'^{tmp_path} could not be read .*Too many open files'),
  ):
    checkpoints.restore(LIKE)
  monkeypatch.setattr(ocp.CheckpointManager, 'save', failing(errno.ENOSPC, 'No space left'))
  with (
    pytest.raises(StorageError, match=rf'^{tmp_path}: a checkpoint .*No space left'),
    Checkpoints(folder) as checkpoints,
  ):
    checkpoints.save(2, state(2))
