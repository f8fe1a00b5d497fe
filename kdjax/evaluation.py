"""The fourth stage: generalization and fidelity of the trained student, in result.json.

The splits are taken as they are; 'distillation' stands for views that the student was trained on.
"""

import io
from typing import Any

import numpy as np

from kdjax import config as config_lib
from kdjax import files, losses, metrics, predictions, student
from kdjax.errors import MissingInputError
from kdjax.run import Run


def run(run: Run) -> bool:
  """Evaluates the student if it was not evaluated. Returns whether it was not.

  Writes logits.npz, the student's logits and the teacher's log_probs on every split, and then
  result.json.
  """
  if is_evaluated(run):
    return False
  variables, teacher = student.load(run), predictions.open_teacher(run)
  results, arrays = {}, {}
  for name in run.splits:
    logits_NC = run.predict(run.student_model, variables, run.inputs[name])
    log_probs_MNC = teacher.members(name)
    log_probs_NC = np.asarray(losses.ensemble_log_probs(log_probs_MNC))
    labels_N = run.splits[name].labels_N
    results[name] = _result([(logits_NC, log_probs_NC, labels_N)])
    results[name]['members'] = [
      metrics.generalization(member_NC, labels_N) | metrics.fidelity(member_NC, log_probs_NC)
      for member_NC in log_probs_MNC
    ]
    arrays[f'{name}/student_logits_NC'] = logits_NC
    arrays[f'{name}/teacher_log_probs_NC'] = log_probs_NC
  results['distillation'] = _result(
    (
      run.predict(run.student_model, variables, run.inputs['distillation'], view),
      predictions.ensemble(teacher, 'distillation', view),
      run.splits['train'].labels_N,
    )
    for view in _sampled_views(run)
  )
  _write_arrays(run, arrays)
  fingerprints = {
    'teacher': config_lib.teacher_fingerprint(run.config),
    'predictions': config_lib.predictions_fingerprint(run.config),
    'student': config_lib.student_fingerprint(run.config),
  }
  result = {'fingerprints': fingerprints, 'evaluation': _settings(run), 'splits': results}
  files.write_json(run.student_folder / 'result.json', result)
  return True


def is_evaluated(run: Run) -> bool:
  """Whether result.json is there, and has what the `evaluation` section asks for."""
  path = run.student_folder / 'result.json'
  return path.exists() and files.read_json(path).get('evaluation') == _settings(run)


def _settings(run: Run) -> dict[str, int]:
  """What result.json depends on beside the student."""
  return {'num_views': run.config.evaluation.num_views}


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


def _result(pieces) -> dict[str, Any]:
  """Of (student logits_NC, teacher log_probs_NC, labels_N) pieces, averaged over all examples."""
  of_student, of_teacher, of_both, num_examples = metrics.Sums(), metrics.Sums(), metrics.Sums(), 0
  for logits_NC, log_probs_NC, labels_N in pieces:
    of_student.add(metrics.generalization_values(logits_NC, labels_N))
    of_teacher.add(metrics.generalization_values(log_probs_NC, labels_N))
    of_both.add(metrics.fidelity_values(logits_NC, log_probs_NC))
    num_examples += len(labels_N)
  return {
    'num_examples': num_examples,
    'student': metrics.generalization_means(of_student),
    'teacher': metrics.generalization_means(of_teacher),
    'fidelity': metrics.fidelity_means(of_both),
  }


def _sampled_views(run: Run) -> list[int]:
  """`evaluation.num_views` of the views that the student saw, evenly spaced."""
  plan = run.plan(run.config.student)
  num_epochs = max(1, round(plan.epoch(plan.num_steps)))
  num_seen = min(run.config.predictions.num_views, num_epochs)
  count = min(run.config.evaluation.num_views, num_seen)
  return [num_seen * i // count for i in range(count)]


def _write_arrays(run: Run, arrays: dict[str, np.ndarray]) -> None:
  buffer = io.BytesIO()
  np.savez(buffer, **arrays)
  (run.student_folder / 'logits.npz').write_bytes(buffer.getvalue())
