"""The cost of the stages over the bare step, or forward pass, of the same model on resident data.

Bare is what there is no training without: forward, backward and the optimizer's update, on inputs that lie
on the device as the model takes them. Views, metrics, the order of the data, the store, logs and checkpoints
are the stages' own.
"""

import dataclasses
import functools
import itertools
import tempfile
from collections.abc import Iterator
from functools import partial

import jax
import numpy as np
import optax
from etils import epath

from analysis import runs
from kdjax import losses
from kdjax.data import views
from kdjax.stages import predictions, student, teachers
from kdjax.stages.experiment import Experiment
from kdjax.stages.role import Role
from kdjax.train import devices, steps
from kdjax.train.inputs import Inputs
from tests.benchmarks import planes, synthetic, timing

BATCH, NUM_MEMBERS = 128, 5
PREDICTED = 512  # examples in a batch of the prediction stage
NUM_TEST = 16
ANALYSED = 128  # examples at each point of a plane


@dataclasses.dataclass(frozen=True)
class Size:
  model: str
  depth: int
  steps_on_cpu: int  # of a training; long enough for what it pays once, a third of a second
  steps_elsewhere: int  # there between two logs must be calls of several steps
  num_points: int  # in a row of a plane
  num_examples: int  # of the training set

  @property
  def num_steps(self) -> int:
    return self.steps_on_cpu if jax.default_backend() == 'cpu' else self.steps_elsewhere


SIZES = {
  'LeNet-5': Size('lenet', 20, 3200, 2000, 64, 16 * 1024),
  'ResNet-20': Size('resnet', 20, 64, 400, 8, 2048),
  'ResNet-56': Size('resnet', 56, 24, 200, 3, 2048),
}
WORKS = ('distillation', 'prediction', 'analysis', 'teacher training')


@dataclasses.dataclass(frozen=True)
class Row:
  model: str
  work: str
  examples_per_second: float
  bare_examples_per_second: float
  ratio: float  # of times, the median over the repeats


def prepared(size: Size, workdir: epath.Path) -> Experiment:
  """A run whose teachers train for one step, and predict two views."""
  config = synthetic.config_of(
    size.model,
    size.depth,
    teacher__num_members=NUM_MEMBERS,
    teacher__batch_size=BATCH,
    predictions__num_views=2,
    student__num_steps=size.num_steps,
    student__batch_size=BATCH,
    student__keep_checkpoints=(),
    training__num_logs=4,
    training__num_evals=1,
    training__num_checkpoints=1,
    evaluation__batch_size=PREDICTED,
  )
  config.teacher.num_epochs = config.student.num_epochs = None
  config.teacher.num_steps = 1
  # A small test set: evaluation is no part of the loop's cost.
  return synthetic.run_of(config, workdir, size.num_examples, num_test=NUM_TEST)


def predict(run: Experiment) -> None:
  """Trains the teachers and stores their predictions."""
  teachers.STAGE.run(run)
  predictions.STAGE.run(run)


def measured(name: str, work: str, repeats: int) -> Row:
  """One of WORKS, of one of SIZES."""
  size = SIZES[name]
  with tempfile.TemporaryDirectory() as temporary:
    run = prepared(size, epath.Path(temporary) / 'prepared')
    num_examples, sides = {
      'distillation': _distillation,
      'prediction': _prediction,
      'analysis': _analysis,
      'teacher training': _teacher,
    }[work](run, size)
    times = timing.in_turn(sides, repeats)
  speeds = {side: num_examples / float(np.median(t)) for side, t in times.items()}
  ratio = timing.ratio(times, 'whole', 'bare')
  return Row(name, work, speeds['whole'], speeds['bare'], ratio)


def _distillation(run: Experiment, size: Size) -> tuple[int, dict]:
  predict(run)
  return size.num_steps * BATCH, distillation(run)


def distillation(run: Experiment) -> dict:
  """One student, with all that its loop does, against as many steps on one resident batch."""
  run.predictor.batch_size = NUM_TEST
  section, inputs = run.config.student, run.data.inputs['distillation']
  teacher = predictions.open_teacher(run)
  batch = next(inputs.training(0, section.batch_size, section.num_steps, 0))
  loss = losses.LOSSES[section.loss]
  arguments = _viewed(inputs, batch)[0], teacher.batch('distillation', batch)
  step = partial(
    _step,
    model=run.student.model,
    optimizer=run.student.optimizer,
    loss=lambda logits_BC, log_probs_BC: loss(logits_BC, log_probs_BC, section.temperature),
  )
  distiller, folders = student.Distiller(run, teacher), _folders(run)
  init = partial(_initial, run.student)
  return {
    'bare': partial(_bare, step, init, arguments, section.num_steps),
    'whole': lambda: distiller.fit(next(folders), 'student', 0, init),
  }


def _teacher(run: Experiment, size: Size) -> tuple[int, dict]:
  """One member, as above."""
  run.predictor.batch_size = NUM_TEST
  run.config.teacher.num_steps = size.num_steps  # a longer training, in a folder of its own
  section, members = run.config.teacher, itertools.count(NUM_MEMBERS)
  view = views.make_view(section.augmentation, run.config.augmentation)
  inputs = Inputs(run.data.splits['train'], view, seed=0)
  arguments = _viewed(inputs, next(inputs.training(0, BATCH, section.num_steps, 0)))
  step = partial(
    _step,
    model=run.teacher.model,
    optimizer=run.teacher.optimizer,
    loss=losses.cross_entropy,
  )
  init, trainer = partial(_initial, run.teacher), teachers.Trainer(run)
  return size.num_steps * BATCH, {
    'bare': partial(_bare, step, init, arguments, section.num_steps),
    'whole': lambda: trainer.fit(next(members)),
  }


def _prediction(run: Experiment, size: Size) -> tuple[int, dict]:
  """A view of all examples through the pipeline, and as many batches of one resident batch."""
  teachers.STAGE.run(run)
  inputs, model = run.data.inputs['distillation'], run.teacher.model
  batch_size = run.config.evaluation.batch_size
  batch, _ = next(inputs.evaluation(np.arange(batch_size), 0, batch_size))
  step = devices.parallel(
    lambda variables, inputs, _: model.apply(variables, inputs, train=False)[0], sharded_output=True
  )
  variables, viewed = teachers.load(run, 0), _viewed(inputs, batch)[0]

  def bare() -> None:
    for _ in range(size.num_examples // batch_size):
      logits = step(variables, viewed, 0)
    jax.block_until_ready(logits)

  whole = lambda: run.predictor.logits(model, variables, inputs)
  return size.num_examples, {'bare': bare, 'whole': whole}


def _analysis(run: Experiment, size: Size) -> tuple[int, dict]:
  """A row of a plane around a student after one step, against as many passes over the same examples."""
  predict(run)
  run.config.student.num_steps = 1
  student.STAGE.run(run)
  axis_P = np.linspace(-1, 1, size.num_points)
  works = planes.works(runs.Study(run), axis_P, ANALYSED)
  num_test = min(ANALYSED, run.data.sizes['test'])
  return size.num_points * (ANALYSED + num_test), {
    side: partial(of, 0.0) for side, of in works.items()
  }


def _viewed(inputs: Inputs, batch: dict) -> tuple[jax.Array, jax.Array]:
  """The inputs of a model and the labels of a batch, on the devices."""
  view = lambda _, batch, seed: inputs.view(seed, batch)
  return devices.parallel(view, sharded_output=True)({}, batch, inputs.seed)


def _step(
  state: steps.State, inputs, targets_B, seed, *, model, optimizer, loss
) -> tuple[steps.State, jax.Array]:
  def mean_loss(params):
    variables = {'params': params, 'batch_stats': state.batch_stats}
    (logits_BC, _), updated = model.apply(
      variables, inputs, train=True, mutable=['batch_stats'], rngs={'dropout': jax.random.key(seed)}
    )
    return loss(logits_BC, targets_B).mean(), updated.get('batch_stats', {})

  (value, batch_stats), gradient = jax.value_and_grad(mean_loss, has_aux=True)(state.params)
  gradient, value = jax.lax.pmean((gradient, value), steps.AXIS_NAME)
  updates, opt_state = optimizer.update(gradient, state.opt_state, state.params)
  params = optax.apply_updates(state.params, updates)
  return steps.State(state.step + 1, params, batch_stats, opt_state), value


def _bare(step, init, arguments: tuple, num_steps: int) -> None:
  mapped = _mapped(step, len(arguments))
  state, resident = devices.replicate(init()), jax.device_put(arguments)
  for i in range(num_steps):
    state, loss = mapped(state, *resident, i)
  jax.block_until_ready(loss)


@functools.cache
def _mapped(step: partial, num_sharded: int):
  return devices.parallel(step, num_sharded=num_sharded, donate=True)


def _initial(role: Role) -> steps.State:
  return steps.init_state(role.init_variables(0), role.optimizer)


def _folders(run: Experiment) -> Iterator[epath.Path]:
  return (run.workdir / 'timed' / str(number) for number in itertools.count())
