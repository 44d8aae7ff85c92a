"""One number out of the records of its seeds, and its rank among the others of its column."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from mimbench import power, stats
from mimbench.errors import UserError
from mimbench.outcomes import Outcomes, unpack
from mimbench.report.costs import NAN
from mimbench.report.tables import Cell, Column, Row

TOLERANCE = 1e-6  # of a record's metric against that of its outcomes: sums in another order


def make_cell(
    column: Column, evaluations: Sequence[Any], trainings: Sequence[Any], seeds: Sequence[int]
) -> Cell:
    """The cell of ``column`` out of its evaluations; trainings: those of its row, which may have failed."""
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
    entries = [done[seed] for seed in seeds]
    outcomes = _outcomes(entries, column.ranked)
    low, high = stats.interval(outcomes) if outcomes else (np.nan, np.nan)
    if column.unit == "share":  # Student's t of a mean knows no bounds
        low, high = np.clip([low, high], 0, 1).tolist()
    return Cell(
        "value",
        value=float(np.mean([e.value for e in entries])),
        low=low,
        high=high,
        spread=stats.spread([e.value for e in entries]),
        images=outcomes[0].n if outcomes else 0,
        seeds=own,
        outcomes=outcomes,
        candidates=max(e.candidates for e in entries),
        chosen={e.seed: e.chosen for e in entries if e.chosen},
        edges=tuple(dict.fromkeys(edge for e in entries for edge in e.edges)),
        flags=flags_of(entries, seeds),
        metrics={
            name: float(np.mean([e.metrics[name] for e in entries]))
            for name in entries[0].metrics
            if all(name in e.metrics for e in entries)
        },
    )


def flags_of(entries: Sequence[Any], seeds: Sequence[int]) -> tuple[str, ...]:
    """The sentences of these records, each once, with the seeds where it does not hold for all."""
    said: dict[str, list[int]] = {}
    for entry in entries:
        for flag in entry.flags:
            said.setdefault(flag, []).append(entry.seed)
    return tuple(
        flag if set(where) >= set(seeds) else f"{flag} (seed {', '.join(map(str, sorted(where)))})"
        for flag, where in said.items()
    )


def _outcomes(entries: Sequence[Any], ranked: bool) -> tuple[Outcomes, ...]:
    """Outcomes of one cell, one a seed; none where they say nothing about its number.

    Raises UserError where they are damaged, do not belong together or contradict a number that ranks.
    What only describes, such as a rank of features, may be no function of single images.
    """
    found: list[Outcomes] = []
    for entry in entries:
        if not entry.outcomes:
            return ()
        where = entry.file
        try:
            found.append(unpack(entry.outcomes))
        except ValueError as error:
            raise UserError(f"{where} is damaged ({error}); move it away and run again") from error
        if found[-1].n == 0 or not abs(found[-1].score - entry.value) <= TOLERANCE * max(1, abs(entry.value)):
            if not ranked:
                return ()
            raise UserError(
                f"{where} says {entry.metric} {entry.value:.6f}, but its own outcomes give another "
                "number; it was edited or damaged, move it away and run again"
            )
        if (found[-1].kind, found[-1].n) != (found[0].kind, found[0].n):
            raise UserError(
                f"{entries[0].file} and {where} stand for one cell but were tested on "
                f"{found[0].n} and {found[-1].n} images, with {found[0].kind} and {found[-1].kind}; "
                "move away the one not meant"
            )
    return tuple(found)


def with_ranks(rows: Sequence[Row], columns: Sequence[Column]) -> list[Row]:
    """The rows with ranks: among methods of the newest version that have a number, column by column."""
    rows = list(rows)
    for place, column in enumerate(columns):
        ranked = [
            (i, row.cells[place])
            for i, row in enumerate(rows)
            if column.ranked and row.role == "method" and not row.older and row.cells[place].outcomes
        ]
        ranked.sort(key=lambda pair: (-pair[1].value, rows[pair[0]].variant))
        for (i, _), cell in zip(ranked, _compared([cell for _, cell in ranked]), strict=True):
            cells = list(rows[i].cells)
            cells[place] = cell
            rows[i] = replace(rows[i], cells=tuple(cells))
    return rows


def _compared(cells: Sequence[Cell]) -> list[Cell]:
    """Cells of one column, best first, each with its rank and how it compares with the one above."""
    ranking = stats.ranks([cell.outcomes for cell in cells])
    compared: list[Cell] = []
    for i, cell in enumerate(cells):
        images = seeds = NAN
        p = ranking.p_above[i]
        if i and ranking.labels[i] == ranking.labels[i - 1] and p >= stats.ALPHA:
            above, alpha = cells[i - 1], stats.ALPHA / (len(cells) - 1)
            images = power.images_needed(above.outcomes, cell.outcomes, alpha)
            over_seeds = (above.value - cell.value, above.spread, cell.spread)
            if not power.welch_p(*over_seeds, len(cell.seeds)) < alpha:
                seeds = power.seeds_needed(*over_seeds, alpha)
        compared.append(
            replace(
                cell,
                rank=ranking.labels[i],
                p_above=p,
                p_above_raw=ranking.p_above_raw[i],
                images_needed=images,
                seeds_needed=seeds,
            )
        )
    return compared
