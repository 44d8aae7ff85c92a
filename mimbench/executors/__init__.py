"""Ways to run the jobs of a plan. Each does the same work; where and in what order is all that differs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from mimbench.progress import Progress
from mimbench.spec import Job, Record

if TYPE_CHECKING:
    from mimbench.plan import Plan
    from mimbench.work import Workshop


@dataclass(frozen=True)
class Summary:
    """How a plan stands once an executor is through with it."""

    done: tuple[Job, ...]
    failed: tuple[tuple[Job, Record], ...] = ()
    not_run: tuple[Job, ...] = ()  # they feed on a failed one


class Watch:
    """Hears how the work goes on; this one says nothing."""

    def start(self, job: Job, number: int, total: int) -> None:
        """A job begins; ``number`` counts from 1 among the ``total`` jobs that were left to do."""

    def progress(self, progress: Progress) -> None:
        """The running job reports."""

    def finish(self, job: Job, record: Record) -> None:
        """A job has ended, well or badly."""

    def wait(self, jobs: Sequence[Job]) -> None:
        """Other processes work on all that is left."""


class Executor(Protocol):
    """Runs what is left of a plan."""

    def execute(self, plan: Plan, workshop: Workshop, watch: Watch) -> Summary:
        """Do every job of the plan that is not done. A failed job is a record; its neighbours go on.

        Raises UserError where results cannot be kept (a full disk), KeyboardInterrupt on Ctrl-C.
        """
        ...
