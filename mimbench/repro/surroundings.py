"""What a run was made with: machines, versions, code, data, weights; and whether that was one or several."""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from mimbench import settings
from mimbench.ledger import Ledger
from mimbench.provenance import DISTRIBUTIONS
from mimbench.repro.dossier import Cost, Data, Fact, Released, Value, Weights
from mimbench.spec import Record
from mimbench.weights.release import Release

CHANGES = "changes on top of the commit"  # name of the fact
MACHINE = ("platform", "cpu", "cpu_count", "gpus", "cuda", "tf32", "torch_threads")


def _fact(name: str, values: Iterable[str]) -> Fact:
    counted = Counter(values).most_common()
    return Fact(name=name, values=tuple(Value(value=value, records=count) for value, count in counted))


def _known(facts: Iterable[Fact]) -> tuple[Fact, ...]:
    return tuple(fact for fact in facts if [value.value for value in fact.values] not in ([], ["–"]))


def environment(found: Sequence[Record]) -> tuple[Fact, ...]:
    """Machines, by their facts, of the records that tell of them."""
    told = [record.environment for record in found if record.environment]
    facts = [_fact("python", (one.get("python", "–") for one in told))]
    for name in MACHINE:
        facts.append(_fact(name.replace("_", " "), (_shown(one.get(name)) for one in told)))
    facts.append(_fact("thread variables", (_shown(one.get("threads")) for one in told)))
    trained = [record for record in found if record.kind != "evaluate" and record.cost.get("images")]
    facts.append(_fact("trained on", (str(record.cost.get("device") or "–") for record in trained)))
    facts.append(
        _fact("processes of a training", (str(record.cost.get("processes", 1)) for record in trained))
    )
    return _known(facts)


def versions(found: Sequence[Record]) -> tuple[Fact, ...]:
    """Packages with their versions; where only some records name one, the others count as without."""
    told = [record.environment.get("versions", {}) for record in found if record.environment]
    names = dict.fromkeys([*DISTRIBUTIONS, *(name for one in told for name in one)])
    return _known(
        _fact(name, (one.get(name, "not installed") for one in told)) for name in names if _any(told, name)
    )


def _any(told: Sequence[dict[str, str]], name: str) -> bool:
    return any(name in one for one in told)


def code(found: Sequence[Record]) -> tuple[Fact, ...]:
    """The commit, and whether files were changed since."""
    told = [record.environment.get("source", {}) for record in found if record.environment]
    commits = _fact("commit", (one.get("commit", "not known: installed, not checked out") for one in told))
    changed = _fact(CHANGES, (_shown(one.get("changed")) for one in told))
    return _known([commits, changed])


def mixed(*facts: Sequence[Fact]) -> tuple[str, ...]:
    """A sentence for each fact that is not one and the same in all records."""
    said = []
    for fact in (fact for group in facts for fact in group if fact.mixed):
        listed = ", ".join(f"{_short(value.value)} ({value.records} records)" for value in fact.values)
        said.append(f"{fact.name} differs within this run: {listed}")
    return tuple(said)


def _short(value: str) -> str:
    return value[:12] if len(value) == 40 and not set(value) - set("0123456789abcdef") else value


def _shown(value: Any) -> str:
    if value is None or value in ({}, []):
        return "–" if value is None else "none"
    if isinstance(value, dict):
        return ", ".join(f"{name}={inner}" for name, inner in value.items())
    if isinstance(value, list):
        return ", ".join(map(str, value))
    return {True: "yes", False: "no"}[value] if isinstance(value, bool) else settings.show(value)


def data(found: Sequence[Record]) -> tuple[Data, ...]:
    """The data sets, by their content."""
    described: dict[str, dict[str, Any]] = {}
    names: dict[str, dict[str, None]] = defaultdict(dict)
    uses: dict[str, dict[str, None]] = defaultdict(dict)
    for record in found:
        content = record.content
        own = content.get("data") or {
            "name": content["setting"]["data"],
            "fingerprint": content["setting"]["fingerprint"],
        }
        names[own["fingerprint"]][own["name"]] = None
        uses[own["fingerprint"]]["evaluation" if record.kind == "evaluate" else "pre-training"] = None
        if record.data.get("fingerprint") == own["fingerprint"] or own["fingerprint"] not in described:
            described[own["fingerprint"]] = record.data
    return tuple(
        Data(
            name=" or ".join(names[fingerprint]),
            used_for=tuple(uses[fingerprint]),
            task=of.get("task", ""),
            fingerprint=fingerprint,
            sizes=of.get("sizes", {}),
            fingerprints=of.get("fingerprints", {}),
            classes=len(of["classes"]) if of.get("classes") is not None else None,
            split_rule=of.get("split_rule", ""),
            store_side=of.get("store_side"),
            skipped=tuple(of.get("skipped", ())),
            notes=tuple(of.get("notes", ())),
        )
        for fingerprint, of in described.items()
    )


def weights(found: Sequence[Record], folder: Path) -> tuple[Weights, ...]:
    """Every file that a training wrote, and whether it is still there as it was."""
    ledger = Ledger(folder)
    return tuple(
        Weights(
            record=record.id,
            name=record.name,
            file=name,
            sha256=sha256,
            state=_state(ledger.weights(record.id) / name, sha256),
        )
        for record in found
        if record.kind != "evaluate" and record.status == "done"
        for name, sha256 in record.product.items()
    )


def released(found: Sequence[Record]) -> tuple[Released, ...]:
    """The weights that were trained elsewhere, by the names of their rows."""
    told: dict[str, Released] = {}
    for record in found:
        if record.kind != "evaluate" and (facts := record.facts.get("release")):
            release = Release.model_validate(facts)
            parts = ("" if release.external == "none" else release.external, release.learned_from)
            told[record.content["variant"]] = Released(
                variant=record.content["variant"],
                trained_on=release.trained_on,
                told=": ".join(filter(None, parts)),
                licence=release.licence,
                address=release.url,
                file=release.file,
                sha256=release.file_sha256,
                layout=release.layout,
            )
    return tuple(told[name] for name in sorted(told))


def _state(path: Path, sha256: str) -> Any:
    if not path.is_file():
        return "missing"
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return "matches" if digest.hexdigest() == sha256 else "differs"


def seconds(record: Record) -> float:
    """From its start to its end; 0 where a record does not say."""
    try:
        started, finished = map(datetime.fromisoformat, (record.started, record.finished))
    except ValueError:
        return 0.0
    return max((finished - started).total_seconds(), 0.0)


def cost(found: Sequence[Record]) -> Cost:
    """What all jobs took together; nothing is counted twice, as a training's own record alone counts it."""
    done = [record for record in found if record.status == "done"]
    trained = [record for record in done if record.kind != "evaluate"]
    evaluated = [record for record in done if record.kind == "evaluate"]
    needed = {need for record in trained for need in record.needs}
    hours: dict[str, float] = defaultdict(float)
    for record in trained:
        if record.cost.get("images"):
            each = record.cost.get("processes", 1)
            hours[record.cost.get("device") or "unknown"] += (
                record.cost.get("wall_seconds", 0.0) * each / 3600
            )
    return Cost(
        training_seconds=sum(record.cost.get("wall_seconds", 0.0) for record in trained),
        before_seconds=sum(record.cost.get("wall_seconds", 0.0) for record in trained if record.id in needed),
        evaluation_seconds=sum(map(seconds, evaluated)),
        flops=sum(record.cost.get("flops", 0.0) for record in trained),
        images=sum(record.cost.get("images", 0) for record in trained),
        peak_memory_bytes=max((record.cost.get("peak_memory_bytes", 0) for record in trained), default=0),
        device_hours=dict(hours),
        trainings=sum(bool(record.cost.get("images")) for record in trained),
        evaluations=len(evaluated),
    )
