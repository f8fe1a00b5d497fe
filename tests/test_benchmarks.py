"""That the benchmarks still run. What they measure is not for a test: machines are noisy."""

import importlib


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
