"""Benchmarks, run as programs: `python -m tests.benchmarks.NAME`. They run under the flags of launch.py."""

from kdjax.runtime import xla_flags

xla_flags.set_flags()
