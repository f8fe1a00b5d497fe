import threading

import pytest

from kdjax.train import devices


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
