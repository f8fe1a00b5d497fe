"""What programs set before they import JAX."""

import ast
import pathlib
import platform
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[1]
PREPARE = 'startup.prepare()'
NUM_BYTES, PAGE = 200 * 2**20, 4096

# A thread allocates, writes and frees a large buffer, as XLA does in each step, and does so again.
PROGRAM = f"""
import ctypes, resource, sys, threading
from kdjax.runtime import startup
kept = startup.keep_freed_memory()
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.malloc.argtypes, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_size_t], [ctypes.c_void_p]
def use():
  buffer = libc.malloc({NUM_BYTES})
  ctypes.memset(buffer, 1, {NUM_BYTES})
  libc.free(buffer)
def twice():
  use()
  before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
  use()
  print(kept, resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
thread = threading.Thread(target=twice)
thread.start()
thread.join()
"""

needs_glibc = pytest.mark.skipif(
  platform.libc_ver()[0] != 'glibc', reason='kept memory is a setting of glibc'
)


def page_faults(**variables) -> tuple[bool, int]:
  """Whether freed memory is kept, and the page faults of a second use of NUM_BYTES."""
  done = subprocess.run(
    [sys.executable, '-c', PROGRAM],
    env={'PYTHONPATH': str(ROOT)} | variables,
    capture_output=True,
    text=True,
    check=True,
  )
  kept, faults = done.stdout.split()
  return kept == 'True', int(faults)


@needs_glibc
def test_a_buffer_that_was_freed_is_used_again_without_page_faults():
  kept, faults = page_faults()
  assert kept
  assert faults < 100


@needs_glibc
@pytest.mark.parametrize(
  'variables',
  [
    {'MALLOC_ARENA_MAX': '0'},
    {'MALLOC_TRIM_THRESHOLD_': '131072'},
    {'GLIBC_TUNABLES': 'glibc.malloc.mmap_max=65536'},
  ],
  ids=lambda variables: '='.join(*variables.items()),
)
def test_what_the_user_sets_stays(variables):
  kept, faults = page_faults(**variables)
  assert not kept
  assert faults > 0.9 * NUM_BYTES / PAGE


@needs_glibc
def test_huge_pages_of_the_user_are_no_hindrance():
  kept, _ = page_faults(GLIBC_TUNABLES='glibc.malloc.hugetlb=1')
  assert kept


@pytest.mark.parametrize(
  'program', ['analysis/__main__.py', 'analysis/contrast.py', 'configs/paper/in_order.py']
)
def test_programs_are_prepared_before_they_import_jax(program):
  body = ast.parse((ROOT / program).read_text()).body
  texts = [ast.unparse(statement) for statement in body]
  before = [text for text in texts[: texts.index(PREPARE)] if 'import' in text]
  assert not any('jax' in text for text in before if 'import startup' not in text)
