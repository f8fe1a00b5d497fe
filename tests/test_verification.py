import shutil

import jax
import numpy as np
import pytest
import tensorstore as ts
from conftest import copied
from ml_collections import ConfigDict
from scipy.special import log_softmax

from kdjax import models
from kdjax.errors import DamageError
from kdjax.predictions.store import PredictionStore, kvstore
from kdjax.stages import verification
from kdjax.stages.verification import DRIFT, NOISE, Sample
from kdjax.train.predictor import Predictor


def test_verify_reads_all_and_predicts_a_sample_again(finished):
  said = verification.verify(finished)
  assert str(finished.folders.predictions) in said
  assert '12 views are as they were written' in said  # 2 members: 3 views, and 3 splits as they are
  values = 2 * (200 + 200 + 50 + 256) * 10
  assert f'{values:,} log-probabilities' in said
  assert 'the rounding of float16 explains 100.0 %: equal up to that rounding.' in said


def test_one_flipped_bit_is_found_wherever_it_is(finished, tmp_path):
  """Also in a view that this config does not ask for, which is the last chunk."""
  run = copied(finished, tmp_path, predictions__num_views=1)
  rng = np.random.default_rng(0)
  chunks = sorted(path for path in tmp_path.rglob('logits/*/c/*/*/*/*') if path.is_file())
  for chunk in (chunks[-1], *rng.choice(chunks, 2)):
    intact = chunk.read_bytes()
    content = bytearray(intact)
    content[rng.integers(len(content))] ^= 1 << rng.integers(8)
    chunk.write_bytes(content)
    with pytest.raises(DamageError, match=str(chunk)):
      verification.verify(run)
    chunk.write_bytes(intact)


def test_one_value_that_was_changed_with_a_valid_checksum_is_found(finished, tmp_path):
  """It is changed by one unit in the last place of float16."""
  run = copied(finished, tmp_path)
  spec = {'driver': 'zarr3', 'kvstore': kvstore(run.folders.predictions / 'logits/distillation')}
  array = ts.open(spec, open=True).result()
  value = array[1, 0, 7, 3].read().result()
  array[1, 0, 7, 3].write(np.nextafter(value, np.float16(0))).result()
  with pytest.raises(
    DamageError, match='member 1 for view 0 of distillation are not those that were'
  ):
    verification.verify(run)


def test_predictions_that_were_wrong_from_the_start_are_found(finished, tmp_path):
  """Changes the prediction of one example, and its digest too."""
  run = copied(finished, tmp_path)
  store = PredictionStore(run.folders.predictions)
  log_probs_NC = store.read('val', [0], 0)[0].copy()
  log_probs_NC[5, 3] += 0.1
  store.write('val', 0, 0, log_probs_NC)
  meta = store.meta
  meta['digests']['val']['0/0'] = store.digest('val', 0, 0)
  store.write_meta(meta)
  with pytest.raises(DamageError, match=r'view 0 of val are not.*1 of 50 examples, as of 5,'):
    verification.verify(run)


def test_the_checkpoint_of_another_teacher_is_found(finished, tmp_path):
  run = copied(finished, tmp_path)
  shutil.rmtree(run.folders.member(0) / 'checkpoints')
  shutil.copytree(run.folders.member(1) / 'checkpoints', run.folders.member(0) / 'checkpoints')
  with pytest.raises(DamageError, match=f'not those of the teacher in {run.folders.member(0)}'):
    verification.verify(run)


def test_drift_between_machines_is_reported_with_its_size(finished, monkeypatch):
  logits, rng = Predictor.logits, np.random.default_rng(0)

  def drifting(self, *arguments):
    logits_NC = logits(self, *arguments)
    return logits_NC + rng.uniform(-1e-4, 1e-4, logits_NC.shape).astype(np.float32)

  monkeypatch.setattr(Predictor, 'logits', drifting)
  said = verification.verify(finished)
  drift = float(said.split('drift of up to ')[1].split(' nats')[0])
  assert 2e-5 < drift < 2e-4  # a log-probability takes up that of all classes


def sample(difference_NX, dtype=np.float32, computed_in='float32') -> Sample:
  fresh_NX = np.full(difference_NX.shape, -1.0)
  return Sample(fresh_NX + difference_NX, fresh_NX, np.dtype(dtype), computed_in)


def test_rounding_explains_half_a_place_and_no_more():
  half = np.finfo(np.float16).eps / 2  # of a value of 1
  found = sample(np.array([[half, 2 * half, -half]]), np.float16).excess_NX
  np.testing.assert_allclose(found, [[0, half / 2, 0]], atol=1e-12)


@pytest.mark.parametrize('computed_in', ['float32', 'bfloat16'])
def test_differences_of_one_size_are_drift_and_others_are_damage(computed_in):
  for place in (0, 0.5, 1):
    size = (3 * NOISE[computed_in]) ** (1 - place) * DRIFT[computed_in] ** place
    noise_NC = np.random.default_rng(0).uniform(-size, size, (256, 10))
    assert len(sample(noise_NC, computed_in=computed_in).outliers) == 0
    assert 'drift' in verification.summary([sample(noise_NC, computed_in=computed_in)])
    noise_NC[17, 2] += 300 * size
    assert list(sample(noise_NC, computed_in=computed_in).outliers) == [17]
  replaced_NC = np.full((256, 10), 3 * DRIFT[computed_in])  # as by another teacher
  assert len(sample(replaced_NC, computed_in=computed_in).outliers) == 256


def test_operations_that_a_compiler_fuses_in_bfloat16_are_drift():
  """Compiled as one program, and operation by operation, each of which rounds."""
  section = {
    'name': 'resnet',
    'depth': 8,
    'width': 8,
    'norm': 'layer',
    'shortcut': 'activated',
    'dtype': 'bfloat16',
  }
  model = models.build(ConfigDict(section), 10)
  variables = models.init(model, jax.random.key(0), (8, 8, 1))
  variables['params']['Dense_0']['kernel'] *= 8  # as sure as a trained one
  images = np.random.default_rng(0).uniform(-1, 1, (64, 8, 8, 1)).astype(np.float32)
  logits = lambda variables: model.apply(variables, images, train=False)[0]
  joined, each = (log_softmax(f(variables), axis=-1) for f in (jax.jit(logits), logits))
  found = Sample(np.asarray(joined), np.asarray(each), np.dtype(np.float16), 'bfloat16')
  assert found.difference_NX.max() > 1e-3
  assert len(found.outliers) == 0
