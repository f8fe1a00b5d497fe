"""How time and memory grow with examples, members, views and the size of the model.

    python -m tests.benchmarks.growth [FIGURE.png]

Each point is a run of its own in a process of its own, so that its peak memory is its own.
"""

import dataclasses
import json
import pathlib
import sys
import tempfile
from functools import partial

import jax
from etils import epath
from matplotlib import ticker
from rich.table import Table

from kdjax.report import figures
from kdjax.runtime import progress
from kdjax.stages import predictions, student, teachers
from tests.benchmarks import loop, synthetic, timing

BASE = {'num_examples': 4096, 'num_members': 2, 'num_views': 2, 'width': 8}
SWEPT = {
  'num_examples': (4096, 8192, 16384, 32768),
  'num_members': (1, 2, 4, 8),
  'num_views': (1, 2, 4, 8),
  'width': (4, 8, 16, 32),
}
LABELS = {
  'num_examples': 'examples N',
  'num_members': 'members m',
  'num_views': 'views',
  'width': 'parameters',
}
MODEL, NUM_STEPS = 'resnet', 30  # of the student


@dataclasses.dataclass(frozen=True)
class Point:
  """The cost of one run. Times leave out what is paid once, such as compiling."""

  num_examples: int
  num_members: int
  num_views: int
  width: int
  num_parameters: int
  predictions_seconds: float
  student_seconds: float  # for an epoch
  store_bytes: int
  peak_bytes: int  # of the process: data, program and all


def measure(num_examples: int, num_members: int, num_views: int, width: int) -> Point:
  """Stores predictions and distils for some steps, in this process: MODEL on random images."""
  with tempfile.TemporaryDirectory() as temporary:
    config = synthetic.config_of(
      MODEL,
      depth=8,
      model__width=width,
      teacher__num_members=num_members,
      teacher__batch_size=loop.BATCH,
      predictions__num_views=num_views,
      student__batch_size=loop.BATCH,
      evaluation__batch_size=loop.PREDICTED,
      training__num_logs=2,  # the first has the compiling in it
      training__num_evals=1,
      training__num_checkpoints=1,
      student__keep_checkpoints=(),
    )
    for section, num_steps in ((config.teacher, 1), (config.student, NUM_STEPS)):
      section.num_epochs, section.num_steps = None, num_steps
    run = synthetic.run_of(config, epath.Path(temporary), num_examples)
    teachers.STAGE.run(run)
    variables = teachers.load(run, 0)
    run.predictor.logits(run.teacher.model, variables, run.data.inputs['distillation'])  # compiles
    run.predictor.logits(run.teacher.model, variables, run.data.inputs['test'])
    took = timing.seconds(partial(predictions.STAGE.run, run))
    student.STAGE.run(run)
    rows = (run.folders.student / 'metrics.jsonl').read_text().splitlines()
    store = pathlib.Path(run.folders.predictions)
    return Point(
      num_examples,
      num_members,
      num_views,
      width,
      num_parameters=sum(x.size for x in jax.tree.leaves(variables['params'])),
      predictions_seconds=took,
      student_seconds=num_examples / json.loads(rows[-1])['examples_per_second'],
      store_bytes=sum(p.stat().st_size for p in store.rglob('*') if p.is_file()),
      peak_bytes=timing.peak_bytes(),
    )


def measure_all() -> dict[str, list[Point]]:
  """Points by what is changed; all else stays as in `BASE`."""
  known: dict[str, Point] = {}
  num_points = sum(map(len, SWEPT.values()))
  swept: dict[str, list[Point]] = {name: [] for name in SWEPT}
  with progress.bar('growth', num_points, 'runs') as show:
    for name, values in SWEPT.items():
      for value in values:
        sizes = BASE | {name: value}
        if (key := json.dumps(sizes)) not in known:
          known[key] = timing.alone(partial(measure, **sizes))
        swept[name].append(known[key])
        show(sum(map(len, swept.values())), f'{name} = {value}')
  return swept


def _changed(name: str, point: Point) -> int:
  return point.num_parameters if name == 'width' else getattr(point, name)


def table(swept: dict[str, list[Point]]) -> Table:
  result = Table(title=f'Growth on {jax.device_count()} x {jax.devices()[0].device_kind}')
  headings = ('', 'predictions, s', 'student, s an epoch', 'store, MB', 'peak memory, MB')
  for heading in headings:
    result.add_column(heading, justify='right')
  for name, points in swept.items():
    for point in points:
      result.add_row(
        f'{LABELS[name]} = {_changed(name, point):,}',
        f'{point.predictions_seconds:.1f}',
        f'{point.student_seconds:.1f}',
        f'{point.store_bytes / 1e6:.2f}',
        f'{point.peak_bytes / 1e6:.0f}',
      )
    result.add_section()
  return result


def _short(value: int) -> str:
  return f'{value / 1000:.0f}k' if value >= 1000 else str(value)


def draw(swept: dict[str, list[Point]], path: pathlib.Path) -> None:
  """Time above and memory below, against each of the four sizes on logarithmic axes."""
  curves = (
    ('predictions', 'predictions_seconds', 1, 0, 'teacher', '-'),
    ('an epoch of the student', 'student_seconds', 1, 0, 'student', '-'),
    ('peak of the process', 'peak_bytes', 1e6, 1, 'ink', '-'),
    ('store', 'store_bytes', 1e6, 1, 'teacher', '--'),
  )
  with figures.style('growth'):
    figure = figures.blank((10.0, 4.8))
    axes = figure.subplots(2, len(swept), sharex='col', sharey='row')
    for column, (name, points) in enumerate(swept.items()):
      values = [_changed(name, point) for point in points]
      for label, field, scale, row, color, line in curves:
        heights = [getattr(point, field) / scale for point in points]
        axis = axes[row, column]
        axis.loglog(values, heights, line, marker='o', label=label, color=figures.COLORS[color])
      axes[1, column].set_xlabel(LABELS[name])
      axes[1, column].set_xticks(values, [_short(value) for value in values], minor=False)
      axes[1, column].tick_params(axis='x', which='minor', labelbottom=False)
    for row, label in enumerate(('time (s)', 'memory (MB)')):
      axes[row, 0].set_ylabel(label)
      axes[row, 0].yaxis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5) if row == 0 else (1,)))
      axes[row, 0].yaxis.set_major_formatter('{x:g}')
      axes[row, 0].yaxis.set_minor_formatter(ticker.NullFormatter())
      axes[row, 0].legend(fontsize='small')
    figure.savefig(path, dpi=150, facecolor='white')


def main() -> None:
  path = pathlib.Path(sys.argv[1] if len(sys.argv) > 1 else 'growth.png')
  swept = measure_all()
  progress.console.print(table(swept))
  draw(swept, path)
  progress.console.print(f'figure: {path}')


if __name__ == '__main__':
  main()
