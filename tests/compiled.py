"""Computes with every model what training, prediction and analysis do, and saves it.

    python -m tests.compiled OUT.npz reference|found

A process of its own, with XLA_FLAGS set by who starts it. In that of the `reference` all that kdjax, Flax
and Optax call float32 has 64 bits, and so has what they call bfloat16. Beside the exact weights and inputs
it takes NUM_MOVED others, each entry of which is moved by one unit in the last place of the dtype, up or
down at random. Arrays are saved as 'model dtype/result/path', with a leading axis: exact, moved, ...
"""

import os
import sys

import jax
import numpy as np

if __name__ == '__main__' and sys.argv[2] == 'reference':
  jax.config.update('jax_enable_x64', True)
  jax.numpy.float32 = jax.numpy.float64  # before anyone reads it
  _bernoulli = jax.random.bernoulli  # would draw other masks from a probability of 64 bits
  jax.random.bernoulli = lambda key, p, shape: _bernoulli(key, np.float32(p), shape)

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import optax
from ml_collections import ConfigDict

from analysis import activations, curvature, permutations, surface
from kdjax import losses, models
from kdjax.models import resnet50, vgg
from kdjax.runtime import compiler
from kdjax.train import devices, steps

# Every kind of block, and fewer of each to compile.
resnet50.BLOCKS_PER_STAGE = permutations.BLOCKS_PER_STAGE = (2, 1)
vgg.CONVS_PER_STAGE = permutations.CONVS_PER_STAGE = (2, 1)

CLASSES, VOCABULARY, MEMBERS = 10, 30, 2
NUM_MOVED = 3
ULP = {'float32': 2.0**-23, 'bfloat16': 2.0**-8}
Move = Callable[[np.ndarray], np.ndarray]
Results = Iterator[tuple[str, np.ndarray]]


@dataclasses.dataclass(frozen=True)
class Case:
  name: str
  shape: tuple[int, ...]  # of the inputs, with the batch
  norm: str = 'batch'
  programs: tuple[str, ...] = ('step', 'hvp')  # beside predictions and activations

  def section(self, dtype: str) -> ConfigDict:
    section = {'name': self.name, 'depth': 8, 'width': 4, 'norm': self.norm, 'dtype': dtype}
    return ConfigDict(section | {'shortcut': 'activated'})


# The smallest that take all ways through the models: batches large enough for gradients in parts.
CASES = [
  Case('resnet', (8, 16, 16, 3), programs=('step', 'hvp', 'gvp')),
  Case('resnet', (8, 16, 16, 3), 'layer'),
  Case('lenet', (8, 16, 16, 1)),
  Case('vgg', (8, 16, 16, 3)),
  Case('resnet50', (8, 16, 16, 3)),
  Case('bilstm', (16, 12), programs=('step', 'hvp', 'gvp')),
]
# XLA's optimisations take minutes to compile all. Without KDJAX_COMPILER=all, only these are compiled:
# (model, norm, dtype) → its programs. In the product with the Hessian is the gradient in float32, too.
QUICK = {
  ('resnet', 'batch', 'float32'): ('step',),
  ('lenet', 'batch', 'float32'): ('hvp',),
  ('lenet', 'batch', 'bfloat16'): ('step',),
}
EVERYTHING = os.environ.get('KDJAX_COMPILER') == 'all'


def main(out: str, as_reference: bool) -> None:
  found = {}
  for case in CASES:
    programs = None
    for dtype in models.DTYPES:
      section, key = case.section(dtype), (case.name, case.norm, dtype)
      if models.is_miscomputed(section):
        continue
      if not EVERYTHING and key not in QUICK:
        continue
      if programs is None or not as_reference:  # the reference's have 64 bits, whatever the dtype
        programs = Programs(case, 'float32' if as_reference else dtype)
      chosen = case.programs if EVERYTHING else QUICK[key]
      runs = [
        dict(programs.results(_move(dtype, run, as_reference), dtype, chosen))
        for run in range(1 + NUM_MOVED * as_reference)
      ]
      for name in runs[0]:
        place = f'{case.name} {case.norm} {dtype}/{name}'
        found[place] = np.stack([results[name] for results in runs])
  if not as_reference:
    found |= {'program/probe': np.array(compiler.probe()), 'program/holes': _holes()}
  np.savez(out, **found)


def _move(dtype: str, run: int, as_reference: bool) -> Move:
  rng = np.random.default_rng(run)

  def moved(x: np.ndarray) -> np.ndarray:
    x = x.astype(np.float32)
    if not as_reference:
      return x
    ups = rng.choice([-1, 1], x.shape) if run else 0
    return x.astype(np.float64) * (1 + ULP[dtype] * ups)

  return moved


class Programs:
  """The compiled functions of a model."""

  def __init__(self, case: Case, dtype: str):
    self._case = case
    self._model = models.build(case.section(dtype), CLASSES, VOCABULARY)
    self._optimizer = optax.sgd(0.1, 0.9)
    step = partial(
      steps.student_step,
      model=self._model,
      optimizer=self._optimizer,
      view=_view,
      loss=losses.distillation,
      temperature=lambda _: 2.0,
      alpha=0.5,
    )
    self._step = devices.parallel(step, num_sharded=2)
    predict = partial(steps.predict_step, model=self._model, view=_view)
    self._predict = devices.parallel(predict, sharded_output=True)
    # Shapes are the same for all weights, moved or not, so each product is compiled once.
    dtype = np.int32 if case.name in models.TAKES_TOKENS else np.float32
    self._shapes = models.shapes(self._model, jax.random.key(0), case.shape[1:], dtype)
    self._forward = surface.of_params(self._model, self._shapes)

  def results(self, move: Move, dtype: str, chosen: Sequence[str]) -> Results:
    rng = np.random.default_rng(0)
    inputs = self._inputs(rng, move)
    batch = {
      'inputs': inputs,
      'labels': rng.integers(0, CLASSES, len(inputs)).astype(np.int32),
      'weights': move(np.ones(len(inputs))),
    }
    members = [_variables(self._shapes, rng, move) for _ in range(MEMBERS)]
    teacher_BC = move(np.log(rng.dirichlet(np.ones(CLASSES), len(inputs))))
    if 'step' in chosen:
      yield from self._trained(members[0], batch, teacher_BC)
    if dtype == 'float32':
      yield from self._predicted(members, batch)
      mean_loss = curvature.MeanLoss(self._forward, _nll, members[0]['params'], [batch])
      vector_P = move(rng.normal(size=mean_loss.num_parameters))
      for product in {'hvp', 'gvp'}.intersection(chosen):
        yield product, getattr(mean_loss, product)(vector_P)
      spec = permutations.spec_for(self._model, members[0]['params'])
      units = activations.group_activations(self._model, members[0], inputs, spec)
      yield from _flat('activations', units)

  def _inputs(self, rng: np.random.Generator, move: Move) -> np.ndarray:
    if self._case.name not in models.TAKES_TOKENS:
      return move(rng.uniform(-1, 1, self._case.shape))
    tokens_BT = rng.integers(1, VOCABULARY, self._case.shape).astype(np.int32)
    tokens_BT[::2, 8:] = 0
    return tokens_BT

  def _trained(self, variables: Any, batch: Any, teacher_BC: np.ndarray) -> Results:
    """One step of a student; momentum, after the first step, is the gradient."""
    state = steps.init_state(variables, self._optimizer)
    state, metrics = self._step(state, *devices.shard((batch, teacher_BC)), np.uint32(0))
    tree = {
      'gradient': state.opt_state[0].trace,
      'params': state.params,
      'batch_stats': state.batch_stats,
      'metrics': {name: metrics[name] for name in metrics.names},
    }
    yield from _flat('step', tree)

  def _predicted(self, members: list[Any], batch: Any) -> Results:
    logits_MBC = np.stack(
      [devices.unshard(self._predict(m, devices.shard(batch), np.uint32(0))) for m in members]
    )
    yield 'logits', logits_MBC
    yield 'ensemble', np.asarray(_ensemble(logits_MBC))


def _view(seed: jax.Array, batch: Any) -> tuple[jax.Array, jax.Array]:
  del seed
  return batch['inputs'], batch['labels']


def _variables(shapes: Any, rng: np.random.Generator, move: Move) -> dict[str, Any]:
  """Kernels that keep the size of activations, norms near 1, biases near 0."""

  def leaf(path, x):
    name = path[-1].key
    if name in ('kernel', 'embedding'):
      fan_in = np.prod(x.shape[:-1]) if name == 'kernel' else 1
      return move(rng.normal(size=x.shape) * np.sqrt(2 / fan_in))
    return move(rng.uniform(-0.2, 0.2, x.shape) + (name in ('scale', 'var')))

  return jax.tree.map_with_path(leaf, shapes)


_ensemble = jax.jit(losses.ensemble_log_probs)


def _nll(logits_BC: jax.Array, batch: Any) -> jax.Array:
  return losses.cross_entropy(logits_BC, batch['labels'])


def _flat(name: str, tree: Any) -> Results:
  for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
    yield f'{name}{jax.tree_util.keystr(path)}', np.asarray(leaf)


def _holes() -> np.ndarray:
  """How many numbers are wrong in a maximum over windows of one, in an axis with holes (openxla/xla#48714)."""
  x = np.random.default_rng(0).normal(size=(64, 128)).astype(np.float32)
  right = np.full((32, 255), -np.inf)
  right[:, ::2] = x.reshape(32, 2, 128).max(1)
  options = {'window_dimensions': (2, 1), 'window_strides': (2, 1), 'padding': 'VALID'}
  maxima = partial(jax.lax.reduce_window, computation=jax.lax.max, base_dilation=(1, 2), **options)
  return np.sum(np.asarray(jax.jit(lambda x: maxima(x, -np.inf))(x)) != right)


if __name__ == '__main__':
  main(sys.argv[1], sys.argv[2] == 'reference')
