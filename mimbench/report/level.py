"""Tables at equal cost: of each method the largest finished run that a common level allows.

Nothing is interpolated, and no point from the middle of a run is taken: there its learning-rate schedule
had not ended, so that a shorter run, trained to its own end, is another run and mostly a better one. A
level is therefore met by runs of about its size or not at all.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from mimbench.errors import UserError, unknown
from mimbench.report import text
from mimbench.report.costs import BY_KEY, NAN
from mimbench.report.entries import setting_of, without

OVER = 0.02  # of the level: a run ends at the step nearest to its budget, and tokens are counted to the step
ENOUGH = 0.8  # of the level: what spent less was stopped by its own budget, not by the level

Run = tuple[str, tuple[int, ...], str]  # variant, versions, identity of the setting: what one row is made of
UNITS = {"epochs": "epochs", "flops": "FLOPs", "hours": "hours"}
PREFIX = "equal-"


@dataclass(frozen=True)
class Level:
    """A cost at which rows are compared. amount: in epochs, FLOPs or hours; None takes the largest one
    that every method has reached."""

    unit: str
    amount: float | None = None

    @classmethod
    def parse(cls, asked: str) -> Level:
        """Out of ``equal-flops`` or ``equal-flops=1e15``; raises UserError."""
        kind, given, amount = (part.strip() for part in asked.partition("="))
        if kind.removeprefix(PREFIX) not in UNITS or not kind.startswith(PREFIX):
            raise unknown("level of cost", kind, [PREFIX + unit for unit in UNITS])
        if not given:
            return cls(kind.removeprefix(PREFIX))
        try:
            number = float(amount)
        except ValueError:
            number = NAN
        if not (number > 0 and math.isfinite(number)):
            raise UserError(f"{asked} names no cost; write a number above 0, as in {kind}=10")
        return cls(kind.removeprefix(PREFIX), number)

    def words(self, amount: float | None = None) -> str:
        """An amount, by default its own, with its unit: "1.20 PFLOP", "10 epochs"."""
        amount = self.amount if amount is None else amount
        assert amount is not None
        if self.unit == "epochs":
            return f"{amount:g} epochs" if amount == round(amount) else f"{text.number(amount)} epochs"
        cost, scale = (BY_KEY["pflops"], 1e-15) if self.unit == "flops" else (BY_KEY["hours"], 1.0)
        factor, unit = cost.unit([scale * amount])
        return f"{text.number(factor * scale * amount)} {unit}"

    @property
    def title(self) -> str:
        return f"equal {UNITS[self.unit]} (at most {self.words()})"

    @property
    def rule(self) -> str:
        """What a reader must know of it, in sentences."""
        counted = {
            "epochs": "Epochs are those of the method's own pre-training: a tokenizer's or a teacher's come "
            "on top.",
            "flops": "Tokenizer and teacher are included.",
            "hours": "Tokenizer and teacher are included; all was timed on one device.",
        }[self.unit]
        return (
            f"Of each row its largest finished run of at most {self.words()} is shown "
            f"({100 * OVER:.0f} % above is let pass), and what share of that it spent. "
            "A row whose largest such run spent less than "
            f"{100 * ENOUGH:.0f} % is a hole. {counted}"
        )


def run_of(entry: Any) -> Run:
    return entry.variant, entry.versions, entry.identity


@dataclass(frozen=True)
class Chosen:
    """What a table at a level is made of.

    entries: of the runs that are shown. level: with its amount; None where nothing was trained.
    spent: what each trained run spent, in the level's unit. short: runs that stand for a row without one
    at the level, each with what it spent and what to run, in a sentence.
    """

    entries: list[Any]
    level: Level | None
    spent: dict[Run, float]
    short: dict[Run, str]

    def share(self, run: Run) -> float:
        """Of the level; NaN for what was not trained."""
        if self.level is None or not self.level.amount or not self.spent.get(run):
            return NAN
        return self.spent[run] / self.level.amount


def choose(entries: Sequence[Any], asked: Level, newest: dict[str, tuple[int, ...]]) -> Chosen:
    """Of every row the run to show, out of entries whose settings may differ in the budget.

    newest: the newest versions of each variant; older ones set no level. Raises UserError where times were
    taken on several devices.
    """
    runs: dict[Run, list[Any]] = defaultdict(list)
    for entry in entries:
        if entry.kind != "tokenizer":
            runs[run_of(entry)].append(entry)
    spent = {run: _spent(own, asked.unit) for run, own in runs.items()}
    if asked.unit == "hours":
        _refuse_several_devices([e for run, own in runs.items() if spent[run] > 0 for e in own])
    rows: dict[tuple, list[Run]] = defaultdict(list)
    for run, own in runs.items():
        rows[(*run[:2], without(own[0].setting, ("budget",)))].append(run)

    amount = asked.amount or _reached(rows.values(), runs, spent, newest)
    level = None if amount is None else Level(asked.unit, amount)
    shown: list[Run] = []
    short: dict[Run, str] = {}
    for candidates in rows.values():
        run, sentence = _best(candidates, runs, spent, level)
        shown.append(run)
        if sentence:
            short[run] = sentence
    return Chosen([entry for run in shown for entry in runs[run]], level, spent, short)


def _reached(
    rows: Any, runs: dict[Run, list[Any]], spent: dict[Run, float], newest: dict[str, tuple[int, ...]]
) -> float | None:
    """The least of the methods' largest spendings; None where nothing was trained."""
    largest: dict[str, list[float]] = defaultdict(list)
    for candidates in rows:
        variant, versions, _ = candidates[0]
        amounts = [spent[run] for run in candidates if spent[run] > 0]
        if amounts and versions == newest[variant]:
            largest[runs[candidates[0]][0].role].append(max(amounts))
    reached = largest["method"] or [amount for amounts in largest.values() for amount in amounts]
    return min(reached, default=None)


def _best(
    candidates: list[Run], runs: dict[Run, list[Any]], spent: dict[Run, float], level: Level | None
) -> tuple[Run, str]:
    """The run that a row shows; with a sentence where it only stands for a hole."""

    def evaluated(run: Run) -> int:
        return sum(e.kind == "evaluate" and e.status == "done" for e in runs[run])

    trained = [run for run in candidates if spent[run] > 0]
    if level is None or level.amount is None or not trained:
        run = max(candidates, key=lambda run: (evaluated(run), run))
        # What was never trained costs nothing at any level; what never ended says itself why it is a hole.
        return run, "Its records do not say what it spent." if math.isnan(spent[run]) else ""
    ceiling = level.amount * (1 + OVER)
    within = [run for run in trained if spent[run] <= ceiling]
    run = max(within, key=lambda r: (spent[r], r)) if within else min(trained, key=lambda r: (spent[r], r))
    if within and spent[run] >= ENOUGH * level.amount:
        return run, ""
    budget, _ = setting_of(runs[run][0].setting).training
    needed = f"--{budget.unit} {budget.amount * level.amount / spent[run]:.4g}"
    what = f"largest run of at most {level.words()}" if within else "smallest run"
    return run, f"Its {what} spent {level.words(spent[run])}; to stand in this table, run it with {needed}."


def _spent(own: Sequence[Any], unit: str) -> float:
    """What a run spent, a mean over the seeds that ended: 0 where none did or nothing was trained, NaN where
    no record says so."""
    by_seed: dict[int, float] = {}
    for entry in own:
        amount = {"epochs": entry.epochs, "flops": 1e15 * entry.cost_pflops, "hours": entry.cost_hours}[unit]
        if entry.status == "done" and not math.isnan(amount):
            by_seed.setdefault(entry.seed, amount)
    if by_seed:
        return sum(by_seed.values()) / len(by_seed)
    return NAN if any(entry.status == "done" for entry in own) else 0.0


def _refuse_several_devices(entries: Sequence[Any]) -> None:
    devices = sorted({device for entry in entries for device in entry.devices})
    if len(devices) > 1:
        raise UserError(
            f"the pre-trainings of {setting_of(entries[0].setting).data} were timed on "
            f"{' and '.join(devices)}, and times on different devices do not compare; draw the table at "
            "equal-flops or equal-epochs, or name results folders of one device"
        )
