"""Runs jobs in this process, one after the other, hand in hand with other processes on the same folder."""

from __future__ import annotations

import time
import traceback
from collections.abc import Iterator
from datetime import datetime, timezone
from typing import TYPE_CHECKING

from filelock import FileLock, Timeout

from mimbench import records
from mimbench.errors import UserError
from mimbench.executors import Summary, Watch
from mimbench.files import FULL, make_folder, unwritable
from mimbench.ledger import Ledger
from mimbench.monitor import TrainingStopped
from mimbench.protocol import EvaluationFailed
from mimbench.spec import Job, Record

if TYPE_CHECKING:
    from mimbench.plan import Plan
    from mimbench.work import Workshop

POLL_SECONDS = 0.5  # between looks at jobs that other processes hold
TOLD = (UserError, TrainingStopped, EvaluationFailed)  # their message is a sentence with the reason


class Local:
    """One job at a time in this process, or in this group of processes under torchrun.

    Each job has a lock that dies with its holder. So several processes share a plan without doing a job
    twice, and what a killed process left is taken up by the next.
    """

    def execute(self, plan: Plan, workshop: Workshop, watch: Watch) -> Summary:
        """See ``mimbench.executors.Executor``."""
        queue = _Queue(plan, workshop.ledger, watch)
        if workshop.world_size > 1:
            _together(queue, workshop, watch)
        else:
            for job in queue.claims():
                _attempt(job, workshop, watch)
        return queue.summary()


def _attempt(job: Job, workshop: Workshop, watch: Watch) -> None:
    """Do a job and keep its record; whatever goes wrong in it makes a failed one."""
    started = now()
    try:
        record = workshop.perform(job, watch.progress)
        records.write(workshop.ledger.folder, record)
    except Exception as error:  # a crash is a result; the neighbours go on
        _raise_if_unkept(error, workshop.ledger)
        record = failure(job, error, started)
        records.write(workshop.ledger.folder, record)
    watch.finish(job, record)


def _raise_if_unkept(error: Exception, ledger: Ledger) -> None:
    """Where results cannot be kept, going on with other jobs is of no use."""
    cause = error if isinstance(error, OSError) else error.__cause__
    if isinstance(cause, OSError) and cause.errno in FULL:
        raise error if isinstance(error, UserError) else unwritable(ledger.folder, cause) from error


def failure(job: Job, error: Exception, started: str) -> Record:
    """The record of a job that ended in ``error``."""
    first_line = (str(error).strip().splitlines() or [""])[0]
    told = isinstance(error, TOLD)
    return Record(
        id=job.id,
        kind=job.kind,
        name=job.name,
        status="failed",
        error=first_line if told else f"{type(error).__name__}: {first_line}".rstrip(": "),
        traceback="".join(traceback.format_exception(error)),
        content=job.content,
        started=started,
        finished=now(),
    )


def now() -> str:
    """The time for a record."""
    return datetime.now(timezone.utc).isoformat(timespec="microseconds")


class _Queue:
    """Hands out the jobs of a plan that are this process's to do."""

    def __init__(self, plan: Plan, ledger: Ledger, watch: Watch):
        self.plan, self.ledger, self.watch = plan, ledger, watch
        # A failure from before is tried again; one that comes while we run is final for this run.
        self.old_failures = {job.id: r.finished for job in plan if (r := self._failed(job))}
        self.claimed: set[str] = set()
        self.total = len(plan) - len(ledger.done(plan))

    def _failed(self, job: Job) -> Record | None:
        record = self.ledger.record(job.id)
        return record if record is not None and record.status == "failed" else None

    def _new_failure(self, job: Job) -> Record | None:
        record = self._failed(job)
        return record if record and record.finished != self.old_failures.get(job.id) else None

    def summary(self) -> Summary:
        done = self.ledger.done(self.plan)
        failed = {job.id: (job, record) for job in self.plan if (record := self._new_failure(job))}
        rest = [job for job in self.plan if job.id not in done and job.id not in failed]
        return Summary(tuple(j for j in self.plan if j.id in done), tuple(failed.values()), tuple(rest))

    def _open(self) -> tuple[list[Job], list[Job]]:
        """(jobs that can be worked on now, all jobs that are neither done nor out of reach)."""
        done = self.ledger.done(self.plan)
        out = {job.id for job in self.plan if self._new_failure(job)}
        ready, open_ = [], []
        for job in self.plan:
            if job.id in done or job.id in out:
                continue
            if any(need in out for need in job.needs):
                out.add(job.id)
                continue
            open_.append(job)
            if all(need in done for need in job.needs):
                ready.append(job)
        return ready, open_

    def claims(self) -> Iterator[Job]:
        """The next job to do, under its lock until the caller comes back for another."""
        locks = make_folder(self.ledger.folder / "locks")
        waiting = False
        while True:
            ready, open_ = self._open()
            if not open_:
                return
            for job in ready:
                lock = FileLock(locks / f"{job.id}.lock")
                try:
                    lock.acquire(timeout=0)
                except Timeout:
                    continue
                except OSError as error:
                    raise unwritable(locks, error) from error
                try:
                    if job not in self._open()[0]:  # done by another process just now
                        break
                    if job.id in self.claimed:
                        raise RuntimeError(f"{job.name} was done and is still not counted as done")
                    self.claimed.add(job.id)
                    self.watch.start(job, self.total - len(open_) + 1, self.total)
                    yield job
                finally:
                    lock.release()
                waiting = False
                break  # look anew: what this one feeds comes next
            else:
                if not waiting:
                    self.watch.wait(ready)
                waiting = True
                time.sleep(POLL_SECONDS)


def _together(queue: _Queue, workshop: Workshop, watch: Watch) -> None:
    """The processes of one torchrun launch do each job together; the first decides and keeps the records.

    What goes wrong alike in all of them (a user's mistake, a diverged loss) is a failed job. Anything else
    may have hit one process only, with the others waiting for it: it is recorded and ends the launch.
    """
    fabric = workshop.fabric
    jobs = {job.id: job for job in queue.plan}
    claims = queue.claims() if fabric.is_global_zero else None
    while True:
        chosen = next(claims, None) if claims else None
        job_id = fabric.broadcast(chosen.id if chosen else None)
        if job_id is None:
            return
        job, started = jobs[job_id], now()
        try:
            record = workshop.perform(job, watch.progress)
        except TOLD as error:
            _raise_if_unkept(error, workshop.ledger)
            record = failure(job, error, started)
        except Exception as error:
            _raise_if_unkept(error, workshop.ledger)
            records.write(workshop.ledger.folder, failure(job, error, started))
            raise
        if fabric.is_global_zero:
            records.write(workshop.ledger.folder, record)
            watch.finish(job, record)
        fabric.barrier()  # nobody reads the records before they are written
