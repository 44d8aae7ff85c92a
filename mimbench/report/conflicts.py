"""Two answers to one question: no table is drawn before somebody has said which one is meant."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from mimbench.errors import UserError
from mimbench.spec import Record

Filed = tuple[Path, Record]


def refuse_two_contents(one: Filed | None, two: Filed) -> Filed:
    """Of two files for one job, in different results folders, the one that counts.

    A copy is no second answer, and neither is a failure beside a result. Raises UserError for anything else.
    """
    if one is None or one[1].status == "failed":
        return two if one is None or two[1].status == "done" or two[1].finished > one[1].finished else one
    if two[1].status == "done" and one[1] != two[1]:
        raise UserError(
            f"{one[0]} and {two[0]} are different records of one job, {one[1].name} (of {one[1].finished} "
            f"and of {two[1].finished}); move away the one not meant"
        )
    return one


def refuse_two_answers(entries: list[Any]) -> None:
    """Raise UserError where two records answer for one cell, or one row and seed mixes two weights.

    entries: rows of ``board.load`` of one setting.
    """
    answers: dict[tuple, Any] = {}
    weights: dict[tuple, Any] = {}
    for entry in entries:
        if entry.kind != "evaluate" or entry.status != "done":
            continue
        row = (entry.variant, entry.versions, entry.seed)
        cell = (
            *row,
            entry.protocol,
            entry.protocol_version,
            entry.preset,
            entry.fields,
            entry.tested_on,
        )
        other = answers.setdefault(cell, entry)
        if other is not entry:
            raise UserError(
                f"two records answer for {_asked(entry)}: {_answer(other)} and {_answer(entry)}"
                f"{_why(other, entry, entries)}; move away the one not meant"
            )
        other = weights.setdefault(row, entry)
        if other.needs != entry.needs:
            raise UserError(
                f"the row of {entry.variant} seed {entry.seed} would mix two sets of weights: "
                f"{_answer(other)} evaluated others under {other.protocol} than {_answer(entry)} under "
                f"{entry.protocol}{_why(other, entry, entries)}; run both protocols again or move away the "
                "one not meant"
            )


def _asked(entry: Any) -> str:
    protocol = f"{entry.protocol}:{entry.preset}" if entry.preset else entry.protocol
    tested = f" on {entry.tested_on_name}" if entry.tested_on else ""
    return f"{entry.variant} seed {entry.seed} under {protocol}@{entry.protocol_version}{tested}"


def _answer(entry: Any) -> str:
    return f"{entry.file} ({entry.metric} {entry.value:.4f}, of {entry.finished})"


def _why(one: Any, two: Any, entries: list[Any]) -> str:
    """In what the pre-trainings behind two records were asked to differ, where their records say so."""
    trainings = {e.record: e.content for e in entries if e.kind == "pretrain"}
    asked = []
    for entry in (one, two):
        known = [trainings[job] for job in json.loads(entry.needs) if job in trainings]
        if not known:
            return ""
        asked.append(known[0])
    names = [name for name in {**asked[0], **asked[1]} if asked[0].get(name) != asked[1].get(name)]
    return f", pre-trained with a different {' and '.join(names)}" if names else ""
