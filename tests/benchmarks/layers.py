"""The gain of the models' own forms of layers: python -m tests.benchmarks.layers

The gradient of a ResNet as it is; with Flax's BatchNorm, for which XLA passes over the images more often;
and with convolutions as XLA has them (on CPUs alone `convolve` has forms of its own). All give the same
numbers up to rounding.
"""

import contextlib
from collections.abc import Callable
from functools import partial
from unittest import mock

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from rich.table import Table

from kdjax import models
from kdjax.models import convolution, layers
from kdjax.runtime import progress
from kdjax.train import devices
from tests.benchmarks import synthetic, timing

MODELS = {'ResNet-20': 20, 'ResNet-56': 56}
BATCH, CALLS = 128, 3  # calls in each time that is taken


def of_flax(train: bool, dtype: type) -> layers.Norm:
  return partial(
    nn.BatchNorm,
    use_running_average=not train,
    momentum=layers.BATCH_NORM_MOMENTUM,
    dtype=dtype,
    axis_name=layers.AXIS_NAME if train else None,
  )


def works(depth: int) -> dict[str, Callable[[], dict]]:
  """The gradient for a batch, and the statistics that it moves, by the form of the layers."""
  images = np.random.default_rng(0).standard_normal((BATCH, 32, 32, 3), np.float32)
  forms = {
    'ours': contextlib.nullcontext(),
    "Flax's BatchNorm": mock.patch.dict(layers.NORMS, batch=of_flax),
    "XLA's convolutions": mock.patch.object(convolution, '_is_usual', return_value=False),
  }
  found = {}
  for name, form in forms.items():
    with form:
      model = models.build(synthetic.config_of('resnet', depth).model, 10)
      variables = models.init(model, jax.random.key(0), images.shape[1:])
      step = partial(_gradient, model=model, form=name)  # its name tells each form from the others
      gradient = devices.parallel(step, sharded_output=True)
      arguments = jax.device_put((variables, devices.shard(images)))
      jax.block_until_ready(gradient(*arguments, 0))  # compiled while the layers have this form
    found[name] = partial(_repeated, gradient, arguments)
  return found


def _gradient(
  variables: dict, images_BHWC: jax.Array, seed: int, *, model: nn.Module, form: str
) -> dict:
  del seed, form

  def loss(params):
    (logits_BC, _), updated = model.apply(
      variables | {'params': params}, images_BHWC, train=True, mutable=['batch_stats']
    )
    return jnp.mean(logits_BC**2), updated['batch_stats']

  gradient, batch_stats = jax.grad(loss, has_aux=True)(variables['params'])
  return {'params': gradient, 'batch_stats': batch_stats}


def _repeated(gradient: Callable, arguments: tuple) -> dict:
  for _ in range(CALLS):
    found = gradient(*arguments, 0)
  return jax.block_until_ready(found)


def main() -> None:
  progress.setup_logging()
  table = Table(title=f'Forward and backward, on {jax.devices()[0].device_kind}, batch {BATCH}')
  table.add_column('')
  for heading in ('ours, images/s', "Flax's BatchNorm / ours, time", "XLA's convolutions / ours"):
    table.add_column(heading, justify='right')
  for name, depth in MODELS.items():
    times = timing.in_turn(works(depth), timing.REPEATS)
    ours, *others = times
    ratios = (timing.ratio(times, other, ours) for other in others)
    speed = CALLS * BATCH / float(np.median(times[ours]))
    table.add_row(name, f'{speed:,.0f}', *(f'{ratio:.2f}' for ratio in ratios))
  progress.console.print(table)


if __name__ == '__main__':
  main()
