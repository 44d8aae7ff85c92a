"""Builds tables out of a frame of records: groups what is comparable and averages seeds."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd

from mimbench.report.cells import flags_of, make_cell, with_ranks
from mimbench.report.conflicts import refuse_two_answers
from mimbench.report.costs import COSTS, NAN
from mimbench.report.tables import Column, Row, Table
from mimbench.spec import Setting, canonical

Slot = tuple[str, str, str]  # protocol, preset, data: of several definitions the newest is in the main table


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


def _slot(entry: Any) -> Slot:
    return entry.protocol, entry.preset, entry.tested_on


def _column(entry: Any) -> Column:
    return Column(
        entry.protocol,
        entry.protocol_version,
        entry.fields,
        entry.preset,
        entry.tested_on,
        data=entry.tested_on_name,
        metric=entry.metric or "result",
        summary=entry.summary,
        unit=entry.unit,
        ranked=entry.ranked,
    )


def _column_sets(entries: list[Any], first: Sequence[str]) -> list[tuple[Column, ...]]:
    """Columns of each table of one setting: every slot's newest definition, then the others alone."""
    evaluations = sorted((e for e in entries if e.kind == "evaluate"), key=lambda e: e.status)  # done first
    uses = Counter(_column(e) for e in evaluations)
    definitions: dict[Slot, list[Column]] = defaultdict(list)
    for column in sorted(uses, key=lambda c: (-c.version, -uses[c], c.fields)):
        definitions[column.protocol, column.preset, column.tested_on].append(column)
    asked = {key: place for place, key in enumerate(first)}
    began = {slot: min(e.finished for e in evaluations if _slot(e) == slot) for slot in definitions}

    def place(slot: Slot) -> tuple:
        protocol, preset, _ = slot
        by_name = asked.get(f"{protocol}:{preset}", asked.get(protocol, len(asked)))
        return by_name, began[slot], slot

    slots = sorted(definitions, key=place)
    main = _told_apart([definitions[slot][0] for slot in slots])
    return [main] + [(column,) for slot in slots for column in definitions[slot][1:]]


def _told_apart(columns: list[Column]) -> tuple[Column, ...]:
    """The columns; where two data sets have the same name, with their content in it."""
    names = Counter(column.title for column in columns)
    return tuple(
        replace(column, data=f"{column.data} (content {column.tested_on[:8]})")
        if names[column.title] > 1 and column.tested_on
        else column
        for column in columns
    )


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
    rows = with_ranks(rows, columns)
    ranking = [place for place, column in enumerate(columns) if column.ranked]
    rows.sort(key=lambda row: _place(row, ranking))
    failures = tuple(
        (e.name, e.error, e.record) for e in entries if e.status == "failed" and (main or e in evaluated)
    )
    return Table(setting, columns, tuple(rows), seeds, (), failures)


def _place(row: Row, ranking: Sequence[int]) -> tuple:
    """Sorts best first by the first column that ranks, then by the next; holes last, older after all."""
    values = (row.cells[place].value for place in ranking)
    downwards = (float("inf") if np.isnan(value) else -value for value in values)
    return (row.older, *downwards, row.variant, row.version)


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
            make_cell(column, [e for e in evaluations if _column(e) == column], trainings, seeds)
            for column in columns
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
        flags=flags_of(list(trained.values()), seeds),
        card=next((e.card for e in trained.values() if e.card is not None), None),
    )


def _with_differences(found: list[Table]) -> list[Table]:
    """The tables, each told in what it differs from the others."""
    facts = []
    for table in found:
        own = {name.replace("_", " "): value for name, value in table.setting.content().items()}
        own["budget"] = str(table.setting.budget)
        own["content of the data"] = own.pop("fingerprint")[:8]
        for column in table.columns:
            name = f"{column.name} on {column.data}" if column.tested_on else column.name
            own[f"{name} version"] = str(column.version)
            for field, value in json.loads(column.fields).items():
                own[f"{name} {field}"] = json.dumps(value)
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
