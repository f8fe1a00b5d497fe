"""XLA flags that make programs deterministic and fast, set before JAX is imported.

XLA reads XLA_FLAGS once, so this module must not import JAX. A flag in the user's XLA_FLAGS keeps its value.
docs/performance.md has the measurements; `tests/test_compiler.py` checks results under these flags.
"""

import os
from collections.abc import MutableMapping, Sequence

from jaxlib.version import __version_info__ as JAXLIB_VERSION

DETERMINISTIC = ('--xla_gpu_deterministic_ops=true',)  # equal configs give equal bits on a GPU too

# oneDNN computes convolutions and matrix products; it is faster on CPUs from this version of jaxlib on.
ONEDNN_SINCE = (0, 12)
ONEDNN = (
  '--xla_cpu_experimental_onednn_custom_call=true',
  '--xla_cpu_experimental_ynn_fusion_type=-individual_convolution',
)

# A small network spends most of its time on launching kernels, so XLA runs a whole step as one CUDA graph.
GRAPHS = (
  '--xla_gpu_enable_command_buffer=+CONVOLUTION,+WHILE,+CONDITIONAL',
  '--xla_gpu_command_buffer_scheduling_mode=CONCURRENT',
)
CACHE = 'JAX_COMPILATION_CACHE_DIR'


def recommended(version: Sequence[int] = JAXLIB_VERSION, cached: bool = False) -> tuple[str, ...]:
  """The flags for a version of jaxlib. Each concerns one platform and does nothing on the others.

  Args:
    version: (major, minor, ...) of jaxlib. jaxlib ends the process at a flag that it does not know.
    cached: whether a compilation cache is in use. Flags whose programs cannot be cached are then left out:
      loading CUDA graphs with convolutions fails ("No DNN support for stream"), and so does writing programs
      that call oneDNN (jaxlib 0.12: "std::bad_alloc").
  """
  if cached:
    return DETERMINISTIC
  onednn = ONEDNN if tuple(version) >= ONEDNN_SINCE else ()
  return (*DETERMINISTIC, *onednn, *GRAPHS)


def set_flags(environ: MutableMapping[str, str] = os.environ) -> None:
  """Adds the recommended flags that XLA_FLAGS does not name. Call it before JAX is imported."""
  given = environ.get('XLA_FLAGS', '').split()
  named = {flag.partition('=')[0] for flag in given}
  flags = recommended(cached=bool(environ.get(CACHE)))
  added = [flag for flag in flags if flag.partition('=')[0] not in named]
  environ['XLA_FLAGS'] = ' '.join([*given, *added])
