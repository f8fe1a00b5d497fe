"""Activations of a network's units, and their correlations between two networks.

Axes: U unit of a group, R row (every position of every example), B example of a batch, X the axes of one
input.
"""

import functools
import math
from collections.abc import Mapping

import flax.linen as nn
import jax
import numpy as np
from flax.traverse_util import flatten_dict

from .permutations import Path, Spec


def group_activations(
  model: nn.Module, variables: Mapping, inputs_BX: np.ndarray, spec: Spec
) -> dict[str, np.ndarray]:
  """The activations of every group's units, with running statistics and without dropout.

  Where a ReLU follows, they are taken after it, as the next layer reads them. All activations of the batch
  are in memory at once.

  Args:
    inputs_BX: images_BHWC float32, or tokens_BT int32; padding, 0, is left out.

  Returns: {group: activations_RU}, float32. R is B for dense layers, B · H · W for convolutions, and the
    number of tokens for texts.
  """
  modules = tuple(output.module for output in spec.outputs.values())
  captured = _captured(model, modules, variables, inputs_BX)
  activations = {}
  for (group, output), units in zip(spec.outputs.items(), captured, strict=True):
    units = np.asarray(units)
    if np.issubdtype(inputs_BX.dtype, np.integer):
      units = units[np.asarray(inputs_BX) != 0]
    rows_RU = units.reshape(-1, units.shape[-1])
    activations[group] = np.maximum(rows_RU, 0) if output.relu else rows_RU
  return activations


@functools.partial(jax.jit, static_argnums=(0, 1))
def _captured(
  model: nn.Module, modules: tuple[Path, ...], variables: Mapping, inputs_BX: jax.Array
) -> list[jax.Array]:
  _, state = model.apply(
    variables,
    inputs_BX,
    train=False,
    capture_intermediates=lambda module, method: method == '__call__' and module.path in modules,
    mutable=['intermediates'],
  )
  calls = flatten_dict(state['intermediates'])
  outputs = [calls[*module, '__call__'][0] for module in modules]
  # An RNN returns its carry and the states of all positions.
  return [output[1] if isinstance(output, tuple) else output for output in outputs]


def correlations(first_RU: np.ndarray, second_RU: np.ndarray) -> np.ndarray:
  """Pearson's correlations_UU of the units of two networks; those with a constant unit are 0."""
  return _standardised(first_RU).T @ _standardised(second_RU)


def _standardised(activations_RU: np.ndarray) -> np.ndarray:
  """Centres each unit and scales it to norm 1; a constant unit becomes 0."""
  centred_RU = activations_RU - activations_RU.mean(axis=0, keepdims=True, dtype=np.float64)
  norms_1U = np.linalg.norm(centred_RU, axis=0, keepdims=True)
  scale_1U = math.sqrt(len(centred_RU)) * np.abs(activations_RU).max(axis=0, keepdims=True)
  changes_1U = norms_1U > 1e-6 * scale_1U  # float32 rounding of a constant stays below this
  return np.divide(centred_RU, norms_1U, out=np.zeros_like(centred_RU), where=changes_1U)
