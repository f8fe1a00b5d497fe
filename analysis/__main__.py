"""Computes and draws the analyses of a finished student.

    python -m analysis runs/digits_resnet                        # all parts, newest student
    python -m analysis runs/digits_resnet --parts=plane,paths
    python -m analysis runs/digits_resnet/students/FINGERPRINT --resolution=41

Flags:
  --parts=A,B      parts to run. Default: all that are available for the student
  --train=all      what parts may train; the plan and its time are printed first.
                   cheap: parts that train no more steps than the student did.
                   none: no training; parts that need it are skipped
  --style=screen   of the figures. paper: 5.5 inches wide with 8 pt text; finished parts are only
                   drawn again
  --SETTING=VALUE  size of the computation

A sibling is a student that differs in its seed alone; a kept step is one of
config.student.keep_checkpoints.

Results are written to WORKDIR/analysis/<student>/ and shown in
WORKDIR/students/<student>/report.html.
"""

import contextlib
import dataclasses
import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from typing import Any

# BLAS products are small here: on a busy machine its threads would wait for each other and for XLA's.
os.environ.setdefault('OPENBLAS_NUM_THREADS', '1')  # before NumPy is imported

from kdjax.runtime import xla_flags

xla_flags.set_flags()

import jax
from absl import app, flags

from kdjax.errors import UserError
from kdjax.runtime import compiler, progress
from kdjax.stages import pipeline, report

from . import runner, runs
from .figures import style
from .part import Settings

__doc__ += f'\nParts:\n{runner.described()}\n'  # for --help

_PARTS = flags.DEFINE_list('parts', [], 'Comma-separated names of parts. Default: all.')
_TRAIN = flags.DEFINE_enum(
  'train', runner.ALL, [runner.NONE, runner.CHEAP, runner.ALL], 'What parts may train.'
)
_STYLE = flags.DEFINE_enum('style', style.SCREEN, list(style.STYLES), 'Of the figures.')
_ALLOW_WRONG_XLA = flags.DEFINE_bool(
  'allow_wrong_xla', False, 'Run even if XLA computes wrong results.'
)


class _TupleParser(flags.ArgumentParser):
  """Parses comma-separated values to a tuple: '0,0.5,1' to (0.0, 0.5, 1.0) if each is parsed by float."""

  syntactic_help = 'comma-separated'

  def __init__(self, parse_one: Callable[[str], Any]):
    self._parse_one = parse_one

  def parse(self, argument: str | tuple) -> tuple:
    if not isinstance(argument, str):
      return argument  # the default
    return tuple(self._parse_one(text) for text in argument.split(',') if text.strip())


_PARSERS = {
  int: flags.IntegerParser(),
  float: flags.FloatParser(),
  tuple[float, ...]: _TupleParser(float),
  tuple[str, ...]: _TupleParser(str.strip),
}
_SETTINGS = {
  field.name: flags.DEFINE(_PARSERS[field.type], field.name, field.default, field.metadata['help'])
  for field in dataclasses.fields(Settings)
}


@contextlib.contextmanager
def _compiled_once() -> Iterator[None]:
  """Keeps compiled programs on disk, since parts and the students they train share many.

  Programs for a GPU or with oneDNN cannot be kept: see `xla_flags.recommended`.
  """
  has_onednn = xla_flags.ONEDNN[0] in os.environ['XLA_FLAGS']
  has_cache = jax.config.jax_compilation_cache_dir is not None
  if has_cache or has_onednn or jax.default_backend() == 'gpu':
    yield
    return
  with tempfile.TemporaryDirectory() as folder:
    jax.config.update('jax_compilation_cache_dir', folder)
    jax.config.update('jax_persistent_cache_min_compile_time_secs', 0.2)
    yield


def _run(path: str) -> None:
  compiler.require_right(insist=_ALLOW_WRONG_XLA.value)
  settings = Settings(**{name: flag.value for name, flag in _SETTINGS.items()})
  runner.check(settings, _PARTS.value)  # before anything is loaded
  study = runs.load(path)
  names = runner.prepare(study, settings, _PARTS.value, _TRAIN.value)
  try:
    done = runner.run(study, settings, names, _STYLE.value)
    progress.console.print(f'{len(done)} parts in {study.folder}', soft_wrap=True)
  finally:  # finished parts are reported even if others failed
    _report(study)


def _report(study: runs.Study) -> None:
  if not (study.experiment.folders.student / 'result.json').exists():
    progress.console.print(
      'no report: the student is not evaluated (launch.py --stages=evaluation)'
    )
    return
  pipeline.run(study.experiment.config, study.experiment.workdir, ['report'])
  progress.console.print(f'report: {report.path(study.experiment)}', soft_wrap=True)


def main(argv: list[str]) -> None:
  if len(argv) != 2:
    raise app.UsageError('give one folder: a workdir, or a student in it')
  progress.setup_logging()
  try:
    with _compiled_once():
      _run(argv[1])
  except (UserError, OSError) as error:  # OSError: a full disk, a folder that cannot be written
    sys.exit(f'error: {error}')
  except KeyboardInterrupt:
    sys.exit('interrupted; the same command continues')


if __name__ == '__main__':
  app.run(main)
