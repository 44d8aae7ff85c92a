"""Records as a run would leave them, with outcomes drawn at a wanted accuracy."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from mimbench import records
from mimbench.board import Layout, Table, console_tables, load, tables
from mimbench.outcomes import Hits, Outcomes
from mimbench.spec import Job, Record

SETTING: dict[str, Any] = {
    "data": "parquet:imagenette128",
    "fingerprint": "0f" * 32,
    "image_size": 128,
    "backbone": "vit_tiny_patch16",
    "budget": {"unit": "epochs", "amount": 10.0},
    "recipe": "paper",
    "batch_size": 64,
    "precision": "bf16",
}
WHEN = "2026-01-01T00:00:00+00:00"


class Board:
    """Writes records below a results folder; every method returns the record it wrote."""

    def __init__(self, folder: Path, images: int = 500, **setting: Any):
        self.folder, self.images = folder, images
        self.setting = {**SETTING, **setting}
        (folder / "records").mkdir(parents=True, exist_ok=True)

    def with_setting(self, **changes: Any) -> Board:
        """The same folder, another setting."""
        return Board(self.folder, self.images, **{**self.setting, **changes})

    def hits(self, accuracy: float, seed: int, tilt: int = 0) -> np.ndarray:
        """Outcomes at exactly the wanted accuracy (to 1 / images). Images have a difficulty of their own, so
        methods err on similar ones; ``tilt`` makes one method's errors its own."""
        difficulty = np.random.default_rng(7).random(self.images)
        own = np.random.default_rng([seed, tilt, 11]).random(self.images)
        order = np.argsort(0.8 * difficulty + 0.2 * own)
        hits = np.zeros(self.images, dtype=bool)
        hits[order[: round(accuracy * self.images)]] = True
        return hits

    def pretrain(
        self,
        variant: str,
        seed: int = 0,
        *,
        error: str | None = None,
        curve: Sequence[dict[str, float]] = (),
        cost: dict[str, Any] | None = None,
        flags: Sequence[str] = (),
        card: dict[str, Any] | None = None,
        **changes: Any,
    ) -> Record:
        content = {
            "method": variant.split("[")[0],
            "variant": variant,
            "settings": {},
            "method_version": 1,
            "setting": self.setting,
            "seed": seed,
            "recipe": {"base_lr": 1e-3},
            "role": "method",
            "external": "none",
            **changes,
        }
        facts: dict[str, Any] = {"flags": list(flags)} if flags else {}
        if card is not None:
            facts["card"] = card
        done = {} if error else {"curve": list(curve), "cost": COST if cost is None else cost, "facts": facts}
        return self._write(
            "pretrain", f"{variant} · pre-training · seed {seed}", content, error, **({} if error else done)
        )

    def evaluate(
        self,
        variant: str,
        accuracy: float = 0.5,
        seed: int = 0,
        protocol: str = "linprobe",
        *,
        error: str | None = None,
        hits: np.ndarray | None = None,
        outcomes: Outcomes | dict[str, Any] | None = None,
        facts: dict[str, Any] | None = None,
        needs: dict[str, str] | None = None,
        cost: dict[str, Any] | None = None,
        metrics: dict[str, float] | None = None,
        selection: dict[str, Any] | None = None,
        finished: str = WHEN,
        **changes: Any,
    ) -> Record:
        content = {
            "method": variant.split("[")[0],
            "variant": variant,
            "settings": {},
            "method_version": 1,
            "protocol": protocol,
            "protocol_version": 1,
            "fields": {"epochs": 100},
            "setting": self.setting,
            "seed": seed,
            "role": "method",
            "external": "none",
            **changes,
        }
        if error is None:
            hits = self.hits(accuracy, seed, tilt=len(variant)) if hits is None else hits
            outcomes = Hits(hits) if outcomes is None else outcomes
            score = outcomes.score if isinstance(outcomes, Outcomes) else 0.0
            metrics = {"top1": score} if metrics is None else metrics
            done = {
                "metrics": metrics,
                "outcomes": outcomes.pack() if isinstance(outcomes, Outcomes) else outcomes,
                "cost": COST if cost is None else cost,
                "facts": {"metric": next(iter(metrics)), "summary": f"what {protocol} does", **(facts or {})},
                "selection": selection or SELECTION,
            }
        else:
            done = {}
        needs = {f"{seed:016x}": "ab" * 32} if needs is None else needs
        return self._write(
            "evaluate",
            f"{variant} · {protocol} · seed {seed}",
            content,
            error,
            needs,
            **done,
            finished=finished,
        )

    def _write(
        self,
        kind: str,
        name: str,
        content: dict[str, Any],
        error: str | None = None,
        needs: dict[str, str] | None = None,
        **done: Any,
    ) -> Record:
        job = Job(kind=kind, name=name, content=content, needs=tuple(needs or {}))
        record = Record(
            id=job.id,
            kind=kind,
            name=name,
            status="done" if error is None else "failed",
            error=error,
            content=content,
            needs=needs or {},
            started=WHEN,
            **{"finished": WHEN, **done},
        )
        records.write(self.folder, record)
        return record


SELECTION = {
    "candidates": [{"lr": lr, "batch_norm": True, "validation_top1": 0.5} for lr in (0.1, 0.3, 1.0)],
    "chosen": 1,
    "edges": [],
    "notes": [],
}
COST = {
    "wall_seconds": 3600.0,
    "images": 100_000,
    "images_per_second": 250.0,
    "flops": 2e15,
    "tokens_seen": 5_000_000,
    "parameters_encoder": 5_500_000,
    "parameters_total": 8_000_000,
    "peak_memory_bytes": 2**30,
    "device": "a CPU",
    "processes": 1,
    "external": {},
}


def only(board: Board, **options: Any) -> Table:
    """Its one table."""
    (table,) = tables(load(board.folder), Layout(**options))
    return table


def printed(board: Board, width: int = 100, **options: Any) -> str:
    """What the console shows."""
    console = Console(width=width)
    with console.capture() as capture:
        for table in console_tables(tables(load(board.folder), Layout(**options)), width):
            console.print(table)
    return capture.get()
