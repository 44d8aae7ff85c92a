"""Builds tables out of a frame of records: joins what is comparable and averages seeds."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd

from mimbench.errors import UserError
from mimbench.report.cells import flags_of, make_cell, with_ranks
from mimbench.report.columns import check_names, column_of, column_sets, keeps
from mimbench.report.conflicts import refuse_two_answers
from mimbench.report.costs import COSTS, NAN, SPENT
from mimbench.report.entries import setting_of, without
from mimbench.report.layout import Layout
from mimbench.report.level import Chosen, Run, choose, run_of
from mimbench.report.tables import Cell, Column, Row, Table
from mimbench.spec import AS_RELEASED


def build(frame: pd.DataFrame, layout: Layout) -> list[Table]:
    """The tables of ``board.tables``."""
    entries = list(frame.itertuples(index=False))
    check_names(layout.only, entries)
    entries = [entry for entry in entries if keeps(layout, entry)]
    check_names(layout.by, entries, sorting=True)
    joined: dict[str, list[Any]] = defaultdict(list)  # settings that may share a table
    answers: dict[str, list[Any]] = defaultdict(list)  # settings as they are
    for entry in entries:
        joined[without(entry.setting, layout.free)].append(entry)
        answers[entry.identity].append(entry)
    for own in answers.values():
        refuse_two_answers(own)
    found = []
    for own in sorted(joined.values(), key=lambda own: min(entry.setting for entry in own)):
        own_layout = _at_known_cost(own, layout)
        for place, columns in enumerate(column_sets(own, layout)):
            found.append(_table(columns, own, own_layout, main=place == 0))
            if own_layout is not layout:
                found[-1] = replace(found[-1], unlevelled=True)
    if found and all(table.unlevelled for table in found):
        raise UserError(
            "what the pre-training of released weights cost is not known here, so that they cannot be "
            "compared at an equal cost; leave out --at"
        )
    return _with_differences(found)


def _at_known_cost(entries: Sequence[Any], layout: Layout) -> Layout:
    """The layout, without its level of cost for rows whose cost is not known here."""
    released = setting_of(entries[0].setting).released
    return replace(layout, level=None) if layout.level and released else layout


def _table(columns: tuple[Column, ...], entries: list[Any], layout: Layout, main: bool) -> Table:
    """One table. The main one of a setting lists everybody, others only who was measured under them."""
    newest = _newest(entries)
    shown = choose(entries, layout.level, newest) if layout.level else Chosen(entries, None, {}, {})
    evaluated = [e for e in shown.entries if e.kind == "evaluate" and column_of(e) in columns]
    by_run: dict[Run, list[Any]] = defaultdict(list)
    for entry in evaluated:
        by_run[run_of(entry)].append(entry)
    for entry in shown.entries:
        if entry.kind == "pretrain" and (main or run_of(entry) in by_run):
            by_run[run_of(entry)].append(entry)
    # An older version, or a run that is no answer at the level, makes no hole in the others and has none.
    counted = {run for run in by_run if run[1] == newest[run[0]] and run not in shown.short}
    seeds = tuple(sorted({entry.seed for run in counted for entry in by_run[run]}))
    groups: dict[str, list[Row]] = defaultdict(list)
    for run, own in by_run.items():
        its_seeds = seeds if run in counted else tuple(sorted({entry.seed for entry in own}))
        row = _row(own, columns, its_seeds, older=run[1] != newest[run[0]])
        row = _at_level(row, run, shown) if shown.level else row
        row = replace(row, group=layout.heading(row))
        groups[row.group].append(row)
    ranking = [place for place, column in enumerate(columns) if column.ranked]
    rows = [row for own in groups.values() for row in with_ranks(own, columns)]
    rows.sort(key=lambda row: (layout.place(row), *_place(row, ranking)))
    failures = tuple(
        (e.name, e.error, e.record)
        for e in entries
        if e.status == "failed" and (main or (e.kind == "evaluate" and column_of(e) in columns))
    )
    return Table(
        setting=setting_of(entries[0].setting),
        columns=columns,
        rows=tuple(rows),
        seeds=seeds,
        differs=(),
        failures=failures,
        level=shown.level,
        varies=layout.free,
        files={entry.record: entry.file for entry in entries},
    )


def _newest(entries: Sequence[Any]) -> dict[str, tuple[int, ...]]:
    """The newest versions of each variant and of what was trained for it."""
    found: dict[str, tuple[int, ...]] = {}
    for entry in entries:
        if entry.kind != "tokenizer":
            found[entry.variant] = max(found.get(entry.variant, entry.versions), entry.versions)
    return found


def _at_level(row: Row, run: Run, shown: Chosen) -> Row:
    """The row with what share of the level it spent; where that is no run at the level, without numbers."""
    share = shown.share(run)
    row = replace(row, cost={SPENT.key: share, **row.cost})
    if run not in shown.short:
        return row
    reason = "cost unknown" if np.isnan(share) else f"{100 * share:.0f} % spent"
    hole = Cell("hole", reason)
    return replace(row, cells=(hole,) * len(row.cells), flags=(*row.flags, shown.short[run]))


def _place(row: Row, ranking: Sequence[int]) -> tuple:
    """Sorts best first by the first column that ranks, then by the next; holes last, older after all."""
    values = (row.cells[place].value for place in ranking)
    downwards = (float("inf") if np.isnan(value) else -value for value in values)
    return (row.older, *downwards, row.variant, row.version)


def _row(own: list[Any], columns: tuple[Column, ...], seeds: tuple[int, ...], older: bool) -> Row:
    """One row out of all records of a run; its numbers are means over ``seeds``."""
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
        setting=setting_of(like.setting),
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
            make_cell(column, [e for e in evaluations if column_of(e) == column], trainings, seeds)
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
        release=next((e.release for e in own if e.release is not None), None),
        epochs=float(np.mean([costs[s].epochs if s in costs else NAN for s in seeds])) if seeds else NAN,
        card=next((e.card for e in trained.values() if e.card is not None), None),
    )


def _with_differences(found: list[Table]) -> list[Table]:
    """The tables, each told in what it differs from the others."""
    facts = []
    for table in found:
        held = dict(table.held)
        if table.setting.released:
            held = {name: value for name, value in held.items() if value != AS_RELEASED}
        own = {"weights": "released by others" if table.setting.released else "trained here"}
        own |= {name.replace("_", " "): value for name, value in held.items()}
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
