"""Runs a record again, from nothing but the record and its data, and says whether the same comes out."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from mimbench.errors import UserError
from mimbench.executors import Watch
from mimbench.files import make_folder
from mimbench.ledger import Ledger
from mimbench.repro.again import Again, plan_again
from mimbench.repro.differences import CONSEQUENCES, differences
from mimbench.repro.locate import contradictions, locate
from mimbench.repro.materials import hashes, open_data, reuse_weights
from mimbench.repro.verdict import Verification, judge
from mimbench.request import RESULTS
from mimbench.spec import Record

if TYPE_CHECKING:
    from mimbench.data import Dataset


def verify(
    named: str,
    *,
    results: Path = RESULTS,
    data: Sequence[str] = (),
    weights: Path | None = None,
    given: Sequence[Path] = (),
    out: Path | None = None,
    anyway: bool = False,
    micro_batch: int | None = None,
    watch: Watch | None = None,
) -> Verification:
    """Repeat the job of a record, with all it needs trained anew, and compare.

    named: a record's JSON file, or its id in the folder ``results``. data: where its images are (by default
    found by name). weights: a results folder or file whose weights are reused, after a check of their sha256:
    then the evaluation alone is repeated. given: weights files that the training was given (tokenizers,
    teachers). out: where to; kept, and gone on from when stopped; by default a temporary folder. anyway:
    also where today's code means something else by the record's content. micro_batch: as in the run.

    Raises UserError where the repetition cannot be had: other data, other weights, another version.
    """
    watch = watch or Watch()
    found = locate(named, results)
    record = found.record
    if said := contradictions(found):
        return Verification(
            record=record.id,
            name=record.name,
            file=str(found.path),
            answer="different",
            sentences=tuple(f"the record contradicts itself: {sentence}" for sentence in said),
            repeated=False,
        )
    datasets = open_data(found, data, watch.progress)
    again = plan_again(record, datasets, hashes(given))
    if again.changed and not anyway:
        raise UserError(_another_version(record, again))
    with ExitStack() as stack:
        if out is None:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="mimbench-verify-")))
        else:
            folder = make_folder(Path(out))
        if folder.resolve() == found.folder.resolve():
            raise UserError(f"--out {out} holds the record itself; name another folder")
        ledger, started = Ledger(folder), time.monotonic()
        kept = ledger.record(again.job.id)
        if weights is not None:
            reuse_weights(found, again.chain, Path(weights), ledger)
        now = _repeat(again, datasets, ledger, record, micro_batch, watch)
        before = [beside.record for need in record.needs if (beside := found.beside(need))]
        after = [made for need in now.needs if (made := ledger.record(need))]
        answer, sentences, apart = judge(record, now, (_one(before), _one(after)))
    if kept is not None and kept.finished == now.finished:
        sentences.append(
            f"it was repeated before, on {kept.finished}, and {folder} kept it; delete it to repeat"
        )
    if again.changed:
        sentences.insert(0, f"today's code means something else by it: {_some(again.changed)}")
    known = [d for d in differences(record, now) if d.kind not in CONSEQUENCES]
    if not record.environment:
        sentences.append("the record says nothing of the machine and the versions it was made with")
    return Verification(
        record=record.id,
        name=record.name,
        file=str(found.path),
        answer=answer,
        sentences=tuple(sentences),
        then=record.metrics,
        now=now.metrics,
        gap=apart,
        differences=tuple(known),
        seconds=time.monotonic() - started,
        folder=str(out) if out is not None else "",
    )


def _one(trained: Sequence[Record]) -> Record | None:
    """The record of the one pre-training that an evaluation needs."""
    return trained[0] if len(trained) == 1 else None


def _another_version(record: Record, again: Again) -> str:
    source = record.environment.get("source", {})
    commit = f"check out commit {source['commit'][:12]}" if source.get("commit") else "install that version"
    return (
        f"{record.name} cannot be verified with this code, which means something else by it: "
        f"{_some(again.changed)}; {commit}, or repeat it as today's code understands it with --anyway"
    )


def _some(sentences: Sequence[str], most: int = 3) -> str:
    more = f" (and {len(sentences) - most} more)" if len(sentences) > most else ""
    return "; ".join(sentences[:most]) + more


def _repeat(
    again: Again,
    datasets: Sequence[Dataset],
    ledger: Ledger,
    record: Record,
    micro_batch: int | None,
    watch: Watch,
) -> Record:
    """Do what the job takes; its new record, or that of what failed before it."""
    from mimbench.executors.local import Local
    from mimbench.work import Workshop

    chain = again.chain
    for name in ("records", "weights", "locks"):
        make_folder(ledger.folder / name)
    workshop = Workshop(
        *datasets, ledger=ledger, setting=chain.setting, files=chain.files, micro_batch=micro_batch
    )
    with _threads_of(record):
        summary = Local().execute(chain, workshop, watch)
    now = ledger.record(again.job.id)
    if now is None or again.job.id in {job.id for job in summary.not_run}:
        ((_, failed), *_) = summary.failed  # what it needs
        return failed.model_copy(update={"error": f"{failed.name}: {failed.error}"})
    return now


@contextmanager
def _threads_of(record: Record) -> Iterator[None]:
    """torch's threads as the record had them: another number adds up in another order."""
    import torch

    before, then = torch.get_num_threads(), record.environment.get("torch_threads")
    if isinstance(then, int) and then > 0:
        torch.set_num_threads(then)
    try:
        yield
    finally:
        torch.set_num_threads(before)
