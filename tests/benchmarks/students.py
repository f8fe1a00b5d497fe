"""Several students at once on one device: python -m tests.benchmarks.students [MODEL ...]

Small models leave a GPU idle between kernels. Students of one ensemble that differ in their initial weights
and temperatures see the same view and the same stored predictions, so that they may share a program:

    loop       a call for each student, one after the other: what a sweep does
    unrolled   one call, in which the students stand side by side; concurrent graphs may run them at once
    lax.map    one call, in which a loop on the device goes from student to student
    vmap       one call, in which each array has an axis of students; convolutions become grouped ones

All take the same steps (`steps.student_step`) on one resident batch. A call may hold several steps, as
`training.steps_per_dispatch` has it.
"""

import argparse
import dataclasses
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import jax
import numpy as np
from rich.table import Table

from kdjax import losses, models
from kdjax.data import views
from kdjax.runtime import progress
from kdjax.train import devices, optimizers, steps
from tests.benchmarks import synthetic, timing

WAYS = ('loop', 'unrolled', 'lax.map', 'vmap')
MODELS = {'LeNet-5': ('lenet', 20), 'ResNet-8': ('resnet', 8), 'ResNet-20': ('resnet', 20)}
CLASSES = 10
TEMPERATURES = (1.0, 16.0)  # of the first student and of the last


@dataclasses.dataclass(frozen=True)
class Settings:
  num_students: int = 5
  per_call: int = 1  # steps of each student in a call
  num_steps: int = 40  # of each student, in each time that is taken
  batch_size: int = 128
  dtype: str = 'float32'
  width: int = 16  # of a ResNet


# Each student's state and temperature: a list, or for STACKED ways one tree with an axis of students.
Students = Any
STACKED = ('lax.map', 'vmap')


@dataclasses.dataclass(frozen=True)
class Row:
  model: str
  way: str
  settings: Settings
  images_per_second: float  # that all students see together
  ratio: float  # of the first way's time to this one's, the median over the repeats


def measure(
  name: str, settings: Settings, ways: tuple[str, ...] = WAYS, repeats: int = timing.REPEATS
) -> Iterator[Row]:
  """A row for each way, as soon as it was timed in turn with the first of them."""
  first, *_ = ways
  of_first = work(name, settings, first)
  num_images = settings.num_students * settings.num_steps * settings.batch_size
  for way in ways:
    of_way = of_first if way == first else work(name, settings, way)
    times = timing.in_turn({first: of_first, way: of_way}, repeats)
    speed = num_images / float(np.median(times[way]))
    yield Row(name, way, settings, speed, timing.ratio(times, first, way))


def work(name: str, settings: Settings, way: str) -> Callable[[], Students]:
  """A function that trains new students for `num_steps` in one of WAYS, and returns them."""
  config = synthetic.config_of(MODELS[name][0], MODELS[name][1], model__dtype=settings.dtype)
  config.model.width = settings.width
  model = models.build(config.model, CLASSES)
  optimizer = optimizers.make_optimizer(config.student, settings.num_steps, 0)
  view = views.make_view(config.predictions.augmentation, config.augmentation)
  step = partial(_student_step, model=model, optimizer=optimizer, view=view)
  if way != 'loop':
    step = partial({'unrolled': _unrolled, 'lax.map': _mapped, 'vmap': _vmapped}[way], step=step)
  if settings.per_call > 1:  # all students take a step before the next
    step = partial(steps.multi_step, step=step)
  call = devices.parallel(step, num_sharded=2, donate=True)
  temperatures = np.geomspace(*TEMPERATURES, settings.num_students, dtype=np.float32)
  start = [
    (steps.init_state(models.init(model, jax.random.key(i), (32, 32, 3)), optimizer), temperature)
    for i, temperature in enumerate(temperatures)
  ]
  if way in STACKED:
    start = jax.tree.map(lambda *x: np.stack(x), *start)
  resident = jax.device_put(_resident(settings))

  def train() -> Students:
    students = devices.replicate(start)
    for _ in range(settings.num_steps // settings.per_call):
      if way == 'loop':
        students = [call(student, *resident, 0)[0] for student in students]
      else:
        students, _ = call(students, *resident, 0)
    return jax.block_until_ready(students)

  return train


def _student_step(
  student: tuple[steps.State, jax.Array],
  batch,
  teacher_log_probs_BC,
  seed,
  *,
  model,
  optimizer,
  view,
) -> tuple[tuple[steps.State, jax.Array], steps.Metrics]:
  """`steps.student_step` at a temperature that is an argument."""
  state, temperature = student
  state, metrics = steps.student_step(
    state,
    batch,
    teacher_log_probs_BC,
    seed,
    model=model,
    optimizer=optimizer,
    view=view,
    loss=losses.LOSSES['cross_entropy'],
    temperature=lambda _: temperature,
    alpha=0.0,
  )
  return (state, temperature), metrics


def _unrolled(students: list, *arguments: Any, step: Callable) -> tuple[list, list]:
  return tuple(map(list, zip(*[step(student, *arguments) for student in students], strict=True)))


def _mapped(students: Any, *arguments: Any, step: Callable) -> tuple[Any, Any]:
  return jax.lax.map(lambda student: step(student, *arguments), students)


def _vmapped(students: Any, *arguments: Any, step: Callable) -> tuple[Any, Any]:
  return jax.vmap(lambda student: step(student, *arguments))(students)


def _resident(settings: Settings) -> tuple[dict[str, np.ndarray], np.ndarray]:
  """A batch and its stored predictions, as many times as a call has steps."""
  logits_BC = np.random.RandomState(1).normal(size=(settings.batch_size, CLASSES))
  log_probs_BC = np.asarray(jax.nn.log_softmax(logits_BC.astype(np.float32)))
  found = devices.shard((synthetic.batch(settings.batch_size), log_probs_BC))
  return found if settings.per_call == 1 else devices.stack([found] * settings.per_call)


def main() -> None:
  parser = argparse.ArgumentParser(prog='python -m tests.benchmarks.students')
  parser.add_argument('models', nargs='*', help=f'of {", ".join(MODELS)}; by default all')
  parser.add_argument('--ways', nargs='+', choices=WAYS, default=WAYS)
  parser.add_argument('--repeats', type=int, default=timing.REPEATS)
  for field in dataclasses.fields(Settings):
    parser.add_argument(f'--{field.name}', type=field.type, default=field.default)
  given = vars(parser.parse_args())
  names, ways, repeats = (given.pop(key) for key in ('models', 'ways', 'repeats'))
  if unknown := sorted(set(names) - set(MODELS)):
    parser.error(f'unknown models {unknown}; allowed: {list(MODELS)}')
  settings = Settings(**given)
  if settings.num_steps % settings.per_call:
    parser.error(f'--num_steps = {settings.num_steps}: allowed: a multiple of --per_call')
  progress.setup_logging()
  table = Table(title=f'{settings.num_students} students on {jax.devices()[0].device_kind}')
  for heading in ('model', 'way', 'images/s', f'time of {ways[0]} / this'):
    table.add_column(heading, justify='left' if heading in ('model', 'way') else 'right')
  for name in names or MODELS:
    for row in measure(name, settings, tuple(ways), repeats):
      table.add_row(row.model, row.way, f'{row.images_per_second:,.0f}', f'{row.ratio:.2f}')
  progress.console.print(table)


if __name__ == '__main__':
  main()
