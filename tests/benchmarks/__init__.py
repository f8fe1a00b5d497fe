"""Benchmarks, run as programs: `python -m tests.benchmarks.NAME`. They start as launch.py does."""

from kdjax.runtime import startup

startup.prepare()
