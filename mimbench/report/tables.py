"""Builds tables out of a frame of records: groups what is comparable, averages seeds, ranks with ties."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pandas as pd

from mimbench import stats
from mimbench.errors import UserError
from mimbench.outcomes import Hits
from mimbench.report.conflicts import refuse_two_answers
from mimbench.report.costs import COSTS, NAN
from mimbench.spec import Setting, canonical


@dataclass(frozen=True)
class Column:
    """One protocol at one version with one set of fields: the numbers below it are comparable."""

    protocol: str
    version: int
    fields: str  # canonical JSON
    # What a done record knows and a failed one does not, so no part of what the column is.
    metric: str = field(compare=False)
    summary: str = field(compare=False)  # of the protocol, one sentence

    @property
    def label(self) -> str:
        return f"{self.protocol}@{self.version}"


@dataclass(frozen=True)
class Cell:
    """One number of a table, or the reason why there is none (then the numbers are NaN)."""

    state: str  # "value", "hole" or "failed"
    reason: str = ""
    value: float = NAN  # mean over seeds
    low: float = NAN  # interval over test images, see stats.image_interval
    high: float = NAN
    spread: float = NAN  # sample standard deviation over seeds
    images: int = 0  # of the test split
    seeds: dict[int, tuple[float, str]] = field(default_factory=dict)  # seed -> (value, record id)
    hits: np.ndarray | None = field(default=None, repr=False, compare=False)  # bool [seeds, images]
    rank: str = ""  # "1", "2=", ...; empty for floor, ceiling, older versions and holes
    p_above: float = NAN  # paired test against the method ranked just above
    candidates: int = 0  # that validation chose from, in each seed
    chosen: dict[int, str] = field(default_factory=dict)  # seed -> what it chose, in words
    edges: tuple[str, ...] = ()  # choices at the edge of what was tried: more might have been better


@dataclass(frozen=True)
class Row:
    """A method variant at one version."""

    variant: str
    method: str
    version: str  # "1"; with a tokenizer or teacher trained for it also theirs, "1.2"
    older: bool  # another row holds a newer version of this variant
    role: str
    external: str
    parity: str  # how much its loss is known to be the published one, see spec.Parity
    sources: str  # of it: "teacher ibot"; "" where it learns from images, or labels, alone
    settings: str  # canonical JSON
    cells: tuple[Cell, ...]  # one a column
    cost: dict[str, float]  # costs.Cost.key -> mean over seeds
    device: str  # that it was trained on
    recipe: dict[str, Any]  # of optimisation; empty where nothing was trained
    trained: dict[int, str]  # seed -> id of the pre-training's record
    curves: dict[int, list[dict[str, float]]]  # seed -> learning curve
    finished: str  # when the newest of its records was, ISO 8601

    @property
    def seeds(self) -> list[int]:
        """All that there is a record of."""
        return sorted({*self.trained, *(seed for cell in self.cells for seed in cell.seeds)})

    @property
    def single(self) -> str:
        """Id of the record behind its cost where it has one seed, otherwise ""."""
        if len(self.seeds) != 1:
            return ""
        return next(iter([*self.trained.values(), *(r for c in self.cells for _, r in c.seeds.values())]))

    @property
    def records(self) -> int:
        return len(self.trained) + sum(len(cell.seeds) for cell in self.cells)


@dataclass(frozen=True)
class Table:
    """Rows that may be compared."""

    setting: Setting
    columns: tuple[Column, ...]
    rows: tuple[Row, ...]  # best first by the first column; older versions last
    seeds: tuple[int, ...]  # every number is a mean over all of them
    differs: tuple[tuple[str, str], ...]  # (what, its value here), wherever the tables part
    failures: tuple[tuple[str, str, str], ...]  # (job's name, error, record id)

    @property
    def label(self) -> str:
        return self.setting.label


def build(frame: pd.DataFrame, protocols: Sequence[str] = ()) -> list[Table]:
    """The tables of ``board.tables``."""
    found = []
    groups = frame.groupby(frame["setting"].map(_identity))
    for _, group in sorted(groups, key=lambda pair: pair[1]["setting"].min()):
        entries = list(group.itertuples(index=False))
        refuse_two_answers(entries)
        for place, columns in enumerate(_column_sets(entries, protocols)):
            setting = Setting.model_validate_json(entries[0].setting)
            found.append(_table(setting, columns, entries, main=place == 0))
    return _with_differences(found)


def _identity(setting: str) -> str:
    """The same for settings that differ in the name of the data only."""
    return canonical(Setting.model_validate_json(setting).identity())


def _variant(entry: Any) -> tuple[str, tuple[int, ...]]:
    return entry.variant, entry.versions


def _column(entry: Any) -> Column:
    return Column(
        entry.protocol, entry.protocol_version, entry.fields, entry.metric or "result", entry.summary
    )


def _column_sets(entries: list[Any], first: Sequence[str]) -> list[tuple[Column, ...]]:
    """Columns of each table of one setting: every protocol's newest definition, then the others alone."""
    evaluations = sorted((e for e in entries if e.kind == "evaluate"), key=lambda e: e.status)  # done first
    uses = Counter(_column(e) for e in evaluations)
    definitions: dict[str, list[Column]] = defaultdict(list)
    for column in sorted(uses, key=lambda c: (-c.version, -uses[c], c.fields)):
        definitions[column.protocol].append(column)
    asked = {key: place for place, key in enumerate(first)}
    began = {key: min(e.finished for e in evaluations if e.protocol == key) for key in definitions}
    keys = sorted(definitions, key=lambda key: (asked.get(key, len(asked)), began[key], key))
    return [tuple(definitions[key][0] for key in keys)] + [
        (column,) for key in keys for column in definitions[key][1:]
    ]


def _table(setting: Setting, columns: tuple[Column, ...], entries: list[Any], main: bool) -> Table:
    """One table. The main one of a setting lists everybody, others only who was measured under them."""
    evaluated = [e for e in entries if e.kind == "evaluate" and _column(e) in columns]
    trained = [e for e in entries if e.kind == "pretrain"]
    newest: dict[str, tuple[int, ...]] = {}
    for entry in entries:
        if entry.kind != "tokenizer":
            newest[entry.variant] = max(newest.get(entry.variant, entry.versions), entry.versions)
    by_variant: dict[tuple[str, tuple[int, ...]], list[Any]] = defaultdict(list)
    for entry in evaluated:
        by_variant[_variant(entry)].append(entry)
    for entry in trained:
        if main or _variant(entry) in by_variant:
            by_variant[_variant(entry)].append(entry)
    current = [e for key, own in by_variant.items() if key[1] == newest[key[0]] for e in own]
    seeds = tuple(sorted({e.seed for e in current}))
    rows = [
        _row(own, columns, seeds, older=versions != newest[variant])
        for (variant, versions), own in by_variant.items()
    ]
    rows = _ranked(rows, len(columns))
    rows.sort(key=_place)
    failures = tuple(
        (e.name, e.error, e.record) for e in entries if e.status == "failed" and (main or e in evaluated)
    )
    return Table(setting, columns, tuple(rows), seeds, (), failures)


def _place(row: Row) -> tuple:
    """Sorts best first by the first column, then by the next; holes last, older versions after all."""
    values = (float("inf") if np.isnan(cell.value) else -cell.value for cell in row.cells)
    return (row.older, *values, row.variant, row.version)


def _row(own: list[Any], columns: tuple[Column, ...], seeds: tuple[int, ...], older: bool) -> Row:
    """One row out of all records of a variant and version; an older version has seeds of its own."""
    if older:
        seeds = tuple(sorted({e.seed for e in own}))
    like = own[0]
    evaluations = [e for e in own if e.kind == "evaluate"]
    trainings = [e for e in own if e.kind == "pretrain"]
    measured = {e.seed: e for e in evaluations if e.status == "done"}
    trained = {
        e.seed: e
        for e in trainings
        if e.status == "done" and (e.seed not in measured or e.record in json.loads(measured[e.seed].needs))
    }
    costs = {**trained, **measured}  # an evaluation's cost is that of its pre-training, tokenizer included
    return Row(
        variant=like.variant,
        method=like.method,
        version=".".join(map(str, like.versions)),
        older=older,
        role=like.role,
        external=like.external,
        parity=like.parity,
        sources=like.sources,
        settings=like.settings,
        cells=tuple(
            _cell([e for e in evaluations if _column(e) == column], trainings, seeds) for column in columns
        ),
        # np.mean keeps NaN: a cost that one seed lacks is a hole.
        cost={
            c.key: float(np.mean([getattr(costs[s], f"cost_{c.key}") if s in costs else NAN for s in seeds]))
            for c in COSTS
        },
        device=", ".join(sorted({e.device for e in costs.values() if e.device})),
        recipe=next((e.recipe for e in trained.values() if e.recipe), {}),
        trained={seed: e.record for seed, e in sorted(trained.items())},
        curves={seed: e.curve for seed, e in sorted(trained.items()) if e.curve},
        finished=max(e.finished for e in own),
    )


def _cell(evaluations: list[Any], trainings: list[Any], seeds: tuple[int, ...]) -> Cell:
    done = {e.seed: e for e in evaluations if e.status == "done"}
    own = {seed: (done[seed].value, done[seed].record) for seed in sorted(done)}
    missing = [seed for seed in seeds if seed not in done]
    if missing:
        failed = {e.seed: e.error for e in [*evaluations, *trainings] if e.status == "failed"}
        reasons = [(seed, failed[seed]) for seed in missing if seed in failed]
        if reasons:
            seed, error = reasons[0]
            return Cell(
                "failed", f"failed: {error}" if len(seeds) == 1 else f"seed {seed} failed: {error}", seeds=own
            )
        return Cell("hole", f"{len(done)} of {len(seeds)} seeds" if done else "not run", seeds=own)
    values = [done[seed].value for seed in seeds]
    hits = _hits([done[seed] for seed in seeds])
    low, high = stats.image_interval(hits) if hits is not None else (NAN, NAN)
    return Cell(
        "value",
        value=float(np.mean(values)),
        low=low,
        high=high,
        spread=stats.spread(values),
        images=0 if hits is None else hits.shape[1],
        seeds=own,
        hits=hits,
        candidates=max(done[seed].candidates for seed in seeds),
        chosen={seed: done[seed].chosen for seed in seeds if done[seed].chosen},
        edges=tuple(dict.fromkeys(edge for seed in seeds for edge in done[seed].edges)),
    )


def _hits(entries: list[Any]) -> np.ndarray | None:
    """Hits of one cell, bool [seeds, images]; None where the outcomes do not say who was right."""
    rows: list[np.ndarray] = []
    for entry in entries:
        if not entry.outcomes or entry.metric != "top1":
            return None
        where = f"records/{entry.record}.json"
        try:
            rows.append(Hits.unpacked(entry.outcomes).hits)
        except ValueError as error:
            raise UserError(f"{where} is damaged ({error}); move it away and run again") from error
        if rows[-1].size == 0 or abs(rows[-1].mean() - entry.value) > 1e-6:
            raise UserError(
                f"{where} says {entry.metric} {entry.value:.6f}, but its own outcomes give another "
                "number; it was edited or damaged, move it away and run again"
            )
        if rows[-1].size != rows[0].size:
            raise UserError(
                f"records/{entries[0].record}.json and {where} stand for one cell but were tested on "
                f"{rows[0].size} and {rows[-1].size} images; move away the one not meant"
            )
    return np.stack(rows)


def _ranked(rows: list[Row], columns: int) -> list[Row]:
    """The rows with ranks: among methods of the newest version that have a number, column by column."""
    for place in range(columns):
        ranked = [
            (i, row.cells[place])
            for i, row in enumerate(rows)
            if row.role == "method" and not row.older and row.cells[place].hits is not None
        ]
        ranked.sort(key=lambda pair: (-pair[1].value, rows[pair[0]].variant))
        labels, p_above = stats.ranks([[Hits(seed) for seed in cell.hits] for _, cell in ranked])  # type: ignore[union-attr]
        for (i, cell), label, p in zip(ranked, labels, p_above, strict=True):
            cells = list(rows[i].cells)
            cells[place] = replace(cell, rank=label, p_above=p)
            rows[i] = replace(rows[i], cells=tuple(cells))
    return rows


def _with_differences(found: list[Table]) -> list[Table]:
    """The tables, each told in what it differs from the others."""
    facts = []
    for table in found:
        own = {name.replace("_", " "): value for name, value in table.setting.content().items()}
        own["budget"] = str(table.setting.budget)
        own["content of the data"] = own.pop("fingerprint")[:8]
        for column in table.columns:
            own[f"{column.protocol} version"] = str(column.version)
            for name, value in json.loads(column.fields).items():
                own[f"{column.protocol} {name}"] = json.dumps(value)
        facts.append(own)
    kinds: dict[str, set[str]] = defaultdict(set)
    for own in facts:
        for name, value in own.items():
            kinds[name].add(str(value))
    names_tell = len(kinds["data"]) == len(kinds["content of the data"])
    return [
        replace(
            table,
            differs=tuple(
                (name, str(value))
                for name, value in own.items()
                if len(kinds[name]) > 1 and not (name == "content of the data" and names_tell)
            ),
        )
        for table, own in zip(found, facts, strict=True)
    ]
