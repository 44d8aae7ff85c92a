"""Builds the reproducibility report of a results folder and writes it as HTML, Markdown and JSON."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import datetime, timezone
from functools import partial
from pathlib import Path
from typing import IO

from mimbench import __version__, journal, records
from mimbench.console import duration
from mimbench.errors import UserError, unknown
from mimbench.files import make_folder, write_atomically
from mimbench.repro import content, surroundings
from mimbench.repro.changed import changed_options, changed_settings
from mimbench.repro.checklist import Known, checklist
from mimbench.repro.dossier import Asked, Changed, Failure, Report
from mimbench.repro.locate import Located, contradictions
from mimbench.repro.requests import noted, put_together
from mimbench.spec import Record, Setting

FORMATS = ("html", "markdown", "json")
ENDINGS = {"html": "html", "markdown": "md", "json": "json"}


def write_report(
    folder: Path, names: Sequence[str] = (), formats: Sequence[str] = FORMATS, out: Path | None = None
) -> list[Path]:
    """Write ``report.html``, ``report.md`` and ``report.json`` of a results folder; their paths.

    names: of rows ("mae[mask_ratio=0.9]") or ids of requests, to tell of these alone. out: where to, by
    default the folder itself. Raises UserError as ``make_report`` does, and for an unknown format.
    """
    from mimbench.repro.drawn import html, markdown

    for name in formats:
        if name not in FORMATS:
            raise unknown("format", name, FORMATS)
    report = make_report(folder, names)
    target = make_folder(Path(out) if out is not None else Path(folder))
    draw = {"html": html, "markdown": markdown, "json": lambda of: of.model_dump_json(indent=1) + "\n"}
    paths = []
    for name in dict.fromkeys(formats):
        path = target / f"report.{ENDINGS[name]}"
        write_atomically(path, partial(_write, draw[name](report)))
        paths.append(path)
    return paths


def _write(text: str, file: IO[bytes]) -> None:
    file.write(text.encode("utf-8", errors="replace"))


def make_report(folder: Path, names: Sequence[str] = ()) -> Report:
    """Everything that the records of a results folder tell. Raises UserError where there are none."""
    folder = Path(folder)
    asked = journal.read(folder)
    found = _narrowed(records.read_folder(folder), asked, names)
    if not found:
        raise UserError(f"no records below {folder}; mimbench run writes them there")
    ids = {record.id for record in found}
    mine = [noted(one) for one in asked if ids & set(one.jobs)]
    covered = {job for one in asked for job in one.jobs}
    rest = sorted((r for r in found if r.id not in covered), key=lambda record: record.started)
    more, remarks = put_together(rest)
    requests = (*mine, *more)
    changed, unknown_defaults = changed_settings(found)
    rows, measures = content.rows(found), content.measures(found)
    environment = surroundings.environment(found)
    versions, code = surroundings.versions(found), surroundings.code(found)
    weights, data = surroundings.weights(found, folder), surroundings.data(found)
    cost = surroundings.cost(found)
    failures = tuple(
        Failure(record=record.id, name=record.name, error=record.error or "")
        for record in found
        if record.status == "failed"
    )
    untold = sum(not record.environment for record in found)
    if untold:
        remarks.append(f"{untold} records, failed ones, tell nothing of the machine they ran on")
    return Report(
        folder=folder.resolve().name,
        narrowed_to=tuple(names),
        made_at=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        made_with=__version__,
        first=min(record.started for record in found),
        last=max(record.finished for record in found),
        asked=requests,
        jobs=tuple(map(content.line, sorted(found, key=lambda record: record.started))),
        rows=rows,
        measures=measures,
        settings=tuple(
            dict.fromkeys(Setting.model_validate(record.content["setting"]).label for record in found)
        ),
        changed=(*_options(requests), *changed),
        remarks=(*unknown_defaults, *remarks),
        mixed=surroundings.mixed(environment, versions, code),
        environment=environment,
        versions=versions,
        code=code,
        data=data,
        weights=weights,
        released=surroundings.released(found),
        seeds=tuple(sorted({record.content["seed"] for record in found})),
        cost=cost,
        failures=failures,
        contradictions=tuple(
            f"{record.name} ({record.id}): {said}"
            for record in found
            for said in contradictions(Located(record, records.path_of(folder, record.id)))
        ),
        checklist=checklist(
            Known(
                rows=rows,
                measures=measures,
                data=data,
                weights=weights,
                code=code,
                versions=versions,
                environment=environment,
                cost=cost,
                failures=failures,
                commands=len(requests),
                preparation=content.preparation(found),
                recipes=content.recipes(found),
                duration=duration,
            )
        ),
        again=tuple(one.command for one in requests),
        advice=tuple(_advice(found, requests)),
    )


def _narrowed(found: list[Record], asked: Sequence[journal.Asked], names: Sequence[str]) -> list[Record]:
    """The records of some rows or requests, and those of all that was trained for them."""
    if not names:
        return found
    by_id = {record.id: record for record in found}
    requests = {one.id: one for one in asked}
    rows = {str(record.content.get("variant") or record.content["method"]) for record in found}
    wanted: set[str] = set()
    for name in names:
        if name in requests:
            wanted |= set(requests[name].jobs)
        elif name in rows:
            wanted |= {r.id for r in found if name == (r.content.get("variant") or r.content["method"])}
        else:
            raise unknown("row or request of these results", name, {*rows, *requests})
    left = wanted & by_id.keys()
    while left:
        left = {need for job in left for need in by_id[job].needs if need in by_id} - wanted
        wanted |= left
    return [record for record in found if record.id in wanted]


def _options(requests: Sequence[Asked]) -> list[Changed]:
    """Options not at their defaults, of all requests."""
    found: dict[str, Changed] = {}
    for one in requests:
        found |= {changed.model_dump_json(): changed for changed in changed_options(one.options, one.noted)}
    return list(found.values())


def _advice(found: Sequence[Record], requests: Sequence[Asked]) -> Iterator[str]:
    """What it takes beside the command lines."""
    commits = {r.environment.get("source", {}).get("commit") for r in found} - {None}
    if commits:
        listed = " and ".join(sorted(commit[:12] for commit in commits))
        yield f"check out mimbench at commit {listed}, and install the versions of the packages listed above"
    else:
        yield "install the version of mimbench and of the packages listed above"
    if not all(one.noted for one in requests):
        yield (
            "requests that were put together from records name data as the records do: give the path where "
            "yours lie; they ask for all combinations of what they list, perhaps more than is recorded"
        )
    yield "one record alone: mimbench verify RECORD.json runs it again and says how it compares"
    yield "two folders: mimbench compare THIS THAT lists their rows beside each other and what differs"
    yield (
        "the same bits come out on the same machine with the same versions and as many threads; elsewhere "
        "sums are rounded otherwise"
    )
