"""That the benchmarks still run. What they measure is not for a test: machines are noisy."""

import importlib

from analysis import runs


def test_the_benchmarks_run(monkeypatch):
  benchmarks = importlib.import_module('tests.benchmarks.__main__')
  monkeypatch.setattr(benchmarks, 'NUM_STEPS', {'lenet': 4})
  monkeypatch.setattr(benchmarks, 'NUM_EXAMPLES', 256)
  monkeypatch.setattr(benchmarks, 'REPEATS', 1)
  name, speed, ratio = benchmarks.loop_overhead('lenet', 20)
  assert name == 'lenet'
  assert float(speed.replace(',', '')) > 0
  assert float(ratio) > 0
  written, read, size = benchmarks.store_throughput()
  assert written > 0
  assert read > 0
  assert 100 < size <= 200  # 100 classes in float16, compressed


def test_the_benchmark_of_planes_runs(finished, monkeypatch):
  planes = importlib.import_module('tests.benchmarks.planes')
  monkeypatch.setattr(planes, 'REPEATS', 1)
  monkeypatch.setattr(planes, 'RESOLUTION', 2)
  monkeypatch.setattr(planes, 'NUM_EXAMPLES', 16)
  assert planes.plane_overhead(runs.load(finished.workdir)) > 0
