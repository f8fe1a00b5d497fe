"""Items of an iterator, made ahead in a thread while the devices work."""

import collections
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

T = TypeVar('T')

_END = object()


def ahead(items: Iterator[T], count: int) -> Iterator[T]:
  """Yields the same items in the same order; up to `count` are made before they are needed.

  One thread makes all of them, one after the other. An error of an item is raised when its turn comes.
  """
  thread = ThreadPoolExecutor(1, 'prefetch')
  make = lambda: thread.submit(next, items, _END)
  try:
    waiting = collections.deque(make() for _ in range(count))
    while (item := waiting.popleft().result()) is not _END:
      waiting.append(make())
      yield item
  finally:
    thread.shutdown(cancel_futures=True)
