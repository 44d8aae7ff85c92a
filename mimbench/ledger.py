"""What of a plan is done: records on one side, jobs on the other. Imports no torch."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from mimbench import records
from mimbench.spec import Job, Record

if TYPE_CHECKING:
    from mimbench.plan import Plan

# The file of a product that the next job feeds on; its hash ties that job's record to it.
FED_ON = {"pretrain": "encoder.safetensors", "tokenizer": "tokenizer.safetensors"}


class Ledger:
    """The records below one results folder as the state of jobs. Other processes may write meanwhile."""

    def __init__(self, folder: Path):
        self.folder = Path(folder)
        self._read: dict[str, tuple[tuple[int, ...], Record]] = {}  # what was read, and the file it was

    def weights(self, job_id: str) -> Path:
        """The folder of a job's product and of its checkpoints."""
        return self.folder / "weights" / job_id

    def scratch(self, job_id: str) -> Path:
        """The folder in which a stopped evaluation finds again where it was."""
        return self.folder / "scratch" / job_id

    def samples(self, job_id: str) -> Path:
        """The file of what an evaluation predicted for some test images."""
        return self.folder / "samples" / f"{job_id}.npz"

    def record(self, job_id: str) -> Record | None:
        """A job's record; raises UserError when it is damaged or newer."""
        path = records.path_of(self.folder, job_id)
        try:
            status = path.stat()
        except FileNotFoundError:
            return None
        file = (status.st_ino, status.st_mtime_ns, status.st_size)  # another one after each write
        if job_id not in self._read or self._read[job_id][0] != file:
            self._read[job_id] = (file, records.read(path))
        return self._read[job_id][1]

    def product_hash(self, job_id: str) -> str | None:
        """The sha256 of what a finished job hands on; None when it has not finished."""
        record = self.record(job_id)
        if record is None or record.status != "done":
            return None
        return record.product.get(FED_ON.get(record.kind, ""))

    def finished(self, job: Job) -> bool:
        """Whether the job has a result that was made from what its needs produce now."""
        record = self.record(job.id)
        return (
            record is not None
            and record.status == "done"
            and all(record.needs.get(need) == self.product_hash(need) is not None for need in job.needs)
        )

    def has_weights(self, job: Job) -> bool:
        """Whether the product of a job is still on disk."""
        name = FED_ON.get(job.kind)
        return name is None or (self.weights(job.id) / name).is_file()

    def done(self, plan: Plan) -> set[str]:
        """Ids of the jobs that need not run.

        Weights that were deleted are only missed when a job that feeds on them has still to run.
        """
        finished: set[str] = set()
        for job in plan:
            # a result of something that will be made anew is checked again once that is done
            if self.finished(job):
                finished.add(job.id)
        for job in reversed(plan.jobs):
            waiting = any(other.id not in finished for other in plan.dependants(job))
            if job.id in finished and waiting and not self.has_weights(job):
                finished.discard(job.id)
        return finished
