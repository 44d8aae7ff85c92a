"""What was asked of a results folder: noted in its journal, or put together again from its records."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import yaml

from mimbench import journal
from mimbench.errors import UserError
from mimbench.repro.again import command_line, options_of
from mimbench.repro.dossier import Asked
from mimbench.request import Request
from mimbench.spec import Record, Setting, canonical

MERGED = ("methods", "protocol", "data", "seeds", "set")


def noted(asked: journal.Asked) -> Asked:
    """A request of the journal."""
    options = asked.options
    about = asked.about.model_dump(mode="json", exclude_defaults=True) if asked.about else {}
    return Asked(
        id=asked.id,
        title=asked.about.title if asked.about else "",
        question=asked.about.question if asked.about else "",
        noted=True,
        options=options,
        yaml=as_yaml({**options, **({"about": about} if about else {})}),
        command=command_line(options),
        jobs=len(asked.jobs),
        first=asked.first,
        last=asked.last,
    )


def put_together(found: Sequence[Record]) -> tuple[list[Asked], list[str]]:
    """Requests whose jobs include all of ``found``, which no journal notes; and why some are not covered.

    Records of one setting go into one request, unless a protocol has two sets of fields among them.
    """
    merged: list[dict[str, Any]] = []
    jobs: list[int] = []
    remarks: dict[str, None] = {}
    for record in _evaluations_first(found):
        setting = Setting.model_validate(record.content["setting"])
        tested = record.content.get("data", {}).get("name")
        data = list(dict.fromkeys([setting.data, *([tested] if tested else [])]))
        try:
            options = options_of(record, data)
        except UserError as error:
            remarks[f"how to ask for {record.name} again is not known here: {error}"] = None
            continue
        place = next((i for i, other in enumerate(merged) if _agree(other, options)), None)
        if place is None:
            merged.append(options)
            jobs.append(1)
        else:
            merged[place] = _joined(merged[place], options)
            jobs[place] += 1
    asked = [
        Asked(
            noted=False,
            options=_without_defaults(options),
            yaml=as_yaml(_without_defaults(options)),
            command=command_line(_without_defaults(options)),
            jobs=count,
        )
        for options, count in zip(merged, jobs, strict=True)
    ]
    return asked, list(remarks)


def _evaluations_first(found: Sequence[Record]) -> list[Record]:
    """Evaluations, and those trainings that none of them needs: the others come along."""
    evaluated = [record for record in found if record.kind == "evaluate"]
    needed = {need for record in found for need in record.needs}
    alone = [record for record in found if record.kind == "pretrain" and record.id not in needed]
    failed = {_row(record) for record in evaluated if not record.needs}
    return evaluated + [record for record in alone if _row(record) not in failed]


def _row(record: Record) -> str:
    return canonical([record.content.get(name) for name in ("variant", "seed", "setting")])


def _agree(a: dict[str, Any], b: dict[str, Any]) -> bool:
    if any(a.get(name) != b.get(name) for name in {*a, *b} if name not in MERGED):
        return False
    if a["data"][0] != b["data"][0]:
        return False
    mine, theirs = a.get("set", {}), b.get("set", {})
    # A protocol that both have must have the same fields in both.
    shared = set(a["protocol"]) & set(b["protocol"])
    return all(_of(mine, name) == _of(theirs, name) for name in shared)


def _of(assigned: dict[str, Any], owner: str) -> dict[str, Any]:
    return {name: value for name, value in assigned.items() if name.startswith(f"{owner}.")}


def _joined(a: dict[str, Any], b: dict[str, Any]) -> dict[str, Any]:
    lists = {name: list(dict.fromkeys([*a[name], *b[name]])) for name in ("methods", "protocol", "data")}
    if len(lists["protocol"]) > 1:
        lists["protocol"] = [name for name in lists["protocol"] if name != "none"]
    together = {**a, **lists, "seeds": sorted({*a["seeds"], *b["seeds"]})}
    if assigned := {**a.get("set", {}), **b.get("set", {})}:
        together["set"] = assigned
    return together


def _without_defaults(options: dict[str, Any]) -> dict[str, Any]:
    """Without what a run does by itself, whatever the data."""
    kept = {}
    for name, value in options.items():
        default = Request.model_fields[name].get_default()
        if name == "methods" or value != (list(default) if isinstance(default, tuple) else default):
            kept[name] = value
    return kept


def as_yaml(options: dict[str, Any]) -> str:
    """An experiment file that ``mimbench run`` takes."""
    return yaml.safe_dump(options, sort_keys=False, allow_unicode=True, default_flow_style=None, width=100)
