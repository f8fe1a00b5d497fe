"""The alignment of two networks of a study, shared by all parts.

The candidate with the lowest loss halfway between the two networks is chosen, with BatchNorm statistics
re-estimated there. If there are enough data, the choice uses examples that are not measured. Alignments are
kept in <study.folder>/alignments for other parts.
Axes: B example of a batch, X the axes of one input.
"""

import dataclasses
from functools import partial

import jax
import numpy as np

from kdjax import keys
from kdjax.train.checkpoint import digest
from kdjax.train.steps import Variables

from . import activations, alignment, part, paths, permutations, surface
from .measure import Measure
from .part import Arrays, Blocks, Checks, Settings
from .paths import Batch, Loss
from .runs import Study

MATCHED_EXAMPLES = 256  # for activations, and for the check that logits stay unchanged
TOLERANCE = 1e-3  # of logits, relative where they are above 1; float32 gives about 1e-6
VERSION = 1  # raise it when a change of the code changes alignments
READS = ('num_examples', 'alignment_restarts', 'alignment_steps')  # settings of an alignment


@dataclasses.dataclass(frozen=True)
class Aligned:
  """A network with permuted units, and all candidate permutations."""

  variables: Variables
  chosen: str  # the candidate that was applied
  candidates: dict[str, alignment.Permutations]
  heights: dict[str, float]  # the loss halfway, on the examples of the choice


class Aligner:
  """Aligns networks of a study's architecture.

  Attributes:
    lacking: why the architecture cannot be aligned; None if it can.
  """

  def __init__(self, study: Study, settings: Settings, checks: Checks):
    self.lacking = permutations.lacks_spec(study.experiment.student.model)
    if self.lacking:
      return
    self._study, self._settings, self._checks = study, settings, checks
    count = settings.num_examples
    self._measured = Measure(study, count, skip=count)
    self._model = self._measured.model
    batches = self._measured.batches('distillation')
    batch_size = study.experiment.config.student.batch_size
    self._batches = paths.training_batches(batches, batch_size)
    self._inputs_BX = np.concatenate([batch['inputs'] for batch in batches])[:MATCHED_EXAMPLES]
    self._loss = partial(
      surface.batch_loss, model=self._model, objective=self._measured.objective('distillation')
    )
    self._blocks = Blocks(study.folder / 'alignments', checks)
    self._found: dict[str, Aligned] = {}

  @property
  def context(self) -> dict[str, np.ndarray]:
    """The number of examples that alignments are chosen on, and how many of them are measured too."""
    if self.lacking:
      return {'no_alignment': np.array(self.lacking)}
    count = self._measured.num_examples('distillation')
    return {'alignment_examples': np.array([count, self._measured.overlap])}

  def best(self, variables: Variables, target: Variables) -> Aligned:
    """Aligns a network to a target, and checks that its function is unchanged."""
    networks = [digest(variables), digest(target)]
    reads = {name: getattr(self._settings, name) for name in READS}
    reads['batch_size'] = self._study.experiment.config.evaluation.batch_size  # of the statistics
    key = part.digest({'version': VERSION, 'networks': networks, 'settings': reads})
    if key not in self._found:
      compute = partial(self._compute, ' '.join(networks), variables, target)
      self._found[key] = self._aligned(self._blocks.get(key, compute), variables)
    return self._found[key]

  def applied(self, permutations: alignment.Permutations, variables: Variables) -> Variables:
    """Permutes a network, and checks that its function is unchanged.

    Raises:
      CheckError: the logits change.
    """
    permuted = alignment.apply(self.spec(variables), permutations, variables)
    before, after = (
      surface.logits(of, self._inputs_BX, model=self._model) for of in (variables, permuted)
    )
    change = np.abs(after - before).max() / max(1, np.abs(before).max())
    self._checks.at_most('logits unchanged by permutations', change, TOLERANCE)
    return permuted

  def spec(self, variables: Variables) -> permutations.Spec:
    return permutations.spec_for(self._model, variables['params'])

  def _compute(self, stream: str, variables: Variables, target: Variables) -> Arrays:
    """All candidates with their losses halfway, as arrays; `stream` seeds all draws."""
    spec = self.spec(variables)
    found = alignment.best_alignment(
      spec,
      target,
      variables,
      keys.numpy_rng(self._study.seed, f'analysis/matching {stream}'),
      height=partial(self._height, target),
      activations=lambda of: activations.group_activations(self._model, of, self._inputs_BX, spec),
      gradient=lambda aligned, step: jax.device_get(
        _halfway_gradient(
          target,
          aligned,
          self._batches[step % len(self._batches)],
          loss=self._loss,
        )
      ),
      restarts=self._settings.alignment_restarts,
      num_steps=self._settings.alignment_steps,
    )
    arrays = {'chosen': np.array(found.name)}
    for name, order in found.candidates.items():
      arrays[f'{name}/height'] = np.array(found.heights[name])
      for group, units in order.items():
        arrays |= {f'{name}/{group}/{field}': x for field, x in units._asdict().items()}
    return arrays

  def _aligned(self, arrays: Arrays, variables: Variables) -> Aligned:
    groups = self.spec(variables).sizes
    names = [key.removesuffix('/height') for key in arrays if key.endswith('/height')]
    candidates = {
      name: {
        group: alignment.Units(
          *(arrays[f'{name}/{group}/{field}'] for field in alignment.Units._fields)
        )
        for group in groups
      }
      for name in names
    }
    heights = {name: float(arrays[f'{name}/height']) for name in names}
    chosen = str(arrays['chosen'])
    return Aligned(self.applied(candidates[chosen], variables), chosen, candidates, heights)

  def _height(self, target: Variables, aligned: Variables) -> float:
    """The mean distillation loss halfway, on the examples of the choice."""
    values = halfway(self._measured, target, aligned)
    return float(values['distillation/loss'].mean())


def halfway(measured: Measure, a: Variables, b: Variables) -> surface.Values:
  """values_1N of the distillation data halfway between two networks, with BatchNorm re-estimated."""
  middle = np.array([[0.5]])
  return measured.at(paths.line_point, (a, b), middle, reestimate=True, sets=['distillation'])


@partial(jax.jit, static_argnames='loss')
def _halfway_gradient(
  target: Variables, aligned: Variables, batch: Batch, *, loss: Loss
) -> Variables:
  """The gradient of the loss halfway with respect to the params of `aligned`."""

  def loss_of(params):
    ends = target, {'params': params, 'batch_stats': aligned['batch_stats']}
    return loss(paths.line_point(ends, 0.5), batch)

  return jax.grad(loss_of)(aligned['params'])
