"""Stage 'evaluation': generalization and fidelity of the student, in result.json.

Splits are not augmented; 'distillation' has views that the student was trained on.
Axes: M member, V view, N example, C class.
"""

import dataclasses
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import numpy as np
from etils import epath
from ml_collections import ConfigDict

from kdjax import config as config_lib
from kdjax import keys, metrics
from kdjax.predictions.teachers import combine
from kdjax.runtime import files, hosts
from kdjax.stages import comparison, independent, predictions, student, teachers
from kdjax.stages.experiment import Experiment
from kdjax.stages.stage import Job, Stage
from kdjax.train import loop, trackers
from kdjax.train.inputs import Inputs

# The version of result.json. A result of another version is computed again. Raise it when a change of the code
# gives other or more numbers for the same student.
VERSION = 1
# The models that are compared with the teacher: their names in result.json and in logits.npz.
WRITTEN = {comparison.STUDENT: 'student', comparison.INDEPENDENT: 'independent'}
SUMMARISED = ('accuracy', 'nll', 'top1_agreement', 'predictive_kl')  # for trackers


def _job(experiment: Experiment, is_complete: Callable[[Experiment], bool]) -> Job:
  folder = experiment.folders.student
  return Job(
    folder,
    is_complete=partial(is_complete, experiment),
    make=partial(_make, experiment),
    missing=f'the student is not evaluated: there is no {folder / "result.json"}.',
    # config.json has the settings of result.json, and the present place of the data.
    provenance=experiment.data.everything,
    replaces_config=True,
  )


def _requires(experiment: Experiment) -> list[Stage]:
  found = [student.STAGE, *predictions.sources(experiment)]
  if independent.is_wanted(experiment):
    found.append(independent.STAGE)
  if experiment.config.evaluation.num_cka_examples:
    found.append(teachers.STAGE)
  return found


def is_evaluated(experiment: Experiment) -> bool:
  """Whether both files exist, and result.json has this VERSION and the settings of `evaluation`."""
  path, logits = (experiment.folders.student / name for name in ('result.json', 'logits.npz'))

  def is_there() -> bool:
    if not (path.exists() and logits.exists()):
      return False
    found = files.read_json(path)
    if found.get('version') != VERSION:
      return False
    has_baseline = 'independent' in found['splits']['test']
    has_settings = _answers(found.get('evaluation', {}), _settings(experiment))
    return has_settings and has_baseline == wants_baseline

  wants_baseline = independent.is_wanted(experiment)
  return hosts.decide(is_there)


def _has_result(experiment: Experiment) -> bool:
  return hosts.decide(lambda: (experiment.folders.student / 'result.json').exists())


STAGE = Stage('evaluation', lambda experiment: [_job(experiment, is_evaluated)], _requires)
# The report requires a result of any version and with any settings.
ANY_RESULT = Stage('evaluation', lambda experiment: [_job(experiment, _has_result)])


def _make(experiment: Experiment) -> None:
  """Writes logits.npz and then result.json.

  logits.npz has the logits of the student and of the independent student, and the teacher's log_probs, on
  every split.
  """
  pupils, teacher = _pupils(experiment), predictions.open_teacher(experiment)
  num_resamples = experiment.config.evaluation.num_bootstrap
  results, arrays = {}, {}
  for name, split in experiment.data.splits.items():
    log_probs_MNC = teacher.members(name)
    piece = _piece(experiment, pupils, name, 0, log_probs_MNC, split.labels_N)
    results[name] = _result([piece], num_resamples)
    results[name]['members'] = [
      metrics.generalization(member_NC, split.labels_N)
      | metrics.fidelity(member_NC, piece.teacher_NC)
      for member_NC in log_probs_MNC
    ]
    results[name]['teacher_wrong'] = _where_teacher_is_wrong(piece, num_resamples)
    arrays |= {
      f'{name}/{WRITTEN[who]}_logits_NC': logits_NC for who, logits_NC in piece.pupils_NC.items()
    }
    arrays[f'{name}/teacher_log_probs_NC'] = piece.teacher_NC
  inputs = experiment.data.inputs['distillation']
  results['distillation'] = _result(
    (
      _piece(
        experiment,
        pupils,
        'distillation',
        view,
        teacher.members('distillation', view),
        experiment.predictor.labels(inputs, view),
      )
      for view in _sampled_views(experiment)
    ),
    num_resamples,
  )
  files.write_arrays(experiment.folders.student / 'logits.npz', arrays)
  results['distillation']['last_epoch'] = loop.last_epoch_means(
    experiment.folders.student, experiment.student.plan
  )
  fingerprints = {
    'teacher': config_lib.teacher_fingerprint(experiment.config),
    'predictions': config_lib.predictions_fingerprint(experiment.config),
    'student': config_lib.student_fingerprint(experiment.config),
  }
  result = {
    'version': VERSION,
    'fingerprints': fingerprints,
    'evaluation': _settings(experiment),
    'splits': results,
  }
  if experiment.config.evaluation.num_cka_examples:
    result['cka'] = _cka(experiment, pupils[comparison.STUDENT])
  # Before result.json: if a tracker fails, the same command evaluates the student again.
  if hosts.is_main() and experiment.tracked_by:
    rows = files.read_json_lines(experiment.folders.student / 'metrics.jsonl')
    tracking = trackers.Tracking(student.tracked(experiment), rows, is_finished=True)
    tracking.summary(summary(result))
    tracking.finish(failed=False)
  files.write_json(experiment.folders.student / 'result.json', result)


def summary(result: dict[str, Any]) -> dict[str, float]:
  """The main numbers of a result for trackers: {'result/test/student/accuracy': 0.97, ...}."""
  return {
    f'result/{split}/{who}/{name}': values[who][name]
    for split, values in result['splits'].items()
    for who in ('student', 'teacher', 'fidelity', 'independent')
    for name in SUMMARISED
    if values.get(who, {}).get(name) is not None
  }


def _settings(experiment: Experiment) -> dict[str, Any]:
  """The settings that result.json depends on, beside the student."""
  return {k: v for k, v in experiment.config.evaluation.to_dict().items() if k != 'batch_size'}


def _answers(found: dict[str, Any], asked: dict[str, Any]) -> bool:
  """Whether a result computed with the settings `found` answers `asked`; extra CKA is allowed.

  Otherwise two sweeps that share a student, one with CKA, would compute its result again in turn.
  """
  return asked == (found if asked['num_cka_examples'] else found | {'num_cka_examples': 0})


def result(experiment: Experiment) -> dict[str, Any]:
  """The content of result.json.

  Raises:
    MissingInputError: the student is not evaluated.
  """
  ANY_RESULT.require(experiment)
  return files.read_json(experiment.folders.student / 'result.json')


def results(configs: Iterable[ConfigDict], workdir: epath.Path) -> dict[int, dict[str, Any]]:
  """The content of result.json of the configs that are evaluated, by their index."""
  experiments = enumerate(Experiment(config, workdir) for config in configs)
  return {i: result(experiment) for i, experiment in experiments if is_evaluated(experiment)}


@dataclasses.dataclass(frozen=True)
class _Pupil:
  """A model that is compared with the teacher: the student of an experiment."""

  experiment: Experiment
  variables: Any

  def logits(self, inputs: Inputs, view: int) -> np.ndarray:
    """logits_NC of one view of all examples. The inputs may be those of another experiment."""
    model, predictor = self.experiment.student.model, self.experiment.predictor
    return predictor.logits(model, self.variables, inputs, view)


def _pupils(experiment: Experiment) -> dict[str, _Pupil]:
  pupils = {comparison.STUDENT: _Pupil(experiment, student.load(experiment))}
  if independent.is_wanted(experiment):
    other = independent.counterpart(experiment)
    pupils[comparison.INDEPENDENT] = _Pupil(other, student.load(other))
  return pupils


@dataclasses.dataclass(frozen=True)
class _Piece:
  """One view of a split: the outputs of all models, and the labels."""

  pupils_NC: dict[str, np.ndarray]  # logits
  teacher_NC: np.ndarray  # log_probs of the ensemble
  labels_N: np.ndarray  # −1 where there is none

  @property
  def student_NC(self) -> np.ndarray:
    return self.pupils_NC[comparison.STUDENT]

  def fidelity(self, chosen: np.ndarray | slice = slice(None)) -> dict[str, comparison.Fidelity]:
    """Fidelity of every pupil on the chosen examples."""
    return {
      who: comparison.fidelity(logits_NC[chosen], self.teacher_NC[chosen])
      for who, logits_NC in self.pupils_NC.items()
    }


def _piece(
  experiment: Experiment,
  pupils: dict[str, _Pupil],
  name: str,
  view: int,
  log_probs_MNC: np.ndarray,
  labels_N: np.ndarray,
) -> _Piece:
  inputs = experiment.data.inputs[name]
  pupils_NC = {who: pupil.logits(inputs, view) for who, pupil in pupils.items()}
  return _Piece(pupils_NC, combine(log_probs_MNC), labels_N)


def _result(pieces: Iterable[_Piece], num_resamples: int) -> dict[str, Any]:
  """Averages over all examples, and the comparison of fidelity (`comparison.compare`).

  'student' and 'teacher' are empty if no example has a label. `pieces` are views of the same examples.
  """
  student_sums, teacher_sums, num_examples, num_labelled = metrics.Sums(), metrics.Sums(), 0, 0
  views: dict[str, list[comparison.Fidelity]] = {}
  for piece in pieces:
    labelled_N = piece.labels_N >= 0
    if labelled_N.any():
      labels_N = piece.labels_N[labelled_N]
      student_sums.add(metrics.generalization_values(piece.student_NC[labelled_N], labels_N))
      teacher_sums.add(metrics.generalization_values(piece.teacher_NC[labelled_N], labels_N))
    for who, fidelity in piece.fidelity().items():
      views.setdefault(who, []).append(fidelity)
    num_examples += len(piece.labels_N)
    num_labelled += labelled_N.sum()
  means = {
    'student': metrics.generalization_means(student_sums) if num_labelled else {},
    'teacher': metrics.generalization_means(teacher_sums) if num_labelled else {},
  }
  # The NLL of a teacher is infinite if the stored probability of a label is 0.
  means = {
    who: {name: x if np.isfinite(x) else None for name, x in found.items()}
    for who, found in means.items()
  }
  models = {who: comparison.over_views(fidelities) for who, fidelities in views.items()}
  return {'num_examples': num_examples} | means | _compared(models, num_resamples)


def _where_teacher_is_wrong(piece: _Piece, num_resamples: int) -> dict[str, Any]:
  """Fidelity on the examples that the teacher gets wrong, where accuracy alone gives no agreement."""
  wrong_N = (piece.labels_N >= 0) & (piece.teacher_NC.argmax(-1) != piece.labels_N)
  if not wrong_N.any():
    return {'num_examples': 0}
  compared = _compared(piece.fidelity(wrong_N), num_resamples)
  return {'num_examples': int(wrong_N.sum())} | compared


def _compared(models: dict[str, comparison.Fidelity], num_resamples: int) -> dict[str, Any]:
  return comparison.compare(models, num_resamples, keys.numpy_rng(0, 'bootstrap'))


def _cka(experiment: Experiment, pupil: _Pupil) -> dict[str, dict[str, float | None]]:
  """{feature: {'member_0': CKA, ...}} for the features that both models have; None if one is constant."""
  inputs = experiment.data.inputs['test']
  order_N = keys.numpy_rng(0, 'cka').permutation(
    len(inputs.split)
  )  # examples may be sorted by class
  indices_N = np.sort(order_N[: experiment.config.evaluation.num_cka_examples])
  student_features = experiment.predictor.features(
    experiment.student.model, pupil.variables, inputs, indices_N
  )
  found: dict[str, dict[str, float | None]] = {}
  for member in range(experiment.config.teacher.num_members):
    variables = teachers.load(experiment, member)
    member_features = experiment.predictor.features(
      experiment.teacher.model, variables, inputs, indices_N
    )
    for name in student_features:
      if name in member_features:
        cka = metrics.linear_cka(student_features[name], member_features[name])
        found.setdefault(name, {})[f'member_{member}'] = cka
  return found


def _sampled_views(experiment: Experiment) -> list[int]:
  """Up to `evaluation.num_views` of the views that the student was trained on, evenly spaced."""
  plan = experiment.student.plan
  num_epochs = max(1, round(plan.epoch(plan.num_steps)))
  num_seen = min(experiment.config.predictions.num_views, num_epochs)
  count = min(experiment.config.evaluation.num_views, num_seen)
  return [num_seen * i // count for i in range(count)]
