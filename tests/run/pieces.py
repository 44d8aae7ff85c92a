"""Small plans, and a workshop that does their jobs in no time."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from mimbench.ledger import FED_ON, Ledger
from mimbench.plan import Plan
from mimbench.spec import Budget, Job, Record, Setting

SETTING = Setting(
    data="digits",
    fingerprint="f" * 64,
    image_size=16,
    backbone="vit_micro_patch2",
    budget=Budget(unit="images", amount=256),
    recipe="shared",
    batch_size=64,
    precision="fp32",
)


def job(kind: str, name: str, *needs: Job) -> Job:
    content = {"method": name, "variant": name, "seed": 0, "setting": SETTING.content()}
    return Job(kind=kind, name=f"{name} · {kind}", content=content, needs=tuple(n.id for n in needs))


def chain(name: str) -> list[Job]:
    """tokenizer -> pretrain -> two evaluations."""
    tokenizer = job("tokenizer", f"{name} tokenizer")
    pretrain = job("pretrain", name, tokenizer)
    return [
        tokenizer,
        pretrain,
        job("evaluate", f"{name} knn", pretrain),
        job("evaluate", f"{name} probe", pretrain),
    ]


def plan_of(*jobs: Job) -> Plan:
    return Plan(SETTING, jobs)


class FakeWorkshop:
    """Does jobs in no time. ``faults`` by method name: what goes wrong in a job instead."""

    world_size = 1

    def __init__(self, folder: Path, faults: dict[str, Callable[[], Record | None]] | None = None):
        for name in ("records", "weights", "locks"):
            (folder / name).mkdir(parents=True, exist_ok=True)
        self.ledger = Ledger(folder)
        self.faults = faults or {}
        self.performed: list[str] = []

    def perform(self, job: Job, report) -> Record:
        self.performed.append(job.content["method"])
        record = Record(
            id=job.id,
            kind=job.kind,
            name=job.name,
            status="done",
            content=job.content,
            needs={need: self.ledger.product_hash(need) for need in job.needs},
            started="2026-01-01T00:00:00+00:00",
            finished="2026-01-01T00:00:01+00:00",
        )
        if fault := self.faults.get(job.content["method"]):
            return fault() or record
        if name := FED_ON.get(job.kind):
            path = self.ledger.weights(job.id) / name
            path.parent.mkdir(exist_ok=True)
            path.write_text(job.name)
            record = record.model_copy(update={"product": {name: f"sha of {job.name}"}})
        return record
