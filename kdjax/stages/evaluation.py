"""The stage after training: generalization and fidelity of the student, in result.json.

The splits are taken as they are; 'distillation' stands for views that the student was trained on.
Axes: M member, V view, N example, C class.
"""

import dataclasses
from collections.abc import Iterable
from typing import Any

import numpy as np
from etils import epath
from ml_collections import ConfigDict

from kdjax import comparison, keys, metrics, similarity
from kdjax import config as config_lib
from kdjax.errors import MissingInputError
from kdjax.runtime import files, hosts
from kdjax.stages import independent, predictions, student, teachers
from kdjax.stages.run import Run
from kdjax.train import loop

# The version of result.json. Raise it when a change of the code gives other numbers, or more of them, for
# the same student: a result of another version is computed again.
VERSION = 1
# Models that are compared with the teacher, by their names in result.json: their names in logits.npz.
WRITTEN = {comparison.STUDENT: 'student', comparison.INDEPENDENT: 'independent'}


def run(run: Run) -> bool:
  """Evaluates the student if it was not evaluated. Returns whether it was not.

  Writes logits.npz, the logits of the student and of the independent student and the teacher's log_probs
  on every split, and then result.json. config.json becomes this run's: it says what result.json was made
  with, and where the data is now.
  """
  if is_evaluated(run):
    run.write_config(run.student_folder, replace=True)
    return False
  pupils, teacher = _pupils(run), predictions.open_teacher(run)  # raise before a lock is written
  if run.config.evaluation.num_cka_examples:
    teachers.require(run)
  with files.lock(run.student_folder):
    if is_evaluated(run):  # by another process, while this one waited
      return False
    run.write_config(run.student_folder, replace=True)
    _evaluate(run, pupils, teacher)
  return True


def _evaluate(run: Run, pupils: 'dict[str, _Pupil]', teacher: predictions.Teacher) -> None:
  num_resamples = run.config.evaluation.num_bootstrap
  results, arrays = {}, {}
  for name, split in run.splits.items():
    log_probs_MNC = teacher.members(name)
    piece = _piece(run, pupils, name, 0, log_probs_MNC, split.labels_N)
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
  inputs = run.inputs['distillation']
  results['distillation'] = _result(
    (
      _piece(
        run,
        pupils,
        'distillation',
        view,
        teacher.members('distillation', view),
        run.labels(inputs, view),
      )
      for view in _sampled_views(run)
    ),
    num_resamples,
  )
  files.write_arrays(run.student_folder / 'logits.npz', arrays)
  results['distillation']['last_epoch'] = loop.last_epoch_means(
    run.student_folder, run.plan('student')
  )
  fingerprints = {
    'teacher': config_lib.teacher_fingerprint(run.config),
    'predictions': config_lib.predictions_fingerprint(run.config),
    'student': config_lib.student_fingerprint(run.config),
  }
  result = {
    'version': VERSION,
    'fingerprints': fingerprints,
    'evaluation': _settings(run),
    'splits': results,
  }
  if run.config.evaluation.num_cka_examples:
    result['cka'] = _cka(run, pupils[comparison.STUDENT])
  files.write_json(run.student_folder / 'result.json', result)


def require_independent(run: Run) -> None:
  """Raises MissingInputError if the independent student is wanted and not trained."""
  if not independent.is_wanted(run):
    return
  if not loop.is_complete(independent.counterpart(run).student_folder):
    raise MissingInputError(
      'the independent student, the baseline of fidelity, is not trained. Run the same command with '
      '--stages=independent first, or go without it: --config.evaluation.independent_seed=None'
    )


def is_evaluated(run: Run) -> bool:
  """Whether both files are there, and result.json is of VERSION and has what `evaluation` asks for."""
  path, logits = (run.student_folder / name for name in ('result.json', 'logits.npz'))

  def is_there() -> bool:
    if not (path.exists() and logits.exists()):
      return False
    found = files.read_json(path)
    if found.get('version') != VERSION:
      return False
    has_baseline = 'independent' in found['splits']['test']
    return _answers(found.get('evaluation', {}), _settings(run)) and has_baseline == wants_baseline

  wants_baseline = independent.is_wanted(run)
  return hosts.decide(is_there)


def _settings(run: Run) -> dict[str, Any]:
  """What result.json depends on beside the student."""
  return {k: v for k, v in run.config.evaluation.to_dict().items() if k != 'batch_size'}


def _answers(found: dict[str, Any], asked: dict[str, Any]) -> bool:
  """Whether a result of some settings has what others ask for: those without CKA do not mind it.

  So two sweeps that share a student, one with CKA, do not take its result from each other.
  """
  return asked == (found if asked['num_cka_examples'] else found | {'num_cka_examples': 0})


def result(run: Run) -> dict[str, Any]:
  """The content of result.json.

  Raises:
    MissingInputError: the student is not evaluated.
  """
  path = run.student_folder / 'result.json'
  if not path.exists():
    raise MissingInputError(
      f'the student is not evaluated: there is no {path}. '
      'Run the same command with --stages=evaluation first.'
    )
  return files.read_json(path)


def results(configs: Iterable[ConfigDict], workdir: epath.Path) -> dict[int, dict[str, Any]]:
  """The content of result.json of those configs that are evaluated, by their place."""
  runs = enumerate(Run(config, workdir) for config in configs)
  return {index: result(run) for index, run in runs if is_evaluated(run)}


@dataclasses.dataclass(frozen=True)
class _Pupil:
  """A model that is compared with the teacher."""

  run: Run
  variables: Any


def _pupils(run: Run) -> dict[str, _Pupil]:
  pupils = {comparison.STUDENT: _Pupil(run, student.load(run))}
  require_independent(run)
  if independent.is_wanted(run):
    other = independent.counterpart(run)
    pupils[comparison.INDEPENDENT] = _Pupil(other, student.load(other))
  return pupils


@dataclasses.dataclass(frozen=True)
class _Piece:
  """One view of a split, as all see it."""

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
  run: Run,
  pupils: dict[str, _Pupil],
  name: str,
  view: int,
  log_probs_MNC: np.ndarray,
  labels_N: np.ndarray,
) -> _Piece:
  pupils_NC = {
    who: pupil.run.predict(pupil.run.student_model, pupil.variables, run.inputs[name], view)
    for who, pupil in pupils.items()
  }
  return _Piece(pupils_NC, predictions.combine(log_probs_MNC), labels_N)


def _result(pieces: Iterable[_Piece], num_resamples: int) -> dict[str, Any]:
  """Averages over all examples, and `comparison.compare` of fidelity.

  'student' and 'teacher' are empty where no example has a label. `pieces` are views of the same examples.
  """
  of_student, of_teacher, num_examples, num_labelled = metrics.Sums(), metrics.Sums(), 0, 0
  views: dict[str, list[comparison.Fidelity]] = {}
  for piece in pieces:
    labelled_N = piece.labels_N >= 0
    if labelled_N.any():
      labels_N = piece.labels_N[labelled_N]
      of_student.add(metrics.generalization_values(piece.student_NC[labelled_N], labels_N))
      of_teacher.add(metrics.generalization_values(piece.teacher_NC[labelled_N], labels_N))
    for who, fidelity in piece.fidelity().items():
      views.setdefault(who, []).append(fidelity)
    num_examples += len(piece.labels_N)
    num_labelled += labelled_N.sum()
  means = {
    'student': metrics.generalization_means(of_student) if num_labelled else {},
    'teacher': metrics.generalization_means(of_teacher) if num_labelled else {},
  }
  models = {who: comparison.over_views(of_views) for who, of_views in views.items()}
  return {'num_examples': num_examples} | means | _compared(models, num_resamples)


def _where_teacher_is_wrong(piece: _Piece, num_resamples: int) -> dict[str, Any]:
  """Fidelity on the examples that the teacher gets wrong: there, being right is no agreement."""
  wrong_N = (piece.labels_N >= 0) & (piece.teacher_NC.argmax(-1) != piece.labels_N)
  if not wrong_N.any():
    return {'num_examples': 0}
  compared = _compared(piece.fidelity(wrong_N), num_resamples)
  return {'num_examples': int(wrong_N.sum())} | compared


def _compared(models: dict[str, comparison.Fidelity], num_resamples: int) -> dict[str, Any]:
  return comparison.compare(models, num_resamples, keys.numpy_rng(0, 'bootstrap'))


def _cka(run: Run, pupil: _Pupil) -> dict[str, dict[str, float | None]]:
  """{feature: {'member_0': CKA, ...}} of the features that both models have; None of a constant one."""
  inputs = run.inputs['test']
  order_N = keys.numpy_rng(0, 'cka').permutation(len(inputs.split))  # a folder's is by class
  indices_N = np.sort(order_N[: run.config.evaluation.num_cka_examples])
  of_student = run.features(run.student_model, pupil.variables, inputs, indices_N)
  found: dict[str, dict[str, float | None]] = {}
  for member in range(run.config.teacher.num_members):
    variables = teachers.load(run, member)
    of_member = run.features(run.teacher_model, variables, inputs, indices_N)
    for name in of_student:
      if name in of_member:
        cka = similarity.linear_cka(of_student[name], of_member[name])
        found.setdefault(name, {})[f'member_{member}'] = cka
  return found


def _sampled_views(run: Run) -> list[int]:
  """`evaluation.num_views` of the views that the student saw, evenly spaced."""
  plan = run.plan('student')
  num_epochs = max(1, round(plan.epoch(plan.num_steps)))
  num_seen = min(run.config.predictions.num_views, num_epochs)
  count = min(run.config.evaluation.num_views, num_seen)
  return [num_seen * i // count for i in range(count)]
