"""Curvature of the mean loss over a fixed data set: products, traces, sharp directions, sharpness.

All are functions of (loss, parameters) and do not depend on training; `surface` has an example. Parameters
and directions are flat float32 vectors in the order of `jax.flatten_util.ravel_pytree`; `MeanLoss.tree`
converts back. Axes: P parameter, N example, B batch, C class, K probe or direction, L layer.
"""

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

from kdjax.errors import UserError

from .estimates import jackknife, leave_one_out
from .lanczos import Krylov, lanczos

Batch = dict[str, Any]  # 'inputs', and the arrays that the loss reads
Forward = Callable[[Any, jax.Array], jax.Array]  # (params, inputs) → logits_BC
Loss = Callable[[jax.Array, Batch], jax.Array]  # (logits_BC, batch) → losses_B


class NoSharpDirectionError(UserError):
  """The Hessian has no positive eigenvalue, and so no sharpest direction."""


class MeanLoss:
  """The mean of a loss over batches, at and around one point of weight space.

  Sums over batches are host loops over one compiled function, since convolutions inside an XLA loop are
  about four times slower on a CPU. Points with the same `forward` and `loss` objects share compiled
  functions.
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
      batches: weighted by size; each size is compiled once.
      normalised: whether an example's loss depends on its batch, as with BatchNorm.
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
    """Converts a vector to a tree with the structure of the parameters."""
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
    """H v, where H is the Hessian of the mean loss at θ (Pearlmutter 1994; forward over reverse)."""
    return np.asarray(self._mean(_hvp, self.theta_P, jnp.asarray(vector_P)))

  def gvp(self, vector_P: np.ndarray) -> np.ndarray:
    """G v, where G = mean Jᵀ ∇²_z loss J is the generalised Gauss-Newton matrix at θ (Schraudolph 2002).

    J is the Jacobian of the logits z. H − G = mean Σ_c (∂loss/∂z_c) ∇²z_c vanishes if the gradient in the
    logits does, as for a student that matches its teacher on every example. G is positive semi-definite if
    the loss is convex in the logits.
    """
    return np.asarray(self._mean(_gvp, self.theta_P, jnp.asarray(vector_P)))

  def ggn_diagonal(self) -> np.ndarray:
    """The exact diag(G)_P, by C backward passes per example; C · P numbers are in memory.

    G = mean Jᵀ (∇²_z loss) J for any loss. For cross-entropies and KL to q at τ = 1, tr G is the mean of
    Σ_y q_y ‖Jᵀ (e_y − q)‖². Examples are processed one by one.

    Raises:
      ValueError: the loss of an example depends on the others of its batch.
    """
    if self.normalised:
      raise ValueError(
        'the exact diagonal needs examples one by one, but the loss of one depends on its batch, as with BatchNorm'
      )
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


# Inside jit: sums over one batch. `params` only gives the shapes.


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
  """Products of H and G with each probe v; means over probes are unbiased estimates."""

  layers: list[str]
  hessian_KL: np.ndarray  # the part of vᵀ H v within a layer, for the trace of its diagonal block
  ggn_KL: np.ndarray  # the part of vᵀ G v within a layer
  ggn_squares_K: np.ndarray  # ‖G v‖², for ‖G‖_F²
  rest_squares_K: np.ndarray  # ‖(H − G) v‖²


def probed(
  mean_loss: MeanLoss, probes: Iterable[np.ndarray], show: Callable[[], None] = lambda: None
) -> Probed:
  """Hutchinson's estimates (1990) of traces of H and G and of squared Frobenius norms of G and H − G.

  If logits are piecewise linear in each single weight, diag(H) = diag(G) whatever the loss. This holds for
  ReLU networks without BatchNorm or with fixed BatchNorm statistics. Then tr H − tr G does not measure the
  mismatch, and ‖H − G‖_F / ‖G‖_F (`mismatch`) does.

  Args:
    probes: vectors_P from `lanczos.rademacher`, shared by H and G.
    show: is called after each probe.
  """
  traces, squares = [], []
  for probe_P in probes:
    products = mean_loss.hvp(probe_P), mean_loss.gvp(probe_P)
    layers = [layer_sums(mean_loss.tree(probe_P * product_P)) for product_P in products]
    traces.append([list(of.values()) for of in layers])
    hessian_P, ggn_P = (product_P.astype(np.float64) for product_P in products)
    squares.append([np.sum(ggn_P**2), np.sum((hessian_P - ggn_P) ** 2)])
    show()
  return Probed(list(layers[0]), *np.swapaxes(traces, 0, 1), *np.transpose(squares))


def mismatch(found: Probed) -> np.ndarray:
  """‖H − G‖_F / ‖G‖_F with its 95 % jackknife interval over probes, as (value, low, high)."""

  def ratio(kept_K: np.ndarray) -> np.ndarray:
    return np.sqrt(found.rest_squares_K[kept_K].sum() / found.ggn_squares_K[kept_K].sum())

  return np.maximum(jackknife(*leave_one_out(ratio, len(found.ggn_squares_K))), 0)


def layer_sums(tree: Any) -> dict[str, float]:
  """The float64 sum of the entries of each layer, a module with parameters such as 'block/Conv_0'."""
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
    NoSharpDirectionError: H has no positive eigenvalue.
  """
  _, _, vectors_KP = _krylov(mean_loss, rng, num_steps).largest(1)
  if not len(vectors_KP):
    raise NoSharpDirectionError(
      f'the Hessian of the loss of {mean_loss.num_examples} examples has no positive eigenvalue, so there '
      'is no sharpest direction. Use more examples (--curvature_examples), or leave out the part that '
      'perturbs along sharp directions (returns).'
    )
  return mean_loss.tree(vectors_KP[0])


def flat_direction(mean_loss: MeanLoss, rng: np.random.Generator, num_steps: int = 40) -> Any:
  """The unit direction v with the smallest ‖H v‖ in the Krylov space of a random vector, as a tree."""
  return mean_loss.tree(_krylov(mean_loss, rng, num_steps).flattest())


def _krylov(mean_loss: MeanLoss, rng: np.random.Generator, num_steps: int) -> Krylov:
  return lanczos(mean_loss.hvp, rng.normal(size=mean_loss.num_parameters), num_steps)


# Sharpness.


def sharpness(
  mean_loss: MeanLoss, radius: float, starts: Sequence[np.ndarray] = (), num_steps: int = 10
) -> tuple[float, np.ndarray]:
  """A lower bound of the worst increase of the mean loss in a ball, max over ‖ε‖ ≤ ρ of L(θ + ε) − L(θ).

  This maximum is what SAM minimises (Foret et al. 2021). The steps ε ← ρ ∇L(θ + ε)/‖∇L(θ + ε)‖ need no step
  size and never lower a convex loss (the generalised power method, Journée et al. 2010); SAM takes the
  first of them. The largest increase over all steps is kept.

  Args:
    radius: ρ, in units of the parameters. BatchNorm makes networks invariant to scale, so compare them at a
      fixed fraction of ‖θ‖.
    starts: directions to start from besides the gradient, which is 0 at a minimum.
    num_steps: number of steps from each start.

  Returns: the increase in units of the loss, and the displacement_P that attains it.
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
