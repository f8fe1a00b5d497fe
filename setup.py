"""Packaging. Each dependency says what it is for; lower bounds are the oldest versions tested."""

import pathlib
import re

from setuptools import find_packages, setup

ROOT = pathlib.Path(__file__).parent
VERSION = re.search(r"__version__ = '(.*)'", (ROOT / 'kdjax' / '__init__.py').read_text())[1]
# The address of the repository. `python -m tests.notebooks` writes it to README.md and the notebooks.
REPOSITORY = 'https://github.com/OWNER/kdjax'
# A wheel installs one top-level name, kdjax. There, `analysis` and `configs` are packages of kdjax.
INSIDE = {'analysis': 'kdjax.analysis', 'configs': 'kdjax.experiments'}


def packages() -> list[str]:
  found = find_packages(include=['kdjax*', *(f'{folder}*' for folder in INSIDE)])
  return [re.sub(r'^\w+', lambda top: INSIDE.get(top[0], top[0]), name) for name in found]


setup(
  name='kdjax',
  version=VERSION,
  description='Does knowledge distillation really work? Measure fidelity and generalization in JAX.',
  long_description=(ROOT / 'README.md').read_text(),
  long_description_content_type='text/markdown',
  license='Apache-2.0',
  url=REPOSITORY,
  python_requires='>=3.11',
  packages=packages(),
  package_dir={name: folder for folder, name in INSIDE.items()},
  entry_points={'console_scripts': ['kdjax = kdjax.interface.command_line:run']},
  package_data={'kdjax': ['py.typed', 'report/*.html.j2', 'report/*.css', 'data/digits.npz']},
  install_requires=[
    'absl-py>=2.1',  # flags and logging
    'array_record>=0.6',  # random access to prepared TFDS files, without TensorFlow
    'etils[epath]>=1.9',  # one path class for local disks and gs://
    'filelock>=3.13',  # several processes in one workdir
    'flax>=0.12',  # linen modules, struct dataclasses
    'grain>=0.2.12',  # streams data sets larger than memory, with worker processes
    'importlib_resources',  # imported by tensorflow-datasets, which does not declare it
    # XLA of 0.10.2 computes wrong sums on a CPU (jax-ml/jax#39103). Python 3.11 gets 0.10.1.
    'jax>=0.10,!=0.10.2',
    'jinja2>=3.1',  # the HTML report
    'matplotlib>=3.8',  # the figures of reports and sweeps
    'ml_collections>=1.0',  # configs
    'numpy>=2.0',
    'optax>=0.2.8',  # optimizers (Muon for convolutions too) and schedules
    'orbax-checkpoint>=0.11.20,<1.0',  # asynchronous checkpoints; 1.0 makes another API the default
    'pillow>=10',  # decodes the images of TFDS, writes those of the report
    'rich>=13',  # progress bars and tables on the terminal
    'scipy>=1.13',  # log_softmax and friends, in float64 on the host
    'tensorboardX>=2.6',  # TensorBoard event files, without TensorFlow
    'tensorflow-datasets>=4.9.8',  # reads prepared data sets; needs no TensorFlow for that
    'tensorstore>=0.1.75',  # the prediction store
  ],
  extras_require={
    'test': [
      'hypothesis>=6.100',  # generates the wrong configs of test_fuzz.py
      'ipykernel>=6.29',  # the kernel that runs the notebook of analysis/
      'nbclient>=0.10',  # runs it cell by cell
      'pytest>=8',
      'pytest-xdist>=3.7',
      'ruff>=0.9',
      'safetensors>=0.8',  # reads an exported network
      'setuptools>=70.1',  # builds the wheel that a test installs
      'scikit-learn>=1.4',  # the reference for our digits and metrics
    ],
    'cuda12': ['jax[cuda12]'],
    'tpu': [
      'jax[tpu]',
      'etils[epath-gcs]',  # WORKDIR on gs://
      'google-cloud-storage',  # event files on gs://
    ],
    'safetensors': ['safetensors>=0.8'],  # writes a network to a file of that format
    # The trackers of --trackers. mlflow-skinny logs without the web page, pandas and pyarrow of the full
    # MLflow. The two packages beside it are for its SQL store, the only store that MLflow 3 writes without a
    # server; `mlflow ui` of a full installation shows it.
    'wandb': ['wandb>=0.24.2'],
    'mlflow': ['mlflow-skinny>=3.7', 'sqlalchemy>=2.0.40', 'alembic>=1.14'],
    'trackio': ['trackio>=0.38.1'],
    'prepare': ['tensorflow'],  # TFDS downloads and prepares data sets with it
  },
)
