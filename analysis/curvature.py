"""Curvature of the mean loss over a fixed data set: products, traces, sharp directions, sharpness.

Functions of (loss, parameters) that know nothing of training. Parameters and directions are flat
float32 vectors in the order of `jax.flatten_util.ravel_pytree`; `MeanLoss.tree` leads back. BatchNorm
uses the running statistics it is given, which are held fixed: the loss is a function of the
parameters alone, and every example counts by itself.
Axes: P parameter, N example, B batch, C class, K probe or direction, L layer.
"""

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

from analysis.lanczos import lanczos
from kdjax.errors import UserError
from kdjax.steps import Variables

Batch = dict[str, Any]  # 'inputs', 'weights' and what the loss reads
Forward = Callable[[Variables, jax.Array], jax.Array]  # (variables, inputs) → logits_BC
Loss = Callable[[jax.Array, Batch], jax.Array]  # (logits_BC, batch) → losses_B


class NoSharpDirectionError(UserError):
  """A Hessian without a positive eigenvalue has no sharpest direction."""


class MeanLoss:
  """The mean of a loss over batches, at and around one point of weight space.

  Sums over batches are plain host loops over one compiled function for a batch: inside a loop of
  XLA convolutions are about four times slower on a CPU. Nothing is compiled from point to point if
  `forward` and `loss` are the same objects.
  """

  def __init__(self, forward: Forward, loss: Loss, variables: Variables, batches: Sequence[Batch]):
    """Puts everything on the device.

    Args:
      variables: the point: 'params' and 'batch_stats', the latter held fixed.
      batches: all of one size, with 'inputs' and 'weights': 1, or 0 for what fills up a batch.
    """
    self._bound = {'forward': forward, 'loss': loss}
    self._variables = jax.device_put(variables)
    self._batches = [jax.device_put(batch) for batch in batches]
    self._there = [np.asarray(batch['weights']) > 0 for batch in batches]
    self.num_examples = sum(int(there_B.sum()) for there_B in self._there)
    self.theta_P, self._unravel = ravel_pytree(self._variables['params'])

  @property
  def num_parameters(self) -> int:
    return self.theta_P.size

  def tree(self, vector_P: np.ndarray) -> Any:
    """A vector with the structure of the parameters."""
    return self._unravel(jnp.asarray(vector_P, self.theta_P.dtype))

  def losses(self, shift_P: np.ndarray | float = 0.0) -> np.ndarray:
    """losses_N at θ + `shift_P`."""
    theta_P = self.theta_P + shift_P
    outputs = [_losses(theta_P, self._variables, batch, **self._bound) for batch in self._batches]
    return np.concatenate(
      [np.asarray(x)[there] for x, there in zip(outputs, self._there, strict=True)]
    )

  def gradient(self, shift_P: np.ndarray | float = 0.0) -> tuple[float, np.ndarray]:
    """The mean loss and its gradient_P at θ + `shift_P`."""
    value, gradient_P = self._mean(_value_and_gradient, self.theta_P + shift_P)
    return float(value), np.asarray(gradient_P)

  def hvp(self, vector_P: np.ndarray) -> np.ndarray:
    """H v, with H the Hessian of the mean loss at θ (Pearlmutter 1994, forward over reverse)."""
    return np.asarray(self._mean(_hvp, self.theta_P, jnp.asarray(vector_P)))

  def gvp(self, vector_P: np.ndarray) -> np.ndarray:
    """G v, with the generalised Gauss-Newton matrix G = mean Jᵀ ∇²_z loss J at θ (Schraudolph 2002).

    J is the Jacobian of the logits z. H − G = mean Σ_c (∂loss/∂z_c) ∇²z_c is 0 where the gradient in
    the logits is, as for a student that matches its teacher on every example. G is positive
    semi-definite if the loss is convex in the logits.
    """
    return np.asarray(self._mean(_gvp, self.theta_P, jnp.asarray(vector_P)))

  def _mean(self, step: Callable, *vectors: jax.Array) -> Any:
    totals = None
    for batch in self._batches:
      sums = step(*vectors, self._variables, batch, **self._bound)
      totals = sums if totals is None else jax.tree.map(jnp.add, totals, sums)
    return jax.tree.map(lambda x: x / self.num_examples, totals)


def forward(model: nn.Module) -> Forward:
  """The logits of a model of kdjax without dropout, with BatchNorm's statistics held fixed."""
  return partial(_forward, model=model)


def _forward(variables: Variables, inputs: jax.Array, *, model: nn.Module) -> jax.Array:
  return model.apply(variables, inputs, train=False)[0]


# Inside jit, sums over one batch.


def _logits(theta_P: jax.Array, variables: Variables, batch: Batch, forward: Forward) -> jax.Array:
  params = ravel_pytree(variables['params'])[1](theta_P)
  return forward({**variables, 'params': params}, batch['inputs'])


def _sum(theta_P: jax.Array, variables: Variables, batch: Batch, forward: Forward, loss: Loss):
  losses_B = loss(_logits(theta_P, variables, batch, forward), batch)
  return jnp.sum(losses_B * batch['weights'])


_jit = partial(jax.jit, static_argnames=('forward', 'loss'))


@_jit
def _losses(theta_P, variables, batch, *, forward, loss):
  return loss(_logits(theta_P, variables, batch, forward), batch)


@_jit
def _value_and_gradient(theta_P, variables, batch, *, forward, loss):
  return jax.value_and_grad(_sum)(theta_P, variables, batch, forward, loss)


@_jit
def _hvp(theta_P, vector_P, variables, batch, *, forward, loss):
  gradient = lambda theta_P: jax.grad(_sum)(theta_P, variables, batch, forward, loss)
  return jax.jvp(gradient, (theta_P,), (vector_P,))[1]


@_jit
def _gvp(theta_P, vector_P, variables, batch, *, forward, loss):
  logits = lambda theta_P: _logits(theta_P, variables, batch, forward)
  summed = lambda logits_BC: jnp.sum(loss(logits_BC, batch) * batch['weights'])
  logits_BC, changes_BC = jax.jvp(logits, (theta_P,), (vector_P,))
  products_BC = jax.jvp(jax.grad(summed), (logits_BC,), (changes_BC,))[1]
  return jax.vjp(logits, theta_P)[1](products_BC)[0]


# Traces.


@dataclasses.dataclass(frozen=True)
class Trace:
  """What each probe v says of a matrix A; means over probes are unbiased."""

  layers_KL: np.ndarray  # the part of vᵀ A v within a layer, for the trace of its diagonal block
  total_K: np.ndarray  # vᵀ A v, for the trace
  squares_K: np.ndarray  # ‖A v‖², for ‖A‖_F²


@dataclasses.dataclass(frozen=True)
class Traces:
  layers: list[str]
  hessian: Trace
  ggn: Trace


def traces(mean_loss: MeanLoss, probes: Iterable[np.ndarray]) -> Traces:
  """Hutchinson's estimates (1990) of the traces of H and G and of their diagonal blocks.

  H and G see the same probes, so that the errors of their difference cancel where the two agree.

  Args:
    probes: of `lanczos.rademacher`, each a vector_P.
  """
  rows = {'hvp': [], 'gvp': []}
  for probe_P in probes:
    for name, found in rows.items():
      product_P = getattr(mean_loss, name)(probe_P)
      layers = layer_sums(mean_loss.tree(probe_P * product_P))
      exact_P = product_P.astype(np.float64)
      found.append((list(layers.values()), probe_P @ exact_P, exact_P @ exact_P))
  hessian, ggn = (
    Trace(*(np.array(column) for column in zip(*found, strict=True))) for found in rows.values()
  )
  return Traces(list(layer_sums(mean_loss.tree(mean_loss.theta_P))), hessian, ggn)


def layer_sums(tree: Any) -> dict[str, float]:
  """The sum of all entries of each layer, in float64; a layer is what owns parameters: 'block/Conv_0'."""
  sums: dict[str, float] = {}
  for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
    name = '/'.join(str(entry.key) for entry in path[:-1])
    sums[name] = sums.get(name, 0.0) + float(np.asarray(leaf).sum(dtype=np.float64))
  return sums


# Directions.


def top_eigenvector(mean_loss: MeanLoss, rng: np.random.Generator, num_steps: int = 40) -> Any:
  """The sharpest direction: the unit eigenvector of H's largest eigenvalue, as a tree.

  Its sign is arbitrary.

  Raises:
    NoSharpDirectionError: no direction curves upwards.
  """
  return mean_loss.tree(_top_eigenvectors(mean_loss, rng, 1, num_steps)[0])


def flat_direction(
  mean_loss: MeanLoss, rng: np.random.Generator, num_eigenvectors: int = 10, num_steps: int = 40
) -> Any:
  """A random unit direction orthogonal to the eigenvectors of H's largest eigenvalues, as a tree.

  Before the projection it is uniform on the sphere.

  Raises:
    NoSharpDirectionError: no direction curves upwards.
  """
  vectors_KP = _top_eigenvectors(mean_loss, rng, num_eigenvectors, num_steps)
  random_P = rng.normal(size=mean_loss.num_parameters)
  for _ in range(2):  # float32 eigenvectors are orthonormal up to rounding
    random_P -= (vectors_KP @ random_P) @ vectors_KP
  return mean_loss.tree(random_P / np.linalg.norm(random_P))


def _top_eigenvectors(
  mean_loss: MeanLoss, rng: np.random.Generator, num: int, num_steps: int
) -> np.ndarray:
  start_P = rng.normal(size=mean_loss.num_parameters)
  _, _, vectors_KP = lanczos(mean_loss.hvp, start_P, num_steps).largest(num)
  if not len(vectors_KP):
    raise NoSharpDirectionError(
      f'the Hessian of the loss of {mean_loss.num_examples} examples has no positive eigenvalue, so that '
      'no direction is the sharpest: the loss does not change here, or falls on all sides. Take more '
      'examples (--curvature_examples), or leave out what perturbs along sharp directions (returns).'
    )
  return vectors_KP


# Sharpness.


def sharpness(
  mean_loss: MeanLoss, radius: float, starts: Sequence[np.ndarray] = (), num_steps: int = 10
) -> tuple[float, np.ndarray]:
  """The worst increase of the mean loss in a ball: max over ‖ε‖ ≤ ρ of L(θ + ε) − L(θ).

  This is what SAM minimises (Foret et al. 2021). SAM's ε = ρ ∇L(θ)/‖∇L(θ)‖ is the first of the
  steps ε ← ρ ∇L(θ + ε)/‖∇L(θ + ε)‖, which need no step size and never lower a convex loss (the
  generalised power method, Journée et al. 2010). The largest increase of all steps is kept: it is
  reached, so that the true maximum is no smaller.

  Args:
    radius: ρ, in the units of the parameters. Networks that BatchNorm makes invariant to scale can
      only be compared at a fixed share of ‖θ‖.
    starts: other directions to start from, besides the gradient: at a minimum that is 0.
    num_steps: points for each start.

  Returns: the increase in the loss's units, and the displacement_P.
  """
  at_theta, gradient_P = mean_loss.gradient()
  worst = 0.0, np.zeros_like(gradient_P)
  for direction_P in (gradient_P, *starts):
    for _ in range(num_steps):
      length = np.linalg.norm(direction_P)
      if length == 0:
        break
      shift_P = (radius / length * direction_P).astype(np.float32)
      value, direction_P = mean_loss.gradient(shift_P)
      worst = max(worst, (value - at_theta, shift_P), key=lambda found: found[0])
  return worst
