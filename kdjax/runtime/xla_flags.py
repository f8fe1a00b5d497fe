"""XLA flags that make programs deterministic and fast, set before JAX is imported.

This module imports no JAX: XLA reads XLA_FLAGS once. A flag that the user's XLA_FLAGS names stays as the user
set it. `docs` and `tests/benchmarks` have the measurements, `tests/test_compiler.py` checks the results
under these flags.
"""

import os
from collections.abc import MutableMapping, Sequence

from jaxlib.version import __version_info__ as JAXLIB_VERSION

DETERMINISTIC = ('--xla_gpu_deterministic_ops=true',)  # equal configs give equal bits on a GPU too

# oneDNN computes convolutions and products. It is faster on CPUs from this version on.
ONEDNN_SINCE = (0, 12)
ONEDNN = (
  '--xla_cpu_experimental_onednn_custom_call=true',
  '--xla_cpu_experimental_ynn_fusion_type=-individual_convolution',
)

# Small networks are bound by launching kernels: XLA runs whole steps as one CUDA graph.
GRAPHS = (
  '--xla_gpu_enable_command_buffer=+CONVOLUTION,+WHILE,+CONDITIONAL',
  '--xla_gpu_command_buffer_scheduling_mode=CONCURRENT',
)
CACHE = 'JAX_COMPILATION_CACHE_DIR'


def recommended(version: Sequence[int] = JAXLIB_VERSION, cached: bool = False) -> tuple[str, ...]:
  """The flags for a version of jaxlib. Each concerns one platform and does nothing on the others.

  Args:
    version: (major, minor, ...) of jaxlib, which ends the process at a flag that it does not know.
    cached: whether programs come from a compilation cache. Graphs with convolutions that are loaded from
      one fail on a GPU ("No DNN support for stream"), so that they are left out then.
  """
  graphs = () if cached else GRAPHS
  onednn = ONEDNN if tuple(version) >= ONEDNN_SINCE else ()
  return (*DETERMINISTIC, *onednn, *graphs)


def set_flags(environ: MutableMapping[str, str] = os.environ) -> None:
  """Adds the recommended flags that XLA_FLAGS does not name. Call it before JAX is imported."""
  given = environ.get('XLA_FLAGS', '').split()
  named = {flag.partition('=')[0] for flag in given}
  flags = recommended(cached=bool(environ.get(CACHE)))
  added = [flag for flag in flags if flag.partition('=')[0] not in named]
  environ['XLA_FLAGS'] = ' '.join([*given, *added])
