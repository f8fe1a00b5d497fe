"""The environment in which an artefact was made, for the file environment.json beside it."""

import datetime
import functools
import importlib.metadata
import os
import pathlib
import platform
import shlex
import shutil
import subprocess
import sys
from typing import Any

import jax

from kdjax import __version__

PACKAGES = ('jax', 'jaxlib', 'flax', 'optax', 'orbax-checkpoint', 'numpy', 'tensorstore')


def describe() -> dict[str, Any]:
  """The content of environment.json: versions, devices, compiler flags, command and date (UTC)."""
  devices = jax.devices()
  return {
    'kdjax': __version__,
    **_commit(),
    'python': platform.python_version(),
    'packages': {name: importlib.metadata.version(name) for name in PACKAGES},
    'devices': {
      'platform': devices[0].platform,
      'kind': devices[0].device_kind,
      'number': len(devices),
    },
    'hosts': jax.process_count(),
    'processor': _processor(),
    'xla_flags': os.environ.get('XLA_FLAGS', ''),
    'command': shlex.join([pathlib.Path(sys.argv[0]).name, *sys.argv[1:]]),
    'date': datetime.datetime.now(datetime.UTC).isoformat(timespec='seconds'),
  }


@functools.cache
def _commit() -> dict[str, Any]:
  """'commit' of the clone that kdjax runs from, and 'dirty': whether its files differ; None if unknown."""
  root = pathlib.Path(__file__).parents[2]
  if (root / '.git').exists() and shutil.which('git'):
    head, status = (
      subprocess.run(['git', '-C', str(root), *command], capture_output=True, text=True)
      for command in (['rev-parse', 'HEAD'], ['status', '--porcelain'])
    )
    if not (head.returncode or status.returncode):  # git refuses a clone of another user
      return {'commit': head.stdout.strip(), 'dirty': bool(status.stdout.strip())}
  return {'commit': None, 'dirty': None}


def _processor() -> str:
  """The processor's name, 'AMD EPYC 7R13 Processor' for example."""
  cpuinfo = pathlib.Path('/proc/cpuinfo')
  if cpuinfo.exists():
    for line in cpuinfo.read_text().splitlines():
      if line.startswith('model name'):
        return line.partition(':')[2].strip()
  return platform.processor() or platform.machine()
