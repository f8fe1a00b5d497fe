"""The prediction store: written predictions are read back, and damage is reported with the file."""

import tracemalloc

import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath
from scipy.special import log_softmax

from kdjax import losses
from kdjax.errors import DamageError, StorageError
from kdjax.predictions import store as store_lib
from kdjax.predictions.encodings import DTYPES
from kdjax.predictions.store import PredictionStore, kvstore

SHAPE = (2, 3, 50, 4)  # members, views, examples, classes


@pytest.fixture
def logits():
  return np.random.RandomState(0).randn(*SHAPE).astype(np.float32) * 5


def filled(folder, logits, dtype='float32') -> PredictionStore:
  store = PredictionStore(epath.Path(folder))
  store.reserve('train', SHAPE, dtype)
  for member in range(SHAPE[0]):
    for view in range(SHAPE[1]):
      store.write('train', member, view, logits[member, view])
  return store


def chunks(folder):
  return sorted(path for path in folder.rglob('c/*/*/*/*') if path.is_file())


@pytest.mark.parametrize(
  'dtype, tolerance', [('float32', 1e-6), ('float16', 2e-3), ('bfloat16', 2e-2)]
)
def test_reads_back_log_probabilities(tmp_path, logits, dtype, tolerance):
  filled(tmp_path, logits, dtype)
  read = PredictionStore(epath.Path(tmp_path)).read('train', [1, 0], 2)
  expected = log_softmax(logits[[1, 0], 2].astype(np.float64), axis=-1)
  assert read.dtype == np.float32
  scale = 1 + np.abs(expected)
  assert (np.abs(read - expected) / scale).max() < tolerance
  assert DTYPES[dtype] == getattr(jnp, dtype)
  if dtype != 'float32':  # the narrow dtypes must really have been used
    assert np.array_equal(read, expected.astype(DTYPES[dtype]).astype(np.float32))
    assert np.abs(read - expected).max() > 1e-4


@pytest.mark.filterwarnings('ignore:overflow')
def test_the_ensemble_is_that_of_the_losses_also_where_all_members_are_certain(tmp_path):
  """Below −65,504, float16 says −∞; up to there it holds very unlikely classes."""
  logits = np.array([[[7e4, 0, 1], [1, 2, -3000]], [[8e4, 1, 0], [0, 8e4, 8e4]]], np.float32)
  store = PredictionStore(epath.Path(tmp_path))
  store.reserve('train', (2, 1, 2, 3), 'float16')
  for member, logits_NC in enumerate(logits):
    store.write('train', member, 0, logits_NC)
  stored_MNC = store.read('train', range(2), 0)
  expected = log_softmax(logits.astype(np.float64), -1)
  held = expected > -65_504
  np.testing.assert_allclose(stored_MNC[held], expected[held], rtol=1e-3)
  assert np.isneginf(stored_MNC[~held]).all()
  found = store.read_ensemble('train', 2, 0)
  expected = losses.ensemble_log_probs(stored_MNC)
  np.testing.assert_allclose(found, expected, rtol=1e-6)
  np.testing.assert_array_equal(np.exp(found[0]), [1, 0, 0])


def test_writing_and_combining_take_little_memory_beside_inputs_and_outputs(tmp_path, monkeypatch):
  monkeypatch.setattr(store_lib, 'CHUNK_BYTES', 2**12)  # 51 examples
  monkeypatch.setattr(store_lib, 'BLOCK_VALUES', 2**12)
  logits_MNC = np.random.RandomState(0).randn(5, 10_010, 20).astype(np.float32)
  store = PredictionStore(epath.Path(tmp_path))
  store.reserve('train', (5, 1, 10_010, 20), 'float32')

  def peak(function):
    """In copies of one member's predictions."""
    tracemalloc.start()
    function()
    _, largest = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return largest / logits_MNC[0].nbytes

  assert peak(lambda: [store.write('train', i, 0, logits_MNC[i]) for i in range(5)]) < 0.5
  assert peak(lambda: store.read_ensemble('train', 5, 0)) < 2
  found, expected = store.read_ensemble('train', 5, 0), losses.ensemble_log_probs(logits_MNC)
  np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


def test_what_cannot_be_read_for_another_reason_is_not_called_damaged(tmp_path, logits):
  store = filled(tmp_path, logits)

  class Refused:
    chunk_layout = store._open('train')[0].chunk_layout
    shape = SHAPE

    def __getitem__(self, where):
      return self

    def read(self):
      raise ValueError('RESOURCE_EXHAUSTED: Too many open files')

  store._arrays['train'] = Refused(), store.encoding('train')
  for read in (lambda: store.read_ensemble('train', 1, 0), lambda: store.digest('train', 0, 0)):
    with pytest.raises(StorageError, match=r'could not be read .*Too many open files'):
      read()


def test_members_and_views_can_be_added(tmp_path, logits):
  filled(tmp_path, logits)
  store = PredictionStore(epath.Path(tmp_path))
  store.reserve('train', (5, 2, 50, 4), 'float32')  # more members, and fewer views than are there
  store.write('train', 4, 1, logits[0, 0])
  np.testing.assert_array_equal(store.read('train', [0, 4], 1)[1], store.read('train', [0], 0)[0])
  assert store.has('train', 1, 2) and store.has('train', 4, 1)
  assert not store.has('train', 4, 2) and not store.has('train', 2, 1)
  with pytest.raises(DamageError, match='view 2 by member 4'):
    store.read('train', [0, 4], 2)


def test_compressed_chunks_hold_one_member_one_view_and_a_block_of_examples(tmp_path, monkeypatch):
  monkeypatch.setattr('kdjax.predictions.store.CHUNK_BYTES', 20 * 4 * 4)
  filled(tmp_path, np.zeros(SHAPE))
  assert len(chunks(tmp_path)) == 2 * 3 * 3  # 50 examples in blocks of 20
  assert max(path.stat().st_size for path in chunks(tmp_path)) < 20 * 4 * 4 / 5


def flipped(content, position):
  changed = bytearray(content)
  changed[position] ^= 1
  return bytes(changed)


DAMAGE = {
  'flipped first': lambda content: flipped(content, 0),
  'flipped': lambda content: flipped(content, len(content) // 2),
  'flipped checksum': lambda content: flipped(content, -1),
  'truncated': lambda content: content[:20],
}


def test_a_damaged_chunk_is_found_and_named(tmp_path, logits):
  filled(tmp_path, logits)
  chunk = chunks(tmp_path)[-1]
  content = chunk.read_bytes()
  for harm in DAMAGE.values():
    chunk.write_bytes(harm(content))
    store = PredictionStore(epath.Path(tmp_path))
    store.read('train', [0, 1], 0)
    with pytest.raises(DamageError, match=str(chunk)):
      store.read('train', [0, 1], 2)
  chunk.unlink()
  with pytest.raises(DamageError, match='lacks predictions of view 2 by member 1'):
    store.read('train', [1], 2)


def test_a_missing_array_and_damaged_metadata_are_found(tmp_path, logits):
  with pytest.raises(DamageError, match='cannot be opened'):
    PredictionStore(epath.Path(tmp_path)).read('train', [0], 0)
  filled(tmp_path, logits)
  (tmp_path / 'logits' / 'train' / 'zarr.json').write_text('{')
  with pytest.raises(DamageError, match=r'zarr\.json'):
    PredictionStore(epath.Path(tmp_path)).read('train', [0], 0)


def test_a_place_is_a_local_folder_of_any_name_or_a_bucket(tmp_path, logits):
  store = filled(tmp_path / 'a b%20#?', logits)
  assert store.has('train', 0, 0)
  assert chunks(tmp_path / 'a b%20#?')
  found = kvstore(epath.Path('gs://bucket/runs/x'))
  assert found == {'driver': 'gcs', 'bucket': 'bucket', 'path': 'runs/x/'}
