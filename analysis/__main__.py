"""Computes and draws every analysis of a finished student.

    python -m analysis runs/digits_resnet                        # all parts, of the newest student
    python -m analysis runs/digits_resnet --parts=plane,paths
    python -m analysis runs/digits_resnet/students/FINGERPRINT --resolution=41

Flags:
  --parts=A,B      by default all that can be computed for the student
  --train=all      some parts train more students; what, and about how long,
                   is said first. cheap: only what takes no more steps than the
                   student did. none: nothing; parts that would are left out
  --SETTING=VALUE  how much is computed

Everything is written to WORKDIR/analysis/<student>/, and shown in
WORKDIR/report.html, which is of the student that was last reported.
"""

import contextlib
import dataclasses
import sys
import tempfile
from collections.abc import Iterator

from kdjax.runtime import xla_flags

xla_flags.set_flags()

import jax
from absl import app, flags

from analysis import runner, runs
from analysis.part import Settings
from kdjax.errors import UserError
from kdjax.runtime import compiler, progress
from kdjax.stages import pipeline

__doc__ += f'\nParts:\n{runner.described()}\n'  # for --help

_PARTS = flags.DEFINE_list('parts', [], 'Names of parts, with commas between them. Default: all.')
_TRAIN = flags.DEFINE_enum(
  'train', runner.ALL, [runner.NONE, runner.CHEAP, runner.ALL], 'What may be trained.'
)
_ALLOW_WRONG_XLA = flags.DEFINE_bool('allow_wrong_xla', False, 'Run though XLA computes wrongly.')


class _NumbersParser(flags.ArgumentParser):
  """'0,0.5,1' → (0.0, 0.5, 1.0)."""

  syntactic_help = 'numbers with commas between them'

  def parse(self, argument: str | tuple[float, ...]) -> tuple[float, ...]:
    return tuple(float(x) for x in (argument.split(',') if isinstance(argument, str) else argument))


class _NamesParser(flags.ArgumentParser):
  """'teacher 0,student' → ('teacher 0', 'student')."""

  syntactic_help = 'names with commas between them'

  def parse(self, argument: str | tuple[str, ...]) -> tuple[str, ...]:
    names = argument.split(',') if isinstance(argument, str) else argument
    return tuple(name.strip() for name in names if name.strip())


_PARSERS = {
  int: flags.IntegerParser,
  float: flags.FloatParser,
  tuple[float, ...]: _NumbersParser,
  tuple[str, ...]: _NamesParser,
}
_SETTINGS = {
  field.name: flags.DEFINE(
    _PARSERS[field.type](), field.name, field.default, field.metadata['help']
  )
  for field in dataclasses.fields(Settings)
}


@contextlib.contextmanager
def _compiled_once() -> Iterator[None]:
  """Keeps programs on disk for as long as it runs: parts, and the students they train, share many.

  Not on a GPU, where programs of `xla_flags.GRAPHS` that are loaded from a cache fail.
  """
  if jax.config.jax_compilation_cache_dir is not None or jax.default_backend() == 'gpu':
    yield
    return
  with tempfile.TemporaryDirectory() as folder:
    jax.config.update('jax_compilation_cache_dir', folder)
    jax.config.update('jax_persistent_cache_min_compile_time_secs', 0.2)
    yield


def _run(path: str) -> None:
  compiler.require_right(insist=_ALLOW_WRONG_XLA.value)
  settings = Settings(**{name: flag.value for name, flag in _SETTINGS.items()})
  runner.check(settings, _PARTS.value)
  study = runs.load(path)
  plan = runner.plan(study, settings, _PARTS.value, _TRAIN.value)
  coming = [runs.SIBLING_NAME] if plan.trains_sibling else []
  runner.check_names(study, settings, _PARTS.value, coming)
  runner.announce(study, plan)
  if plan.trains_sibling:
    runs.train_sibling(study)
  try:
    done = runner.run(study, settings, _PARTS.value, _TRAIN.value)
    progress.console.print(f'{len(done)} parts in {study.folder}', soft_wrap=True)
  finally:  # what is done is shown, whatever failed
    _report(study)


def _report(study: runs.Study) -> None:
  if not (study.experiment.folders.student / 'result.json').exists():
    progress.console.print(
      'no report: the student is not evaluated (launch.py --stages=evaluation)'
    )
    return
  pipeline.run(study.experiment.config, study.experiment.workdir, ['report'])
  progress.console.print(f'report: {study.experiment.workdir / "report.html"}', soft_wrap=True)


def main(argv: list[str]) -> None:
  if len(argv) != 2:
    raise app.UsageError('one folder: a workdir, or a student in it')
  progress.setup_logging()
  try:
    with _compiled_once():
      _run(argv[1])
  except (UserError, OSError) as error:  # OSError: a full disk, a folder that cannot be written
    sys.exit(f'error: {error}')
  except KeyboardInterrupt:
    sys.exit('interrupted; the same command goes on where it was')


if __name__ == '__main__':
  app.run(main)
