"""The one place that maps: by `jax.pmap`, and by `jax.jit` of `jax.shard_map`."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import steps_on_devices
from conftest import compilations

from kdjax.errors import ConfigError
from kdjax.train import devices
from tests import launched


@pytest.fixture(scope='module')
def on_devices(tmp_path_factory):
  out = tmp_path_factory.mktemp('devices') / 'out.npz'
  return {count: launched.saved_on_devices(steps_on_devices, count, out) for count in (1, 2, 8)}


@pytest.mark.parametrize('count', [2, 8])
def test_many_devices_give_what_one_gives(on_devices, count):
  """Losses, gradients, BatchNorm statistics, momentum and predictions, after mixed steps."""
  assert len(on_devices[1]) > 60
  for name, expected in on_devices[1].items():
    if not name.endswith('dropout_masks'):  # which each device draws for itself
      np.testing.assert_allclose(
        on_devices[count][name], expected, rtol=2e-5, atol=1e-6, err_msg=name
      )


@pytest.mark.parametrize('count', [1, 2, 8])
def test_all_maps_give_the_same_bits(on_devices, count):
  found = {name.partition('/')[0]: {} for name in on_devices[count]}
  for name, value in on_devices[count].items():
    of_map, _, key = name.partition('/')
    found[of_map][key] = value
  assert list(found) == ['pmap', 'shard_map']
  jax.tree.map(np.testing.assert_array_equal, found['shard_map'], found['pmap'])


@pytest.mark.parametrize('count', [1, 2, 8])
def test_dropout_draws_by_seed_step_and_device(on_devices, count):
  masks = on_devices[count]['pmap/dropout_masks']
  np.testing.assert_allclose(masks * (masks - 2), 0, atol=1e-4)  # 0, or 2 for what is kept
  kept = masks.round() > 0
  assert 0.35 < kept.mean() < 0.65
  # One step, another, another seed, and then the first again.
  *different, again = kept
  assert len(np.unique(np.concatenate(different), axis=0)) == 3 * count
  np.testing.assert_array_equal(again, different[0])


def counted(total, batch, seed):
  """The total, and what a batch and a seed add to it."""
  added = jax.lax.psum(batch['x'].sum(), devices.AXIS_NAME) + seed
  return {'sum': total['sum'] + added}, added


BATCH = {'x': np.arange(6, dtype=np.float32)}


@pytest.mark.parametrize('name', devices.MAPS)
def test_a_step_compiles_once_and_its_state_is_donated(monkeypatch, name):
  monkeypatch.setattr(devices, 'MAP', name)
  step = devices.parallel(counted, donate=True)
  first = total = devices.replicate({'sum': np.float32(1)})
  with compilations() as count:
    for seed in range(4):
      total, added = step(total, devices.shard(BATCH), seed)
  assert count() == 1
  assert (float(total['sum']), float(added)) == (1 + 4 * 15 + 0 + 1 + 2 + 3, 15 + 3)
  assert first['sum'].is_deleted()


def test_another_map_is_refused(monkeypatch):
  monkeypatch.setattr(devices, 'MAP', 'vmap')
  with pytest.raises(ConfigError, match="KDJAX_MAP = 'vmap': allowed: pmap, shard_map"):
    devices.parallel(counted)


def test_shard_and_unshard_are_inverse():
  x = jnp.arange(24.0).reshape(8, 3)
  np.testing.assert_array_equal(devices.unshard(devices.shard(x)), x)
