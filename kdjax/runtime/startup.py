"""What programs set before they import JAX: XLA's flags, and how the C library keeps memory.

`launch.py`, `python -m analysis`, sweeps of the paper and the benchmarks call `prepare`. Importing `kdjax` in
another program sets XLA's flags alone.
"""

import ctypes
import os
import re
import sys
from collections.abc import Mapping

from kdjax.runtime import xla_flags

# Names and values of glibc's `mallopt`. With several arenas, a thread of XLA takes a large buffer by `mmap`
# whatever the other two say.
ONE_ARENA = (-8, 1)  # M_ARENA_MAX
NO_MMAP = (-4, 0)  # M_MMAP_MAX
NO_TRIM = (-1, -1)  # M_TRIM_THRESHOLD
BY_THE_USER = re.compile(
  r'(MALLOC_|glibc\.malloc\.)(arena_max|mmap_max|mmap_threshold|trim_threshold)', re.IGNORECASE
)


def prepare() -> None:
  """Sets XLA's flags and keeps freed memory. Call it before JAX is imported."""
  xla_flags.set_flags()
  keep_freed_memory()


def keep_freed_memory(environ: Mapping[str, str] = os.environ) -> bool:
  """Makes glibc keep the memory that is freed, and returns whether it does.

  On a CPU, XLA allocates the buffers of each step and frees them after it. By default glibc gives large buffers
  back to the kernel, which clears every page when it hands it out again: a fifth of the time of a step of a
  ResNet-20 (`python -m tests.benchmarks.allocator`). Kept memory needs no clearing. The process keeps the
  most memory that it ever needed.

  Does nothing without glibc, or if the user sets one of these values in MALLOC_... or GLIBC_TUNABLES:
  MALLOC_ARENA_MAX=0 leaves all as it is.
  """
  if not sys.platform.startswith('linux') or _is_set(environ):
    return False
  libc = ctypes.CDLL(None)
  if not hasattr(libc, 'gnu_get_libc_version'):
    return False
  accepted = [libc.mallopt(name, value) for name, value in (ONE_ARENA, NO_MMAP, NO_TRIM)]
  return all(accepted)


def _is_set(environ: Mapping[str, str]) -> bool:
  return any(BY_THE_USER.search(f'{name}={value}') for name, value in environ.items())
