"""Made-up sweeps with known numbers, for the tests of their figure and page."""

from etils import epath

from kdjax.config.sweep import Panel, Point, Sweep
from kdjax.report import sweep_page

AGREEMENT = 'splits.test.fidelity.top1_agreement'
CKA = 'splits.test.cka.stage1'
PANELS = (Panel(AGREEMENT, 'agreement (%)', 100), Panel(CKA, 'CKA'))
NUMBERS = Sweep(
  'Figure 9: <τ> & m',
  'temperature τ',
  [Point({'student.temperature': float(x)}, x, m) for m in ('m = 1', 'm = 3') for x in (16, 1)],
  PANELS,
  trials=2,
  caption='Half of <CIFAR-100>.',
  paper={AGREEMENT: {('m = 1', 1): (58.04, 0.5), ('m = 3', 16): 71.56}},
)
NAMES = Sweep(
  'Figure 3',
  'data',
  [Point({}, x) for x in ('baseline', 'mixup')],
  PANELS[:1],
  paper={AGREEMENT: {('', 'mixup'): 83.5}},
)
# The agreement of each run: m = 1 at τ = 16 and 1, m = 3 at τ = 16 and 1, in two trials. The last run is missing.
AGREEMENTS = [0.64, 0.57, 0.70, 0.62, 0.66, 0.59, 0.74]


def result(agreement):
  return {'splits': {'test': {'fidelity': {'top1_agreement': agreement}}}}


RESULTS = {i: result(value) for i, value in enumerate(AGREEMENTS)}
# The same with independent students, which are 3 points lower in the first trial and 5 in the second.
PAIRED = {
  i: {
    'splits': {
      'test': {
        'fidelity': {'top1_agreement': value},
        'independent': {'top1_agreement': value - (0.03 if i < 4 else 0.05)},
      }
    }
  }
  for i, value in enumerate(AGREEMENTS)
}
# 4 ± 12.706 · √2 / √2 points; m = 3 at τ = 1 has one pair.
HALF = 12.7062
NAMED_RESULTS = {0: result(0.79), 1: result(0.835)}


def written(folder, sweep=NUMBERS, results=RESULTS, **options):
  options = {'command': lambda run: f'do {run.index}'} | options
  paths = sweep_page.write(epath.Path(folder), 'sweep', sweep, results, **options)
  return {path.suffix[1:]: path for path in paths}
