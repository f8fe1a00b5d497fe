"""Curvature of the mean loss over a fixed data set: products, traces, sharp directions, sharpness.

Functions of (loss, parameters) that know nothing of training; `surface` has an example. Parameters and
directions are flat float32 vectors in the order of `jax.flatten_util.ravel_pytree`; `MeanLoss.tree` leads
back. Axes: P parameter, N example, B batch, C class, K probe or direction, L layer.
"""

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

from analysis.lanczos import Krylov, lanczos
from analysis.trajectory import jackknife, leave_one_out
from kdjax.errors import UserError

Batch = dict[str, Any]  # 'inputs' and what the loss reads
Forward = Callable[[Any, jax.Array], jax.Array]  # (params, inputs) → logits_BC
Loss = Callable[[jax.Array, Batch], jax.Array]  # (logits_BC, batch) → losses_B


class NoSharpDirectionError(UserError):
  """A Hessian without a positive eigenvalue has no sharpest direction."""


class MeanLoss:
  """The mean of a loss over batches, at and around one point of weight space.

  Sums over batches are plain host loops over one compiled function for a batch: inside a loop of
  XLA convolutions are about four times slower on a CPU. Nothing is compiled from point to point if
  `forward` and `loss` are the same objects.
  """

  def __init__(
    self,
    forward: Forward,
    loss: Loss,
    params: Any,
    batches: Sequence[Batch],
    normalised: bool = False,
  ):
    """Puts everything on the device.

    Args:
      params: the point, a tree of float32 arrays.
      batches: each weighs by its size; each size is compiled once.
      normalised: whether an example's logits depend on the others of its batch, as with BatchNorm.
    """
    self.normalised = normalised
    self._bound = {'forward': forward, 'loss': loss}
    self._params = jax.device_put(params)
    self._batches = [jax.device_put(batch) for batch in batches]
    self.num_examples = sum(len(batch['inputs']) for batch in batches)
    self.theta_P, self._unravel = ravel_pytree(self._params)

  @property
  def num_parameters(self) -> int:
    return self.theta_P.size

  def tree(self, vector_P: np.ndarray) -> Any:
    """A vector with the structure of the parameters."""
    return self._unravel(jnp.asarray(vector_P, self.theta_P.dtype))

  def losses(self, shift_P: np.ndarray | float = 0.0) -> np.ndarray:
    """losses_N at θ + `shift_P`."""
    theta_P = self.theta_P + shift_P
    outputs = [_losses(theta_P, self._params, batch, **self._bound) for batch in self._batches]
    return np.concatenate(outputs)

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

  def ggn_diagonal(self) -> np.ndarray:
    """diag(G)_P without an estimate: C backward passes for each example, and their C · P numbers.

    G = mean Jᵀ (∇²_z loss) J for any loss. For cross-entropies and KL to q at τ = 1, tr G is the mean of
    Σ_y q_y ‖Jᵀ (e_y − q)‖². Each example is taken by itself.

    Raises:
      ValueError: logits depend on the other examples of the batch.
    """
    if self.normalised:
      raise ValueError('the exact diagonal takes examples one by one, and BatchNorm does not')
    totals_P = jnp.zeros_like(self.theta_P)
    for batch in self._batches:
      for i in range(len(batch['inputs'])):
        totals_P += _ggn_diagonal(self.theta_P, self._params, batch, np.int32(i), **self._bound)
    return np.asarray(totals_P / self.num_examples)

  def _mean(self, step: Callable, *vectors: jax.Array) -> Any:
    totals = None
    for batch in self._batches:
      sums = step(*vectors, self._params, batch, **self._bound)
      totals = sums if totals is None else jax.tree.map(jnp.add, totals, sums)
    return jax.tree.map(lambda x: x / self.num_examples, totals)


# Inside jit, sums over one batch. Of `params` only the shapes count.


def _logits(theta_P: jax.Array, params: Any, batch: Batch, forward: Forward) -> jax.Array:
  return forward(ravel_pytree(params)[1](theta_P), batch['inputs'])


def _sum(theta_P: jax.Array, params: Any, batch: Batch, forward: Forward, loss: Loss) -> jax.Array:
  return jnp.sum(loss(_logits(theta_P, params, batch, forward), batch))


_jit = partial(jax.jit, static_argnames=('forward', 'loss'))


@_jit
def _losses(theta_P, params, batch, *, forward, loss):
  return loss(_logits(theta_P, params, batch, forward), batch)


@_jit
def _value_and_gradient(theta_P, params, batch, *, forward, loss):
  return jax.value_and_grad(_sum)(theta_P, params, batch, forward, loss)


@_jit
def _hvp(theta_P, vector_P, params, batch, *, forward, loss):
  gradient = lambda theta_P: jax.grad(_sum)(theta_P, params, batch, forward, loss)
  return jax.jvp(gradient, (theta_P,), (vector_P,))[1]


@_jit
def _gvp(theta_P, vector_P, params, batch, *, forward, loss):
  logits = lambda theta_P: _logits(theta_P, params, batch, forward)
  summed = lambda logits_BC: jnp.sum(loss(logits_BC, batch))
  logits_BC, changes_BC = jax.jvp(logits, (theta_P,), (vector_P,))
  products_BC = jax.jvp(jax.grad(summed), (logits_BC,), (changes_BC,))[1]
  return jax.vjp(logits, theta_P)[1](products_BC)[0]


@_jit
def _ggn_diagonal(theta_P, params, batch, i, *, forward, loss):
  example = {key: jax.lax.dynamic_slice_in_dim(x, i, 1) for key, x in batch.items()}
  logits = lambda theta_P: _logits(theta_P, params, example, forward)[0]
  logits_C, pullback = jax.vjp(logits, theta_P)
  hessian_CC = jax.hessian(lambda logits_C: loss(logits_C[None], example)[0])(logits_C)
  jacobian_CP = jax.vmap(lambda unit_C: pullback(unit_C)[0])(jnp.eye(len(logits_C)))
  return jnp.sum(jacobian_CP * (hessian_CC @ jacobian_CP), axis=0)


# Traces and norms.


@dataclasses.dataclass(frozen=True)
class Probed:
  """What each probe v says of H and of G; means over probes are unbiased."""

  layers: list[str]
  hessian_KL: np.ndarray  # the part of vᵀ H v within a layer, for the trace of its diagonal block
  ggn_KL: np.ndarray  # the same of G
  ggn_squares_K: np.ndarray  # ‖G v‖², for ‖G‖_F²
  rest_squares_K: np.ndarray  # ‖(H − G) v‖²


def probed(mean_loss: MeanLoss, probes: Iterable[np.ndarray]) -> Probed:
  """Hutchinson's estimates (1990) of traces of H and G, and of squared Frobenius norms of G and H − G.

  Where logits are piecewise linear in each single weight, diag(H) is diag(G) whatever the loss: so it is
  with ReLU and without BatchNorm, or with BatchNorm's statistics held fixed. So tr H − tr G says
  nothing of the mismatch there, and ‖H − G‖_F / ‖G‖_F (`mismatch`) does.

  Args:
    probes: of `lanczos.rademacher`, each a vector_P. H and G see the same ones.
  """
  traces, squares = [], []
  for probe_P in probes:
    products = mean_loss.hvp(probe_P), mean_loss.gvp(probe_P)
    layers = [layer_sums(mean_loss.tree(probe_P * product_P)) for product_P in products]
    traces.append([list(of.values()) for of in layers])
    hessian_P, ggn_P = (product_P.astype(np.float64) for product_P in products)
    squares.append([np.sum(ggn_P**2), np.sum((hessian_P - ggn_P) ** 2)])
  return Probed(list(layers[0]), *np.swapaxes(traces, 0, 1), *np.transpose(squares))


def mismatch(found: Probed) -> np.ndarray:
  """‖H − G‖_F / ‖G‖_F as (value, low, high); the 95 % interval is a jackknife over probes."""

  def ratio(kept_K: np.ndarray) -> np.ndarray:
    return np.sqrt(found.rest_squares_K[kept_K].sum() / found.ggn_squares_K[kept_K].sum())

  return np.maximum(jackknife(*leave_one_out(ratio, len(found.ggn_squares_K))), 0)


def layer_sums(tree: Any) -> dict[str, float]:
  """The sum of all entries of each layer, in float64; a layer is what owns parameters: 'block/Conv_0'."""
  sums: dict[str, float] = {}
  for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
    name = jax.tree_util.keystr(path[:-1] or path, simple=True, separator='/')
    sums[name] = sums.get(name, 0.0) + float(np.asarray(leaf).sum(dtype=np.float64))
  return sums


# Directions.


def top_eigenvector(mean_loss: MeanLoss, rng: np.random.Generator, num_steps: int = 40) -> Any:
  """The sharpest direction: the unit eigenvector of H's largest eigenvalue, as a tree.

  Its sign is arbitrary.

  Raises:
    NoSharpDirectionError: no direction curves upwards.
  """
  _, _, vectors_KP = _krylov(mean_loss, rng, num_steps).largest(1)
  if not len(vectors_KP):
    raise NoSharpDirectionError(
      f'the Hessian of the loss of {mean_loss.num_examples} examples has no positive eigenvalue, so that '
      'no direction is the sharpest: the loss does not change here, or falls on all sides. Take more '
      'examples (--curvature_examples), or leave out what perturbs along sharp directions (returns).'
    )
  return mean_loss.tree(vectors_KP[0])


def flat_direction(mean_loss: MeanLoss, rng: np.random.Generator, num_steps: int = 40) -> Any:
  """A unit direction v of next to no curvature, as a tree: the smallest ‖H v‖ of a Krylov space.

  The space is that of a random vector, most of which lies along eigenvalues near 0 already.
  """
  return mean_loss.tree(_krylov(mean_loss, rng, num_steps).flattest())


def _krylov(mean_loss: MeanLoss, rng: np.random.Generator, num_steps: int) -> Krylov:
  return lanczos(mean_loss.hvp, rng.normal(size=mean_loss.num_parameters), num_steps)


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
