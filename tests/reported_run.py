"""A made-up run with known numbers, for the tests of reports."""

import csv
import json

import numpy as np
from etils import epath

from kdjax import data
from kdjax.report import index
from kdjax.report import page as report

STUDENT, OTHER = 'aaa111', 'bbb222'
NAMES = ('cat', '<b>dog</b>', 'fox')
MEMBERS = [
  {'accuracy': 0.71, 'nll': 0.81, 'ece': 0.01, 'top1_agreement': 0.92, 'predictive_kl': 0.31},
  {'accuracy': 0.72, 'nll': 0.82, 'ece': 0.02, 'top1_agreement': 0.93, 'predictive_kl': 0.32},
]
SPLIT = {  # of three classes: there is no top-5 agreement
  'num_examples': 6,
  'student': {'accuracy': 0.9712, 'nll': 0.125, 'ece': 0.0345},
  'teacher': {'accuracy': 0.9834, 'nll': 0.0625, 'ece': 0.0123},
  'fidelity': {'top1_agreement': 0.8767, 'predictive_kl': 0.0432, 'cohens_kappa': 0.8},
  'independent': {'top1_agreement': 0.7654, 'predictive_kl': 0.0478, 'cohens_kappa': None},
  'intervals': {
    'fidelity': {
      'top1_agreement': [0.8501, 0.9002],
      'predictive_kl': [0.0402, 0.0455],
      'cohens_kappa': [0.7, 0.9],
    },
    'independent': {
      'top1_agreement': [0.7, 0.99999],  # less than 100 %
      'predictive_kl': [0.03, 0.05],
      'cohens_kappa': None,
    },
  },
  'difference': {
    'top1_agreement': {'mean': 0.1113, 'interval': [0.07, 0.15], 'verdict': 'higher'},
    'predictive_kl': {'mean': -0.0046, 'interval': [-0.0125, 0.0018], 'verdict': 'cannot be told'},
    'cohens_kappa': {'mean': None, 'interval': None, 'verdict': 'cannot be told'},
  },
}
WRONG = {  # on the examples that the teacher gets wrong; there is no independent student here
  'num_examples': 2,
  'fidelity': {'top1_agreement': 0.5, 'predictive_kl': 0.7, 'cohens_kappa': 0.0},
  'intervals': {
    'fidelity': {'top1_agreement': None, 'predictive_kl': [0.6, 0.8], 'cohens_kappa': None}
  },
}
DISTILLATION = SPLIT | {'fidelity': SPLIT['fidelity'] | {'top1_agreement': 0.9911}}
RESULT = {
  'splits': {
    'train': SPLIT | {'members': MEMBERS},
    'test': SPLIT | {'members': MEMBERS, 'teacher_wrong': WRONG},
    'distillation': DISTILLATION,
  },
  'cka': {'stage1': {'member_0': 0.9876, 'member_1': None}},
}
QUALITY = {
  'num_features': 84,
  'teacher': {'fingerprint': 'ccc333', 'member': 0},
  'frechet_distance_teacher_features': {'samples_test': 12.34, 'train_test': 0.567},
}
ENVIRONMENT = {
  'kdjax': '0.1.0',
  'commit': '0123456789abcdef',
  'dirty': True,
  'python': '3.12.1',
  'packages': {'jax': '0.12.0', 'flax': '0.12.1'},
  'devices': {'platform': 'gpu', 'kind': 'H200', 'number': 8},
  'hosts': 2,
  'processor': 'EPYC',
  'xla_flags': '--xla_gpu_deterministic_ops=true',
  'command': 'launch.py --config=shapes.py',
  'date': '2026-11-30T01:02:03+00:00',
  'seconds': 1234.5,
}
CONFIG = {
  'seed': 0,
  'dataset': {'name': 'shapes', 'data_dir': None},
  'predictions': {'augmentation': ['crop', 'flip']},
  'student': {'loss': 'cross_entropy', 'temperature': 4.0, 'alpha': 0.0, 'init_lambda': 0.0},
}
# The teacher's and the student's probabilities of each test image. They differ on images 4, 1 and 3, in
# the order of falling KL. On image 5 they agree with a KL that is larger than those of 1 and 3.
TEACHER_PROBS = [[90, 5, 5], [20, 70, 10], [10, 10, 80], [51, 48, 1], [98, 1, 1], [98, 1, 1]]
STUDENT_PROBS = [[90, 5, 5], [65, 25, 10], [10, 10, 80], [48, 51, 1], [1, 1, 98], [50, 49, 1]]
LABELS = [0, 1, 2, 0, 2, 0]


def without_baseline(agreement: float = SPLIT['fidelity']['top1_agreement']) -> str:
  """A result.json without an independent student."""
  result = json.loads(json.dumps(RESULT))
  for split in result['splits'].values():
    del split['independent'], split['difference'], split['intervals']['independent']
    split['fidelity']['top1_agreement'] = agreement
  return json.dumps(result)


class Run:
  """A workdir with two finished students, one of which has all files for its page."""

  def __init__(self, workdir: epath.Path):
    self.workdir = workdir
    self.students = workdir / 'students'
    self.members = [workdir / 'teachers' / 'ccc333' / f'member_{i}' for i in range(2)]
    self.page = self.students / STUDENT / 'report.html'
    self.index, self.table = workdir / 'report.html', workdir / 'results.csv'
    for temperature, name in ((4.0, STUDENT), (1.0, OTHER)):
      config = CONFIG | {'student': CONFIG['student'] | {'temperature': temperature}}
      self.put(name, 'config.json', json.dumps(config))
      self.put(name, 'result.json', json.dumps(RESULT))
      self.put(name, 'metrics.jsonl', log_text(fidelity=True))
    self.put(STUDENT, 'environment.json', json.dumps(ENVIRONMENT))
    self.put('unfinished', 'config.json', json.dumps(CONFIG))
    self.put_logits(STUDENT_PROBS)
    for folder in self.members:
      folder.mkdir(parents=True)
      (folder / 'metrics.jsonl').write_text(log_text(fidelity=False))
    self.num_loads = 0

  def put(self, student: str, name: str, text: str) -> None:
    (self.students / student).mkdir(parents=True, exist_ok=True)
    (self.students / student / name).write_text(text)

  def put_logits(self, student_probs) -> None:
    with (self.students / STUDENT / 'logits.npz').open('wb') as file:
      np.savez(
        file,
        **{
          'test/student_logits_NC': np.log(np.array(student_probs, np.float32)) + 3,
          'test/teacher_log_probs_NC': np.log(np.array(TEACHER_PROBS, np.float32) / 100),
        },
      )

  def test_split(self) -> data.Split:
    self.num_loads += 1
    inputs_N = np.arange(6 * 4 * 4, dtype=np.uint8).reshape(6, 4, 4, 1)
    return data.Split(inputs_N, np.array(LABELS, np.int32))

  def write(self, student: str = STUDENT, **more) -> bool:
    return report.write(self.students / student, self.members, self.test_split, NAMES, **more)

  def write_index(self) -> bool:
    return index.write(self.workdir)

  def rows(self) -> list[dict[str, str]]:
    return list(csv.DictReader(self.table.read_text().splitlines()))


def log_text(fidelity: bool) -> str:
  rows = []
  for step in range(1, 5):
    row = {'step': step, 'epoch': step / 2, 'train/loss': 2 / step, 'train/accuracy': step / 5}
    if step % 2 == 0:
      row |= {'test/accuracy': step / 6}
    if fidelity:
      row |= {'train/top1_agreement': step / 5, 'train/predictive_kl': 0.1**step}
    rows.append(json.dumps(row) + '\n')
  return ''.join(rows)
