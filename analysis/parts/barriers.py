"""Barriers along paths between networks: do student and teacher share a basin?

There are three parts: `barriers` between all pairs of networks, `paths` with the curves of chosen pairs,
and `layers`, which moves one layer of the student at a time to the teacher's. Networks are compared as they
are and aligned (`analysis.matching`), with interpolated and with re-estimated BatchNorm statistics (Jordan
et al. 2023, "REPAIR"). Axes: K network, Q pair, V variant of a path, A alignment, T position on it, L
layer, C change of a layer, N example, P point.
"""

import dataclasses
import itertools
from collections.abc import Callable, Sequence
from functools import partial

import jax
import numpy as np

from kdjax import keys
from kdjax.runtime import progress
from kdjax.train.steps import Variables

from .. import matching, paths, surface
from ..estimates import named
from ..figures import barriers as drawing
from ..matching import Aligned, Aligner
from ..measure import Measure
from ..part import Arrays, Blocks, Checks, Part, Settings, stacked
from ..runs import Study
from . import planes

SHOWN = ('distillation/loss', 'test/predictive_kl', 'test/top1_agreement')  # along a path

BEZIER_EXAMPLES = 4  # times the measured ones, which a curve would overfit
BEZIER_LEARNING_RATE = 0.01
ALL = ('all',)  # value of --pairs


@dataclasses.dataclass(frozen=True)
class Variant:
  """One path between two networks."""

  name: str
  aligned: bool = False  # whether the second network's units are permuted first
  reestimate: bool = False
  is_curve: bool = False


_MATRIX_VARIANTS = (
  Variant('as they are'),
  Variant('re-estimated', reestimate=True),
  Variant('aligned', aligned=True),
  Variant('aligned, re-estimated', aligned=True, reestimate=True),
)
_PATH_VARIANTS = (
  _MATRIX_VARIANTS[0],
  _MATRIX_VARIANTS[1],
  _MATRIX_VARIANTS[3],
  Variant('curve, re-estimated', reestimate=True, is_curve=True),
)


# Networks.


class _Networks:
  """Networks of one architecture, their own values, and their alignments."""

  def __init__(self, study: Study, names: Sequence[str], settings: Settings, checks: Checks):
    self.study, self.checks = study, checks
    self.points = {name: jax.device_get(study.point(name)) for name in names}
    self.measured = Measure(study, settings.num_examples)
    self.has_statistics = bool(self.points['student']['batch_stats'])
    self.aligner = Aligner(study, settings, checks)
    self._ends: dict[tuple[str, bool], surface.Values] = {}

  @property
  def context(self) -> Arrays:
    return self.measured.context | self.aligner.context

  def variants(self, variants: Sequence[Variant]) -> list[Variant]:
    """The variants that apply to these networks.

    Without BatchNorm nothing is re-estimated, and variants that differ only in that are merged.
    """
    if self.aligner.lacking:
      variants = [v for v in variants if not v.aligned]
    if self.has_statistics:
      return list(variants)
    bare = [
      dataclasses.replace(v, name=v.name.replace(', re-estimated', ''), reestimate=False)
      for v in variants
      if v.name != 're-estimated'
    ]
    return list(dict.fromkeys(bare))

  def aligned(self, name: str, target: str) -> Aligned:
    """Aligns a network to a target."""
    return self.aligner.best(self.points[name], self.points[target])

  def alignments(self, a: str, b: str) -> Arrays:
    """All alignments of b to a; empty if the architecture cannot be aligned.

    'alignments/halfway' is the loss halfway minus the mean loss of the ends, on the measured examples;
    'alignments/loss' is the loss halfway on the examples of the choice.
    """
    if self.aligner.lacking:
      return {}
    found = self.aligned(b, a)
    ends = [self._at_end(name, True)['distillation/loss'].mean() for name in (a, b)]
    heights = []
    for order in found.candidates.values():
      middle = self.aligner.applied(order, self.points[b])
      values = matching.halfway(self.measured, self.points[a], middle)
      heights.append(values['distillation/loss'].mean() - np.mean(ends))
    return {
      'alignments/names': np.array(list(found.candidates)),
      'alignments/loss': np.array(list(found.heights.values())),
      'alignments/halfway': np.array(heights),
      'alignments/chosen': np.array(found.chosen),
    }

  def along(
    self, a: str, b: str, variant: Variant, ts_T: np.ndarray, middle: Variables | None = None
  ) -> surface.Values:
    """values_TN along the path from a to b; checks its ends."""
    ends = self.points[a], self.aligned(b, a).variables if variant.aligned else self.points[b]
    build, shared = paths.line_point, ends
    if variant.is_curve:
      build, shared = paths.bezier_point, (ends[0], middle, ends[1])
    values = self.measured.at(build, shared, ts_T[:, None], variant.reestimate)
    self.check_end(values, 0, a, variant.reestimate)
    self.check_end(values, -1, b, variant.reestimate)
    return values

  def check_end(self, values: surface.Values, place: int, name: str, reestimate: bool) -> None:
    """Checks that the point at `place` has the values of the unpermuted network itself."""
    expected = self._at_end(name, reestimate)
    planes.check_point(self.checks, 'ends reproduced', values, place, expected)

  def _at_end(self, name: str, reestimate: bool) -> surface.Values:
    key = name, reestimate
    if key not in self._ends:
      self._ends[key] = self.measured.variables(self.points[name], reestimate)
    return self._ends[key]


def _names(study: Study, settings: Settings) -> list[str]:
  """All networks, except members beyond `max_members`."""
  left_out = {f'teacher {i}' for i in range(settings.max_members, study.num_members)}
  return [name for name in study.names if name not in left_out]


def _barriers(values: surface.Values, ts_T: np.ndarray, seed: int) -> Arrays:
  """Barriers of the distillation loss and of the test error, each with its interval."""
  loss = paths.barrier_interval(values['distillation/loss'], ts_T, seed)
  error = paths.barrier_interval(1 - values['test/accuracy'], ts_T, seed)
  return named('loss', loss) | named('error', error)


def _of_pairs(
  title: str,
  pairs: Sequence[tuple[str, str]],
  blocks: Blocks,
  compute: Callable[[str, str, Callable[[str], None]], Arrays],
) -> Arrays:
  """compute(a, b, say) of all pairs along a new first axis; say(text) shows what is being done."""
  found = []
  with progress.bar(title, len(pairs), 'pairs') as show:
    for a, b in pairs:
      say = lambda text, names=f'{a} and {b}': show(len(found), f'{names}, {text}')
      found.append(blocks.get(f'{a} {b}', partial(compute, a, b, say)))
      show(len(found), f'{a} and {b}')
  return stacked(found)


# Barriers between all pairs.


def compute_barriers(study: Study, settings: Settings, blocks: Blocks, checks: Checks) -> Arrays:
  """Computes the barriers_QV of all pairs of networks; pairs_Q2 are indices into names_K."""
  names = _names(study, settings)
  networks = _Networks(study, names, settings, checks)
  variants = networks.variants(_MATRIX_VARIANTS)
  ts_T = np.linspace(0, 1, settings.path_points)
  pairs_Q2 = list(itertools.combinations(range(len(names)), 2))

  def compute_pair(a: str, b: str, say: Callable[[str], None]) -> Arrays:
    pieces = []
    for variant in variants:
      say(variant.name)
      pieces.append(_barriers(networks.along(a, b, variant, ts_T), ts_T, study.seed))
    return stacked(pieces) | networks.alignments(a, b)

  pairs = list(itertools.combinations(names, 2))
  found = _of_pairs('barriers', pairs, blocks, compute_pair)
  context = networks.context | {'variants': np.array([variant.name for variant in variants])}
  return context | {'names': np.array(names), 'pairs': np.array(pairs_Q2)} | found


# Curves of chosen pairs.


def compute_paths(study: Study, settings: Settings, blocks: Blocks, checks: Checks) -> Arrays:
  """Computes means_QVT with intervals along the paths of chosen pairs, and their barriers_QV."""
  pairs = _chosen_pairs(study, settings)
  ends = {name for pair in pairs for name in pair} | {'student'}
  networks = _Networks(study, [name for name in study.names if name in ends], settings, checks)
  variants = networks.variants(_PATH_VARIANTS)
  train_curve = _curve_trainer(study, settings)
  ts_T = np.linspace(0, 1, settings.path_points)

  def compute_pair(a: str, b: str, say: Callable[[str], None]) -> Arrays:
    report = lambda step, _: say(f'step {step} of the curve')
    middle = train_curve(networks.points[a], networks.points[b], show=report)
    pieces = []
    for variant in variants:
      say(variant.name)
      values = networks.along(a, b, variant, ts_T, middle)
      summary = surface.summary({key: values[key] for key in SHOWN}, study.seed)
      pieces.append(summary | _barriers(values, ts_T, study.seed))
    return stacked(pieces)

  found = _of_pairs('paths', pairs, blocks, compute_pair)
  context = networks.context | {'variants': np.array([variant.name for variant in variants])}
  about = {
    'pair_names': np.array(pairs),
    'ts': ts_T,
    'bezier_steps': np.array(settings.bezier_steps),
  }
  return context | about | found


def _chosen_pairs(study: Study, settings: Settings) -> list[tuple[str, str]]:
  """The pairs of settings.pairs; by default the available ones of `asked_for`."""
  names = _names(study, settings)
  if settings.pairs == ALL:
    return list(itertools.combinations(names, 2))
  if settings.pairs:
    return [_split(pair) for pair in settings.pairs]
  other_student = 'sibling' if 'sibling' in names else 'independent'
  asked_for = [
    ('student', 'teacher 0'),
    ('student', other_student),
    ('initial', 'student'),
    ('teacher 0', 'teacher 1'),
  ]
  return [pair for pair in asked_for if set(pair) <= set(names)]


def _split(pair: str) -> tuple[str, str]:
  first, _, last = (name.strip() for name in pair.partition(':'))
  return first, last


def misnamed_pairs(names: list[str], settings: Settings) -> list[str]:
  """The problems of settings.pairs, given the names of the available networks."""
  if settings.pairs == ALL:
    return []
  return [
    f"--pairs: '{pair}': allowed: 'all', or two different ones of {', '.join(names)} with a colon "
    'between them'
    for pair in settings.pairs
    if len(set(_split(pair))) < 2 or not set(_split(pair)) <= set(names)
  ]


def _curve_trainer(study: Study, settings: Settings) -> Callable[..., Variables]:
  """A function (a, b, show=...) that returns the middle of a trained Bezier curve."""
  measured = Measure(study, BEZIER_EXAMPLES * settings.num_examples)
  objective = measured.objective('distillation')
  return partial(
    paths.train_bezier,
    partial(surface.batch_loss, model=measured.model, objective=objective),
    batches=paths.training_batches(
      measured.batches('distillation'), study.experiment.config.student.batch_size
    ),
    num_steps=settings.bezier_steps,
    learning_rate=BEZIER_LEARNING_RATE,
    rng=keys.stream(study.seed, 'analysis/bezier'),
  )


# Layer by layer.

_CHANGES = (  # name, position between the layers of student and teacher, whether these are aligned
  ('halfway, aligned', 0.5, True),
  ('replaced, aligned', 1.0, True),
  ('halfway, as it is', 0.5, False),
  ('replaced, as it is', 1.0, False),
)


def compute_layers(study: Study, settings: Settings, blocks: Blocks, checks: Checks) -> Arrays:
  """Computes the changes_CL of the student's values when one layer moves to that of teacher 0."""
  networks = _Networks(study, ['student', 'teacher 0'], settings, checks)
  names = paths.layer_names(networks.points['student'])
  inputs_BX = networks.measured.batches('distillation')[0]['inputs']
  by_depth = surface.layers(networks.measured.model, inputs_BX)
  order_L = [names.index(name) for name in by_depth]

  chosen = [change for change in _CHANGES if not (change[2] and networks.aligner.lacking)]
  changes = []
  with progress.bar('layers', len(chosen), 'changes') as show:
    for name, t, aligned in chosen:
      changes.append(blocks.get(name, partial(_move_layers, networks, t, aligned, order_L)))
      show(len(changes), name)
  student = networks.measured.variables(networks.points['student'], networks.has_statistics)
  baseline = surface.summary({key: student[key] for key in SHOWN}, study.seed)
  return (
    networks.context
    | {'layers': np.array(by_depth), 'changes': np.array([name for name, _, _ in chosen])}
    | {f'student/{key}': x[0] for key, x in baseline.items()}
    | stacked(changes)
  )


def _move_layers(networks: _Networks, t: float, aligned: bool, order_L: list[int]) -> Arrays:
  """Paired differences from the student when one layer moves by t towards the teacher's."""
  teacher = networks.points['teacher 0']
  if aligned:
    teacher = networks.aligned('teacher 0', 'student').variables
  ends = networks.points['student'], teacher
  none_1L = np.zeros((1, len(order_L)))
  rows_PL = np.concatenate([none_1L, t * np.eye(len(order_L))[order_L], none_1L + 1])
  values = networks.measured.at(paths.layerwise_point, ends, rows_PL, networks.has_statistics)
  for place, name in ((0, 'student'), (-1, 'teacher 0')):
    networks.check_end(values, place, name, networks.has_statistics)
  differences = {key: values[key][1:-1] - values[key][:1] for key in SHOWN}
  return surface.summary(differences, networks.study.seed)


# Parts.


def pairs_unavailable(study: Study) -> str | None:
  """Why there are no two networks to compare; None if there are."""
  others = study.initial_is_kept, study.siblings, study.independent
  if study.lacks_teacher and not any(others):
    return (
      'the student is alone: there is no teacher of its architecture, no initial checkpoint '
      '(config.student.keep_checkpoints lacks 0.0), no sibling and no independent student'
    )
  return None


PARTS = (
  Part(
    name='barriers',
    compares_others=True,
    title='Barriers between networks',
    answers='do student, teachers, siblings and initial student share a basin, as they are or aligned?',
    reads=(*matching.READS, 'max_members', 'path_points'),
    compute=compute_barriers,
    draw=drawing.draw_barriers,
    caption=drawing.caption_barriers,
    table=drawing.table_barriers,
    unavailable=pairs_unavailable,
    version=2,
  ),
  Part(
    name='paths',
    compares_others=True,
    title='Paths between networks',
    answers='how do loss and agreement change on lines and on a trained curve between two networks?',
    reads=(*matching.READS, 'max_members', 'path_points', 'bezier_steps', 'pairs'),
    compute=compute_paths,
    draw=drawing.draw_paths,
    caption=drawing.caption_paths,
    table=drawing.table_paths,
    unavailable=pairs_unavailable,
    misnamed=misnamed_pairs,
    version=3,
  ),
  Part(
    name='layers',
    title='Layer by layer from the student to the teacher',
    answers='in which layers does the student differ from its teacher?',
    reads=matching.READS,
    compute=compute_layers,
    draw=drawing.draw_layers,
    caption=drawing.caption_layers,
    table=drawing.table_layers,
    unavailable=lambda study: study.lacks_teacher,
    version=2,
  ),
)
