"""Permutation specs: the units of each model that can be permuted without changing its function.

A group is a set of units (channels of a convolution, hidden units, cells of an LSTM) that share one
permutation. Every axis of the weights along which a group lies is permuted (Ainsworth et al. 2023, "Git
Re-Basin", Section 2). Inputs, positions and classes are fixed.

- A residual stream is one group while its shortcuts are the identity; a projection starts a new group.
- A flattened image, index (h · W + w) · C + c, repeats the group of its C channels H · W times.
- The concatenated states of two directions are two groups, end to end.
- BatchNorm's scale, bias, mean and variance follow their channel. So do LayerNorm's scale and bias, since
  its statistics are taken over all channels.
- The gates of an LSTM cell are elementwise, so they all share the permutation of its state.

Units of an LSTM can also change sign. Since tanh is odd, negating the weights into a unit's candidate 'g'
and all weights that read its state negates the unit's cell and state and leaves the rest unchanged. The
other gates keep their sign. An embedding is linear and changes sign with the weights that read it.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence

import flax.linen as nn
from flax.traverse_util import flatten_dict

from kdjax import models
from kdjax.models.bilstm import NUM_LAYERS
from kdjax.models.resnet50 import BLOCKS_PER_STAGE
from kdjax.models.vgg import CONVS_PER_STAGE

Path = tuple[str, ...]
Axis = tuple[str, ...]  # the groups that lie end to end along an axis; () is never permuted
FIXED: Axis = ()


@dataclasses.dataclass(frozen=True)
class Output:
  """The module whose output has the units of a group as its last axis."""

  module: Path
  relu: bool  # whether the network applies a ReLU to it before the units are read


@dataclasses.dataclass(frozen=True)
class Spec:
  """The permutable axes of one model.

  Attributes:
    axes: for each array of the variables, by its path from the collection on, such as
      ('params', 'Conv_0', 'kernel'), the groups along each of its axes.
    sizes: units of each group, in order of depth.
    outputs: for each group, the module where its units can be observed; for a residual stream the last
      block, after all branches are added.
    signed: the (path, axis) pairs along which weights are negated when a unit changes sign. Groups that lie
      along none of them keep their signs.
  """

  axes: Mapping[Path, tuple[Axis, ...]]
  sizes: Mapping[str, int]
  outputs: Mapping[str, Output]
  signed: frozenset[tuple[Path, int]] = frozenset()

  def places(self, group: str) -> list[tuple[Path, int]]:
    """The (path, axis) pairs along which the group lies."""
    return [
      (path, axis)
      for path, axes in self.axes.items()
      for axis, names in enumerate(axes)
      if group in names
    ]

  def neighbours(self, group: str) -> set[str]:
    """The groups that share an array with a group, itself included."""
    return {name for path, _ in self.places(group) for names in self.axes[path] for name in names}

  def flips(self, group: str) -> bool:
    """Whether the group's units may change sign."""
    return any(place in self.signed for place in self.places(group))


def lacks_spec(model: nn.Module) -> str | None:
  """Why networks of this class cannot be aligned; None if they can."""
  model = models.own_module(model)
  if type(model) in SPECS:
    return None
  known = ', '.join(cls.__name__ for cls in SPECS)
  return (
    f'no alignment: analysis/permutations.py does not say which units of {type(model).__name__} may be '
    f'permuted; SPECS has {known}'
  )


def spec_for(model: nn.Module, params: Mapping) -> Spec:
  """The spec of one of kdjax's classifiers.

  Args:
    params: the model's parameters; their shapes give the sizes of the groups.

  Raises:
    ValueError: there is no spec for the model's class, or the spec does not fit the params.
  """
  if lacking := lacks_spec(model):
    raise ValueError(lacking)
  model = models.own_module(model)
  flat = flatten_dict({'params': params})
  axes, outputs, *signed = SPECS[type(model)](model, flat)
  sizes = {}
  for path, array in flat.items():
    for names, length in zip(axes.get(path, ()), array.shape, strict=False):
      if len(names) == 1:
        sizes[names[0]] = length
  spec = Spec(axes, {group: sizes[group] for group in outputs}, outputs, *signed)
  _check(spec, {path: array.shape for path, array in flat.items()})
  return spec


def _check(spec: Spec, shapes: Mapping[Path, tuple[int, ...]]) -> None:
  described = {path for path in spec.axes if path[0] == 'params'}
  if described != set(shapes):
    raise ValueError(f'spec and params differ in {sorted(described ^ set(shapes))}')
  for path, shape in shapes.items():
    axes = spec.axes[path]
    lengths = [sum(spec.sizes[name] for name in names) for names in axes]
    fits = len(axes) == len(shape) and all(
      names == FIXED or length == actual
      for names, length, actual in zip(axes, lengths, shape, strict=True)
    )
    if not fits:
      raise ValueError(f'{"/".join(path)} is of shape {shape}, but its spec is {axes}')


# Parts of models. `flat` holds the arrays of the params by path.

Flat = Mapping[Path, Sequence]
Axes = dict[Path, tuple[Axis, ...]]
Outputs = dict[str, Output]
Signed = frozenset[tuple[Path, int]]


def _affine(flat: Flat, module: Path, inputs: Axis, outputs: Axis) -> Axes:
  """Axes of a convolution or a dense layer."""
  kernel, bias = ('params', *module, 'kernel'), ('params', *module, 'bias')
  spatial = (FIXED,) * (flat[kernel].ndim - 2)
  axes = {kernel: (*spatial, inputs, outputs)}
  return axes | {bias: (outputs,)} if bias in flat else axes


def _norm(module: Path, group: str, kind: str) -> Axes:
  """Axes of a norm of kind 'batch', which has statistics, or 'layer'."""
  paths = [('params', *module, 'scale'), ('params', *module, 'bias')]
  if kind == 'batch':
    paths += [('batch_stats', *module, 'mean'), ('batch_stats', *module, 'var')]
  return dict.fromkeys(paths, ((group,),))


def _feed_forward(flat: Flat, layers: Sequence[tuple[str, str]]) -> tuple[Axes, Outputs]:
  """Axes and outputs of a chain of (module, group) layers with ReLUs between them and a dense head.

  After an image is flattened, the next kernel has a multiple of the group's units as inputs.
  """
  axes, outputs, inputs, size = {}, {}, FIXED, 1
  for module, group in layers:
    kernel = flat['params', module, 'kernel']
    repeats = max(1, kernel.shape[-2] // size)
    units = (group,) if group else FIXED
    axes |= _affine(flat, (module,), inputs * repeats, units)
    if group:
      outputs[group] = Output((module,), relu=True)
    inputs, size = units, kernel.shape[-1]
  return axes, outputs


def _lenet(_: models.LeNet5, flat: Flat) -> tuple[Axes, Outputs]:
  groups = {'Conv_0': 'conv1', 'Conv_1': 'conv2', 'Dense_0': 'dense1', 'Dense_1': 'dense2'}
  return _feed_forward(flat, [*groups.items(), ('Dense_2', '')])


def _vgg(_: models.VGG16, flat: Flat) -> tuple[Axes, Outputs]:
  convs = [
    f'stage{stage + 1}_conv{i + 1}' for stage, n in enumerate(CONVS_PER_STAGE) for i in range(n)
  ]
  return _feed_forward(flat, [*((n, n) for n in [*convs, 'dense1', 'dense2']), ('Dense_0', '')])


def _residual_block(
  flat: Flat, name: str, inputs: str, stage: str, kind: str, norm_first: bool
) -> tuple[Axes, Outputs, str]:
  """Axes and outputs of a residual block, and the group of the stream after it.

  Args:
    inputs: the group of the stream that the block reads.
    stage: the group of the stream after a projection; after an identity shortcut it is `inputs`.
    kind: the kind of the norms.
    norm_first: whether norms precede the convolutions.
  """
  norm = {'batch': 'BatchNorm', 'layer': 'LayerNorm'}[kind]
  projects = ('params', name, 'shortcut', 'kernel') in flat
  stream = stage if projects else inputs
  num_convs = sum(('params', name, f'Conv_{k}', 'kernel') in flat for k in range(3))
  groups = [inputs, *(f'{name}_conv{k}' for k in range(1, num_convs)), stream]
  axes, outputs = {}, {}
  for k in range(num_convs):
    axes |= _affine(flat, (name, f'Conv_{k}'), (groups[k],), (groups[k + 1],))
    axes |= _norm((name, f'{norm}_{k}'), groups[k if norm_first else k + 1], kind)
  for k in range(1, num_convs):
    outputs[groups[k]] = Output((name, f'{norm}_{k if norm_first else k - 1}'), relu=True)
  if projects:
    axes |= _affine(flat, (name, 'shortcut'), (inputs,), (stream,))
    if not norm_first:
      axes |= _norm((name, 'shortcut_norm'), stream, kind)
  # A post-activation block contains its final ReLU; a stream of pre-activation blocks has none.
  outputs[stream] = Output((name,), relu=False)
  return axes, outputs, stream


def _residual_stages(
  flat: Flat, blocks_per_stage: Sequence[int], kind: str, norm_first: bool
) -> tuple[Axes, Outputs, str]:
  """Axes and outputs of all residual blocks, and the group of the last stream. The first is 'stem'."""
  axes, outputs, stream = {}, {}, 'stem'
  for stage, num_blocks in enumerate(blocks_per_stage, start=1):
    for i in range(num_blocks):
      name = f'stage{stage}_block{i + 1}'
      block_axes, block_outputs, stream = _residual_block(
        flat, name, stream, f'stage{stage}', kind, norm_first
      )
      axes |= block_axes
      outputs |= block_outputs
  return axes, outputs, stream


def _preact_resnet(model: models.PreActResNet, flat: Flat) -> tuple[Axes, Outputs]:
  stages = (model.blocks_per_stage,) * 3
  axes, outputs, stream = _residual_stages(flat, stages, model.norm, norm_first=True)
  final_norm = {'batch': 'BatchNorm_0', 'layer': 'LayerNorm_0'}[model.norm]
  axes = _affine(flat, ('Conv_0',), FIXED, ('stem',)) | axes
  axes |= _norm((final_norm,), stream, model.norm) | _affine(flat, ('Dense_0',), (stream,), FIXED)
  return axes, {'stem': Output(('Conv_0',), relu=False)} | outputs


def _resnet50(model: models.ResNet50, flat: Flat) -> tuple[Axes, Outputs]:
  axes, outputs, stream = _residual_stages(flat, BLOCKS_PER_STAGE, model.norm, norm_first=False)
  stem = _affine(flat, ('stem',), FIXED, ('stem',)) | _norm(('stem_norm',), 'stem', model.norm)
  axes = stem | axes | _affine(flat, ('Dense_0',), (stream,), FIXED)
  return axes, {'stem': Output(('stem_norm',), relu=True)} | outputs


def _bilstm(_: models.BiLSTM, flat: Flat) -> tuple[Axes, Outputs, Signed]:
  """Axes of the BiLSTM. Kernels i· of a cell read its inputs and h· its state; biases belong to h·."""
  axes = {('params', 'Embed_0', 'embedding'): (FIXED, ('embedding',))}
  outputs = {'embedding': Output(('Embed_0',), relu=False)}
  inputs = ('embedding',)
  for layer in range(NUM_LAYERS):
    cells = tuple(f'layer{layer + 1}_{direction}' for direction in ('forward', 'backward'))
    for direction, cell in enumerate(cells):
      for gate in 'ifgo':
        axes |= _affine(flat, (cell, f'i{gate}'), inputs, (cell,))
        axes |= _affine(flat, (cell, f'h{gate}'), (cell,), (cell,))
      outputs[cell] = Output((f'RNN_{2 * layer + direction}',), relu=False)
    inputs = cells
  axes |= _affine(flat, ('Dense_0',), inputs, FIXED)
  # The last axis is an array's output. For gates it keeps its sign, except for the candidate's.
  of_other_gates = {path for path in axes if len(path) == 4 and path[2][1] in 'ifo'}
  signed = {
    (path, axis)
    for path, names in axes.items()
    for axis in range(len(names))
    if names[axis] and (axis < len(names) - 1 or path not in of_other_gates)
  }
  return axes, outputs, frozenset(signed)


# Each function returns the axes, the outputs and, if units may change sign, the signed places.
SPECS: dict[type[nn.Module], Callable[[nn.Module, Flat], tuple]] = {
  models.LeNet5: _lenet,
  models.PreActResNet: _preact_resnet,
  models.VGG16: _vgg,
  models.ResNet50: _resnet50,
  models.BiLSTM: _bilstm,
}
