"""Figure 8: the distributions that teachers predict for single test images, by depth and ensemble size.

    python launch.py --config=configs/paper/fig10_ensemble_size.py --workdir=DIR \
        --sweep.model.depth=20,56,110 --stages=teachers,predictions    # GPUs, a day; not run
    python -m configs.paper.fig8_teachers DIR                          # seconds

The second command draws the stored predictions of every depth in DIR for m = 1, 3, 5 and τ = 1, 4. These
distributions are a student's targets. The figure shows how much τ = 4 and an ensemble flatten the targets. It
decides no claim, so it is not a sweep.
"""

import argparse
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from etils import epath
from scipy.special import softmax

import kdjax
from kdjax.errors import MissingInputError, UserError
from kdjax.predictions.teachers import combine
from kdjax.report import figures
from kdjax.runtime import files
from kdjax.stages import finished
from kdjax.stages.experiment import Experiment

NUM_MEMBERS, TEMPERATURES = (1, 3, 5), (1.0, 4.0)
NUM_CLASSES = 10  # drawn, the most probable ones
PANEL_INCHES = (2.2, 1.7)

if TYPE_CHECKING:
  from matplotlib.figure import Figure


def teachers(workdir: epath.PathLike) -> dict[str, tuple[np.ndarray, np.ndarray]]:
  """{model: (log_probs_MNC, labels_N)} on the test set, for each model with predictions in a workdir.

  If several teachers have the same model, it is the one with the lowest seed.

  Raises:
    MissingInputError: the workdir has no complete predictions.
  """
  folders = [
    path.parent for path in (finished.existing(workdir) / 'predictions').glob('*/meta.json')
  ]
  configs = [(finished.read_config(folder), folder) for folder in folders]
  found = {}
  for config, folder in sorted(configs, key=lambda pair: (pair[0].model.depth, pair[0].seed)):
    model = config.model
    name = f'ResNet-{model.depth}' if model.name == 'resnet' else model.name
    if name not in found:
      labels_N = Experiment(config, folder.parents[1]).data.splits['test'].labels_N
      found[name] = kdjax.open_predictions(folder).members('test'), labels_N
  if not found:
    raise MissingInputError(
      f'{workdir}: has no predictions; run launch.py with --stages=teachers,predictions first'
    )
  return found


def distributions(log_probs_MC: np.ndarray, num_members: int) -> tuple[np.ndarray, np.ndarray]:
  """The most probable classes, and probs_TC: their probabilities at each of TEMPERATURES (axis T)."""
  ensemble_C = combine(log_probs_MC[:num_members, None])[0]
  chosen = np.argsort(-ensemble_C)[:NUM_CLASSES]
  probs_TC = np.stack([softmax(ensemble_C / temperature) for temperature in TEMPERATURES])
  return chosen, probs_TC[:, chosen]


def draw(found: dict[str, tuple[np.ndarray, np.ndarray]], images: Sequence[int]) -> 'Figure':
  """Draws a row for each test image and a column for each model and ensemble size. Call it in `figures.style`."""
  columns = [
    (name, m, *arrays) for name, arrays in found.items() for m in NUM_MEMBERS if m <= len(arrays[0])
  ]
  width, height = PANEL_INCHES
  figure = figures.blank((width * len(columns), height * len(images) + 0.5))
  grid = figure.subplots(len(images), len(columns), squeeze=False, sharey=True)
  for i, row in zip(images, grid, strict=True):
    for axes, (name, m, log_probs_MNC, labels_N) in zip(row, columns, strict=True):
      classes, probs_TC = distributions(log_probs_MNC[:, i], m)
      places = np.arange(len(classes))
      for probs_C, shift, color, tau in zip(
        probs_TC, (-0.2, 0.2), ('teacher', 'student'), TEMPERATURES, strict=True
      ):
        axes.bar(places + shift, probs_C, 0.4, color=figures.COLORS[color], label=f'τ = {tau:g}')
      axes.set_xticks(
        places, [f'[{c}]' if c == labels_N[i] else str(c) for c in classes], rotation=90
      )
      if i == images[0]:
        axes.set_title(f'{name}, m = {m}', fontsize='medium')
    row[0].set_ylabel(f'image {i}\nprobability')
  handles, _ = grid[0, 0].get_legend_handles_labels()
  figure.legend(handles=handles, loc='outside upper left', ncols=2)
  figure.supxlabel(
    f'the {NUM_CLASSES} most probable classes; the label is in brackets', size='medium'
  )
  return figure


def main(arguments: Sequence[str] | None = None) -> None:
  parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
  parser.add_argument('workdir', help='where the predictions are')
  parser.add_argument(
    '--images', type=int, nargs='+', default=[0, 1, 2], help='numbers of test images'
  )
  flags = parser.parse_args(arguments)
  try:
    found = teachers(flags.workdir)
  except UserError as error:
    sys.exit(f'error: {error}')
  num_images = min(len(labels_N) for _, labels_N in found.values())
  if wrong := [i for i in flags.images if not 0 <= i < num_images]:
    sys.exit(f'error: --images: has {wrong[0]}; allowed: 0 to {num_images - 1}')
  with figures.style('Figure 8'):
    figure = draw(found, flags.images)
    for suffix in ('png', 'pdf'):
      path = epath.Path(flags.workdir) / f'fig8_teachers.{suffix}'
      files.write_bytes(path, figures.image(figure, suffix))
      print(path)


if __name__ == '__main__':
  main()
