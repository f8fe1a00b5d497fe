"""A gradient with the models' BatchNorm, against Flax's: python -m tests.benchmarks.norms

Both give the same numbers up to rounding; XLA passes over the images more often for Flax's.
"""

from collections.abc import Callable, Mapping
from functools import partial
from unittest import mock

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from rich.table import Table

from kdjax import models, progress, steps
from kdjax.models import layers
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
  """The gradient of a batch with the one and the other, and the statistics that it moves."""
  images = np.random.default_rng(0).standard_normal((BATCH, 32, 32, 3), np.float32)
  norms: Mapping = {'ours': layers.NORMS['batch'], 'flax': of_flax}
  found = {}
  for name, norm in norms.items():
    with mock.patch.dict(layers.NORMS, batch=norm):
      model = models.build(synthetic.config_of('resnet', depth).model, 10)
      variables = models.init(model, jax.random.key(0), images.shape[1:])
      gradient = steps.parallel(partial(_gradient, model=model), sharded_output=True)
      arguments = jax.device_put((variables, steps.shard(images)))
      jax.block_until_ready(gradient(*arguments, 0))  # compiled while the norm is this one
    found[name] = partial(_repeated, gradient, arguments)
  return found


def _gradient(variables: dict, images_BHWC: jax.Array, seed: int, *, model: nn.Module) -> dict:
  del seed

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
  for heading in ('', 'ours, images/s', "Flax's", 'time of Flax / ours'):
    table.add_column(heading, justify='left' if not heading else 'right')
  for name, depth in MODELS.items():
    times = timing.in_turn(works(depth), timing.REPEATS)
    speeds = (CALLS * BATCH / float(np.median(times[side])) for side in ('ours', 'flax'))
    table.add_row(
      name, *(f'{x:,.0f}' for x in speeds), f'{timing.ratio(times, "flax", "ours"):.2f}'
    )
  progress.console.print(table)


if __name__ == '__main__':
  main()
