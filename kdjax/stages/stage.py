"""Stages, and the one driver that runs them.

A stage lists its jobs. A job fills one folder, once. The driver checks whether a job is complete, takes its
lock, checks again, since another process may have made it, records the config and the data, makes it, and
waits until all hosts are done. Stages of an experiment and parts of an analysis have the same driver.
"""

import collections
import contextlib
import dataclasses
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, TypeVar

import jax
from etils import epath

from kdjax.config import fingerprints
from kdjax.errors import DivergedError, MissingInputError, UserError
from kdjax.runtime import environment, files, hosts, progress
from kdjax.stages.provenance import Provenance

ENVIRONMENT = 'environment.json'  # beside every artefact: where, when and how fast it was made
T = TypeVar('T')


@dataclasses.dataclass(frozen=True)
class Job:
  """Something that is made once, in a folder of its own.

  Attributes:
    folder: the lock lies beside it. None: the job needs no lock.
    is_complete: whether it is made. On several hosts, all call it and get the same answer.
    make: makes it, or resumes an interrupted attempt. It may return False if there was nothing to do.
    missing: a sentence for an error that says what is missing.
    provenance: the config and data that it is made from. None: they are not recorded.
    replaces_config: whether the recorded config is replaced by that of a later run.
    artefact: its kind in `fingerprints.FINGERPRINTS`, whose code is recorded. '': none.
    num_steps: how often `advance` yields, for the progress bar.
    bar: the name of the progress bar of jobs that are made at once.
    advance: `make` on one device, step by step. If all jobs of a stage have it, as many jobs as there
      are devices are made at once. It yields after each step the number of steps so far, and a text.
  """

  folder: epath.Path | None
  is_complete: Callable[[], bool]
  make: Callable[[], bool | None]
  missing: str = ''
  provenance: Provenance | None = None
  replaces_config: bool = False
  artefact: str = ''
  num_steps: Callable[[], int] = lambda: 0
  bar: str = ''
  advance: Callable[[jax.Device], Iterator[tuple[int, str]]] | None = None


@dataclasses.dataclass(frozen=True)
class Stage:
  """A stage of an experiment, or a part of an analysis. The subject is an `Experiment` or a `Study`.

  Attributes:
    name: in --stages and in messages.
    jobs: subject → its jobs; none if the subject does not need the stage.
    requires: subject → the stages whose results must be there before a job is made.
    prepares: subject → stages of other subjects that are run before a job is made.
    on_divergence: a sentence that is added to the error if a training diverges.
  """

  name: str
  jobs: Callable[[Any], Sequence[Job]]
  requires: Callable[[Any], Sequence['Stage']] = lambda subject: ()
  prepares: Callable[[Any], Sequence[tuple['Stage', Any]]] = lambda subject: ()
  on_divergence: str = ''

  def run(self, subject: Any, wait: bool = True) -> bool | None:
    """Makes all jobs that are not complete, and logs the time. A stage without jobs logs nothing.

    Jobs that other processes are making come last.

    Args:
      wait: whether to wait for jobs that other processes are making; otherwise they are skipped.

    Returns: whether there was anything to do; None if a job was skipped.

    Raises:
      MissingInputError: results of an earlier stage are missing. Nothing was written.
    """
    start, made = time.monotonic(), self._run(subject, wait)
    if made is not None and self.jobs(subject):
      took = f'done in {time.monotonic() - start:.0f} s' if made else 'up to date'
      progress.logger.info('%s: %s', self.name, took)
    return made

  def is_complete(self, subject: Any) -> bool:
    return all(job.is_complete() for job in self.jobs(subject))

  def require(self, subject: Any, place: int | None = None) -> None:
    """Raises MissingInputError unless all jobs, or the one at `place`, are complete."""
    jobs = self.jobs(subject)
    for job in jobs if place is None else [jobs[place]]:
      if not job.is_complete():
        raise MissingInputError(
          f'{job.missing} Run the same command with --stages={self.name} first.'
        )

  def _run(self, subject: Any, wait: bool) -> bool | None:
    missing = []
    for job in self.jobs(subject):
      if not job.is_complete():
        missing.append(job)
      elif job.provenance:
        job.provenance.restore(job.folder, job.replaces_config)
    made: bool | None = False
    try:
      if missing:
        for stage, other in self.prepares(subject):
          stage._run(other, wait=True)
        for stage in self.requires(subject):
          stage.require(subject)
        made = self._make(missing, wait)
    except DivergedError as error:
      if not self.on_divergence:
        raise
      raise DivergedError(f'{error} {self.on_divergence}') from error
    hosts.barrier()  # the next stage reads what this one wrote
    return made

  def _make(self, jobs: Sequence[Job], wait: bool) -> bool | None:
    if all(job.advance for job in jobs):
      _make_on_devices(jobs)
      return True
    made = False
    for waiting in (False, True)[: 1 + wait]:
      results = [_make(job, waiting) for job in jobs]
      made |= any(results)
      jobs = [job for job, result in zip(jobs, results, strict=True) if result is None]
    return None if jobs else made


def in_turn(
  items: Iterable[T], attempt: Callable[[T, bool], bool], name: str = '%s'
) -> dict[T, UserError]:
  """Attempts all items, which several processes may share. A failure does not stop the others.

  Args:
    attempt: (item, wait) → False if another process is working on the item and `wait` is False. `wait` is True
      only if other processes are working on all items that are left.
    name: a format for the name of an item in the log.

  Returns: the errors, by item.
  """
  failures: dict[T, UserError] = {}

  def is_done(item: T, wait: bool = False) -> bool:
    try:
      return attempt(item, wait)
    except UserError as error:
      failures[item] = error
      progress.logger.error(f'{name} failed: %s', item, error)
      return True

  waiting = list(items)
  while waiting:
    busy = [item for item in waiting if not is_done(item)]
    if busy == waiting:
      is_done(busy.pop(0), wait=True)
    waiting = busy
  return failures


def claimed(folder: epath.Path, work: Callable[[], bool], wait: bool) -> bool:
  """Does work that only one process at a time may do. The work may take further locks.

  Returns: what `work` returns; False if another process is doing it and `wait` is False.
  """
  with files.lock(folder.with_name(f'{folder.name}.claim'), wait) as locked:
    return locked and work()


@contextlib.contextmanager
def _locked(job: Job, wait: bool) -> Iterator[bool | None]:
  """Yields True if the job is to be made now, None if another process is making it, False if it is done."""
  with (
    contextlib.nullcontext(True) if job.folder is None else files.lock(job.folder, wait) as locked
  ):
    is_missing = locked and not job.is_complete()
    if is_missing and job.provenance:
      job.provenance.begin(job.folder, job.replaces_config)
      if job.artefact:
        fingerprints.record(job.folder, job.provenance.config, job.artefact)
    start = time.monotonic()
    yield is_missing if locked else None
    if is_missing and job.artefact:
      record = environment.describe() | {'seconds': round(time.monotonic() - start, 1)}
      files.write_json(job.folder / ENVIRONMENT, record)


def _make(job: Job, wait: bool) -> bool | None:
  with _locked(job, wait) as is_mine:
    return job.make() is not False if is_mine else is_mine


def _make_on_devices(jobs: Sequence[Job]) -> None:
  """Makes each job on one device, on all devices at once.

  Even a single job is made on one device, so that the bits depend neither on the number of jobs nor on that
  of the devices. One loop gives each device a step in turn. A step returns before the device has finished
  it.
  """
  devices, done = jax.local_devices()[: len(jobs)], [0] * len(jobs)
  num_steps = [job.num_steps() for job in jobs]
  with progress.bar(jobs[0].bar, sum(num_steps), 'steps') as show:
    for wait in (False, True):
      with contextlib.ExitStack() as begun:  # if one fails, the others still finish their writes
        waiting, running = collections.deque(range(len(jobs))), {}
        while waiting or running:
          for device in devices:
            if device not in running and waiting:
              place = waiting.popleft()
              steps = contextlib.closing(_advance(jobs[place], device, wait))
              running[device] = place, begun.enter_context(steps)
            if device in running:
              place, steps = running[device]
              done[place], text = next(steps, (num_steps[place], None))
              if text is None:
                del running[device]
          show(sum(done), '')


def _advance(job: Job, device: jax.Device, wait: bool) -> Iterator[tuple[int, str]]:
  with _locked(job, wait) as is_mine:
    if is_mine:
      yield from job.advance(device)
