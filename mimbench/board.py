"""Leaderboards out of records: what may stand side by side, what must not, and what is missing.

``load`` gives one row a record, ``tables`` what people compare, ``summary`` the same numbers as one tidy
DataFrame, ``write`` the CSV and HTML files. Imports no torch. The rules a table keeps:

- Its rows share the setting, and each column one protocol, version and set of fields. Others go to a
  table of their own, whose heading names the difference.
- Two answers for one cell, or two sets of weights behind one row and seed, stop it and name both files.
- A number is a mean over all seeds of its table, or a hole that says why. No mean skips a hole.
- An older version of a method stays apart and unranked.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Literal

import pandas as pd
from pydantic import BaseModel, ConfigDict, ValidationError

from mimbench import records
from mimbench.errors import UserError
from mimbench.files import make_folder, write_atomically
from mimbench.report.costs import NAN, amounts, device
from mimbench.report.tables import Cell, Column, Row, Table, build
from mimbench.report.text import plain
from mimbench.spec import External, Record, Role, Setting, canonical

if TYPE_CHECKING:
    from rich.console import Group

__all__ = [
    "Cell",
    "Column",
    "Row",
    "Table",
    "console_tables",
    "load",
    "summary",
    "tables",
    "write",
]

Format = Literal["csv", "html"]


class _Content(BaseModel):
    """What a table reads of a record's content."""

    model_config = ConfigDict(extra="ignore")

    method: str
    variant: str = ""
    settings: dict[str, Any] = {}
    method_version: int = 0
    role: Role = "method"
    provided: dict[str, dict[str, Any]] = {}  # tokenizers, teachers: content of the trained, sha256 of given
    sources: str = ""  # the same for people
    recipe: dict[str, Any] | None = None
    external: External = "none"
    parity: str = ""
    seed: int = 0
    setting: Setting
    protocol: str = ""
    protocol_version: int = 0
    fields: dict[str, Any] = {}


def load(folder: Path | str) -> pd.DataFrame:
    """One row a record below a results folder: what was asked, what came out and what it cost.

    ``settings``, ``setting``, ``fields`` and ``needs`` are canonical JSON; costs are columns called
    ``cost_<key>`` as in ``report.costs.COSTS``. Raises UserError where there are no records, and for
    one that is damaged or newer than this version.
    """
    found = records.read_folder(Path(folder))
    if not found:
        raise UserError(f"no records below {folder}; mimbench run writes them there")
    return pd.DataFrame([_row(record) for record in found])


def _row(record: Record) -> dict[str, Any]:
    try:
        content = _Content.model_validate(record.content)
    except ValidationError as error:
        first = error.errors()[0]
        raise UserError(
            f"the record records/{record.id}.json is damaged (content.{'.'.join(map(str, first['loc']))}: "
            f"{first['msg']}); move it away and run the same command again to redo its job"
        ) from error
    metric = record.facts.get("metric", next(iter(record.metrics), ""))
    return {
        "record": record.id,
        "kind": record.kind,
        "status": record.status,
        "error": record.error or "",
        "name": record.name,
        "method": content.method,
        "variant": content.variant or content.method,
        "versions": tuple(_versions(record.content)),
        "recipe": content.recipe or {},
        "content": record.content,
        "role": content.role,
        "external": content.external,
        "sources": content.sources,
        "parity": content.parity,
        "settings": canonical(content.settings),
        "seed": content.seed,
        "setting": canonical(content.setting.content()),
        "protocol": content.protocol,
        "protocol_version": content.protocol_version,
        "fields": canonical(content.fields),
        "summary": str(record.facts.get("summary", "")),
        **_choice(record.selection),
        "needs": canonical(record.needs),
        "metric": metric,
        "value": record.metrics.get(metric, NAN),
        "outcomes": record.outcomes,
        "curve": record.curve,
        "device": device(record.cost),
        "finished": record.finished,
        **{f"cost_{key}": amount for key, amount in amounts(record.cost).items()},
    }


def _choice(selection: dict[str, Any]) -> dict[str, Any]:
    """What validation chose, out of how many, and whether at the edge of what was tried."""
    candidates, place = selection.get("candidates"), selection.get("chosen")
    chosen = ""
    if isinstance(candidates, list) and isinstance(place, int) and 0 <= place < len(candidates):
        facts = {k: v for k, v in dict(candidates[place]).items() if not k.startswith("validation_")}
        chosen = plain(facts)
    return {
        "candidates": len(candidates or ()),
        "chosen": chosen,
        "edges": tuple(map(str, selection.get("edges", ()))),
    }


def _versions(content: dict[str, Any]) -> Iterator[int]:
    """The method's version and those of what was trained for it: either changes its results."""
    yield content.get("method_version", 0)
    for _, source in sorted(content.get("provided", {}).items()):
        if "method_version" in source:
            yield from _versions(source)


def tables(
    frame: pd.DataFrame, *, seeds: Iterable[int] | None = None, protocols: Sequence[str] = ()
) -> list[Table]:
    """What people compare: one table a setting, and one more for each further definition of a protocol.

    frame: from ``load``. seeds: only these; by default all there are. protocols: keys whose columns come
    first, in this order, before others in the order in which they were first evaluated; the first column
    sorts the rows. Raises UserError when two records answer for one cell or a record contradicts itself.
    """
    if seeds is not None:
        frame = frame[frame["seed"].isin(list(seeds))]
    return build(frame, protocols)


def summary(found: Sequence[Table]) -> pd.DataFrame:
    """One row a (table, method variant, protocol), every number unrounded, with the ids of its records.

    Accuracies are shares in [0, 1]; holes are NaN with a ``reason``; per-seed values read
    ``0:0.871 1:0.869`` and their records stand in the same order.
    """
    rows = []
    for number, table in enumerate(found, start=1):
        for row in table.rows:
            for column, cell in zip(table.columns, row.cells, strict=True):
                rows.append(
                    {
                        "table": number,
                        **_setting_columns(table.setting),
                        "role": row.role,
                        "method": row.method,
                        "variant": row.variant,
                        "method_version": row.version,
                        "older_version": row.older,
                        "external": row.external,
                        "learns_from": row.sources,
                        "parity": row.parity,
                        "settings": row.settings,
                        "protocol": column.protocol,
                        "protocol_version": column.version,
                        "protocol_fields": column.fields,
                        "metric": column.metric,
                        "state": cell.state,
                        "reason": cell.reason,
                        "rank": cell.rank,
                        "value": cell.value,
                        "low": cell.low,
                        "high": cell.high,
                        "spread": cell.spread,
                        "n_seeds": len(cell.seeds),
                        "n_images": cell.images,
                        "p_above": cell.p_above,
                        "candidates": cell.candidates,
                        "chosen": " | ".join(f"{seed}: {what}" for seed, what in cell.chosen.items()),
                        "at_edge_of_grid": " | ".join(cell.edges),
                        "per_seed": " ".join(f"{seed}:{value!r}" for seed, (value, _) in cell.seeds.items()),
                        "records": " ".join(record for _, record in cell.seeds.values()),
                        "pretrain_records": " ".join(row.trained.values()),
                        **row.cost,
                    }
                )
    return pd.DataFrame(rows)


def _setting_columns(setting: Setting) -> dict[str, Any]:
    content = setting.content()
    return {**content, "budget": str(setting.budget)}


def console_tables(
    frame: pd.DataFrame,
    *,
    width: int = 100,
    seeds: Iterable[int] | None = None,
    protocols: Sequence[str] = (),
) -> list[Group]:
    """The ``tables`` for ``rich`` to print on ``width`` columns, each with its heading and legend."""
    from mimbench.report.console import draw

    return [draw(table, width) for table in tables(frame, seeds=seeds, protocols=protocols)]


def write(
    folder: Path | str,
    formats: Sequence[Format] = ("csv", "html"),
    out: Path | str | None = None,
    *,
    seeds: Iterable[int] | None = None,
    protocols: Sequence[str] = (),
) -> list[Path]:
    """Write ``leaderboard.csv`` and ``leaderboard.html`` of a results folder; their paths.

    out: the folder to write to, by default the results folder itself; links in the page lead from there
    to the records. Raises UserError as ``load`` and ``tables`` do, and where ``out`` cannot be written.
    """
    from mimbench.report import page, sheet

    folder = Path(folder)
    found = tables(load(folder), seeds=seeds, protocols=protocols)
    target = make_folder(Path(out) if out is not None else folder)
    paths = []
    for name in formats:
        path = target / f"leaderboard.{name}"
        text = sheet.csv_text(summary(found)) if name == "csv" else page.html(found, folder, target)
        write_atomically(path, partial(_write_text, text))
        paths.append(path)
    return paths


def _write_text(text: str, file: IO[bytes]) -> None:
    file.write(text.encode("utf-8"))
