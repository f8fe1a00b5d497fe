"""SOAP: Adam in the eigenbasis of Shampoo's preconditioner (Vyas et al. 2024, arXiv 2409.11321).

Of our own, because optax has neither Shampoo nor SOAP. Axes: M N the rows and columns of a parameter as
a matrix.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

STEPS_PER_BASIS = 10  # the basis turns slowly, and finding it is what costs
LONGEST_SIDE = 2048  # a longer one keeps its own axes: a basis costs the cube of its length
EPSILON = 1e-8


class SoapState(NamedTuple):
  """Trees as the parameters; `covariances` and `bases` hold a dict with the rotated sides for each."""

  count: jax.Array
  mu: Any  # first moment, of the parameter's own axes
  nu: Any  # second moment, of the rotated axes
  covariances: Any
  bases: Any  # orthogonal; columns are eigenvectors


def scale_by_soap(beta1: float, beta2: float) -> optax.GradientTransformation:
  """Algorithm 3, with Adam's correction of the bias. Each parameter (..., O) is a matrix (fan-in, O).

  The first gradient gives the first basis and no update: it is diagonal there, and Adam would make the
  rounding errors beside the diagonal as large as the rest. Every `STEPS_PER_BASIS` steps the basis is
  refined by one power iteration and a QR decomposition (Algorithm 4).
  """

  def init(params: Any) -> SoapState:
    squares = jax.tree.map(lambda x: {k: jnp.zeros((n, n)) for k, n in _sides(x).items()}, params)
    zeros = jax.tree.map(jnp.zeros_like, params)
    return SoapState(jnp.zeros((), jnp.int32), zeros, zeros, squares, squares)

  def update(gradients: Any, state: SoapState, params: Any = None) -> tuple[Any, SoapState]:
    del params
    leaves, tree = jax.tree.flatten(gradients)
    others = [tree.flatten_up_to(of) for of in state[1:]]
    found = [
      _update(gradient, *of, state.count, beta1, beta2)
      for gradient, *of in zip(leaves, *others, strict=True)
    ]
    updates, *others = (tree.unflatten(of) for of in zip(*found, strict=True))
    return updates, SoapState(state.count + 1, *others)

  return optax.GradientTransformation(init, update)


def _update(
  gradient: jax.Array,
  mu: jax.Array,
  nu: jax.Array,
  covariances: dict[str, jax.Array],
  bases: dict[str, jax.Array],
  count: jax.Array,
  beta1: float,
  beta2: float,
) -> tuple[jax.Array, jax.Array, jax.Array, dict[str, jax.Array], dict[str, jax.Array]]:
  """(update, mu, nu, covariances, bases) of one parameter."""
  g_MN = _matrix(gradient)
  squares = {'left': lambda: g_MN @ g_MN.T, 'right': lambda: g_MN.T @ g_MN}
  covariances = {
    side: beta2 * of + (1 - beta2) * squares[side]() for side, of in covariances.items()
  }
  kind = jnp.where(count == 0, 0, jnp.where(count % STEPS_PER_BASIS == 0, 1, 2))
  bases = jax.lax.switch(kind, (_first, _refined, lambda _, bases: bases), covariances, bases)
  is_update = count > 0
  mu = is_update * (beta1 * mu + (1 - beta1) * gradient)
  rotated_MN = _rotate(g_MN, bases)
  nu = is_update * (beta2 * nu + (1 - beta2) * jnp.reshape(rotated_MN**2, nu.shape))
  num_updates = jnp.maximum(count, 1)
  corrected_mu = _rotate(_matrix(mu), bases) / (1 - beta1**num_updates)
  corrected_nu = _matrix(nu) / (1 - beta2**num_updates)
  direction_MN = _rotate_back(corrected_mu / (jnp.sqrt(corrected_nu) + EPSILON), bases)
  return direction_MN.reshape(gradient.shape), mu, nu, covariances, bases


def _matrix(x: jax.Array) -> jax.Array:
  return x.reshape(-1, x.shape[-1])


def _sides(x: jax.Array) -> dict[str, int]:
  """The lengths of the sides that are rotated."""
  sides = {'left': x.size // x.shape[-1], 'right': x.shape[-1]}
  return {side: length for side, length in sides.items() if length <= LONGEST_SIDE}


def _first(covariances: dict[str, jax.Array], bases: dict[str, jax.Array]) -> dict[str, jax.Array]:
  """Eigenvectors, the greatest eigenvalue first, as power iterations sort them."""
  del bases
  return {side: jnp.linalg.eigh(of)[1][:, ::-1] for side, of in covariances.items()}


def _refined(
  covariances: dict[str, jax.Array], bases: dict[str, jax.Array]
) -> dict[str, jax.Array]:
  return {side: jnp.linalg.qr(of @ bases[side])[0] for side, of in covariances.items()}


def _rotate(x_MN: jax.Array, bases: dict[str, jax.Array]) -> jax.Array:
  """Q_Lᵀ X Q_R; a side without a basis stays."""
  x_MN = bases['left'].T @ x_MN if 'left' in bases else x_MN
  return x_MN @ bases['right'] if 'right' in bases else x_MN


def _rotate_back(x_MN: jax.Array, bases: dict[str, jax.Array]) -> jax.Array:
  x_MN = bases['left'] @ x_MN if 'left' in bases else x_MN
  return x_MN @ bases['right'].T if 'right' in bases else x_MN
