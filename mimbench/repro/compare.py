"""In what two records or two results folders differ, and whether that explains the gap. Imports no torch."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from mimbench import records
from mimbench.errors import UserError
from mimbench.repro.differences import CONSEQUENCES, Difference, differences
from mimbench.repro.explain import equal, explain
from mimbench.repro.gap import Gap, gap
from mimbench.repro.locate import Located, contradictions, locate
from mimbench.request import RESULTS
from mimbench.spec import Frozen, Record, Setting, canonical


class Side(Frozen):
    """One of the two that are compared."""

    name: str
    file: str
    seeds: tuple[int, ...] = ()
    records: tuple[str, ...] = ()
    problems: tuple[str, ...] = ()  # in what it contradicts itself


class Comparison(Frozen):
    """Two results beside each other.

    differences: the likeliest explanation of the gap first. verdict: sentences, the most important first.
    no_gap: why there is no gap to speak of, where there is none. equal: whether outcomes (or weights) are,
    bit for bit.
    """

    format: int = 1
    row: str  # "mae · linprobe · digits"
    a: Side
    b: Side
    gap: Gap | None
    no_gap: str = ""
    equal: bool
    differences: tuple[Difference, ...]
    verdict: tuple[str, ...]


class Boards(Frozen):
    """Two results folders beside each other: the rows in both, and those in one alone."""

    format: int = 1
    a: str
    b: str
    rows: tuple[Comparison, ...]
    only_a: tuple[str, ...]
    only_b: tuple[str, ...]


def compare(a: str, b: str, results: Path = RESULTS) -> Comparison | Boards:
    """Compare two records (files, or ids in the folder ``results``) or two results folders.

    Raises UserError where one is neither, or one is a record and the other a folder.
    """
    folders = [Path(name).is_dir() for name in (a, b)]
    if all(folders):
        return compare_folders(Path(a), Path(b))
    if any(folders):
        raise UserError(
            f"{a} and {b}: one is a results folder and the other a record; compare two records or two folders"
        )
    return compare_records(locate(a, results), locate(b, results))


def compare_records(a: Located, b: Located) -> Comparison:
    """Two records, with what the records beside them tell of the spread over seeds."""
    rows = []
    for found in (a, b):
        if found.record.kind == "evaluate" and found.record.status == "done":
            rows.append([found.record, *(r for r in found.others() if _same_row(r, found.record))])
    sides = tuple(
        Side(
            name=found.record.name,
            file=str(found.path),
            seeds=(found.record.content["seed"],),
            records=(found.record.id,),
            problems=tuple(contradictions(found)),
        )
        for found in (a, b)
    )
    return _compared(_row_name(a.record), sides[0], sides[1], [a.record], [b.record], rows)


def compare_folders(a: Path, b: Path) -> Boards:
    """Row by row: the results of equal names, over the seeds that both have."""
    boards = [_rows(records.read_folder(folder)) for folder in (a, b)]
    pairs, only = _pair(*boards)
    compared = []
    for key, mine, theirs in pairs:
        seeds = sorted({r.content["seed"] for r in mine} & {r.content["seed"] for r in theirs})
        sides = []
        chosen = []
        for folder, row in ((a, mine), (b, theirs)):
            used = [r for r in row if r.content["seed"] in seeds] or row
            used.sort(key=lambda r: r.content["seed"])
            chosen.append(used)
            files = [Located(r, records.path_of(folder, r.id)) for r in used]
            sides.append(
                Side(
                    name=used[0].name,
                    file=str(folder),
                    seeds=tuple(r.content["seed"] for r in used),
                    records=tuple(r.id for r in used),
                    problems=tuple(said for file in files for said in contradictions(file)),
                )
            )
        compared.append(_compared(key, sides[0], sides[1], chosen[0], chosen[1], [mine, theirs]))
    return Boards(a=str(a), b=str(b), rows=tuple(compared), only_a=tuple(only[0]), only_b=tuple(only[1]))


Row = list[Record]  # one result under several seeds


def _rows(found: Iterable[Record]) -> dict[str, dict[str, Row]]:
    """Evaluations by name, and those of one name by what else decides them, but for the seed."""
    rows: dict[str, dict[str, Row]] = defaultdict(lambda: defaultdict(list))
    for record in found:
        if record.kind == "evaluate":
            rows[_row_name(record)][_question(record)].append(record)
    return rows


def _pair(
    a: dict[str, dict[str, Row]], b: dict[str, dict[str, Row]]
) -> tuple[list[tuple[str, Row, Row]], tuple[list[str], list[str]]]:
    """Rows that answer the same question; then those that are the only ones of their name on both sides."""
    pairs: list[tuple[str, Row, Row]] = []
    only: tuple[list[str], list[str]] = ([], [])
    for name in sorted({*a, *b}):
        mine, theirs = dict(a.get(name, {})), dict(b.get(name, {}))
        for question in [q for q in mine if q in theirs]:
            pairs.append((name, mine.pop(question), theirs.pop(question)))
        if len(mine) == len(theirs) == 1:
            pairs.append((name, next(iter(mine.values())), next(iter(theirs.values()))))
            continue
        for left, names in ((mine, only[0]), (theirs, only[1])):
            names += [
                f"{name} ({Setting.model_validate(row[0].content['setting']).label})" for row in left.values()
            ]
    return pairs, only


def _row_name(record: Record) -> str:
    content = record.content
    variant = str(content.get("variant") or content["method"])
    if record.kind != "evaluate":
        return f"{variant} · {record.kind}"
    preset = content.get("preset")
    protocol = f"{content['protocol']}:{preset}" if preset else content["protocol"]
    tested = content.get("data", {}).get("name") or content["setting"]["data"]
    return f"{variant} · {protocol} · {tested}"


def _question(record: Record) -> str:
    """What decides a result but for the seed; names of data decide nothing."""
    content: dict[str, Any] = {k: v for k, v in record.content.items() if k != "seed"}
    content["setting"] = Setting.model_validate(content["setting"]).identity()
    if "data" in content:
        content["data"] = content["data"]["fingerprint"]
    return canonical(content)


def _same_row(other: Record, record: Record) -> bool:
    """Whether another record is the same result under another seed."""
    return (
        other.kind == record.kind
        and other.status == "done"
        and other.content["seed"] != record.content["seed"]
        and _question(other) == _question(record)
    )


def _compared(row: str, a: Side, b: Side, mine: Row, theirs: Row, rows: Sequence[Row]) -> Comparison:
    found = differences(mine[0], theirs[0])
    if len(mine) > 1 or len(theirs) > 1:
        found = [d for d in found if d.kind not in CONSEQUENCES]  # of one seed, which says little
    done = [[r for r in side if r.status == "done" and r.kind == "evaluate"] for side in (mine, theirs)]
    failed = [f"{r.name} failed: {r.error}" for r in (*mine, *theirs) if r.status == "failed"]
    apart: Gap | str
    if failed:
        apart = "; ".join(failed)
    elif all(done):
        known = [[r.metrics[m] for r in row if (m := r.facts.get("metric", "")) in r.metrics] for row in rows]
        apart = gap(done[0], done[1], known)
    else:
        apart = "they are no evaluations: only these have a number to compare"
    problems = [f"{side.file}: {problem}" for side in (a, b) for problem in side.problems]
    return Comparison(
        row=row,
        a=a,
        b=b,
        gap=None if isinstance(apart, str) else apart,
        no_gap=apart if isinstance(apart, str) else "",
        equal=equal(mine, theirs),
        differences=tuple(found),
        verdict=tuple(problems + explain(found, apart, mine, theirs)),
    )
