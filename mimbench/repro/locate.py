"""Finds the records that a user means, and those beside them. Imports no torch."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mimbench import journal, records
from mimbench.errors import UserError
from mimbench.outcomes import unpack
from mimbench.spec import Job, Record

ID = re.compile(r"[0-9a-f]{16}")
TOLERANCE = 1e-6  # between a metric and the value of its outcomes, as in ``mimbench.evaluate``


@dataclass(frozen=True)
class Located:
    """A record and the file it was read from."""

    record: Record
    path: Path

    @property
    def folder(self) -> Path:
        """The results folder around it; for a file on its own the folder it lies in."""
        inner = self.path.parent
        return inner.parent if inner.name == "records" else inner

    def beside(self, job_id: str) -> Located | None:
        """The record of another job in the same folder."""
        path = self.path.with_name(f"{job_id}.json")
        return Located(records.read(path), path) if path.is_file() else None

    def others(self) -> Iterator[Record]:
        """All other records in the same folder."""
        for path in sorted(self.path.parent.iterdir()):
            if records.NAME.fullmatch(path.name) and path.name != self.path.name:
                yield records.read(path)

    @property
    def asked(self) -> journal.Asked | None:
        """The latest request of the folder that this record belongs to."""
        found = [asked for asked in journal.read(self.folder) if self.record.id in asked.jobs]
        return max(found, key=lambda asked: asked.last, default=None)


def locate(named: str, results: Path) -> Located:
    """The record called ``named``: the path of its JSON file, or its id in the folder ``results``.

    Raises UserError where there is none.
    """
    path = Path(named)
    if not path.is_file() and ID.fullmatch(path.name):
        folder = path.parent if path.parent != Path() else Path(results)
        path = folder / "records" / f"{path.name}.json"
        if not path.is_file() and (folder / path.name).is_file():
            path = folder / path.name
    if not path.is_file():
        raise UserError(
            f"no record {named}: give the path of a record's JSON file, or its id together with the results "
            f"folder it is in (looked in {results})"
        )
    return Located(records.read(path), path)


def contradictions(found: Located) -> list[str]:
    """Sentences on what in a record contradicts itself, or a record beside it, as after an edit by hand."""
    record, said = found.record, []
    if ID.fullmatch(found.path.stem) and found.path.stem != record.id:
        said.append(f"the file is called {found.path.name} and holds the record {record.id}")
    needs = _needs(found)
    if needs is not None:
        job = Job(kind=record.kind, name=record.name, content=record.content, needs=needs)
        if job.id != record.id:
            said.append(
                f"its content is not the one its id was made of (it makes the id {job.id}, the record says "
                f"{record.id}): something that was asked for was changed after it was written"
            )
    if record.kind == "evaluate" and record.status == "done":
        said += _metric(record)
    for need, sha256 in record.needs.items():
        before = found.beside(need)
        if before and before.record.status == "done" and sha256 not in before.record.product.values():
            said.append(
                f"it was made from weights {sha256[:8]}…, and {before.path.name} beside it wrote "
                f"{_hashes(before.record.product)}"
            )
    return said


def _needs(found: Located) -> tuple[str, ...] | None:
    """The jobs that a record's job needs; None where a failed record does not tell."""
    record = found.record
    if record.needs or record.status == "done":
        return tuple(record.needs)
    return () if record.kind != "evaluate" and not _trained_for_it(record.content) else None


def _trained_for_it(content: dict[str, Any]) -> bool:
    return any("sha256" not in source for source in content.get("provided", {}).values())


def _metric(record: Record) -> Iterator[str]:
    """What its headline number says against its outcomes."""
    name = record.metric
    if not record.facts.get("ranked", True) or name not in record.metrics:
        return
    try:
        counted = unpack(record.outcomes).score
    except ValueError as error:
        yield str(error)
        return
    if not abs(record.metrics[name] - counted) <= TOLERANCE:
        yield (
            f"it says {name} {record.metrics[name]:.6f}, and its per-image outcomes {counted:.6f}: one of "
            "them was changed after it was written"
        )


def _hashes(product: dict[str, str]) -> str:
    return ", ".join(f"{sha256[:8]}… ({name})" for name, sha256 in product.items()) or "none"
