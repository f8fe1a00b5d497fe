"""Steps mapped by `jax.pmap` and by `jax.jit` of `jax.shard_map`, and their inputs, which are made ahead."""

import threading
from functools import partial

import gan_on_devices
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import steps_on_devices
from conftest import compilations
from ml_collections import ConfigDict

from kdjax import losses
from kdjax.data import views
from kdjax.errors import ConfigError, UserError
from kdjax.gan import steps as gan_steps
from kdjax.train import devices, optimizers, steps
from tests import launched


@pytest.fixture(scope='module')
def on_devices(tmp_path_factory):
  out = tmp_path_factory.mktemp('devices') / 'out.npz'
  return {count: launched.saved_on_devices(steps_on_devices, count, out) for count in (1, 2, 8)}


@pytest.mark.parametrize('count', [2, 8])
def test_many_devices_give_what_one_gives_and_all_maps_the_same_bits(on_devices, count):
  """Losses, gradients, BatchNorm statistics, momentum and predictions, after mixed steps."""
  one, many = on_devices[1], on_devices[count]
  assert len(one) > 30 and len(many) == 2 * len(one)
  for name, expected in one.items():
    key = name.removeprefix('pmap/')
    np.testing.assert_array_equal(many[f'shard_map/{key}'], many[name], err_msg=key)
    if key != 'dropout_masks':  # which each device draws for itself
      np.testing.assert_allclose(many[name], expected, rtol=2e-5, atol=5e-6, err_msg=key)


@pytest.mark.parametrize('count', [1, 8])
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


def mapped(several=False, donate=True, section=(), names=('flip',), classes=4, final=1.0):
  """A step of a student, made of new parts."""
  step = partial(
    steps.student_step,
    model=steps_on_devices.Network(classes),
    optimizer=optimizers.make_optimizer(ConfigDict(SECTION | dict(section)), 10),
    view=views.make_view(list(names), ConfigDict({'noise_probability': 0.3})),
    loss=losses.LOSSES['cross_entropy'],
    temperature=partial(losses.temperature_at, num_steps=4, start=4.0, final=final),
    alpha=0.3,
  )
  step = partial(steps.multi_step, step=step) if several else step
  return devices.parallel(step, num_sharded=2, donate=donate)


SECTION = steps_on_devices.SECTION.to_dict()


def test_equal_steps_are_mapped_once():
  """They share the compiled program. Fields that no step reads, such as the number of epochs, make no other step."""
  assert mapped() is mapped(section={'num_epochs': 3})
  assert mapped(several=True) is mapped(several=True)
  other = [
    mapped(several=True),
    mapped(donate=False),
    mapped(section={'learning_rate': 0.2}),
    mapped(names=('flip', 'noise')),
    mapped(classes=5),
    mapped(final=2.0),
  ]
  assert len({mapped(), *other}) == 1 + len(other)
  ones, others = np.ones(2), np.ones(2)
  first, again, other = (devices.parallel(partial(counted, x=x)) for x in (ones, ones, others))
  assert first is again is not other


def test_equal_sections_give_the_same_gan():
  sections = [gan_on_devices.section() for _ in range(3)]
  sections[2].learning_rate = 2e-3
  one, same, other = (gan_steps.make_gan(section, (8, 8, 1)) for section in sections)
  assert one is same and one != other


def test_another_map_is_refused(monkeypatch):
  monkeypatch.setattr(devices, 'MAP', 'vmap')
  with pytest.raises(ConfigError, match="KDJAX_MAP = 'vmap': allowed: pmap, shard_map"):
    devices.parallel(counted)


def test_shard_and_unshard_are_inverse():
  x = jnp.arange(24.0).reshape(8, 3)
  np.testing.assert_array_equal(devices.unshard(devices.shard(x)), x)


# Making items ahead.


def test_a_batch_that_cannot_be_split_is_an_error(monkeypatch):
  monkeypatch.setattr(jax, 'local_device_count', lambda: 3)
  assert devices.shard(np.zeros((6, 2))).shape == (3, 2, 2)
  with pytest.raises(UserError, match='64 examples cannot be split over 3 devices'):
    devices.shard({'images': np.zeros((64, 2))})


def test_items_come_in_order_and_are_made_ahead_in_one_thread():
  made, threads = [], set()
  third = threading.Event()

  def items():
    for i in range(5):
      made.append(i)
      threads.add(threading.current_thread())
      if i == 2:
        third.set()
      yield i

  found = devices.ahead(items(), 2)
  assert next(found) == 0
  assert third.wait(10)  # nobody asked for it
  assert made == [0, 1, 2]
  assert list(found) == made[1:] == [1, 2, 3, 4]
  assert len(threads) == 1
  assert threading.main_thread() not in threads


def test_an_error_is_raised_in_its_turn():
  def items():
    yield 0
    yield 1
    raise ValueError('the third')

  found = devices.ahead(items(), 5)
  assert [next(found), next(found)] == [0, 1]
  with pytest.raises(ValueError, match='the third'):
    next(found)


def test_it_ends_with_its_consumer():
  made = []
  found = devices.ahead((made.append(i) for i in range(1000)), 3)
  next(found)
  found.close()
  assert 1 <= len(made) <= 4
  assert not [t for t in threading.enumerate() if t.name.startswith('ahead')]
